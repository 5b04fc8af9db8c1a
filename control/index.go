package control

import (
	"context"
	"errors"
	"strings"
	"sync"

	"cardea/api"
	"cardea/store"
)

// An index finds the Objects of a kind by their uid, and counts those of a User, so
// that neither costs a search. It follows the store only when it is asked for
// something that it may not know.
type index struct {
	kind string

	mu   sync.Mutex
	at   api.Revision // up to which the rest is complete
	keys map[string]api.Key
	of   map[string]int // how many have names that begin so, up to the last '-'
}

// maxCatchUp is how many commits the index follows, at most, before it is quicker
// to list everything.
const maxCatchUp = 1000

func newIndex(kind string) *index { return &index{kind: kind} }

// find returns the key of the Object of that uid, and the zero Key if there is
// none. Whoever gets a key checks the uid of what it finds there: the Object may
// have been deleted since.
func (x *index) find(ctx context.Context, st store.Store, uid string) (api.Key, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if k, ok := x.keys[uid]; ok {
		return k, nil
	}
	err := x.catchUp(ctx, st)
	return x.keys[uid], err
}

// count returns how many Objects have the name of a User, '-' and anything without
// a '-', as a Session has it, in the present state of the store.
func (x *index) count(ctx context.Context, st store.Store, user string) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	err := x.catchUp(ctx, st)
	return x.of[user], err
}

// catchUp brings the index to the present state of the store; mu is held.
func (x *index) catchUp(ctx context.Context, st store.Store) error {
	var now api.Revision
	if err := st.View(ctx, func(r store.Reader) error { now = r.Revision(); return nil }); err != nil {
		return err
	}
	if now == x.at {
		return nil
	}
	if x.keys == nil || now.Epoch != x.at.Epoch || now.Number-x.at.Number > maxCatchUp {
		return x.list(ctx, st)
	}
	for commit, err := range st.Watch(ctx, x.at) {
		if errors.Is(err, store.ErrCompacted) {
			return x.list(ctx, st)
		}
		if err != nil {
			return err
		}
		for _, c := range commit.Changes {
			switch {
			case c.Key.Group != api.GroupCore || c.Key.Kind != x.kind:
			case c.Deleted:
				x.remove(c.UID)
			default:
				x.add(c.UID, c.Key)
			}
		}
		if x.at = commit.Revision; x.at.Compare(now) >= 0 {
			return nil
		}
	}
	return ctx.Err()
}

// list reads all of it; mu is held.
func (x *index) list(ctx context.Context, st store.Store) error {
	fresh := index{keys: map[string]api.Key{}, of: map[string]int{}}
	err := st.View(ctx, func(r store.Reader) error {
		fresh.at = r.Revision()
		for rec, err := range r.List(api.GroupCore, x.kind) {
			if err != nil {
				return err
			}
			fresh.add(rec.UID, rec.Key)
		}
		return nil
	})
	if err == nil {
		x.at, x.keys, x.of = fresh.at, fresh.keys, fresh.of
	}
	return err
}

func (x *index) add(uid string, k api.Key) {
	if _, ok := x.keys[uid]; !ok {
		x.keys[uid] = k
		x.of[beginning(k.Name)]++
	}
}

func (x *index) remove(uid string) {
	k, ok := x.keys[uid]
	if !ok {
		return
	}
	delete(x.keys, uid)
	b := beginning(k.Name)
	if x.of[b]--; x.of[b] == 0 {
		delete(x.of, b)
	}
}

// beginning returns what a name has before its last '-'.
func beginning(name string) string { return name[:max(0, strings.LastIndexByte(name, '-'))] }
