package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
)

// follow makes the connections of a Plan as answer says, and returns the last numbers
// of the addresses that were tried. report is that of Connected, or of Failure.
func follow(p *Plan, answer func(last int) error) (tried []int, within []time.Duration, report api.DialReport, err error) {
	var failed error
	for {
		at, time, ok := p.Next(failed)
		if !ok {
			report, err = p.Failure()
			return tried, within, report, err
		}
		last := int(at.Addr().As16()[15])
		tried, within = append(tried, last), append(within, time)
		if failed = answer(last); failed == nil {
			_, report = p.Connected(netip.AddrPort{})
			return tried, within, report, nil
		}
	}
}

// live is how many connections each endpoint of a Service has.
func live(d *Dialer, service string) map[string]int {
	out := map[string]int{}
	for _, e := range d.Endpoints(destination(service, nil).Object) {
		out[e.Address] += e.Connections
	}
	return out
}

// Plans and dials take turns with each other, over the same endpoints.
func TestPlan(t *testing.T) {
	d := newDialer()
	e := &endpoints{answer: func(int, context.Context) error { return nil }}
	d.connect = e.connect
	to := destination("db.default", several(3))
	var all []int
	for i := range 9 {
		if i%3 == 2 {
			if _, _, err := d.Dial(t.Context(), to); err != nil {
				t.Fatal(err)
			}
			all = append(all, e.took()...)
			continue
		}
		tried, within, report, err := follow(d.Plan(to), func(int) error { return nil })
		if err != nil || report.Retries != 0 || report.Hold == nil || len(within) != 1 || within[0] > DefaultTimeout/3+time.Millisecond {
			t.Fatalf("%v, %v: %+v, %v", tried, within, report, err)
		}
		all = append(all, tried...)
	}
	if !slices.Equal(all, []int{1, 2, 3, 1, 2, 3, 1, 2, 3}) {
		t.Errorf("tried %v", all)
	}
	for a, n := range live(d, "db.default") {
		if n != 3 {
			t.Errorf("%s has %d connections", a, n)
		}
	}
	if c := d.Reachable(to.Object); c == nil || c.Status != "True" {
		t.Errorf("the condition is %+v", c)
	}
	if s := d.Stats(); len(s) != 3 || s[0].Dialled != 3 {
		t.Errorf("the figures are %+v", s)
	}
}

// What fails is retried elsewhere, as Dial does, and told in the same words.
func TestPlanFails(t *testing.T) {
	for name, c := range map[string]struct {
		cfg     *api.ServiceConfig
		answer  func(last int) error
		tried   []int
		retries int
		reason  string // "" is a connection
		words   []string
	}{
		"the first fails":      {several(3), failing(1), []int{1, 2}, 1, "", nil},
		"all fail":             {several(3), failing(1, 2, 3), []int{1, 2, 3}, 2, DialFailed, []string{"none of 3 endpoints can be had", "192.0.2.2:80", "nothing listens there"}},
		"one alone fails":      {several(1), failing(1), []int{1}, 0, DialFailed, []string{"192.0.2.1:80", "nothing listens there"}},
		"one alone is refused": {config("tcp://169.254.169.254:80"), failing(), nil, 0, DialFailed, []string{"link-local", "spec.upstream.allow"}},
		"all hang": {several(2), func(int) error { return syscall.ETIMEDOUT }, []int{1, 2}, 1, DialTimeout,
			[]string{"no answer within 5s"}},
		"all hang, as package net may say": {several(2), func(int) error { return os.ErrDeadlineExceeded }, []int{1, 2}, 1, DialTimeout,
			[]string{"no answer within 5s"}},
		"no more retries": {retries(several(3), 1), failing(1, 2, 3), []int{1, 2}, 1, DialFailed, []string{"none of 3", "for 1 more loadbalance.retries leaves no try"}},
		"no retries":      {retries(several(3), 0), failing(1), []int{1}, 0, DialFailed, []string{"for 2 more loadbalance.retries"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDialer()
				to := destination("db.default", c.cfg)
				tried, _, report, err := follow(d.Plan(to), c.answer)
				x, failed := errors.AsType[*Error](err)
				if !slices.Equal(tried, c.tried) || report.Retries != c.retries || failed != (c.reason != "") || failed && x.CloseReason() != c.reason {
					t.Fatalf("tried %v: %+v, %v", tried, report, err)
				}
				for _, w := range c.words {
					if !strings.Contains(x.Words, w) {
						t.Errorf("the words are %q, and %q is not in them", x.Words, w)
					}
				}
				sum := 0
				for _, n := range live(d, "db.default") {
					sum += n
				}
				if failed != (sum == 0) || (d.Reachable(to.Object).Status == "True") == failed {
					t.Errorf("%d connections; %+v", sum, d.Reachable(to.Object))
				}
			})
		})
	}
}

func failing(bad ...int) func(int) error {
	return func(last int) error {
		if slices.Contains(bad, last) {
			return syscall.ECONNREFUSED
		}
		return nil
	}
}

func retries(cfg *api.ServiceConfig, n int) *api.ServiceConfig {
	cfg.Upstream.Loadbalance.Retries = &n
	return cfg
}

// Where more is to be done than to connect there is no Plan.
func TestNoPlan(t *testing.T) {
	secure := several(1)
	secure.TLS = new(api.UpstreamTLS)
	start := several(1)
	start.Upstream.StartTLS = api.StartTLSPostgres
	d := newDialer()
	d.Hosts = named("listed.corp", "192.0.2.1")
	for name, cfg := range map[string]*api.ServiceConfig{
		"TLS": secure, "tls://": config("tls://192.0.2.1:80"), "STARTTLS": start, "a name": config("tcp://db.corp:80"), "SRV": config("tcp://_pg._tcp.db.corp"),
		"nothing": config(""), "no config": nil,
	} {
		if d.Plan(destination(name, cfg)) != nil {
			t.Errorf("%s: there is a Plan", name)
		}
	}
}

// A name has a Plan once it is known, and while that holds; one with several addresses
// once they are known to answer.
func TestPlanOfNames(t *testing.T) {
	s := newNameServer(t)
	s.set("db.corp.", "A", "db.corp. 3 IN A 192.0.2.1")
	s.set("db.corp.", "AAAA", "corp. 3 IN SOA a. b. 1 1 1 1 3")
	s.set("two.corp.", "A", "two.corp. 3 IN A 192.0.2.1", "two.corp. 3 IN A 192.0.2.2")
	s.set("two.corp.", "AAAA", "corp. 3 IN SOA a. b. 1 1 1 1 3")
	d := newDialer()
	d.lookup = nil
	clock := machine(t, &d.names, s.port, "nameserver 127.0.0.1\n", "")
	e := &endpoints{answer: func(int, context.Context) error { return nil }}
	d.connect = e.connect
	has := func(to api.Destination, want bool) {
		t.Helper()
		p := d.Plan(to)
		if (p != nil) != want {
			t.Errorf("%s: a Plan: %v", to.Service, p != nil)
		}
		if p != nil {
			p.Failure()
		}
	}
	one := destination("one", config("tcp://db.corp:80"))
	two := destination("two", config("tcp://two.corp:80"))
	for i := range 2 {
		for _, to := range []api.Destination{one, two} {
			has(to, false)
			if _, _, err := d.Dial(t.Context(), to); err != nil {
				t.Fatal(err)
			}
		}
		has(one, true)
		has(two, i > 0) // the other address is not known to answer
		if _, _, err := d.Dial(t.Context(), two); err != nil {
			t.Fatal(err)
		}
		has(two, true)
		clock.pass(3 * time.Second)
	}
	// What Hosts says holds while it says so.
	hosts := map[string][]string{"db.corp": {"192.0.2.7"}}
	d.Hosts = func() map[string][]string { return hosts }
	has(one, false)
	if _, _, err := d.Dial(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	has(one, true)
	hosts = map[string][]string{"db.corp": {"192.0.2.8"}}
	has(one, false)
	// And one that does not answer is not relied upon.
	d.Hosts = newDialer().Hosts
	d.Dial(t.Context(), two)
	for range 2 {
		if p := d.Plan(two); p != nil {
			follow(p, func(int) error { return syscall.ETIMEDOUT })
		}
	}
	has(two, false)
}

// A Plan that is given up leaves nothing behind.
func TestPlanGivenUp(t *testing.T) {
	d := newDialer()
	to := destination("db.default", several(2))
	for i := range 3 {
		p := d.Plan(to)
		for j := range i {
			p.Next([]error{nil, syscall.ECONNREFUSED}[j])
		}
		if _, err := p.Failure(); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
	}
	for a, n := range live(d, "db.default") {
		if n != 0 {
			t.Errorf("%s has %d connections", a, n)
		}
	}
	if len(d.Stats()) != 1 { // the one that was tried twice had failed
		t.Errorf("the figures are %+v", d.Stats())
	}
}

// The upstream is told who the client is.
func TestPlanPreface(t *testing.T) {
	d := newDialer()
	cfg := several(1)
	cfg.Upstream.ProxyProtocol = api.ProxyV1
	to := destination("db.default", cfg)
	to.Facts = client()
	p := d.Plan(to)
	p.Next(nil)
	if b, _ := p.Connected(netip.AddrPort{}); string(b) != "PROXY TCP4 192.0.2.7 198.51.100.1 40001 443\r\n" {
		t.Errorf("the header is %q", b)
	}
}

// What an upstream may not be is not planned either, whatever the name says later.
func TestPlanIsGuarded(t *testing.T) {
	d := newDialer()
	d.Loopback = false
	var log strings.Builder
	d.Log = slog.New(slog.NewTextHandler(&log, nil))
	cfg := config("")
	cfg.Upstream.Loadbalance = &api.Loadbalance{Endpoints: []api.UpstreamEndpoint{{URL: "tcp://127.0.0.1:80"}, {URL: "tcp://192.0.2.2:80"}}}
	tried, _, _, err := follow(d.Plan(destination("db.default", cfg)), func(int) error { return nil })
	if err != nil || !slices.Equal(tried, []int{2}) || !strings.Contains(log.String(), "loopback") {
		t.Errorf("tried %v, %v; the log says %s", tried, err, log.String())
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		for _, algorithm := range []api.Balance{api.BalanceRoundRobin, api.BalanceLeastConnections, api.BalanceSourceHash} {
			b.Run(fmt.Sprintf("%s/%d", algorithm, n), func(b *testing.B) {
				d := newDialer()
				d.Own = own("127.0.0.1:8443", "0.0.0.0:443")
				cfg := several(n)
				cfg.Upstream.Loadbalance.Algorithm = algorithm
				to := destination("db.default", cfg)
				to.Facts = client()
				b.ReportAllocs()
				for b.Loop() {
					p := d.Plan(to)
					p.Next(nil)
					_, report := p.Connected(netip.AddrPort{})
					report.Hold.Release(1, false)
				}
			})
		}
	}
}
