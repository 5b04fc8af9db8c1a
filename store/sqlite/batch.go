package sqlite

import (
	"context"
	"database/sql"
	"iter"
	"time"

	"cardea/api"
	"cardea/store"
)

// A batch is one SQLite transaction that several callers share; see
// [store.Line].
//
// Functions change nothing in the database until they have succeeded (see
// [store.Pending]), so one that fails leaves the batch as it was. A statement
// that fails, even one that reads, means trouble with the file, after which
// SQLite may have undone the transaction: then the whole batch is lost.
type batch struct {
	conn *conn
	tail *store.Tail
	ctx  context.Context // of the first caller, without its end

	revision  api.Revision // of the latest commit within
	compacted uint64
	commits   []store.Commit
	renewed   bool // the latest commit is too large to be kept in commits
	dirty     bool // whether there is anything to commit

	err error // why the batch is lost
}

// do runs f in a batch that it shares with others.
func (s *Store) do(ctx context.Context, f func(*batch) error) error {
	if err := s.life.Enter(ctx); err != nil {
		return err
	}
	defer s.life.Leave()
	return s.line.Do(ctx, f)
}

// begin begins a batch.
func (s *Store) begin(ctx context.Context) (*batch, error) {
	b := &batch{conn: s.writer, tail: s.tail, ctx: context.WithoutCancel(ctx)}
	if _, err := b.conn.beginWrite.ExecContext(b.ctx); err != nil {
		return nil, explain(s.path, err)
	}
	// From here until the end no other process can write: what is read of meta
	// now holds until it is written at the end.
	now, err := b.conn.snapshot(b.ctx)
	if err != nil {
		_, _ = b.conn.rollback.ExecContext(b.ctx) // the first error counts
		return nil, err
	}
	b.revision, b.compacted = now.revision, now.compacted
	return b, nil
}

// Lost implements store.Batch.
func (b *batch) Lost() error { return b.err }

// Finish implements store.Batch. It tells watchers.
func (b *batch) Finish(lost error) error {
	if b.err = lost; b.err == nil && b.dirty {
		b.exec(b.conn.setMeta, b.revision.Epoch, b.revision.Number, b.compacted)
		if b.err == nil {
			b.exec(b.conn.commit)
		}
	}
	if b.err != nil || !b.dirty {
		// An error here is of no use: there is nothing to undo, or SQLite did so
		// itself, or the next BEGIN fails and says so.
		_, _ = b.conn.rollback.ExecContext(b.ctx)
	}
	if b.err != nil {
		return b.err
	}
	for _, c := range b.commits {
		b.tail.Append(c)
	}
	if b.renewed {
		b.tail.Skip(b.revision)
	}
	return nil
}

// exec runs a statement that writes. If it fails the batch is lost.
func (b *batch) exec(stmt *sql.Stmt, args ...any) {
	b.dirty = true
	_, err := stmt.ExecContext(b.ctx, args...)
	b.err = explain(b.conn.path, err)
}

// update runs f and makes a commit of what it changed.
func (b *batch) update(ctx context.Context, actor string, f func(store.Tx) error) error {
	base := &snapshot{ctx: ctx, conn: b.conn, revision: b.revision}
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
		b.write(store.ActorText(actor), changes)
	}
	return nil
}

// write makes a commit of changes.
func (b *batch) write(actor string, changes []store.Change) {
	at := time.Now().UTC().Truncate(time.Microsecond)
	b.revision.Number++
	for i := range changes {
		c := &changes[i]
		c.Revision = b.revision
		k := c.Key
		b.exec(b.conn.end, at.UnixMicro(), k.Group, k.Kind, k.Namespace, k.Name)
		if b.err != nil {
			return
		}
		if b.insert(i, at, actor, c); b.err != nil {
			return
		}
	}
	b.commits = append(b.commits, store.Commit{Revision: b.revision, At: at, Actor: actor, Changes: changes})
}

// insert writes the i-th change of a commit.
func (b *batch) insert(i int, at time.Time, actor string, c *store.Change) {
	var ended any
	if c.Deleted {
		ended = at.UnixMicro()
	}
	k := c.Key
	b.exec(b.conn.insert, b.revision.Number, i, at.UnixMicro(), actor,
		k.Group, k.Kind, k.Namespace, k.Name, c.UID, string(c.JSON), c.Deleted, ended)
}

// renew makes a commit, the first of a new epoch, of all Objects that there are
// to be. It does not keep them in memory.
func (b *batch) renew(ctx context.Context, actor string, all iter.Seq2[store.Record, error]) error {
	at := time.Now().UTC().Truncate(time.Microsecond)
	b.compacted, b.renewed = b.revision.Number, true
	b.revision.Epoch++
	if b.exec(b.conn.endAll, at.UnixMicro()); b.err != nil {
		return b.err
	}
	n := 0
	for r, err := range store.Checked(ctx, all) {
		if err != nil {
			return err
		}
		if n == 0 {
			b.revision.Number++
		}
		if b.insert(n, at, actor, &store.Change{Record: r}); b.err != nil {
			return b.err
		}
		n++
	}
	return nil
}
