//go:build linux

package loop

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"cardea/relay"
	"cardea/relay/relaytest"
)

// world is an engine between callers and an upstream that echoes.
type world struct {
	engine   *Engine
	listener relay.Listener
	to       netip.AddrPort
	limits   relay.Limits
	lives    chan relay.Live
	stop     func()
}

// towards is a relay.Opening to one place.
type towards struct {
	*world
	tried bool
}

func (o *towards) Next(error) (netip.AddrPort, time.Duration, bool) {
	again := o.tried
	o.tried = true
	return o.to, time.Minute, !again
}
func (o *towards) NeedsLocal() bool { return false }
func (o *towards) Connected(netip.AddrPort) (relay.Limits, []byte, error) {
	return o.limits, nil, nil
}
func (o *towards) Done(relay.Result) {}

// newWorld has an engine serve until the end of the test.
func newWorld(t testing.TB, e *Engine, limits relay.Limits) *world {
	t.Helper()
	w := &world{engine: e, to: echoing(t), limits: limits, lives: make(chan relay.Live, 100_000)}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if w.listener, err = e.Listen(l.(*net.TCPListener)); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		served <- w.listener.Serve(ctx, func(c net.Conn) {
			w.lives <- e.Connect(c, &towards{world: w})
		}, func(error) time.Duration { return time.Millisecond })
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		w.listener.Close()
		for len(w.lives) > 0 {
			(<-w.lives).Cut(relay.Drained)
		}
		e.Wait()
	})
	t.Cleanup(w.stop)
	return w
}

// echoing returns where somebody answers with what he reads, until the end of the test.
func echoing(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				echo(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return netip.MustParseAddrPort(l.Addr().String())
}

// echo answers with what it reads. It does not splice, as package net would, through
// pipes that that keeps.
func echo(c net.Conn) {
	b := make([]byte, 4<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		c.Write(b[:n])
	}
}

// enter makes a connection through the engine, over which one message has passed.
func (w *world) enter(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp4", w.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	delivers(t, c, make([]byte, 64))
	return c
}

// delivers checks that what is sent comes back.
func delivers(t testing.TB, c net.Conn, content []byte) {
	t.Helper()
	go c.Write(content)
	got := make([]byte, len(content))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read %d bytes with error %v, or not those that were sent", n, err)
	}
}

// inLoops calls f in each loop.
func (w *world) inLoops(f func(*loop)) {
	w.engine.mu.Lock()
	loops := w.engine.loops
	w.engine.mu.Unlock()
	for _, l := range loops {
		each([]*loop{l}, f)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestOnlyBulkIsSpliced(t *testing.T) {
	for size, want := range map[int]bool{64: false, bufferSize / 2: false, 4 << 20: true} {
		w := newWorld(t, New(Options{}), relay.Limits{})
		c := w.enter(t)
		for range max(1, 100*64/size) {
			delivers(t, c, make([]byte, size))
		}
		pipes := 0
		w.inLoops(func(l *loop) { pipes += l.pipes.made })
		if got := pipes > 0; got != want {
			t.Errorf("messages of %d bytes have used %d pipes", size, pipes)
		}
		c.Close()
		w.stop()
	}
}

// TestIdleHoldsNothing has relays that have carried bulk hold two descriptors each, and
// few hundred bytes.
func TestIdleHoldsNothing(t *testing.T) {
	const relays = 200
	w := newWorld(t, New(Options{}), relay.Limits{Idle: time.Hour})
	defer w.enter(t).Close() // the loops run
	before := descriptors(t)
	for range relays {
		c := w.enter(t)
		defer c.Close()
		delivers(t, c, make([]byte, 300<<10))
	}
	pipes := 0
	w.inLoops(func(l *loop) {
		pipes += l.pipes.made
		for _, s := range l.slots {
			if s.live != nil && (s.live.ways[client].hold != nil || s.live.ways[upstream].hold != nil) {
				t.Error("an idle relay holds bytes")
			}
		}
	})
	// The peers have two descriptors as well.
	if n := descriptors(t) - before - 2*pipes; n != 4*relays {
		t.Errorf("%d relays and their peers have %d descriptors", relays, n)
	}
	if pipes > 4*w.engine.count {
		t.Errorf("%d pipes for relays that are busy one after the other", pipes)
	}
}

// TestHeap bounds what an idle relay needs of Go's heap, its limits and everything else
// included.
func TestHeap(t *testing.T) {
	const relays, most = 1000, 480
	upstream, err := net.Listen("tcp4", "127.0.0.1:0") // the kernel answers for it
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	e := New(Options{})
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gate, err := e.Listen(l.(*net.TCPListener))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{to: netip.MustParseAddrPort(upstream.Addr().String()), limits: relay.Limits{Idle: time.Hour}}
	answered := make(chan struct{}, relays)
	ctx, cancel := context.WithCancel(t.Context())
	var serving sync.WaitGroup
	serving.Go(func() {
		gate.Serve(ctx, func(c net.Conn) {
			e.Connect(c, &noting{towards{world: w}, answered})
		}, func(error) time.Duration { return time.Millisecond })
	})
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	at := gate.Addr().(*net.TCPAddr).AddrPort()
	var sockets []int
	enter := func(n int) {
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			sockets = append(sockets, fd)
			if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
				t.Fatal(err)
			}
			<-answered
		}
	}
	enter(1)
	begin := heap()
	enter(relays)
	if per := (heap() - begin) / relays; per > most {
		t.Errorf("an idle relay has %d bytes of heap, want at most %d", per, most)
	}
	for _, fd := range sockets {
		unix.Close(fd)
	}
	upstream.Close() // resets who waits there
	cancel()
	serving.Wait()
	gate.Close()
	e.Wait()
}

// noting says when the upstream has answered.
type noting struct {
	towards
	answered chan struct{}
}

func (o *noting) Connected(local netip.AddrPort) (relay.Limits, []byte, error) {
	defer func() { o.answered <- struct{}{} }()
	return o.towards.Connected(local)
}

func TestSpreads(t *testing.T) {
	const each = 25
	w := newWorld(t, New(Options{Loops: 4}), relay.Limits{})
	for range 4 * each {
		defer w.enter(t).Close()
	}
	var loads []int64
	w.inLoops(func(l *loop) { loads = append(loads, l.load.Load()) })
	if slices.Max(loads) > 2*slices.Min(loads) {
		t.Errorf("the loops have %v connections", loads)
	}
}

func TestUrgentAmidSignals(t *testing.T) {
	relaytest.RunUrgentAmidSignals(t, func(t *testing.T) (*net.TCPConn, net.Conn) {
		client := newWorld(t, New(Options{}), relay.Limits{}).enter(t).(*net.TCPConn)
		return client, client
	})
}

// TestKeepalive looks at sockets that have lived for a while.
func TestKeepalive(t *testing.T) {
	w := newWorld(t, New(Options{}), relay.Limits{})
	defer w.enter(t).Close()
	w.inLoops(func(l *loop) {
		for _, s := range l.slots {
			if s.live == nil {
				continue
			}
			l.now += keepAfter
			s.live.expire()
			for i, g := range s.live.legs {
				for option, want := range map[int]int{unix.TCP_KEEPIDLE: 30, unix.TCP_KEEPINTVL: 10, unix.TCP_KEEPCNT: 3} {
					if got, err := unix.GetsockoptInt(int(g.fd), unix.IPPROTO_TCP, option); got != want {
						t.Errorf("leg %d: option %d is %d, %v; want %d", i, option, got, err, want)
					}
				}
				for _, o := range [][2]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.IPPROTO_TCP, unix.TCP_NODELAY}} {
					if got, err := unix.GetsockoptInt(int(g.fd), o[0], o[1]); got != 1 {
						t.Errorf("leg %d: option %v is %d, %v", i, o, got, err)
					}
				}
			}
		}
	})
}

// TestWheel sets and clears times at random, and lets time pass in steps of any size.
func TestWheel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w wheel
		now := time.Duration(0)
		lives := make([]live, 20)
		want := map[*live]time.Duration{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			c := &lives[rapid.IntRange(0, len(lives)-1).Draw(t, "which")]
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				at := now + time.Duration(rapid.Int64Range(-1000, int64(20*time.Second)).Draw(t, "at"))
				if old, ok := want[c]; !ok || at < old {
					want[c] = at
				}
				w.by(c, at, now)
			case 2:
				w.clear(c)
				delete(want, c)
			case 3:
				if next := w.next(); len(want) > 0 && next == never {
					t.Fatal("nothing to come, and some wait")
				}
				if rapid.Bool().Draw(t, "as told") && w.next() != never {
					now = max(now, w.next())
				} else {
					now += time.Duration(rapid.Int64Range(0, int64(10*time.Second)).Draw(t, "passes"))
				}
				w.due(now, func(c *live) {
					if at, ok := want[c]; !ok || at > now {
						t.Fatalf("looked at %v before its time", at-now)
					}
					delete(want, c)
				})
				for _, at := range want {
					if late := now - at; late > coarse+tick || late > tick && at < farAway {
						t.Fatalf("%v late", late)
					}
				}
			}
			if w.count != len(want) {
				t.Fatalf("%d wait, want %d", w.count, len(want))
			}
		}
	})
}
