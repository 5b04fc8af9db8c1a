package tls_test

import (
	"context"
	stdtls "crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/ingress"
	"cardea/tunnel"
	"cardea/tunnel/tls"
)

// publicPort is the public port of a Service with isTLS, as the house has it.
func publicPort(t *testing.T, host string, limit time.Duration) (addr string, ca *authority, h *house) {
	t.Helper()
	ca, h = newAuthority(t), newHouse()
	cert := ca.server()
	admission := &ingress.Admission{Limits: ingress.AdmissionLimits{Rate: 2}}
	terminator := &tls.Terminator{Admit: admission.Enter, Limit: limit, Certificate: func(name string) (*stdtls.Certificate, error) {
		if name != "web.default.svc."+domain {
			return nil, errors.New("no certificate for " + name)
		}
		return cert, nil
	}}
	public := &ingress.Public{
		Host: host, Domain: domain, Handle: h.Arrive, TLS: terminator.Accept, Refused: h.Refused,
		Admission: admission, Log: slog.New(slog.DiscardHandler),
	}
	ctx, stop := context.WithCancel(context.Background()) // t.Context ends before the cleanups
	done := make(chan error, 1)
	go func() { done <- public.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	svc := &api.Service{}
	svc.Metadata.Name, svc.Status.Port = "web.default", l.Addr().(*net.TCPAddr).Port
	svc.Spec.IsPublic, svc.Spec.IsAnonymous, svc.Spec.IsTLS = true, true, true
	public.Set(ctx, []*api.Service{svc})
	return l.Addr().String(), ca, h
}

func TestPublicTLS(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			for _, test := range []struct {
				name   string
				config *stdtls.Config
				want   api.TLSFacts
			}{
				{"its name", &stdtls.Config{ServerName: "web.default.svc." + domain}, api.TLSFacts{SNI: "web.default.svc." + domain, Version: "1.3"}},
				{"another name", &stdtls.Config{ServerName: "www.example.com"}, api.TLSFacts{SNI: "www.example.com", Version: "1.3"}},
				{"no name, TLS 1.2", &stdtls.Config{MaxVersion: stdtls.VersionTLS12}, api.TLSFacts{Version: "1.2"}},
				{"its protocol", &stdtls.Config{NextProtos: []string{"postgresql", "x"}}, api.TLSFacts{ALPN: "postgresql", Version: "1.3"}},
			} {
				t.Run(test.name, func(t *testing.T) {
					addr, ca, h := publicPort(t, host, 0)
					test.config.RootCAs, test.config.InsecureSkipVerify = ca.pool(), true
					c, err := stdtls.Dial("tcp", addr, test.config)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if err := c.ConnectionState().PeerCertificates[0].VerifyHostname("web.default.svc." + domain); err != nil {
						t.Error(err)
					}
					c.Write([]byte("question"))
					c.CloseWrite()
					a := <-h.arrivals
					if got, err := io.ReadAll(a.Conn); string(got) != "question" || err != nil {
						t.Errorf("the house reads %q, %v", got, err)
					}
					a.Conn.Write([]byte("answer"))
					a.Conn.Close()
					if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
						t.Errorf("the client reads %q, %v", got, err)
					}
					if *a.Facts.TLS != test.want || a.Facts.IP != host || a.Facts.Tunnel != "public" || a.Evidence.Kind != api.EvidenceAnonymous || a.Service != "web.default" {
						t.Errorf("%+v, %+v", a, a.Facts.TLS)
					}
				})
			}
		})
	}
}

func TestPublicTLSThatIsCutIsAReset(t *testing.T) {
	addr, _, h := publicPort(t, "127.0.0.1", 0)
	dial := func() (*stdtls.Conn, tunnel.Conn) {
		c, err := stdtls.Dial("tcp", addr, &stdtls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.NetConn().Close() })
		return c, (<-h.arrivals).Conn.(tunnel.Conn)
	}
	c, house := dial()
	c.NetConn().Close() // no close_notify
	if _, err := house.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the house reads %v", err)
	}
	house.Close()
	c, house = dial()
	house.Reset("REVOKED")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v", err)
	}
}

func TestPublicTLSRefusals(t *testing.T) {
	addr, _, h := publicPort(t, "127.0.0.1", 50*time.Millisecond)
	for say, words := range map[string]string{
		"":                         "no complete handshake in time",
		"GET / HTTP/1.1\r\n\r\n\r": "not TLS",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, say)
		if got, _ := io.ReadAll(c); len(got) > 0 {
			t.Errorf("the peer learns %q", got)
		}
		c.Close()
		if r := <-h.refusals; r.Reason != api.ReasonHandshake || r.Words != words || r.Facts.IP != "127.0.0.1" {
			t.Errorf("%+v", r)
		}
	}
	addr, _, h = publicPort(t, "127.0.0.1", 0)
	refused := 0
	for range 40 {
		c, err := stdtls.Dial("tcp", addr, &stdtls.Config{InsecureSkipVerify: true})
		if err != nil {
			r := <-h.refusals
			if r.Reason != api.ReasonOverload || !strings.Contains(r.Words, "2 handshakes a second") {
				t.Errorf("%+v", r)
			}
			refused++
			continue
		}
		(<-h.arrivals).Conn.Close()
		c.Close()
	}
	if refused == 0 {
		t.Error("any number of handshakes is made in a second")
	}
}
