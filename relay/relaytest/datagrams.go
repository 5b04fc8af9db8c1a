package relaytest

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"cardea/relay"
)

// DatagramBuffer is how many datagrams Datagrams holds in each direction; what more is
// sent is lost.
const DatagramBuffer = 64

// Datagrams returns the two ends of a flow in memory: each Write is one Read at the other
// end. It works in a synctest bubble.
func Datagrams() (*DatagramEnd, *DatagramEnd) {
	a := &DatagramEnd{mu: new(sync.Mutex)}
	b := &DatagramEnd{mu: a.mu, peer: a}
	a.peer = b
	a.changed, b.changed = sync.NewCond(a.mu), sync.NewCond(a.mu)
	return a, b
}

// DatagramEnd is one end of Datagrams: a relay.Datagram, a relay.Awaiter and a
// relay.Resetter.
type DatagramEnd struct {
	peer    *DatagramEnd
	mu      *sync.Mutex // shared by both ends
	changed *sync.Cond
	in      [][]byte
	over    error // what Read returns when in is empty
	fails   error // what Write returns
	timeout time.Time
	timer   *time.Timer
	reason  string // of the reset, by either end
}

var (
	_ relay.Datagram = (*DatagramEnd)(nil)
	_ relay.Awaiter  = (*DatagramEnd)(nil)
	_ relay.Resetter = (*DatagramEnd)(nil)
)

// Datagram implements relay.Datagram.
func (*DatagramEnd) Datagram() {}

// Await implements relay.Awaiter.
func (d *DatagramEnd) Await() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wait()
}

// wait returns when there is a datagram. d.mu is held.
func (d *DatagramEnd) wait() error {
	for len(d.in) == 0 {
		switch {
		case d.over != nil:
			return d.over
		case !d.timeout.IsZero() && !time.Now().Before(d.timeout):
			return os.ErrDeadlineExceeded
		}
		d.changed.Wait()
	}
	return nil
}

// Read implements net.Conn.
func (d *DatagramEnd) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.wait(); err != nil {
		return 0, err
	}
	n := copy(p, d.in[0])
	d.in = d.in[1:]
	return n, nil
}

// Write implements net.Conn.
func (d *DatagramEnd) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.fails != nil:
		return 0, d.fails
	case d.over != nil:
		return 0, d.over
	case len(d.peer.in) < DatagramBuffer:
		d.peer.in = append(d.peer.in, append([]byte{}, p...))
		d.peer.changed.Broadcast()
	}
	return len(p), nil
}

// FailWrites makes every Write of this end fail with err, or none if it is nil.
func (d *DatagramEnd) FailWrites(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fails = err
}

// Close implements net.Conn. The other end reads what is on its way, and then io.EOF.
func (d *DatagramEnd) Close() error {
	d.end(net.ErrClosed, io.EOF, "")
	return nil
}

// Reset implements relay.Resetter.
func (d *DatagramEnd) Reset(reason string) error {
	d.end(&relay.ResetError{Reason: reason}, &relay.ResetError{Reason: reason}, reason)
	return nil
}

func (d *DatagramEnd) end(here, there error, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over == nil {
		d.over, d.in = here, nil
	}
	if d.peer.over == nil {
		d.peer.over = there
		d.reason, d.peer.reason = reason, reason
	}
	d.changed.Broadcast()
	d.peer.changed.Broadcast()
}

// Reason returns the one of the reset that ended the flow.
func (d *DatagramEnd) Reason() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.reason
}

// SetReadDeadline implements net.Conn.
func (d *DatagramEnd) SetReadDeadline(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	if d.timeout = t; !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.changed.Broadcast()
		})
	}
	d.changed.Broadcast()
	return nil
}

// SetWriteDeadline implements net.Conn. A Write never waits.
func (d *DatagramEnd) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline implements net.Conn.
func (d *DatagramEnd) SetDeadline(t time.Time) error { return d.SetReadDeadline(t) }

// LocalAddr implements net.Conn.
func (*DatagramEnd) LocalAddr() net.Addr { return pipeAddr{} }

// RemoteAddr implements net.Conn.
func (*DatagramEnd) RemoteAddr() net.Addr { return pipeAddr{} }
