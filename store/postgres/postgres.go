// Package postgres is a store in a PostgreSQL database, for clusters of many
// processes.
//
// The table changes is the history; the current state is those of its rows that
// have not ended. One row, meta, has the revision: who writes locks it first and
// writes it last, so that all processes have one order of commits. Within a
// process many callers share one transaction and its fsync. A View is one
// read-only transaction that sees one snapshot. NOTIFY only wakes: watchers read
// the changes, and would find them without it a little later.
//
// What goes wrong between here and the server is tried again for a while
// ([Patience]), and a watch goes on for as long as it takes. A server that takes
// the place of another, as a promoted standby does, begins a new epoch.
//
// Connections are direct, or through a proxy that keeps sessions: LISTEN and the
// settings of a session are of no use in a pool of transactions.
package postgres

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"cardea/api"
	"cardea/store"
)

// Patience is how long a call waits for a server that cannot be reached.
const Patience = 10 * time.Second

const (
	tailLimit = 4096 // changes of the latest commits that are kept in memory
	watchStep = 512  // changes that a watcher reads at once

	// pollEvery is how long a commit of another process may go unnoticed when its
	// notification gets lost.
	pollEvery = time.Second

	pruneEvery = time.Hour
	pruneStep  = 1000 // rows that are deleted in one turn

	// Between two attempts.
	firstPause = 20 * time.Millisecond
	longPause  = time.Second
)

// Options of Open.
type Options = store.Options

// A Store is a [store.Store] in a PostgreSQL database.
type Store struct {
	place   string // where the database is, for errors
	secrets []string
	schema  string
	opts    Options

	quiet context.Context // that of Open, without its end: Close has none

	patience time.Duration // Patience, but in tests

	life    *store.Life
	line    *store.Line[*batch]
	writing *writing // of the batch that is open
	readers *pgxpool.Pool
	tail    *store.Tail
}

var _ store.Store = (*Store)(nil)

// Open connects to the database that a URL names, such as
// postgres://USER@HOST/DATABASE, and makes or migrates the schema: the first of
// the search_path of the URL, or else `cardea`. Over a network it asks for TLS
// and a certificate of that host, unless the URL has an sslmode. It does not wait
// for a server that is not there.
func Open(ctx context.Context, url string, opts Options) (_ *Store, err error) {
	config, schema, err := parse(url)
	if err != nil {
		return nil, err
	}
	s := &Store{
		place:    place(config.ConnConfig, schema),
		secrets:  []string{config.ConnConfig.Password},
		schema:   schema,
		opts:     opts.WithDefaults(),
		quiet:    context.WithoutCancel(ctx),
		patience: Patience,
		life:     store.NewLife(),
		writing:  &writing{config: writer(config)},
	}
	s.line = store.NewLine(s.begin)
	if err := s.prepare(ctx, config); err != nil {
		return nil, errors.Join(err, s.release())
	}
	return s, nil
}

// prepare connects, makes the database fit and sees how far it is.
func (s *Store) prepare(ctx context.Context, config *pgxpool.Config) error {
	c, _, err := s.writing.get(ctx, s)
	if err != nil {
		return err
	}
	if err := fit(ctx, c); err != nil {
		return s.explain(err)
	}
	if err := migrate(ctx, c, s.schema, s.opts.Program); err != nil {
		return s.explain(err)
	}
	if s.readers, err = pgxpool.NewWithConfig(context.WithoutCancel(ctx), config); err != nil {
		return s.explain(err)
	}
	s.tail = store.NewTail(api.Revision{}, tailLimit)
	// To begin a transaction is to notice a new origin.
	return s.line.Do(ctx, func(b *batch) error {
		s.tail.Skip(b.revision)
		return nil
	})
}

// patiently calls f until it succeeds, what it returns does not heal, Patience is
// at its end, ctx is done or the store is closed.
func (s *Store) patiently(ctx context.Context, f func() error) error {
	began := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := f()
		if !heals(err) || time.Since(began) > s.patience {
			return err
		}
		if err := s.pause(ctx, pause); err != nil {
			return err
		}
	}
}

// pause waits, unless ctx is done or the store is closed.
func (s *Store) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.life.Closed():
		return store.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// do runs f in a batch that it shares with others, again if that was lost to
// something that heals.
func (s *Store) do(ctx context.Context, f func(*batch) error) error {
	if err := s.life.Enter(ctx); err != nil {
		return err
	}
	defer s.life.Leave()
	return s.patiently(ctx, func() error { return s.line.Do(ctx, f) })
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, f func(store.Reader) error) error {
	return s.read(ctx, func(now *snapshot) error { return f(now) })
}

// read calls f with a snapshot of the latest state.
func (s *Store) read(ctx context.Context, f func(*snapshot) error) error {
	if err := s.life.Enter(ctx); err != nil {
		return err
	}
	defer s.life.Leave()
	var c *pgxpool.Conn
	var now *snapshot
	err := s.patiently(ctx, func() (err error) {
		if c, err = s.readers.Acquire(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return s.explain(err)
		}
		now = &snapshot{ctx: ctx, store: s, conn: c.Conn()}
		if err = now.begin("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", selectMeta); err != nil {
			c.Release() // which closes what is not idle
		}
		return err
	})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := quietly(ctx)
		defer cancel()
		if now.err == nil {
			_, _ = c.Exec(ctx, "ROLLBACK") // if it fails, Release closes the connection
		}
		c.Release()
	}()
	return f(now)
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, actor string, f func(store.Tx) error) (api.Revision, error) {
	actor = store.ActorText(actor)
	var revision api.Revision
	err := s.do(ctx, func(b *batch) error {
		err := b.update(ctx, actor, f)
		revision = b.revision
		return err
	})
	if err != nil {
		return api.Revision{}, err
	}
	return revision, nil
}

// Renew implements store.Store. Once it has begun to range over all, which it can
// do only once, it does not try again.
func (s *Store) Renew(ctx context.Context, actor string, all iter.Seq2[store.Record, error]) (api.Revision, error) {
	if err := s.life.Enter(ctx); err != nil {
		return api.Revision{}, err
	}
	defer s.life.Leave()
	var revision api.Revision
	began := false
	err := s.patiently(ctx, func() error {
		err := s.line.Alone(ctx, func(b *batch) error {
			began = true
			err := b.renew(ctx, store.ActorText(actor), all)
			revision = b.revision
			return err
		})
		if began && heals(err) {
			return &trouble{text: err.Error(), cause: err}
		}
		return err
	})
	if err != nil {
		return api.Revision{}, err
	}
	return revision, nil
}

// Watch implements store.Store. While the server is away it waits.
func (s *Store) Watch(ctx context.Context, from api.Revision) iter.Seq2[store.Commit, error] {
	return s.tail.Follow(ctx, from, pollEvery, s.life.Closed(), func(from api.Revision) (commits []store.Commit, err error) {
		for {
			err = s.read(ctx, func(now *snapshot) error {
				commits, err = now.after(from, watchStep)
				return err
			})
			if !heals(err) {
				return commits, err
			}
			if err := s.pause(ctx, longPause); err != nil {
				return nil, err
			}
		}
	})
}

// SetMark implements store.Store.
func (s *Store) SetMark(ctx context.Context, name string, value []byte) error {
	if err := store.CheckMark(name, value); err != nil {
		return err
	}
	return s.do(ctx, func(b *batch) error {
		if len(value) == 0 {
			b.exec(dropMark, name)
		} else {
			b.exec(setMark, name, value)
		}
		return nil
	})
}

// Mark implements store.Store.
func (s *Store) Mark(ctx context.Context, name string) (value []byte, err error) {
	if !store.IsText(name) {
		return nil, nil
	}
	err = s.read(ctx, func(now *snapshot) error {
		return now.query("SELECT value FROM marks WHERE name = $1", []any{name}, func(row pgx.Rows) error { return row.Scan(&value) })
	})
	return value, err
}

// Prune deletes the history that ended so long before now that it need not be
// kept. The state stays, however old. It lets others write in between.
func (s *Store) Prune(ctx context.Context, now time.Time) error {
	keep, keepSessions := now.Add(-s.opts.Keep), now.Add(-s.opts.KeepSessions)
	for {
		var n int
		err := s.do(ctx, func(b *batch) error {
			n = 0
			compacted := b.compacted
			snap := b.snapshot(ctx)
			err := snap.query(prune, []any{keep, keepSessions, api.GroupCore, api.KindSession, pruneStep}, func(row pgx.Rows) error {
				var revision uint64
				err := row.Scan(&revision)
				compacted = max(compacted, revision)
				n++
				return err
			})
			b.err = snap.err
			if n > 0 {
				b.compacted, b.dirty = compacted, true
			}
			return err
		})
		if err != nil || n < pruneStep {
			return err
		}
	}
}

// Run listens for commits of other processes and prunes now and then, until ctx
// is done. Failures are logged, and tried again.
func (s *Store) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer cancel()
		select {
		case <-s.life.Closed():
		case <-ctx.Done():
		}
	})
	wg.Go(func() { s.listen(ctx) })
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if err := s.Prune(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.opts.Log.ErrorContext(ctx, "prune the history of the store", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// listen hears of commits of other processes, whatever becomes of the server.
func (s *Store) listen(ctx context.Context) {
	away := false
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := s.hear(ctx, func() {
			if away {
				s.opts.Log.InfoContext(ctx, "the store is back")
			}
			away, pause = false, firstPause
		})
		if ctx.Err() != nil {
			return
		}
		if !away {
			s.opts.Log.WarnContext(ctx, "the store is away", "error", err)
		}
		away = true
		if s.pause(ctx, pause) != nil {
			return
		}
	}
}

// hear tells the tail what other processes say that they have committed, until
// something goes wrong. It calls ready once it listens.
func (s *Store) hear(ctx context.Context, ready func()) error {
	c, err := pgx.ConnectConfig(ctx, s.writing.config)
	if err != nil {
		return s.explain(err)
	}
	defer hangUp(ctx, c)
	if _, err := c.Exec(ctx, "LISTEN "+channel); err != nil {
		return s.explain(err)
	}
	catchUp := func() error {
		var now api.Revision
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		if err := c.QueryRow(ctx, "SELECT epoch, revision FROM meta").Scan(&now.Epoch, &now.Number); err != nil {
			return s.explain(err)
		}
		s.tail.Skip(now)
		return nil
	}
	if err := catchUp(); err != nil { // with what was said before
		return err
	}
	ready()
	for {
		n, err := c.WaitForNotification(ctx)
		if err != nil {
			return s.explain(err)
		}
		if n.Payload != s.schema || n.PID == s.writing.pid.Load() {
			continue // it is not about this store, or the tail has it
		}
		// Anybody who may use the database may send one: it is not believed.
		if err := catchUp(); err != nil {
			return err
		}
	}
}

// Close implements store.Store.
func (s *Store) Close() error { return s.life.End(s.release) }

// release closes all connections.
func (s *Store) release() error {
	if s.readers != nil {
		s.readers.Close()
	}
	if c := s.writing.conn; c != nil {
		hangUp(s.quiet, c)
	}
	return nil
}

// String returns where the store is, without secrets.
func (s *Store) String() string { return s.place }
