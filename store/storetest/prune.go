package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/store"
)

// A Pruner is a Store that keeps history for 30 days, that of Sessions for 7, and
// drops what is older when it is told to.
type Pruner interface {
	store.Store
	Prune(ctx context.Context, now time.Time) error
}

// RunPruned holds a Pruner to what it promises. open returns a new, empty one; the
// suite closes it.
func RunPruned(t *testing.T, open func(t *testing.T) Pruner) {
	t.Run("history is kept as long as it is promised", func(t *testing.T) { prune(t, open(t)) })
	t.Run("much history is dropped in many turns", func(t *testing.T) { pruneMuch(t, open(t)) })
}

// next returns the first commit after from, or the error of the watch.
func next(t *testing.T, s store.Store, from api.Revision) (store.Commit, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for c, err := range s.Watch(ctx, from) {
		return c, err
	}
	return store.Commit{}, errors.New("the watch ended")
}

func prune(t *testing.T, s Pruner) {
	const day = 24 * time.Hour
	defer s.Close()
	start := time.Now()
	put(t, s, record(api.KindUser, "unchanged", "1", 1))
	for v := range 3 {
		put(t, s, record(api.KindUser, "alice", "1", v))
		put(t, s, record(api.KindSession, "alice-x", "1", v))
	}
	put(t, s, record(api.KindGroup, "g", "1", 1))
	deleted := remove(t, s, record(api.KindGroup, "g", "", 0).Key)
	state := func() string {
		t.Helper()
		var got []string
		view(t, s, func(r store.Reader) error {
			rs, err := everything(r)
			for _, rec := range rs {
				got = append(got, rec.Key.String()+"@"+rec.Revision.String())
			}
			return err
		})
		return strings.Join(got, " ")
	}
	want := state()
	for _, c := range []struct {
		after      time.Duration
		reaches    uint64 // how far back a watch can begin
		compaction string
	}{
		{6 * day, 0, "nothing is old"},
		{8 * day, 5, "the first two states of the Session, of revisions 3 and 5, are gone"},
		{29 * day, 5, "nothing more"},
		{31 * day, deleted.Number, "all that is not the state is gone"},
	} {
		if err := s.Prune(t.Context(), start.Add(c.after)); err != nil {
			t.Fatal(err)
		}
		if got := state(); got != want {
			t.Fatalf("after %v the state is %s, want %s", c.after, got, want)
		}
		for n := uint64(0); n < deleted.Number; n++ {
			k, err := next(t, s, api.Revision{Epoch: 1, Number: n})
			if n < c.reaches {
				if !errors.Is(err, store.ErrCompacted) {
					t.Errorf("after %v (%s): a watch from %d begins with %v, %v, want ErrCompacted", c.after, c.compaction, n, k.Revision, err)
				}
			} else if err != nil || k.Revision.Number != n+1 {
				t.Errorf("after %v (%s): a watch from %d begins with %v, %v", c.after, c.compaction, n, k.Revision, err)
			}
		}
		if c.reaches == 0 {
			continue
		}
		if _, err := next(t, s, api.Revision{}); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("after %v (%s): a watch of the whole history: %v, want ErrCompacted", c.after, c.compaction, err)
		}
	}
	// Numbers go on, though the rows of the latest are gone.
	if r := put(t, s, record(api.KindUser, "alice", "1", 9)); r.Number != deleted.Number+1 {
		t.Errorf("after %v came %v", deleted, r)
	}
}

func pruneMuch(t *testing.T, s Pruner) {
	defer s.Close()
	for v := range 3 {
		update(t, s, func(tx store.Tx) error {
			for i := range 600 { // more than one turn deletes
				if err := tx.Put(record(api.KindUser, fmt.Sprint("u", i), "1", v)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := s.Prune(t.Context(), time.Now().Add(40*24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := next(t, s, api.Revision{Epoch: 1, Number: 1}); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("Watch from 1: %v, want ErrCompacted", err)
	}
	if c, err := next(t, s, api.Revision{Epoch: 1, Number: 2}); err != nil || len(c.Changes) != 600 {
		t.Errorf("Watch from 2: %d changes, %v", len(c.Changes), err)
	}
}
