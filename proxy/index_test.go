package proxy

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"cardea/api"
)

// The index finds what a plain search finds, whatever lists are shared, and is
// empty when nothing is held.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := func(n int) api.Key { return api.Key{Kind: "X", Name: string(rune('a' + n))} }
		var lists [][]api.Key
		for range 5 {
			var keys []api.Key
			for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 5), 0, 4, rapid.ID[int]).Draw(t, "keys") {
				keys = append(keys, key(n))
			}
			lists = append(lists, keys)
		}
		x, held, on := newIndex(), map[*Grant][]api.Key{}, map[*Grant]*names{}
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "remove") {
				for g := range held {
					x.remove(g, on[g])
					delete(held, g)
					break
				}
			} else {
				g, keys := new(Grant), rapid.SampledFrom(lists).Draw(t, "list")
				on[g], held[g] = x.list(keys), keys
				on[g].add(g)
			}
			for n := range 6 {
				got, want := map[*Grant]int{}, map[*Grant]int{}
				for g := range x.on(key(n)) {
					got[g]++
				}
				for g, keys := range held {
					if slices.Contains(keys, key(n)) {
						want[g] = 1
					}
				}
				if !maps.Equal(got, want) {
					t.Fatalf("%d hang on key %d, want %d", len(got), n, len(want))
				}
			}
		}
		for g := range held {
			x.remove(g, on[g])
		}
		if len(x.lists) != 0 || len(x.byName) != 0 {
			t.Fatalf("of nothing held, %d lists and %d names are left", len(x.lists), len(x.byName))
		}
	})
}
