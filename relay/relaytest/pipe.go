package relaytest

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"cardea/relay"
)

// PipeBuffer is how many bytes a Pipe holds in each direction before writers
// wait.
const PipeBuffer = 64 << 10

// Pipe returns the two ends of a stream in memory that behaves as a TCP
// connection does towards its users: writes go through a bounded buffer, a
// direction can be closed alone, a reset discards what is on its way and is seen
// as a reset, and closing with bytes unread resets. It works in a synctest
// bubble.
func Pipe() (*PipeEnd, *PipeEnd) {
	a := &PipeEnd{mu: new(sync.Mutex)}
	b := &PipeEnd{mu: a.mu}
	a.peer, b.peer = b, a
	a.changed, b.changed = sync.NewCond(a.mu), sync.NewCond(a.mu)
	return a, b
}

// PipeEnd is one end of a Pipe. It is a net.Conn, a relay.CloseWriter, a
// relay.Resetter and a relay.Watcher.
type PipeEnd struct {
	peer    *PipeEnd
	mu      *sync.Mutex // shared by both ends
	changed *sync.Cond  // for whoever waits at this end

	in          []byte // on its way to this end
	ended       bool   // no more will be written by this end
	closed      bool   // by this end's user
	reset       error  // what both ends' users see after a reset
	read, write deadline
}

// deadline is when calls in one direction stop waiting.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// Read implements net.Conn.
func (p *PipeEnd) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.closed:
			return 0, net.ErrClosed
		case p.read.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p.in) > 0:
			n := copy(b, p.in)
			p.in = p.in[n:]
			p.peer.changed.Broadcast()
			return n, nil
		case p.reset != nil:
			return 0, p.reset
		case p.peer.ended:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		}
		p.changed.Wait()
	}
}

// Write implements net.Conn.
func (p *PipeEnd) Write(b []byte) (n int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.closed:
			return n, net.ErrClosed
		case p.reset != nil:
			return n, p.reset
		case p.ended:
			return n, syscall.EPIPE
		case p.write.passed():
			return n, os.ErrDeadlineExceeded
		case p.peer.closed:
			p.abort(&relay.ResetError{Reason: "written to after close"})
			return n, p.reset
		case n == len(b):
			return n, nil
		}
		if space := PipeBuffer - len(p.peer.in); space > 0 {
			part := b[n:min(n+space, len(b))]
			p.peer.in = append(p.peer.in, part...)
			n += len(part)
			p.peer.changed.Broadcast()
			continue
		}
		p.changed.Wait()
	}
}

// WaitReset implements relay.Watcher.
func (p *PipeEnd) WaitReset() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.closed:
			return net.ErrClosed
		case p.reset != nil:
			return p.reset
		}
		p.changed.Wait()
	}
}

// CloseWrite ends the direction from this end: the peer reads what is on its way
// and then the end of file.
func (p *PipeEnd) CloseWrite() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return net.ErrClosed
	case p.reset != nil:
		return p.reset
	}
	p.ended = true
	p.wake()
	return nil
}

// Close implements net.Conn. The peer reads what is on its way and then the end
// of file; but if there are bytes here that nobody has read, it sees a reset.
func (p *PipeEnd) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if len(p.in) > 0 && p.reset == nil {
		p.in = nil
		p.reset = &relay.ResetError{Reason: "closed with bytes unread"}
		p.peer.reset = p.reset
	}
	p.shut()
	return nil
}

// Reset implements relay.Resetter: what is on its way in either direction is
// discarded, and the peer sees a relay.ResetError with the reason.
func (p *PipeEnd) Reset(reason string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	finished := p.ended && p.peer.ended && len(p.in) == 0 && len(p.peer.in) == 0
	if !finished {
		p.abort(&relay.ResetError{Reason: reason})
	}
	p.shut()
	return nil
}

// abort resets the stream, unless it has been already.
func (p *PipeEnd) abort(err error) {
	if p.reset == nil {
		p.reset, p.peer.reset = err, err
		p.in, p.peer.in = nil, nil
	}
	p.wake()
}

// shut is the part of Close that Reset shares.
func (p *PipeEnd) shut() {
	p.closed, p.ended = true, true
	for _, d := range []*deadline{&p.read, &p.write} {
		if d.timer != nil {
			d.timer.Stop()
		}
	}
	p.wake()
}

func (p *PipeEnd) wake() {
	p.changed.Broadcast()
	p.peer.changed.Broadcast()
}

// SetDeadline implements net.Conn.
func (p *PipeEnd) SetDeadline(t time.Time) error {
	if err := p.SetReadDeadline(t); err != nil {
		return err
	}
	return p.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (p *PipeEnd) SetReadDeadline(t time.Time) error { return p.setDeadline(&p.read, t) }

// SetWriteDeadline implements net.Conn.
func (p *PipeEnd) SetWriteDeadline(t time.Time) error { return p.setDeadline(&p.write, t) }

func (p *PipeEnd) setDeadline(d *deadline, t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if d.timer != nil {
		d.timer.Stop()
	}
	d.at, d.timer = t, nil
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.changed.Broadcast()
		})
	}
	p.changed.Broadcast()
	return nil
}

// LocalAddr implements net.Conn.
func (p *PipeEnd) LocalAddr() net.Addr { return pipeAddr{} }

// RemoteAddr implements net.Conn.
func (p *PipeEnd) RemoteAddr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
