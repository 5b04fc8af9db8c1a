package store

import (
	"context"
	"errors"
)

var errPanicked = errors.New("store: a function panicked")

// A Batch is a transaction of a database that callers share.
type Batch interface {
	// Lost says why nothing in it can be committed any more, nil if it can.
	Lost() error
	// Finish commits, or undoes everything if lost is not nil. It returns nil if
	// the Batch is committed, and otherwise what all its callers are told.
	Finish(lost error) error
}

// A Line lets, for implementations, callers share transactions, and with them
// the one fsync of their COMMIT (group commit).
//
// Whoever has the turn runs its own function in the batch that is open, hands
// the turn on, and stands in line for it again. Those who stood in line before
// run their functions in the same batch meanwhile. When the first of a batch
// has the turn again, it commits for all of them. So no goroutine is needed, a
// lone caller never waits, and a function that panics does so in its caller.
type Line[B Batch] struct {
	begin func(context.Context) (B, error)
	turn  chan struct{} // holds a token while somebody uses what follows
	open  *shared[B]    // nil if no batch is
}

// A shared is a batch and how it ended.
type shared[B Batch] struct {
	batch B
	done  chan struct{} // closed when it is over; then err says how it ended
	err   error
}

// NewLine returns one whose batches are begun by begin, with the context of the
// first caller, which may end before the batch does.
func NewLine[B Batch](begin func(context.Context) (B, error)) *Line[B] {
	return &Line[B]{begin: begin, turn: make(chan struct{}, 1)}
}

// Do runs f in a batch and returns when that is over: why the batch is lost, or
// what f returned. If ctx ends before, f is not called. f changes nothing in the
// database unless it succeeds, so that one that fails leaves the batch as it was.
func (l *Line[B]) Do(ctx context.Context, f func(B) error) (err error) {
	s, err := l.join(ctx)
	if err != nil {
		return err
	}
	defer func() { // also when f panics
		if s.batch.Lost() != nil {
			l.finish(s, s.batch.Lost()) // nobody else is to join it
		}
		<-l.turn
		if e := l.settle(s); e != nil {
			err = e
		}
	}()
	if err := ctx.Err(); err != nil {
		return err // to begin took too long
	}
	return f(s.batch)
}

// Alone runs f in a batch of its own and returns when that is over. If f returns
// an error, all that it did is undone.
func (l *Line[B]) Alone(ctx context.Context, f func(B) error) (err error) {
	if err := l.take(ctx); err != nil {
		return err
	}
	defer func() { <-l.turn }()
	if l.open != nil {
		l.finish(l.open, nil)
	}
	s, err := l.current(ctx)
	if err != nil {
		return err
	}
	lost := errPanicked // unless f returns
	defer func() {
		l.finish(s, lost)
		err = s.err
	}()
	lost = f(s.batch)
	if e := s.batch.Lost(); e != nil {
		lost = e
	}
	return nil
}

// take waits for the turn.
func (l *Line[B]) take(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join takes the turn and returns the batch that is open, or begins one. If it
// fails it gives the turn back.
func (l *Line[B]) join(ctx context.Context) (*shared[B], error) {
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	s, err := l.current(ctx)
	if err != nil {
		<-l.turn
	}
	return s, err
}

// current returns the batch that is open, or begins one. The caller has the turn.
func (l *Line[B]) current(ctx context.Context) (*shared[B], error) {
	if l.open != nil {
		return l.open, nil
	}
	b, err := l.begin(ctx)
	if err != nil {
		return nil, err
	}
	l.open = &shared[B]{batch: b, done: make(chan struct{})}
	return l.open, nil
}

// settle returns when s is over, and ends it if nobody else does.
func (l *Line[B]) settle(s *shared[B]) error {
	select {
	case <-s.done:
	case l.turn <- struct{}{}:
		if l.open == s {
			l.finish(s, nil)
		}
		<-l.turn
	}
	return s.err
}

// finish ends s. The caller has the turn.
func (l *Line[B]) finish(s *shared[B], lost error) {
	l.open = nil
	s.err = s.batch.Finish(lost)
	close(s.done)
}
