package ingress

import (
	"math"
	"math/bits"
	"sync"
)

// turns give the members of a row their connections in an exact sequence: after k
// of them each member has had less than one more, and less than one fewer, than
// its share of k.
//
// Of a member with weight w of W, the c-th connection (from 0) has a window: it is
// not given before floor(c·W/w), and is due before ceil((c+1)·W/w). Of those whose
// window is open the one that is due first gets its turn. As the shares sum up to
// one, none is ever late (S. Baruah et al., "Proportionate progress", Algorithmica
// 15, 1996; for a single resource earliest deadline first suffices). After W turns
// each member has had w, and the sequence begins again, so no number grows without
// a bound.
type turns struct {
	members []turn // those with a weight
	sum     uint64 // W

	mu   sync.Mutex
	next uint64 // the number of the next turn, below sum
}

// A turn is how it stands with one member.
type turn struct {
	index    int // in the row
	weight   uint64
	had      uint64
	from, to uint64 // the window of its next one
}

// newTurns returns the sequence of some weights, of which those below 1 are none.
// It returns nil if there is no weight at all, or if their sum is too large.
func newTurns(weights []int) *turns {
	t := &turns{}
	for i, w := range weights {
		if w <= 0 {
			continue
		}
		if t.sum += uint64(w); t.sum > math.MaxInt64 {
			return nil
		}
		t.members = append(t.members, turn{index: i, weight: uint64(w)})
	}
	if t.sum == 0 {
		return nil
	}
	t.begin()
	return t
}

// begin begins the sequence.
func (t *turns) begin() {
	t.next = 0
	for i := range t.members {
		m := &t.members[i]
		m.had, m.from, m.to = 0, 0, ceil(1, t.sum, m.weight)
	}
}

// take returns whose turn it is, as an index into the weights.
func (t *turns) take() int {
	if len(t.members) == 1 {
		return t.members[0].index
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var first *turn
	for i := range t.members {
		if m := &t.members[i]; m.from <= t.next && (first == nil || m.to < first.to) {
			first = m
		}
	}
	first.had++
	first.from, first.to = floor(first.had, t.sum, first.weight), ceil(first.had+1, t.sum, first.weight)
	if t.next++; t.next == t.sum {
		t.begin()
	}
	return first.index
}

// floor returns ⌊a·b/c⌋, and ceil ⌈a·b/c⌉. The quotients of windows are at most the
// sum of the weights and a window more, so they fit although the products do not.
func floor(a, b, c uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	q, _ := bits.Div64(hi, lo, c)
	return q
}

func ceil(a, b, c uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	q, r := bits.Div64(hi, lo, c)
	if r > 0 {
		q++
	}
	return q
}
