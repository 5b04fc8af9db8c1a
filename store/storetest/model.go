package storetest

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"cardea/api"
	"cardea/store"
)

// A model is what a store should be: a map, and what happened to it.
type model struct {
	start   api.Revision
	objects map[api.Key]store.Record
	history []store.Commit // after start
}

func (m *model) revision() api.Revision { return m.after(len(m.history)) }

// after is the revision after so many commits.
func (m *model) after(commits int) api.Revision {
	return api.Revision{Epoch: m.start.Epoch, Number: m.start.Number + uint64(commits)}
}

// checkModel lets a store and a model go through the same transactions, drawn
// at random, and compares what they hold and tell. reopen is nil for a store
// that is not durable.
func checkModel(t *testing.T, open, reopen func(*testing.T) store.Store) {
	s := open(t)
	defer func() { s.Close() }()
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{start: empty(rt, s), objects: map[api.Key]store.Record{}}
		for range rapid.IntRange(1, 8).Draw(rt, "transactions") {
			if reopen != nil && rapid.IntRange(0, 19).Draw(rt, "reopen") == 0 {
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				s = reopen(t)
			}
			m.transact(rt, s)
		}
		m.check(rt, s)
	})
}

// empty deletes all Objects.
func empty(rt *rapid.T, s store.Store) api.Revision {
	r, err := s.Update(rt.Context(), "model", func(tx store.Tx) error {
		for _, g := range groups {
			for r, err := range tx.List(g, "") {
				if err != nil {
					return err
				}
				if err := tx.Delete(r.Key); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		rt.Fatal(err)
	}
	return r
}

// transact does one transaction in both.
func (m *model) transact(rt *rapid.T, s store.Store) {
	var (
		next    = maps.Clone(m.objects)
		written []api.Key
		fails   = rapid.IntRange(0, 4).Draw(rt, "fails") == 0
		oops    = errors.New("oops")
	)
	rev, err := s.Update(rt.Context(), "model", func(tx store.Tx) error {
		for range rapid.IntRange(0, 6).Draw(rt, "operations") {
			k := drawKey(rt)
			old, exists := next[k]
			op := rapid.SampledFrom([]string{"put", "delete", "get", "list"}).Draw(rt, "op")
			switch op {
			case "put":
				r := store.Record{Key: k, UID: rapid.SampledFrom([]string{"1", "2"}).Draw(rt, "uid")}
				r.JSON = fmt.Appendf(nil, `{"v":%d}`, rapid.IntRange(0, 2).Draw(rt, "v"))
				err := tx.Put(r)
				if conflict := exists && old.UID != r.UID; conflict != api.HasCode(err, api.CodeConflict) || !conflict && err != nil {
					rt.Fatalf("Put of %s as %s where there is %+v: %v", k, r.UID, old, err)
				} else if conflict {
					continue
				}
				next[k] = r
				written = append(written, k)
			case "delete":
				if err := tx.Delete(k); exists && err != nil || !exists && !api.HasCode(err, api.CodeNotFound) {
					rt.Fatalf("Delete of %s (it exists: %v): %v", k, exists, err)
				}
				if exists {
					delete(next, k)
					written = append(written, k)
				}
			case "get":
				got, err := tx.Get(k)
				if exists && (err != nil || got.UID != old.UID || string(got.JSON) != string(old.JSON)) ||
					!exists && !api.HasCode(err, api.CodeNotFound) {
					rt.Fatalf("Get of %s = %+v, %v, want %+v", k, got, err, old)
				}
			case "list":
				checkList(rt, tx, rapid.SampledFrom(groups).Draw(rt, "group"), rapid.SampledFrom(kinds).Draw(rt, "kind"), next)
			}
		}
		if fails {
			return oops
		}
		return nil
	})
	if fails {
		if !errors.Is(err, oops) {
			rt.Fatalf("Update: %v, want oops", err)
		}
		return
	}
	if err != nil {
		rt.Fatalf("Update: %v", err)
	}
	m.commit(next, written)
	if rev != m.revision() {
		rt.Fatalf("Update returned %v, want %v", rev, m.revision())
	}
}

// commit makes next the state, and history of what is different.
func (m *model) commit(next map[api.Key]store.Record, written []api.Key) {
	c := store.Commit{Revision: m.revision()}
	c.Revision.Number++
	seen := map[api.Key]bool{}
	for _, k := range written {
		if seen[k] {
			continue
		}
		seen[k] = true
		was, before := m.objects[k]
		is, after := next[k]
		if before && (!after || was.UID != is.UID) {
			c.Changes = append(c.Changes, store.Change{Record: was, Deleted: true})
		}
		if after && before && was.UID == is.UID && string(was.JSON) == string(is.JSON) {
			next[k] = was // its revision stays
		} else if after {
			is.Revision = c.Revision
			next[k] = is
			c.Changes = append(c.Changes, store.Change{Record: is})
		}
	}
	if len(c.Changes) == 0 {
		return
	}
	for i := range c.Changes {
		c.Changes[i].Revision = c.Revision
	}
	m.objects = next
	m.history = append(m.history, c)
}

// check compares what a store holds, and what it tells a watcher from any point.
func (m *model) check(rt *rapid.T, s store.Store) {
	checkState(rt, s, m.objects)
	err := s.View(rt.Context(), func(now store.Reader) error {
		if now.Revision() != m.revision() {
			rt.Fatalf("the store is at %v, want %v", now.Revision(), m.revision())
		}
		for _, group := range groups {
			for _, kind := range kinds {
				checkList(rt, now, group, kind, m.objects)
			}
		}
		return nil
	})
	if err != nil {
		rt.Fatal(err)
	}
	from := rapid.IntRange(0, len(m.history)).Draw(rt, "watch from")
	want := m.history[from:]
	got := follow(rt, s, m.after(from), len(want))
	if len(got) != len(want) {
		rt.Fatalf("saw %d commits, want %d", len(got), len(want))
	}
	for i := range want {
		want := want[i]
		want.At, want.Actor = got[i].At, "model"
		if !sameCommit(got[i], want) {
			rt.Fatalf("a watcher was told\n%+v, want\n%+v", got[i], want)
		}
	}
}

// kinds are those that the model lists: all, and two that begin alike.
var kinds = []string{"", "A", "AB"}

// checkList compares what a list yields with what a map holds.
func checkList(rt *rapid.T, r store.Reader, group, kind string, want map[api.Key]store.Record) {
	missing := 0
	for k := range want {
		if k.Group == group && (kind == "" || k.Kind == kind) {
			missing++
		}
	}
	var last api.Key
	for got, err := range r.List(group, kind) {
		if err != nil {
			rt.Fatal(err)
		}
		w, ok := want[got.Key]
		if !ok || got.UID != w.UID || string(got.JSON) != string(w.JSON) || !less(last, got.Key) || got.Key.Group != group {
			rt.Fatalf("List(%q, %q): %+v after %+v, want %+v", group, kind, got, last, w)
		}
		missing--
		last = got.Key
	}
	if missing != 0 {
		rt.Fatalf("List(%q, %q): %d Objects are missing", group, kind, missing)
	}
}

// less is the order of List within a group.
func less(a, b api.Key) bool {
	switch {
	case a.Kind != b.Kind:
		return a.Kind < b.Kind
	case a.Namespace != b.Namespace:
		return a.Namespace < b.Namespace
	}
	return a.Name < b.Name
}

// drawKey draws from few keys, so that they meet.
func drawKey(rt *rapid.T) api.Key {
	return api.Key{
		Group:     rapid.SampledFrom([]string{api.GroupCore, api.GroupCore, "other"}).Draw(rt, "group"),
		Kind:      rapid.SampledFrom([]string{"A", "AB"}).Draw(rt, "kind"),
		Namespace: rapid.SampledFrom([]string{"", "", "n"}).Draw(rt, "namespace"),
		Name:      rapid.SampledFrom([]string{"a", "a.b", "ab", "b"}).Draw(rt, "name"),
	}
}
