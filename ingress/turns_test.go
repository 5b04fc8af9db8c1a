package ingress

import (
	"math"
	"math/big"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestTurnsAreExact: whatever the weights are, after k turns each member has had
// less than one more or fewer than its share, and one without weight none.
func TestTurnsAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{1, 3, 10, 100, 1_000_000, math.MaxInt64 / 64}).Draw(t, "most")
		weights := rapid.SliceOfN(rapid.IntRange(0, most), 1, 50).Draw(t, "weights")
		x := newTurns(weights)
		sum := new(big.Int)
		for _, w := range weights {
			sum.Add(sum, big.NewInt(int64(w)))
		}
		if sum.Sign() == 0 {
			if x != nil {
				t.Fatal("there are turns where there is no weight")
			}
			return
		}
		had := make([]int64, len(weights))
		for k := int64(1); k <= 400; k++ {
			had[x.take()]++
			for i, w := range weights {
				// |had - k·w/W| < 1, without fractions
				lag := new(big.Int).Mul(big.NewInt(had[i]), sum)
				lag.Sub(lag, new(big.Int).Mul(big.NewInt(k), big.NewInt(int64(w))))
				if lag.CmpAbs(sum) >= 0 {
					t.Fatalf("after %d turns of %v member %d has had %d", k, weights, i, had[i])
				}
			}
		}
	})
}

// The sequence begins again after as many turns as the weights sum up to, and so
// it is exact for ever.
func TestTurnsRepeat(t *testing.T) {
	x := newTurns([]int{70, 0, 30})
	round := func() (list []int) {
		for range 100 {
			list = append(list, x.take())
		}
		return list
	}
	first := round()
	if n := len(slices.DeleteFunc(slices.Clone(first), func(i int) bool { return i != 0 })); n != 70 || slices.Contains(first, 1) {
		t.Errorf("the first has %d of 100", n)
	}
	for range 3 {
		if again := round(); !slices.Equal(again, first) {
			t.Errorf("the next round is\n%v, not\n%v", again, first)
		}
	}
	for ten := range slices.Chunk(first, 10) { // 7 in each, as less than one off is none
		if n := len(slices.DeleteFunc(ten, func(i int) bool { return i != 0 })); n != 7 {
			t.Errorf("the turns are not mixed: %v", first)
		}
	}
}

func TestNoTurns(t *testing.T) {
	for _, weights := range [][]int{nil, {}, {0}, {0, -5}, {math.MaxInt64, 1}, {math.MaxInt64, math.MaxInt64, math.MaxInt64}} {
		if newTurns(weights) != nil {
			t.Errorf("%v have turns", weights)
		}
	}
	x := newTurns([]int{0, math.MaxInt64})
	for range 10 {
		if i := x.take(); i != 1 {
			t.Errorf("member %d has its turn", i)
		}
	}
}

func TestTurnsOfMany(t *testing.T) {
	x := newTurns([]int{1, 2, 3, 4})
	var mu sync.Mutex
	had := make([]int, 4)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			for range 100 {
				i := x.take()
				mu.Lock()
				had[i]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if !slices.Equal(had, []int{100, 200, 300, 400}) {
		t.Errorf("%v", had)
	}
}

func BenchmarkTurns(b *testing.B) {
	x := newTurns([]int{70, 20, 10})
	for b.Loop() {
		x.take()
	}
}
