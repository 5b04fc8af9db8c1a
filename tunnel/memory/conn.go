package memory

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"cardea/tunnel"
)

// capacity is how many bytes a direction holds; a writer waits beyond that.
const capacity = 64 << 10

// A Conn is one end of a stream in memory. It is a [tunnel.Conn].
type Conn struct {
	in, out     *queue
	peer        *Conn
	read, write *tunnel.Deadline

	mu   sync.Mutex
	err  error         // why this end is over; nil while it is not
	gone chan struct{} // closed with err
}

var (
	_ tunnel.Conn    = (*Conn)(nil)
	_ tunnel.Watcher = (*Conn)(nil)
)

// pipe returns the two ends of a stream.
func pipe() (*Conn, *Conn) {
	x, y := newQueue(), newQueue()
	a := &Conn{in: x, out: y, gone: make(chan struct{}), read: tunnel.NewDeadline(), write: tunnel.NewDeadline()}
	b := &Conn{in: y, out: x, gone: make(chan struct{}), read: tunnel.NewDeadline(), write: tunnel.NewDeadline()}
	a.peer, b.peer = b, a
	return a, b
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		if err := c.ended(); err != nil {
			return 0, err
		}
		if tunnel.IsClosed(c.read.Wait()) {
			return 0, os.ErrDeadlineExceeded
		}
		n, changed, err := c.in.take(p)
		if changed == nil {
			return n, err
		}
		select {
		case <-changed:
		case <-c.gone:
		case <-c.read.Wait():
		}
	}
}

// Write implements net.Conn. It returns when the peer's buffer holds all of p.
func (c *Conn) Write(p []byte) (int, error) {
	written := 0
	for {
		if err := c.ended(); err != nil {
			return written, err
		}
		if tunnel.IsClosed(c.write.Wait()) {
			return written, os.ErrDeadlineExceeded
		}
		n, changed, err := c.out.put(p[written:])
		written += n
		if changed == nil {
			return written, err
		}
		select {
		case <-changed:
		case <-c.gone:
		case <-c.write.Wait():
		}
	}
}

// WaitReset implements [tunnel.Watcher]. A peer that has closed before this end had
// finished counts as lost: it would not hear the rest.
func (c *Conn) WaitReset() error {
	for {
		if err := c.ended(); err != nil {
			return err
		}
		changed, err := c.out.lost()
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-c.gone:
		}
	}
}

// CloseWrite implements [tunnel.Conn].
func (c *Conn) CloseWrite() error {
	if err := c.ended(); err != nil {
		return err
	}
	c.out.finish()
	return nil
}

// Close implements net.Conn. The peer reads to the end of what was sent. If this
// end had not heard the end of the peer's bytes, the peer's writes see a reset,
// and its reads too if some of what it sent was never read.
func (c *Conn) Close() error {
	if !c.end(net.ErrClosed) {
		return net.ErrClosed
	}
	c.out.finish()
	if unread := c.in.abandon(&tunnel.ResetError{Reason: "closed by the peer"}); unread {
		c.out.fail(&tunnel.ResetError{Reason: "closed by the peer before it had read all"})
	}
	return nil
}

// Reset implements [tunnel.Conn].
func (c *Conn) Reset(reason string) error {
	cut := &tunnel.ResetError{Reason: reason}
	if c.end(cut) {
		c.in.fail(cut)
		c.out.fail(cut)
	}
	return nil
}

// end ends this end, once.
func (c *Conn) end(why error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	c.err = why
	close(c.gone)
	return true
}

func (c *Conn) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// endedBy tells why either end is over. c.mu must be held.
func (c *Conn) endedBy() error {
	if c.err != nil {
		return c.err
	}
	return c.in.failure()
}

// reason says in words why this end is over.
func (c *Conn) reason() string {
	if r, ok := c.ended().(*tunnel.ResetError); ok {
		return r.Reason
	}
	return "the connection was closed"
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return addr{} }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.read.Set(t)
	c.write.Set(t)
	return c.ended()
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.read.Set(t)
	return c.ended()
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.write.Set(t)
	return c.ended()
}

type addr struct{}

func (addr) Network() string { return Name }
func (addr) String() string  { return Name }

// queue is the bytes under way in one direction.
type queue struct {
	mu       sync.Mutex
	bytes    []byte
	finished bool          // no more bytes come
	deaf     error         // nobody reads any more: what a writer gets
	err      error         // the stream was cut: what both get
	changed  chan struct{} // closed when any of these changes
}

func newQueue() *queue { return &queue{changed: make(chan struct{})} }

// change wakes all who wait. q.mu must be held.
func (q *queue) change() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// take reads. If nothing can be said yet it returns a channel to wait for.
func (q *queue) take(p []byte) (int, <-chan struct{}, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.err != nil:
		return 0, nil, q.err
	case len(p) == 0:
		return 0, nil, nil
	case len(q.bytes) > 0:
		n := copy(p, q.bytes)
		if q.bytes = q.bytes[n:]; len(q.bytes) == 0 {
			q.bytes = nil
		}
		q.change()
		return n, nil, nil
	case q.finished:
		return 0, nil, io.EOF
	}
	return 0, q.changed, nil
}

// put writes what there is room for. If that is not all it returns a channel to
// wait for.
func (q *queue) put(p []byte) (int, <-chan struct{}, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.err != nil:
		return 0, nil, q.err
	case q.deaf != nil:
		return 0, nil, q.deaf
	case q.finished:
		return 0, nil, syscall.EPIPE
	}
	n := min(len(p), capacity-len(q.bytes))
	if n > 0 {
		q.bytes = append(q.bytes, p[:n]...)
		q.change()
	}
	if n < len(p) {
		return n, q.changed, nil
	}
	return n, nil, nil
}

func (q *queue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.finished {
		q.finished = true
		q.change()
	}
}

// abandon says that nobody reads any more, and reports whether bytes were left.
func (q *queue) abandon(why error) (unread bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	unread, q.deaf, q.bytes = len(q.bytes) > 0, why, nil
	q.change()
	return unread
}

func (q *queue) fail(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err, q.bytes = why, nil
		q.change()
	}
}

// lost tells why what is still written will never be read, or returns a channel to
// wait for.
func (q *queue) lost() (<-chan struct{}, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.err != nil:
		return nil, q.err
	case q.deaf != nil && !q.finished:
		return nil, q.deaf
	}
	return q.changed, nil
}

func (q *queue) failure() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}
