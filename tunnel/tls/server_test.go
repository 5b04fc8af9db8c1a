package tls_test

import (
	"bytes"
	stdtls "crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
)

// client returns the configuration of a stranger's TLS client.
func (g *gateway) client(sni string, alpn []string, cert *stdtls.Certificate) *stdtls.Config {
	c := &stdtls.Config{RootCAs: g.ca.Pool(), ServerName: sni, NextProtos: alpn, InsecureSkipVerify: true}
	if cert != nil {
		c.GetClientCertificate = func(*stdtls.CertificateRequestInfo) (*stdtls.Certificate, error) { return cert, nil }
	}
	return c
}

func (g *gateway) connect(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute)) // should a test hang
	return c.(*net.TCPConn)
}

// handshake returns a TLS connection as a stranger makes it.
func (g *gateway) handshake(t *testing.T, sni string, alpn []string, cert *stdtls.Certificate) (*stdtls.Conn, error) {
	t.Helper()
	c := stdtls.Client(g.connect(t), g.client(sni, alpn, cert))
	return c, c.Handshake()
}

// outcome waits until a connection is done with, or is a raw Arrival, and says
// which of the three things has become of it. It must be one.
func outcome(t *testing.T, g *gateway, h *tunneltest.House, apis chan *stdtls.Conn) (kind string, a api.Arrival, r api.Refusal) {
	t.Helper()
	select {
	case a = <-h.Arrivals:
		kind = a.Facts.Tunnel
		t.Cleanup(func() { a.Conn.(tunnel.Conn).Reset("the test is over") })
	case r = <-h.Refusals:
		kind = "refused"
	case c := <-apis:
		kind = "api"
		c.Close()
	case <-time.After(time.Minute):
		t.Fatal("nothing became of the connection")
	}
	if kind != tls.Protocol {
		<-g.accepted
	}
	if len(h.Arrivals)+len(h.Refusals)+len(apis) > 0 {
		t.Error("more than one thing became of the connection")
	}
	return kind, a, r
}

func TestSorting(t *testing.T) {
	h, apis := tunneltest.NewHouse(), make(chan *stdtls.Conn, 10)
	g := serve(t, &tls.Server{Handler: h, API: func(c *stdtls.Conn) { apis <- c }})
	session := g.ca.Session()
	for _, test := range []struct {
		name, sni string
		alpn      []string
		want      string // form, or "refused"
		service   string
		proto     string
	}{
		{"no name", "", nil, "api", "", ""},
		{"no name, HTTP", "", []string{"h2", "http/1.1"}, "api", "", "http/1.1"},
		{"api", "api.cardea.internal", []string{"http/1.1"}, "api", "", "http/1.1"},
		{"api in capitals", "API.Cardea.Internal", nil, "api", "", ""},
		{"service", "nats.prod.svc.cardea.internal", nil, "tls", "nats.prod", ""},
		{"service in the default namespace", "nats.svc.cardea.internal", nil, "tls", "nats.default", ""},
		{"service with its protocol", "pg.svc.cardea.internal", []string{"postgresql", "x"}, "tls", "pg.default", "postgresql"},
		{"service in capitals", "NATS.Svc.CARDEA.internal", nil, "tls", "nats.default", ""},
		{"no such name", "www.cardea.internal", nil, "refused", "", ""},
		{"another domain", "gateway.example.com", []string{"cardea/1"}, "refused", "", ""},
		{"gateway without protocol", "gateway.cardea.internal", nil, "refused", "", ""},
		{"gateway with another protocol", "gateway.cardea.internal", []string{"h2"}, "refused", "", ""},
		{"api with the gateway's protocol", "api.cardea.internal", []string{"cardea/1"}, "refused", "", ""},
		{"no name with the gateway's protocol", "", []string{"cardea/1"}, "refused", "", ""},
		{"service with the gateway's protocol", "nats.svc.cardea.internal", []string{"x", "cardea/1"}, "refused", "", ""},
		{"too many labels", "a.b.c.svc.cardea.internal", nil, "refused", "", ""},
		{"no service", "svc.cardea.internal", nil, "refused", "", ""},
		{"bad character", "na_ts.svc.cardea.internal", nil, "refused", "", ""},
		{"inside of another domain", "nats.svc.cardea.internal.example.com", nil, "refused", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := g.handshake(t, test.sni, test.alpn, session)
			if (err != nil) != (test.want == "refused") {
				t.Errorf("handshake: %v", err)
			}
			kind, a, r := outcome(t, g, h, apis)
			if kind != test.want {
				t.Fatalf("sorted as %s, want %s", kind, test.want)
			}
			if a.Service != test.service {
				t.Errorf("Service %q, want %q", a.Service, test.service)
			}
			if kind != "refused" && c.ConnectionState().NegotiatedProtocol != test.proto {
				t.Errorf("protocol %q, want %q", c.ConnectionState().NegotiatedProtocol, test.proto)
			}
			if kind == "refused" && (r.Reason != api.ReasonHandshake || r.Facts.TLS == nil || r.Facts.TLS.SNI != strings.ToLower(test.sni)) {
				t.Errorf("refused as %+v", r)
			}
		})
	}
}

func TestFacts(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	session := g.ca.Session(func(c *x509.Certificate) { c.SerialNumber.SetInt64(0xbeef) })
	c, err := g.handshake(t, "nats.svc.cardea.internal", []string{"nats"}, session)
	if err != nil {
		t.Fatal(err)
	}
	_, a, _ := outcome(t, g, h, nil)
	from := c.LocalAddr().(*net.TCPAddr)
	if a.Facts.IP != "127.0.0.1" || a.Facts.Port != from.Port || a.Facts.Listener != g.addr || a.Facts.Tunnel != "tls" {
		t.Errorf("%+v", a.Facts)
	}
	if f := a.Facts.TLS; f.SNI != "nats.svc.cardea.internal" || f.ALPN != "nats" || f.Version != "1.3" {
		t.Errorf("%+v", f)
	}
	if f := a.Facts.TLS.ClientCertificate; f.Subject != "CN=alice" || f.Issuer != "CN=test CA" || f.Serial != "beef" ||
		len(f.SHA256) != 64 || len(f.URIs) != 1 || f.URIs[0] != "cardea://cardea.internal/session/s-1" {
		t.Errorf("%+v", f)
	}
	if a.Evidence.Kind != api.EvidenceCertificate || !bytes.Equal(a.Evidence.Data, session.Certificate[0]) {
		t.Error("the evidence is not the certificate")
	}
}

// badCertificates are what no tunnel accepts.
func badCertificates(g *gateway, t *testing.T) map[string]*stdtls.Certificate {
	stranger := tunneltest.NewAuthority(t)
	return map[string]*stdtls.Certificate{
		"no client certificate":                 {},
		"not signed by the cluster's authority": stranger.Session(),
		"holds from": g.ca.Session(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}),
		"is not for client authentication": g.ca.Session(func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}),
		"not for client authentication": g.ca.Session(func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
	}
}

func TestCertificatesThatAreRefused(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	for words, cert := range badCertificates(g, t) {
		check := func(t *testing.T) {
			t.Helper()
			kind, _, r := outcome(t, g, h, nil)
			if kind != "refused" || r.Reason != api.ReasonHandshake || !strings.Contains(r.Words, words) {
				t.Errorf("%s: %+v", kind, r)
			}
			if r.Facts.IP != "127.0.0.1" || r.Facts.Port == 0 || r.Facts.Listener != g.addr || r.Facts.TLS.SNI == "" {
				t.Errorf("refused without its facts: %+v", r.Facts)
			}
		}
		t.Run("raw, "+words, func(t *testing.T) {
			c, err := g.handshake(t, "nats.svc.cardea.internal", nil, cert)
			if err != nil {
				t.Fatal(err) // in TLS 1.3 the client learns it later
			}
			if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || err == io.EOF {
				t.Errorf("the client reads %d, %v", n, err)
			}
			check(t)
		})
		t.Run("framed, "+words, func(t *testing.T) {
			_, err := g.dialer(t, always(cert)).Dial(t.Context(), "nats")
			if !api.HasCode(err, api.CodeUnauthenticated) {
				t.Errorf("dial: %v; want UNAUTHENTICATED", err)
			}
			if len(cert.Certificate) == 0 { // the Dialer does not even try
				g.handshake(t, "gateway.cardea.internal", []string{"cardea/1"}, cert)
			}
			check(t)
		})
	}
}

// TestStolenCertificate: a certificate without its key opens nothing, neither a
// tunnel nor the API.
func TestStolenCertificate(t *testing.T) {
	h := tunneltest.NewHouse()
	apis := make(chan *stdtls.Conn, 1)
	g := serve(t, &tls.Server{Handler: h, API: func(c *stdtls.Conn) { apis <- c }})
	stolen := &stdtls.Certificate{Certificate: g.ca.Session().Certificate, PrivateKey: tunneltest.NewKey(t)}
	for name, alpn := range map[string][]string{
		"nats.svc.cardea.internal": nil, "gateway.cardea.internal": {"cardea/1"}, "api.cardea.internal": nil,
	} {
		t.Run(name, func(t *testing.T) {
			c, err := g.handshake(t, name, alpn, stolen)
			if err == nil { // in TLS 1.3 the client learns it later
				_, err = c.Read(make([]byte, 1))
			}
			if err == nil || err == io.EOF {
				t.Errorf("the thief reads: %v", err)
			}
			kind, _, r := outcome(t, g, h, apis)
			if kind != "refused" || r.Reason != api.ReasonHandshake || !strings.Contains(r.Words, "signature") {
				t.Errorf("%s: %+v", kind, r)
			}
		})
	}
}

func TestAPIGetsUnverifiedCertificates(t *testing.T) {
	h, apis := tunneltest.NewHouse(), make(chan *stdtls.Conn, 1)
	g := serve(t, &tls.Server{Handler: h, API: func(c *stdtls.Conn) { apis <- c }})
	for words, cert := range badCertificates(g, t) {
		t.Run(words, func(t *testing.T) {
			if _, err := g.handshake(t, "", nil, cert); err != nil {
				t.Fatal(err)
			}
			c := <-apis
			defer c.Close()
			state := c.ConnectionState()
			if len(state.PeerCertificates) != len(cert.Certificate) {
				t.Errorf("the API sees %d certificates, want %d", len(state.PeerCertificates), len(cert.Certificate))
			}
			if len(state.VerifiedChains) > 0 {
				t.Error("the handshake calls the certificate verified")
			}
		})
	}
}

func TestGarbage(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	noise := make([]byte, 4096)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	long := append([]byte{22, 3, 1, 0x40, 0, 1, 1, 0x11, 0x70}, make([]byte, 100<<10)...) // a ClientHello of 70,000 bytes
	unhex := func(s string) string {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, in := range map[string]string{
		"nothing":             "",
		"one byte":            "\x16",
		"HTTP":                "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"SSH":                 "SSH-2.0-OpenSSH_9.0\r\n",
		"zeros":               strings.Repeat("\x00", 1000),
		"noise":               string(noise),
		"noise in records":    "\x16\x03\x01\x10\x00" + string(noise),
		"SSLv2 hello":         unhex("80 2e 01 0002 0015 0000 0010 010080") + strings.Repeat("\x01", 40),
		"SSLv3 hello":         unhex("16 0300 002d 01 000029 0300") + strings.Repeat("\x01", 32) + unhex("00 0002 000a 01 00"),
		"hello cut short":     "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"hello that is empty": "\x16\x03\x01\x00\x04\x01\x00\x00\x00",
		"another message":     "\x16\x03\x01\x00\x04\x02\x00\x00\x00",
		"an alert":            "\x15\x03\x01\x00\x02\x02\x28",
		"application data":    "\x17\x03\x03\x00\x05hello",
		"PROXY header":        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
		"hello too long":      string(long),
	} {
		t.Run(name, func(t *testing.T) {
			c := g.connect(t)
			c.Write([]byte(in))
			c.CloseWrite()
			answer, _ := io.ReadAll(c)
			if len(answer) > 0 {
				t.Errorf("the peer learns %q", answer)
			}
			kind, _, r := outcome(t, g, h, nil)
			if kind != "refused" || r.Reason != api.ReasonHandshake || r.Facts.IP != "127.0.0.1" || r.Facts.Port == 0 {
				t.Errorf("%s: %+v", kind, r)
			}
			if r.Words == "" || len(r.Words) > 200 {
				t.Errorf("words %q", r.Words)
			}
		})
	}
}

func TestNameThatIsNotServedLearnsNothing(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	c := g.connect(t)
	seen := &recorder{Conn: c}
	if err := stdtls.Client(seen, g.client("www.example.com", nil, nil)).Handshake(); err == nil {
		t.Error("handshake succeeds")
	}
	if len(seen.got) > 0 {
		t.Errorf("the peer learns %x", seen.got)
	}
}

// recorder keeps what is read.
type recorder struct {
	net.Conn
	got []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.got = append(r.got, p[:n]...)
	return n, err
}

func TestOldTLSIsRefused(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	for _, sni := range []string{"api.cardea.internal", "nats.svc.cardea.internal"} {
		config := g.client(sni, nil, g.ca.Session())
		config.MaxVersion = stdtls.VersionTLS12
		if err := stdtls.Client(g.connect(t), config).Handshake(); err == nil {
			t.Errorf("%s speaks TLS 1.2", sni)
		}
		if kind, _, r := outcome(t, g, h, nil); kind != "refused" || !strings.Contains(r.Words, "version") {
			t.Errorf("%s: %s, %+v", sni, kind, r)
		}
	}
}

// TestHandshakeThatIsTooLong shows that a stranger cannot make the house read any
// number of certificates.
func TestHandshakeThatIsTooLong(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	session := g.ca.Session()
	for len(session.Certificate)*len(session.Certificate[0]) < 150<<10 {
		session.Certificate = append(session.Certificate, session.Certificate[0])
	}
	g.handshake(t, "nats.svc.cardea.internal", nil, session)
	if kind, _, r := outcome(t, g, h, nil); kind != "refused" || r.Words != "the handshake is too long" {
		t.Errorf("%s: %+v", kind, r)
	}
}

func TestSlowHello(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h, Limits: tls.Limits{Handshake: 20 * time.Millisecond}})
	g.connect(t).Write([]byte{22, 3, 1})
	if kind, _, r := outcome(t, g, h, nil); kind != "refused" || r.Words != "no complete handshake in time" {
		t.Errorf("%s: %+v", kind, r)
	}
}

// rawPair returns both ends of a raw stream to a stranger's client.
func rawPair(t *testing.T) (client *stdtls.Conn, server tunnel.Conn) {
	t.Helper()
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	client, err := g.handshake(t, "nats.svc.cardea.internal", nil, g.ca.Session())
	if err != nil {
		t.Fatal(err)
	}
	_, a, _ := outcome(t, g, h, nil)
	return client, a.Conn.(tunnel.Conn)
}

// TestRawEndings shows what the house makes of each way in which a stranger's
// client can end.
func TestRawEndings(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(*stdtls.Conn)
		want error
	}{
		{"close_notify", func(c *stdtls.Conn) { c.CloseWrite() }, io.EOF},
		{"close_notify and FIN", func(c *stdtls.Conn) { c.Close() }, io.EOF},
		{"FIN without close_notify", func(c *stdtls.Conn) { c.NetConn().Close() }, syscall.ECONNRESET},
		{"half-close of TCP without close_notify", func(c *stdtls.Conn) { c.NetConn().(*net.TCPConn).CloseWrite() }, syscall.ECONNRESET},
		{"RST", func(c *stdtls.Conn) { c.NetConn().(*net.TCPConn).SetLinger(0); c.NetConn().Close() }, syscall.ECONNRESET},
		{"FIN within a record", func(c *stdtls.Conn) {
			c.NetConn().Write([]byte{23, 3, 3, 0, 100, 1, 2, 3})
			c.NetConn().Close()
		}, syscall.ECONNRESET},
	} {
		t.Run(test.name, func(t *testing.T) {
			client, server := rawPair(t)
			client.Write([]byte("hello"))
			b := make([]byte, 5)
			if _, err := io.ReadFull(server, b); err != nil {
				t.Fatal(err)
			}
			test.end(client)
			for range 2 {
				if n, err := server.Read(b); n > 0 || !errors.Is(err, test.want) {
					t.Errorf("the house reads %d, %v; want %v", n, err, test.want)
				}
			}
		})
	}
}

func TestRawHalfCloseWithLateAnswer(t *testing.T) {
	client, server := rawPair(t)
	client.Write([]byte("question"))
	client.CloseWrite()
	if got, err := io.ReadAll(server); err != nil || string(got) != "question" {
		t.Fatalf("%q, %v", got, err)
	}
	server.Write([]byte("answer"))
	server.CloseWrite()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("%q, %v", got, err)
	}
	server.Close()
}

func TestRawResetSaysNoGoodbye(t *testing.T) {
	client, server := rawPair(t)
	server.Write([]byte("half of it"))
	if _, err := io.ReadFull(client, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	server.Reset("REVOKED")
	if n, err := client.Read(make([]byte, 1)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %d, %v; want a reset", n, err)
	}
}

// TestOpenSSL shows that the raw form works with a client that is not ours.
func TestOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("there is no openssl here")
	}
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		t.Run(host, func(t *testing.T) { openSSL(t, openssl, host) })
	}
}

func openSSL(t *testing.T, openssl, host string) {
	h := tunneltest.NewHouse()
	g := serveOn(t, &tls.Server{Handler: h}, host+":0")
	dir := t.TempDir()
	ca, cert, key := writePEM(t, dir, g.ca, g.ca.Session())
	cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-quiet", "-verify_return_error", "-no_ign_eof",
		"-connect", g.addr, "-servername", "nats.svc.cardea.internal", "-CAfile", ca, "-cert", cert, "-key", key)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "hello from a stranger\n")
	kind, a, r := outcome(t, g, h, nil)
	if kind != "tls" || a.Service != "nats.default" || a.Facts.Listener != g.addr {
		t.Fatalf("%s: %+v, %+v", kind, r, a)
	}
	got := make([]byte, len("hello from a stranger\n"))
	if _, err := io.ReadFull(a.Conn, got); err != nil || string(got) != "hello from a stranger\n" {
		t.Fatalf("%q, %v", got, err)
	}
	a.Conn.Write([]byte("hello to you\n"))
	a.Conn.Close()
	cmd.Wait() // its status tells nothing: it calls the end of its input a failure or not
	in.Close()
	if out.String() != "hello to you\n" {
		t.Errorf("openssl says %q\n%s", out.String(), words.String())
	}
}
