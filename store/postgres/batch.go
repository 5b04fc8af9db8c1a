package postgres

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"cardea/api"
	"cardea/store"
)

// Sizes at which what is to be written is sent.
const (
	sendChanges = 1000
	sendBytes   = 4 << 20
)

// channel is on which commits are told of, by the name of the schema.
const channel = "cardea"

const (
	endSome = `UPDATE changes AS c SET ended = $1
		FROM unnest($2::text[], $3::text[], $4::text[], $5::text[]) AS k (grp, kind, namespace, name)
		WHERE c.grp = k.grp AND c.kind = k.kind AND c.namespace = k.namespace AND c.name = k.name AND c.ended IS NULL`
	endAll     = `UPDATE changes SET ended = $1 WHERE ended IS NULL`
	insertSome = `INSERT INTO changes (revision, seq, at, actor, grp, kind, namespace, name, uid, json, deleted, ended)
		SELECT $1, $2 + k.n - 1, $3, $4, k.grp, k.kind, k.namespace, k.name, k.uid, k.json, k.deleted, CASE WHEN k.deleted THEN $3::timestamptz END
		FROM unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::boolean[])
			WITH ORDINALITY AS k (grp, kind, namespace, name, uid, json, deleted, n)`
	setMark  = `INSERT INTO marks (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	dropMark = `DELETE FROM marks WHERE name = $1`
	setMeta  = `UPDATE meta SET epoch = $1, revision = $2, compacted = $3, origin = $4`
	notify   = `SELECT pg_notify($1, current_schema())`
	prune    = `DELETE FROM changes WHERE ctid = ANY (ARRAY (
			SELECT ctid FROM changes
			WHERE ended < greatest($1::timestamptz, $2) AND (ended < $1 OR ended < $2 AND grp = $3 AND kind = $4) LIMIT $5))
		RETURNING revision`
	// Whether a commit is there, by its first change.
	isThere = `SELECT EXISTS (SELECT FROM changes, meta WHERE epoch = $1 AND changes.revision = $2 AND seq = 0
		AND at = $3 AND actor = $4 AND grp = $5 AND kind = $6 AND namespace = $7 AND name = $8 AND uid = $9 AND json = $10)`
)

// A batch is one transaction of the database that several callers share; see
// [store.Line].
//
// It holds the lock of the row meta from its first act to its last, which writes
// the revision there, so that transactions of all processes come one after the
// other and nobody sees revision n+1 without n. Functions change nothing in the
// database until they have succeeded (see [store.Pending]); what they write is
// sent before something is read, or with the COMMIT. A statement that fails
// costs the whole batch, whose callers try again if that may help.
type batch struct {
	store *Store
	conn  *pgx.Conn
	ctx   context.Context // of the first caller, without its end

	revision  api.Revision // of the latest commit within
	compacted uint64
	origin    string
	commits   []store.Commit
	first     *store.Commit // the first commit, of which the first change is there
	renewed   bool          // the epoch is new

	queue pgx.Batch
	bytes int  // at most so many are in the queue
	dirty bool // whether there is anything to commit

	err error // why the batch is lost
}

// begin begins a batch.
func (s *Store) begin(ctx context.Context) (*batch, error) {
	c, origin, err := s.writing.get(ctx, s)
	if err != nil {
		return nil, err
	}
	b := &batch{store: s, conn: c, ctx: context.WithoutCancel(ctx)}
	now := b.snapshot(ctx)
	if err := now.begin("BEGIN", lockMeta); err != nil {
		b.rollback()
		return nil, err
	}
	// From here until the end no other process can write: what is read of meta
	// now holds until it is written at the end.
	b.revision, b.compacted, b.origin = now.revision, now.compacted, cmp.Or(origin, now.origin)
	if b.origin != now.origin {
		b.dirty = true
		if now.origin != "" {
			// A replica was promoted, or a copy restored. Whatever it has lost, somebody
			// may have seen.
			b.newEpoch()
		}
	}
	return b, nil
}

// newEpoch makes an end to what can be watched.
func (b *batch) newEpoch() {
	b.revision.Epoch++
	b.compacted, b.renewed = b.revision.Number, true
}

// snapshot returns what the batch sees.
func (b *batch) snapshot(ctx context.Context) *snapshot {
	return &snapshot{ctx: ctx, store: b.store, conn: b.conn, queue: &b.queue, revision: b.revision}
}

// Lost implements store.Batch.
func (b *batch) Lost() error { return b.err }

// Finish implements store.Batch. It tells watchers.
func (b *batch) Finish(lost error) error {
	if b.err = lost; b.err == nil && b.dirty {
		b.err = b.commit()
	} else {
		b.rollback()
	}
	if b.err != nil {
		return b.err
	}
	for _, c := range b.commits {
		b.store.tail.Append(c)
	}
	if b.renewed {
		b.store.tail.Skip(b.revision)
	}
	return nil
}

// commit sends what is left and commits.
func (b *batch) commit() error {
	b.queue.Queue(setMeta, b.revision.Epoch, b.revision.Number, b.compacted, b.origin)
	if b.first != nil || b.renewed {
		b.queue.Queue(notify, channel)
	}
	b.queue.Queue("COMMIT")
	err := b.flush()
	if err == nil {
		return nil
	}
	b.rollback()
	if !heals(err) || b.first == nil {
		return err // what has no commit can be done twice
	}
	// The connection was lost, perhaps between the COMMIT and its answer.
	done, e := b.committed()
	switch {
	case e != nil:
		return &trouble{text: err.Error() + "; whether it was committed is not known", cause: errors.Join(err, e)}
	case done:
		return nil
	}
	return err
}

// committed finds out, with a new connection, whether the batch was committed.
func (b *batch) committed() (done bool, err error) {
	err = b.store.patiently(b.ctx, func() error {
		c, _, err := b.store.writing.get(b.ctx, b.store)
		if err != nil {
			return err
		}
		// The lock waits for the end of the old connection's transaction.
		now := &snapshot{ctx: b.ctx, store: b.store, conn: c}
		defer b.store.writing.rollback(b.ctx)
		if err := now.begin("BEGIN", lockMeta); err != nil {
			return err
		}
		k, x := b.first, &b.first.Changes[0]
		return now.query(isThere, []any{k.Revision.Epoch, k.Revision.Number, k.At, k.Actor, x.Key.Group, x.Key.Kind, x.Key.Namespace, x.Key.Name,
			x.UID, string(x.JSON)}, func(row pgx.Rows) error { return row.Scan(&done) })
	})
	return done, err
}

// rollback ends the transaction, if there is one, or else the connection.
func (b *batch) rollback() { b.store.writing.rollback(b.ctx) }

// flush sends what is in the queue.
func (b *batch) flush() error {
	if b.queue.Len() == 0 {
		return nil
	}
	ctx, cancel := quietly(b.ctx)
	defer cancel()
	err := b.conn.SendBatch(ctx, &b.queue).Close()
	b.queue, b.bytes = pgx.Batch{}, 0
	return b.store.explain(err)
}

// exec puts a statement that writes into the queue.
func (b *batch) exec(text string, args ...any) {
	b.dirty = true
	b.queue.Queue(text, args...)
}

// update runs f and makes a commit of what it changed.
func (b *batch) update(ctx context.Context, actor string, f func(store.Tx) error) error {
	base := b.snapshot(ctx)
	defer func() { // also when f panics, or takes no notice
		if base.err != nil {
			b.err = base.err
		}
	}()
	tx := store.NewPending(base)
	if err := f(tx); err != nil {
		return err
	}
	if changes := tx.Changes(); len(changes) > 0 && base.err == nil {
		b.write(actor, changes)
	}
	return nil
}

// write makes a commit of changes.
func (b *batch) write(actor string, changes []store.Change) {
	b.revision.Number++
	k := store.Commit{Revision: b.revision, At: now(), Actor: actor, Changes: changes}
	for i := range changes {
		changes[i].Revision = b.revision
	}
	if b.first == nil {
		b.first = &k
	}
	b.send(k, 0, true)
	b.commits = append(b.commits, k)
}

// send puts changes of a commit, the first of which is the seq-th, into the
// queue, and what they end, if they do. If that is much it is sent.
func (b *batch) send(k store.Commit, seq int, ends bool) {
	for rest := k.Changes; len(rest) > 0 && b.err == nil; {
		var grp, kind, namespace, name, uid, json []string
		var deleted []bool
		n := 0
		for n < min(len(rest), sendChanges) && b.bytes < sendBytes {
			c := &rest[n]
			grp, kind, namespace, name = append(grp, c.Key.Group), append(kind, c.Key.Kind), append(namespace, c.Key.Namespace), append(name, c.Key.Name)
			uid, json, deleted = append(uid, c.UID), append(json, string(c.JSON)), append(deleted, c.Deleted)
			b.bytes += len(c.JSON)
			n++
		}
		if ends {
			b.exec(endSome, k.At, grp, kind, namespace, name)
		}
		b.exec(insertSome, k.Revision.Number, seq, k.At, k.Actor, grp, kind, namespace, name, uid, json, deleted)
		if n == sendChanges || b.bytes >= sendBytes {
			b.err = b.flush()
		}
		rest, seq = rest[n:], seq+n
	}
}

// renew makes a commit, the first of a new epoch, of all Objects that there are
// to be. It does not keep them in memory.
func (b *batch) renew(ctx context.Context, actor string, all iter.Seq2[store.Record, error]) error {
	b.newEpoch()
	k := store.Commit{Revision: b.revision, At: now(), Actor: actor}
	// Whoever reads all from a disk or a network is not as quick as a function.
	b.exec("SET LOCAL idle_in_transaction_session_timeout = " + milliseconds(idleReader))
	b.exec(endAll, k.At)
	seq, bytes := 0, 0
	send := func() error {
		b.send(k, seq, false)
		seq, bytes, k.Changes = seq+len(k.Changes), 0, nil
		return b.err
	}
	for r, err := range store.Checked(ctx, all) {
		if err != nil {
			return err
		}
		if b.first == nil {
			b.revision.Number++
			k.Revision = b.revision
			b.first = &store.Commit{Revision: k.Revision, At: k.At, Actor: k.Actor, Changes: []store.Change{{Record: r}}}
		}
		k.Changes = append(k.Changes, store.Change{Record: r})
		if bytes += len(r.JSON); len(k.Changes) == sendChanges || bytes >= sendBytes {
			if err := send(); err != nil {
				return err
			}
		}
	}
	return send()
}

// now is the time of a commit, as exactly as it is kept.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
