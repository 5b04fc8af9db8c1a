package tls_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	stdtls "crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
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

const domain = "cardea.internal"

// authority is a certificate authority of one test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t}
	a.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue signs a certificate that edit may change.
func (a *authority) issue(edit func(*x509.Certificate)) *stdtls.Certificate {
	a.t.Helper()
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	edit(template)
	key := newKey(a.t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &stdtls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// session issues a certificate as a Session has it.
func (a *authority) session(edits ...func(*x509.Certificate)) *stdtls.Certificate {
	return a.issue(func(c *x509.Certificate) {
		c.Subject.CommonName = "alice"
		c.URIs = []*url.URL{{Scheme: "cardea", Host: domain, Path: "/session/s-1"}}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		for _, e := range edits {
			e(c)
		}
	})
}

func (a *authority) server() *stdtls.Certificate {
	return a.issue(func(c *x509.Certificate) {
		c.DNSNames = []string{tls.GatewayName(domain), tls.APIName(domain), "*.svc." + domain, "*.default.svc." + domain}
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
}

// gateway is a Server that listens on loopback.
type gateway struct {
	*tls.Server
	addr     string
	ca       *authority
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
	g := &gateway{Server: s, ca: newAuthority(t), accepted: make(chan struct{}, 10_000)}
	cert := g.ca.server()
	s.Domain = domain
	s.Certificate = func(*stdtls.ClientHelloInfo) (*stdtls.Certificate, error) { return cert, nil }
	s.ClientCAs = g.ca.pool
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
		Address: g.addr, Domain: domain, Roots: g.ca.pool(),
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
		return g.dialer(t, always(g.ca.session()))
	})
}

type rawDialer struct{ *tls.Dialer }

func (d rawDialer) Dial(ctx context.Context, service string) (net.Conn, error) {
	return d.DialRaw(ctx, service, "")
}

func TestRawRoad(t *testing.T) {
	tunneltest.Run(t, func(t *testing.T, h tunnel.Handler) tunnel.Dialer {
		g := serve(t, &tls.Server{Handler: h})
		return rawDialer{g.dialer(t, always(g.ca.session()))}
	})
}

// house is a Handler that keeps what comes.
type house struct {
	arrivals chan api.Arrival
	refusals chan api.Refusal
}

func newHouse() *house {
	return &house{arrivals: make(chan api.Arrival, 1000), refusals: make(chan api.Refusal, 1000)}
}

func (h *house) Arrive(a api.Arrival)  { h.arrivals <- a }
func (h *house) Refused(r api.Refusal) { h.refusals <- r }
