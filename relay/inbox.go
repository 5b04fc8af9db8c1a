package relay

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Room bounds what waits in Inboxes that have it together.
type Room struct {
	Most  int64 // bytes; each datagram counts inboxOverhead beside its own
	taken atomic.Int64
}

// Taken returns how many bytes wait.
func (r *Room) Taken() int64 { return r.taken.Load() }

// take takes n bytes, if there are so many.
func (r *Room) take(n int) bool {
	if r.taken.Add(int64(n)) <= r.Most {
		return true
	}
	r.give(n)
	return false
}

func (r *Room) give(n int) { r.taken.Add(-int64(n)) }

// An Inbox holds the datagrams of one flow until they are read: it is the reading half of
// a [Datagram] whose datagrams somebody else receives. One that finds no room is lost.
type Inbox struct {
	most int
	room *Room

	mu      sync.Mutex
	changed sync.Cond
	queue   [][]byte
	size    int
	over    error // what Read returns when the queue is empty
	until   time.Time
	timer   *time.Timer // at until
}

// inboxOverhead is what a datagram that waits counts beside its bytes.
const inboxOverhead = 64

// NewInbox returns an Inbox for as many bytes as most, and as there is room for.
func NewInbox(most int, room *Room) *Inbox {
	b := &Inbox{most: most, room: room}
	b.changed.L = &b.mu
	return b
}

// Put copies a datagram into it, and reports false if it is lost: there is no room, or
// the Inbox is over.
func (b *Inbox) Put(data []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	cost := len(data) + inboxOverhead
	if b.over != nil || b.size+cost > b.most || !b.room.take(cost) {
		return false
	}
	b.queue, b.size = append(b.queue, append(make([]byte, 0, len(data)), data...)), b.size+cost
	b.changed.Broadcast() // one who awaits takes nothing
	return true
}

// End lets Read fail with err when what waits was read, and reports whether err counts: not
// where the Inbox is over.
func (b *Inbox) End(err error) (first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if first = b.over == nil; first {
		b.over = err
	}
	b.changed.Broadcast()
	return first
}

// Drop ends it too, and what waits is lost. It counts even after io.EOF.
func (b *Inbox) Drop(err error) (first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if first = b.over == nil || b.over == io.EOF; first {
		b.over = err
	}
	b.queue = nil
	b.leave(b.size)
	if b.timer != nil {
		b.timer.Stop()
	}
	b.changed.Broadcast()
	return first
}

// Err returns why it is over, nil if it is not.
func (b *Inbox) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.over
}

// Await implements [Awaiter].
func (b *Inbox) Await() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.await()
}

// await returns when there is a datagram. b.mu is held.
func (b *Inbox) await() error {
	for len(b.queue) == 0 {
		switch {
		case b.over != nil:
			return b.over
		case !b.until.IsZero() && !time.Now().Before(b.until):
			return os.ErrDeadlineExceeded
		}
		b.changed.Wait()
	}
	return nil
}

// Read implements [net.Conn]. What of a datagram does not fit into p is lost.
func (b *Inbox) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.await(); err != nil {
		return 0, err
	}
	data := b.queue[0]
	b.queue[0] = nil
	if b.queue = b.queue[1:]; len(b.queue) == 0 {
		b.queue = nil
	}
	b.leave(len(data) + inboxOverhead)
	return copy(p, data), nil
}

// leave notes that so much does not wait any more. b.mu is held.
func (b *Inbox) leave(cost int) {
	b.size -= cost
	b.room.give(cost)
}

// SetReadDeadline implements [net.Conn].
func (b *Inbox) SetReadDeadline(t time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if b.until = t; !t.IsZero() && b.over == nil { // else nobody waits
		b.timer = time.AfterFunc(time.Until(t), func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.changed.Broadcast()
		})
	}
	b.changed.Broadcast()
	return nil
}
