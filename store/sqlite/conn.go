package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"iter"
	"time"

	"cardea/api"
	"cardea/store"
)

// listPage is how many rows List reads at once. Between pages no statement is
// open, so that the caller may read while it loops.
const listPage = 256

// A conn is one connection to the database with its prepared statements. It is
// used by one goroutine at a time.
type conn struct {
	*sql.Conn
	path                         string // of the database, for errors
	begin, rollback              *sql.Stmt
	meta, get, list, after, mark *sql.Stmt
	all                          *sql.Stmt

	// Of the connection that writes only.
	beginWrite, commit                *sql.Stmt
	end, endAll, insert               *sql.Stmt
	setMark, dropMark, setMeta, prune *sql.Stmt

	stmts []*sql.Stmt // all of them
}

// A statement is the text of one, and where it goes once it is prepared.
type statement struct {
	to   **sql.Stmt
	text string
}

// prepare makes a conn of c that reads, and also writes if that is asked for.
func prepare(ctx context.Context, c *sql.Conn, path string, writes bool) (*conn, error) {
	p := &conn{Conn: c, path: path}
	all := []statement{
		{&p.begin, `BEGIN`},
		{&p.rollback, `ROLLBACK`},
		{&p.meta, `SELECT epoch, revision, compacted FROM meta`},
		{&p.get, `SELECT uid, revision, json FROM changes
			WHERE grp = ? AND kind = ? AND namespace = ? AND name = ? AND ended IS NULL`},
		{&p.list, `SELECT grp, kind, namespace, name, uid, revision, json FROM changes
			WHERE grp = ? AND (kind, namespace, name) > (?, ?, ?) AND ended IS NULL
			ORDER BY kind, namespace, name LIMIT ?`},
		{&p.all, `SELECT grp, kind, namespace, name, uid, revision, json FROM changes
			WHERE (grp, kind, namespace, name) > (?, ?, ?, ?) AND ended IS NULL
			ORDER BY grp, kind, namespace, name LIMIT ?`},
		{&p.after, `SELECT revision, at, actor, grp, kind, namespace, name, uid, json, deleted FROM changes
			WHERE revision > ? ORDER BY revision, seq`},
		{&p.mark, `SELECT value FROM marks WHERE name = ?`},
	}
	if writes {
		all = append(all, []statement{
			{&p.beginWrite, `BEGIN IMMEDIATE`},
			{&p.commit, `COMMIT`},
			{&p.end, `UPDATE changes SET ended = ?
				WHERE grp = ? AND kind = ? AND namespace = ? AND name = ? AND ended IS NULL`},
			{&p.endAll, `UPDATE changes SET ended = ? WHERE ended IS NULL`},
			{&p.insert, `INSERT INTO changes
				(revision, seq, at, actor, grp, kind, namespace, name, uid, json, deleted, ended)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`},
			{&p.setMark, `INSERT INTO marks (name, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value`},
			{&p.dropMark, `DELETE FROM marks WHERE name = ?`},
			{&p.setMeta, `UPDATE meta SET epoch = ?, revision = ?, compacted = ?`},
			{&p.prune, `DELETE FROM changes WHERE rowid IN (
					SELECT rowid FROM changes WHERE ended < ? OR ended < ? AND grp = ? AND kind = ? LIMIT ?)
				RETURNING revision`},
		}...)
	}
	for _, s := range all {
		var err error
		if *s.to, err = c.PrepareContext(ctx, s.text); err != nil {
			return nil, errors.Join(err, p.Close())
		}
		p.stmts = append(p.stmts, *s.to)
	}
	return p, nil
}

// Close closes the statements, too: SQLite keeps a connection that has some.
func (c *conn) Close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, c.Conn.Close())...)
}

// A snapshot is the state that one SQLite transaction sees, as a store.Reader.
//
// Its ctx is looked at between statements, each of which is short, and does not
// interrupt them: an interrupt could hit the transaction of somebody else.
type snapshot struct {
	ctx       context.Context
	conn      *conn
	revision  api.Revision
	compacted uint64 // see schema
	err       error  // the last trouble with the file: the transaction may be no more
}

// trouble remembers and explains an error of SQLite.
func (s *snapshot) trouble(err error) error {
	if err != nil {
		s.err = explain(s.conn.path, err)
		return s.err
	}
	return nil
}

// read calls f with a snapshot of the latest state.
func (c *conn) read(ctx context.Context, f func(*snapshot) error) (err error) {
	quiet := context.WithoutCancel(ctx)
	if _, err := c.begin.ExecContext(quiet); err != nil {
		return explain(c.path, err)
	}
	defer func() {
		if _, e := c.rollback.ExecContext(quiet); err == nil {
			err = explain(c.path, e)
		}
	}()
	s, err := c.snapshot(ctx)
	if err != nil {
		return err
	}
	return f(s)
}

// snapshot returns what the transaction that is under way sees.
func (c *conn) snapshot(ctx context.Context) (*snapshot, error) {
	s := &snapshot{ctx: ctx, conn: c}
	err := c.meta.QueryRowContext(context.WithoutCancel(ctx)).Scan(&s.revision.Epoch, &s.revision.Number, &s.compacted)
	return s, explain(c.path, err)
}

// Revision implements store.Reader.
func (s *snapshot) Revision() api.Revision { return s.revision }

// Get implements store.Reader.
func (s *snapshot) Get(k api.Key) (store.Record, error) {
	if err := s.ctx.Err(); err != nil {
		return store.Record{}, err
	}
	r := store.Record{Key: k, Revision: s.revision}
	err := s.conn.get.QueryRowContext(context.WithoutCancel(s.ctx), k.Group, k.Kind, k.Namespace, k.Name).
		Scan(&r.UID, &r.Revision.Number, (*[]byte)(&r.JSON))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return store.Record{}, api.NotFound(k)
	case err != nil:
		return store.Record{}, s.trouble(err)
	}
	return r, nil
}

// List implements store.Reader.
func (s *snapshot) List(group, kind string) iter.Seq2[store.Record, error] {
	// The first key is before all of that kind, as no name is empty.
	return s.pages(s.conn.list, api.Key{Group: group, Kind: kind}, func(k api.Key) bool { return kind == "" || k.Kind == kind })
}

// ListAfter implements store.Reader.
func (s *snapshot) ListAfter(k api.Key) iter.Seq2[store.Record, error] {
	return s.pages(s.conn.list, k, func(x api.Key) bool { return x.Kind == k.Kind })
}

// All implements store.Reader.
func (s *snapshot) All() iter.Seq2[store.Record, error] {
	return s.pages(s.conn.all, api.Key{}, func(api.Key) bool { return true })
}

// pages yields the Objects that stmt finds after last, until one does not match.
func (s *snapshot) pages(stmt *sql.Stmt, last api.Key, match func(api.Key) bool) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		last := last // a sequence may be ranged over again
		for {
			page, err := s.page(stmt, last, match)
			for _, r := range page {
				if !yield(r, nil) {
					return
				}
				last = r.Key
			}
			if err != nil {
				yield(store.Record{}, err)
				return
			}
			if len(page) < listPage {
				return
			}
		}
	}
}

// page returns the first Objects after last, until one does not match.
func (s *snapshot) page(stmt *sql.Stmt, last api.Key, match func(api.Key) bool) (page []store.Record, err error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	rows, err := stmt.QueryContext(context.WithoutCancel(s.ctx), last.Group, last.Kind, last.Namespace, last.Name, listPage)
	if err != nil {
		return nil, s.trouble(err)
	}
	defer rows.Close()
	for rows.Next() {
		r := store.Record{Revision: s.revision}
		k := &r.Key
		err := rows.Scan(&k.Group, &k.Kind, &k.Namespace, &k.Name, &r.UID, &r.Revision.Number, (*[]byte)(&r.JSON))
		if err != nil {
			return nil, s.trouble(err)
		}
		if !match(*k) {
			break
		}
		page = append(page, r)
	}
	return page, s.trouble(rows.Err())
}

// after returns the first commits after from, of at least so many changes if
// there are, and always whole ones.
func (s *snapshot) after(from api.Revision, changes int) (commits []store.Commit, err error) {
	if from == (api.Revision{}) {
		from.Epoch = s.revision.Epoch
	}
	if from.Epoch != s.revision.Epoch || from.Number > s.revision.Number || from.Number < s.compacted {
		return nil, store.ErrCompacted
	}
	rows, err := s.conn.after.QueryContext(context.WithoutCancel(s.ctx), from.Number)
	if err != nil {
		return nil, s.trouble(err)
	}
	defer rows.Close()
	for n := 0; rows.Next(); n++ {
		var at int64
		k := store.Commit{Revision: s.revision}
		c := store.Change{}
		err := rows.Scan(&k.Revision.Number, &at, &k.Actor, &c.Key.Group, &c.Key.Kind, &c.Key.Namespace, &c.Key.Name,
			&c.UID, (*[]byte)(&c.JSON), &c.Deleted)
		if err != nil {
			return nil, s.trouble(err)
		}
		if len(commits) == 0 || commits[len(commits)-1].Revision != k.Revision {
			if n >= changes {
				break
			}
			k.At = time.UnixMicro(at).UTC()
			commits = append(commits, k)
		}
		c.Revision = k.Revision
		last := &commits[len(commits)-1]
		last.Changes = append(last.Changes, c)
	}
	return commits, s.trouble(rows.Err())
}
