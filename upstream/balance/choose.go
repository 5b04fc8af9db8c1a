package balance

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"

	"cardea/api"
)

// choose chooses among targets that are equally good. It changes nothing. mu must be
// held.
func (s *Set) choose(list []*Target, now time.Time, client netip.Addr) *Target {
	if len(list) == 1 {
		return list[0]
	}
	switch s.algorithm(client) {
	case api.BalanceLeastConnections:
		return s.leastConnections(list, now)
	case api.BalanceSourceHash:
		return s.sourceHash(list, now, client)
	}
	best := list[0]
	most := int64(math.MinInt64)
	for _, t := range list {
		if n := t.turn + s.weight(t, now); n > most {
			best, most = t, n
		}
	}
	return best
}

// algorithm returns by which is chosen for a client: who has no address takes turns.
// mu must be held.
func (s *Set) algorithm(client netip.Addr) api.Balance {
	if s.rules.Balance == "" || s.rules.Balance == api.BalanceSourceHash && !client.IsValid() {
		return api.BalanceRoundRobin
	}
	return s.rules.Balance
}

// fewest returns those of a list that have the fewest connections for their weight. mu must
// be held.
func (s *Set) fewest(list []*Target, now time.Time) []*Target {
	best := math.Inf(1)
	s.few = s.few[:0]
	for _, t := range list {
		load := float64(t.conns) / float64(s.weight(t, now))
		if load < best {
			best, s.few = load, s.few[:0]
		}
		if load == best {
			s.few = append(s.few, t)
		}
	}
	return s.few
}

// turned counts the turn of a target among others: each gains its weight, and the one
// whose turn it was loses the sum (smooth weighted round robin: over as many turns as
// the sum of weights each has exactly its share, and they are spread). mu must be held.
func (s *Set) turned(list []*Target, took *Target, now time.Time) {
	if len(list) == 1 {
		return
	}
	for _, t := range list {
		w := s.weight(t, now)
		t.turn += w
		took.turn -= w
	}
}

// weight returns that of a target now: in its slow start it grows from a tenth. mu must
// be held.
func (s *Set) weight(t *Target, now time.Time) int64 {
	if s.ramping.IsZero() {
		return t.weight
	}
	since := now.Sub(t.began)
	if t.began.IsZero() || since >= s.rules.SlowStart {
		return t.weight
	}
	part := 0.1 + 0.9*max(float64(since), 0)/float64(s.rules.SlowStart)
	return max(int64(float64(t.weight)*part), 1)
}

// leastConnections draws two targets by weight and takes that which has fewer
// connections for its weight (Mitzenmacher, "The Power of Two Choices in Randomized
// Load Balancing", 2001). mu must be held.
func (s *Set) leastConnections(list []*Target, now time.Time) *Target {
	var total int64
	for _, t := range list {
		total += s.weight(t, now)
	}
	one := s.draw(list, nil, total, now)
	two := s.draw(list, one, total-s.weight(one, now), now)
	if float64(two.conns)*float64(s.weight(one, now)) < float64(one.conns)*float64(s.weight(two, now)) {
		return two
	}
	return one
}

// draw draws one of a list by weight, but not that. total is the sum of their weights.
func (s *Set) draw(list []*Target, but *Target, total int64, now time.Time) *Target {
	n := s.chance(total)
	var last *Target
	for _, t := range list {
		if t == but {
			continue
		}
		if last = t; n < s.weight(t, now) {
			break
		}
		n -= s.weight(t, now)
	}
	return last
}

// sourceHash returns the target that has the highest score for a client (weighted
// rendezvous hashing: Thaler and Ravishankar, "Using Name-Based Mappings to Increase
// Hit Rates", 1998; the weights after Schindelhauer and Schomaker, 2005): if one comes
// or goes, only its clients change. mu must be held.
func (s *Set) sourceHash(list []*Target, now time.Time, client netip.Addr) *Target {
	b := client.Unmap().As16()
	who := mix(word(b[:8]), word(b[8:]))
	best := list[0]
	most := math.Inf(-1)
	for _, t := range list {
		// A number from 0 to 1, neither of them.
		u := (float64(mix(who, t.hash)>>11) + 0.5) / (1 << 53)
		if score := -float64(s.weight(t, now)) / math.Log(u); score > most {
			best, most = t, score
		}
	}
	return best
}

func word(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

// mix joins two numbers to one of which every bit depends on all of theirs (the
// finalizer of SplitMix64: Steele, Lea and Flood, 2014).
func mix(a, b uint64) uint64 {
	x := (a+0x9e3779b97f4a7c15)*0xff51afd7ed558ccd ^ b
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
