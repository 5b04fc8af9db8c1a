package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/memory"
	"cardea/mode/tcp"
	"cardea/proxy"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/relay/loop"
)

// TestLoop lets real connections go through the event loop, in line: none is dialled,
// bytes and ends pass, a change cuts, and every START has its END.
func TestLoop(t *testing.T) {
	listen := func() *net.TCPListener {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var serving sync.WaitGroup
	up := listen()
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { up.Close() })
	serving.Go(func() {
		for {
			c, err := up.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { io.Copy(c, c); c.Close() })
		}
	})
	log := new(memory.Log)
	engine := loop.New(loop.Options{Loops: 2})
	d := &slow{changes: make(chan api.Change)}
	var denied sync.Map
	d.decide = func(_ context.Context, r api.Request) (api.Decision, error) {
		if _, no := denied.Load(r.Facts.IP); no {
			return answer(api.Deny, 2, "user"), nil
		}
		return answer(api.Allow, 2, "user"), nil
	}
	g := proxy.New(proxy.Rooms{
		Decider: d, InLine: true, Audit: log, Refuse: func(r api.Refusal) { t.Errorf("refused: %s", r.Words) }, Engine: engine,
		Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
		Plan: func(api.Destination) proxy.Plan { return straightTo(up.Addr().(*net.TCPAddr).AddrPort()) },
		Dial: func(context.Context, api.Destination) (net.Conn, api.DialReport, error) {
			return nil, api.DialReport{}, errors.New("this is not to be dialled")
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	d.changes <- change(1) // it runs
	in, err := engine.Listen(listen())
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		in.Serve(ctx, func(c net.Conn) {
			_, remote := c.(relay.Socket).AddrPorts()
			g.Arrive(api.Arrival{Conn: c, Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceMemory, Data: []byte("s")},
				Facts: api.Facts{IP: remote.Addr().String(), Port: int(remote.Port())}})
		}, func(error) time.Duration { return time.Millisecond })
	})
	connect := func() *net.TCPConn {
		c, err := net.Dial("tcp4", in.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}

	const many = 100
	var clients sync.WaitGroup
	for i := range many {
		c := connect()
		clients.Go(func() {
			sent := bytes.Repeat([]byte{byte(i)}, 1+i*5000)
			serving.Go(func() { c.Write(sent); c.CloseWrite() })
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d: read %d of %d bytes, %v", i, len(got), len(sent), err)
			}
		})
	}
	clients.Wait()
	c := connect()
	c.Write([]byte("x"))
	io.ReadFull(c, make([]byte, 1))
	denied.Store("127.0.0.1", true)
	d.changes <- change(2, "user")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("who was revoked saw %v", err)
	}
	denied.Clear()
	c = connect()
	c.Write([]byte("x"))
	io.ReadFull(c, make([]byte, 1))
	cancel()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("who was drained saw %v", err)
	}
	in.Close()
	running.Wait()
	ends := map[string]int{}
	for _, rec := range log.All() {
		ends[rec.Entry.Info.TCP.CloseReason]++
	}
	if ends[""] != many+2 || ends[string(relay.ClientClosed)] != many || ends[string(relay.Revoked)] != 1 || ends[string(relay.Drained)] != 1 {
		t.Errorf("ends by reason, and STARTs: %v", ends)
	}
}

// A keeping log tells when it is asked to keep a START, and waits until it may.
type keeping struct {
	*memory.Log
	asked, may chan struct{}
}

func (k keeping) Keep(m audit.Mark) error {
	k.asked <- struct{}{}
	<-k.may
	return k.Log.Keep(m)
}

// echo is an upstream, which counts who came.
func echo(t *testing.T) (at netip.AddrPort, came *atomic.Int64) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	came = new(atomic.Int64)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			came.Add(1)
			serving.Go(func() { io.Copy(c, c); c.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort(), came
}

// An address that is found not to serve while the START of a connection to it is kept
// loses the connection.
func TestUnhealthyWhileKept(t *testing.T) {
	at, _ := echo(t)
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	log := keeping{new(memory.Log), make(chan struct{}), make(chan struct{})}
	engine := loop.New(loop.Options{Loops: 2})
	d := &slow{changes: make(chan api.Change)}
	d.decide = func(context.Context, api.Request) (api.Decision, error) {
		a := answer(api.Allow, 1, "x")
		a.Subject.Session, a.Subject.IsAnonymous = nil, true
		return a, nil
	}
	g := proxy.New(proxy.Rooms{
		Decider: d, InLine: true, Audit: log, Refuse: func(r api.Refusal) { t.Errorf("refused: %s", r.Words) }, Engine: engine,
		Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
		Plan: func(api.Destination) proxy.Plan { return straightTo(at) },
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	d.changes <- change(1) // it runs
	in, err := engine.Listen(l)
	if err != nil {
		t.Fatal(err)
	}
	o := api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Namespace: "team", Name: "db"}
	r := &api.Routed{Object: o, Config: &api.ServiceConfig{Name: "a", Upstream: api.Upstream{URL: "tcp://" + at.String()}}}
	running.Go(func() {
		in.Serve(ctx, func(c net.Conn) { g.Arrive(api.Arrival{Conn: c, Route: r}) }, func(error) time.Duration { return time.Millisecond })
	})
	c, err := net.Dial("tcp4", in.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-log.asked
	g.Shun(o, "a", at.String(), relay.Unhealthy, "it does not answer")
	close(log.may)
	c.Write([]byte("x"))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client saw %v", err)
	}
	cancel()
	in.Close()
	running.Wait()
	if recs := log.All(); len(recs) != 2 || recs[1].Entry.Info.TCP.CloseReason != string(relay.Unhealthy) || recs[1].Entry.Info.TCP.Error != "it does not answer" {
		t.Errorf("the log has %d records", len(recs))
	}
}

// A client that has gone while it waited for its turn gives its place to others at once,
// and nobody is dialled for it. One that has only finished sending waits on.
func TestWhoWaitsAndGoes(t *testing.T) {
	for _, test := range []struct {
		name   string
		engine relay.Acceptor // nil if package net accepts
		layer  func(net.Conn) net.Conn
	}{
		{"of package net", nil, func(c net.Conn) net.Conn { return c }},
		{"of the loop", loop.New(loop.Options{Loops: 2}), func(c net.Conn) net.Conn { return c }},
		{"of the loop, beneath another", loop.New(loop.Options{Loops: 2}), func(c net.Conn) net.Conn { return aboveSocket{c} }},
		{"beneath another", nil, func(c net.Conn) net.Conn { return above{c.(*net.TCPConn)} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			at, came := echo(t)
			refused := make(chan string, 10)
			d := &slow{changes: make(chan api.Change)}
			d.decide = func(context.Context, api.Request) (api.Decision, error) {
				a := answer(api.Allow, 1, "x")
				a.Limits = api.Limits{Connections: 1, Pending: 1, PendingTimeout: time.Hour}
				return a, nil
			}
			rooms := proxy.Rooms{
				Decider: d, Audit: new(memory.Log), Refuse: func(r api.Refusal) { refused <- r.Words }, Engine: relaycopy.New(),
				Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
				Dial: func(ctx context.Context, _ api.Destination) (net.Conn, api.DialReport, error) {
					c, err := new(net.Dialer).DialContext(ctx, "tcp4", at.String())
					return c, api.DialReport{}, err
				},
			}
			l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			var in relay.Listener
			if test.engine != nil {
				rooms.Engine, rooms.InLine = test.engine, true
				rooms.Plan = func(api.Destination) proxy.Plan { return straightTo(at) }
				if in, err = test.engine.Listen(l); err != nil {
					t.Fatal(err)
				}
			}
			g := proxy.New(rooms)
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { g.Run(ctx) })
			d.changes <- change(1) // it runs
			arrived := make(chan struct{})
			arrive := func(c net.Conn) {
				g.Arrive(api.Arrival{Conn: test.layer(c), Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceMemory, Data: []byte("s")}})
				arrived <- struct{}{}
			}
			addr := l.Addr().String()
			running.Go(func() {
				if in != nil {
					in.Serve(ctx, arrive, func(error) time.Duration { return time.Millisecond })
					return
				}
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					arrive(c)
				}
			})
			connect := func() tcpClient {
				c, err := net.Dial("tcp4", addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				<-arrived
				return tcpClient{c.(*net.TCPConn)}
			}
			serves := func(c tcpClient) {
				t.Helper()
				c.Write([]byte("x"))
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			waits := func() {
				for g.Stats().Waiting != 1 {
					runtime.Gosched()
				}
			}
			left := func() {
				t.Helper()
				if words := <-refused; !strings.HasPrefix(words, "the client went away while it waited: the Service has 1 live connection") {
					t.Errorf("refused: %s", words)
				}
			}

			first := connect()
			serves(first)
			gone := connect()
			waits()
			gone.reset()
			left()
			if n := g.Stats().Waiting; n != 0 {
				t.Errorf("%d wait", n)
			}

			gone = connect() // and has gone when its turn comes
			waits()
			gone.reset()
			first.reset()
			left()
			if n := came.Load(); n != 1 {
				t.Errorf("%d were dialled", n)
			}

			first = connect()
			serves(first)
			half := connect()
			waits()
			half.Write([]byte("hello"))
			half.CloseWrite()
			first.reset()
			if got, err := io.ReadAll(half); err != nil || string(got) != "hello" {
				t.Errorf("who has half-closed read %q, %v", got, err)
			}
			cancel()
			l.Close()
			if in != nil {
				in.Close()
			}
			running.Wait()
		})
	}
}

// above is a layer over TCP that hides what it is over.
type above struct{ tcp *net.TCPConn }

func (a above) Read(p []byte) (int, error)         { return a.tcp.Read(p) }
func (a above) Write(p []byte) (int, error)        { return a.tcp.Write(p) }
func (a above) Close() error                       { return a.tcp.Close() }
func (a above) CloseWrite() error                  { return a.tcp.CloseWrite() }
func (a above) Reset(string) error                 { return relay.Reset(a.tcp, relay.Revoked) }
func (a above) LocalAddr() net.Addr                { return a.tcp.LocalAddr() }
func (a above) RemoteAddr() net.Addr               { return a.tcp.RemoteAddr() }
func (a above) SetDeadline(t time.Time) error      { return a.tcp.SetDeadline(t) }
func (a above) SetReadDeadline(t time.Time) error  { return a.tcp.SetReadDeadline(t) }
func (a above) SetWriteDeadline(t time.Time) error { return a.tcp.SetWriteDeadline(t) }
func (a above) NetConn() net.Conn                  { return a.tcp }

// aboveSocket is a relay.Transparent over a relay.Socket.
type aboveSocket struct{ net.Conn }

func (a aboveSocket) NetConn() net.Conn         { return a.Conn }
func (a aboveSocket) Unread() []byte            { return nil }
func (a aboveSocket) CloseWrite() error         { return a.Conn.(relay.CloseWriter).CloseWrite() }
func (a aboveSocket) Reset(reason string) error { return a.Conn.(relay.Resetter).Reset(reason) }

// BenchmarkLoop is "tcp" of BenchmarkPlain, in line.
func BenchmarkLoop(b *testing.B) {
	up, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	engine := loop.New(loop.Options{})
	in, err := engine.Listen(l)
	if err != nil {
		b.Fatal(err)
	}
	d := &open{asked: make(chan struct{}), answer: answer(api.Allow, 1, "cluster", "namespace", "service", "region", "policy-1", "policy-2")}
	d.answer.ID = api.NewID()
	to := straightTo(up.Addr().(*net.TCPAddr).AddrPort())
	g := proxy.New(proxy.Rooms{
		Decider: d, InLine: true, Audit: nowhere{}, Refuse: func(api.Refusal) {}, Engine: engine,
		Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler), Plan: func(api.Destination) proxy.Plan { return to },
	})
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	b.Cleanup(func() { cancel(); in.Close(); up.Close(); running.Wait() })
	running.Go(func() { g.Run(ctx) })
	<-d.asked // it runs
	running.Go(func() {
		for {
			c, err := up.Accept()
			if err != nil {
				return
			}
			running.Go(func() { io.Copy(c, c); c.Close() })
		}
	})
	running.Go(func() {
		in.Serve(ctx, func(c net.Conn) {
			_, remote := c.(relay.Socket).AddrPorts()
			g.Arrive(api.Arrival{Conn: c, Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceAnonymous},
				Facts: api.Facts{IP: remote.Addr().String(), Port: int(remote.Port()), Tunnel: "public"}})
		}, func(error) time.Duration { return time.Millisecond })
	})
	visit(b, in.Addr().String())
}

type tcpClient struct{ *net.TCPConn }

func (c tcpClient) reset() {
	c.SetLinger(0)
	c.Close()
}

// A way that leads to one address or, now and then, nowhere first.
type way struct {
	straightTo
	nowhere bool
	places  *places
}

func (w *way) Next(failed error) (netip.AddrPort, time.Duration, bool) {
	if w.nowhere && failed == nil {
		return netip.MustParseAddrPort("127.0.0.1:1"), time.Second, true
	}
	return w.straightTo.Next(nil)
}

func (w *way) Connected(netip.AddrPort) ([]byte, api.DialReport) {
	return nil, api.DialReport{Hold: w.places.take()}
}

// byLoop is the road of sockets that the event loop accepts and connects.
func byLoop(t *testing.T, p *places) *road {
	up, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	engine := loop.New(loop.Options{Loops: 3})
	in, err := engine.Listen(l)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := up.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { io.Copy(c, c); c.Close() })
		}
	})
	var gate atomic.Pointer[proxy.Gate]
	var known sync.Map // by address, who comes
	serving.Go(func() {
		in.Serve(t.Context(), func(c net.Conn) {
			_, remote := c.(relay.Socket).AddrPorts()
			who, _ := known.LoadAndDelete(remote.Port())
			gate.Load().Arrive(api.Arrival{Conn: c, Service: "svc.default", Evidence: who.(api.Evidence)})
		}, func(error) time.Duration { return time.Millisecond })
	})
	return &road{
		rooms: proxy.Rooms{InLine: true, Engine: engine, Plan: func(api.Destination) proxy.Plan {
			return &way{straightTo(up.Addr().(*net.TCPAddr).AddrPort()), rand.IntN(5) == 0, p}
		}, Dial: func(ctx context.Context, _ api.Destination) (net.Conn, api.DialReport, error) { // for those that waited
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp4", up.Addr().String())
			if err != nil {
				return nil, api.DialReport{}, err
			}
			return c, api.DialReport{Hold: p.take()}, nil
		}},
		connect: func(t *testing.T, g *proxy.Gate, who api.Evidence) client {
			gate.Store(g)
			var d net.Dialer
			d.Control = func(_, _ string, raw syscall.RawConn) error {
				return raw.Control(func(fd uintptr) {
					syscall.Bind(int(fd), &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
					at, _ := syscall.Getsockname(int(fd))
					known.Store(uint16(at.(*syscall.SockaddrInet4).Port), who)
				})
			}
			c, err := d.Dial("tcp4", in.Addr().String())
			if err != nil {
				return nil
			}
			return tcpClient{c.(*net.TCPConn)}
		},
		end: func() { in.Close(); up.Close(); serving.Wait() },
	}
}

// The same as TestCountsAreRightAtEveryTime, in line.
func TestCountsAreRightInLine(t *testing.T) { testCounts(t, byLoop) }

// straightTo is a way to one address.
type straightTo netip.AddrPort

func (s straightTo) Next(failed error) (netip.AddrPort, time.Duration, bool) {
	return netip.AddrPort(s), time.Second, failed == nil
}
func (straightTo) NeedsLocal() bool { return false }
func (straightTo) Connected(netip.AddrPort) ([]byte, api.DialReport) {
	return nil, api.DialReport{}
}
func (straightTo) Failure() (api.DialReport, error) { return api.DialReport{}, nil }
