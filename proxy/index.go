package proxy

import (
	"hash/maphash"
	"iter"

	"cardea/api"
)

// An index finds what is held by the names that it depends on. A Decider gives
// all decisions about one Session and Service the same list of names, so a list
// is in the index once, and the Grants are with the list: a further connection
// costs one entry, however many names it hangs on.
//
// Names are found by a hash of theirs: two that have the same are as one, and what
// hangs on either is asked about once more, in vain.
type index struct {
	seed   maphash.Seed
	lists  map[listID]*names
	byName map[uint64][]hook
}

// A listID tells lists of names apart without a look into them: where one begins,
// and how long it is. A list is not written to as long as it is in the index.
type listID struct {
	first *api.Key
	n     int
}

// idOf returns the id of a list.
func idOf(keys []api.Key) listID {
	if len(keys) == 0 {
		return listID{}
	}
	return listID{&keys[0], len(keys)}
}

// names is one list, and what depends on it.
type names struct {
	keys   []api.Key
	at     []int32 // where in byName each of them stands
	grants []*Grant
	terms  []*terms // the latest that were made on it
}

// A hook is the nth name of a list.
type hook struct {
	list *names
	nth  int
}

func newIndex() index {
	return index{seed: maphash.MakeSeed(), lists: map[listID]*names{}, byName: map[uint64][]hook{}}
}

func (x *index) hash(k api.Key) uint64 { return maphash.Comparable(x.seed, k) }

// list returns the list of keys. It is there until the last Grant is removed from
// it, or tidy finds that there never was one.
func (x *index) list(keys []api.Key) *names {
	id := idOf(keys)
	l := x.lists[id]
	if l == nil {
		l = &names{keys: keys, at: make([]int32, len(keys))}
		x.lists[id] = l
		for nth, k := range keys {
			h := x.hash(k)
			l.at[nth] = int32(len(x.byName[h]))
			x.byName[h] = append(x.byName[h], hook{l, nth})
		}
	}
	return l
}

// add notes that g depends on the names of a list.
func (l *names) add(g *Grant) {
	g.spot = int32(len(l.grants))
	l.grants = append(l.grants, g)
}

// remove undoes add.
func (x *index) remove(g *Grant, l *names) {
	l.grants = without(l.grants, g.spot, func(moved *Grant) { moved.spot = g.spot })
	x.tidy(l)
}

// tidy forgets a list on which nothing depends.
func (x *index) tidy(l *names) {
	if len(l.grants) > 0 {
		return
	}
	delete(x.lists, idOf(l.keys))
	for nth, k := range l.keys {
		h, i := x.hash(k), l.at[nth]
		hooks := x.byName[h]
		last := len(hooks) - 1
		moved := hooks[last]
		hooks[i], hooks[last] = moved, hook{}
		moved.list.at[moved.nth] = i
		if last == 0 {
			delete(x.byName, h)
		} else {
			x.byName[h] = hooks[:last]
		}
	}
}

// on yields what depends on a name.
func (x *index) on(k api.Key) iter.Seq[*Grant] {
	return func(yield func(*Grant) bool) {
		for _, h := range x.byName[x.hash(k)] {
			for _, g := range h.list.grants {
				if !yield(g) {
					return
				}
			}
		}
	}
}

// without removes the i-th of all, in whose place the last one moves.
func without(all []*Grant, i int32, move func(moved *Grant)) []*Grant {
	last := len(all) - 1
	moved := all[last]
	all[i], all[last] = moved, nil
	move(moved)
	return all[:last]
}
