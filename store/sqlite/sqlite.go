// Package sqlite is a store in one SQLite file: durable, crash-safe, and open
// to anybody's tools.
//
// The table changes is the history; the current state is those of its rows that
// have not ended. One connection writes, and many callers share one transaction
// and its fsync; a few connections read, each View one snapshot. The file is in
// WAL mode with synchronous=FULL (https://www.sqlite.org/wal.html): what was
// acknowledged survives the loss of power, and readers and the writer do not
// wait for each other. Several processes may have it open.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"time"

	driver "modernc.org/sqlite"

	"cardea/api"
	"cardea/store"
)

const (
	readers   = 4    // connections that read
	tailLimit = 4096 // changes of the latest commits that are kept in memory
	watchStep = 512  // changes that a watcher reads at once

	// busyTimeout is how long a transaction of another process may take.
	busyTimeout = 10 * time.Second
	// pollEvery is how long a commit of another process may go unnoticed.
	pollEvery = time.Second

	pruneEvery = time.Hour
	pruneStep  = 1000 // rows that are deleted in one turn
)

// Options of Open.
type Options = store.Options

// A Store is a [store.Store] in a SQLite file.
type Store struct {
	path string
	opts Options
	db   *sql.DB

	life    *store.Life
	line    *store.Line[*batch]
	writer  *conn // of the batch that is open
	readers chan *conn
	tail    *store.Tail
}

var _ store.Store = (*Store)(nil)

// Open opens the database at path, or makes it, readable by its owner only. The
// directory must exist. The error says what is wrong with a file that cannot be
// used, which is left as it was.
func Open(ctx context.Context, path string, opts Options) (_ *Store, err error) {
	s := &Store{
		path:    path,
		opts:    opts.WithDefaults(),
		life:    store.NewLife(),
		readers: make(chan *conn, readers),
	}
	s.line = store.NewLine(s.begin)
	if err := create(path); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	dsn, err := dataSource(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	connector, err := driver.NewConnector(dsn)
	if err != nil {
		return nil, explain(path, err)
	}
	s.db = sql.OpenDB(connector)
	s.db.SetMaxIdleConns(0) // to close a connection is to close it
	defer func() {
		if err != nil {
			_ = s.release() // the first error counts
		}
	}()
	if s.writer, err = s.connectWriter(ctx); err != nil {
		return nil, explain(path, err)
	}
	if err := protect(path); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for range readers {
		c, err := s.connectReader(ctx)
		if err != nil {
			return nil, explain(path, err)
		}
		s.readers <- c
	}
	now, err := s.writer.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	s.tail = store.NewTail(now.revision, tailLimit)
	return s, nil
}

// create makes an empty file, which SQLite takes for an empty database, unless
// there is a file.
//
// It never opens one that exists: closing that would drop the locks that SQLite
// has on it elsewhere in this process.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// protect keeps others from reading a database that was there before, and the
// files that SQLite has made beside it with its mode.
func protect(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Chmod(path+suffix, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// dataSource returns the name by which the driver opens path.
func dataSource(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	q := url.Values{
		"_busy_timeout": {fmt.Sprint(busyTimeout.Milliseconds())},
		"_synchronous":  {"FULL"},
		"_foreign_keys": {"ON"},
		"_pragma":       {"trusted_schema(OFF)", "cell_size_check(ON)", "temp_store(MEMORY)", "journal_size_limit(67108864)"},
		"_dqs":          {"0"},
		"_defensive":    {"1"},
		"_error_rc":     {"1"},
		"mode":          {"rw"},
	}
	return (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String(), nil
}

// connectWriter opens the connection that writes, and makes the database fit.
func (s *Store) connectWriter(ctx context.Context) (*conn, error) {
	c, err := s.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, c, s.opts.Program); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return prepare(ctx, c, s.path, true)
}

// connectReader opens a connection that cannot write.
func (s *Store) connectReader(ctx context.Context) (*conn, error) {
	c, err := s.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := c.ExecContext(ctx, "PRAGMA query_only = ON"); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return prepare(ctx, c, s.path, false)
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, f func(store.Reader) error) error {
	return s.read(ctx, func(now *snapshot) error { return f(now) })
}

// read calls f with a snapshot on a connection that it waits for.
func (s *Store) read(ctx context.Context, f func(*snapshot) error) error {
	if err := s.life.Enter(ctx); err != nil {
		return err
	}
	defer s.life.Leave()
	select {
	case c := <-s.readers:
		defer func() { s.readers <- c }()
		return c.read(ctx, f)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, actor string, f func(store.Tx) error) (api.Revision, error) {
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

// Renew implements store.Store.
func (s *Store) Renew(ctx context.Context, actor string, all iter.Seq2[store.Record, error]) (api.Revision, error) {
	if err := s.life.Enter(ctx); err != nil {
		return api.Revision{}, err
	}
	defer s.life.Leave()
	var revision api.Revision
	err := s.line.Alone(ctx, func(b *batch) error {
		err := b.renew(ctx, store.ActorText(actor), all)
		revision = b.revision
		return err
	})
	if err != nil {
		return api.Revision{}, err
	}
	return revision, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, from api.Revision) iter.Seq2[store.Commit, error] {
	return s.tail.Follow(ctx, from, pollEvery, s.life.Closed(), func(from api.Revision) (commits []store.Commit, err error) {
		err = s.read(ctx, func(now *snapshot) error {
			commits, err = now.after(from, watchStep)
			return err
		})
		return commits, err
	})
}

// Written says that another process has made the commit of a revision: whoever
// follows the store gets it now, and not only at the next look at the file.
func (s *Store) Written(rev api.Revision) { s.tail.Skip(rev) }

// SetMark implements store.Store.
func (s *Store) SetMark(ctx context.Context, name string, value []byte) error {
	if err := store.CheckMark(name, value); err != nil {
		return err
	}
	return s.do(ctx, func(b *batch) error {
		if len(value) == 0 {
			b.exec(b.conn.dropMark, name)
		} else {
			b.exec(b.conn.setMark, name, value)
		}
		return nil
	})
}

// Mark implements store.Store.
func (s *Store) Mark(ctx context.Context, name string) (value []byte, err error) {
	err = s.read(ctx, func(now *snapshot) error {
		err := now.conn.mark.QueryRowContext(context.WithoutCancel(ctx), name).Scan(&value)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return explain(s.path, err)
	})
	return value, err
}

// Prune deletes the history that ended so long before now that it need not be
// kept. The state stays, however old. It lets others write in between.
func (s *Store) Prune(ctx context.Context, now time.Time) error {
	keep, keepSessions := now.Add(-s.opts.Keep).UnixMicro(), now.Add(-s.opts.KeepSessions).UnixMicro()
	for {
		var n int
		err := s.do(ctx, func(b *batch) error {
			rows, err := b.conn.prune.QueryContext(b.ctx, keep, keepSessions, api.GroupCore, api.KindSession, pruneStep)
			if err != nil {
				b.err = explain(s.path, err)
				return nil
			}
			defer rows.Close()
			for rows.Next() {
				var revision uint64
				if err := rows.Scan(&revision); err != nil {
					b.err = explain(s.path, err)
					return nil
				}
				b.compacted = max(b.compacted, revision)
				n++
			}
			b.dirty = b.dirty || n > 0
			b.err = explain(s.path, rows.Err())
			return nil
		})
		if err != nil || n < pruneStep {
			return err
		}
	}
}

// Run prunes now and then, until ctx is done. A failure is logged, and tried
// again the next time.
func (s *Store) Run(ctx context.Context) {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if err := s.Prune(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.opts.Log.ErrorContext(ctx, "prune the history of the store", "error", err)
		}
		select {
		case <-tick.C:
		case <-s.life.Closed():
			return
		case <-ctx.Done():
			return
		}
	}
}

// Close implements store.Store.
func (s *Store) Close() error { return s.life.End(s.release) }

// release closes all connections, the writer last: it moves what is in the WAL
// to the database.
func (s *Store) release() error {
	close(s.readers)
	var errs []error
	for c := range s.readers {
		errs = append(errs, c.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close())
	}
	return errors.Join(append(errs, s.db.Close())...)
}
