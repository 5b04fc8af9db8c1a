package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"cardea/api"
	"cardea/store"
	"cardea/store/postgres/pgtest"
)

func object(name string, v int) store.Record {
	return store.Record{Key: api.Key{Group: "core", Kind: "User", Name: name}, UID: name, JSON: fmt.Appendf(nil, `{"v":%d}`, v)}
}

func openAt(t *testing.T, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), url, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func write(t *testing.T, s *Store, name string, v int) api.Revision {
	t.Helper()
	r, err := s.Update(t.Context(), "tester", func(tx store.Tx) error { return tx.Put(object(name, v)) })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A forgetful is a connection that is lost when it is told to be: with what is
// written next, or with the answer to it.
type forgetful struct {
	net.Conn
	lose *atomic.Value // "", "question" or "answer"
}

func (c *forgetful) Write(b []byte) (int, error) {
	if !strings.Contains(string(b), "CARDEA-LOSE-THIS") {
		return c.Conn.Write(b)
	}
	switch c.lose.Swap("") {
	case "question":
		c.Conn.Close()
	case "answer":
		n, err := c.Conn.Write(b)
		// The server has done it when its answer comes.
		_, _ = c.Conn.Read(make([]byte, 1))
		c.Conn.Close()
		return n, err
	}
	return c.Conn.Write(b)
}

// When the connection is lost at the COMMIT, the transaction happens once, whether
// its answer was lost or it never came there.
func TestLostAtCommit(t *testing.T) {
	t.Parallel()
	s := openAt(t, pgtest.Start(t))
	var lose atomic.Value
	lose.Store("")
	s.writing.config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		return &forgetful{c, &lose}, err
	}
	hangUp(t.Context(), s.writing.conn)
	from := write(t, s, "n", 0)
	calls := 0
	increment := func() api.Revision {
		t.Helper()
		// The actor is only in what is written, which goes with the COMMIT.
		r, err := s.Update(t.Context(), "CARDEA-LOSE-THIS", func(tx store.Tx) error {
			calls++
			old, err := tx.Get(object("n", 0).Key)
			if err != nil {
				return err
			}
			var n int
			if _, err := fmt.Sscanf(string(old.JSON), `{"v":%d}`, &n); err != nil {
				return err
			}
			return tx.Put(object("n", n+1))
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for i, c := range []struct {
		lose  string
		calls int
	}{{"", 1}, {"answer", 1}, {"question", 2}, {"answer", 1}, {"", 1}} {
		lose.Store(c.lose)
		calls = 0
		if r := increment(); r.Number != from.Number+uint64(i)+1 || calls != c.calls {
			t.Errorf("with a lost %q: %v after %v in %d calls, want %d", c.lose, r, from, calls, c.calls)
		}
	}
	err := s.View(t.Context(), func(r store.Reader) error {
		n, err := r.Get(object("n", 0).Key)
		if string(n.JSON) != `{"v":5}` {
			t.Errorf("five increments made %s", n.JSON)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// Watchers of this process saw each once.
	n := uint64(0)
	for c, err := range s.Watch(t.Context(), from) {
		if n++; err != nil || c.Revision.Number != from.Number+n {
			t.Fatalf("the %dth commit is %v, %v", n, c.Revision, err)
		}
		if n == 5 {
			break
		}
	}
}

// A commit of another process wakes by its notification, and not only by the poll.
func TestNotification(t *testing.T) {
	t.Parallel()
	url := pgtest.Start(t)
	a, b := openAt(t, url), openAt(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	at := write(t, a, "a", 1)
	var run sync.WaitGroup
	ready, once := make(chan struct{}), sync.Once{}
	run.Go(func() {
		if err := b.hear(ctx, func() { once.Do(func() { close(ready) }) }); ctx.Err() == nil {
			t.Error(err)
		}
	})
	<-ready
	if _, _, ok := b.tail.After(at); !ok {
		t.Error("what was committed before is not known")
	}
	timeout := time.NewTimer(time.Minute)
	for i := range 5 {
		_, grown, _ := b.tail.After(at)
		at = write(t, a, "a", i+2)
		select {
		case <-grown: // nobody else touches the tail of b
		case <-timeout.C:
			t.Fatal("no notification came")
		}
	}
	// A notification of somebody else is not believed, nor one of another store.
	if _, err := a.writing.conn.Exec(ctx, "SELECT pg_notify('cardea', 'cardea'), pg_notify('cardea', 'other'), pg_notify('cardea', '')"); err != nil {
		t.Fatal(err)
	}
	_, grown, _ := b.tail.After(at)
	last := write(t, a, "b", 1)
	<-grown
	if last.Number != at.Number+1 {
		t.Errorf("%v came after %v", last, at)
	}
	cancel()
	run.Wait()
}

// After the server was away, commits of other processes wake again.
func TestListensAgain(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, false)
	a, b := openAt(t, server.URL("postgres")), openAt(t, server.URL("postgres"))
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { b.listen(ctx) })
	timeout := time.NewTimer(time.Minute)
	for round := range 3 {
		// What was committed before it listens wakes, too.
		_, grown, _ := b.tail.After(api.Revision{})
		at := write(t, a, "a", round)
		for {
			select {
			case <-grown: // nobody else touches the tail of b
			case <-timeout.C:
				t.Fatal("no notification came")
			}
			var ok bool
			if _, grown, ok = b.tail.After(at); ok {
				break
			}
		}
		if err := errors.Join(server.Stop(round%2 == 0), server.Start()); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	run.Wait()
}

// A standby that was promoted may have lost commits: it begins a new epoch, and
// those who saw more than it has list again.
func TestFailover(t *testing.T) {
	t.Parallel()
	first := pgtest.New(t, false)
	s := openAt(t, first.URL("postgres"))
	kept := write(t, s, "kept", 1)
	second, err := first.Standby()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := second.Remove(); err != nil {
			t.Error(err)
		}
	})
	if _, err := Open(t.Context(), second.URL("postgres"), Options{}); err == nil || !strings.Contains(err.Error(), "standby mode") {
		t.Errorf("Open of a standby: %v", err)
	}
	if err := first.Stop(true); err != nil {
		t.Fatal(err)
	}
	if err := second.Promote(); err != nil {
		t.Fatal(err)
	}
	// As if another process had been told of this, and the standby had not.
	lost := api.Revision{Epoch: kept.Epoch, Number: kept.Number + 1}
	n := openAt(t, second.URL("postgres"))
	for _, from := range []api.Revision{kept, lost, {}} {
		for c, err := range n.Watch(t.Context(), from) {
			if !errors.Is(err, store.ErrCompacted) {
				t.Errorf("Watch from %v: %v, %v, want ErrCompacted", from, c.Revision, err)
			}
		}
	}
	now := write(t, n, "new", 1)
	if now.Epoch != kept.Epoch+1 {
		t.Errorf("%v came after %v", now, kept)
	}
	err = n.View(t.Context(), func(r store.Reader) error {
		k, err := r.Get(object("kept", 0).Key)
		if k.Revision.Epoch != now.Epoch {
			t.Errorf("what was kept is of %v", k.Revision)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	n.Close()
	if again := openAt(t, second.URL("postgres")); write(t, again, "newer", 1).Epoch != now.Epoch {
		t.Error("it began another epoch, on the same server")
	}
}

// A database that cannot be used is refused, with the reason and the place, and
// left as it was.
func TestUnusable(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, false)
	newer := len(schema()) + 1
	sql := func(database string, statements ...string) {
		t.Helper()
		for _, x := range statements {
			if err := server.Exec(t.Context(), database, x); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, c := range []struct {
		name, want string
		make       func(database string)
	}{
		{"of a newer program", fmt.Sprintf("this store has schema %d, this binary knows up to %d: use cardea ≥ v9.1", newer, newer-1), func(d string) {
			sql(d, fmt.Sprintf("INSERT INTO cardea.migrations VALUES (%d, %d, now(), 'v9.1')", newer, newer))
		}},
		{"of a newer program that only adds", "", func(d string) {
			sql(d, fmt.Sprintf("INSERT INTO cardea.migrations VALUES (%d, %d, now(), 'v9.1')", newer, newer-1),
				"ALTER TABLE cardea.changes ADD more text NOT NULL DEFAULT ''", "ALTER TABLE cardea.marks ADD more text", "ALTER TABLE cardea.meta ADD more text")
		}},
		{"of another program", "there are tables of another program; name another schema", func(d string) {
			sql(d, "DROP SCHEMA cardea CASCADE", "CREATE SCHEMA cardea", "CREATE TABLE cardea.notes (text text)")
		}},
		{"emptied", "", func(d string) { sql(d, "DROP SCHEMA cardea CASCADE") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := fmt.Sprint("u", i)
			url := server.Create(t, d)
			openAt(t, url).Close()
			c.make(d)
			s, err := Open(t.Context(), url, Options{})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "database "+d) {
					t.Errorf("Open: %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			write(t, s, "a", 1)
			if err := s.SetMark(t.Context(), "m", []byte("x")); err != nil {
				t.Error(err)
			}
		})
	}
	sql("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
	for url, want := range map[string]string{
		server.URL("latin"): "the encoding of the database is LATIN1",
		server.URL("none"):  `database "none" does not exist`,
		"postgres://u:hunter2@127.0.0.1:1/app?sslmode=disable": "connection refused",
	} {
		if _, err := Open(t.Context(), url, Options{}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open: %v, want %q", err, want)
		}
	}
}

// What a role needs is to connect, and a schema of its own.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, false)
	url := server.Create(t, "app")
	as := func(role string) string { return strings.Replace(url, "user=app", "user="+role, 1) }
	for _, x := range []string{
		"CREATE ROLE maker LOGIN", "CREATE ROLE guest LOGIN", "CREATE ROLE stranger LOGIN",
		"GRANT CREATE ON DATABASE app TO maker", "REVOKE ALL ON DATABASE app FROM public", "GRANT CONNECT ON DATABASE app TO maker, guest, stranger",
	} {
		if err := server.Exec(t.Context(), "app", x); err != nil {
			t.Fatal(err)
		}
	}
	maker := openAt(t, as("maker"))
	write(t, maker, "a", 1)
	if maker.writing.origin == "" {
		t.Error("an ordinary role is not told which server it is")
	}
	// A role that owns nothing, as one process of a cluster that another one set up.
	for _, x := range []string{"GRANT USAGE ON SCHEMA cardea TO guest", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cardea TO guest"} {
		if err := server.Exec(t.Context(), "app", x); err != nil {
			t.Fatal(err)
		}
	}
	guest := openAt(t, as("guest"))
	write(t, guest, "b", 1)
	if err := guest.Prune(t.Context(), time.Now()); err != nil {
		t.Error(err)
	}
	_, err := Open(t.Context(), as("stranger"), Options{})
	if err == nil || !strings.Contains(err.Error(), "the role may not do this") {
		t.Errorf("Open by a role without rights: %v", err)
	}
}

// A server that is away for longer than Patience is told of, without its
// password, and a watch goes on when it is back.
func TestAway(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, false)
	s := openAt(t, server.URL("postgres"))
	s.patience = time.Second
	from := write(t, s, "a", 1)
	seen := make(chan store.Commit)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for c, err := range s.Watch(ctx, from) {
			if err != nil {
				t.Errorf("Watch: %v", err)
				return
			}
			seen <- c
		}
	})
	if err := server.Stop(false); err != nil {
		t.Fatal(err)
	}
	gone, stop := context.WithCancel(t.Context())
	var left sync.WaitGroup
	left.Go(func() { // who has no patience is let go
		if _, err := s.Update(gone, "", func(store.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("Update: %v", err)
		}
	})
	left.Go(func() {
		if err := s.View(gone, func(store.Reader) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("View: %v", err)
		}
	})
	stop()
	left.Wait()
	err := s.SetMark(t.Context(), "m", []byte("x"))
	if err == nil || !strings.Contains(err.Error(), s.String()) {
		t.Errorf("SetMark: %v", err)
	}
	err = s.View(t.Context(), func(store.Reader) error { return nil })
	if err == nil || !strings.Contains(err.Error(), s.String()) {
		t.Errorf("View: %v", err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	next := write(t, s, "a", 2)
	if c := <-seen; c.Revision != next {
		t.Errorf("the watch goes on with %v, want %v", c.Revision, next)
	}
	cancel()
	wg.Wait()
}

// A process that hangs in a transaction holds the others up only until the server
// ends that.
func TestLockIsWaitedFor(t *testing.T) {
	t.Parallel()
	url := pgtest.Start(t)
	s := openAt(t, url)
	from := write(t, s, "a", 1)
	c, err := pgx.ConnectConfig(t.Context(), s.writing.config)
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp(t.Context(), c)
	if _, err := c.Exec(t.Context(), "SET idle_in_transaction_session_timeout = '200ms'; BEGIN; UPDATE meta SET revision = 77"); err != nil {
		t.Fatal(err)
	}
	if r := write(t, s, "a", 2); r.Number != from.Number+1 {
		t.Errorf("%v came after %v", r, from)
	}
}
