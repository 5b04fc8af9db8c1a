package postgres

import (
	"context"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"cardea/api"
	"cardea/store"
)

// listPage is how many rows List reads at once. Between pages no statement is
// open, so that the caller may read while it loops.
const listPage = 512

const (
	selectMeta = `SELECT epoch, revision, compacted, origin FROM meta`
	lockMeta   = selectMeta + ` FOR UPDATE`

	selectOne = `SELECT uid, revision, json FROM changes
		WHERE grp = $1 AND kind = $2 AND namespace = $3 AND name = $4 AND ended IS NULL`

	// Each takes the four parts of the last key and how many rows may come.
	selectKind = `SELECT grp, kind, namespace, name, uid, revision, json FROM changes
		WHERE grp = $1 AND kind = $2 AND (namespace, name) > ($3, $4) AND ended IS NULL
		ORDER BY namespace, name LIMIT $5`
	selectGroup = `SELECT grp, kind, namespace, name, uid, revision, json FROM changes
		WHERE grp = $1 AND (kind, namespace, name) > ($2, $3, $4) AND ended IS NULL
		ORDER BY kind, namespace, name LIMIT $5`
	selectAll = `SELECT grp, kind, namespace, name, uid, revision, json FROM changes
		WHERE (grp, kind, namespace, name) > ($1, $2, $3, $4) AND ended IS NULL
		ORDER BY grp, kind, namespace, name LIMIT $5`

	// Whole commits, of at least $2 changes if there are.
	selectAfter = `SELECT revision, at, actor, grp, kind, namespace, name, uid, json, deleted FROM changes
		WHERE revision > $1 AND revision <=
			(SELECT max(revision) FROM (SELECT revision FROM changes WHERE revision > $1 ORDER BY revision, seq LIMIT $2) AS first)
		ORDER BY revision, seq`
)

// quietly returns a context that ends only when the server does not answer. An
// interrupted statement would cost the connection, with what others do on it.
func quietly(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
}

// A snapshot is the state that one transaction of the database sees, as a
// store.Reader. Its ctx is looked at between statements, each of which is short.
type snapshot struct {
	ctx       context.Context
	store     *Store
	conn      *pgx.Conn
	queue     *pgx.Batch // what is to be written; nil if the snapshot is only read
	revision  api.Revision
	compacted uint64 // see schema1
	origin    string
	err       error // the last trouble: the transaction may be no more
}

// trouble remembers and explains an error of the driver.
func (s *snapshot) trouble(err error) error {
	if err != nil {
		s.err = s.store.explain(err)
		return s.err
	}
	return nil
}

// begin begins the transaction that the snapshot reads, in one exchange.
func (s *snapshot) begin(begin, meta string) error {
	ctx, cancel := quietly(s.ctx)
	defer cancel()
	var b pgx.Batch
	b.Queue(begin)
	b.Queue(meta).QueryRow(func(row pgx.Row) error {
		return row.Scan(&s.revision.Epoch, &s.revision.Number, &s.compacted, &s.origin)
	})
	return s.trouble(s.conn.SendBatch(ctx, &b).Close())
}

// query calls each for every row.
func (s *snapshot) query(text string, args []any, each func(pgx.Rows) error) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := quietly(s.ctx)
	defer cancel()
	// What is to be written goes first, in the same exchange.
	queue := s.queue
	if queue == nil {
		queue = new(pgx.Batch)
	}
	queue.Queue(text, args...).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			if err := each(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	err := s.conn.SendBatch(ctx, queue).Close()
	*queue = pgx.Batch{}
	return s.trouble(err)
}

// Revision implements store.Reader.
func (s *snapshot) Revision() api.Revision { return s.revision }

// Get implements store.Reader.
func (s *snapshot) Get(k api.Key) (store.Record, error) {
	if !store.IsText(k.Group + k.Kind + k.Namespace + k.Name) {
		return store.Record{}, api.NotFound(k) // and the server does not even take the question
	}
	r, found := store.Record{Key: k, Revision: s.revision}, false
	err := s.query(selectOne, []any{k.Group, k.Kind, k.Namespace, k.Name}, func(row pgx.Rows) error {
		found = true
		return row.Scan(&r.UID, &r.Revision.Number, (*[]byte)(&r.JSON))
	})
	switch {
	case err != nil:
		return store.Record{}, err
	case !found:
		return store.Record{}, api.NotFound(k)
	}
	return r, nil
}

// List implements store.Reader.
func (s *snapshot) List(group, kind string) iter.Seq2[store.Record, error] {
	text := selectKind
	switch {
	case !store.IsText(group + kind):
		return func(func(store.Record, error) bool) {} // as Get
	case kind == "":
		text = selectGroup
	}
	return s.pages(text, api.Key{Group: group, Kind: kind}) // before all of that kind, as no name is empty
}

// ListAfter implements store.Reader.
func (s *snapshot) ListAfter(k api.Key) iter.Seq2[store.Record, error] {
	if !store.IsText(k.Group + k.Kind + k.Namespace + k.Name) {
		return func(func(store.Record, error) bool) {} // as Get
	}
	return s.pages(selectKind, k)
}

// All implements store.Reader.
func (s *snapshot) All() iter.Seq2[store.Record, error] { return s.pages(selectAll, api.Key{}) }

// pages yields the Objects that a statement finds after last.
func (s *snapshot) pages(text string, last api.Key) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		last := last // a sequence may be ranged over again
		for {
			var page []store.Record
			err := s.query(text, []any{last.Group, last.Kind, last.Namespace, last.Name, listPage}, func(row pgx.Rows) error {
				r := store.Record{Revision: s.revision}
				k := &r.Key
				err := row.Scan(&k.Group, &k.Kind, &k.Namespace, &k.Name, &r.UID, &r.Revision.Number, (*[]byte)(&r.JSON))
				page = append(page, r)
				return err
			})
			if err != nil {
				yield(store.Record{}, err)
				return
			}
			for _, r := range page {
				if !yield(r, nil) {
					return
				}
				last = r.Key
			}
			if len(page) < listPage {
				return
			}
		}
	}
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
	if from == s.revision {
		return nil, nil
	}
	err = s.query(selectAfter, []any{from.Number, changes}, func(row pgx.Rows) error {
		var at time.Time
		k := store.Commit{Revision: s.revision}
		c := store.Change{}
		err := row.Scan(&k.Revision.Number, &at, &k.Actor, &c.Key.Group, &c.Key.Kind, &c.Key.Namespace, &c.Key.Name,
			&c.UID, (*[]byte)(&c.JSON), &c.Deleted)
		if len(commits) == 0 || commits[len(commits)-1].Revision != k.Revision {
			k.At = at.UTC()
			commits = append(commits, k)
		}
		c.Revision = k.Revision
		last := &commits[len(commits)-1]
		last.Changes = append(last.Changes, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return commits, nil
}
