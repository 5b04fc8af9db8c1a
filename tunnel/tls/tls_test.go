package tls_test

import (
	"context"
	stdtls "crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"cardea/ingress"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv("TLS_TEST_ATTACK"); kind != "" {
		n, _ := strconv.Atoi(os.Getenv("TLS_TEST_ATTEMPTS"))
		if err := attack(kind, os.Getenv("TLS_TEST_TARGET"), n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

const domain = tunneltest.Domain

// certificate issues what the gateway shows.
func certificate(a *tunneltest.Authority) *stdtls.Certificate {
	return a.Issue(func(c *x509.Certificate) {
		c.DNSNames = []string{tls.GatewayName(domain), tls.APIName(domain), "*.svc." + domain, "*.default.svc." + domain}
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
}

// gateway is a Server that listens on loopback.
type gateway struct {
	*tls.Server
	addr     string
	ca       *tunneltest.Authority
	stop     context.CancelFunc // what the Server's ctx is ended with
	accepted chan struct{}      // one value for each connection that is done with
}

// serve runs a Server until the end of the test. Fields that are not set get a
// value that works.
func serve(t *testing.T, s *tls.Server) *gateway {
	t.Helper()
	return serveOn(t, s, "127.0.0.1:0")
}

func serveOn(t testing.TB, s *tls.Server, address string) *gateway {
	t.Helper()
	g := &gateway{Server: s, ca: tunneltest.NewAuthority(t), accepted: make(chan struct{}, 10_000)}
	cert := certificate(g.ca)
	s.Domain = domain
	s.Certificate = func(*stdtls.ClientHelloInfo) (*stdtls.Certificate, error) { return cert, nil }
	s.ClientCAs = g.ca.Pool
	s.Log = slog.New(slog.DiscardHandler)
	if s.API == nil {
		s.API = func(c *stdtls.Conn) { c.Close() }
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	g.addr = ln.Addr().String()
	ctx, stop := context.WithCancel(context.Background()) // t.Context ends before the cleanups
	g.stop = stop
	l := &ingress.Listener{Listener: ln, Log: s.Log, Handle: func(ctx context.Context, c net.Conn) {
		s.Conn(ctx, c)
		select {
		case g.accepted <- struct{}{}:
		default: // nobody counts so many
		}
	}}
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g
}

// dialer returns a Dialer that presents what cert holds.
func (g *gateway) dialer(t testing.TB, cert func() *stdtls.Certificate) *tls.Dialer {
	d := &tls.Dialer{
		Address: g.addr, Domain: domain, Roots: g.ca.Pool(),
		Certificate: func(context.Context) (*stdtls.Certificate, error) { return cert(), nil },
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func always(c *stdtls.Certificate) func() *stdtls.Certificate {
	return func() *stdtls.Certificate { return c }
}

func TestFramedRoad(t *testing.T) {
	tunneltest.Run(t, func(t *testing.T, h tunnel.Handler) tunnel.Dialer {
		g := serve(t, &tls.Server{Handler: h})
		return g.dialer(t, always(g.ca.Session()))
	})
}

type rawDialer struct{ *tls.Dialer }

func (d rawDialer) Dial(ctx context.Context, service string) (net.Conn, error) {
	return d.DialRaw(ctx, service, "")
}

func TestRawRoad(t *testing.T) {
	tunneltest.Run(t, func(t *testing.T, h tunnel.Handler) tunnel.Dialer {
		g := serve(t, &tls.Server{Handler: h})
		return rawDialer{g.dialer(t, always(g.ca.Session()))}
	})
}
