package sqlite_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/store"
	"cardea/store/sqlite"
	"cardea/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func record(kind, name, uid string, v int) store.Record {
	return store.Record{
		Key:  api.Key{Group: api.GroupCore, Kind: kind, Name: name},
		UID:  uid,
		JSON: json.RawMessage(fmt.Sprintf(`{"kind":%q,"metadata":{"name":%q,"uid":%q},"spec":{"attrs":{"v":%d}}}`, kind, name, uid, v)),
	}
}

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

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, file(t)) })
}

func TestDurable(t *testing.T) {
	storetest.RunDurable(t, openIn)
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
		{"of a newer version", "this store has schema 99, this binary knows up to 2: use cardea ≥ the version", func(path string) {
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
	storetest.RunPruned(t, func(t *testing.T) storetest.Pruner { return open(t, file(t)) })
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

func TestShared(t *testing.T) { storetest.RunShared(t, openIn) }

func TestKilled(t *testing.T) { storetest.RunKilled(t, "TestKilledChild", t.TempDir(), openIn) }

func TestKilledChild(t *testing.T) { storetest.KillChild(t, openIn) }

func openIn(t *testing.T, dir string) store.Store { return open(t, filepath.Join(dir, "cardea.db")) }
