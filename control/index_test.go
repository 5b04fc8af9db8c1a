package control

import (
	"context"
	"fmt"
	"iter"
	"testing"
	"time"

	"cardea/api"
	"cardea/store"
	"cardea/store/memory"
)

// counting is a store that counts what is asked of it.
type counting struct {
	store.Store
	views, watches int
}

func (c *counting) View(ctx context.Context, f func(store.Reader) error) error {
	c.views++
	return c.Store.View(ctx, f)
}

func (c *counting) Watch(ctx context.Context, from api.Revision) iter.Seq2[store.Commit, error] {
	c.watches++
	return c.Store.Watch(ctx, from)
}

func TestIndex(t *testing.T) {
	st := &counting{Store: memory.NewKeeping(20)}
	defer st.Close()
	group := func(name, uid string) *api.Group {
		g := &api.Group{Head: api.Head{Metadata: api.Metadata{Name: name, UID: uid}}}
		g.Default()
		return g
	}
	x := newIndex(api.KindGroup)
	want := func(uid, name string) {
		t.Helper()
		k, err := x.find(t.Context(), st, uid)
		if err != nil || k.Name != name {
			t.Errorf("%s is %q, %v; want %q", uid, k.Name, err, name)
		}
	}
	want("u1", "")
	write(t, st, group("g1", "u1"), aSession("s1", time.Time{}))
	want("u1", "g1")
	want("s1", "") // is of another kind
	write(t, st, group("g2", "u2"))
	write(t, st, group("g3", "u3"))
	want("u3", "g3")
	want("u2", "g2")

	// Made again under its name.
	_, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
		if err := tx.Delete(group("g1", "").Key()); err != nil {
			return err
		}
		return put(tx, group("g1", "u4"))
	})
	if err != nil {
		t.Fatal(err)
	}
	want("u4", "g1")
	want("u1", "")

	// What is known, and what is not there while nothing changes, costs no search.
	before := *st
	for range 10 {
		want("u3", "g3")
		want("u9", "")
	}
	if st.views != before.views+10 || st.watches != before.watches {
		t.Errorf("it took %d views and %d watches", st.views-before.views, st.watches-before.watches)
	}
	// Further back than history reaches.
	for i := range 50 {
		write(t, st, group(fmt.Sprintf("more-%d", i), fmt.Sprintf("m%d", i)))
	}
	want("m0", "more-0")
	want("u4", "g1")

	count := func(user string, n int) {
		t.Helper()
		if got, err := x.count(t.Context(), st, user); err != nil || got != n {
			t.Errorf("%d are of %q, %v; want %d", got, user, err, n)
		}
	}
	count("more", 50)
	write(t, st, group("bob-1", "b1"), group("bob-2", "b2"), group("bob-x-3", "b3"), group("bob", "b4"))
	write(t, st, group("bob-2", "b2")) // changed
	count("bob", 2)
	count("bob-x", 1)
	_, err = st.Update(t.Context(), "test", func(tx store.Tx) error { return tx.Delete(group("bob-1", "").Key()) })
	if err != nil {
		t.Fatal(err)
	}
	count("bob", 1)
}
