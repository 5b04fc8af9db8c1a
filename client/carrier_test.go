package client

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cardea/tunnel"
)

// A fakePipe is open until it is closed or broken.
type fakePipe struct {
	once sync.Once
	done chan struct{}
}

func newFakePipe() *fakePipe { return &fakePipe{done: make(chan struct{})} }

func (p *fakePipe) Receive([]byte) (int, error) { <-p.done; return 0, io.ErrUnexpectedEOF }
func (p *fakePipe) Send([]byte) error           { return nil }
func (p *fakePipe) RemoteAddr() net.Addr        { return &net.TCPAddr{} }
func (p *fakePipe) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// A fakeWay is a network on which things can be blocked.
type fakeWay struct {
	t  *testing.T
	mu sync.Mutex
	// What does not pass.
	noUDP, noQUIC, noTLS, noEcho bool
	pipe                         tunnel.Pipe // what carries; nil is UDP
	all                          []*fakePipe
	missed                       int
	readers                      sync.WaitGroup
}

func (w *fakeWay) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// answer takes 3 ms; while blocked says so it asks again and again, until ctx is done.
func (w *fakeWay) answer(ctx context.Context, blocked *bool) (time.Duration, error) {
	for {
		w.mu.Lock()
		no := *blocked
		w.mu.Unlock()
		if !no {
			return 3 * time.Millisecond, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (w *fakeWay) open(blocked *bool) func(context.Context) (tunnel.Pipe, error) {
	return func(ctx context.Context) (tunnel.Pipe, error) {
		if _, err := w.answer(ctx, blocked); err != nil {
			return nil, err
		}
		p := newFakePipe()
		w.set(func() { w.all = append(w.all, p) })
		return p, nil
	}
}

// carries returns the pipe that carries.
func (w *fakeWay) carries() *fakePipe {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pipe.(*watchedPipe).Pipe.(*fakePipe)
}

// open pipes are counted.
func (w *fakeWay) opened() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.all {
		select {
		case <-p.done:
		default:
			n++
		}
	}
	return n
}

// carrier starts one in a bubble, until the end of the test.
func (w *fakeWay) carrier(t Tunnel) *carrier {
	c := w.newCarrier(t)
	w.start(c)
	return c
}

func (w *fakeWay) newCarrier(t Tunnel) *carrier {
	return &carrier{
		name: "g", tunnel: t,
		via: func(p tunnel.Pipe) error {
			w.set(func() { w.pipe = p })
			if p != nil { // as WireGuard does
				w.readers.Go(func() {
					for {
						if _, err := p.Receive(nil); err != nil {
							return
						}
					}
				})
			}
			return nil
		},
		probe:  func(ctx context.Context) (time.Duration, error) { return w.answer(ctx, &w.noUDP) },
		echo:   func(ctx context.Context) (time.Duration, error) { return w.answer(ctx, &w.noEcho) },
		missed: func() { w.set(func() { w.missed++ }) },
		offers: offers{true, []pipeKind{{TunnelQUIC, w.open(&w.noQUIC)}, {TunnelTLS, w.open(&w.noTLS)}}},
		log:    slog.New(slog.DiscardHandler), kick: make(chan struct{}, 1), settled: make(chan struct{}),
	}
}

func (w *fakeWay) start(c *carrier) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		<-done
		w.readers.Wait()
	})
}

// within expects a carrier to be what it is to be after so long at most, and returns why.
func within(t *testing.T, c *carrier, d time.Duration, want Tunnel) string {
	t.Helper()
	end := time.Now().Add(d)
	for {
		synctest.Wait()
		var s GatewayStatus
		c.status(&s)
		if s.Transport == want {
			return s.Why
		}
		if !time.Now().Before(end) {
			t.Fatalf("after %v the carrier is %q (%s), want %q", d, s.Transport, s.Why, want)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestCarrierPicks(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		tunnel               Tunnel
		noUDP, noQUIC, noTLS bool
		want                 Tunnel
		why                  string
	}{
		{"all pass", TunnelAuto, false, false, false, TunnelWireGuard, "UDP passes"},
		{"no UDP at the port of WireGuard", TunnelAuto, true, false, false, TunnelQUIC, "probes by UDP were not answered"},
		{"no UDP", TunnelAuto, true, true, false, TunnelTLS, "QUIC did not answer"},
		{"nothing", TunnelAuto, true, true, true, "", "TLS did not answer"},
		{"forced to QUIC", TunnelQUIC, false, false, false, TunnelQUIC, "--tunnel"},
		{"forced to TLS", TunnelTLS, false, false, false, TunnelTLS, "--tunnel"},
		{"forced to WireGuard, and blocked", TunnelWireGuard, true, false, false, "", "--tunnel wireguard allows nothing else"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &fakeWay{t: t, noUDP: tc.noUDP, noQUIC: tc.noQUIC, noTLS: tc.noTLS}
				c := w.carrier(tc.tunnel)
				select {
				case <-c.settled:
				case <-time.After(upTime + pipeTime):
					t.Fatal("it is not known how it stands")
				}
				if why := within(t, c, 0, tc.want); !strings.Contains(why, tc.why) {
					t.Errorf("it is said to be so because %q, want %q", why, tc.why)
				}
			})
		})
	}
}

// TestCarrierChanges blocks UDP in mid-session, and lets it pass again.
func TestCarrierChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWay{t: t, noQUIC: true}
		c := w.carrier(TunnelAuto)
		within(t, c, time.Second, TunnelWireGuard)
		time.Sleep(time.Minute)

		w.set(func() { w.noUDP = true })
		within(t, c, 10*time.Second, TunnelTLS)
		w.set(func() {
			if w.pipe == nil || w.missed == 0 {
				t.Errorf("carried by %v after %d missed probes", w.pipe, w.missed)
			}
			w.noUDP = false
		})
		within(t, c, 2*probeEvery+time.Second, TunnelWireGuard)
		w.set(func() {
			if w.pipe != nil {
				t.Error("packets still go by the pipe")
			}
		})
		if n := w.opened(); n != 0 {
			t.Errorf("%d pipes are left open", n)
		}
	})
}

// TestCarrierKeepsWhatIsLeft has UDP and QUIC blocked: TLS carries, and is not given up for what was
// offered from the beginning and has been tried.
func TestCarrierKeepsWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWay{t: t}
		c := w.newCarrier(TunnelAuto)
		all := c.offers
		c.offers = offers{}
		c.offer(all)
		w.start(c)
		within(t, c, time.Second, TunnelWireGuard)
		w.set(func() { w.noUDP, w.noQUIC = true, true })
		why := within(t, c, 10*time.Second, TunnelTLS)
		since := w.carries()
		time.Sleep(time.Minute)
		if now := w.carries(); now != since {
			t.Errorf("the pipe was given up for another one; because %q at first", why)
		}
	})
}

// TestCarrierFollowsOffers has the gateway lose and gain ways while it is reached: what
// carries is at once the best that there is.
func TestCarrierFollowsOffers(t *testing.T) {
	const soon = 500 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWay{t: t}
		quic, tls := pipeKind{TunnelQUIC, w.open(&w.noQUIC)}, pipeKind{TunnelTLS, w.open(&w.noTLS)}
		c := w.newCarrier(TunnelAuto)
		c.offers = offers{pipes: []pipeKind{tls}}
		w.start(c)
		within(t, c, soon, TunnelTLS)
		time.Sleep(time.Minute)
		c.offer(offers{pipes: []pipeKind{quic, tls}})
		if why := within(t, c, soon, TunnelQUIC); why != "the gateway has QUIC now" {
			t.Errorf("because %q", why)
		}
		if n := w.opened(); n != 1 {
			t.Errorf("%d pipes are open, want one", n)
		}
		c.offer(offers{udp: true, pipes: []pipeKind{quic, tls}})
		within(t, c, probeEvery+soon, TunnelWireGuard)
		c.offer(offers{pipes: []pipeKind{quic, tls}})
		if why := within(t, c, soon, TunnelQUIC); why != "the gateway has no port for WireGuard" {
			t.Errorf("because %q", why)
		}
		c.offer(offers{pipes: []pipeKind{tls}})
		if why := within(t, c, soon, TunnelTLS); why != "the gateway has no QUIC any more" {
			t.Errorf("because %q", why)
		}
		before := w.carries()
		c.offer(offers{pipes: []pipeKind{tls}})
		time.Sleep(time.Minute)
		if w.carries() != before {
			t.Error("what is the same as before was opened anew")
		}
	})
	synctest.Test(t, func(t *testing.T) { // where nothing else is allowed
		w := &fakeWay{t: t}
		quic, tls := pipeKind{TunnelQUIC, w.open(&w.noQUIC)}, pipeKind{TunnelTLS, w.open(&w.noTLS)}
		c := w.newCarrier(TunnelQUIC)
		c.offers = offers{pipes: []pipeKind{tls}}
		w.start(c)
		time.Sleep(time.Minute)
		within(t, c, 0, "")
		c.offer(offers{pipes: []pipeKind{quic, tls}})
		within(t, c, soon, TunnelQUIC)
	})
}

// TestCarrierInTime blocks UDP at any time between two probes, with a TCP connection
// inside whose first time-out is 0.2 or 1 second: it goes on within ten seconds.
func TestCarrierInTime(t *testing.T) {
	for _, noQUIC := range []bool{false, true} {
		for phase := time.Duration(0); phase < probeEvery; phase += 100 * time.Millisecond {
			synctest.Test(t, func(t *testing.T) {
				w := &fakeWay{t: t, noQUIC: noQUIC}
				c := w.carrier(TunnelAuto)
				within(t, c, time.Second, TunnelWireGuard)
				time.Sleep(time.Minute + phase)
				w.set(func() { w.noUDP = true })
				blocked := time.Now()
				want := TunnelQUIC
				if noQUIC {
					want = TunnelTLS
				}
				within(t, c, 10*time.Second, want)
				changed := time.Since(blocked)
				for _, first := range []time.Duration{200 * time.Millisecond, time.Second} {
					on, again := first, first
					for on < changed {
						again *= 2
						on += again
					}
					if on > 10*time.Second {
						t.Errorf("after %v the carrier is %s: a TCP connection stands still for %v", changed, want, on)
					}
				}
				if n := w.opened(); n != 1 {
					t.Errorf("%d pipes are open, want one", n)
				}
			})
		}
	}
}

// TestCarrierStays has a short break, in which packets get lost: nothing changes, and
// nothing that was opened is left.
func TestCarrierStays(t *testing.T) {
	for _, long := range []time.Duration{100 * time.Millisecond, probeTime, probeTime + probeAgain} {
		synctest.Test(t, func(t *testing.T) {
			w := &fakeWay{t: t}
			c := w.carrier(TunnelAuto)
			within(t, c, time.Second, TunnelWireGuard)
			var before, after GatewayStatus
			c.status(&before)
			time.Sleep(probeEvery - 10*time.Millisecond) // until just before the next probe
			w.set(func() { w.noUDP = true })
			time.Sleep(long)
			w.set(func() { w.noUDP = false })
			time.Sleep(time.Minute)
			synctest.Wait()
			if c.status(&after); after != before {
				t.Errorf("after a break of %v it is %+v, and was %+v", long, after, before)
			}
			if n := w.opened(); n != 0 {
				t.Errorf("after a break of %v %d pipes are open", long, n)
			}
		})
	}
}

// TestCarrierAtAnotherAddress shows that the second address of a gateway is tried, with
// all the time for its answer, before UDP is given up.
func TestCarrierAtAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWay{t: t}
		c := w.newCarrier(TunnelAuto)
		c.probe = func(ctx context.Context) (time.Duration, error) {
			w.mu.Lock()
			second := w.missed%2 == 1
			w.mu.Unlock()
			if rtt := probeTime * 9 / 10; second {
				time.Sleep(rtt)
				return rtt, ctx.Err()
			}
			<-ctx.Done()
			return 0, ctx.Err()
		}
		w.start(c)
		within(t, c, 2*probeTime, TunnelWireGuard)
	})
}

// TestCarrierReplacesPipes has a pipe break, and another one fall silent.
func TestCarrierReplacesPipes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWay{t: t, noUDP: true}
		c := w.carrier(TunnelAuto)
		within(t, c, 10*time.Second, TunnelQUIC)
		first := w.carries()
		w.set(func() { w.noQUIC = true })
		first.Close()
		if why := within(t, c, pipeTime+time.Second, TunnelTLS); !strings.Contains(why, "by QUIC broke: unexpected EOF") {
			t.Errorf("because %q", why)
		}
		second := w.carries()
		w.set(func() { w.noEcho, w.noQUIC = true, false })
		if why := within(t, c, 15*time.Second, TunnelQUIC); !strings.Contains(why, "nothing came back by TLS") {
			t.Errorf("because %q", why)
		}
		select {
		case <-second.done:
		default:
			t.Error("the silent pipe is left open")
		}
	})
}

// TestCarrierWaitsForTheNetwork shows that one that has lost all finds its way again.
func TestCarrierWaitsForTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWay{t: t, noUDP: true, noQUIC: true, noTLS: true}
		c := w.carrier(TunnelAuto)
		<-c.settled
		time.Sleep(time.Hour)
		w.set(func() { w.noUDP = false })
		within(t, c, pipeTime*2+5*time.Second, TunnelWireGuard)
	})
}

// TestCarrierLooksWhenTold shows that there is no need to wait for the next probe.
func TestCarrierLooksWhenTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWay{t: t}
		c := w.carrier(TunnelAuto)
		within(t, c, time.Second, TunnelWireGuard)
		w.set(func() { w.noUDP = true })
		for range probeFails {
			c.look()
		}
		within(t, c, time.Duration(probeFails)*probeTime+100*time.Millisecond, TunnelQUIC)
	})
}

func TestWatchedPipe(t *testing.T) {
	p := newFakePipe()
	w := &watchedPipe{Pipe: p, over: make(chan struct{})}
	go p.Close()
	if _, err := w.Receive(nil); err == nil {
		t.Error("a broken pipe was read")
	}
	<-w.over
	if err := w.failure(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}
