package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/mode/tcp"
	"cardea/proxy"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
)

// open is a Decider that lets everybody in, by an answer that is ready.
type open struct {
	answer api.Decision
	asked  chan struct{} // for changes
}

func (o *open) Decide(context.Context, api.Request) (api.Decision, error) { return o.answer, nil }

func (o *open) Changes(ctx context.Context, _ api.Revision) iter.Seq2[api.Change, error] {
	return func(func(api.Change, error) bool) {
		o.asked <- struct{}{}
		<-ctx.Done()
	}
}

// nowhere is a log that keeps nothing.
type nowhere struct{}

func (nowhere) Append(context.Context, ...*api.AccessLog) error { return nil }
func (nowhere) Begin(*api.AccessLog) (audit.Mark, error)        { return 0, nil }
func (nowhere) Keep(audit.Mark) error                           { return nil }
func (nowhere) Note(*api.AccessLog) error                       { return nil }
func (nowhere) Owes() int                                       { return 0 }
func (nowhere) Slow() bool                                      { return false }

// BenchmarkPlain is the life of one connection of the plain path, from Arrive to
// END: "gate" is what the Gate adds, between streams and a relay that cost
// nothing; "tcp" is the whole, between sockets, client and upstream included.
func BenchmarkPlain(b *testing.B) {
	d := &open{asked: make(chan struct{}), answer: answer(api.Allow, 1, "cluster", "namespace", "service", "region", "policy-1", "policy-2")}
	gate := func(b *testing.B, e relay.Engine, dial proxy.DialFunc) *proxy.Gate {
		g := proxy.New(proxy.Rooms{
			Decider: d, Audit: nowhere{}, Refuse: func(api.Refusal) {}, Engine: e,
			Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler), Dial: dial,
		})
		ctx, cancel := context.WithCancel(b.Context())
		var running sync.WaitGroup
		running.Go(func() { g.Run(ctx) })
		b.Cleanup(func() { cancel(); running.Wait() })
		<-d.asked // it runs
		return g
	}
	d.answer.ID = api.NewID()
	facts := api.Facts{IP: "127.0.0.1", Port: 4711, Listener: "127.0.0.1:8080", Tunnel: "public"}

	b.Run("gate", func(b *testing.B) {
		e := &instant{ended: make(chan struct{}, 1)}
		g := gate(b, e, func(context.Context, api.Destination) (net.Conn, api.DialReport, error) {
			return nothing{}, api.DialReport{}, nil
		})
		for range 100 { // others are live
			g.Arrive(api.Arrival{Conn: nothing{}, Service: "svc.default", Facts: facts})
		}
		for g.Stats().Live < 100 {
			runtime.Gosched()
		}
		e.over.Store(true)
		b.ReportAllocs()
		b.ResetTimer()
		for b.Loop() {
			g.Arrive(api.Arrival{Conn: nothing{}, Service: "svc.default", Facts: facts})
			<-e.ended
		}
	})
	b.Run("in line", func(b *testing.B) {
		e := &passing{held: held{lives: make([]holding, 100)}}
		g := proxy.New(proxy.Rooms{
			Decider: d, InLine: true, Audit: nowhere{}, Refuse: func(api.Refusal) {}, Engine: e,
			Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
			Plan: func(api.Destination) proxy.Plan { return straight{} },
		})
		ctx, cancel := context.WithCancel(b.Context())
		var running sync.WaitGroup
		running.Go(func() { g.Run(ctx) })
		b.Cleanup(func() { cancel(); running.Wait() })
		<-d.asked // it runs
		a := api.Arrival{Conn: bare{}, Service: "svc.default", Facts: facts, Evidence: api.Evidence{Kind: api.EvidenceAnonymous}}
		for range 100 { // others are live
			g.Arrive(a)
		}
		e.over = true
		b.ReportAllocs()
		begin := cpu()
		b.ResetTimer()
		for b.Loop() {
			g.Arrive(a)
		}
		b.StopTimer()
		b.ReportMetric(float64(cpu()-begin)/float64(b.N), "cpu-ns/op")
		if n := g.Stats(); n.Ends[relay.ClientClosed] < int64(b.N) {
			b.Errorf("stats = %+v", n)
		}
	})
	b.Run("tcp", func(b *testing.B) {
		listen := func() net.Listener {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			return l
		}
		in, up := listen(), listen()
		var serving sync.WaitGroup
		b.Cleanup(func() { in.Close(); up.Close(); serving.Wait() })
		serving.Go(func() {
			for {
				c, err := up.Accept()
				if err != nil {
					return
				}
				serving.Go(func() { io.Copy(c, c); c.Close() })
			}
		})
		var dialer net.Dialer
		g := gate(b, relaycopy.New(), func(ctx context.Context, _ api.Destination) (net.Conn, api.DialReport, error) {
			c, err := dialer.DialContext(ctx, "tcp4", up.Addr().String())
			return c, api.DialReport{}, err
		})
		serving.Go(func() {
			for {
				c, err := in.Accept()
				if err != nil {
					return
				}
				g.Arrive(api.Arrival{Conn: c, Service: "svc.default", Facts: facts})
			}
		})
		visit(b, in.Addr().String())
	})
}

// visit lets clients connect, have one byte echoed and go, and reports what of the
// processor that takes, client and upstream included.
func visit(b *testing.B, address string) {
	b.ReportAllocs()
	begin := cpu()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		p := make([]byte, 1)
		for pb.Next() {
			c, err := net.Dial("tcp4", address)
			if err != nil {
				b.Error(err)
				return
			}
			c.Write(p)
			if _, err := io.ReadFull(c, p); err != nil {
				b.Error(err)
			}
			c.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: ports would run out
			c.Close()
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(cpu()-begin)/float64(b.N), "cpu-ns/op")
}

// BenchmarkHeld is what the Gate keeps for a live connection, in bytes of heap, without
// what the engine, the dialler and the road keep. Each connection has an address of its
// own, as a road makes it.
func BenchmarkHeld(b *testing.B) {
	const many = 9000
	mapping := &api.Routed{
		Object: api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Namespace: "team", Name: "db"},
		Config: &api.ServiceConfig{Name: "default"}, Log: api.LogRoute{Listener: "*:5432", Match: "any", Version: "v1"},
	}
	ref := func(kind, name string) *api.Ref {
		return &api.Ref{APIVersion: api.Version, Kind: kind, Name: name, UID: name}
	}
	shared := answer(api.Allow, 1, "cluster", "namespace", "service", "policy-1", "policy-2")
	shared.Subject = api.Subject{Mode: api.ModeTCP, IsAnonymous: true, Service: ref(api.KindService, "svc.default"), Namespace: ref(api.KindNamespace, "default")}
	tests := []struct {
		name string
		// come returns the arrival of the i-th connection, and the answer.
		come func(i int) (api.Arrival, api.Decision)
	}{
		{"mapping", func(int) (api.Arrival, api.Decision) {
			return api.Arrival{Route: mapping, Evidence: api.Evidence{Kind: api.EvidenceAnonymous}}, shared
		}},
		{"anonymous", func(int) (api.Arrival, api.Decision) {
			return api.Arrival{Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceAnonymous}}, shared
		}},
		{"a Session each", func(i int) (api.Arrival, api.Decision) {
			a := shared
			user, session := fmt.Sprint("user-", i), fmt.Sprint("session-", i)
			a.Subject.IsAnonymous, a.Until = false, time.Now().Add(time.Hour)
			a.Subject.User, a.Subject.Session, a.Subject.Device = ref(api.KindUser, user), ref(api.KindSession, session), ref(api.KindDevice, session)
			for _, name := range []string{"service", "namespace", "cluster", "policy-1", "policy-2", "group", user, session, "device-" + session} {
				a.DependsOn = append(a.DependsOn, api.Key{Kind: "X", Name: name})
			}
			return api.Arrival{Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceCertificate, Data: make([]byte, 500)}}, a
		}},
	}
	for _, tt := range tests {
		for _, way := range []string{"in line", "goroutine"} {
			b.Run(tt.name+"/"+way, func(b *testing.B) {
				for b.Loop() {
					decider := &scripted{open: open{asked: make(chan struct{})}}
					engine := &held{lives: make([]holding, many)}
					rooms := proxy.Rooms{
						Decider: decider, Audit: nowhere{}, Refuse: func(r api.Refusal) { b.Error(r.Words) }, Engine: engine,
						Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
						Dial: func(context.Context, api.Destination) (net.Conn, api.DialReport, error) {
							return nothing{}, api.DialReport{}, nil
						},
					}
					if way == "in line" {
						rooms.InLine = true
						rooms.Plan = func(api.Destination) proxy.Plan { return straight{} }
					}
					g := proxy.New(rooms)
					ctx, cancel := context.WithCancel(b.Context())
					var running sync.WaitGroup
					running.Go(func() { g.Run(ctx) })
					<-decider.asked
					arrivals, answers := make([]api.Arrival, many), make([]api.Decision, many)
					for i := range many {
						arrivals[i], answers[i] = tt.come(i)
						arrivals[i].Conn = bare{}
						answers[i].DependsOn = slices.Clip(answers[i].DependsOn)
					}
					before, goroutines := heap(), runtime.NumGoroutine()
					for i := range many {
						a := arrivals[i]
						a.Facts = api.Facts{IP: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String(), Port: 1024 + i, Listener: "192.0.2.1:5432", Tunnel: "public"}
						decider.answer = answers[i]
						decider.answer.ID = api.NewID()
						g.Arrive(a)
						for way != "in line" && g.Stats().Live <= i {
							runtime.Gosched()
						}
					}
					for engine.n.Load() < many || runtime.NumGoroutine() > goroutines {
						runtime.Gosched()
					}
					after := heap()
					b.ReportMetric(float64(int64(after)-int64(before))/many, "heap-B/conn")
					runtime.KeepAlive(arrivals)
					runtime.KeepAlive(answers)
					cancel()
					running.Wait()
				}
			})
		}
	}
}

// heap returns how many bytes of the heap are in use.
func heap() uint64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// scripted gives the answer that it has at the moment.
type scripted struct{ open }

// held is an engine that keeps what it is given, and little more.
type held struct {
	lives []holding
	n     atomic.Int64
}

type holding struct {
	o    relay.Opening
	done func(relay.Result)
}

func (e *held) Start(_ relay.Pair, done func(relay.Result)) relay.Live {
	l := &e.lives[e.n.Add(1)-1]
	l.done = done
	return l
}

func (e *held) Connect(_ net.Conn, o relay.Opening) relay.Live {
	o.Next(nil)
	o.Connected(netip.AddrPort{})
	l := &e.lives[e.n.Add(1)-1]
	l.o = o
	return l
}

func (e *held) Wait() {}

func (h *holding) Bytes() (int64, int64) { return 0, 0 }
func (h *holding) Limit(relay.Limits)    {}
func (h *holding) Cut(r relay.Reason) {
	if h.o != nil {
		h.o.Done(relay.Result{Reason: r})
	} else {
		h.done(relay.Result{Reason: r})
	}
}

// passing is an engine that keeps connections until they are over when they begin.
type passing struct {
	held
	over bool
}

func (e *passing) Connect(c net.Conn, o relay.Opening) relay.Live {
	if !e.over {
		return e.held.Connect(c, o)
	}
	o.Next(nil)
	o.Connected(netip.AddrPort{})
	o.Done(relay.Result{Received: 100, Sent: 1000, Reason: relay.ClientClosed})
	return lasting{}
}

// straight is a way to one address.
type straight struct{}

func (straight) Next(failed error) (netip.AddrPort, time.Duration, bool) {
	return upstreamAddr, time.Second, failed == nil
}
func (straight) NeedsLocal() bool { return false }
func (straight) Connected(netip.AddrPort) ([]byte, api.DialReport) {
	return nil, api.DialReport{Hold: place{}}
}
func (straight) Failure() (api.DialReport, error) { return api.DialReport{}, nil }

var upstreamAddr = netip.MustParseAddrPort("127.0.0.1:5432")

// place is one that nobody counts.
type place struct{}

func (place) Release(int64, bool) {}

// bare is a Socket without one.
type bare struct{ nothing }

func (bare) Reset(string) error                                 { return nil }
func (bare) AddrPorts() (local, remote netip.AddrPort)          { return }
func (bare) Await(time.Duration, int, func([]byte, error) bool) {}
func (bare) Discard(int)                                        {}
func (bare) TCP() (*net.TCPConn, []byte, error)                 { return nil, nil, errors.ErrUnsupported }

// nothing is a stream that has ended.
type nothing struct{ net.Conn }

func (nothing) Read([]byte) (int, error)    { return 0, io.EOF }
func (nothing) Write(p []byte) (int, error) { return len(p), nil }
func (nothing) Close() error                { return nil }
func (nothing) RemoteAddr() net.Addr        { return nowhereAddr }

var nowhereAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}

// instant is an engine whose relays are over when they begin.
type instant struct {
	over  atomic.Bool // they are; before that, they last until they are cut
	ended chan struct{}
}

func (e *instant) Start(_ relay.Pair, done func(relay.Result)) relay.Live {
	if !e.over.Load() {
		return lasting{done: done}
	}
	go func() {
		done(relay.Result{Reason: relay.ClientClosed})
		e.ended <- struct{}{}
	}()
	return lasting{done: func(relay.Result) {}}
}

func (*instant) Wait() {}

// lasting is a relay that carries nothing and lasts until it is cut.
type lasting struct{ done func(relay.Result) }

func (lasting) Bytes() (int64, int64) { return 0, 0 }
func (l lasting) Cut(r relay.Reason)  { l.done(relay.Result{Reason: r}) }
func (lasting) Limit(relay.Limits)    {}

// cpu returns the processor time that this process has used, in nanoseconds.
func cpu() int64 {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return usage.Utime.Nano() + usage.Stime.Nano()
}
