package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"cardea/store"
	"cardea/store/postgres"
	"cardea/store/postgres/pgtest"
	"cardea/store/storetest"
)

// launch starts the server of all tests when the first needs it.
var launch = sync.OnceValues(func() (*pgtest.Server, error) { return pgtest.Launch(false) })

// launched is whether it was needed.
var launched atomic.Bool

func TestMain(m *testing.M) {
	code := m.Run()
	if launched.Load() {
		if server, err := launch(); err == nil {
			if err := server.Remove(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// databases counts, for their names.
var databases atomic.Int64

// need returns the server, or skips.
func need(t testing.TB) *pgtest.Server {
	t.Helper()
	launched.Store(true)
	server, err := launch()
	if errors.Is(err, pgtest.ErrMissing) {
		t.Skip("skipped: " + err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// database returns the URL of a new one.
func database(t testing.TB) string {
	t.Helper()
	return need(t).Create(t, fmt.Sprintf("t%d", databases.Add(1)))
}

// A running is a Store whose Run runs until Close.
type running struct {
	*postgres.Store
	run sync.WaitGroup
}

func (r *running) Close() error {
	err := r.Store.Close()
	r.run.Wait()
	return err
}

func open(t testing.TB, url string, opts postgres.Options) *running {
	t.Helper()
	s, err := postgres.Open(t.Context(), url, opts)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Store: s}
	r.run.Go(func() { s.Run(context.WithoutCancel(t.Context())) })
	t.Cleanup(func() { r.Close() })
	return r
}

func TestContract(t *testing.T) {
	need(t) // before the suite looks for what a store leaves behind
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, database(t), postgres.Options{}) })
}

// openIn opens the database that stands for a directory.
func openIn(t *testing.T, dir string) store.Store {
	return open(t, databaseOf(t, dir), postgres.Options{})
}

// databaseOf returns the URL of the database that stands for a directory, new if
// the directory is empty.
func databaseOf(t *testing.T, dir string) (url string) {
	t.Helper()
	note := filepath.Join(dir, "url")
	if b, err := os.ReadFile(note); err == nil {
		return string(b)
	}
	url = database(t)
	if err := os.WriteFile(note, []byte(url), 0o600); err != nil {
		t.Fatal(err)
	}
	return url
}

func TestDurable(t *testing.T) { storetest.RunDurable(t, openIn) }

func TestShared(t *testing.T) { storetest.RunShared(t, openIn) }

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	databaseOf(t, dir)
	storetest.RunKilled(t, "TestKilledChild", dir, openIn)
}

func TestKilledChild(t *testing.T) { storetest.KillChild(t, openIn) }

// The server crashes, or is restarted, while it is written to and watched.
func TestRestarted(t *testing.T) {
	own := pgtest.New(t, false)
	storetest.RunRestarted(t, open(t, own.URL("postgres"), postgres.Options{}), func(round int) {
		if err := errors.Join(own.Stop(round%2 == 0), own.Start()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPrune(t *testing.T) {
	storetest.RunPruned(t, func(t *testing.T) storetest.Pruner { return open(t, database(t), postgres.Options{}) })
}
