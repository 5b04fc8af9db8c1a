package proxy_test

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"cardea/api"
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
		b.ReportAllocs()
		begin := cpu()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			p := make([]byte, 1)
			for pb.Next() {
				c, err := net.Dial("tcp4", in.Addr().String())
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
	})
}

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
