package storetest

import (
	"fmt"
	"iter"
	"net/netip"
	"sync"
	"testing"
	"time"

	"cardea/address"
	"cardea/api"
	"cardea/store"
)

// Sizes of a large cluster, and of one where computing is slow.
const (
	manyServices, manySessions = 100_000, 1_000_000
	fewServices, fewSessions   = 1_000, 10_000
	fewFreed                   = 500 // each may be a round trip to a database
)

// addressBegin is when the first address is given.
var addressBegin = time.Unix(1_800_000_000, 0)

// A given is who has, or had, an address: of IPv4, as that of IPv6 goes with it.
type given struct {
	plan address.Plan
	has  map[netip.Addr]bool // false: it was given back
}

func newGiven(t tb) *given {
	plan, err := address.ParsePlan(api.ClusterNetwork{IPv4: api.DefaultIPv4Network, IPv6: "fd12:3456:789a::/48"})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return &given{plan, map[netip.Addr]bool{}}
}

// take takes n addresses, in transactions of some thousands, and returns them. None may
// cost more than a few operations, however many were given before.
func (g *given) take(t tb, s store.Store, pool address.Pool, n int, now time.Time) (all []api.Addresses) {
	t.Helper()
	const batch, most = 5_000, 6
	for len(all) < n {
		var some []api.Addresses
		update(t, s, func(tx store.Tx) error {
			some = some[:0]
			for range min(batch, n-len(all)) {
				counted := &countedTx{Tx: tx}
				a, err := address.Take(counted, g.plan, pool, now)
				if err != nil {
					return err
				}
				if counted.n > most {
					return fmt.Errorf("to take an address of %s costs %d operations, more than %d", pool, counted.n, most)
				}
				some = append(some, a)
			}
			return nil
		})
		for _, a := range some {
			addr, err := netip.ParseAddr(a.IPv4)
			if err != nil {
				t.Fatalf("%v", err)
			}
			if g.has[addr] {
				t.Fatalf("%s of %s was given twice", addr, pool)
			}
			g.has[addr] = true
		}
		all = append(all, some...)
	}
	return all
}

// release gives addresses back.
func (g *given) release(t tb, s store.Store, pool address.Pool, all []api.Addresses, now time.Time) {
	t.Helper()
	update(t, s, func(tx store.Tx) error {
		for _, a := range all {
			if err := address.Release(tx, g.plan, pool, a, now); err != nil {
				return err
			}
		}
		return nil
	})
	for _, a := range all {
		g.has[netip.MustParseAddr(a.IPv4)] = false
	}
}

// A countedTx counts what is asked of a transaction. To list is more than it allows: that
// costs more with each Object.
type countedTx struct {
	store.Tx
	n int
}

func (c *countedTx) Get(k api.Key) (store.Record, error) { c.n++; return c.Tx.Get(k) }
func (c *countedTx) Put(r store.Record) error            { c.n++; return c.Tx.Put(r) }
func (c *countedTx) Delete(k api.Key) error              { c.n++; return c.Tx.Delete(k) }

func (c *countedTx) List(group, kind string) iter.Seq2[store.Record, error] {
	c.n += 1000
	return c.Tx.List(group, kind)
}
func (c *countedTx) ListAfter(k api.Key) iter.Seq2[store.Record, error] {
	c.n += 1000
	return c.Tx.ListAfter(k)
}
func (c *countedTx) All() iter.Seq2[store.Record, error] { c.n += 1000; return c.Tx.All() }

// manyAddresses is about a large cluster: none is given twice, nor within the quarantine.
func manyAddresses(t *testing.T, s store.Store) {
	services, sessions := manyServices, manySessions
	if testing.Short() || underRace {
		services, sessions = fewServices, fewSessions
	}
	g, now := newGiven(t), addressBegin
	for pool, n := range map[address.Pool]int{address.Services: services, address.Sessions: sessions} {
		had := g.take(t, s, pool, n, now)
		back := had[:fewFreed]
		g.release(t, s, pool, back, now)
		for _, a := range g.take(t, s, pool, fewFreed, now.Add(address.Quarantine-time.Second)) {
			if a == back[0] {
				t.Fatalf("%v was given within the quarantine", a)
			}
		}
		again := g.take(t, s, pool, fewFreed, now.Add(address.Quarantine))
		for i, a := range again {
			if a != back[i] {
				t.Fatalf("after the quarantine %v was given, want %v", a, back[i])
			}
		}
	}
}

// addressesAtOnce is about writers who do not know of each other.
func addressesAtOnce(t *testing.T, s store.Store) {
	g := newGiven(t)
	var mu sync.Mutex
	var all []api.Addresses
	var takers sync.WaitGroup
	for range 8 {
		takers.Go(func() {
			for range 10 {
				var a api.Addresses
				_, err := s.Update(t.Context(), "taker", func(tx store.Tx) (err error) {
					a, err = address.Take(tx, g.plan, address.Sessions, addressBegin)
					return err
				})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, a)
				mu.Unlock()
			}
		})
	}
	takers.Wait()
	seen := map[api.Addresses]bool{}
	for _, a := range all {
		if seen[a] {
			t.Errorf("%v was given twice", a)
		}
		seen[a] = true
	}
	if len(all) != 80 {
		t.Errorf("%d were given, want 80", len(all))
	}
}

// addressesSurvive is about who has which after the store was opened again.
func addressesSurvive(t *testing.T, open func(*testing.T, string) store.Store) {
	dir := t.TempDir()
	g := newGiven(t)
	var back []api.Addresses
	for round := range 3 {
		s := open(t, dir)
		now := addressBegin.Add(time.Duration(round) * address.Quarantine)
		had := g.take(t, s, address.Services, 20, now)
		for i, a := range back {
			if had[i] != a {
				t.Errorf("round %d: %v was given, want %v, which has waited", round, had[i], a)
			}
		}
		back = had[:7]
		g.release(t, s, address.Services, back, now)
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}
