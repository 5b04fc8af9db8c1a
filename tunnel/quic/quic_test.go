package quic_test

import (
	"context"
	stdtls "crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"testing"

	"go.uber.org/goleak"

	"cardea/tunnel"
	"cardea/tunnel/quic"
	"cardea/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = tunneltest.Domain

// gateway is a Server on loopback.
type gateway struct {
	*quic.Server
	addr string
	ca   *tunneltest.Authority
	stop context.CancelFunc // what the Server's ctx is ended with
	kill func()             // ends it without a word to anybody
	done chan error         // what Serve has returned
}

// serve runs a Server until the end of the test.
func serve(t testing.TB, s *quic.Server) *gateway {
	t.Helper()
	ca := tunneltest.NewAuthority(t)
	cert := ca.Issue(func(c *x509.Certificate) {
		c.DNSNames = []string{tunnel.GatewayName(domain)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	s.Domain = domain
	s.Certificate = func(*stdtls.ClientHelloInfo) (*stdtls.Certificate, error) { return cert, nil }
	s.ClientCAs = ca.Pool
	s.Log = slog.New(slog.DiscardHandler)
	return run(t, s, ca, "127.0.0.1:0")
}

// run runs a Server whose fields are set.
func run(t testing.TB, s *quic.Server, ca *tunneltest.Authority, address string) *gateway {
	t.Helper()
	pc, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	return runAt(t, s, ca, pc)
}

// runAt is run at a socket.
func runAt(t testing.TB, s *quic.Server, ca *tunneltest.Authority, pc net.PacketConn) *gateway {
	ctx, stop := context.WithCancel(context.Background()) // t.Context ends before the cleanups
	g := &gateway{Server: s, addr: pc.LocalAddr().String(), ca: ca, stop: stop, done: make(chan error, 1)}
	killed := false
	g.kill = func() {
		killed = true
		pc.Close()
	}
	go func() {
		err := s.Serve(ctx, pc)
		pc.Close() // before it is said: the port may be asked for
		g.done <- err
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
		Address: g.addr, Domain: domain, Roots: g.ca.Pool(),
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
		return g.dialer(t, always(g.ca.Session()))
	})
}
