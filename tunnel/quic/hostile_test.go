package quic_test

import (
	"context"
	stdtls "crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/quic"
	"cardea/tunnel/tunneltest"
	"cardea/wire/frame"
)

// stranger makes a connection as a test wants it.
func (g *gateway) stranger(t *testing.T, sni string, alpn []string, cert *stdtls.Certificate) (*quicgo.Conn, error) {
	t.Helper()
	c := &stdtls.Config{RootCAs: g.ca.Pool(), ServerName: sni, NextProtos: alpn, InsecureSkipVerify: true}
	if cert != nil {
		c.GetClientCertificate = func(*stdtls.CertificateRequestInfo) (*stdtls.Certificate, error) { return cert, nil }
	}
	conn, err := quicgo.DialAddr(t.Context(), g.addr, c, &quicgo.Config{EnableDatagrams: true, MaxIncomingUniStreams: 10})
	if err == nil {
		t.Cleanup(func() { conn.CloseWithError(0, "") })
	}
	return conn, err
}

func TestWhoIsLetIn(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &quic.Server{
		Handler: h, Session: tunneltest.SessionOf,
		Pipe: func(context.Context, *x509.Certificate, tunnel.Pipe) { t.Error("a stranger has a pipe") },
	})
	session := g.ca.Session()
	gateway := tunnel.GatewayName(domain)
	refused := func(t *testing.T, words string) {
		t.Helper()
		r := <-h.Refusals
		if r.Reason != api.ReasonHandshake || !strings.Contains(r.Words, words) || r.Facts.IP != "127.0.0.1" || r.Facts.TLS == nil {
			t.Errorf("%+v; want %q", r, words)
		}
	}
	for name, x := range map[string]struct {
		sni  string
		alpn []string
	}{
		"another protocol": {gateway, []string{"h3"}},
		"another name":     {"api.cardea.internal", []string{quic.Protocol}},
		"no name":          {"", []string{quic.Protocol}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := g.stranger(t, x.sni, x.alpn, session); err == nil {
				t.Error("it is served")
			}
			refused(t, "nothing is served")
		})
	}
	for words, cert := range map[string]*stdtls.Certificate{
		"no client certificate":                 {},
		"not signed by the cluster's authority": tunneltest.NewAuthority(t).Session(),
		"holds from": g.ca.Session(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}),
		"not for client authentication": g.ca.Session(func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
	} {
		for _, protocol := range []string{quic.Protocol, quic.PacketsProtocol} {
			t.Run(protocol+"/"+words, func(t *testing.T) {
				conn, err := g.stranger(t, gateway, []string{protocol}, cert)
				if err == nil { // in TLS 1.3 the client learns it later
					<-conn.Context().Done()
				}
				refused(t, words)
			})
		}
		if len(cert.Certificate) > 0 {
			t.Run("the Dialer is told/"+words, func(t *testing.T) {
				d := g.dialer(t, always(cert))
				if _, err := d.Dial(t.Context(), "nats"); !api.HasCode(err, api.CodeUnauthenticated) {
					t.Errorf("Dial: %v; want UNAUTHENTICATED", err)
				}
				if _, err := d.Pipe(t.Context()); !api.HasCode(err, api.CodeUnauthenticated) {
					t.Errorf("Pipe: %v; want UNAUTHENTICATED", err)
				}
				refused(t, words)
				refused(t, words)
			})
		}
	}
	t.Run("a certificate without its key", func(t *testing.T) {
		stolen := &stdtls.Certificate{Certificate: session.Certificate, PrivateKey: tunneltest.NewKey(t)}
		conn, err := g.stranger(t, gateway, []string{quic.Protocol}, stolen)
		if err == nil {
			<-conn.Context().Done()
		}
		if n := g.Stats().Handshakes; n != 0 {
			t.Errorf("%d handshakes were completed", n)
		}
	})
	t.Run("no Session", func(t *testing.T) {
		d := g.dialer(t, always(g.ca.Session(func(c *x509.Certificate) { c.URIs = nil })))
		if _, err := d.Pipe(t.Context()); !api.HasCode(err, api.CodeUnavailable) || !strings.Contains(err.Error(), "not that of a Session") {
			t.Errorf("Pipe: %v", err)
		}
		refused(t, "not that of a Session")
	})
	if n := len(h.Arrivals); n > 0 {
		t.Errorf("%d arrivals", n)
	}
}

// A gateway that is another's is not talked to.
func TestForeignGateway(t *testing.T) {
	g := serve(t, &quic.Server{Handler: tunneltest.NewHouse()})
	d := g.dialer(t, always(g.ca.Session()))
	d.Roots = tunneltest.NewAuthority(t).Pool()
	if _, err := d.Dial(t.Context(), "nats"); err == nil || g.Stats().Handshakes > 0 {
		t.Errorf("Dial: %v", err)
	}
}

func TestFacts(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &quic.Server{Handler: h})
	session := g.ca.Session()
	d := g.dialer(t, always(session))
	conns := dialling(t, d)
	a := <-h.Arrivals
	defer a.Conn.Close()
	a.Conn.(tunnel.Teller).Verdict(ok)
	f := a.Facts
	if f.Tunnel != "quic" || f.IP != "127.0.0.1" || f.Port == 0 || f.Listener != g.addr || f.TLS.ALPN != "cardea/1" ||
		f.TLS.SNI != "gateway.cardea.internal" || f.TLS.Version != "1.3" || f.TLS.ClientCertificate.Subject != "CN=alice" {
		t.Errorf("%+v, %+v", f, f.TLS)
	}
	defer (<-conns).Close()
	if string(a.Evidence.Data) != string(session.Certificate[0]) || a.Service != "nats.default" {
		t.Errorf("%+v", a)
	}
	if s := d.Status(); !s.Connected || s.Remote != g.addr || s.Sent == 0 || s.Received == 0 || s.Streams != 1 {
		t.Errorf("%+v", s)
	}
}

// A new certificate makes a new connection; the old one goes on as long as its streams.
func TestRenewal(t *testing.T) {
	g := serve(t, &quic.Server{Handler: newEcho()})
	var now atomic.Pointer[stdtls.Certificate]
	now.Store(g.ca.Session())
	d := g.dialer(t, now.Load)
	old := dial(t, d)
	defer old.Close()
	now.Store(g.ca.Session())
	renewed := dial(t, d)
	defer renewed.Close()
	exchange(t, renewed, 1000, func() {})
	exchange(t, old, 1000, func() {})
	if n := g.Stats().Handshakes; n != 2 {
		t.Errorf("%d handshakes", n)
	}
}

// open returns the bytes of OPEN.
func open(service string) []byte {
	b, err := frame.AppendOpen(nil, frame.Open{Service: service})
	if err != nil {
		panic(err)
	}
	return b
}

// A client that breaks the rules of a stream loses its connection, and nobody else's.
func TestHostileStreams(t *testing.T) {
	h := newEcho()
	g := serve(t, &quic.Server{Handler: h, Limits: quic.Limits{Handshake: time.Second}})
	good := dial(t, g.dialer(t, always(g.ca.Session())))
	defer good.Close()
	noise := make([]byte, 4096)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	connect := func(t *testing.T) *quicgo.Conn {
		t.Helper()
		conn, err := g.stranger(t, tunnel.GatewayName(domain), []string{quic.Protocol}, g.ca.Session())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	for name, first := range map[string][]byte{
		"noise":         noise,
		"DATA for OPEN": frame.AppendData(nil, []byte("x")),
		"unknown frame": {99, 0, 0},
		"long OPEN":     {2, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			conn := connect(t)
			s, err := conn.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			s.Write(first)
			<-conn.Context().Done()
		})
	}
	for name, first := range map[string][]byte{"half an OPEN": open("nats")[:4], "nothing but FIN": {}} {
		t.Run(name, func(t *testing.T) {
			s, err := connect(t).OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			s.Write(first)
			if len(first) == 0 {
				s.Close()
			}
			if b, err := io.ReadAll(s); len(b) > 0 || err == nil {
				t.Errorf("%q, %v; want a reset", b, err)
			}
		})
	}
	record := func(id uint64, f []byte) []byte { return append(binary.BigEndian.AppendUint64(nil, id), f...) }
	for name, x := range map[string]struct {
		control []byte
		ends    bool
	}{
		"a record of another type":   {record(0, frame.AppendEOF(nil)), true},
		"noise for a record":         {noise, true},
		"a stream that is not there": {record(4000, frame.AppendReset(nil, "no")), false},
		"no number of a stream":      {record(1<<64-1, frame.AppendDone(nil)), false},
		"DONE many times":            {append(record(0, frame.AppendDone(nil)), record(0, frame.AppendDone(nil))...), false},
	} {
		t.Run("control/"+name, func(t *testing.T) {
			conn := connect(t)
			s, err := conn.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			s.Write(open("nats"))
			control, err := conn.OpenUniStream()
			if err != nil {
				t.Fatal(err)
			}
			control.Write(x.control)
			if x.ends {
				<-conn.Context().Done()
				return
			}
			f, err := frame.NewReader(s).Next()
			if err != nil || f.Verdict.Code != "OK" {
				t.Errorf("%+v, %v", f, err)
			}
			s.Write([]byte("hello"))
			if _, err := io.ReadFull(s, make([]byte, 5)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("more streams than may be", func(t *testing.T) {
		conn := connect(t)
		for {
			if _, err := conn.OpenStream(); err != nil {
				break // the client of quic-go keeps to the limit of the server
			}
		}
		if _, err := conn.OpenUniStream(); err != nil {
			t.Error(err)
		}
		if _, err := conn.OpenUniStream(); err == nil {
			t.Error("a second control stream is let in")
		}
	})
	exchange(t, good, 1000, func() {})
}

// Bytes that are no QUIC, and hellos whose senders never answer, keep nobody out.
func TestFloodOfStrangers(t *testing.T) {
	h := newEcho()
	g := serve(t, &quic.Server{Handler: h, Limits: quic.Limits{Handshakes: 16}})
	// A hello is caught on its way to a server that does not answer.
	silent := listen(t)
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go quicgo.DialAddr(ctx, silent.LocalAddr().String(), &stdtls.Config{ServerName: tunnel.GatewayName(domain), NextProtos: []string{quic.Protocol}}, nil)
	hello := make([]byte, 1500)
	n, _, err := silent.ReadFrom(hello)
	if err != nil {
		t.Fatal(err)
	}
	flood, err := net.Dial("udp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer flood.Close()
	noise := make([]byte, 1200)
	r := rand.NewChaCha8([32]byte{1})
	for i := range 2000 {
		r.Read(noise)
		flood.Write(noise[:i%len(noise)])
		first := hello[:n]
		if i%2 == 0 {
			r.Read(first[6:14]) // the id of another connection, and with it other keys
		}
		flood.Write(first)
	}
	c := dial(t, g.dialer(t, always(g.ca.Session())))
	defer c.Close()
	exchange(t, c, 1000, func() {})
}

// What a Session has sent before it closed arrives, though everything ends at once.
func TestTailIsDelivered(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &quic.Server{Handler: h})
	n := newNetwork(t, g.addr)
	d := n.through(g, t)
	client, served := both(t, d, h)
	served.CloseWrite()
	if b, err := io.ReadAll(client); len(b) > 0 || err != nil {
		t.Fatal(b, err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	n.set(func() bool { return r.IntN(4) == 0 })
	sent := make([]byte, 16<<10) // which has room before anybody reads
	if _, err := client.Write(sent); err != nil {
		t.Fatal(err)
	}
	client.Close()
	closed := make(chan error)
	go func() { closed <- d.Close() }()
	if b, err := io.ReadAll(served); len(b) != len(sent) || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	served.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := d.Dial(t.Context(), "nats"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial after Close: %v", err)
	}
}

// A house that is killed is told from one that has finished.
func TestLossIsNoEnd(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &quic.Server{Handler: h})
	d := g.dialer(t, always(g.ca.Session()))
	client, served := both(t, d, h)
	defer client.Reset("the test is over")
	io.WriteString(served, "half")
	if _, err := io.ReadFull(client, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	g.kill()
	if _, err := served.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the house reads %v; want a reset", err)
	}
	served.Close()
}

// One Session cannot make any number of connections, each of which holds memory and has a
// window of its own; others are not concerned, and those that end make room.
func TestConnectionsOfASession(t *testing.T) {
	h := newEcho()
	g := serve(t, &quic.Server{Handler: h, Session: tunneltest.SessionOf, Limits: quic.Limits{Conns: 2}})
	alice := always(g.ca.Session())
	bob := always(g.ca.Session(func(c *x509.Certificate) { c.URIs[0].Path = "/s-2" }))
	end := func() {}
	try := func(who func() *stdtls.Certificate) error {
		d := g.dialer(t, who)
		c, err := d.Dial(t.Context(), "echo")
		if err == nil {
			t.Cleanup(func() { c.Close() })
			exchange(t, c.(tunnel.Conn), 10, func() {})
			end = func() {
				c.Close()
				d.Close()
			}
		}
		return err
	}
	if err := errors.Join(try(alice), try(alice)); err != nil {
		t.Fatal(err)
	}
	err := try(alice)
	if !api.HasCode(err, api.CodeUnavailable) || !strings.Contains(err.Error(), "too many connections") {
		t.Errorf("one more: %v", err)
	}
	if r := <-h.Refusals; r.Facts.TLS == nil {
		t.Errorf("%+v", r)
	}
	leave := end
	if err := try(bob); err != nil {
		t.Errorf("another Session: %v", err)
	}
	leave()
	for err != nil && t.Context().Err() == nil {
		err = try(alice)
	}
}
