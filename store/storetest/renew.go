package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"cardea/api"
	"cardea/store"
)

func allOrder(t *testing.T, s store.Store) {
	var want []api.Key
	for _, group := range []string{"", "core", "coreX", "getambassador.io"} {
		for _, kind := range []string{"Service", "User"} {
			for _, namespace := range []string{"", "a", "b"} {
				for i := range 50 {
					want = append(want, api.Key{Group: group, Kind: kind, Namespace: namespace, Name: fmt.Sprintf("n%02d", i)})
				}
			}
		}
	}
	var rs []store.Record
	for i := range want {
		rs = append(rs, store.Record{Key: want[i*7919%len(want)], UID: "u", JSON: []byte("{}")})
	}
	put(t, s, rs...)
	check := func(when string, r store.Reader, want []api.Key) {
		t.Helper()
		rs, err := everything(r)
		if err != nil {
			t.Fatal(err)
		}
		var got []api.Key
		for _, r := range rs {
			got = append(got, r.Key)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: All yields %d Objects that are not the %d wanted in their order", when, len(got), len(want))
		}
	}
	view(t, s, func(now store.Reader) error {
		check("a view", now, want)
		n := 0
		for range now.All() { // it can be left early
			if n++; n == 3 {
				break
			}
		}
		return nil
	})
	update(t, s, func(tx store.Tx) error {
		first, last := api.Key{Kind: "A", Name: "a"}, api.Key{Group: "z", Kind: "Z", Name: "z"}
		own := slices.Concat([]api.Key{first}, want[1:], []api.Key{last})
		err := errors.Join(tx.Delete(want[0]), tx.Put(store.Record{Key: first, JSON: []byte("{}")}), tx.Put(store.Record{Key: last, JSON: []byte("{}")}))
		check("a transaction", tx, own)
		return err
	})
}

func renew(t *testing.T, s store.Store) {
	old := put(t, s, record(api.KindUser, "a", "1", 1), record(api.KindUser, "b", "2", 1), record(api.KindGroup, "g", "3", 1))
	if err := s.SetMark(t.Context(), "head", []byte("mine")); err != nil {
		t.Error(err)
	}
	// Those who wait are told, and so are those who come later with an old revision.
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { compacted(t, s, old) })
	}
	want := []store.Record{
		record(api.KindUser, "a", "1", 2), // changed
		record(api.KindUser, "b", "9", 1), // another under the same name
		record(api.KindUser, "c", "4", 1), // new; and the Group is gone
	}
	now, err := s.Renew(t.Context(), "restorer", sequence(want...))
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if now.Epoch != old.Epoch+1 || now != revision(t, s) {
		t.Errorf("renewed at %v after %v; the store is at %v", now, old, revision(t, s))
	}
	state := map[api.Key]store.Record{}
	for _, r := range want {
		r.Revision = now
		state[r.Key] = r
	}
	checkState(t, s, state)
	for _, from := range []api.Revision{old, {Epoch: old.Epoch}, {Epoch: old.Epoch, Number: now.Number}, {Epoch: now.Epoch, Number: now.Number - 2}, {}} {
		if from.Number < now.Number {
			compacted(t, s, from)
		}
	}
	// From its beginning the new epoch can be watched: one commit has it all.
	next := put(t, s, record(api.KindUser, "d", "5", 1))
	cs := follow(t, s, api.Revision{Epoch: now.Epoch, Number: now.Number - 1}, 2)
	if len(cs) != 2 || cs[0].Revision != now || cs[0].Actor != "restorer" || cs[1].Revision != next || next.Number != now.Number+1 {
		t.Fatalf("the new epoch began with %+v", cs)
	}
	checkState(t, s, replay(t, cs))
	if m, err := s.Mark(t.Context(), "head"); err != nil || string(m) != "mine" {
		t.Errorf("the mark is %q, %v", m, err)
	}
	// Names are unique still, and what is restored can be changed.
	if _, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(record(api.KindUser, "b", "2", 2)) }); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("Put under a name that is taken: %v, want CONFLICT", err)
	}
	remove(t, s, record(api.KindUser, "b", "9", 0).Key)

	// Many, and again.
	var many []store.Record
	for i := range 1200 { // more than are kept back
		many = append(many, record(api.KindNamespace, fmt.Sprintf("ns-%04d", i), "1", i))
	}
	for round := range 2 {
		again, err := s.Renew(t.Context(), "", sequence(many...))
		if err != nil || again.Epoch != now.Epoch+1+uint64(round) {
			t.Fatalf("renewed again: %v, %v", again, err)
		}
		view(t, s, func(r store.Reader) error {
			got, err := everything(r)
			if !slices.Equal(names(got), names(many)) {
				t.Errorf("there are %d Objects, want %d", len(got), len(many))
			}
			return err
		})
	}
}

// compacted fails unless a watch from there ends with ErrCompacted and nothing else.
func compacted(t *testing.T, s store.Store, from api.Revision) {
	t.Helper()
	n := 0
	for c, err := range s.Watch(t.Context(), from) {
		if n++; n > 1 || !errors.Is(err, store.ErrCompacted) {
			t.Errorf("Watch from %v: %v, %v, want ErrCompacted alone", from, c.Revision, err)
			return
		}
	}
	if n == 0 {
		t.Errorf("Watch from %v ended without an error", from)
	}
}

func failedRenewal(t *testing.T, s store.Store) {
	a := record(api.KindUser, "a", "1", 1)
	a.Revision = put(t, s, a)
	before := map[api.Key]store.Record{a.Key: a}
	oops := errors.New("oops")
	ctx := t.Context()
	leaving, leave := context.WithCancel(ctx)
	defer leave()
	var many []store.Record
	for i := range 1500 { // more than are kept back
		many = append(many, record(api.KindNamespace, fmt.Sprintf("ns-%04d", i), "1", i))
	}
	b, c := record(api.KindUser, "b", "2", 1), record(api.KindUser, "c", "3", 1)
	for name, try := range map[string]struct {
		ctx  context.Context
		all  func(yield func(store.Record, error) bool)
		says func(error) bool
	}{
		"it yields an error": {ctx, func(yield func(store.Record, error) bool) {
			for _, r := range many {
				if !yield(r, nil) {
					return
				}
			}
			yield(store.Record{}, oops)
		}, func(err error) bool { return errors.Is(err, oops) }},
		"the caller leaves": {leaving, func(yield func(store.Record, error) bool) {
			for _, r := range many {
				if r.Key.Name == "ns-1100" {
					leave()
				}
				if !yield(r, nil) {
					return
				}
			}
		}, func(err error) bool { return errors.Is(err, context.Canceled) }},
		"out of order": {ctx, sequence(append(many, c, b)...), func(err error) bool {
			return api.HasCode(err, api.CodeInvalid) && strings.Contains(err.Error(), "User/b comes after User/c")
		}},
		"one twice": {ctx, sequence(b, b), func(err error) bool { return api.HasCode(err, api.CodeInvalid) }},
	} {
		if r, err := s.Renew(try.ctx, "", try.all); !try.says(err) {
			t.Errorf("%s: %v, %v", name, r, err)
		}
		checkState(t, s, before)
		if now := revision(t, s); now != a.Revision {
			t.Errorf("%s: the store went from %v to %v", name, a.Revision, now)
		}
	}
	func() {
		defer func() {
			if p := recover(); p != "boo" {
				t.Errorf("the caller recovered %v, want boo", p)
			}
		}()
		_, _ = s.Renew(t.Context(), "", func(yield func(store.Record, error) bool) {
			yield(c, nil)
			panic("boo")
		})
	}()
	checkState(t, s, before)
	// Nobody else suffers, and watchers hear nothing of it.
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			_, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(record(api.KindUser, fmt.Sprint("u", i), "1", i)) })
			if err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := s.Renew(t.Context(), "", sequence(b, b)); !api.HasCode(err, api.CodeInvalid) {
				t.Errorf("Renew: %v, want INVALID", err)
			}
		})
	}
	wg.Wait()
	checkOrder(t, a.Revision, follow(t, s, a.Revision, 10))
}

func renewToNothing(t *testing.T, s store.Store) {
	old := put(t, s, record(api.KindUser, "a", "1", 1))
	now, err := s.Renew(t.Context(), "", sequence())
	if err != nil || now.Epoch != old.Epoch+1 || now != revision(t, s) {
		t.Fatalf("renewed at %v after %v, %v; the store is at %v", now, old, err, revision(t, s))
	}
	checkState(t, s, nil)
	compacted(t, s, old)
	a := record(api.KindUser, "a", "2", 1)
	next := put(t, s, a)
	cs := follow(t, s, now, 1)
	if len(cs) != 1 || cs[0].Revision != next {
		t.Errorf("the first commit after %v is %+v, want %v", now, cs, next)
	}
	checkOrder(t, now, cs)
}
