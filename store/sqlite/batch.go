package sqlite

import (
	"context"
	"database/sql"
	"time"

	"cardea/api"
	"cardea/store"
)

// A batch is one SQLite transaction that several callers share, and with it the
// one fsync of its COMMIT (group commit).
//
// Whoever has the turn runs its own function in the batch that is open, hands
// the turn on, and stands in line for it again. Those who stood in line before
// run their functions in the same batch meanwhile. When the first of a batch
// has the turn again, it commits for all of them. So no goroutine is needed, a
// lone caller never waits, and a function that panics does so in its caller.
//
// Functions change nothing in the database until they have succeeded (see
// [store.Pending]), so one that fails leaves the batch as it was. A statement
// that fails, even one that reads, means trouble with the file, after which
// SQLite may have undone the transaction: then the whole batch is lost.
type batch struct {
	conn *conn
	ctx  context.Context // of the first caller, without its end

	revision  api.Revision // of the latest commit within
	compacted uint64
	commits   []store.Commit
	dirty     bool // whether there is anything to commit

	done chan struct{} // closed when the batch is over; then err says how it ended
	err  error
}

// do runs f in a batch and returns when that is over: what f returned, or why
// the batch is lost. If ctx ends before, f is not called.
func (s *Store) do(ctx context.Context, f func(*batch) error) (err error) {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	b, err := s.join(ctx)
	if err != nil {
		<-s.turn
		return err
	}
	defer func() { // also when f panics
		if b.err != nil {
			s.finish(b) // nobody else is to join it
		}
		<-s.turn
		if e := s.settle(b); e != nil {
			err = e
		}
	}()
	return f(b)
}

// join returns the open batch, or begins one. The caller has the turn.
func (s *Store) join(ctx context.Context) (*batch, error) {
	if s.open != nil {
		return s.open, nil
	}
	b := &batch{conn: s.writer, ctx: context.WithoutCancel(ctx), done: make(chan struct{})}
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
	s.open = b
	return b, nil
}

// settle returns when b is over, and ends it if nobody else does.
func (s *Store) settle(b *batch) error {
	select {
	case <-b.done:
	case s.turn <- struct{}{}:
		if s.open == b {
			s.finish(b)
		}
		<-s.turn
	}
	return b.err
}

// finish ends b and tells watchers. The caller has the turn.
func (s *Store) finish(b *batch) {
	s.open = nil
	if b.err == nil && b.dirty {
		b.exec(b.conn.setMeta, b.revision.Number, b.compacted)
		if b.err == nil {
			b.exec(b.conn.commit)
		}
	}
	if b.err != nil || !b.dirty {
		// An error here is of no use: there is nothing to undo, or SQLite did so
		// itself, or the next BEGIN fails and says so.
		_, _ = b.conn.rollback.ExecContext(b.ctx)
	}
	if b.err == nil {
		for _, c := range b.commits {
			s.tail.Append(c)
		}
	}
	close(b.done)
}

// exec runs a statement that writes. If it fails the batch is lost.
func (b *batch) exec(stmt *sql.Stmt, args ...any) {
	b.dirty = true
	_, err := stmt.ExecContext(b.ctx, args...)
	b.err = explain(b.conn.path, err)
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
		var ended any
		if c.Deleted {
			ended = at.UnixMicro()
		}
		b.exec(b.conn.insert, b.revision.Number, i, at.UnixMicro(), actor,
			k.Group, k.Kind, k.Namespace, k.Name, c.UID, string(c.JSON), c.Deleted, ended)
		if b.err != nil {
			return
		}
	}
	b.commits = append(b.commits, store.Commit{Revision: b.revision, At: at, Actor: actor, Changes: changes})
}
