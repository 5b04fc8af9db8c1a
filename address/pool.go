package address

import (
	"encoding/json"
	"fmt"
	"time"

	"cardea/api"
	"cardea/store"
)

// Group is the group of the Objects in which the store keeps who has which address.
// They are no kinds of the API: nobody lists, writes or decides on them; a backup has
// them.
const Group = "internal.cardea"

// The kinds of Objects of Group.
const (
	kindPool  = "AddressPool"
	kindFreed = "FreedAddress"
	kindKey   = "WireGuardKey"
)

// A Pool is those who are given addresses of one part of a plan.
type Pool string

// The pools.
const (
	Services Pool = "services"
	Sessions Pool = "sessions"
)

// Quarantine is for how long an address that was given back is given to nobody: what is
// still on its way to who had it reaches nobody else, and no answer that a resolver has
// kept, or log that somebody reads, names another.
const Quarantine = 10 * time.Minute

// A state is what the store keeps of a Pool. Addresses that were given back wait in a
// queue: the one at place Head is the next to be given again, and a new one goes to place
// Tail.
type state struct {
	Next uint32 `json:"next"` // the least index that was never given
	Head uint64 `json:"head"`
	Tail uint64 `json:"tail"`
	Used uint32 `json:"used"` // how many have one
}

// A freed is an address in the queue.
type freed struct {
	Index uint32    `json:"index"`
	At    time.Time `json:"at"`
}

// Take gives away addresses of a pool that nobody has and nobody had within Quarantine.
// It costs the same however many are given. If there are none left, the error is an
// UNAVAILABLE that says what to do.
func Take(tx store.Tx, plan Plan, pool Pool, now time.Time) (api.Addresses, error) {
	s, err := read(tx, pool)
	if err != nil {
		return api.Addresses{}, err
	}
	part := plan.part(pool)
	index, ok, err := s.again(tx, pool, part, now)
	if err != nil {
		return api.Addresses{}, err
	}
	if !ok {
		index = max(s.Next, part.first)
		if index > part.last {
			return api.Addresses{}, s.exhausted(plan, pool)
		}
		s.Next = index + 1
	}
	s.Used++
	return plan.addresses(pool, index), write(tx, pool, s)
}

// again takes the address out of the queue that is the first to be given again, if it
// has waited long enough. What an earlier plan put there and this one has not is dropped.
func (s *state) again(tx store.Tx, pool Pool, part part, now time.Time) (index uint32, ok bool, err error) {
	for s.Head < s.Tail {
		k := freedKey(pool, s.Head)
		var f freed
		if err := get(tx, k, &f); err != nil {
			return 0, false, err
		}
		if now.Before(f.At.Add(Quarantine)) {
			return 0, false, nil
		}
		if err := tx.Delete(k); err != nil {
			return 0, false, err
		}
		s.Head++
		if part.has(f.Index) {
			return f.Index, true, nil
		}
	}
	return 0, false, nil
}

// exhausted says that a pool has no address left.
func (s *state) exhausted(plan Plan, pool Pool) error {
	p := plan.part(pool)
	e := api.Errorf(api.CodeUnavailable, "no address is left for %s: of the %d that spec.network.ipv4 %s of the ClusterConfig has for them, %d are in use and %d were in use within the last %d minutes",
		pool, p.last-p.first+1, plan.IPv4, s.Used, s.Tail-s.Head, int(Quarantine/time.Minute))
	e.Hint = "delete what is not needed, or give spec.network.ipv4 a wider prefix that begins at " + plan.IPv4.Addr().String()
	return e
}

// Release gives addresses back. They are given to nobody for Quarantine. What is no
// address of the pool, or was not given away, is ignored: nothing is left to be given back.
func Release(tx store.Tx, plan Plan, pool Pool, a api.Addresses, now time.Time) error {
	index, ok := plan.index(pool, a)
	if !ok {
		return nil
	}
	s, err := read(tx, pool)
	if err != nil || s.Used == 0 || index >= s.Next {
		return err
	}
	if err := set(tx, freedKey(pool, s.Tail), freed{index, now.UTC()}); err != nil {
		return err
	}
	s.Tail++
	s.Used--
	return write(tx, pool, s)
}

// Replan reports, as words that end a sentence, why a plan cannot take the place of
// another, "" if it can; the pools are then fit for it. Addresses that somebody has stay
// his: with Services the IPv4 prefix can only become wider, and what is wider takes a part
// of the Sessions' for Services.
func Replan(tx store.Tx, from, to Plan, now time.Time) (why string, err error) {
	if from == to {
		return "", nil
	}
	services, err := read(tx, Services)
	if err != nil {
		return "", err
	}
	sessions, err := read(tx, Sessions)
	if err != nil {
		return "", err
	}
	switch wider := from.IPv4.Addr() == to.IPv4.Addr() && to.IPv4.Bits() <= from.IPv4.Bits(); {
	case services.Used > 0 && from.IPv6 != to.IPv6:
		return fmt.Sprintf("%d Services have addresses in %s: delete them first", services.Used, from.IPv6), nil
	case services.Used > 0 && !wider:
		return fmt.Sprintf("%d Services have addresses in %s: the new prefix must begin at %s and be wider, or delete them first",
			services.Used, from.IPv4, from.IPv4.Addr()), nil
	case sessions.Used > 0:
		return fmt.Sprintf("%d Sessions have addresses in %s and %s: delete them first (cardea get sessions, cardea delete session NAME); who logs in again gets others",
			sessions.Used, from.IPv4, from.IPv6), nil
	}
	empty := []Pool{Sessions}
	if services.Used == 0 {
		empty = append(empty, Services)
	}
	for _, pool := range empty {
		if free, err := quiet(tx, pool, now); err != nil {
			return "", err
		} else if !free {
			return fmt.Sprintf("addresses in %s and %s were in use within the last %d minutes: try again when these are over",
				from.IPv4, from.IPv6, int(Quarantine/time.Minute)), nil
		}
	}
	for _, pool := range empty {
		if err := forget(tx, pool); err != nil {
			return "", err
		}
	}
	return "", nil
}

// quiet reports whether what was given back to a pool has waited long enough.
func quiet(tx store.Tx, pool Pool, now time.Time) (bool, error) {
	s, err := read(tx, pool)
	if err != nil || s.Head == s.Tail {
		return err == nil, err
	}
	var last freed
	err = get(tx, freedKey(pool, s.Tail-1), &last)
	return !now.Before(last.At.Add(Quarantine)), err
}

// forget makes a pool in which nobody has an address one that never gave any.
func forget(tx store.Tx, pool Pool) error {
	s, err := read(tx, pool)
	if err != nil || s == (state{}) {
		return err
	}
	for ; s.Head < s.Tail; s.Head++ {
		if err := tx.Delete(freedKey(pool, s.Head)); err != nil {
			return err
		}
	}
	return tx.Delete(key(kindPool, string(pool)))
}

func read(r store.Reader, pool Pool) (s state, err error) {
	err = get(r, key(kindPool, string(pool)), &s)
	if api.HasCode(err, api.CodeNotFound) {
		return s, nil
	}
	return s, err
}

func write(tx store.Tx, pool Pool, s state) error { return set(tx, key(kindPool, string(pool)), s) }

func key(kind, name string) api.Key { return api.Key{Group: Group, Kind: kind, Name: name} }

func freedKey(pool Pool, place uint64) api.Key {
	return key(kindFreed, fmt.Sprintf("%s-%020d", pool, place))
}

// get reads an Object of Group.
func get(r store.Reader, k api.Key, into any) error {
	rec, err := r.Get(k)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(rec.JSON, into); err != nil {
		return fmt.Errorf("address: decode %s: %w", k, err)
	}
	return nil
}

// set writes an Object of Group. Its uid is its name: there is never another of it.
func set(tx store.Tx, k api.Key, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("address: encode %s: %w", k, err)
	}
	return tx.Put(store.Record{Key: k, UID: k.Name, JSON: b})
}
