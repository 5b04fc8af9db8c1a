package quic_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/quic"
	"cardea/tunnel/tunneltest"
)

// A network lies between one client and a server: it loses packets, and gives the client
// another address, as a NAT does.
type network struct {
	t      testing.TB
	near   net.PacketConn // to the client
	server *net.UDPAddr
	work   sync.WaitGroup

	mu     sync.Mutex
	client net.Addr
	far    net.PacketConn // to the server
	olds   []net.PacketConn
	lose   func() bool
	moved  int
}

func newNetwork(t testing.TB, server string) *network {
	t.Helper()
	to, err := net.ResolveUDPAddr("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	n := &network{t: t, server: to, near: listen(t), lose: func() bool { return false }}
	n.move()
	n.work.Go(n.forth)
	t.Cleanup(func() {
		n.mu.Lock()
		for _, c := range append(n.olds, n.near, n.far) {
			c.Close()
		}
		n.mu.Unlock()
		n.work.Wait()
	})
	return n
}

func listen(t testing.TB) net.PacketConn {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return pc
}

func (n *network) addr() string { return n.near.LocalAddr().String() }

// move gives the client another address. What is sent to the old one is lost.
func (n *network) move() {
	far := listen(n.t)
	n.mu.Lock()
	if n.far != nil {
		n.far.Close()
	}
	n.far = far
	n.moved++
	n.mu.Unlock()
	n.work.Go(func() { n.back(far) })
}

// set says which packets are lost.
func (n *network) set(lose func() bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lose = lose
}

func (n *network) forth() {
	b := make([]byte, 65536)
	for {
		size, from, err := n.near.ReadFrom(b)
		if err != nil {
			return
		}
		n.mu.Lock()
		n.client = from
		far, server, lost := n.far, n.server, n.lose()
		n.mu.Unlock()
		if !lost {
			far.WriteTo(b[:size], server)
		}
	}
}

func (n *network) back(far net.PacketConn) {
	b := make([]byte, 65536)
	for {
		size, _, err := far.ReadFrom(b)
		if err != nil {
			return
		}
		n.mu.Lock()
		client, lost := n.client, n.lose()
		n.mu.Unlock()
		if !lost {
			n.near.WriteTo(b[:size], client)
		}
	}
}

var ok = api.Verdict{Code: api.VerdictOK}

// echoing is a Handler that echoes.
type echoing struct{ tunneltest.House }

func (e *echoing) Arrive(a api.Arrival) {
	go func() {
		defer a.Conn.Close()
		if a.Conn.(tunnel.Teller).Verdict(ok) == nil {
			io.Copy(a.Conn, a.Conn)
			a.Conn.(tunnel.Conn).CloseWrite()
		}
	}()
	e.House.Arrive(api.Arrival{Facts: a.Facts, Service: a.Service})
}

func newEcho() *echoing { return &echoing{*tunneltest.NewHouse()} }

// exchange has bytes echoed, and calls between when half of them are back.
func exchange(t *testing.T, c tunnel.Conn, size int, between func()) {
	t.Helper()
	sent := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(sent)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got := make([]byte, size)
	if _, err := io.ReadFull(c, got[:size/2]); err != nil {
		t.Fatal(err)
	}
	between()
	if _, err := io.ReadFull(c, got[size/2:]); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after all %d, %v; want the end of file", n, err)
	}
	if !bytes.Equal(got, sent) {
		t.Error("other bytes came back")
	}
}

func (n *network) through(g *gateway, t *testing.T) *quic.Dialer {
	d := g.dialer(t, always(g.ca.Session()))
	d.Address = n.addr()
	return d
}

func dial(t *testing.T, d *quic.Dialer) tunnel.Conn {
	t.Helper()
	c, ok := <-dialling(t, d)
	if !ok {
		t.FailNow()
	}
	return c
}

// dialling dials, and then sends the conn, or closes the channel.
func dialling(t *testing.T, d *quic.Dialer) <-chan tunnel.Conn {
	conns := make(chan tunnel.Conn, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	go func() {
		defer close(conns)
		c, err := d.Dial(ctx, "nats")
		if err != nil {
			t.Errorf("dial: %v", err)
			return
		}
		conns <- c.(tunnel.Conn)
	}()
	return conns
}

// both returns the ends of a stream.
func both(t *testing.T, d *quic.Dialer, h *tunneltest.House) (client, served tunnel.Conn) {
	t.Helper()
	conns := dialling(t, d)
	a := <-h.Arrivals
	if err := a.Conn.(tunnel.Teller).Verdict(ok); err != nil {
		t.Fatal(err)
	}
	return <-conns, a.Conn.(tunnel.Conn)
}

// The address of a client changes in the middle of a stream: it goes on, and the next
// Arrival says the new address.
func TestMigration(t *testing.T) {
	h := newEcho()
	g := serve(t, &quic.Server{Handler: h})
	n := newNetwork(t, g.addr)
	d := n.through(g, t)
	c := dial(t, d)
	first := <-h.Arrivals
	exchange(t, c, 8<<20, n.move)
	c.Close()
	for _, then := range []func(){n.move, func() {}} {
		c := dial(t, d)
		exchange(t, c, 1<<20, then)
		c.Close()
	}
	<-h.Arrivals
	if last := <-h.Arrivals; last.Facts.Port == first.Facts.Port || last.Facts.IP != "127.0.0.1" {
		t.Errorf("from %s:%d, after %s:%d", last.Facts.IP, last.Facts.Port, first.Facts.IP, first.Facts.Port)
	}
	if s := g.Stats(); s.Handshakes != 1 {
		t.Errorf("%d handshakes", s.Handshakes)
	}
}

// Every twentieth packet is lost, in both directions, from the first one on.
func TestLoss(t *testing.T) {
	g := serve(t, &quic.Server{Handler: newEcho()})
	n := newNetwork(t, g.addr)
	r := rand.New(rand.NewPCG(1, 2))
	n.set(func() bool { return r.IntN(20) == 0 })
	d := n.through(g, t)
	for range 4 {
		c := dial(t, d)
		exchange(t, c, 1<<20, func() {})
		c.Close()
	}
	n.set(func() bool { return false }) // should the last word be lost, the gateway would wait
}

// A network that is gone for a while cuts nothing.
func TestOutage(t *testing.T) {
	g := serve(t, &quic.Server{Handler: newEcho()})
	n := newNetwork(t, g.addr)
	d := n.through(g, t)
	c := dial(t, d)
	defer c.Close()
	exchange(t, c, 4<<20, func() {
		left := 30 // packets
		n.set(func() bool { left--; return left > 0 })
	})
}

// What came before its connection is gone is asked for again on another one.
func TestRestart(t *testing.T) {
	key := [32]byte{1}
	h := newEcho()
	g := serve(t, &quic.Server{Handler: h, ResetKey: key})
	n := newNetwork(t, g.addr)
	d := n.through(g, t)
	c := dial(t, d)
	g.kill()
	after := run(t, &quic.Server{
		Handler: h, ResetKey: key, Domain: g.Domain, Certificate: g.Certificate, ClientCAs: g.ClientCAs, Log: g.Log,
	}, g.ca, "127.0.0.1:0")
	to, err := net.ResolveUDPAddr("udp", after.addr)
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.server = to
	n.mu.Unlock()
	another := dial(t, d)
	exchange(t, another, 1<<20, func() {})
	another.Close()
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a stream of the former process: %v", err)
	}
}

// When the server ends, a stream goes on to its end, and what is asked for next is asked
// of who comes after.
func TestServerStops(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &quic.Server{Handler: h})
	n := newNetwork(t, g.addr)
	d := n.through(g, t)
	client, served := both(t, d, h)
	g.stop()
	after := run(t, &quic.Server{Handler: h, Domain: g.Domain, Certificate: g.Certificate, ClientCAs: g.ClientCAs, Log: g.Log}, g.ca, "127.0.0.1:0")
	to, err := net.ResolveUDPAddr("udp", after.addr)
	if err != nil {
		t.Fatal(err)
	}
	exchanged := make(chan struct{})
	go func() {
		defer close(exchanged)
		exchange(t, client, 1<<20, func() {})
		client.Close()
	}()
	io.Copy(served, served)
	served.Close()
	<-exchanged
	if err := <-g.done; err != nil {
		t.Error(err)
	}
	n.mu.Lock()
	n.server = to
	n.mu.Unlock()
	client, served = both(t, d, h)
	served.Close()
	client.Close()
}

// Streams that nobody reads hold up no other, nor the end of one.
func TestSlowReadersHoldUpNobody(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &quic.Server{Handler: h})
	d := g.dialer(t, always(g.ca.Session()))
	var writing sync.WaitGroup
	for range 20 {
		client, served := both(t, d, h)
		writing.Go(func() { client.Write(make([]byte, 64<<20)) })
		defer served.Reset("the test is over")
		defer client.Reset("the test is over")
	}
	client, served := both(t, d, h)
	go func() {
		io.Copy(served, served)
		served.Close()
	}()
	exchange(t, client, 1<<20, func() {})
	client.Close()
	client, served = both(t, d, h)
	served.Reset("REVOKED")
	if _, err := client.Read(make([]byte, 1)); err == nil || err.Error() != "stream reset: REVOKED" {
		t.Errorf("the client reads %v", err)
	}
	client.Close()
	t.Cleanup(writing.Wait)
}
