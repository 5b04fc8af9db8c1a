package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"cardea/api"
	"cardea/upstream/balance"
)

// tries are the addresses that were tried, in order; none answers but the good.
type tries struct {
	mu   sync.Mutex
	all  []netip.Addr
	good func(netip.Addr) bool
}

func (x *tries) connect(_ context.Context, at netip.AddrPort) (net.Conn, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.all = append(x.all, at.Addr())
	if !x.good(at.Addr()) {
		return nil, syscall.ECONNREFUSED
	}
	return pipeTo{to: at}, nil
}

func (x *tries) took() []netip.Addr {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.all
	x.all = nil
	return all
}

// addresses returns so many addresses of each family, in any order.
func addresses(v4, v6 int) (out []string) {
	for i := range v4 {
		out = append(out, fmt.Sprintf("192.0.2.%d", i+1))
	}
	for i := range v6 {
		out = append(out, fmt.Sprintf("2001:db8::%d", i+1))
	}
	return out
}

// fairly fails unless each address of the family that is begun with has its share.
func fairly(t interface{ Fatalf(string, ...any) }, first map[netip.Addr]int, n, k int) {
	if len(first) > k || n >= k && len(first) != k {
		t.Fatalf("of %d addresses %d dials begin with %v", k, n, first)
	}
	for a, got := range first {
		if got < n/k-1 || got > n/k+1 {
			t.Fatalf("%d of %d dials begin with %s: %v", got, n, a, first)
		}
	}
}

// n dials over k addresses begin n/k times with each, whatever other names and configs
// there are; the family that is preferred stays so, and all are tried in the end.
func TestAddressesTakeTurns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v4, v6 := rapid.IntRange(1, 20).Draw(t, "IPv4"), rapid.IntRange(1, 20).Draw(t, "IPv6")
		families := rapid.SampledFrom([][]api.IPFamily{{api.IPv4}, {api.IPv6}, {api.IPv4, api.IPv6}, {api.IPv6, api.IPv4}}).Draw(t, "families")
		list := rapid.Permutation(addresses(v4, v6)).Draw(t, "addresses")
		d := newDialer()
		d.Hosts = func() map[string][]string { return map[string][]string{"db.corp": list, "web.corp": list} }
		first := map[string]map[netip.Addr]int{}
		x := &tries{good: func(netip.Addr) bool { return true }}
		d.connect = x.connect
		count := map[string]int{}
		for range rapid.IntRange(1, 150).Draw(t, "dials") {
			// One config with two names, which take turns themselves, and another.
			service := rapid.SampledFrom([]string{"one", "two"}).Draw(t, "service")
			cfg := config("tcp://db.corp:80")
			if service == "two" {
				cfg.Upstream = api.Upstream{Loadbalance: &api.Loadbalance{Endpoints: []api.UpstreamEndpoint{{URL: "tcp://db.corp:80"}, {URL: "tcp://web.corp:81"}}}}
			}
			cfg.Upstream.Families = families
			if _, err := dialTo(d, t.Context(), service, cfg); err != nil {
				t.Fatal(err)
			}
			if service == "two" {
				service += fmt.Sprint(count["two"] % 2)
				count["two"]++
			}
			if first[service] == nil {
				first[service] = map[netip.Addr]int{}
			}
			first[service][x.took()[0]]++
			count[service]++
		}
		k := v4
		if families[0] == api.IPv6 {
			k = v6
		}
		for service, m := range first {
			for a := range m {
				if a.Is4() != (families[0] == api.IPv4) {
					t.Fatalf("begins with %s, and the families are %v", a, families)
				}
			}
			fairly(t, m, count[service], k)
		}
		x.good = func(netip.Addr) bool { return false }
		cfg := config("tcp://db.corp:80")
		cfg.Upstream.Families = families
		dialTo(d, t.Context(), "one", cfg)
		all := x.took()
		want := k
		if len(families) == 2 {
			want = v4 + v6
		}
		if slices.SortFunc(all, netip.Addr.Compare); len(slices.Compact(all)) != min(want, balance.MaxOfHost) {
			t.Fatalf("of %d addresses were tried %v", want, all)
		}
	})
}

// So they do where /etc/hosts has them, and DNS, within the time of an answer.
func TestResolvedAddressesTakeTurns(t *testing.T) {
	s := newNameServer(t)
	s.set("db.corp.", "A", addresses(3, 0)...)
	s.set("db.corp.", "AAAA")
	d := newDialer()
	d.lookup = nil
	machine(t, &d.names, s.port, "nameserver 127.0.0.1\n", "192.0.2.1 file\n192.0.2.2 file\n192.0.2.3 file\n")
	x := &tries{good: func(netip.Addr) bool { return true }}
	d.connect = x.connect
	for _, host := range []string{"db.corp", "file"} {
		first := map[netip.Addr]int{}
		for range 100 {
			if _, err := d.DialContext(t.Context(), "tcp", host+":80"); err != nil {
				t.Fatal(err)
			}
			first[x.took()[0]]++
		}
		fairly(t, first, 100, 3)
	}
}

// Where more configs are in use than are remembered, addresses have their share all
// the same.
func TestTurnsAreBounded(t *testing.T) {
	d := newDialer()
	x := &tries{good: func(netip.Addr) bool { return true }}
	d.connect = x.connect
	d.Hosts = named("db.corp", "192.0.2.1", "192.0.2.2")
	for i := range 4 * maxPlaces {
		_, report, err := d.Dial(t.Context(), destination(fmt.Sprint(i%(2*maxPlaces)), config("tcp://db.corp:80")))
		if err != nil {
			t.Fatal(err)
		}
		report.Hold.Release(1, false)
	}
	first := map[netip.Addr]int{}
	for _, a := range x.took() {
		first[a]++
	}
	for a, n := range first {
		if n < maxPlaces {
			t.Errorf("%s is begun with %d times of %d", a, n, 4*maxPlaces)
		}
	}
	if n := len(d.places); n > maxPlaces {
		t.Errorf("%d configs are remembered", n)
	}
}

// A name that has addresses of the wrong family is not one that is not there.
func TestOnlyTheOtherFamily(t *testing.T) {
	s := newNameServer(t)
	s.set("six.corp.", "AAAA", "2001:db8::1")
	s.set("six.corp.", "A")
	s.set("four.corp.", "A", "192.0.2.1")
	s.set("four.corp.", "AAAA")
	d := newDialer()
	d.lookup = nil
	d.Hosts = named("listed.corp", "2001:db8::1")
	machine(t, &d.names, s.port, "nameserver 127.0.0.1\n", "")
	for _, c := range []struct {
		host   string
		family api.IPFamily
		words  string // "" is that there is none
	}{{"six.corp", api.IPv4, "no IPv4 address"}, {"listed.corp", api.IPv4, "no IPv4 address"}, {"four.corp", api.IPv6, "no IPv6 address"}, {"none.corp", api.IPv4, ""}} {
		for _, to := range []api.Destination{destination("db.default", config("tcp://"+c.host+":80")), mapping("80", nil)} {
			foreign := to.Object.Group == api.GroupAmbassador
			to.Config = config("tcp://" + c.host + ":80")
			to.Config.Upstream.Families = []api.IPFamily{c.family}
			_, _, err := d.Dial(t.Context(), to)
			e, _ := errors.AsType[*Error](err)
			want := []string{c.words, "spec.config.upstream.families is [" + string(c.family) + "]"}
			switch {
			case c.words == "" && foreign:
				want = []string{"no such host", "correct service, "}
			case c.words == "":
				want = []string{"no such host", "correct the upstream's url"}
			case foreign:
				want = []string{c.words, "[" + string(c.family) + "]", "enable_ipv4 and enable_ipv6"}
			}
			for _, w := range want {
				if e == nil || e.Reason != DialFailed || !strings.Contains(e.Words, w) {
					t.Errorf("%s: %v, want %q", c.host, err, w)
				}
			}
			if e != nil && (foreign && strings.Contains(e.Words, "url") || c.words != "" && strings.Contains(e.Words, "no such host")) {
				t.Errorf("%s: %v", c.host, err)
			}
		}
	}
}
