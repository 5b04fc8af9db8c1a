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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit/memory"
	"cardea/mode/tcp"
	"cardea/proxy"
	"cardea/relay"
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
