package ingress

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
)

// peer is a connection from an address.
type peer struct {
	net.Conn
	from   netip.AddrPort
	closed atomic.Bool
}

func from(ip string) *peer { return &peer{from: netip.AddrPortFrom(netip.MustParseAddr(ip), 40000)} }

func (p *peer) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(p.from) }
func (p *peer) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8443} }
func (p *peer) Close() error         { p.closed.Store(true); return nil }

// shake is a handshake under way.
type shake struct {
	*peer
	heard func() error
	leave func(bool) error
}

func enter(t *testing.T, a *Admission, ip string) (*shake, error) {
	t.Helper()
	s := &shake{peer: from(ip)}
	var err error
	s.heard, s.leave, err = a.Enter(t.Context(), s.peer)
	return s, err
}

// in enters and must get a place.
func in(t *testing.T, a *Admission, ip string) *shake {
	t.Helper()
	s, err := enter(t, a, ip)
	if err != nil {
		t.Fatalf("%s: %v", ip, err)
	}
	return s
}

// know makes a network known.
func know(t *testing.T, a *Admission, ip string) {
	t.Helper()
	s := in(t, a, ip)
	if err := errors.Join(s.heard(), s.leave(true)); err != nil {
		t.Fatal(err)
	}
}

func TestSilenceKeepsNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{Limits: AdmissionLimits{Handshakes: 8}} // four for strangers
		var silent []*shake
		for range 9000 {
			silent = append(silent, in(t, a, "192.0.2.1"))
		}
		honest := in(t, a, "192.0.2.1")
		if err := errors.Join(honest.heard(), honest.leave(true)); err != nil {
			t.Errorf("from the same network: %v", err)
		}
		for i, s := range silent[:8990] {
			if !s.closed.Load() {
				t.Fatalf("connection %d is open", i)
			}
		}
		for i, s := range silent[len(silent)-3:] {
			if s.closed.Load() {
				t.Errorf("one of the last is closed: %d", i)
			}
		}
		if err := silent[0].leave(false); err != errDisplaced {
			t.Errorf("the first leaves with %v", err)
		}
		if s := a.Stats(); s.Pending != 3 || s.Displaced != 9001-4 || s.Handshakes != 9001 {
			t.Errorf("%+v", s)
		}
	})
}

func TestPlacesAreTakenFromTheGreediest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{Limits: AdmissionLimits{Handshakes: 8}}
		modest := in(t, a, "198.51.100.1") // the oldest of all
		greedy := []*shake{in(t, a, "192.0.2.1"), in(t, a, "192.0.2.1"), in(t, a, "192.0.2.1")}
		newcomer := in(t, a, "203.0.113.1")
		if modest.closed.Load() || !greedy[0].closed.Load() || greedy[1].closed.Load() {
			t.Error("the place was not taken from the oldest of the greediest network")
		}
		again := in(t, a, "192.0.2.1") // has two, and others one
		if modest.closed.Load() || newcomer.closed.Load() || !greedy[1].closed.Load() || again.closed.Load() {
			t.Error("the greediest network took the place of another")
		}
	})
}

func TestHandshakesUnderWayAreWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{Limits: AdmissionLimits{Handshakes: 4}}
		busy := []*shake{in(t, a, "192.0.2.1"), in(t, a, "192.0.2.2")}
		for _, b := range busy {
			b.heard()
		}
		start := time.Now()
		time.AfterFunc(300*time.Millisecond, func() { busy[1].leave(false) })
		in(t, a, "192.0.2.3").heard()
		if took := time.Since(start); took != 300*time.Millisecond {
			t.Errorf("waited for %v", took)
		}
		// Now the oldest will be slow in 700 ms, and nobody leaves.
		start = time.Now()
		in(t, a, "192.0.2.4")
		if took := time.Since(start); took != time.Second || !busy[0].closed.Load() {
			t.Errorf("waited for %v; the slow one is closed: %v", took, busy[0].closed.Load())
		}
	})
}

func TestWaitingIsShortAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{Limits: AdmissionLimits{Handshakes: 4, Waiting: 4, Wait: 100 * time.Millisecond}}
		for range 2 {
			in(t, a, "192.0.2.1").heard()
		}
		var waiting sync.WaitGroup
		refused := make(chan error, 10)
		for range 2 {
			waiting.Go(func() { _, err := enter(t, a, "192.0.2.2"); refused <- err })
		}
		synctest.Wait()
		start := time.Now()
		if _, err := enter(t, a, "192.0.2.2"); err != errTooMany || time.Since(start) != 0 {
			t.Errorf("one too many of a network: %v after %v", err, time.Since(start))
		}
		waiting.Wait()
		for range 2 {
			if err := <-refused; err != errTooMany {
				t.Errorf("refused with %v", err)
			}
		}
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("waited for %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := a.Enter(ctx, from("192.0.2.2")); err != errStopping {
			t.Errorf("while stopping: %v", err)
		}
		if s := a.Stats(); s.Waiting != 0 || s.TooMany != 3 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTurnsAreByNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{Limits: AdmissionLimits{Handshakes: 4}}
		first, second := in(t, a, "192.0.2.1"), in(t, a, "192.0.2.1")
		first.heard()
		second.heard()
		turns := make(chan string, 2)
		for _, ip := range []string{"192.0.2.1", "192.0.2.2"} {
			go func() {
				in(t, a, ip).heard()
				turns <- ip
			}()
			synctest.Wait()
		}
		first.leave(false)
		if ip := <-turns; ip != "192.0.2.2" {
			t.Errorf("the first turn is that of %s", ip)
		}
		second.leave(false)
		<-turns
	})
}

func TestStrangersAndKnownNetworksHaveTheirOwnPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{Limits: AdmissionLimits{Handshakes: 4, Wait: time.Millisecond}}
		know(t, a, "192.0.2.1")
		for i := range 2 { // not to be displaced
			in(t, a, fmt.Sprintf("198.51.100.%d", i)).heard()
		}
		if _, err := enter(t, a, "198.51.100.9"); err == nil {
			t.Fatal("the places of strangers are not all taken")
		}
		known := in(t, a, "192.0.2.1")
		known.heard()
		in(t, a, "192.0.2.1").heard()
		if _, err := enter(t, a, "192.0.2.1"); err == nil {
			t.Error("known networks have places of strangers")
		}
		known.leave(false)
		in(t, a, "192.0.2.1")
	})
}

func TestNetworksAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{}
		know(t, a, "192.0.2.1")
		time.Sleep(59 * time.Minute)
		know(t, a, "192.0.2.1")
		time.Sleep(59 * time.Minute)
		in(t, a, "192.0.2.1").leave(false)
		if a.Stats().Known != 1 {
			t.Error("a network is not known an hour after the last proof")
		}
		time.Sleep(2 * time.Minute)
		in(t, a, "192.0.2.1")
		if a.Stats().Known != 0 {
			t.Error("a network is known for more than an hour")
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{}
		served := func(ip string, n int, proved bool) (ok int) {
			for range n {
				s, err := enter(t, a, ip)
				if err == nil {
					if err = s.heard(); err == nil {
						ok++
					}
					s.leave(err == nil && proved)
				}
				if o := Overload(""); err != nil && (!errors.As(err, &o) || o.Reason() != api.ReasonOverload || !strings.Contains(o.Error(), "a second from")) {
					t.Fatalf("refused with %v", err)
				}
			}
			return ok
		}
		if n := served("192.0.2.1", 100, false); n != 20 {
			t.Errorf("%d hellos of a stranger at once", n)
		}
		if n := served("192.0.2.2", 100, false); n != 20 {
			t.Errorf("%d hellos of its neighbour", n)
		}
		time.Sleep(time.Second / 2)
		if n := served("192.0.2.1", 100, false); n != 10 {
			t.Errorf("%d hellos in the next half second", n)
		}
		if n := served("2001:db8:0:1::1", 10, false) + served("2001:db8:0:1:ffff::1", 20, false); n != 20 {
			t.Errorf("%d hellos of one /64", n)
		}
		if n := served("2001:db8:0:2::1", 1, false); n != 1 {
			t.Error("the next /64 must pay for its neighbour")
		}
		if n := served("192.0.2.3", 5000, true); n != 5000 {
			t.Errorf("%d of 5,000 that prove a Session", n)
		}
		if n := served("192.0.2.3", 5000, false); n != 1000 {
			t.Errorf("%d hellos of a known network that prove nothing", n)
		}
		if a.Stats().TooFast == 0 {
			t.Error("nothing was counted")
		}
	})
}

func TestFewDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		used, asked := 0, 0
		a := &Admission{Descriptors: func() (int, int) { asked++; return used, 1000 }}
		know(t, a, "192.0.2.1")
		time.Sleep(time.Second)
		used = 900
		in(t, a, "192.0.2.2").leave(false)
		time.Sleep(time.Second)
		used, asked = 901, 0
		for range 100 {
			if _, err := enter(t, a, "192.0.2.2"); err != errCrowded {
				t.Fatalf("a stranger: %v", err)
			}
			in(t, a, "192.0.2.1").leave(false)
			if err := a.Admit(); err != errFull {
				t.Fatalf("who proves nothing: %v", err)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times at one time", asked)
		}
		time.Sleep(time.Second)
		used = 10
		in(t, a, "192.0.2.2")
	})
}

// Between two counts of descriptors no more connections are let in than there is
// room for, and a part of the descriptors can be kept for others.
func TestConnectionsOfPublicPortsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		used := 700
		a := &Admission{Limits: AdmissionLimits{Share: 80}, Descriptors: func() (int, int) { return used, 1000 }}
		admitted := func() (n int) {
			for range 1000 {
				if a.Admit() == nil {
					n++
				}
			}
			return n
		}
		if n := admitted(); n != 50 {
			t.Errorf("%d connections, of two descriptors each, for 100 descriptors", n)
		}
		used = 790 // five have gone
		time.Sleep(recount)
		if n := admitted(); n != 5 {
			t.Errorf("%d connections for 10 descriptors", n)
		}
		if s := a.Stats(); s.Crowded != 2000-55 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAnyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Admission{Limits: AdmissionLimits{Rate: -1}}
		for range 10_000 {
			s := in(t, a, "192.0.2.1")
			if err := errors.Join(s.heard(), s.leave(false)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// One network opens so many connections a second, whatever others do; and however
// many networks there are, little is remembered of them.
func TestMeter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		m.set(200, "spec.limits.connectionsPerSecond")
		admitted := func(n int, ip string) (ok int) {
			for range n {
				if m.admit(netip.MustParseAddr(ip)) == nil {
					ok++
				}
			}
			return ok
		}
		if n := admitted(1000, "192.0.2.1"); n != 400 {
			t.Errorf("%d connections at once", n)
		}
		if n := admitted(1000, "192.0.2.2"); n != 400 {
			t.Errorf("%d connections of its neighbour", n)
		}
		if n := admitted(200, "2001:db8:0:1::1") + admitted(1000, "2001:db8:0:1:ffff::1"); n != 400 {
			t.Errorf("%d connections of one /64", n)
		}
		time.Sleep(time.Second)
		if n := admitted(1000, "192.0.2.1"); n != 200 {
			t.Errorf("%d connections in the next second", n)
		}
		m.set(10, "spec.limits.connectionsPerSecond")
		if n := admitted(1000, "192.0.2.2"); n != 10 {
			t.Errorf("%d connections in a second at the lower rate", n)
		}
		for i := range 3 * mostSources {
			if n := admitted(1, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String()); n != 1 {
				t.Fatal("many networks keep one out")
			}
		}
		if len(m.rows) > mostSources || m.recent.Len() != len(m.rows) {
			t.Errorf("%d networks are remembered", len(m.rows))
		}
		err := m.admit(netip.MustParseAddr("192.0.2.2"))
		for err == nil {
			err = m.admit(netip.MustParseAddr("192.0.2.2"))
		}
		if r := refusal(api.Facts{}, err); r.Reason != api.ReasonLimit || r.Words != "more than 10 connections a second from 192.0.2.2/32 (spec.limits.connectionsPerSecond)" {
			t.Errorf("%+v", r)
		}
	})
}

// TestAdmissionIsBounded enters at random from many networks, and checks after
// each step that what is kept is bounded and that nothing is counted twice.
func TestAdmissionIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		a := &Admission{Limits: AdmissionLimits{Handshakes: 16, Waiting: 4, Wait: time.Millisecond}}
		var all []*shake
		check := func() {
			for _, h := range []*half{&a.known, &a.strangers} {
				if h.pending.Len() > h.places || h.waiting.Len() != 0 || len(h.rows) > mostSources || h.recent.Len() != len(h.rows) {
					t.Fatalf("%d places, %d wait, %d rows, %d recent", h.pending.Len(), h.waiting.Len(), len(h.rows), h.recent.Len())
				}
			}
		}
		for range 30_000 {
			if len(all) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(all))
				s := all[i]
				all = append(all[:i], all[i+1:]...)
				if err := s.leave(r.IntN(10) == 0); (err != nil) != s.closed.Load() {
					t.Fatalf("leaves with %v", err)
				}
			} else if s, err := enter(t, a, fmt.Sprintf("10.%d.%d.1", r.IntN(40), r.IntN(256))); err == nil {
				if r.IntN(2) == 0 {
					s.heard()
				}
				all = append(all, s)
			}
			check()
		}
		for _, s := range all {
			s.leave(false)
		}
		for _, h := range []*half{&a.known, &a.strangers} {
			for e := h.recent.Front(); e != nil; e = e.Next() {
				if s := e.Value.(*source); s.pending != 0 || s.waiting != 0 {
					t.Errorf("%v holds %d places, %d wait", s.network, s.pending, s.waiting)
				}
			}
			if h.pending.Len() != 0 {
				t.Errorf("%d places are taken", h.pending.Len())
			}
		}
		if s := a.Stats(); s.Displaced == 0 || s.Proved == 0 || s.Known == 0 {
			t.Errorf("%+v", s)
		}
	})
}

// BenchmarkDisplacement is what the Admission itself adds to a silent connection
// of a flood.
func BenchmarkDisplacement(b *testing.B) {
	a := &Admission{}
	c := from("192.0.2.1")
	for b.Loop() {
		if _, _, err := a.Enter(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}
