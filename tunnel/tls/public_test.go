package tls_test

import (
	"bytes"
	stdtls "crypto/tls"
	"crypto/x509"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
)

// publicNames is Server.Public where web.default is public, also as
// www.example.com, and claims names that are not its own.
func publicNames(sni string) (string, bool) {
	switch sni {
	case "web.svc.cardea.internal", "web.default.svc.cardea.internal", "www.example.com",
		"nats.svc.cardea.internal", "api.cardea.internal", "gateway.cardea.internal", "":
		return "web.default", true
	}
	return "", false
}

func TestPublicService(t *testing.T) {
	h, apis := tunneltest.NewHouse(), make(chan *stdtls.Conn, 10)
	g := serve(t, &tls.Server{Handler: h, Public: publicNames, API: func(c *stdtls.Conn) { apis <- c }})
	session, stranger := g.ca.Session(), tunneltest.NewAuthority(t).Session()
	const anonymous = tls.PublicName
	for _, test := range []struct {
		name, sni string
		alpn      []string
		cert      *stdtls.Certificate
		want      string // Facts.Tunnel, "api", or "refused"
		service   string
	}{
		{"by its name", "web.default.svc.cardea.internal", nil, nil, anonymous, "web.default"},
		{"by its short name", "web.svc.cardea.internal", []string{"h2"}, nil, anonymous, "web.default"},
		{"by another name", "WWW.example.com", []string{"h2", "http/1.1"}, nil, anonymous, "web.default"},
		{"with a Session", "web.svc.cardea.internal", nil, session, "tls", "web.default"},
		{"by another name, with a Session", "www.example.com", nil, session, "tls", "web.default"},
		{"with a certificate that is not good", "www.example.com", nil, stranger, "refused", ""},
		{"a Service that is not public", "pg.svc.cardea.internal", nil, nil, "refused", ""},
		{"another name", "ftp.example.com", nil, nil, "refused", ""},
		{"another name, with a Session", "ftp.example.com", nil, session, "refused", ""},
		{"the name of another Service", "nats.svc.cardea.internal", nil, nil, "refused", ""},
		{"the name of another Service, with a Session", "nats.svc.cardea.internal", nil, session, "tls", "nats.default"},
		{"the API's name", "api.cardea.internal", nil, nil, "api", ""},
		{"no name", "", nil, nil, "api", ""},
		{"the gateway's name", "gateway.cardea.internal", []string{"cardea/1"}, nil, "refused", ""},
		{"the gateway's protocol", "www.example.com", []string{"h2", "cardea/1"}, nil, "refused", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, _ := g.handshake(t, test.sni, test.alpn, test.cert)
			kind, a, r := outcome(t, g, h, apis)
			if kind != test.want || a.Service != test.service {
				t.Fatalf("%s to %q, %+v; want %s to %q", kind, a.Service, r, test.want, test.service)
			}
			if kind == "refused" || kind == "api" {
				return
			}
			if a.Facts.TLS.SNI != strings.ToLower(test.sni) || a.Facts.IP != "127.0.0.1" || (a.Facts.TLS.ClientCertificate != nil) != (kind == "tls") {
				t.Errorf("%+v", a.Facts)
			}
			if len(test.alpn) > 0 && c.ConnectionState().NegotiatedProtocol != test.alpn[0] {
				t.Errorf("protocol %q", c.ConnectionState().NegotiatedProtocol)
			}
			if kind == anonymous && (a.Evidence.Kind != api.EvidenceAnonymous || a.Evidence.Data != nil) {
				t.Errorf("%+v", a.Evidence)
			}
			if kind == "tls" && (a.Evidence.Kind != api.EvidenceCertificate || !bytes.Equal(a.Evidence.Data, session.Certificate[0])) {
				t.Errorf("%+v", a.Evidence)
			}
			c.Write([]byte("question"))
			c.CloseWrite()
			if got, err := io.ReadAll(a.Conn); string(got) != "question" || err != nil {
				t.Errorf("the house reads %q, %v", got, err)
			}
			a.Conn.Write([]byte("answer"))
			a.Conn.Close()
			if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
				t.Errorf("the client reads %q, %v", got, err)
			}
		})
	}
}

// TestRawIsResumed shows that a resumed raw stream is the Session's as before, that
// its certificate is verified again, and that one without a certificate resumes
// nothing where one is asked for.
func TestRawIsResumed(t *testing.T) {
	h := tunneltest.NewHouse()
	var public atomic.Bool
	g := serve(t, &tls.Server{Handler: h, Public: func(string) (string, bool) { return "web.default", public.Load() }})
	var trusted atomic.Pointer[x509.CertPool]
	trusted.Store(g.ca.Pool())
	g.ClientCAs = trusted.Load
	session := g.ca.Session()
	cache := stdtls.NewLRUClientSessionCache(1)
	dial := func(what string, cert *stdtls.Certificate, resumed bool) {
		t.Helper()
		config := g.client("web.svc.cardea.internal", nil, cert)
		config.ClientSessionCache = cache
		c := stdtls.Client(g.connect(t), config)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		a := <-h.Arrivals
		defer a.Conn.(tunnel.Conn).Reset("the test is over")
		a.Conn.Write([]byte("x")) // with which a ticket comes
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if got := c.ConnectionState().DidResume; got != resumed {
			t.Errorf("%s: resumed %v", what, got)
		}
		if (cert != nil) != (a.Evidence.Kind == api.EvidenceCertificate) || cert != nil && !bytes.Equal(a.Evidence.Data, cert.Certificate[0]) {
			t.Errorf("%s: %+v", what, a.Evidence)
		}
	}
	public.Store(true)
	dial("nobody", nil, false)
	dial("nobody again", nil, true)
	public.Store(false)
	dial("a Session where nobody was", session, false)
	dial("the Session again", session, true)
	if n := g.Stats().Resumed; n != 2 {
		t.Errorf("%d are counted", n)
	}
	trusted.Store(tunneltest.NewAuthority(t).Pool())
	config := g.client("web.svc.cardea.internal", nil, session)
	config.ClientSessionCache = cache
	c := stdtls.Client(g.connect(t), config)
	if err := c.Handshake(); err != nil || !c.ConnectionState().DidResume {
		t.Errorf("not resumed (%v): this shows nothing", err)
	}
	if r := <-h.Refusals; !strings.Contains(r.Words, "not signed by the cluster's authority") {
		t.Errorf("%+v", r)
	}
}
