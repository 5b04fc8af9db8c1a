package quic_test

import (
	"bytes"
	"context"
	stdtls "crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/quic"
	"cardea/tunnel/tunneltest"
)

// stream is both ends of a stream.
type stream struct{ near, far net.Conn }

// openStream opens a stream to whoever of the houses takes it.
func openStream(t *testing.T, d *quic.Dialer, h *tunneltest.House) stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	type dialled struct {
		c   net.Conn
		err error
	}
	done := make(chan dialled, 1)
	go func() {
		c, err := d.Dial(ctx, "echo.default")
		done <- dialled{c, err}
	}()
	var far net.Conn
	select {
	case a := <-h.Arrivals:
		far = a.Conn
		far.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictOK})
	case <-ctx.Done():
		t.Fatal("nothing arrives where it should")
	}
	x := <-done
	if x.err != nil {
		t.Fatal(x.err)
	}
	t.Cleanup(func() { x.c.Close(); far.Close() })
	return stream{x.c, far}
}

// talk sends much one way, and something back.
func (p stream) talk(t *testing.T) {
	t.Helper()
	sent, got := bytes.Repeat([]byte("0123456789abcdef"), 1<<16), make([]byte, 1<<20)
	p.near.SetDeadline(time.Now().Add(20 * time.Second))
	p.far.SetDeadline(time.Now().Add(20 * time.Second))
	go p.near.Write(sent)
	if _, err := io.ReadFull(p.far, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("a stream does not live on: %v", err)
	}
	p.far.Write([]byte("thanks"))
	if _, err := io.ReadFull(p.near, got[:6]); err != nil || string(got[:6]) != "thanks" {
		t.Fatalf("a stream does not live on: %v", err)
	}
}

// serverOf returns what makes Servers of one gateway.
func serverOf(a *tunneltest.Authority) func(*tunneltest.House) *quic.Server {
	cert := a.Issue(func(c *x509.Certificate) {
		c.DNSNames = []string{tunnel.GatewayName(domain)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})
	return func(h *tunneltest.House) *quic.Server {
		return &quic.Server{
			Handler: h, Domain: domain, Certificate: func(*stdtls.ClientHelloInfo) (*stdtls.Certificate, error) { return cert, nil },
			ClientCAs: a.Pool, ResetKey: [32]byte{1}, Log: slog.New(slog.DiscardHandler),
		}
	}
}

// heirOf hands a socket over, and returns what the next process has of it, and how many
// descriptors that took.
func heirOf(t *testing.T, socket *quic.Socket) (next *quic.Socket, handed int) {
	t.Helper()
	files, text, err := socket.Bequeath()
	if err != nil {
		t.Fatal(err)
	}
	handed = len(files)
	next, err = quic.Inherit(func(name string) *os.File {
		f := files[name]
		delete(files, name)
		return f
	}, text)
	if err != nil || len(files) != 0 {
		t.Fatal(err, files)
	}
	return next, handed
}

// TestSuccession hands the socket of a Server over, twice: streams live on where they were
// opened, new ones come to the new Server, and so do those of connections of before.
func TestSuccession(t *testing.T) {
	ca := tunneltest.NewAuthority(t)
	server := serverOf(ca)
	socket, err := quic.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	h := tunneltest.NewHouse()
	g := runAt(t, server(h), ca, socket)
	d := g.dialer(t, always(ca.Session()))
	pairs := []stream{openStream(t, d, h)}
	for range 2 {
		next, _ := heirOf(t, socket)
		socket.Leave()
		g.stop()
		h = tunneltest.NewHouse()
		g, socket = runAt(t, server(h), ca, next), next
		for _, p := range pairs {
			p.talk(t)
		}
		pairs = append(pairs, openStream(t, d, h))
	}
	for _, p := range pairs {
		p.talk(t)
	}
	for _, p := range pairs {
		p.near.Close()
		p.far.Close()
	}
	d.Close() // the older ones hear of it by the newest
}

// TestHandOverThatFails hands a socket over to nobody: nothing changes.
func TestHandOverThatFails(t *testing.T) {
	socket, err := quic.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	h := tunneltest.NewHouse()
	ca := tunneltest.NewAuthority(t)
	g := runAt(t, serverOf(ca)(h), ca, socket)
	p := openStream(t, g.dialer(t, always(ca.Session())), h)
	for range 2 {
		next, _ := heirOf(t, socket)
		next.Close()
		p.talk(t)
	}
}

// TestHeirIsKilled has the process end that a socket was handed over to: what the one before
// has is over at once, and the port is free.
func TestHeirIsKilled(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere the end of the other process is not seen")
	}
	socket, err := quic.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	h := tunneltest.NewHouse()
	ca := tunneltest.NewAuthority(t)
	g := runAt(t, serverOf(ca)(h), ca, socket)
	p := openStream(t, g.dialer(t, always(ca.Session())), h)
	next, _ := heirOf(t, socket)
	socket.Leave()
	next.Close()
	p.far.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := p.far.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stream of the one before: %v", err)
	}
	p.far.Close()
	select {
	case err := <-g.done:
		if !errors.Is(err, quic.ErrDeaf) {
			t.Errorf("its Server ends with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("its Server goes on")
	}
	again, err := quic.Listen(netip.MustParseAddrPort(g.addr))
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// TestManyHandOvers hands a socket over more often than there are marks: those of processes
// that have ended are free, and nothing is kept for them.
func TestManyHandOvers(t *testing.T) {
	socket, err := quic.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		next, handed := heirOf(t, socket)
		if handed != 2 { // the socket, and the way to the one before
			t.Fatalf("hand-over %d: %d descriptors", i, handed)
		}
		socket.Leave()
		socket.Close()
		socket = next
	}
	socket.Close()
}
