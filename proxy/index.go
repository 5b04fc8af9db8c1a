package proxy

import (
	"iter"

	"cardea/api"
)

// An index finds what is held by the names that it depends on. A Decider gives
// all decisions about one Session and Service the same list of names, so a list
// is in the index once, and the Grants are with the list: a further connection
// costs one entry, however many names it hangs on.
type index struct {
	lists  map[listID]*names
	byName map[api.Key][]place
}

// A listID tells lists of names apart without a look into them: where one begins,
// and how long it is. A list is not written to as long as it is in the index.
type listID struct {
	first *api.Key
	n     int
}

// names is one list, and what depends on it.
type names struct {
	id     listID
	keys   []api.Key
	at     []int // where in byName of each key it stands
	grants map[*Grant]struct{}
}

// A place is the nth key of a list.
type place struct {
	list *names
	nth  int
}

func newIndex() index {
	return index{lists: map[listID]*names{}, byName: map[api.Key][]place{}}
}

// add notes that g depends on keys; it returns what remove needs, nil if there are
// none.
func (x *index) add(g *Grant, keys []api.Key) *names {
	if len(keys) == 0 {
		return nil
	}
	id := listID{&keys[0], len(keys)}
	l := x.lists[id]
	if l == nil {
		l = &names{id: id, keys: keys, at: make([]int, len(keys)), grants: map[*Grant]struct{}{}}
		x.lists[id] = l
		for i, k := range keys {
			l.at[i] = len(x.byName[k])
			x.byName[k] = append(x.byName[k], place{l, i})
		}
	}
	l.grants[g] = struct{}{}
	return l
}

// remove undoes add.
func (x *index) remove(g *Grant, l *names) {
	if l == nil {
		return
	}
	if delete(l.grants, g); len(l.grants) > 0 {
		return
	}
	delete(x.lists, l.id)
	for i, k := range l.keys {
		places := x.byName[k]
		last := len(places) - 1
		moved := places[last]
		places[l.at[i]], places[last] = moved, place{}
		moved.list.at[moved.nth] = l.at[i]
		if last == 0 {
			delete(x.byName, k)
		} else {
			x.byName[k] = places[:last]
		}
	}
}

// on yields what depends on a name.
func (x *index) on(k api.Key) iter.Seq[*Grant] {
	return func(yield func(*Grant) bool) {
		for _, p := range x.byName[k] {
			for g := range p.list.grants {
				if !yield(g) {
					return
				}
			}
		}
	}
}
