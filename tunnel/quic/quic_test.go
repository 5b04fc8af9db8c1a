package quic_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	stdtls "crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"path"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/quic"
	"cardea/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "cardea.internal"

// authority is a certificate authority of one test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, key: newKey(t)}
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
		c.URIs = []*url.URL{{Scheme: "cardea", Host: "session", Path: "/s-1"}}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		for _, e := range edits {
			e(c)
		}
	})
}

// sessionOf returns the uid that session puts into a certificate.
func sessionOf(leaf *x509.Certificate) (string, bool) {
	if len(leaf.URIs) == 0 {
		return "", false
	}
	return path.Base(leaf.URIs[0].Path), true
}

// gateway is a Server on loopback.
type gateway struct {
	*quic.Server
	addr string
	ca   *authority
	stop context.CancelFunc // what the Server's ctx is ended with
	kill func()             // ends it without a word to anybody
	done chan error         // what Serve has returned
}

// serve runs a Server until the end of the test.
func serve(t testing.TB, s *quic.Server) *gateway {
	t.Helper()
	ca := newAuthority(t)
	cert := ca.issue(func(c *x509.Certificate) {
		c.DNSNames = []string{tunnel.GatewayName(domain)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	s.Domain = domain
	s.Certificate = func(*stdtls.ClientHelloInfo) (*stdtls.Certificate, error) { return cert, nil }
	s.ClientCAs = ca.pool
	s.Log = slog.New(slog.DiscardHandler)
	return run(t, s, ca, "127.0.0.1:0")
}

// run runs a Server whose fields are set.
func run(t testing.TB, s *quic.Server, ca *authority, address string) *gateway {
	t.Helper()
	pc, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	return runAt(t, s, ca, pc)
}

// runAt is run at a socket.
func runAt(t testing.TB, s *quic.Server, ca *authority, pc net.PacketConn) *gateway {
	ctx, stop := context.WithCancel(context.Background()) // t.Context ends before the cleanups
	g := &gateway{Server: s, addr: pc.LocalAddr().String(), ca: ca, stop: stop, done: make(chan error, 1)}
	killed := false
	g.kill = func() {
		killed = true
		pc.Close()
	}
	go func() {
		defer pc.Close()
		g.done <- s.Serve(ctx, pc)
		close(g.done)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-g.done; err != nil && !killed {
			t.Error(err)
		}
	})
	return g
}

// dialer returns a Dialer that presents what cert holds.
func (g *gateway) dialer(t testing.TB, cert func() *stdtls.Certificate) *quic.Dialer {
	d := &quic.Dialer{
		Address: g.addr, Domain: domain, Roots: g.ca.pool(),
		Certificate: func(context.Context) (*stdtls.Certificate, error) { return cert(), nil },
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func always(c *stdtls.Certificate) func() *stdtls.Certificate {
	return func() *stdtls.Certificate { return c }
}

func TestRoad(t *testing.T) {
	tunneltest.Run(t, func(t *testing.T, h tunnel.Handler) tunnel.Dialer {
		g := serve(t, &quic.Server{Handler: h})
		return g.dialer(t, always(g.ca.session()))
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
