package wireguard_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/wireguard"
	"cardea/wire/packet"
)

// pipe is a tunnel.Pipe in memory.
type pipe struct {
	in, out chan []byte
	gone    chan struct{}
	once    *sync.Once
	sent    atomic.Int64
}

// pipes returns both ends of one.
func pipes() (*pipe, *pipe) {
	x, y, gone, once := make(chan []byte, 256), make(chan []byte, 256), make(chan struct{}), new(sync.Once)
	return &pipe{in: x, out: y, gone: gone, once: once}, &pipe{in: y, out: x, gone: gone, once: once}
}

func (p *pipe) Receive(b []byte) (int, error) {
	select {
	case packet := <-p.in:
		return copy(b, packet), nil
	case <-p.gone:
		return 0, net.ErrClosed
	}
}

func (p *pipe) Send(b []byte) error {
	select {
	case <-p.gone:
		return net.ErrClosed
	default:
	}
	select {
	case p.out <- slices.Clone(b):
		p.sent.Add(1)
	default:
	}
	return nil
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.gone) })
	return nil
}

func (p *pipe) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443}
}

// attach gives one end of a pipe to the gateway, and returns the other.
func attach(t *testing.T, g *wireguard.Gateway, session string) (near *pipe, ended <-chan error) {
	near, far := pipes()
	end := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { end <- g.Attach(ctx, session, far) })
	t.Cleanup(func() {
		cancel()
		done.Wait()
	})
	return near, end
}

// echoing is a handler that sends back what comes.
func echoing(t *testing.T) handler {
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	return handler{func(a api.Arrival) {
		all.Go(func() {
			defer a.Conn.Close()
			b := make([]byte, 70_000)
			for {
				n, err := a.Conn.Read(b)
				if err != nil {
					return
				}
				if _, err := a.Conn.Write(b[:n]); err != nil {
					return
				}
			}
		})
	}}
}

// ask has a message echoed over a conn.
func ask(t *testing.T, c net.Conn, message []byte) {
	t.Helper()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write(message); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, message) {
		t.Fatalf("echo: %v", err)
	}
}

func dial(t *testing.T, c *wireguard.Client, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := c.DialContext(t.Context(), network, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestCarriers changes the carrier under a connection.
func TestCarriers(t *testing.T) {
	g := gateway(t, echoing(t))
	c := client(t, g, "s-1", addresses)
	conn := dial(t, c, "tcp", echo4)
	ask(t, conn, noise(100_000))
	udp := g.Peers()[0]
	if udp.Session != "s-1" || udp.Carrier != wireguard.CarrierUDP || !udp.Endpoint.Addr().IsLoopback() || udp.Handshake.IsZero() || udp.Received == 0 || udp.Sent == 0 {
		t.Errorf("%+v", udp)
	}
	near, ended := attach(t, g, "s-1")
	if err := c.Via("gw", near); err != nil {
		t.Fatal(err)
	}
	ask(t, conn, noise(200_000))
	if near.sent.Load() < 100 {
		t.Errorf("%d packets took the pipe", near.sent.Load())
	}
	if p := g.Peers()[0]; p.Carrier != wireguard.CarrierTLS || p.Endpoint.String() != "192.0.2.1:443" {
		t.Errorf("%+v", p)
	}
	if l := c.Links(); len(l) != 1 || l[0].Carrier != wireguard.CarrierTLS || l[0].Name != "gw" {
		t.Errorf("%+v", l)
	}
	// Another pipe in its place, while bytes are on their way.
	next, _ := attach(t, g, "s-1")
	sent := noise(2_000_000)
	var write sync.WaitGroup
	write.Go(func() { conn.Write(sent) })
	got := make([]byte, len(sent))
	io.ReadFull(conn, got[:100_000])
	if err := c.Via("gw", next); err != nil {
		t.Fatal(err)
	}
	io.ReadFull(conn, got[100_000:500_000])
	if err := <-ended; err == nil {
		t.Error("the pipe that was left ended without a reason")
	}
	if err := c.Via("gw", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got[500_000:]); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%v", err)
	}
	write.Wait()
	if l := c.Links(); l[0].Carrier != wireguard.CarrierUDP {
		t.Errorf("%+v", l)
	}
	ask(t, conn, noise(1000))
	if p := g.Peers()[0]; p.Carrier != wireguard.CarrierUDP {
		t.Errorf("%+v", p)
	}
}

// TestAttach shows who may attach, and for how long.
func TestAttach(t *testing.T) {
	g := gateway(t, echoing(t))
	c := client(t, g, "s-1", addresses)
	_, ended := attach(t, g, "s-2")
	if err := <-ended; err == nil {
		t.Error("nobody's pipe was taken")
	}
	_, first := attach(t, g, "s-1")
	_, second := attach(t, g, "s-1")
	_, third := attach(t, g, "s-1")
	var err error
	select { // the oldest gives way, whichever that is
	case err = <-first:
	case err = <-second:
	case err = <-third:
	}
	if err != nil {
		t.Error(err)
	}
	near, last := attach(t, g, "s-1")
	c.Via("gw", near)
	conn := dial(t, c, "tcp", echo4)
	ask(t, conn, []byte("hello"))
	g.Remove("s-1")
	<-last
	if len(g.Peers()) != 0 {
		t.Error("the peer is still there")
	}
}

// TestRotation changes the gateway's key, and the client's, under a connection.
func TestRotation(t *testing.T) {
	g := gateway(t, echoing(t))
	c := client(t, g, "s-1", addresses)
	conn := dial(t, c, "tcp", echo4)
	// WireGuard takes no two handshakes of a peer within 20 ms.
	for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
		ask(t, conn, noise(100_000))
	}
	key := wireguard.NewKey()
	if err := g.SetKey(key); err != nil {
		t.Fatal(err)
	}
	r := remote(g)
	r.PublicKey = key.Public()
	if err := c.Set([]wireguard.Remote{r}); err != nil {
		t.Fatal(err)
	}
	ask(t, conn, noise(100_001))
	if _, err := c.Probe(t.Context(), "gw"); err != nil {
		t.Error(err)
	}
}

func TestProbe(t *testing.T) {
	g := gateway(t, echoing(t))
	c := client(t, g, "s-1", addresses)
	if rtt, err := c.Probe(t.Context(), "gw"); err != nil || rtt <= 0 || rtt > time.Minute {
		t.Errorf("%v, %v", rtt, err)
	}
	if _, err := c.Probe(t.Context(), "other"); err == nil {
		t.Error("a gateway that is not known answers")
	}
	// Who does not know the key hears nothing.
	stranger := remote(g)
	stranger.PublicKey = wireguard.NewKey().Public()
	c.Set([]wireguard.Remote{stranger})
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	if _, err := c.Probe(ctx, "gw"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	c.Set(nil)
	if len(c.Links()) != 0 {
		t.Error("the gateway is still there")
	}
}

// TestRestart has the gateway forget its peers' keys: a probe tells the client, and a
// connection goes on at once.
func TestRestart(t *testing.T) {
	first := gateway(t, echoing(t))
	c := client(t, first, "s-1", addresses)
	if _, err := c.Probe(t.Context(), "gw"); err != nil {
		t.Fatal(err)
	}
	ask(t, dial(t, c, "tcp", echo4), []byte("hello"))
	second := gateway(t, echoing(t), func(g *wireguard.Gateway) { g.Key = first.Key })
	if err := second.Put(wireguard.Peer{Session: "s-1", PublicKey: c.Key.Public(), Addresses: addresses}); err != nil {
		t.Fatal(err)
	}
	if err := c.Set([]wireguard.Remote{remote(second)}); err != nil { // it has only moved
		t.Fatal(err)
	}
	if _, err := c.Probe(t.Context(), "gw"); err != nil {
		t.Fatal(err)
	}
	ask(t, dial(t, c, "tcp", echo4), []byte("hello"))
}

// raw is a TUN device whose packets a test writes and reads.
type raw struct {
	in, out chan []byte
	events  chan tun.Event
	gone    chan struct{}
	once    sync.Once
}

func newRaw() *raw {
	return &raw{in: make(chan []byte, 64), out: make(chan []byte, 64), events: make(chan tun.Event), gone: make(chan struct{})}
}

func (r *raw) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-r.in:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	case <-r.gone:
		return 0, net.ErrClosed
	}
}

func (r *raw) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case r.out <- slices.Clone(b[offset:]):
		default:
		}
	}
	return len(bufs), nil
}

func (r *raw) Close() error {
	r.once.Do(func() { close(r.gone); close(r.events) })
	return nil
}

func (r *raw) File() *os.File           { return nil }
func (r *raw) MTU() (int, error)        { return 1280, nil }
func (r *raw) Name() (string, error)    { return "raw", nil }
func (r *raw) Events() <-chan tun.Event { return r.events }
func (r *raw) BatchSize() int           { return 1 }

// hostile is a client whose packets are made by hand.
type hostile struct {
	*raw
	t *testing.T
	n byte
}

func newHostile(t *testing.T, g *wireguard.Gateway, session string, addresses []netip.Addr) *hostile {
	h := &hostile{raw: newRaw(), t: t}
	c := &wireguard.Client{Key: wireguard.NewKey(), TUN: h.raw, Log: slog.New(slog.DiscardHandler)}
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := g.Put(wireguard.Peer{Session: session, PublicKey: c.Key.Public(), Addresses: addresses}); err != nil {
		t.Fatal(err)
	}
	r := remote(g)
	r.Allowed = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	if err := c.Set([]wireguard.Remote{r}); err != nil {
		t.Fatal(err)
	}
	h.send() // until the gateway runs, which drops what comes before
	return h
}

// send sends packets, and returns what came back until the gateway has seen them all: they
// are followed by a question to the name server, which is asked again while it is lost.
func (h *hostile) send(packets ...[]byte) (answers [][]byte) {
	h.t.Helper()
	for _, p := range packets {
		h.in <- p
	}
	h.n++
	question := []byte{':', 'q', h.n}
	late, again := time.After(30*time.Second), time.NewTicker(time.Second)
	defer again.Stop()
	ask := packet.AppendUDP(nil, netip.MustParseAddrPort("100.80.0.1:99"), netip.AddrPortFrom(dns4, 53), question[1:])
	for h.in <- ask; ; {
		select {
		case p := <-h.out:
			if bytes.HasSuffix(p, question) {
				return answers
			}
			if bytes.HasSuffix(p[:len(p)-1], question[:2]) { // of one that was asked twice
				continue
			}
			answers = append(answers, p)
		case <-again.C:
			h.in <- ask
		case <-late:
			h.t.Fatal("the name server does not answer")
		}
	}
}

// tcp returns a TCP packet without data.
func tcp(from, to netip.AddrPort, flags byte) []byte {
	// A UDP datagram of the same size, made one of TCP; both families have the protocol
	// in their header.
	header := make([]byte, 12)
	header[4], header[5] = 5<<4, flags
	p := packet.AppendUDP(nil, from, to, header)
	at := packet.IPv4Header
	if from.Addr().Is4() {
		p[9] = packet.TCP
	} else {
		p[6], at = packet.TCP, packet.IPv6Header
	}
	clear(p[at+4 : at+8])
	copy(p[at+12:], []byte{5 << 4, flags, 0, 0, 0, 0, 0, 0})
	return p
}

// TestDropped has a hostile client try what it must not.
func TestDropped(t *testing.T) {
	var arrivals atomic.Int32
	refused := make(chan api.NetworkRefusal, 10)
	g := gateway(t, handler{func(a api.Arrival) {
		arrivals.Add(1)
		a.Conn.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictDenied, DecisionID: "d-1", Words: "no"})
		a.Conn.Close()
	}}, func(g *wireguard.Gateway) { g.Tell = func(s string, r api.NetworkRefusal) { refused <- r } })
	h := newHostile(t, g, "s-1", addresses)
	client(t, g, "s-2", []netip.Addr{netip.MustParseAddr("100.80.0.2")})
	me4, me6 := netip.MustParseAddrPort("100.80.0.1:1000"), netip.MustParseAddrPort("[fd00:1:2:1::1]:1000")
	addr := netip.MustParseAddrPort
	with := func(p []byte, at int, values ...byte) []byte {
		copy(p[at:], values)
		return p
	}
	udp := func(from, to netip.AddrPort) []byte { return packet.AppendUDP(nil, from, to, []byte("hello")) }
	var pieces [][]byte
	packet.Fragments(packet.AppendUDP(nil, me4, echo4, make([]byte, 3000)), 1280, 1, func(p []byte) { pieces = append(pieces, slices.Clone(p)) })
	overlap := slices.Clone(pieces[1])
	binary.BigEndian.PutUint16(overlap[6:], binary.BigEndian.Uint16(overlap[6:])-1)
	tcpFragment := slices.Clone(pieces[0])
	tcpFragment[9] = packet.TCP
	options := with(udp(me4, echo4), 0, 4<<4|6)
	options = slices.Insert(options, 20, 1, 1, 1, 1)
	binary.BigEndian.PutUint16(options[2:], uint16(len(options)))
	for _, x := range []struct {
		name    string
		packets [][]byte
		reason  string
		answers int
	}{
		{"another client's address", [][]byte{udp(addr("100.80.0.2:1"), echo4), tcp(addr("100.80.0.2:1"), echo4, packet.SYN)}, "source", 0},
		{"a Service's address", [][]byte{udp(echo4, echo4)}, "source", 0},
		{"no address of the network", [][]byte{udp(addr("192.0.2.1:1"), echo4), udp(addr("[2001:db8::1]:1"), echo6)}, "source", 0},
		{"the loopback address", [][]byte{udp(addr("127.0.0.1:1"), echo4)}, "source", 0},
		{"to another client", [][]byte{udp(me4, addr("100.80.0.2:7")), tcp(me4, addr("100.80.0.2:7"), packet.SYN), tcp(me6, addr("[fd00:1:2:1::2]:7"), packet.SYN)}, "destination", 0},
		{"to the gateway's host", [][]byte{tcp(me4, addr("127.0.0.1:22"), packet.SYN), tcp(me6, addr("[::1]:22"), packet.SYN), udp(me4, addr("10.9.0.1:53"))}, "destination", 0},
		{"to the Internet", [][]byte{tcp(me4, addr("192.0.2.1:80"), packet.SYN), udp(me6, addr("[2001:db8::1]:80"))}, "destination", 0},
		{"to everybody", [][]byte{udp(me4, addr("255.255.255.255:67")), udp(me4, addr("224.0.0.1:5353")), udp(me6, addr("[ff02::1]:5353"))}, "destination", 0},
		{"to no Service", [][]byte{tcp(me4, addr("100.64.0.17:7"), packet.SYN), udp(me4, addr("100.64.0.17:7")), udp(me6, addr("[fd00:1:2::11]:7"))}, "service", 3},
		{"to another port", [][]byte{tcp(me4, addr("100.64.0.16:22"), packet.SYN), tcp(me6, addr("[fd00:1:2::10]:22"), packet.SYN)}, "service", 2},
		{"to another port of the name server", [][]byte{tcp(me4, addr("100.64.0.1:22"), packet.SYN), udp(me4, addr("100.64.0.1:123"))}, "service", 2},
		{"ICMP and others", [][]byte{with(udp(me4, echo4), 9, 1), with(udp(me4, echo4), 9, 47), with(udp(me6, echo6), 6, 58)}, "protocol", 0},
		{"options", [][]byte{options, with(udp(me6, echo6), 6, 0), with(udp(me6, echo6), 6, 43)}, "options", 0},
		{"a fragment of TCP", [][]byte{tcpFragment}, "fragment", 0},
		{"fragments that overlap", [][]byte{pieces[0], overlap, pieces[1], pieces[2]}, "fragment", 0},
		{"wrong lengths", [][]byte{with(udp(me4, echo4), 24, 0, 9), with(tcp(me4, echo4, packet.SYN), 32, 0xf0)}, "malformed", 0},
		{"a wrong checksum", [][]byte{with(udp(me4, echo4), 26, 1, 1)}, "malformed", 0},
	} {
		before := g.Dropped()
		answers := h.send(x.packets...)
		after := g.Dropped()
		want := max(1, len(x.packets))
		if x.name == "fragments that overlap" {
			want = 1
		}
		before[x.reason] += want
		if !maps.Equal(after, before) || len(answers) != x.answers {
			t.Errorf("%s: dropped %v, want %v; %d answers", x.name, after, before, len(answers))
		}
	}
	if n := arrivals.Load(); n != 0 {
		t.Errorf("%d arrivals", n)
	}
	// A flow that is refused stays so for a while, and the Session is told once.
	before := g.Dropped()["refused"]
	h.send(udp(me4, echo4))
	h.send(udp(me4, echo4), udp(me4, echo4))
	if n := g.Dropped()["refused"] - before; n != 2 || arrivals.Load() != 1 {
		t.Errorf("%d packets were refused, %d arrivals", n, arrivals.Load())
	}
	if r := <-refused; r.Service != "echo.default" || r.DecisionID != "d-1" || !strings.Contains(r.Words, "no") || len(refused) != 0 {
		t.Errorf("%+v", r)
	}
}

// TestRemoved shows that a Session that is gone reaches nothing, and that what it had open
// is cut in the end.
func TestRemoved(t *testing.T) {
	arrivals := make(chan api.Arrival, 1)
	g := gateway(t, handler{func(a api.Arrival) { arrivals <- a }})
	c := client(t, g, "s-1", addresses)
	conn := dial(t, c, "tcp", echo4)
	a := <-arrivals
	u := dial(t, c, "udp", echo4)
	u.Write([]byte("hello"))
	f := <-arrivals
	conn.Write([]byte("before"))
	b := make([]byte, 100)
	if n, err := a.Conn.Read(b); string(b[:n]) != "before" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	g.Remove("s-1")
	conn.Write([]byte("after"))
	if len(g.Peers()) != 0 {
		t.Error("the peer is still there")
	}
	if n, err := a.Conn.Read(b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q, %v", b[:n], err)
	}
	if n, err := f.Conn.Read(b); string(b[:n]) != "hello" && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q, %v", b[:n], err)
	}
	// The addresses can be another's, and so can the key.
	d := client(t, g, "s-2", addresses)
	dial(t, d, "tcp", echo4)
	if a := <-arrivals; string(a.Evidence.Data) != "s-2" {
		t.Errorf("%+v", a)
	}
}

// TestPut shows what is refused.
func TestPut(t *testing.T) {
	g := gateway(t, handler{})
	p := wireguard.Peer{Session: "s-1", PublicKey: wireguard.NewKey().Public(), Addresses: addresses}
	if err := g.Put(p); err != nil {
		t.Fatal(err)
	}
	if err := g.Put(p); err != nil {
		t.Errorf("the same again: %v", err)
	}
	for name, x := range map[string]wireguard.Peer{
		"another's key":     {Session: "s-2", PublicKey: p.PublicKey, Addresses: []netip.Addr{netip.MustParseAddr("100.80.0.2")}},
		"another's address": {Session: "s-2", PublicKey: wireguard.NewKey().Public(), Addresses: addresses[1:]},
		"a Service's":       {Session: "s-2", PublicKey: wireguard.NewKey().Public(), Addresses: []netip.Addr{echo4.Addr()}},
	} {
		if err := g.Put(x); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	p.PublicKey = wireguard.NewKey().Public()
	if err := g.Put(p); err != nil {
		t.Error(err)
	}
	if n := len(g.Peers()); n != 1 {
		t.Errorf("%d peers", n)
	}
	g.Remove("s-1")
	g.Remove("s-1")
}

// TestFlows shows that a Session has only so many.
func TestFlows(t *testing.T) {
	var n atomic.Int32
	g := gateway(t, handler{func(a api.Arrival) { n.Add(1) }})
	h := newHostile(t, g, "s-1", addresses)
	h.send()
	for port := range uint16(1030) {
		if port%32 == 0 { // few enough for every buffer on the way
			h.send()
		}
		h.in <- packet.AppendUDP(nil, netip.AddrPortFrom(addresses[0], 1000+port), echo4, []byte("hello"))
	}
	h.send()
	if n.Load() != 1024 || g.Dropped()["flows"] != 6 {
		t.Errorf("%d flows, %v", n.Load(), g.Dropped())
	}
	// Nobody reads: what does not fit is lost.
	flood := func(port uint16, size, times int) (lost int) {
		before := g.Dropped()["queue"]
		p := packet.AppendUDP(nil, netip.AddrPortFrom(addresses[0], port), echo4, make([]byte, size))
		for i := range times {
			if i%32 == 0 {
				h.send()
			}
			h.in <- p
		}
		h.send()
		return g.Dropped()["queue"] - before
	}
	if flood(1000, 1200, 300) == 0 {
		t.Error("all of it fits")
	}
	if flood(1001, 0, 5000) == 0 {
		t.Error("datagrams without a byte take no room")
	}
	lost := 0
	for port := range uint16(100) {
		lost += flood(1002+port, 1200, 180)
	}
	if lost == 0 {
		t.Error("what waits of a Session is not bounded")
	}
}

// TestFlowsGiveBack shows that what waited of a flow that has ended counts no more.
func TestFlowsGiveBack(t *testing.T) {
	arrivals := make(chan net.Conn, 1)
	g := gateway(t, handler{func(a api.Arrival) { arrivals <- a.Conn }})
	h := newHostile(t, g, "s-1", addresses)
	for round := range uint16(120) {
		p := packet.AppendUDP(nil, netip.AddrPortFrom(addresses[0], 1000+round), echo4, make([]byte, 1200))
		for i := range 180 {
			if i%32 == 0 {
				h.send()
			}
			h.in <- p
		}
		h.send()
		c := <-arrivals
		if round%2 == 0 {
			c.Close()
			continue
		}
		c.(tunnel.Conn).Reset("REVOKED")
	}
	if n := g.Dropped()["queue"]; n != 0 {
		t.Errorf("%d datagrams found no room", n)
	}
}

// A client that does not read cannot have the gateway hold much for it: it may have many
// connections.
func TestSlowReaderIsCheap(t *testing.T) {
	arrivals := make(chan net.Conn, 1)
	g := gateway(t, handler{func(a api.Arrival) { arrivals <- a.Conn }})
	c := client(t, g, "s-1", addresses)
	mute, err := c.DialContext(t.Context(), "tcp", echo4)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	conn := <-arrivals
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
	// The client's end holds as much again.
	n, err := conn.Write(make([]byte, 8<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > 512<<10 {
		t.Errorf("%d bytes are held for a client that does not read; %v", n, err)
	}
}
