package storetest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"cardea/api"
	"cardea/store"
)

// RunShared holds Stores that are open on the same medium, as those of several
// processes are, to the contract. open opens what is at a place, a directory that
// is empty at first; the suite closes it.
func RunShared(t *testing.T, open func(t *testing.T, place string) store.Store) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, []store.Store)
	}{
		{"writers of several processes have one order", sharedOrder},
		{"of several processes that make a name, one does", sharedNames},
		{"what one process was told, all see", sharedViews},
		{"a new epoch is seen by all processes", sharedRenewal},
	} {
		t.Run(c.name, func(t *testing.T) {
			place := t.TempDir()
			var all []store.Store
			for range 3 {
				s := open(t, place)
				defer s.Close()
				all = append(all, s)
			}
			c.run(t, all)
		})
	}
}

func sharedOrder(t *testing.T, all []store.Store) {
	const rounds = 25
	n := record(api.KindUser, "n", "1", 0)
	start := put(t, all[0], n)
	total := rounds * len(all) * 2
	var wg sync.WaitGroup
	seen := make([][]store.Commit, len(all))
	for i, s := range all {
		wg.Go(func() { seen[i] = follow(t, s, start, total) })
		for range 2 {
			wg.Go(func() {
				for range rounds {
					_, err := s.Update(t.Context(), fmt.Sprint("p", i), func(tx store.Tx) error {
						r, err := tx.Get(n.Key)
						if err != nil {
							return err
						}
						return tx.Put(record(api.KindUser, "n", "1", value(t, r)+1))
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	for i, cs := range seen {
		if len(cs) != total {
			t.Fatalf("a watcher saw %d commits of %d", len(cs), total)
		}
		checkOrder(t, start, cs)
		for j, c := range cs {
			if !sameCommit(c, seen[0][j]) {
				t.Fatalf("watchers of two processes were told %+v and %+v", c, seen[0][j])
			}
			if got := value(t, c.Changes[0].Record); got != j+1 {
				t.Fatalf("process %d: the value of %v is %d, want %d", i, c.Revision, got, j+1)
			}
		}
	}
}

func sharedNames(t *testing.T, all []store.Store) {
	var wg sync.WaitGroup
	for round := range 10 {
		name := fmt.Sprint("race", round)
		made := make(chan string, len(all))
		for i, s := range all {
			wg.Go(func() {
				uid := fmt.Sprint("u", i)
				_, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(record(api.KindUser, name, uid, 1)) })
				if err == nil {
					made <- uid
				} else if !api.HasCode(err, api.CodeConflict) {
					t.Errorf("Put: %v, want CONFLICT", err)
				}
			})
		}
		wg.Wait()
		if len(made) != 1 {
			t.Fatalf("%d Objects were made under one name", len(made))
		}
		uid := <-made
		for _, s := range all {
			if r, err := get(t, s, record(api.KindUser, name, "", 0).Key); err != nil || r.UID != uid {
				t.Errorf("the name is that of %q, %v, want %q", r.UID, err, uid)
			}
		}
	}
}

func sharedViews(t *testing.T, all []store.Store) {
	for i := range 10 {
		a := record(api.KindUser, "a", "1", i)
		at := put(t, all[i%len(all)], a)
		mark := []byte(strconv.Itoa(i))
		if err := all[i%len(all)].SetMark(t.Context(), "m", mark); err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if r, err := get(t, s, a.Key); err != nil || r.Revision != at {
				t.Errorf("a view shows %v, %v, after %v was acknowledged", r.Revision, err, at)
			}
			if m, err := s.Mark(t.Context(), "m"); err != nil || string(m) != string(mark) {
				t.Errorf("the mark is %q, %v, want %q", m, err, mark)
			}
		}
	}
}

func sharedRenewal(t *testing.T, all []store.Store) {
	old := put(t, all[0], record(api.KindUser, "a", "1", 1))
	var wg sync.WaitGroup
	for _, s := range all {
		for range 2 {
			wg.Go(func() { compacted(t, s, old) })
		}
	}
	now, err := all[1].Renew(t.Context(), "", sequence(record(api.KindUser, "b", "2", 1)))
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for i, s := range all { // and go on in it
		if r := revision(t, s); r.Epoch != now.Epoch {
			t.Errorf("process %d is at %v after %v", i, r, now)
		}
		put(t, s, record(api.KindUser, fmt.Sprint("c", i), "3", 1))
	}
	for _, s := range all {
		checkOrder(t, now, follow(t, s, now, len(all)))
	}
}

// The child of RunKilled finds in the environment what to do.
const (
	killPlace = "CARDEA_TEST_KILL"
	killRound = "CARDEA_TEST_ROUND"
)

// RunKilled holds a Store to what it promises when a process is killed that
// writes: what was acknowledged is there, and the history has no gap. place is
// what open opens; it is empty. The package has a test of that name, which calls
// KillChild: it runs in the process that is killed.
func RunKilled(t *testing.T, child, place string, open func(t *testing.T, place string) store.Store) {
	acked := map[string]string{} // name to revision
	for round := range 4 {
		enough := 50 + 25*round
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+child+"$")
		cmd.Env = append(os.Environ(), killPlace+"="+place, fmt.Sprint(killRound, "=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, n := bufio.NewScanner(out), 0
		for lines.Scan() {
			name, rev, ok := strings.Cut(lines.Text(), " ")
			if !ok || acked[name] != "" { // a line that was cut short by the kill has no revision in full
				continue
			}
			acked[name] = rev
			if n++; n == enough {
				if err := cmd.Process.Kill(); err != nil { // and read what it said before
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // killed
		if n < enough {
			t.Fatalf("the child said only %d lines", n)
		}
		s := open(t, place)
		checkAcknowledged(t, s, acked)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// checkAcknowledged fails unless the Users of those names are there, at those
// revisions, and the history is whole.
func checkAcknowledged(t *testing.T, s store.Store, acked map[string]string) {
	t.Helper()
	there := map[string]string{}
	var now api.Revision
	view(t, s, func(r store.Reader) error {
		now = r.Revision()
		for rec, err := range r.List(api.GroupCore, api.KindUser) {
			if err != nil {
				return err
			}
			there[rec.Key.Name] = rec.Revision.String()
		}
		return nil
	})
	for name, rev := range acked {
		if there[name] != rev {
			t.Errorf("%s was acknowledged at %s and is there at %q", name, rev, there[name])
		}
	}
	cs := follow(t, s, api.Revision{}, int(now.Number))
	checkOrder(t, api.Revision{Epoch: now.Epoch}, cs)
	for _, c := range cs {
		if len(c.Changes) != 2 {
			t.Fatalf("%v has %d changes, want 2", c.Revision, len(c.Changes))
		}
	}
	checkState(t, s, replay(t, cs))
}

// KillChild is what runs in the process that RunKilled kills.
func KillChild(t *testing.T, open func(t *testing.T, place string) store.Store) {
	place := os.Getenv(killPlace)
	if place == "" {
		t.Skip("run by RunKilled")
	}
	round, err := strconv.Atoi(os.Getenv(killRound))
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, place)
	defer s.Close()
	writeAll(t, s, round, func(name string, at api.Revision) bool {
		// One write(2): a line is there or not.
		_, err := os.Stdout.WriteString(name + " " + at.String() + "\n")
		return err == nil
	})
}

// writeAll writes from several goroutines, each commit a User of a new name and a
// Group, until acked, which is told of each, returns false, or something fails.
func writeAll(t *testing.T, s store.Store, round int, acked func(name string, at api.Revision) bool) {
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				name := fmt.Sprintf("r%d-w%d-%d", round, w, i)
				r, err := s.Update(t.Context(), "", func(tx store.Tx) error {
					return errors.Join(tx.Put(record(api.KindUser, name, "1", i)), tx.Put(record(api.KindGroup, fmt.Sprint(w), "1", round<<32+i))) // never what is there already
				})
				if err != nil {
					t.Error(err)
					return
				}
				if !acked(name, r) {
					return
				}
			}
		})
	}
	wg.Wait()
}

// RunRestarted holds a Store whose server goes away and comes back, while it
// writes and is watched, to the contract: nobody notices, but by the time it
// takes. It calls restart, which returns when the server is back, a few times.
func RunRestarted(t *testing.T, s store.Store, restart func(round int)) {
	const writers, each, restarts = 8, 50, 4
	const total = writers * each
	start := revision(t, s)
	var wg sync.WaitGroup
	var seen [3][]store.Commit
	for i := range seen {
		wg.Go(func() { seen[i] = follow(t, s, start, total) })
	}
	acked := make(chan api.Revision, total)
	for w := range writers {
		wg.Go(func() {
			own := record(api.KindUser, fmt.Sprint("w", w), "1", 0)
			for range each {
				r, err := s.Update(t.Context(), "", func(tx store.Tx) error {
					n := 0
					if is, err := tx.Get(own.Key); err == nil {
						n = value(t, is)
					} else if !api.HasCode(err, api.CodeNotFound) {
						return err
					}
					return tx.Put(record(api.KindUser, own.Key.Name, "1", n+1))
				})
				if err != nil {
					t.Errorf("Update: %v", err)
				}
				acked <- r // a failed one, too: somebody counts
			}
		})
		wg.Go(func() {
			for range each / 5 { // readers
				get(t, s, record(api.KindUser, "w0", "1", 0).Key)
			}
		})
	}
	told := map[api.Revision]bool{}
	for round := range restarts {
		for range total / (restarts + 1) {
			told[<-acked] = true
		}
		restart(round)
	}
	wg.Wait()
	close(acked)
	for r := range acked {
		told[r] = true
	}
	if len(told) != total || told[api.Revision{}] {
		t.Errorf("%d commits were acknowledged, want %d", len(told), total)
	}
	if now := revision(t, s); now != (api.Revision{Epoch: start.Epoch, Number: start.Number + total}) {
		t.Errorf("%d writes led from %v to %v", total, start, now)
	}
	for _, cs := range seen {
		checkOrder(t, start, cs)
	}
	view(t, s, func(now store.Reader) error {
		for w := range writers {
			r, err := now.Get(record(api.KindUser, fmt.Sprint("w", w), "1", 0).Key)
			if err != nil {
				return err
			}
			if v := value(t, r); v != each {
				t.Errorf("%d increments made %d", each, v)
			}
		}
		return nil
	})
}
