package tunnel

import (
	"sync"
	"time"
)

// A Deadline is one of a conn that is no socket: a time after which a channel is closed.
// Its zero value is not usable, see [NewDeadline].
type Deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	done  chan struct{}
}

// NewDeadline returns a Deadline that is not set.
func NewDeadline() *Deadline { return &Deadline{done: make(chan struct{})} }

// Set moves the deadline; the zero time is none.
func (d *Deadline) Set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fired := d.timer != nil && !d.timer.Stop()
	d.timer = nil
	// Whoever waits must look again: close this channel, unless the timer does, and
	// give out another.
	if !fired && !IsClosed(d.done) {
		close(d.done)
	}
	d.done = make(chan struct{})
	if t.IsZero() {
		return
	}
	done := d.done
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() { close(done) })
		return
	}
	close(done)
}

// Wait returns what is closed when the deadline has passed, or was moved: then it is to
// be asked for again.
func (d *Deadline) Wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.done
}

// IsClosed reports whether a channel on which nothing is sent has been closed.
func IsClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
