package datagram_test

import (
	"bytes"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"cardea/relay"
	"cardea/relay/datagram"
	"cardea/relay/relaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A flow under test: the far ends of both sides, and how it ended.
type flow struct {
	t                *testing.T
	engine           *datagram.Engine
	client, upstream *relaytest.DatagramEnd
	nearUpstream     *relaytest.DatagramEnd
	live             relay.Live
	results          chan relay.Result
}

// start begins a flow in memory; in a bubble.
func start(t *testing.T, l relay.Limits) *flow {
	f := &flow{t: t, engine: datagram.New(), results: make(chan relay.Result, 1)}
	near, client := relaytest.Datagrams()
	up, upstream := relaytest.Datagrams()
	f.client, f.upstream, f.nearUpstream = client, upstream, up
	f.live = f.engine.Start(relay.Pair{Client: near, Upstream: up, Limits: l}, func(r relay.Result) { f.results <- r })
	return f
}

// carry sends datagrams from one end, and returns how many arrive at the other.
func (f *flow) carry(from, to net.Conn, n, size int) (arrived int) {
	for i := range n {
		from.Write(bytes.Repeat([]byte{byte(i)}, size))
		synctest.Wait()
		to.SetReadDeadline(time.Now())
		b := make([]byte, relay.MaxDatagram)
		if k, err := to.Read(b); err == nil {
			if k != size || k > 0 && b[0] != byte(i) {
				f.t.Errorf("datagram %d arrived with %d bytes, want %d", i, k, size)
			}
			arrived++
		}
	}
	return arrived
}

// ends waits for the end, and checks that nothing is left.
func (f *flow) ends(want relay.Reason) relay.Result {
	f.t.Helper()
	r := <-f.results
	f.engine.Wait()
	if r.Reason != want {
		f.t.Errorf("the flow ended by %s (%v), want %s", r.Reason, r.Err, want)
	}
	for _, end := range []net.Conn{f.client, f.upstream} {
		end.SetReadDeadline(time.Now())
		var err error
		for err == nil { // what was on its way
			_, err = end.Read(make([]byte, 1))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			f.t.Errorf("a side is still open: %v", err)
		}
	}
	return r
}

func bubble(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

func TestCarries(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := start(t, relay.Limits{})
		for _, size := range []int{0, 1, 1472, 65507} {
			if n := f.carry(f.client, f.upstream, 3, size); n != 3 {
				t.Errorf("%d of 3 datagrams of %d bytes came up", n, size)
			}
			if n := f.carry(f.upstream, f.client, 2, size); n != 2 {
				t.Errorf("%d of 2 datagrams of %d bytes came down", n, size)
			}
		}
		all := int64(1 + 1472 + 65507)
		if received, sent := f.live.Bytes(); received != 3*all || sent != 2*all {
			t.Errorf("bytes are %d, %d", received, sent)
		}
		f.client.Close()
		r := f.ends(relay.ClientClosed)
		if want := (relay.Result{Received: 3 * all, Sent: 2 * all, ReceivedPackets: 12, SentPackets: 8, Reason: relay.ClientClosed}); r != want {
			t.Errorf("result %+v, want %+v", r, want)
		}
	})
}

func TestEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(f *flow)
		want relay.Reason
	}{
		"the client closes":        {func(f *flow) { f.client.Close() }, relay.ClientClosed},
		"the client breaks off":    {func(f *flow) { f.client.Reset("gone") }, relay.ClientReset},
		"the upstream closes":      {func(f *flow) { f.upstream.Close() }, relay.UpstreamClosed},
		"the upstream breaks off":  {func(f *flow) { f.upstream.Reset("gone") }, relay.UpstreamReset},
		"the upstream is not told": {func(f *flow) { f.nearUpstream.FailWrites(syscall.ECONNREFUSED); f.client.Write([]byte("x")) }, relay.UpstreamReset},
		"cut":                      {func(f *flow) { f.live.Cut(relay.Revoked); f.live.Cut(relay.Drained) }, relay.Revoked},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := start(t, relay.Limits{Idle: time.Hour})
				began := time.Now()
				tt.end(f)
				f.ends(tt.want)
				if d := time.Since(began); d != 0 {
					t.Errorf("it took %v", d)
				}
				f.live.Cut(relay.Revoked) // after the end, as all of these, without effect
				f.live.Limit(relay.Limits{Idle: 1})
			})
		})
	}
}

func TestReasonReachesTheClient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := start(t, relay.Limits{})
		f.live.Cut(relay.Revoked)
		f.ends(relay.Revoked)
		if got := f.client.Reason(); got != string(relay.Revoked) {
			t.Errorf("the client was told %q", got)
		}
	})
}

// What cannot be sent is lost, and nothing else.
func TestLosses(t *testing.T) {
	for _, err := range []error{syscall.EMSGSIZE, &net.OpError{Op: "write", Err: syscall.ENOBUFS}} {
		bubble(t, func(t *testing.T) {
			f := start(t, relay.Limits{})
			f.nearUpstream.FailWrites(err)
			if n := f.carry(f.client, f.upstream, 3, 9000); n != 0 {
				t.Errorf("%v: %d datagrams arrived", err, n)
			}
			f.nearUpstream.FailWrites(nil)
			if n := f.carry(f.client, f.upstream, 3, 900); n != 3 {
				t.Errorf("after %v %d datagrams of 3 arrived", err, n)
			}
			f.live.Cut(relay.Revoked)
			if r := f.ends(relay.Revoked); r.ReceivedPackets != 3 || r.Received != 2700 {
				t.Errorf("counted %+v", r)
			}
		})
	}
}

func TestLimitsOfTime(t *testing.T) {
	for name, tt := range map[string]struct {
		limits relay.Limits
		during func(f *flow) // between the start and the end
		after  time.Duration // from the start
		want   relay.Reason
	}{
		"idle for as long as there is no limit": {relay.Limits{}, nil, datagram.DefaultIdle, relay.IdleTimeout},
		"idle":                                  {relay.Limits{Idle: 3 * time.Second}, nil, 3 * time.Second, relay.IdleTimeout},
		"idle since the last datagram up": {relay.Limits{Idle: 3 * time.Second}, func(f *flow) {
			time.Sleep(2 * time.Second)
			f.carry(f.client, f.upstream, 1, 1)
		}, 5 * time.Second, relay.IdleTimeout},
		"idle since the last datagram down": {relay.Limits{Idle: 3 * time.Second}, func(f *flow) {
			time.Sleep(2 * time.Second)
			f.carry(f.upstream, f.client, 1, 0)
		}, 5 * time.Second, relay.IdleTimeout},
		"what is not delivered is nothing": {relay.Limits{Idle: 3 * time.Second}, func(f *flow) {
			time.Sleep(2 * time.Second)
			f.nearUpstream.FailWrites(syscall.EMSGSIZE)
			f.carry(f.client, f.upstream, 1, 1)
		}, 3 * time.Second, relay.IdleTimeout},
		"duration": {relay.Limits{Duration: 10 * time.Second, Idle: 3 * time.Second}, func(f *flow) {
			for range 5 {
				time.Sleep(2 * time.Second)
				f.carry(f.client, f.upstream, 1, 1)
			}
		}, 10 * time.Second, relay.MaxDuration},
		"a limit that comes later": {relay.Limits{Idle: time.Hour}, func(f *flow) {
			time.Sleep(2 * time.Second)
			f.live.Limit(relay.Limits{Idle: 5 * time.Second})
		}, 5 * time.Second, relay.IdleTimeout},
		"a limit that is lifted": {relay.Limits{Idle: 5 * time.Second}, func(f *flow) {
			time.Sleep(2 * time.Second)
			f.live.Limit(relay.Limits{Idle: time.Hour})
		}, time.Hour, relay.IdleTimeout},
		"a limit that has passed when it comes": {relay.Limits{Idle: time.Hour}, func(f *flow) {
			time.Sleep(time.Minute)
			f.live.Limit(relay.Limits{Duration: time.Second})
		}, time.Minute, relay.MaxDuration},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				began := time.Now()
				f := start(t, tt.limits)
				if tt.during != nil {
					tt.during(f)
				}
				f.ends(tt.want)
				if d := time.Since(began); d < tt.after || d > tt.after+time.Second {
					t.Errorf("it ended after %v, want %v", d, tt.after)
				}
			})
		})
	}
}

func TestLimitOfBytes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := start(t, relay.Limits{Bytes: 2500})
		if n := f.carry(f.client, f.upstream, 1, 1000) + f.carry(f.upstream, f.client, 1, 1000); n != 2 {
			t.Fatalf("%d datagrams of 2 arrived", n)
		}
		f.client.Write(make([]byte, 1000))
		if r := f.ends(relay.Limit); r.Received != 2000 || r.Sent != 1000 {
			t.Errorf("%+v", r)
		}
	})
}

// Over a second or more no more passes than the rate says, but for what may pass at once
// and the one datagram that goes over it. What is over it is lost.
func TestRates(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const rate, size, seconds = 100_000, 1000, 10
		f := start(t, relay.Limits{Upload: rate})
		arrived := 0
		for range seconds * 1000 {
			arrived += f.carry(f.client, f.upstream, 1, size)
			time.Sleep(time.Millisecond)
		}
		if most := rate*seconds/size + rate/4/size + 1; arrived > most || arrived < rate*seconds/size {
			t.Errorf("%d datagrams arrived, want %d to %d", arrived, rate*seconds/size, most)
		}
		if n := f.carry(f.upstream, f.client, 500, size); n != 500 {
			t.Errorf("the other direction is held back: %d of 500", n)
		}
		f.live.Limit(relay.Limits{Download: 1024, Idle: time.Hour})
		if n := f.carry(f.client, f.upstream, 500, size); n != 500 {
			t.Errorf("a rate that was lifted holds back: %d of 500", n)
		}
		if n := f.carry(f.upstream, f.client, 100, 65507); n != 1 {
			t.Errorf("%d large datagrams came down at once, want 1: a rate stops none for ever", n)
		}
		time.Sleep(40 * time.Second)
		if n := f.carry(f.upstream, f.client, 1, size); n != 0 {
			t.Errorf("what was over the rate was not paid for")
		}
		time.Sleep(20 * time.Second)
		if n := f.carry(f.upstream, f.client, 1, size); n != 1 {
			t.Errorf("what was over the rate is never paid for")
		}
		f.live.Cut(relay.Revoked)
		f.ends(relay.Revoked)
	})
}

// A stream is never carried as datagrams.
func TestStreamsAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		near, _ := relaytest.Pipe()
		up, upstream := relaytest.Datagrams()
		e, results := datagram.New(), make(chan relay.Result, 1)
		near.Write([]byte("x"))
		e.Start(relay.Pair{Client: near, Upstream: up}, func(r relay.Result) { results <- r })
		if r := <-results; r.Reason != relay.ProtocolError {
			t.Errorf("%+v", r)
		}
		e.Wait()
		if _, err := upstream.Read(make([]byte, 1)); !relay.IsReset(err) {
			t.Errorf("the upstream reads %v", err)
		}
	})
}

// socketPair returns a socket that is connected to another one.
func socketPair(t *testing.T, network, address string) (near, far *net.UDPConn) {
	t.Helper()
	any, err := net.ResolveUDPAddr(network, address)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUDP(network, any)
	if err != nil {
		t.Skip(err) // no IPv6 here
	}
	at := l.LocalAddr().(*net.UDPAddr)
	if near, err = net.DialUDP(network, nil, at); err != nil {
		t.Fatal(err)
	}
	from := near.LocalAddr().(*net.UDPAddr)
	l.Close()
	if far, err = net.DialUDP(network, at, from); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// TestSockets carries between sockets of the kernel, the largest datagrams included.
func TestSockets(t *testing.T) {
	for network, address := range map[string]string{"udp4": "127.0.0.1:0", "udp6": "[::1]:0"} {
		t.Run(network, func(t *testing.T) {
			near, client := socketPair(t, network, address)
			up, upstream := socketPair(t, network, address)
			e, results := datagram.New(), make(chan relay.Result, 1)
			live := e.Start(relay.Pair{Client: near, Upstream: up}, func(r relay.Result) { results <- r })
			b := make([]byte, relay.MaxDatagram)
			for i, size := range []int{1, 0, 1200, 65507, 3} {
				for _, way := range [][2]*net.UDPConn{{client, upstream}, {upstream, client}} {
					sent := bytes.Repeat([]byte{byte(i)}, size)
					if _, err := way[0].Write(sent); err != nil {
						t.Fatal(err)
					}
					if n, err := way[1].Read(b); err != nil || !bytes.Equal(b[:n], sent) {
						t.Fatalf("%d bytes: got %d, %v", size, n, err)
					}
				}
			}
			live.Cut(relay.Drained)
			if r := <-results; r.ReceivedPackets != 5 || r.SentPackets != 5 || r.Received != 66711 || r.Sent != 66711 || r.Reason != relay.Drained {
				t.Errorf("%+v", r)
			}
			e.Wait()
			if near.Close() == nil || up.Close() == nil {
				t.Error("a socket is still open")
			}
		})
	}
}

// TestRefused has an upstream at which nobody listens, which the kernel is told by ICMP.
func TestRefused(t *testing.T) {
	near, client := relaytest.Datagrams()
	up, upstream := socketPair(t, "udp4", "127.0.0.1:0")
	upstream.Close()
	e, results := datagram.New(), make(chan relay.Result, 1)
	e.Start(relay.Pair{Client: near, Upstream: up}, func(r relay.Result) { results <- r })
	client.Write([]byte("is anybody there?"))
	if r := <-results; r.Reason != relay.UpstreamReset || !errors.Is(r.Err, syscall.ECONNREFUSED) {
		t.Errorf("%+v", r)
	}
	if _, err := client.Read(make([]byte, 1)); !relay.IsReset(err) {
		t.Errorf("the client reads %v", err)
	}
	e.Wait()
}

// TestIdleHoldsNothing has many flows on which nothing passes.
func TestIdleHoldsNothing(t *testing.T) {
	const flows = 200
	e := datagram.New()
	var ended sync.WaitGroup
	var lives []relay.Live
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range flows {
		near, client := relaytest.Datagrams()
		up, upstream := socketPair(t, "udp4", "127.0.0.1:0")
		ended.Add(1)
		lives = append(lives, e.Start(relay.Pair{Client: near, Upstream: up}, func(relay.Result) { ended.Done() }))
		b := make([]byte, 10)
		client.Write([]byte("x"))
		upstream.Read(b)
		upstream.Write([]byte("y"))
		client.Read(b)
	}
	runtime.GC()
	runtime.GC() // pools are emptied by the second
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / flows; each > 16<<10 {
		t.Errorf("a flow on which nothing passes holds %d bytes", each)
	}
	for _, l := range lives {
		l.Cut(relay.Drained)
	}
	ended.Wait()
	e.Wait()
}
