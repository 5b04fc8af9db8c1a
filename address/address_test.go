package address

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cardea/api"
	"cardea/store"
	"cardea/store/memory"
)

var (
	begin = time.Unix(1_800_000_000, 0)
	wide  = api.ClusterNetwork{IPv4: "100.64.0.0/10", IPv6: "fd12:3456:789a::/48"}
	small = api.ClusterNetwork{IPv4: "10.9.8.0/24", IPv6: "fd12:3456:789a::/48"}
)

func mustPlan(t interface{ Fatal(...any) }, n api.ClusterNetwork) Plan {
	p, err := ParsePlan(n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlan(t *testing.T) {
	p := mustPlan(t, wide)
	for _, c := range []struct {
		what string
		got  any
		want string
	}{
		{"Services", p.Services(), "[100.64.0.0/12 fd12:3456:789a::/64]"},
		{"Sessions", p.Sessions(), "[100.80.0.0/12 100.96.0.0/11 fd12:3456:789a:1::/64]"},
		{"DNS", p.DNS(), "[100.64.0.1 fd12:3456:789a::1]"},
		{"the first Service", p.addresses(Services, p.part(Services).first), "{100.64.0.16 fd12:3456:789a::10}"},
		{"the last Service", p.addresses(Services, p.part(Services).last), "{100.79.255.255 fd12:3456:789a::f:ffff}"},
		{"the first Session", p.addresses(Sessions, p.part(Sessions).first), "{100.80.0.0 fd12:3456:789a:1::10:0}"},
		{"the last Session", p.addresses(Sessions, p.part(Sessions).last), "{100.127.255.254 fd12:3456:789a:1::3f:fffe}"},
		{"as stored", p.Network(), fmt.Sprint(wide)},
	} {
		if got := fmt.Sprint(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	for _, n := range []api.ClusterNetwork{
		{}, {IPv4: wide.IPv4}, {IPv6: wide.IPv6}, {IPv4: wide.IPv6, IPv6: wide.IPv4}, {IPv4: "10.0.0.0/7", IPv6: wide.IPv6},
		{IPv4: "10.0.0.0/25", IPv6: wide.IPv6}, {IPv4: "10.0.0.1/24", IPv6: wide.IPv6}, {IPv4: wide.IPv4, IPv6: "fd00::/47"},
		{IPv4: wide.IPv4, IPv6: "fd00::1/48"}, {IPv4: wide.IPv4, IPv6: "::ffff:10.0.0.0/120"},
	} {
		if p, err := ParsePlan(n); err == nil {
			t.Errorf("%v is the plan %v", n, p)
		}
	}
}

// TestPartsAreApart is about every plan: what is the cluster's, the Services' and the
// Sessions' have nothing in common, and an index is found from its addresses.
func TestPartsAreApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(8, 24).Draw(t, "bits")
		v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, rapid.Byte().Draw(t, "b"), rapid.Byte().Draw(t, "c"), 0}), bits).Masked()
		p := mustPlan(t, api.ClusterNetwork{IPv4: v4.String(), IPv6: wide.IPv6})
		for pool, own := range map[Pool][]netip.Prefix{Services: p.Services(), Sessions: p.Sessions()} {
			others := p.Sessions()
			if pool == Sessions {
				others = p.Services()
			}
			x := p.part(pool)
			i := rapid.Uint32Range(x.first, x.last).Draw(t, "index")
			a := p.addresses(pool, i)
			for _, text := range []string{a.IPv4, a.IPv6} {
				addr := netip.MustParseAddr(text)
				in := func(p netip.Prefix) bool { return p.Contains(addr) }
				if !slices.ContainsFunc(own, in) || slices.ContainsFunc(others, in) || slices.Contains(p.DNS(), addr) {
					t.Fatalf("%s of %s is in the wrong part of %v", addr, pool, p)
				}
			}
			if got, ok := p.index(pool, a); !ok || got != i {
				t.Fatalf("%v of %s is %d (%v), want %d", a, pool, got, ok, i)
			}
		}
	})
}

func TestDraw(t *testing.T) {
	p, err := Draw(bytes.NewReader([]byte{1, 2, 3, 4, 5, 6}))
	if err != nil || p.String() != "fd01:203:405::/48" {
		t.Errorf("drawn is %v, %v", p, err)
	}
	if _, err := Draw(bytes.NewReader([]byte{1, 2})); err == nil {
		t.Error("drawn from too little")
	}
}

// change runs f in a transaction.
func change(t interface{ Context() context.Context }, s store.Store, f func(store.Tx) error) error {
	_, err := s.Update(t.Context(), "tester", f)
	return err
}

// TestPool is about any sequence of taking, giving back and waiting.
func TestPool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := memory.New()
		defer s.Close()
		plan := mustPlan(t, small)
		pool := rapid.SampledFrom([]Pool{Services, Sessions}).Draw(t, "pool")
		part := plan.part(pool)
		size := int(part.last-part.first) + 1
		now := begin
		var had []api.Addresses
		freedAt := map[api.Addresses]time.Time{}
		waiting := func() (n int) {
			for _, at := range freedAt {
				if now.Before(at.Add(Quarantine)) {
					n++
				}
			}
			return n
		}
		do := func(f func(store.Tx) error) {
			if err := change(t, s, f); err != nil {
				t.Fatal(err)
			}
		}
		take := func() {
			var a api.Addresses
			err := change(t, s, func(tx store.Tx) (err error) {
				a, err = Take(tx, plan, pool, now)
				return err
			})
			if err != nil {
				if !api.HasCode(err, api.CodeUnavailable) || len(had)+waiting() != size {
					t.Fatalf("with %d in use and %d waiting of %d: %v", len(had), waiting(), size, err)
				}
				return
			}
			if at, ok := freedAt[a]; ok && now.Before(at.Add(Quarantine)) {
				t.Fatalf("%v was given back %v ago", a, now.Sub(at))
			}
			if slices.Contains(had, a) {
				t.Fatalf("%v is had already", a)
			}
			delete(freedAt, a)
			had = append(had, a)
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(*rapid.T) { take() },
			"take many": func(t *rapid.T) {
				for range rapid.IntRange(1, 100).Draw(t, "n") {
					take()
				}
			},
			"release": func(t *rapid.T) {
				if len(had) == 0 {
					t.Skip("nothing to give back")
				}
				i := rapid.IntRange(0, len(had)-1).Draw(t, "which")
				a := had[i]
				had = slices.Delete(had, i, i+1)
				do(func(tx store.Tx) error { return Release(tx, plan, pool, a, now) })
				freedAt[a] = now
			},
			"wait": func(t *rapid.T) { now = now.Add(time.Duration(rapid.IntRange(1, 700).Draw(t, "s")) * time.Second) },
			"what fails takes nothing": func(*rapid.T) {
				change(t, s, func(tx store.Tx) error {
					if _, err := Take(tx, plan, pool, now); err != nil {
						return err
					}
					return fmt.Errorf("no")
				})
			},
		})
	})
}

// What waits to be given again is all that is kept of what was given back.
func TestPoolDoesNotGrow(t *testing.T) {
	s := memory.New()
	defer s.Close()
	plan, now := mustPlan(t, wide), begin
	for range 100 {
		err := change(t, s, func(tx store.Tx) error {
			for range 10 {
				a, err := Take(tx, plan, Sessions, now)
				if err != nil {
					return err
				}
				if err := Release(tx, plan, Sessions, a, now); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(Quarantine)
	}
	n := 0
	s.View(t.Context(), func(r store.Reader) error {
		for range r.List(Group, "") {
			n++
		}
		return nil
	})
	if n != 11 {
		t.Errorf("%d Objects are kept, want the pool and 10", n)
	}
}

func TestExhausted(t *testing.T) {
	s := memory.New()
	defer s.Close()
	plan := mustPlan(t, small)
	err := change(t, s, func(tx store.Tx) error {
		for i := 0; ; i++ {
			a, err := Take(tx, plan, Services, begin)
			if err != nil {
				return err
			}
			if i%2 == 0 {
				if err := Release(tx, plan, Services, a, begin); err != nil {
					return err
				}
			}
		}
	})
	e, ok := err.(*api.Error)
	if !ok || e.Code != api.CodeUnavailable || !strings.Contains(e.Message, "of the 48 that") || !strings.Contains(e.Message, "24 are in use and 24 were in use within") || !strings.Contains(e.Hint, "10.9.8.0") {
		t.Errorf("exhausted is %v (%+v)", err, e)
	}
}

func TestReplan(t *testing.T) {
	with := func(v4, v6 string) api.ClusterNetwork { return api.ClusterNetwork{IPv4: v4, IPv6: v6} }
	const v6 = "fd12:3456:789a::/48"
	from := with("10.8.0.0/16", v6)
	for _, c := range []struct {
		name               string
		services, sessions int
		freed              bool // they were given back, just now
		wait               time.Duration
		to                 api.ClusterNetwork
		want               string // in what is said; "" is that it can be
	}{
		{"the same", 1, 1, false, 0, from, ""},
		{"nothing is in use", 0, 0, false, 0, with("10.1.2.0/24", "fd00::/48"), ""},
		{"wider, with Services", 3, 0, false, 0, with("10.8.0.0/13", v6), ""},
		{"wider, with Sessions", 0, 2, false, 0, with("10.8.0.0/13", v6), "2 Sessions have addresses in 10.8.0.0/16"},
		{"narrower", 3, 0, false, 0, with("10.8.0.0/17", v6), "begin at 10.8.0.0 and be wider"},
		{"elsewhere", 3, 0, false, 0, with("10.0.0.0/8", v6), "begin at 10.8.0.0 and be wider"},
		{"another IPv6, with Services", 3, 0, false, 0, with("10.8.0.0/16", "fd00::/48"), "3 Services have addresses in " + v6},
		{"another IPv6, with Sessions", 0, 1, false, 0, with("10.8.0.0/16", "fd00::/48"), "1 Sessions have"},
		{"just given back", 2, 0, true, Quarantine - time.Second, with("10.1.2.0/24", v6), "within the last 10 minutes"},
		{"Sessions', just given back", 0, 2, true, 0, with("10.8.0.0/13", v6), "within the last 10 minutes"},
		{"given back long ago", 2, 2, true, Quarantine, with("10.1.2.0/24", v6), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := memory.New()
			defer s.Close()
			was, is := mustPlan(t, from), mustPlan(t, c.to)
			var had []api.Addresses
			var why string
			err := change(t, s, func(tx store.Tx) error {
				for pool, n := range map[Pool]int{Services: c.services, Sessions: c.sessions} {
					for range n {
						a, err := Take(tx, was, pool, begin)
						if err != nil {
							return err
						}
						if c.freed {
							err = Release(tx, was, pool, a, begin)
						} else if pool == Services {
							had = append(had, a)
						}
						if err != nil {
							return err
						}
					}
				}
				var err error
				why, err = Replan(tx, was, is, begin.Add(c.wait))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
				t.Fatalf("said is %q, want %q", why, c.want)
			}
			if why != "" {
				return
			}
			// Both pools give what the new plan has, and nothing that is had.
			err = change(t, s, func(tx store.Tx) error {
				for _, pool := range []Pool{Services, Sessions} {
					a, err := Take(tx, is, pool, begin.Add(c.wait))
					if err != nil {
						return err
					}
					if _, ok := is.index(pool, a); !ok || slices.Contains(had, a) {
						return fmt.Errorf("%s: %v was given, with %v in use", pool, a, had)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// What is no address of the pool is not given to anybody because it was given back.
func TestReleaseOfOthers(t *testing.T) {
	s := memory.New()
	defer s.Close()
	plan := mustPlan(t, small)
	err := change(t, s, func(tx store.Tx) error {
		a, err := Take(tx, plan, Services, begin)
		if err != nil {
			return err
		}
		for _, x := range []api.Addresses{{}, {IPv4: "192.0.2.1", IPv6: "fd00::1"}, {IPv4: "10.9.8.1", IPv6: "fd12:3456:789a::1"},
			{IPv4: a.IPv4, IPv6: "fd12:3456:789a::11"}, {IPv4: "10.9.8.63", IPv6: "fd12:3456:789a::3f"}} {
			if err := Release(tx, plan, Services, x, begin); err != nil {
				return err
			}
		}
		if st, err := read(tx, Services); err != nil || st.Used != 1 || st.Tail != 0 {
			return fmt.Errorf("%+v, %v", st, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestKeys(t *testing.T) {
	s := memory.New()
	defer s.Close()
	for _, c := range []struct {
		do   func(store.Tx) error
		code api.Code
	}{
		{func(tx store.Tx) error { return TakeKey(tx, "k1", "a") }, ""},
		{func(tx store.Tx) error { return TakeKey(tx, "k1", "a") }, ""},
		{func(tx store.Tx) error { return TakeKey(tx, "k1", "b") }, api.CodeConflict},
		{func(tx store.Tx) error { return ReleaseKey(tx, "k1", "b") }, ""},
		{func(tx store.Tx) error { return TakeKey(tx, "k1", "b") }, api.CodeConflict},
		{func(tx store.Tx) error { return ReleaseKey(tx, "", "a") }, ""},
		{func(tx store.Tx) error { return ReleaseKey(tx, "k1", "a") }, ""},
		{func(tx store.Tx) error { return ReleaseKey(tx, "k1", "a") }, ""},
		{func(tx store.Tx) error { return TakeKey(tx, "k1", "b") }, ""},
	} {
		if err := change(t, s, c.do); (err == nil) != (c.code == "") || err != nil && !api.HasCode(err, c.code) {
			t.Fatalf("got %v, want %q", err, c.code)
		}
	}
}
