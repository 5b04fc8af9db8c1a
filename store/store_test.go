package store_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/store"
)

func TestMigrate(t *testing.T) {
	known := []store.Migration{{Version: 1, Readable: 1}, {Version: 2, Readable: 1}}
	for _, c := range []struct {
		name  string
		found store.Schema
		todo  int
		err   string
	}{
		{"empty", store.Schema{}, 2, ""},
		{"of the version before", store.Schema{Version: 1}, 1, ""},
		{"of this version", store.Schema{Version: 2, Readable: 1}, 0, ""},
		{"newer by what adds", store.Schema{Version: 3, Readable: 2, Program: "v3.0"}, 0, ""},
		{"newer by more", store.Schema{Version: 3, Readable: 3, Program: "v3.0"}, 0, "this store has schema 3, this binary knows up to 2: use cardea ≥ v3.0"},
		{"newer by two versions", store.Schema{Version: 4, Readable: 3, Program: "v4.0"}, 0, "use cardea ≥ v4.0"},
		{"newer by what is not known", store.Schema{Version: 3}, 0, "use cardea ≥ the version that last used it"},
	} {
		todo, err := store.Migrate(known, c.found)
		if len(todo) != c.todo || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %d steps, %v, want %d, %q", c.name, len(todo), err, c.todo, c.err)
		}
		if len(todo) > 0 && todo[len(todo)-1].Version != 2 {
			t.Errorf("%s: the last step is to %d", c.name, todo[len(todo)-1].Version)
		}
	}
}

// What somebody else committed is not in the Tail, and is never taken for
// nothing: a follower reads it, in whichever order the Tail hears.
func TestTailSkips(t *testing.T) {
	commit := func(n uint64) store.Commit { return store.Commit{Revision: api.Revision{Epoch: 1, Number: n}} }
	for name, tell := range map[string]func(*store.Tail){
		"in order":     func(l *store.Tail) { l.Skip(commit(6).Revision); l.Append(commit(7)) },
		"skipped late": func(l *store.Tail) { l.Append(commit(7)); l.Skip(commit(6).Revision) },
		"added late":   func(l *store.Tail) { l.Skip(commit(7).Revision); l.Append(commit(6)); l.Append(commit(7)) },
		"not told":     func(l *store.Tail) { l.Append(commit(7)) },
	} {
		t.Run(name, func(t *testing.T) {
			tail := store.NewTail(commit(5).Revision, 10)
			tell(tail)
			reads := 0
			read := func(from api.Revision) (cs []store.Commit, _ error) {
				reads++
				for n := from.Number + 1; n <= 7; n++ {
					cs = append(cs, commit(n))
				}
				return cs, nil
			}
			var got []uint64
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for c, err := range tail.Follow(ctx, commit(5).Revision, time.Hour, nil, read) {
				if err != nil {
					t.Fatal(err)
				}
				if got = append(got, c.Revision.Number); c.Revision.Number == 7 {
					cancel()
				}
			}
			if !slices.Equal(got, []uint64{6, 7}) || reads == 0 {
				t.Errorf("saw %d in %d reads", got, reads)
			}
		})
	}
}

// One watcher looks for all whether another process has written, and all have it then.
func TestTailIsLookedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const watchers, poll = 10, time.Second
		commit := func(n uint64) store.Commit { return store.Commit{Revision: api.Revision{Epoch: 1, Number: n}} }
		tail := store.NewTail(commit(5).Revision, 10)
		var latest, reads, seen atomic.Uint64
		latest.Store(5)
		read := func(from api.Revision) (cs []store.Commit, _ error) {
			reads.Add(1)
			for n := from.Number + 1; n <= latest.Load(); n++ {
				cs = append(cs, commit(n))
			}
			return cs, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		var watching sync.WaitGroup
		for i := range watchers {
			watching.Go(func() {
				time.Sleep(time.Duration(i) * poll / watchers) // they do not begin at once
				for range tail.Follow(ctx, commit(5).Revision, poll, nil, read) {
					seen.Add(1)
				}
			})
		}
		time.Sleep(2 * poll)
		before := reads.Load()
		time.Sleep(time.Minute)
		if n := reads.Load() - before; n > uint64(time.Minute/poll)+1 {
			t.Errorf("%d watchers read %d times in a minute", watchers, n)
		}
		latest.Store(6)
		time.Sleep(2 * poll)
		if n := seen.Load(); n != watchers {
			t.Errorf("%d of %d have seen what another process wrote", n, watchers)
		}
		cancel()
		watching.Wait()
	})
}

// A batch that counts.
type batch struct {
	alone bool
	n     int
	lost  error
	ended chan<- int
}

func (b *batch) Lost() error { return b.lost }
func (b *batch) Finish(lost error) error {
	if lost == nil {
		b.ended <- b.n
	}
	return lost
}

// Alone takes nobody along, neither into the batch that is open nor into its own.
func TestAlone(t *testing.T) {
	ended := make(chan int, 100)
	line := store.NewLine(func(context.Context) (*batch, error) { return &batch{ended: ended}, nil })
	oops := errors.New("oops")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := line.Do(t.Context(), func(b *batch) error {
				if b.alone {
					t.Error("somebody joined")
				}
				b.n++
				return nil
			}); err != nil {
				t.Errorf("Do: %v", err)
			}
		})
		wg.Go(func() {
			if err := line.Alone(t.Context(), func(b *batch) error {
				if b.n != 0 {
					t.Error("others are in it")
				}
				b.alone = true
				return oops
			}); !errors.Is(err, oops) {
				t.Errorf("Alone: %v", err)
			}
		})
	}
	wg.Wait()
	close(ended)
	sum := 0
	for n := range ended {
		sum += n
	}
	if sum != 20 {
		t.Errorf("%d were committed, want 20", sum)
	}
}

// FuzzRevision: what is read is what is written.
func FuzzRevision(f *testing.F) {
	for _, s := range []string{"1.0", "0.0", "18446744073709551615.18446744073709551615", "1", ".", "1.2.3", "-1.2", "+1.2", "1.18446744073709551616", " 1.2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var r, again api.Revision
		if r.UnmarshalText([]byte(s)) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
			t.Errorf("%q is %v, and that is %v, %v", s, r, again, err)
		}
	})
}
