package sqlite_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/store"
	"cardea/store/sqlite"
	"cardea/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func file(t *testing.T) string { return filepath.Join(t.TempDir(), "cardea.db") }

func set(t *testing.T, s store.Store, kind, name string, v int) api.Revision {
	t.Helper()
	r, err := s.Update(t.Context(), "tester", func(tx store.Tx) error { return tx.Put(record(kind, name, "1", v)) })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// next returns the first commit after from, or the error of the watch.
func next(t *testing.T, s store.Store, from api.Revision) (store.Commit, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for c, err := range s.Watch(ctx, from) {
		return c, err
	}
	return store.Commit{}, errors.New("the watch ended")
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, file(t)) })
}

func TestDurable(t *testing.T) {
	storetest.RunDurable(t, func(t *testing.T, dir string) store.Store { return open(t, filepath.Join(dir, "cardea.db")) })
}

func TestFileIsPrivate(t *testing.T) {
	path := file(t)
	if err := os.WriteFile(path, nil, 0o644); err != nil { // an empty file is an empty database
		t.Fatal(err)
	}
	s := open(t, path)
	set(t, s, api.KindUser, "a", 1)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		st, err := os.Stat(path + suffix)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 0600", path+suffix, st.Mode(), err)
		}
	}
}

func TestPathIsTakenAsItIs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a b?mode=memory&x=%20#é'.db")
	s := open(t, path)
	want := set(t, s, api.KindUser, "a", 1)
	s.Close()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != filepath.Base(path) {
		t.Errorf("files: %v, %v", files, err)
	}
	err = open(t, path).View(t.Context(), func(r store.Reader) error {
		if r.Revision() != want {
			t.Errorf("opened again at %v, want %v", r.Revision(), want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A file that cannot be used is named, with the reason, and left as it was.
func TestUnusableFiles(t *testing.T) {
	database := func(path string, statements ...string) {
		t.Helper()
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, s := range statements {
			if _, err := db.Exec(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name, want string
		make       func(path string)
	}{
		{"of a newer version", "written by a newer version of Cardea (schema 99, this one knows 1)", func(path string) {
			open(t, path).Close()
			database(path, "PRAGMA user_version = 99", "PRAGMA wal_checkpoint(TRUNCATE)")
		}},
		{"of another program", "a SQLite database of another program", func(path string) {
			database(path, "CREATE TABLE notes (text TEXT)")
		}},
		{"text", "is not a SQLite database", func(path string) {
			if err := os.WriteFile(path, []byte(strings.Repeat("Dear diary, ", 1000)), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"damaged", "is damaged; restore a backup", func(path string) {
			open(t, path).Close()
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i := 110; i < 4096; i++ { // the schema; the header stays
				b[i] = 0xa5
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := file(t)
			c.make(path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = sqlite.Open(t.Context(), path, sqlite.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("Open: %v, want %q and the path", err, c.want)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
				t.Errorf("the file was changed (%v)", err)
			}
		})
	}
	if _, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "no", "x.db"), sqlite.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open in a directory that is not there: %v", err)
	}
}

func TestPrune(t *testing.T) {
	const day = 24 * time.Hour
	s := open(t, file(t))
	start := time.Now()
	ancient := set(t, s, api.KindUser, "unchanged", 1)
	for v := range 3 {
		set(t, s, api.KindUser, "alice", v)
		set(t, s, api.KindSession, "alice-x", v)
	}
	last := set(t, s, api.KindGroup, "g", 1)
	deleted, err := s.Update(t.Context(), "tester", func(tx store.Tx) error { return tx.Delete(record(api.KindGroup, "g", "", 0).Key) })
	if err != nil {
		t.Fatal(err)
	}
	state := func() string {
		t.Helper()
		var got []string
		err := s.View(t.Context(), func(r store.Reader) error {
			for rec, err := range r.List(api.GroupCore, "") {
				if err != nil {
					return err
				}
				got = append(got, rec.Key.String()+"@"+rec.Revision.String())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
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
	if ancient.Compare(last) >= 0 {
		t.Error("the test made no sense")
	}
	// Numbers go on, though the rows of the latest are gone.
	if r := set(t, s, api.KindUser, "alice", 9); r.Number != deleted.Number+1 {
		t.Errorf("after %v came %v", deleted, r)
	}
}

func TestPruneMuch(t *testing.T) {
	s := open(t, file(t))
	for v := range 3 {
		_, err := s.Update(t.Context(), "", func(tx store.Tx) error {
			for i := range 600 { // more than one turn deletes
				if err := tx.Put(record(api.KindUser, fmt.Sprint("u", i), "1", v)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
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

func TestRunEnds(t *testing.T) {
	s := open(t, file(t))
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { s.Run(ctx) })
	cancel()
	wg.Wait()
	wg.Go(func() { s.Run(t.Context()) })
	s.Close()
	wg.Wait()
}

// Two Stores on one file, as of two processes, share one order of commits, and
// watchers of the one hear what the other commits.
func TestTwoStoresOnOneFile(t *testing.T) {
	const rounds = 25
	path := file(t)
	stores := []*sqlite.Store{open(t, path), open(t, path)}
	set(t, stores[0], api.KindUser, "n", 0)
	start, err := stores[1].Update(t.Context(), "", func(store.Tx) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, s := range stores {
		wg.Go(func() {
			for range rounds {
				_, err := s.Update(t.Context(), "", func(tx store.Tx) error {
					r, err := tx.Get(record(api.KindUser, "n", "", 0).Key)
					if err != nil {
						return err
					}
					r.JSON = append([]byte(" "), r.JSON...) // one byte longer
					return tx.Put(r)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			last := start
			for c, err := range s.Watch(ctx, start) {
				if err != nil || c.Revision.Number != last.Number+1 {
					t.Errorf("a watcher saw %v after %v, %v", c.Revision, last, err)
					return
				}
				if last = c.Revision; last.Number == start.Number+2*rounds {
					return
				}
			}
			t.Errorf("a watcher saw nothing after %v", last)
		})
	}
	wg.Wait()
	err = stores[0].View(t.Context(), func(r store.Reader) error {
		n, err := r.Get(record(api.KindUser, "n", "", 0).Key)
		if grown := len(n.JSON) - len(record(api.KindUser, "n", "1", 0).JSON); grown != 2*rounds {
			t.Errorf("%d increments of %d were kept", grown, 2*rounds)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// What was acknowledged is there after the process was killed, and the history
// has no gap.
func TestKill(t *testing.T) {
	path := file(t)
	acked := map[string]string{} // name to revision
	for round := range 4 {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillChild$")
		child.Env = append(os.Environ(), "CARDEA_TEST_KILL="+path, fmt.Sprint("CARDEA_TEST_ROUND=", round))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines, n := bufio.NewScanner(out), 0
		for lines.Scan() {
			name, rev, ok := strings.Cut(lines.Text(), " ")
			if !ok || acked[name] != "" { // a line that was cut short by the kill has no revision in full
				continue
			}
			acked[name] = rev
			if n++; n == 50+25*round {
				if err := child.Process.Kill(); err != nil { // and read what it said before
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait() // killed
		if n < 50+25*round {
			t.Fatalf("the child said only %d lines", n)
		}
		checkAfterKill(t, path, acked)
	}
}

func checkAfterKill(t *testing.T, path string, acked map[string]string) {
	s := open(t, path)
	defer s.Close()
	there := map[string]string{}
	var now api.Revision
	err := s.View(t.Context(), func(r store.Reader) error {
		now = r.Revision()
		for rec, err := range r.List(api.GroupCore, api.KindUser) {
			if err != nil {
				return err
			}
			there[rec.Key.Name] = rec.Revision.String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, rev := range acked {
		if there[name] != rev {
			t.Errorf("%s was acknowledged at %s and is there at %q", name, rev, there[name])
		}
	}
	seen := api.Revision{Epoch: 1}
	for c, err := range s.Watch(t.Context(), api.Revision{}) {
		if err != nil || c.Revision.Number != seen.Number+1 || len(c.Changes) != 2 {
			t.Fatalf("after %v the history has %v of %d changes, %v", seen, c.Revision, len(c.Changes), err)
		}
		if seen = c.Revision; seen == now {
			break
		}
	}
}

// TestKillChild is the process that TestKill kills.
func TestKillChild(t *testing.T) {
	path := os.Getenv("CARDEA_TEST_KILL")
	if path == "" {
		t.Skip("run by TestKill")
	}
	round, err := strconv.Atoi(os.Getenv("CARDEA_TEST_ROUND"))
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
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
				// One write(2): a line is there or not.
				if _, err := os.Stdout.WriteString(name + " " + r.String() + "\n"); err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
}
