package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/upstream/balance"
	"cardea/wire/proxyproto"
)

// checked is a config of so many endpoints that are checked.
func checked(n int, check api.HealthProbe) *api.ServiceConfig {
	cfg := several(n)
	cfg.Upstream.Health = &api.UpstreamHealth{Check: &check}
	return cfg
}

func ms(n int) *api.Duration { return &api.Duration{Milliseconds: &n} }

// running runs a Dialer until the test is over.
func running(t *testing.T, d *Dialer) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(all.Wait)
	t.Cleanup(cancel)
}

// states returns the state of each endpoint, by the last number of its address.
func states(d *Dialer, k api.Key) map[int]api.HealthState {
	out := map[int]api.HealthState{}
	for _, e := range d.Endpoints(k) {
		out[int(netip.MustParseAddrPort(e.Address).Addr().As4()[3])] = e.State
	}
	return out
}

// told notes what is told.
type told struct {
	mu      sync.Mutex
	changes []string
	cut     []string
}

func (x *told) to(d *Dialer) {
	d.Changed = func(to api.Destination, h api.HealthInfo) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.changes = append(x.changes, fmt.Sprintf("%s %s %s→%s", to.Object.Name, h.Address, h.From, h.To))
	}
	d.Unhealthy = func(to api.Destination, at, words string) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.cut = append(x.cut, fmt.Sprintf("%s %s: %s", to.Object.Name, at, words))
	}
}

func (x *told) took() (changes, cut []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	changes, cut = x.changes, x.cut
	x.changes, x.cut = nil, nil
	return changes, cut
}

// Each endpoint is asked at its interval, and one that hangs is given up in time; who
// does not serve gets no connections, and where nobody does they are refused at once.
func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		hangs, closed := map[int]bool{}, map[int]bool{}
		asked, busy := map[int][]time.Time{}, map[int]int{}
		d := newDialer()
		d.connect = func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
			last := int(at.Addr().As4()[3])
			mu.Lock()
			asked[last] = append(asked[last], time.Now())
			hang, down := hangs[last], closed[last]
			if busy[last]++; busy[last] > 1 {
				t.Errorf("%d is asked twice at once", last)
			}
			mu.Unlock()
			defer func() {
				mu.Lock()
				busy[last]--
				mu.Unlock()
			}()
			switch {
			case hang:
				start := time.Now()
				<-ctx.Done()
				if took := time.Since(start); took != 2*time.Second {
					t.Errorf("a question hangs for %v", took)
				}
				return nil, ctx.Err()
			case down:
				return nil, syscall.ECONNREFUSED
			}
			return pipeTo{to: at, closed: new(sync.Map)}, nil
		}
		set := func(m map[int]bool, of ...int) {
			mu.Lock()
			defer mu.Unlock()
			clear(hangs)
			clear(closed)
			for _, n := range of {
				m[n] = true
			}
		}
		var x told
		x.to(d)
		running(t, d)
		cfg := checked(3, api.HealthProbe{})
		cfg.Upstream.Health.CloseOnUnhealthy = true
		to := destination("db.default", cfg)
		d.Watch([]api.Destination{to, destination("unchecked", several(3))})
		if c := d.Healthy(to.Object); c == nil || c.Status != "True" {
			t.Errorf("before the first answer: %+v", c)
		}
		time.Sleep(100 * time.Second)
		mu.Lock()
		for last, times := range asked {
			if n := len(times); n < 18 || n > 21 {
				t.Errorf("%d is asked %d times in 100 s", last, n)
			}
			for i, at := range times[1:] {
				if took := at.Sub(times[i]); took < 4750*time.Millisecond || took > 5250*time.Millisecond {
					t.Errorf("%d is asked again after %v", last, took)
				}
			}
		}
		if len(asked) != 3 {
			t.Errorf("asked were %v", asked)
		}
		mu.Unlock()
		if changes, cut := x.took(); len(changes) != 3 || len(cut) != 0 {
			t.Errorf("told %q, %q", changes, cut)
		}
		take := func() (out []int) {
			for range 4 {
				tried, _, _, err := follow(d.Plan(to), func(int) error { return nil })
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, tried...)
			}
			slices.Sort(out)
			return slices.Compact(out)
		}
		if got := take(); !slices.Equal(got, []int{1, 2, 3}) {
			t.Errorf("connections went to %v", got)
		}
		// One hangs, for three questions.
		set(hangs, 2)
		time.Sleep(20 * time.Second)
		if got := take(); !slices.Equal(got, []int{1, 3}) {
			t.Errorf("connections went to %v", got)
		}
		changes, cut := x.took()
		if !slices.Equal(changes, []string{"db.default 192.0.2.2:80 HEALTHY→UNHEALTHY"}) || len(cut) != 1 || !strings.HasPrefix(cut[0], "db.default 192.0.2.2:80: ") || !strings.Contains(cut[0], "no answer within 2s") {
			t.Errorf("told %q, %q", changes, cut)
		}
		if c := d.Healthy(to.Object); c.Status != "True" || c.Reason != "SOME_ENDPOINTS" || !strings.HasPrefix(c.Message, "192.0.2.2:80 is UNHEALTHY: ") || strings.Count(c.Message, "192.0.2.2:80") != 1 {
			t.Errorf("the condition is %+v", c)
		}
		// All are down.
		set(closed, 1, 2, 3)
		time.Sleep(20 * time.Second)
		start := time.Now()
		_, _, dialled := d.Dial(t.Context(), to)
		_, _, _, planned := follow(d.Plan(to), func(int) error { return nil })
		for _, err := range []error{dialled, planned} {
			e, ok := errors.AsType[*Error](err)
			if !ok || e.CloseReason() != "UNHEALTHY" || time.Since(start) != 0 {
				t.Fatalf("error is %v after %v", err, time.Since(start))
			}
			for _, w := range []string{"none of 3 endpoints serves", "192.0.2.1:80: ", "192.0.2.3:80: ", "nothing listens there"} {
				if !strings.Contains(e.Words, w) {
					t.Errorf("the words are %q, and %q is not in them", e.Words, w)
				}
			}
		}
		if c := d.Healthy(to.Object); c.Status != "False" || c.Type != api.ConditionUpstreamHealthy || time.Since(c.Since) > 20*time.Second {
			t.Errorf("the condition is %+v", c)
		}
		if c := d.Reachable(to.Object); c.Status != "False" || c.Reason != "UNHEALTHY" {
			t.Errorf("it is %+v", c)
		}
		// And up again.
		set(closed)
		time.Sleep(20 * time.Second)
		if got := take(); !slices.Equal(got, []int{1, 2, 3}) {
			t.Errorf("connections went to %v", got)
		}
		if changes, cut := x.took(); len(changes) != 5 || len(cut) != 2 {
			t.Errorf("told %q, %q", changes, cut)
		}
		// Who is not to be asked is not asked any more.
		set(closed, 1, 2, 3)
		d.Watch(nil)
		mu.Lock()
		clear(asked)
		mu.Unlock()
		time.Sleep(time.Minute)
		mu.Lock()
		if len(asked) != 0 {
			t.Errorf("asked were %v", asked)
		}
		mu.Unlock()
		if got := states(d, to.Object); got[1] != api.HealthUnknown {
			t.Errorf("it stands %v", got)
		}
	})
}

// What changes in a config is followed: more endpoints, other intervals.
func TestWatchFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoints{answer: func(int, context.Context) error { return nil }}
		d := newDialer()
		d.connect = e.connect
		running(t, d)
		count := func() map[int]int {
			n := map[int]int{}
			for _, last := range e.took() {
				n[last]++
			}
			return n
		}
		d.Watch([]api.Destination{destination("db.default", checked(2, api.HealthProbe{}))})
		time.Sleep(time.Minute)
		if n := count(); len(n) != 2 || n[1] < 11 || n[1] > 13 {
			t.Errorf("asked %v", n)
		}
		d.Watch([]api.Destination{destination("db.default", checked(3, api.HealthProbe{Interval: ms(1000)}))})
		time.Sleep(5 * time.Second) // they go on as they were, once
		count()
		time.Sleep(time.Minute)
		if n := count(); len(n) != 3 || n[1] < 56 || n[1] > 64 || n[3] < 56 || n[3] > 64 {
			t.Errorf("asked %v", n)
		}
		d.Watch([]api.Destination{destination("db.default", checked(1, api.HealthProbe{}))})
		time.Sleep(5 * time.Second)
		count()
		time.Sleep(time.Minute)
		if n := count(); len(n) != 1 {
			t.Errorf("asked %v", n)
		}
	})
}

// Those that come and go all the time are told of some times a minute, and stand as they
// stand.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer()
		var x told
		x.to(d)
		running(t, d)
		to := destination("db.default", checked(1, api.HealthProbe{}))
		p := d.place(&to)
		if _, err := d.configure(p, to.Config); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		target := p.set.Targets()[0]
		changes := 0
		for i := range 601 {
			if from, to := p.set.Judge(target, i%2 == 0, "words", 1, 1); from != to {
				changes++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if changes != 601 {
			t.Errorf("%d changes", changes)
		}
		p.set.Judge(target, false, "words", 1, 1)
		time.Sleep(changeEvery + time.Second)
		all, _ := x.took()
		if len(all) > 10 || len(all) < 2 || !strings.HasSuffix(all[len(all)-1], "→UNHEALTHY") {
			t.Errorf("told of %d: %q", len(all), all)
		}
		time.Sleep(time.Hour)
		if d.changes.mu.Lock(); len(d.changes.rows) != 0 {
			t.Errorf("%d changes are remembered", len(d.changes.rows))
		}
		d.changes.mu.Unlock()
	})
}

// An endpoint to which connections fail is left out for a while.
func TestEjectionByDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := map[int]bool{1: true}
		e := &endpoints{}
		e.answer = func(last int, _ context.Context) error {
			if bad[last] {
				return syscall.ECONNREFUSED
			}
			return nil
		}
		d := newDialer()
		d.connect = e.connect
		var x told
		x.to(d)
		running(t, d)
		synctest.Wait()
		cfg := several(3)
		cfg.Upstream.Health = &api.UpstreamHealth{Ejection: &api.Ejection{Failures: 2}}
		to := destination("db.default", cfg)
		dial := func(n int) map[int]int {
			out := map[int]int{}
			for range n {
				_, report, err := d.Dial(t.Context(), to)
				if err != nil {
					t.Fatal(err)
				}
				report.Hold.Release(1, false)
				for _, last := range e.took() {
					out[last]++
				}
			}
			return out
		}
		if got := dial(60); got[1] != 2 {
			t.Errorf("tried %v", got)
		}
		synctest.Wait()
		if changes, cut := x.took(); !slices.Equal(changes, []string{"db.default 192.0.2.1:80 HEALTHY→EJECTED"}) || len(cut) != 0 {
			t.Errorf("told %q, %q", changes, cut)
		}
		if c := d.Healthy(to.Object); c == nil || c.Status != "True" || !strings.Contains(c.Message, "192.0.2.1:80 is EJECTED: 2 failures in a row") {
			t.Errorf("the condition is %+v", c)
		}
		clear(bad)
		time.Sleep(20 * time.Second)
		if got := dial(60); got[1] != 20 {
			t.Errorf("after its time tried %v", got)
		}
		if changes, _ := x.took(); !slices.Equal(changes, []string{"db.default 192.0.2.1:80 EJECTED→HEALTHY"}) {
			t.Errorf("told %q", changes)
		}
		// That all fail does not matter any more.
		bad[1], bad[2], bad[3] = true, true, true
		for range 20 {
			if _, err := dialTo(d, t.Context(), "db.default", cfg); err == nil || !strings.Contains(err.Error(), "none of 3 endpoints can be had") {
				t.Fatalf("error is %v", err)
			}
		}
		clear(bad)
		dial(1)
		// Nor does it that our own descriptors are all used, or that the client has gone.
		d = newDialer()
		d.connect = func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, syscall.EMFILE }
		for range 20 {
			dialTo(d, t.Context(), "db.default", cfg)
		}
		for last, s := range states(d, to.Object) {
			if s != api.HealthHealthy {
				t.Errorf("%d is %s", last, s)
			}
		}
	})
}

// A connection that is broken off before a byte is a failure, and later is none.
func TestEjectionByRelease(t *testing.T) {
	d := newDialer()
	cfg := several(2)
	cfg.Upstream.Health = &api.UpstreamHealth{Ejection: &api.Ejection{Failures: 3}}
	to := destination("db.default", cfg)
	for range 6 {
		_, _, report, err := follow(d.Plan(to), func(int) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		first := report.Hold.(*balance.Target).Addr.Addr().As4()[3] == 1
		report.Hold.Release(0, first)
	}
	if got := states(d, to.Object); got[1] != api.HealthEjected || got[2] != api.HealthHealthy {
		t.Errorf("they are %v", got)
	}
}

// Where all endpoints have as many connections as they may, a connection waits for its
// time, and a Plan does not.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoints{answer: func(int, context.Context) error { return nil }}
		d := newDialer()
		d.connect = e.connect
		cfg := several(2)
		for i := range cfg.Upstream.Loadbalance.Endpoints {
			cfg.Upstream.Loadbalance.Endpoints[i].MaxConnections = 1
		}
		to := destination("db.default", cfg)
		_, first, err := d.Dial(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		if d.Plan(to) != nil {
			t.Error("a second has a Plan, and would find no place if the free endpoint failed")
		}
		_, second, err := d.Dial(t.Context(), to)
		if err != nil || d.Plan(to) != nil {
			t.Fatalf("a third has a Plan (%v)", err)
		}
		start := time.Now()
		_, _, err = d.Dial(t.Context(), to)
		if x, ok := errors.AsType[*Error](err); !ok || x.Reason != Limit || !strings.Contains(x.Words, "maxConnections") || time.Since(start) != DefaultTimeout {
			t.Errorf("error is %v after %v", err, time.Since(start))
		}
		time.AfterFunc(3*time.Second, func() { first.Hold.Release(1, false) })
		start = time.Now()
		_, third, err := d.Dial(t.Context(), to)
		if err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("error is %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, _, err = d.Dial(ctx, to); !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
		second.Hold.Release(1, false)
		third.Hold.Release(1, false)
		for a, n := range live(d, "db.default") {
			if n != 0 {
				t.Errorf("%s has %d connections", a, n)
			}
		}
	})
}

// Who found an endpoint dead and the others full has waited for a place, with a Plan or
// without. It is told that there was none, and of the one that is dead. That says nothing
// of whether the upstream can be reached.
func TestNoPlaceButDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := failing()
		e := &endpoints{answer: func(last int, _ context.Context) error { return dead(last) }}
		d := newDialer()
		d.connect = e.connect
		cfg := several(3)
		list := cfg.Upstream.Loadbalance.Endpoints
		list[1].MaxConnections, list[2].Backup = 1, true
		to := destination("db.default", cfg)
		words := func(what string, err error, want string) {
			t.Helper()
			if x, ok := errors.AsType[*Error](err); !ok || x.Reason != Limit || x.Words != want {
				t.Errorf("%s: %v, want %s", what, err, want)
			}
			if c := d.Reachable(to.Object); c.Status != "True" || c.Reason != "CONNECTED" {
				t.Errorf("%s: %+v", what, c)
			}
		}
		begun := d.Plan(to) // to the first; there is a place at the second
		_, second, err := d.Dial(t.Context(), to)
		if err != nil || begun == nil {
			t.Fatal(begun, err)
		}
		dead = failing(1)
		_, _, _, err = follow(begun, dead)
		const full = "192.0.2.2:80 has as many connections as it may (maxConnections); kept for when none of these serves: 192.0.2.3:80"
		const refused = "192.0.2.1:80: connection refused: nothing listens there; start the upstream, or correct the upstream's url"
		words("a Plan", err, "none of 2 endpoints can be had: "+full+"; "+refused)
		if d.Plan(to) != nil {
			t.Error("there is a Plan, and no place at the second")
		}
		start := time.Now()
		_, _, err = d.Dial(t.Context(), to)
		words("a dial", err, "none of 2 endpoints can be had: "+full+"; no place came free within 10s; "+refused)
		if took := time.Since(start); took != DefaultTimeout {
			t.Errorf("it waited for %v", took)
		}
		time.AfterFunc(time.Second, func() { second.Hold.Release(1, false) })
		if _, third, err := d.Dial(t.Context(), to); err != nil || third.Retries != 1 {
			t.Errorf("a place came free: %+v, %v", third, err)
		}
		// Without the dead one.
		list[0].URL = "tcp://192.0.2.4:80"
		list[0].MaxConnections = 1
		dead = failing()
		next := *cfg
		to.Config = &next
		if _, _, err := d.Dial(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		_, _, err = d.Dial(t.Context(), to)
		words("both full", err, "192.0.2.4:80, 192.0.2.2:80: all have as many connections as they may (maxConnections); kept for when none of these serves: 192.0.2.3:80; no place came free within 10s")
	})
}

// An address is said once: by who shows the words, or by them.
func TestWordsSayAddressesOnce(t *testing.T) {
	_, port := listen(t, "127.0.0.1:0")
	for name, c := range map[string]struct {
		url   string
		check api.HealthProbe
		words string // of the dial or, if there is one, of the check
		short string
	}{
		"an address": {url: "tcp://127.0.0.1:1", words: "127.0.0.1:1: connection refused: nothing listens there; start the upstream, or correct the upstream's url",
			short: "connection refused: nothing listens there; start the upstream, or correct the upstream's url"},
		"a name": {url: "tcp://db.corp:1", words: "db.corp:1: 127.0.0.1:1: connection refused: nothing listens there; start the upstream, or correct the upstream's url",
			short: "connection refused: nothing listens there; start the upstream, or correct the upstream's url"},
		"another port": {url: "tcp://127.0.0.1:" + port, check: api.HealthProbe{Port: 1}, words: "127.0.0.1:1: connection refused: nothing listens there; start the upstream, or correct health.check.port",
			short: "port 1: connection refused: nothing listens there; start the upstream, or correct health.check.port"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDialer()
			d.Hosts = named("db.corp", "127.0.0.1")
			cfg := config(c.url)
			cfg.Upstream.Health = &api.UpstreamHealth{Check: &c.check}
			c.check.UnhealthyAfter = 1
			to := destination("db.default", cfg)
			p, target := only(t, d, to)
			if e := d.probe(t.Context(), p, target, to); e == nil || e.Words != c.words {
				t.Errorf("%v, want %s", e, c.words)
			}
			d.ask(t.Context(), p, target, to)
			if s := d.Endpoints(to.Object); len(s) != 1 || s[0].Words != c.short {
				t.Errorf("%+v, want %s", s, c.short)
			}
			if c.check.Port == 0 {
				to.Config.Upstream.Health = nil
				other := destination("other", config(c.url))
				if _, _, err := d.Dial(t.Context(), other); err == nil || err.Error() != "upstream: "+c.words {
					t.Errorf("%v, want %s", err, c.words)
				}
			}
		})
	}
}

// Names that are in use are resolved again before their time is over.
func TestNamesAreRenewed(t *testing.T) {
	s := newNameServer(t)
	s.set("db.corp.", "A", "db.corp. 4 IN A 192.0.2.1")
	s.set("db.corp.", "AAAA", "corp. 60 IN SOA a. b. 1 1 1 1 60")
	d := newDialer()
	d.lookup = nil
	clock := machine(t, &d.names, s.port, "nameserver 127.0.0.1\n", "")
	e := &endpoints{answer: func(int, context.Context) error { return nil }}
	d.connect = e.connect
	to := destination("db.default", config("tcp://db.corp:80"))
	if _, _, err := d.Dial(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	s.took()
	p := d.place(&to)
	clock.pass(3 * time.Second)
	d.resolveAll(t.Context(), p, aheadTime)
	if got := s.took(); !slices.Equal(got, []string{"db.corp. a"}) && !slices.Equal(got, []string{"db.corp. A"}) {
		t.Errorf("asked %q", got)
	}
	clock.pass(3 * time.Second)
	if plan := d.Plan(to); plan == nil {
		t.Error("there is no Plan")
	} else {
		plan.Failure()
	}
	// While DNS fails, what is known holds as long as it did.
	s.change(func() { s.rcode = 2 })
	d.resolveAll(t.Context(), p, aheadTime)
	if plan := d.Plan(to); plan == nil {
		t.Error("there is no Plan while DNS fails")
	} else {
		plan.Failure()
	}
}

// answering returns the port of a listener that answers so, once connected.
func answering(t *testing.T, answer func(net.Conn)) string { return accepts(t, "127.0.0.1:0", answer) }

// The questions that there are, and all that may come of them.
func TestProbes(t *testing.T) {
	ca := newIssuer(t, "our CA")
	own := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, nil, "db.corp")}}
	over := func(answer func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			s := tls.Server(c, own)
			if s.Handshake() == nil {
				answer(s)
				s.Close()
			}
		}
	}
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	resets := func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }
	redis := func(c net.Conn) {
		if line, err := bufio.NewReader(c).ReadString('\n'); err == nil && line == "PING\r\n" {
			io.WriteString(c, "+PO")
			io.WriteString(c, "NG\r\n")
		}
	}
	web := func(status int, path, host string) func(net.Conn) {
		return func(c net.Conn) {
			r, err := http.ReadRequest(bufio.NewReader(c))
			switch {
			case err != nil || !r.Close || r.Method != "GET":
				io.WriteString(c, "HTTP/1.1 400 Bad\r\n\r\n")
			case path != "" && r.URL.String() != path || host != "" && r.Host != host:
				fmt.Fprintf(c, "HTTP/1.1 404 Not %s at %s\r\n\r\n", r.URL, r.Host)
			default:
				fmt.Fprintf(c, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 %d Fine\r\nContent-Length: 5\r\n\r\nhello", status)
			}
		}
	}
	endless := func(c net.Conn) {
		for chunk := strings.Repeat("x", 1000); ; {
			if _, err := io.WriteString(c, chunk); err != nil {
				return
			}
		}
	}
	trusted := &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}}
	ping := api.HealthProbe{Send: `PING\r\n`, Expect: "+PONG"}
	get := api.HealthProbe{Type: api.ProbeHTTP}
	const refusal = "nothing listens there"
	for name, c := range map[string]struct {
		answer func(net.Conn) // nil: nothing listens
		check  api.HealthProbe
		tls    *api.UpstreamTLS
		words  string // "" is that it serves
	}{
		"TCP":                 {silent, api.HealthProbe{}, nil, ""},
		"TCP, nobody":         {nil, api.HealthProbe{}, nil, refusal},
		"redis":               {redis, ping, nil, ""},
		"another answer":      {says("-LOADING\r\n"), ping, nil, `it answered "-LOADING\r\n", which does not have "+PONG" in it`},
		"silence":             {silent, ping, nil, "no answer as it is expected within 200ms"},
		"resets":              {resets, ping, nil, "reset by peer"},
		"it says little":      {func(c net.Conn) { io.WriteString(c, "220-"); silent(c) }, api.HealthProbe{Expect: "220 "}, nil, `it answered "220-", which does not have "220 " in it, within 200ms`},
		"a greeting":          {says("SSH-2.0-x\r\n"), api.HealthProbe{Expect: "SSH-2.0"}, nil, ""},
		"without end":         {endless, api.HealthProbe{Expect: "y", Timeout: ms(10000)}, nil, `which does not have "y" in it`},
		"TLS":                 {over(silent), api.HealthProbe{Type: api.ProbeTLS}, trusted, ""},
		"TLS and an answer":   {over(redis), api.HealthProbe{Type: api.ProbeTLS, Send: ping.Send, Expect: ping.Expect}, trusted, ""},
		"TLS of somebody":     {over(silent), api.HealthProbe{Type: api.ProbeTLS}, nil, "signed by an unknown authority"},
		"TLS, and no TLS":     {says("hello, world\r\n"), api.HealthProbe{Type: api.ProbeTLS}, trusted, "does not speak TLS (first record does not look like a TLS handshake); correct health.check.type, or health.check.port"},
		"TLS, and an echo":    {func(c net.Conn) { io.Copy(c, c) }, api.HealthProbe{Type: api.ProbeTLS}, trusted, "does not speak TLS (what it sends is not what a server begins with); correct health.check.type"},
		"TLS, and silence":    {silent, api.HealthProbe{Type: api.ProbeTLS}, trusted, "no answer to the TLS handshake within 200ms"},
		"HTTP":                {web(200, "/", ""), get, nil, ""},
		"HTTP, a redirection": {web(302, "/", ""), get, nil, ""},
		"HTTP, an error":      {web(503, "/", ""), get, nil, "answered GET / with status 503"},
		"HTTP, what is asked": {web(200, "/health?x=1", "www.corp"), api.HealthProbe{Type: api.ProbeHTTP, HTTP: &api.HTTPProbe{Path: "/health?x=1", Host: "www.corp"}}, nil, ""},
		"HTTP, another one":   {web(200, "/", ""), api.HealthProbe{Type: api.ProbeHTTP, HTTP: &api.HTTPProbe{Path: "/x"}}, nil, "status 404"},
		"HTTP, as wanted":     {web(401, "/", ""), api.HealthProbe{Type: api.ProbeHTTP, HTTP: &api.HTTPProbe{Statuses: []int{401}}}, nil, ""},
		"HTTP, as not wanted": {web(200, "/", ""), api.HealthProbe{Type: api.ProbeHTTP, HTTP: &api.HTTPProbe{Statuses: []int{401}}}, nil, "status 200"},
		"HTTP, silence":       {silent, get, nil, "no answer as it is expected within 200ms"},
		"HTTP, not at all":    {says("SSH-2.0-x\r\n"), get, nil, "which is no HTTP"},
		"HTTP, without end":   {endless, api.HealthProbe{Type: api.ProbeHTTP, Timeout: ms(10000)}, nil, "which is no HTTP"},
		"HTTPS":               {over(web(200, "/", "")), api.HealthProbe{Type: api.ProbeHTTPS}, &api.UpstreamTLS{TrustedCAs: trusted.TrustedCAs, ALPN: []string{"h2"}}, ""},
		"HTTPS, an error":     {over(web(500, "/", "")), api.HealthProbe{Type: api.ProbeHTTPS}, trusted, "status 500"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := "1"
			if c.answer != nil {
				port = answering(t, c.answer)
			}
			d := newDialer()
			d.Hosts = named("db.corp", "127.0.0.1")
			if c.check.Timeout == nil {
				if c.check.Timeout = ms(10000); strings.Contains(c.words, "200ms") {
					c.check.Timeout = ms(200)
				}
			}
			cfg := secured("tcp://db.corp:"+port, c.tls)
			cfg.Upstream.Health = &api.UpstreamHealth{Check: &c.check}
			to := destination("db.default", cfg)
			p, target := only(t, d, to)
			e := d.probe(t.Context(), p, target, to)
			if (e == nil) != (c.words == "") || e != nil && (!strings.Contains(e.Words, c.words) || !strings.HasPrefix(e.Words, "db.corp:"+port)) {
				t.Errorf("%v, want %q", e, c.words)
			}
		})
	}
}

// says answers so, whatever is asked, until the other side has gone.
func says(text string) func(net.Conn) {
	return func(c net.Conn) {
		io.WriteString(c, text)
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	}
}

// only returns the target of a destination that has one.
func only(t *testing.T, d *Dialer, to api.Destination) (*place, *balance.Target) {
	t.Helper()
	p := d.place(&to)
	if _, err := d.configure(p, to.Config); err != nil {
		t.Fatal(err)
	}
	d.resolveAll(t.Context(), p, 0)
	all := p.set.Targets()
	if len(all) != 1 || !all[0].Addr.IsValid() {
		t.Fatalf("there are %d targets", len(all))
	}
	return p, all[0]
}

// A question asks nothing that a connection may not be made to, tells of no client, and
// goes to the port that it says.
func TestProbesAreGuarded(t *testing.T) {
	_, port := listen(t, "127.0.0.1:0")
	d := newDialer()
	d.Loopback = false
	cfg := config("tcp://127.0.0.1:" + port)
	cfg.Upstream.Health = &api.UpstreamHealth{Check: &api.HealthProbe{}}
	to := destination("db.default", cfg)
	p, target := only(t, d, to)
	if e := d.probe(t.Context(), p, target, to); e == nil || !strings.Contains(e.Words, "spec.upstream.allow") {
		t.Errorf("error is %v", e)
	}

	heard := make(chan []byte, 10)
	header := answering(t, func(c net.Conn) {
		b := make([]byte, 100)
		n, _ := c.Read(b)
		heard <- b[:n]
	})
	d = newDialer()
	for version, want := range map[api.ProxyVersion]string{api.ProxyV1: "PROXY UNKNOWN\r\n", api.ProxyV2: ""} {
		cfg = config("tcp://127.0.0.1:" + header)
		cfg.Upstream.ProxyProtocol = version
		cfg.Upstream.Health = &api.UpstreamHealth{Check: &api.HealthProbe{}}
		to = destination(string(version), cfg)
		to.Facts = client()
		p, target = only(t, d, to)
		if e := d.probe(t.Context(), p, target, to); e != nil {
			t.Error(e)
		}
		got := <-heard
		if want != "" && string(got) != want {
			t.Errorf("%s: heard %q", version, got)
		}
		if h, _, err := proxyproto.Parse(got); err != nil || h == nil || h.Version == 2 && !h.Local || h.Source.IsValid() {
			t.Errorf("%s: heard %+v (%v)", version, h, err)
		}
	}
	// Another port, that wants no header.
	other := answering(t, func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil && strings.HasPrefix(r.Host, "127.0.0.1:") {
			io.WriteString(c, "HTTP/1.0 204 None\r\n\r\n")
		}
	})
	n := netip.MustParseAddrPort("127.0.0.1:" + other).Port()
	cfg.Upstream.Health.Check = &api.HealthProbe{Type: api.ProbeHTTP, Port: int(n)}
	if e := d.probe(t.Context(), p, target, to); e != nil {
		t.Error(e)
	}
}

// With real sockets and the real clock: one goes, and comes back.
func TestChecksOfListeners(t *testing.T) {
	l, port := listen(t, "127.0.0.1:0")
	d := newDialer()
	changes := make(chan api.HealthInfo, 10)
	d.Changed = func(_ api.Destination, h api.HealthInfo) { changes <- h }
	cfg := config("tcp://127.0.0.1:" + port)
	cfg.Upstream.Health = &api.UpstreamHealth{Check: &api.HealthProbe{Interval: ms(100), UnhealthyAfter: 1, Expect: "hello"}}
	running(t, d)
	d.Watch([]api.Destination{destination("db.default", cfg)})
	if h := <-changes; h.From != api.HealthUnknown || h.To != api.HealthHealthy || h.Address != "127.0.0.1:"+port || h.Endpoint != h.Address || h.Config != "" {
		t.Errorf("told %+v", h)
	}
	l.Close()
	if h := <-changes; h.To != api.HealthUnhealthy || !strings.Contains(h.Words, "nothing listens there") {
		t.Errorf("told %+v", h)
	}
}

// Whatever answers, it is read to an end, and what counts as a status is one.
func FuzzProbe(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 103 Early\r\nx: y\r\n\r\nHTTP/1.1 204 \r\n"))
	f.Add([]byte("+PONG\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		status, err := readStatus(strings.NewReader(string(b)))
		if (err == nil) != (status >= 200 && status < 600 || status == 101) {
			t.Fatalf("%q: %d, %v", b, status, err)
		}
		if got := expect(strings.NewReader(string(b)), []byte("+PONG")); (got == nil) != strings.Contains(string(b[:min(len(b), maxExpected)]), "+PONG") {
			t.Fatalf("%q: %v", b, got)
		}
	})
}
