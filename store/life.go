package store

import (
	"context"
	"sync"
)

// A Life is, for implementations, what Close waits for: nothing begins once it
// was called, and all that began is over before anything is released.
type Life struct {
	mu     sync.RWMutex // read-locked by what is under way; End keeps it locked
	once   sync.Once
	closed chan struct{}
}

// NewLife returns one that has begun.
func NewLife() *Life { return &Life{closed: make(chan struct{})} }

// Enter holds End off until Leave, or returns the error of ctx or ErrClosed.
func (l *Life) Enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-l.closed:
		return ErrClosed
	default:
	}
	// Only End ever locks it, so it cannot be had once End was called.
	if !l.mu.TryRLock() {
		return ErrClosed
	}
	return nil
}

// Leave ends what Enter began.
func (l *Life) Leave() { l.mu.RUnlock() }

// Closed is closed when End is called.
func (l *Life) Closed() <-chan struct{} { return l.closed }

// End waits for what is under way and then releases everything. Later calls wait
// for the first and do nothing.
func (l *Life) End(release func() error) error {
	var err error
	l.once.Do(func() {
		close(l.closed)
		l.mu.Lock()
		err = release()
	})
	return err
}
