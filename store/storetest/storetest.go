// Package storetest holds the contract of [store.Store] as tests that every
// implementation passes.
package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/store"
)

// patience bounds how long a test waits for what must come. It is no
// measurement: a store that passes never comes near it.
const patience = time.Minute

// Run holds a Store to the contract. open returns a new, empty one; the suite
// closes it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, store.Store)
	}{
		{"an Object is made, changed and deleted", lifeOfAnObject},
		{"a name is unique among its like", uniqueNames},
		{"what cannot be stored is refused", refusals},
		{"a transaction that fails changes nothing", failedTransaction},
		{"a transaction that panics changes nothing", panickingTransaction},
		{"a transaction reads what it wrote", ownWrites},
		{"a list is in order", listOrder},
		{"a list can be left early", listBreak},
		{"all is in order", allOrder},
		{"only what has an effect makes a revision", revisions},
		{"a view stays as it is while others write", viewIsASnapshot},
		{"a view never shows half a transaction", viewIsWhole},
		{"no increment is lost", increments},
		{"a commit tells all that changed", commitShape},
		{"watchers see every commit once and in order", watchAll},
		{"a watch begins where it is told", watchFrom},
		{"a slow watcher delays nobody and misses nothing", slowWatcher},
		{"a watch of unknown history says so", watchUnknown},
		{"a watch ends with its context", watchEnds},
		{"a renewed store is another, in a new epoch", renew},
		{"a renewal that fails changes nothing", failedRenewal},
		{"a store can be renewed to nothing", renewToNothing},
		{"marks are kept beside the Objects", marks},
		{"who gives up waiting is not served", cancelled},
		{"Close waits, and then all is closed", closing},
		{"Namespaces have no practical limit", manyNamespaces},
		{"typed reading and writing", typed},
		{"100,000 Services and 1,000,000 Sessions have addresses", manyAddresses},
		{"those who take addresses at once get different ones", addressesAtOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			s := open(t)
			c.run(t, s)
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			goleak.VerifyNone(t, before)
		})
	}
	t.Run("it behaves as a map with a history", func(t *testing.T) { checkModel(t, open, nil) })
}

// sequence yields records.
func sequence(rs ...store.Record) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		for _, r := range rs {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// RunDurable holds a Store to what it promises across restarts. open opens what
// is in dir, which is empty at first; the suite closes it.
func RunDurable(t *testing.T, open func(t *testing.T, dir string) store.Store) {
	t.Run("all is there after opening again", func(t *testing.T) { survives(t, open) })
	t.Run("a watch goes on after opening again", func(t *testing.T) { watchSurvives(t, open) })
	t.Run("who has which address is known after opening again", func(t *testing.T) { addressesSurvive(t, open) })
	t.Run("it behaves as a map with a history that can be opened again", func(t *testing.T) {
		dir := t.TempDir()
		again := func(t *testing.T) store.Store { return open(t, dir) }
		checkModel(t, again, again)
	})
}

// A tb is what *testing.T and *rapid.T have in common.
type tb interface {
	Helper()
	Context() context.Context
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// record returns a small Object of a kind, whose value is v.
func record(kind, name, uid string, v int) store.Record {
	return store.Record{
		Key:  api.Key{Group: api.GroupCore, Kind: kind, Name: name},
		UID:  uid,
		JSON: json.RawMessage(fmt.Sprintf(`{"kind":%q,"metadata":{"name":%q,"uid":%q},"v":%d}`, kind, name, uid, v)),
	}
}

// value returns the v of a record.
func value(t tb, r store.Record) int {
	t.Helper()
	var o struct{ V int }
	if err := json.Unmarshal(r.JSON, &o); err != nil {
		t.Fatalf("%s: %v in %q", r.Key, err, r.JSON)
	}
	return o.V
}

func update(t tb, s store.Store, f func(store.Tx) error) api.Revision {
	t.Helper()
	r, err := s.Update(t.Context(), "tester", f)
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	return r
}

func put(t tb, s store.Store, rs ...store.Record) api.Revision {
	t.Helper()
	return update(t, s, func(tx store.Tx) error {
		for _, r := range rs {
			if err := tx.Put(r); err != nil {
				return err
			}
		}
		return nil
	})
}

func remove(t tb, s store.Store, k api.Key) api.Revision {
	t.Helper()
	return update(t, s, func(tx store.Tx) error { return tx.Delete(k) })
}

func view(t tb, s store.Store, f func(store.Reader) error) {
	t.Helper()
	if err := s.View(t.Context(), f); err != nil {
		t.Fatalf("View: %v", err)
	}
}

func get(t tb, s store.Store, k api.Key) (r store.Record, err error) {
	t.Helper()
	view(t, s, func(now store.Reader) error {
		r, err = now.Get(k)
		return nil
	})
	return r, err
}

func revision(t tb, s store.Store) (r api.Revision) {
	t.Helper()
	view(t, s, func(now store.Reader) error { r = now.Revision(); return nil })
	return r
}

// list returns what List yields.
func list(r store.Reader, group, kind string) ([]store.Record, error) {
	var rs []store.Record
	for rec, err := range r.List(group, kind) {
		if err != nil {
			return nil, err
		}
		rs = append(rs, rec)
	}
	return rs, nil
}

// names returns the keys of records without their group.
func names(rs []store.Record) []string {
	var ns []string
	for _, r := range rs {
		ns = append(ns, r.Key.String())
	}
	return ns
}

// follow returns the first n commits after from.
func follow(t tb, s store.Store, from api.Revision, n int) []store.Commit {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var cs []store.Commit
	if n == 0 {
		return nil
	}
	for c, err := range s.Watch(ctx, from) {
		if err != nil {
			t.Errorf("Watch from %v: %v after %d of %d commits", from, err, len(cs), n)
			return cs
		}
		if cs = append(cs, c); len(cs) == n {
			return cs
		}
	}
	t.Errorf("Watch from %v ended after %d of %d commits", from, len(cs), n)
	return cs
}

// checkOrder fails unless the commits follow each other without a gap.
func checkOrder(t tb, from api.Revision, cs []store.Commit) {
	t.Helper()
	for _, c := range cs {
		if want := (api.Revision{Epoch: from.Epoch, Number: from.Number + 1}); c.Revision != want {
			t.Fatalf("a watcher saw %v after %v", c.Revision, from)
		}
		from = c.Revision
	}
}

// replay returns the state to which commits lead, and fails if one of them does
// not fit the state before it.
func replay(t tb, cs []store.Commit) map[api.Key]store.Record {
	t.Helper()
	state := map[api.Key]store.Record{}
	for _, c := range cs {
		for _, ch := range c.Changes {
			if ch.Revision != c.Revision {
				t.Fatalf("the commit %v has a change of %v", c.Revision, ch.Revision)
			}
			if !ch.Deleted {
				state[ch.Key] = ch.Record
				continue
			}
			was, ok := state[ch.Key]
			if !ok || was.UID != ch.UID || !bytes.Equal(was.JSON, ch.JSON) {
				t.Fatalf("%v deletes %v as %s %s; it was %s %s", c.Revision, ch.Key, ch.UID, ch.JSON, was.UID, was.JSON)
			}
			delete(state, ch.Key)
		}
	}
	return state
}

// everything returns what All yields.
func everything(r store.Reader) ([]store.Record, error) {
	var rs []store.Record
	for rec, err := range r.All() {
		if err != nil {
			return nil, err
		}
		rs = append(rs, rec)
	}
	return rs, nil
}

// groups are those that the suite writes to where it compares whole states.
var groups = []string{api.GroupCore, "other"}

// checkState fails unless the store holds exactly what want holds.
func checkState(t tb, s store.Store, want map[api.Key]store.Record) {
	t.Helper()
	view(t, s, func(now store.Reader) error {
		var rs []store.Record
		for _, g := range groups {
			more, err := list(now, g, "")
			if err != nil {
				return err
			}
			rs = append(rs, more...)
		}
		if len(rs) != len(want) {
			t.Errorf("the store holds %d Objects, want %d", len(rs), len(want))
		}
		for _, r := range rs {
			w := want[r.Key]
			if r.UID != w.UID || r.Revision != w.Revision || !bytes.Equal(r.JSON, w.JSON) {
				t.Errorf("the store holds %v %s %s, want %v %s %s", r.Revision, r.UID, r.JSON, w.Revision, w.UID, w.JSON)
			}
		}
		return nil
	})
}

func lifeOfAnObject(t *testing.T, s store.Store) {
	if r := revision(t, s); r != (api.Revision{Epoch: 1}) {
		t.Errorf("a new store is at %v, want 1.0", r)
	}
	r := record(api.KindUser, "alice", "u1", 1)
	if _, err := get(t, s, r.Key); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("Get of nothing: %v, want NOT_FOUND", err)
	}
	if _, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Delete(r.Key) }); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("Delete of nothing: %v, want NOT_FOUND", err)
	}
	for v := 1; v <= 2; v++ {
		want := record(api.KindUser, "alice", "u1", v)
		rev := put(t, s, want)
		got, err := get(t, s, r.Key)
		want.Revision = rev
		if err != nil || got.Key != want.Key || got.UID != want.UID || got.Revision != rev || !bytes.Equal(got.JSON, want.JSON) {
			t.Errorf("Get = %+v, %v, want %+v", got, err, want)
		}
		if now := revision(t, s); now != rev {
			t.Errorf("the state is at %v after a commit at %v", now, rev)
		}
	}
	remove(t, s, r.Key)
	if _, err := get(t, s, r.Key); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("Get of what was deleted: %v, want NOT_FOUND", err)
	}
}

func uniqueNames(t *testing.T, s store.Store) {
	a := record(api.KindUser, "same", "u1", 1)
	b := record(api.KindUser, "same", "u2", 2)
	put(t, s, a)
	if _, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(b) }); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("Put of another Object under a name that is taken: %v, want CONFLICT", err)
	}
	// The same name is free for another kind, namespace and group.
	var others []store.Record
	for _, k := range []api.Key{
		{Group: "core", Kind: "Group", Name: "same"},
		{Group: "core", Kind: "User", Namespace: "n", Name: "same"},
		{Group: "getambassador.io", Kind: "User", Name: "same"},
	} {
		others = append(others, store.Record{Key: k, UID: "o-" + k.String(), JSON: json.RawMessage("{}")})
	}
	put(t, s, others...)
	for _, r := range append(others, a) {
		if got, err := get(t, s, r.Key); err != nil || got.UID != r.UID {
			t.Errorf("Get(%v) = %q, %v, want %q", r.Key, got.UID, err, r.UID)
		}
	}
	// A name is free again once its Object was deleted, in the same transaction.
	update(t, s, func(tx store.Tx) error {
		if err := tx.Delete(a.Key); err != nil {
			return err
		}
		return tx.Put(b)
	})
	if got, err := get(t, s, b.Key); err != nil || got.UID != "u2" {
		t.Errorf("Get = %q, %v, want u2", got.UID, err)
	}
	// Of many who make the same name, one does.
	var wg sync.WaitGroup
	made := make(chan string, 8)
	for i := range cap(made) {
		wg.Go(func() {
			uid := fmt.Sprint("r", i)
			_, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(record(api.KindUser, "race", uid, i)) })
			if err == nil {
				made <- uid
			} else if !api.HasCode(err, api.CodeConflict) {
				t.Errorf("Put: %v, want CONFLICT", err)
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Errorf("%d Objects were made under one name", len(made))
	} else if got, _ := get(t, s, record(api.KindUser, "race", "", 0).Key); got.UID != <-made {
		t.Errorf("the name is %s's, who was told that it is not", got.UID)
	}
}

func refusals(t *testing.T, s store.Store) {
	for _, c := range []struct {
		name string
		r    store.Record
	}{
		{"no kind", store.Record{Key: api.Key{Name: "x"}}},
		{"no name", store.Record{Key: api.Key{Kind: "User"}}},
		{"a key with NUL", store.Record{Key: api.Key{Kind: "User", Name: "a\x00b"}}},
		{"too long", store.Record{Key: api.Key{Kind: "User", Name: "a"}, JSON: bytes.Repeat([]byte("1"), store.MaxObject+1)}},
		{"a key that is too long", store.Record{Key: api.Key{Kind: "User", Name: strings.Repeat("n", store.MaxKey-3)}, JSON: []byte("{}")}},
		{"a key that is not UTF-8", store.Record{Key: api.Key{Kind: "User", Name: "a\xff"}, JSON: []byte("{}")}},
		{"a uid that is not UTF-8", store.Record{Key: api.Key{Kind: "User", Name: "a"}, UID: "\xff", JSON: []byte("{}")}},
		{"an Object that is not UTF-8", store.Record{Key: api.Key{Kind: "User", Name: "a"}, JSON: []byte("\"\xff\"")}},
		{"an Object with NUL", store.Record{Key: api.Key{Kind: "User", Name: "a"}, JSON: []byte("\"\x00\"")}},
	} {
		_, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(c.r) })
		if !api.HasCode(err, api.CodeInvalid) {
			t.Errorf("%s: %v, want INVALID", c.name, err)
		}
		if len(c.r.JSON) > store.MaxObject {
			continue
		}
		_, err = s.Renew(t.Context(), "", sequence(c.r))
		if !api.HasCode(err, api.CodeInvalid) {
			t.Errorf("Renew, %s: %v, want INVALID", c.name, err)
		}
	}
	// What cannot be there is not found, and costs nobody anything.
	update(t, s, func(tx store.Tx) error {
		for _, k := range []api.Key{{Kind: "User", Name: "a\xff"}, {Kind: "User", Name: "a\x00"}, {Group: "\xff", Kind: "\x00", Name: "x"}} {
			if _, err := tx.Get(k); !api.HasCode(err, api.CodeNotFound) {
				t.Errorf("Get(%q): %v, want NOT_FOUND", k, err)
			}
			if err := tx.Delete(k); !api.HasCode(err, api.CodeNotFound) {
				t.Errorf("Delete(%q): %v, want NOT_FOUND", k, err)
			}
			if rs, err := list(tx, k.Group, k.Kind); err != nil || len(rs) != 0 {
				t.Errorf("List(%q): %v, %v", k, rs, err)
			}
		}
		return nil
	})
	// As large as can be.
	size := store.MaxObject
	if underRace {
		size = 1 << 20
	}
	k := api.Key{Group: "core", Kind: "User", Name: strings.Repeat("n", store.MaxKey-8)}
	big := store.Record{Key: k, UID: strings.Repeat("u", store.MaxKey), JSON: bytes.Repeat([]byte("1"), size)}
	put(t, s, big)
	if got, err := get(t, s, k); err != nil || !bytes.Equal(got.JSON, big.JSON) || got.UID != big.UID {
		t.Errorf("the largest Object: %d bytes, %v", len(got.JSON), err)
	}
	// A name that nobody should have makes no trouble.
	before := revision(t, s)
	if _, err := s.Update(t.Context(), "a\xff\x00b", func(tx store.Tx) error { return tx.Delete(k) }); err != nil {
		t.Errorf("Update by an actor of strange name: %v", err)
	}
	if cs := follow(t, s, before, 1); len(cs) != 1 || cs[0].Actor != "a\uFFFD\uFFFDb" {
		t.Errorf("it is %+q in the history", cs[0].Actor)
	}
}

func failedTransaction(t *testing.T, s store.Store) {
	a, b := record(api.KindUser, "a", "1", 1), record(api.KindUser, "b", "2", 1)
	before := put(t, s, a)
	oops := errors.New("oops")
	_, err := s.Update(t.Context(), "", func(tx store.Tx) error {
		if err := errors.Join(tx.Put(record(api.KindUser, "a", "1", 2)), tx.Put(b), tx.Delete(a.Key)); err != nil {
			return err
		}
		return oops
	})
	if !errors.Is(err, oops) {
		t.Errorf("Update returned %v, want what f returned", err)
	}
	a.Revision = before
	checkState(t, s, map[api.Key]store.Record{a.Key: a})
	if now := revision(t, s); now != before {
		t.Errorf("the revision went from %v to %v", before, now)
	}
	after := put(t, s, b)
	checkOrder(t, before, follow(t, s, before, 1))
	if after.Number != before.Number+1 {
		t.Errorf("the next commit is %v after %v", after, before)
	}
}

func panickingTransaction(t *testing.T, s store.Store) {
	a := record(api.KindUser, "a", "1", 1)
	before := put(t, s, a)
	spoil := func(end func()) func(store.Tx) error {
		return func(tx store.Tx) error {
			if err := tx.Delete(a.Key); err != nil {
				t.Error(err)
			}
			end()
			return nil
		}
	}
	func() {
		defer func() {
			if p := recover(); p != "boo" {
				t.Errorf("the caller recovered %v, want boo", p)
			}
		}()
		_, _ = s.Update(t.Context(), "", spoil(func() { panic("boo") }))
		t.Error("the panic got lost")
	}()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = s.Update(t.Context(), "", spoil(runtime.Goexit)) }) // as t.FailNow does
	wg.Wait()
	func() {
		defer func() { _ = recover() }()
		_ = s.View(t.Context(), func(store.Reader) error { panic("boo") })
	}()
	a.Revision = before
	checkState(t, s, map[api.Key]store.Record{a.Key: a})
	put(t, s, record(api.KindUser, "b", "2", 1)) // the writer is not wedged
}

func ownWrites(t *testing.T, s store.Store) {
	for _, n := range []string{"b", "d", "f"} {
		put(t, s, record(api.KindUser, n, n, 1))
	}
	put(t, s, record(api.KindGroup, "g", "g", 1))
	before := revision(t, s)
	update(t, s, func(tx store.Tx) error {
		err := errors.Join(
			tx.Put(record(api.KindUser, "a", "a", 2)), tx.Put(record(api.KindUser, "d", "d", 2)), tx.Put(record(api.KindUser, "g", "g", 2)),
			tx.Delete(record(api.KindUser, "b", "", 0).Key), tx.Put(record(api.KindUser, "c", "c", 2)), tx.Delete(record(api.KindUser, "c", "", 0).Key))
		if err != nil {
			return err
		}
		if got, err := tx.Get(record(api.KindUser, "d", "", 0).Key); err != nil || value(t, got) != 2 {
			t.Errorf("Get of what was written: %s, %v", got.JSON, err)
		}
		for _, n := range []string{"b", "c"} {
			if _, err := tx.Get(record(api.KindUser, n, "", 0).Key); !api.HasCode(err, api.CodeNotFound) {
				t.Errorf("Get of what was deleted: %v, want NOT_FOUND", err)
			}
		}
		if err := tx.Delete(record(api.KindUser, "b", "", 0).Key); !api.HasCode(err, api.CodeNotFound) {
			t.Errorf("Delete of what was deleted: %v, want NOT_FOUND", err)
		}
		rs, err := list(tx, api.GroupCore, api.KindUser)
		if got := strings.Join(names(rs), " "); err != nil || got != "User/a User/d User/f User/g" {
			t.Errorf("List = %s, %v", got, err)
		}
		rs, err = list(tx, api.GroupCore, "")
		if got := strings.Join(names(rs), " "); err != nil || got != "Group/g User/a User/d User/f User/g" {
			t.Errorf("List of all = %s, %v", got, err)
		}
		if tx.Revision() != before {
			t.Errorf("a transaction is at %v, want %v", tx.Revision(), before)
		}
		// The loop may write; it sees the state in which it began.
		var seen []string
		for r, err := range tx.List(api.GroupCore, api.KindUser) {
			if err != nil {
				return err
			}
			seen = append(seen, r.Key.Name)
			if err := errors.Join(tx.Put(record(api.KindUser, r.Key.Name+"x", r.UID+"x", 3)), tx.Delete(r.Key)); err != nil {
				return err
			}
		}
		if got := strings.Join(seen, " "); got != "a d f g" {
			t.Errorf("a loop that writes saw %s", got)
		}
		return nil
	})
	view(t, s, func(now store.Reader) error {
		rs, err := list(now, api.GroupCore, api.KindUser)
		if got := strings.Join(names(rs), " "); got != "User/ax User/dx User/fx User/gx" {
			t.Errorf("List = %s", got)
		}
		return err
	})
}

func listOrder(t *testing.T, s store.Store) {
	var keys []api.Key
	for _, group := range []string{"core", "coreX", "getambassador.io"} {
		for _, kind := range []string{"Service", "Services", "User"} {
			for _, namespace := range []string{"", "a", "a-b", "b"} {
				for i := range 66 { // more of a kind than fit a page
					keys = append(keys, api.Key{Group: group, Kind: kind, Namespace: namespace, Name: fmt.Sprintf("n%x.é", i*7)})
				}
			}
		}
	}
	update(t, s, func(tx store.Tx) error {
		for i := range keys {
			k := keys[i*7919%len(keys)] // in some other order
			if err := tx.Put(store.Record{Key: k, UID: "u", JSON: json.RawMessage("{}")}); err != nil {
				return err
			}
		}
		return nil
	})
	slices.SortFunc(keys, func(a, b api.Key) int {
		return slices.Compare([]string{a.Group, a.Kind, a.Namespace, a.Name}, []string{b.Group, b.Kind, b.Namespace, b.Name})
	})
	view(t, s, func(now store.Reader) error {
		for _, c := range []struct{ group, kind string }{
			{"core", ""}, {"core", "Service"}, {"core", "Services"}, {"core", "User"}, {"core", "None"},
			{"coreX", ""}, {"getambassador.io", "User"}, {"none", ""}, {"", ""},
		} {
			want := slices.DeleteFunc(slices.Clone(keys), func(k api.Key) bool {
				return k.Group != c.group || c.kind != "" && k.Kind != c.kind
			})
			rs, err := list(now, c.group, c.kind)
			if err != nil {
				return err
			}
			got := make([]api.Key, len(rs))
			for i := range rs {
				got[i] = rs[i].Key
			}
			if !slices.Equal(got, want) {
				t.Errorf("List(%q, %q): %d Objects that are not the %d wanted in their order", c.group, c.kind, len(got), len(want))
			}
		}
		return nil
	})
	after := func(r store.Reader) error {
		for _, k := range []api.Key{
			{Group: "core", Kind: "Service"}, {Group: "core", Kind: "User", Name: "n0.é"}, {Group: "core", Kind: "User", Namespace: "a", Name: "n70"},
			{Group: "core", Kind: "Services", Namespace: "a-b"}, {Group: "coreX", Kind: "User", Namespace: "b", Name: "zzz"}, {Group: "core", Kind: "None"},
		} {
			var got []api.Key
			for rec, err := range r.ListAfter(k) {
				if err != nil {
					return err
				}
				got = append(got, rec.Key)
			}
			want := slices.DeleteFunc(slices.Clone(keys), func(x api.Key) bool {
				return x.Group != k.Group || x.Kind != k.Kind || slices.Compare([]string{x.Namespace, x.Name}, []string{k.Namespace, k.Name}) <= 0
			})
			if !slices.Equal(got, want) {
				t.Errorf("ListAfter(%v): %d Objects that are not the %d wanted in their order", k, len(got), len(want))
			}
		}
		return nil
	}
	view(t, s, after)
	update(t, s, func(tx store.Tx) error {
		if err := tx.Delete(keys[0]); err != nil {
			return err
		}
		fresh := api.Key{Group: "core", Kind: "User", Namespace: "a", Name: "n70x"}
		if err := tx.Put(store.Record{Key: fresh, UID: "u", JSON: json.RawMessage("{}")}); err != nil {
			return err
		}
		i, _ := slices.BinarySearchFunc(keys, fresh, func(a, b api.Key) int {
			return slices.Compare([]string{a.Group, a.Kind, a.Namespace, a.Name}, []string{b.Group, b.Kind, b.Namespace, b.Name})
		})
		keys = slices.Insert(keys, i, fresh)[1:]
		return after(tx)
	})
}

func listBreak(t *testing.T, s store.Store) {
	for i := range 10 {
		put(t, s, record(api.KindUser, fmt.Sprint("u", i), "1", i))
	}
	take := func(r store.Reader) error {
		for range 3 {
			n := 0
			for _, err := range r.List(api.GroupCore, "") {
				if err != nil {
					return err
				}
				if n++; n == 4 {
					break
				}
			}
			if _, err := r.Get(record(api.KindUser, "u9", "", 0).Key); err != nil {
				return err
			}
		}
		return nil
	}
	view(t, s, take)
	update(t, s, func(tx store.Tx) error {
		// Written Objects before, among and after those that are there.
		if err := errors.Join(tx.Put(record(api.KindUser, "a", "1", 1)), tx.Put(record(api.KindUser, "u1x", "1", 1)), tx.Put(record(api.KindUser, "z", "1", 1))); err != nil {
			return err
		}
		return take(tx)
	})
	// Nested loops over one kind do not disturb each other.
	view(t, s, func(now store.Reader) error {
		pairs := 0
		for _, err := range now.List(api.GroupCore, api.KindUser) {
			if err != nil {
				return err
			}
			rs, err := list(now, api.GroupCore, api.KindUser)
			if err != nil {
				return err
			}
			pairs += len(rs)
		}
		if pairs != 13*13 {
			t.Errorf("nested loops saw %d pairs, want %d", pairs, 13*13)
		}
		return nil
	})
}

func revisions(t *testing.T, s store.Store) {
	a := record(api.KindUser, "a", "1", 1)
	one := put(t, s, a)
	for _, c := range []struct {
		name string
		f    func(store.Tx) error
	}{
		{"nothing", func(store.Tx) error { return nil }},
		{"a read", func(tx store.Tx) error { _, err := tx.Get(a.Key); return err }},
		{"the same again", func(tx store.Tx) error { return tx.Put(record(api.KindUser, "a", "1", 1)) }},
		{"there and back", func(tx store.Tx) error { return errors.Join(tx.Put(record(api.KindUser, "a", "1", 2)), tx.Put(a)) }},
		{"away and back", func(tx store.Tx) error { return errors.Join(tx.Delete(a.Key), tx.Put(a)) }},
		{"made and deleted", func(tx store.Tx) error {
			b := record(api.KindUser, "b", "2", 1)
			return errors.Join(tx.Put(b), tx.Delete(b.Key))
		}},
	} {
		if got := update(t, s, c.f); got != one {
			t.Errorf("%s: the revision went from %v to %v", c.name, one, got)
		}
	}
	two := put(t, s, record(api.KindUser, "a", "1", 2))
	if two.Compare(one) <= 0 || revision(t, s) != two {
		t.Errorf("revision %v came after %v", two, one)
	}
	// Watchers hear of the two alone.
	checkOrder(t, api.Revision{Epoch: one.Epoch, Number: one.Number - 1}, follow(t, s, api.Revision{}, 2))
}

func viewIsASnapshot(t *testing.T, s store.Store) {
	a := record(api.KindUser, "a", "1", 1)
	before := put(t, s, a)
	view(t, s, func(now store.Reader) error {
		// A writer does not wait for this reader: it is done before the reader is.
		done := make(chan api.Revision)
		go func() {
			r, err := s.Update(t.Context(), "", func(tx store.Tx) error {
				return errors.Join(tx.Put(record(api.KindUser, "a", "1", 2)), tx.Put(record(api.KindUser, "b", "2", 1)))
			})
			if err != nil {
				t.Error(err)
			}
			done <- r
		}()
		after := <-done
		rs, err := list(now, api.GroupCore, "")
		if err != nil {
			return err
		}
		if len(rs) != 1 || value(t, rs[0]) != 1 || now.Revision() != before {
			t.Errorf("a view of %v shows %v at %v", before, names(rs), now.Revision())
		}
		if after.Compare(before) <= 0 {
			t.Errorf("a commit after %v is %v", before, after)
		}
		return nil
	})
	if got, _ := get(t, s, a.Key); value(t, got) != 2 {
		t.Errorf("a later view shows %s", got.JSON)
	}
}

// viewIsWhole moves amounts between accounts, whose sum stays what it is.
func viewIsWhole(t *testing.T, s store.Store) {
	const accounts, writers, readers, rounds = 5, 4, 3, 40
	account := func(i, v int) store.Record { return record(api.KindUser, fmt.Sprint("acc", i), "1", v) }
	for i := range accounts {
		put(t, s, account(i, 100))
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				from, to := (w+i)%accounts, (w+2*i+1)%accounts
				if from == to {
					continue
				}
				_, err := s.Update(t.Context(), "", func(tx store.Tx) error {
					a, err := tx.Get(account(from, 0).Key)
					if err != nil {
						return err
					}
					b, err := tx.Get(account(to, 0).Key)
					if err != nil {
						return err
					}
					return errors.Join(tx.Put(account(from, value(t, a)-w-1)), tx.Put(account(to, value(t, b)+w+1)))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range readers {
		wg.Go(func() {
			var last api.Revision
			for range rounds {
				err := s.View(t.Context(), func(now store.Reader) error {
					sum := 0
					for r, err := range now.List(api.GroupCore, api.KindUser) {
						if err != nil {
							return err
						}
						sum += value(t, r)
						if r.Revision.Compare(now.Revision()) > 0 {
							t.Errorf("a view of %v shows what %v wrote", now.Revision(), r.Revision)
						}
					}
					if sum != accounts*100 {
						t.Errorf("the sum is %d", sum)
					}
					if now.Revision().Compare(last) < 0 {
						t.Errorf("a view of %v after one of %v", now.Revision(), last)
					}
					last = now.Revision()
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func increments(t *testing.T, s store.Store) {
	const callers, rounds = 16, 15
	put(t, s, record(api.KindUser, "n", "1", 0))
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		seen = map[api.Revision]bool{}
	)
	for range callers {
		wg.Go(func() {
			for range rounds {
				var mine int
				r, err := s.Update(t.Context(), "", func(tx store.Tx) error {
					n, err := tx.Get(record(api.KindUser, "n", "", 0).Key)
					if err != nil {
						return err
					}
					mine = value(t, n) + 1
					return tx.Put(record(api.KindUser, "n", "1", mine))
				})
				if err != nil {
					t.Error(err)
					return
				}
				// Who was told of a commit sees it.
				if got, err := get(t, s, record(api.KindUser, "n", "", 0).Key); err != nil || value(t, got) < mine {
					t.Errorf("after writing %d: %s, %v", mine, got.JSON, err)
				}
				mu.Lock()
				if seen[r] {
					t.Errorf("two commits have revision %v", r)
				}
				seen[r] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n, err := get(t, s, record(api.KindUser, "n", "", 0).Key); err != nil || value(t, n) != callers*rounds {
		t.Errorf("%d increments made %s, %v", callers*rounds, n.JSON, err)
	}
}

func commitShape(t *testing.T, s store.Store) {
	a, b, c := record(api.KindUser, "a", "1", 1), record(api.KindUser, "b", "2", 1), record(api.KindUser, "c", "3", 1)
	from := put(t, s, a, b)
	began := time.Now()
	rev, err := s.Update(t.Context(), "alice-x", func(tx store.Tx) error {
		return errors.Join(
			tx.Put(c), tx.Put(record(api.KindUser, "a", "1", 2)), tx.Put(record(api.KindUser, "a", "1", 3)),
			tx.Delete(b.Key), tx.Put(record(api.KindUser, "b", "4", 9)))
	})
	if err != nil {
		t.Fatal(err)
	}
	remove(t, s, c.Key)
	cs := follow(t, s, from, 2)
	checkOrder(t, from, cs)
	var got []string
	for _, k := range cs {
		for _, ch := range k.Changes {
			got = append(got, fmt.Sprintf("%d %s %s %d %v", k.Revision.Number-from.Number, ch.Key.Name, ch.UID, value(t, ch.Record), ch.Deleted))
			if ch.Revision != k.Revision {
				t.Errorf("a change of %v has revision %v", k.Revision, ch.Revision)
			}
		}
	}
	want := []string{"1 c 3 1 false", "1 a 1 3 false", "1 b 2 1 true", "1 b 4 9 false", "2 c 3 1 true"}
	if !slices.Equal(got, want) {
		t.Errorf("commits:\n got %q\nwant %q", got, want)
	}
	if k := cs[0]; k.Revision != rev || k.Actor != "alice-x" || k.At.Location() != time.UTC ||
		k.At.Before(began.Add(-time.Second)) || k.At.After(time.Now().Add(time.Second)) {
		t.Errorf("the commit %v is %v of %q at %v", rev, k.Revision, k.Actor, k.At)
	}
}

func watchAll(t *testing.T, s store.Store) {
	const writers, rounds, commits = 8, 15, 8 * 15
	for _, n := range []string{"first", "second"} {
		put(t, s, record(api.KindUser, n, "1", 0))
	}
	start := revision(t, s)
	var wg sync.WaitGroup
	seen := make([][]store.Commit, 6)
	for i := range seen {
		from, n := start, commits
		if i%2 == 0 {
			from, n = api.Revision{}, commits+2
		}
		wg.Go(func() { seen[i] = follow(t, s, from, n) })
	}
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				_, err := s.Update(t.Context(), fmt.Sprint("w", w), func(tx store.Tx) error {
					own := record(api.KindUser, fmt.Sprint("w", w), "1", i)
					if i%3 == 2 {
						return errors.Join(tx.Delete(own.Key), tx.Put(record(api.KindGroup, fmt.Sprint("g", w, i), "1", i)))
					}
					return errors.Join(tx.Put(own), tx.Put(record(api.KindNamespace, "shared", "1", w*rounds+i)))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, cs := range seen {
		if i%2 == 0 {
			checkOrder(t, api.Revision{Epoch: start.Epoch}, cs)
			checkState(t, s, replay(t, cs))
		} else {
			checkOrder(t, start, cs)
		}
		// All watchers are told the same, a watcher that comes now included.
		late := follow(t, s, start, commits)
		for j, c := range cs[len(cs)-commits:] {
			if !sameCommit(c, late[j]) {
				t.Fatalf("a watcher was told %+v, another %+v", c, late[j])
			}
		}
	}
}

func sameCommit(a, b store.Commit) bool {
	return a.Revision == b.Revision && a.At.Equal(b.At) && a.Actor == b.Actor &&
		slices.EqualFunc(a.Changes, b.Changes, func(a, b store.Change) bool {
			return a.Key == b.Key && a.UID == b.UID && a.Revision == b.Revision && a.Deleted == b.Deleted && bytes.Equal(a.JSON, b.JSON)
		})
}

func watchFrom(t *testing.T, s store.Store) {
	var revs []api.Revision
	for i := range 10 {
		revs = append(revs, put(t, s, record(api.KindUser, "a", "1", i)))
	}
	for i, from := range revs {
		w := s.Watch(t.Context(), from)
		for range 2 { // a sequence may be ranged over again
			n := 0
			for c, err := range w {
				if i == len(revs)-1 || err != nil {
					t.Fatalf("Watch from %v: %v, %v", from, c.Revision, err)
				}
				if c.Revision != revs[i+1] || len(c.Changes) != 1 || value(t, c.Changes[0].Record) != i+1 {
					t.Fatalf("the first commit after %v is %+v", from, c)
				}
				if n++; n == 1 {
					break
				}
			}
			if n == 0 {
				t.Fatalf("Watch from %v ended", from)
			}
			if i == len(revs)-2 {
				break
			}
		}
		if i == len(revs)-2 {
			break
		}
	}
	// From the present: the next commit is the first.
	got := make(chan []store.Commit)
	go func() { got <- follow(t, s, revs[9], 1) }()
	next := put(t, s, record(api.KindUser, "a", "1", 99))
	if cs := <-got; len(cs) != 1 || cs[0].Revision != next {
		t.Errorf("a watch from the present saw %+v, want %v", cs, next)
	}
}

func slowWatcher(t *testing.T, s store.Store) {
	commits, each := 120, 50 // more than any buffer of the latest
	if underRace {
		commits, each = 30, 10
	}
	start := put(t, s, record(api.KindUser, "a", "1", 0))
	put(t, s, record(api.KindUser, "a", "1", 1))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var seen []store.Commit
	for c, err := range s.Watch(ctx, start) {
		if err != nil {
			t.Fatalf("after %d commits: %v", len(seen), err)
		}
		if len(seen) == 0 {
			// While this watcher is busy, all writers proceed.
			for i := range commits {
				update(t, s, func(tx store.Tx) error {
					for j := range each {
						if err := tx.Put(record(api.KindUser, fmt.Sprint("u", j), "1", i)); err != nil {
							return err
						}
					}
					return nil
				})
			}
		}
		if seen = append(seen, c); len(seen) == commits+1 {
			break
		}
	}
	if len(seen) != commits+1 {
		t.Fatalf("saw %d commits of %d", len(seen), commits+1)
	}
	checkOrder(t, start, seen)
	for _, c := range seen[1:] {
		if len(c.Changes) != each {
			t.Errorf("%v came with %d changes of %d", c.Revision, len(c.Changes), each)
		}
	}
}

func watchUnknown(t *testing.T, s store.Store) {
	now := put(t, s, record(api.KindUser, "a", "1", 1))
	for _, from := range []api.Revision{
		{Epoch: now.Epoch + 1, Number: now.Number}, // a store that was restored since
		{Epoch: now.Epoch - 1, Number: now.Number},
		{Epoch: now.Epoch, Number: now.Number + 1}, // a store that lost what the caller saw
		{Epoch: now.Epoch, Number: 1 << 62},
	} {
		n := 0
		for c, err := range s.Watch(t.Context(), from) {
			if n++; n > 1 || !errors.Is(err, store.ErrCompacted) {
				t.Fatalf("Watch from %v of a store at %v: %+v, %v, want ErrCompacted alone", from, now, c, err)
			}
		}
		if n == 0 {
			t.Errorf("Watch from %v ended without an error", from)
		}
	}
}

func watchEnds(t *testing.T, s store.Store) {
	now := put(t, s, record(api.KindUser, "a", "1", 1), record(api.KindUser, "b", "1", 1))
	put(t, s, record(api.KindUser, "a", "1", 2))
	put(t, s, record(api.KindUser, "a", "1", 3))

	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	for _, err := range s.Watch(ctx, now) { // cancelled between two commits
		if n++; err != nil || n > 1 {
			t.Errorf("commit %d after the context ended, %v", n, err)
		}
		cancel()
	}
	for range s.Watch(ctx, now) {
		t.Error("a watch whose context has ended yields")
	}

	ctx, cancel = context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 50 { // cancelled while they wait
		ready := make(chan struct{})
		wg.Go(func() {
			n := 0
			for _, err := range s.Watch(ctx, now) {
				if err != nil {
					t.Errorf("Watch: %v", err)
				}
				if n++; n == 2 {
					close(ready)
				}
			}
			if n != 2 {
				t.Errorf("saw %d commits, want 2", n)
			}
		})
		<-ready
	}
	cancel()
	wg.Wait()
}

func marks(t *testing.T, s store.Store) {
	ctx := t.Context()
	now := put(t, s, record(api.KindUser, "a", "1", 1))
	check := func(name string, want []byte) {
		t.Helper()
		if got, err := s.Mark(ctx, name); err != nil || !bytes.Equal(got, want) || (got == nil) != (want == nil) {
			t.Errorf("Mark(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	set := func(name string, v []byte) {
		t.Helper()
		if err := s.SetMark(ctx, name, v); err != nil {
			t.Errorf("SetMark(%q): %v", name, err)
		}
	}
	check("head", nil)
	v := []byte{0, 1, 0xff, 'x'}
	set("head", v)
	v[0] = 9 // the store keeps a copy
	check("head", []byte{0, 1, 0xff, 'x'})
	set("head", []byte("two"))
	set("other", bytes.Repeat([]byte{7}, store.MaxMark))
	check("head", []byte("two"))
	check("other", bytes.Repeat([]byte{7}, store.MaxMark))
	set("other", nil)
	check("other", nil)
	for name, err := range map[string]error{
		"too long": s.SetMark(ctx, "x", make([]byte, store.MaxMark+1)),
		"no name":  s.SetMark(ctx, "", []byte("x")),
	} {
		if !api.HasCode(err, api.CodeInvalid) {
			t.Errorf("SetMark, %s: %v, want INVALID", name, err)
		}
	}
	if r := revision(t, s); r != now {
		t.Errorf("marks took the store from %v to %v", now, r)
	}
	next := put(t, s, record(api.KindUser, "a", "1", 2))
	if cs := follow(t, s, now, 1); len(cs) != 1 || cs[0].Revision != next {
		t.Errorf("a watcher saw %+v", cs)
	}
}

func cancelled(t *testing.T, s store.Store) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	never := func(store.Tx) error { t.Error("f was called for a caller who had left"); return nil }
	if _, err := s.Update(gone, "", never); !errors.Is(err, context.Canceled) {
		t.Errorf("Update: %v, want %v", err, context.Canceled)
	}
	if err := s.View(gone, func(store.Reader) error { t.Error("f was called"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("View: %v, want %v", err, context.Canceled)
	}

	// Some leave while they stand in line behind a long transaction.
	started, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := s.Update(t.Context(), "", func(tx store.Tx) error {
			close(started)
			<-release
			return tx.Put(record(api.KindUser, "a", "1", 1))
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-started
	ctx, leave := context.WithCancel(t.Context())
	var left sync.WaitGroup
	for range 10 {
		left.Go(func() {
			if _, err := s.Update(ctx, "", never); !errors.Is(err, context.Canceled) {
				t.Errorf("Update: %v, want %v", err, context.Canceled)
			}
		})
		wg.Go(func() { // some stay
			_, err := s.Update(t.Context(), "", func(tx store.Tx) error {
				n, err := tx.Get(record(api.KindUser, "a", "", 0).Key)
				if err != nil {
					return err
				}
				return tx.Put(record(api.KindUser, "a", "1", value(t, n)+1))
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	leave()
	left.Wait()
	close(release)
	wg.Wait()
	if n, err := get(t, s, record(api.KindUser, "a", "", 0).Key); err != nil || value(t, n) != 11 {
		t.Errorf("those who stayed made %s, %v, want 11", n.JSON, err)
	}

	// Once f has begun, what it does counts, whatever becomes of the caller.
	ctx, leave = context.WithCancel(t.Context())
	r, err := s.Update(ctx, "", func(tx store.Tx) error {
		err := tx.Put(record(api.KindUser, "late", "1", 1))
		leave()
		return err
	})
	_, there := get(t, s, record(api.KindUser, "late", "", 0).Key)
	if err != nil || there != nil || r != revision(t, s) {
		t.Errorf("Update whose context ended meanwhile: %v, %v; the Object: %v", r, err, there)
	}
}

func closing(t *testing.T, s store.Store) {
	now := put(t, s, record(api.KindUser, "a", "1", 1))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup

	inside, release := make(chan struct{}), make(chan struct{})
	wg.Go(func() { // a transaction that is under way is finished
		_, err := s.Update(ctx, "", func(tx store.Tx) error {
			close(inside)
			<-release
			if _, err := tx.Get(record(api.KindUser, "a", "1", 1).Key); err != nil {
				return err
			}
			return tx.Put(record(api.KindUser, "b", "1", 1))
		})
		if err != nil {
			t.Errorf("an Update that was under way: %v", err)
		}
	})
	<-inside
	for range 3 { // a watcher that waits is told
		wg.Go(func() {
			var last error
			for _, err := range s.Watch(ctx, now) {
				last = err
			}
			if !errors.Is(last, store.ErrClosed) {
				t.Errorf("a watcher ended with %v, want ErrClosed", last)
			}
		})
	}
	for range 2 { // Close may be called again
		wg.Go(func() {
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	// Soon nothing begins any more, though Close has not returned.
	for ctx.Err() == nil {
		if err := s.View(ctx, func(store.Reader) error { return nil }); errors.Is(err, store.ErrClosed) {
			break
		} else if err != nil {
			t.Errorf("View while closing: %v", err)
		}
		runtime.Gosched()
	}
	close(release)
	wg.Wait()

	_, update := s.Update(ctx, "", func(store.Tx) error { return nil })
	_, mark := s.Mark(ctx, "x")
	var watch error
	for _, err := range s.Watch(ctx, now) {
		watch = err
	}
	for name, err := range map[string]error{
		"View":    s.View(ctx, func(store.Reader) error { return nil }),
		"Update":  update,
		"Watch":   watch,
		"SetMark": s.SetMark(ctx, "x", []byte("y")),
		"Mark":    mark,
	} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
}

func manyNamespaces(t *testing.T, s store.Store) {
	n := 100_000
	if testing.Short() || underRace {
		n = 2_000
	}
	each := n / 4
	for from := 0; from < n; from += each {
		update(t, s, func(tx store.Tx) error {
			for i := from; i < min(from+each, n); i++ {
				if err := tx.Put(record(api.KindNamespace, fmt.Sprintf("ns-%06d", i), strconv.Itoa(i), i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	view(t, s, func(now store.Reader) error {
		i := 0
		for r, err := range now.List(api.GroupCore, api.KindNamespace) {
			if err != nil {
				return err
			}
			if r.UID != strconv.Itoa(i) {
				t.Fatalf("Namespace %d is %s", i, r.Key)
			}
			i++
		}
		if i != n {
			t.Errorf("there are %d Namespaces, want %d", i, n)
		}
		return nil
	})
}

func typed(t *testing.T, s store.Store) {
	alice, bob := &api.User{}, &api.User{}
	for u, name := range map[*api.User]string{alice: "alice", bob: "bob"} {
		u.Metadata.Name, u.Metadata.UID = name, "uid-"+name
		u.Default()
	}
	update(t, s, func(tx store.Tx) error {
		for _, u := range []*api.User{bob, alice} {
			r, err := store.Encode(u)
			if err != nil {
				return err
			}
			if r.Key != u.Key() || r.UID != u.Metadata.UID {
				t.Errorf("Encode: %v, %q", r.Key, r.UID)
			}
			if err := tx.Put(r); err != nil {
				return err
			}
		}
		return tx.Put(record(api.KindGroup, "g", "1", 1))
	})
	view(t, s, func(now store.Reader) error {
		u, err := store.Get[*api.User](now, alice.Key())
		if err != nil || u.Metadata.UID != "uid-alice" || u.Kind != api.KindUser {
			t.Errorf("Get: %+v, %v", u, err)
		}
		if o, err := store.Get[api.Object](now, bob.Key()); err != nil || o.Header().Metadata.Name != "bob" {
			t.Errorf("Get of any Object: %+v, %v", o, err)
		}
		if _, err := store.Get[*api.Group](now, alice.Key()); err == nil {
			t.Error("a User was taken for a Group")
		}
		if _, err := store.Get[*api.User](now, api.Key{Group: api.GroupCore, Kind: api.KindUser, Name: "nobody"}); !api.HasCode(err, api.CodeNotFound) {
			t.Errorf("Get of nobody: %v, want NOT_FOUND", err)
		}
		var seen []string
		for u, err := range store.All[*api.User](now, api.KindUser) {
			if err != nil {
				return err
			}
			seen = append(seen, u.Metadata.Name)
		}
		if !slices.Equal(seen, []string{"alice", "bob"}) {
			t.Errorf("All: %v", seen)
		}
		return nil
	})
}

func survives(t *testing.T, open func(*testing.T, string) store.Store) {
	dir := t.TempDir()
	want := map[api.Key]store.Record{}
	var last api.Revision
	for round := range 4 {
		s := open(t, dir)
		if round > 0 {
			if now := revision(t, s); now != last {
				t.Errorf("opened at %v, closed at %v", now, last)
			}
			if m, err := s.Mark(t.Context(), "round"); err != nil || string(m) != strconv.Itoa(round-1) {
				t.Errorf("the mark of round %d is %q, %v", round-1, m, err)
			}
		}
		checkState(t, s, want)
		r := record(api.KindUser, fmt.Sprint("u", round), "1", round)
		shared := record(api.KindUser, "shared", "1", round)
		r.Revision = put(t, s, r, shared)
		shared.Revision, last = r.Revision, r.Revision
		want[r.Key], want[shared.Key] = r, shared
		if old := record(api.KindUser, fmt.Sprint("u", round-2), "", 0).Key; round >= 2 {
			last = remove(t, s, old)
			delete(want, old)
		}
		if err := s.SetMark(t.Context(), "round", []byte(strconv.Itoa(round))); err != nil {
			t.Error(err)
		}
		checkState(t, s, want)
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	s := open(t, dir)
	defer s.Close()
	checkState(t, s, replay(t, follow(t, s, api.Revision{}, int(last.Number))))
}

func watchSurvives(t *testing.T, open func(*testing.T, string) store.Store) {
	dir := t.TempDir()
	var seen, later []store.Commit
	from := api.Revision{Epoch: 1}
	for round := range 3 {
		s := open(t, dir)
		for i := range 5 {
			put(t, s, record(api.KindUser, fmt.Sprint("u", i), "1", round))
		}
		remove(t, s, record(api.KindUser, "u3", "", 0).Key)
		// Four of the six are seen in this life, the others in a later one.
		cs := follow(t, s, from, 4)
		seen = append(seen, cs...)
		from = cs[len(cs)-1].Revision
		later = append(later, follow(t, s, api.Revision{Epoch: 1, Number: uint64(6 * round)}, 6)...)
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	s := open(t, dir)
	defer s.Close()
	seen = append(seen, follow(t, s, from, 18-len(seen))...)
	checkOrder(t, api.Revision{Epoch: 1}, seen)
	if !slices.EqualFunc(seen, later, sameCommit) {
		t.Error("watchers before and after opening again were told different things")
	}
	state := replay(t, seen)
	checkState(t, s, state)
	if n := len(slices.Collect(maps.Keys(state))); n != 4 {
		t.Errorf("there are %d Objects, want 4", n)
	}
}
