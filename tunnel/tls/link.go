package tls

import (
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"cardea/wire/frame"
)

// How long the end of a stream may take.
const (
	// interrupting is for a write that is under way when its stream ends, and for
	// a RESET: a peer that does not read shall not delay it.
	interrupting = 100 * time.Millisecond
	// writing is for any other frame by which the owner answers.
	writing = time.Second
	// acknowledging is for the peer's answer to a RESET or refusal, and for what
	// is to be sent when the owner shall stop.
	acknowledging = 5 * time.Second
	// lingering is for the peer to take what was written before Close, and to end
	// its direction: the time that TCP gives it (tcp_fin_timeout of tcp(7)).
	lingering = time.Minute
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// link is a connection that speaks cardea/1, at either end. Between streams its
// owner reads and writes it, and while a stream is open the users of the stream
// do: one at a time each way, so it needs no lock for either.
type link struct {
	conn   *tls.Conn
	socket *socket
	frames *frame.Reader // of conn
	broken error         // a write failed: nothing can be sent any more

	mu       sync.Mutex
	stopping bool // the owner shall not wait for the peer any more
	leaving  bool // it shall not, between two streams
	resting  bool // it is between two streams
	called   bool // it shall not rest any more: a stream is to be opened
	waiting  bool // the owner waits for the peer
}

func newLink(conn *tls.Conn, sock *socket) *link {
	return &link{conn: conn, socket: sock, frames: frame.NewReader(conn)}
}

// send writes frames.
func (l *link) send(frames []byte) error {
	if l.broken != nil {
		return l.broken
	}
	_, err := l.conn.Write(frames)
	l.broken = err
	return err
}

// How DATA is cut. crypto/tls keeps, as long as a connection lives, the memory
// that its largest record took: small records make an idle connection small. What
// they would cost is saved by writing several at once, see socket.
const (
	chunk = 4 << 10  // of a frame
	batch = 64 << 10 // of frames that are written at once; what a relay reads at once
)

// chunks lends the memory in which a DATA frame is put together.
var chunks = sync.Pool{New: func() any { return new([frame.HeaderLen + chunk]byte) }}

// sendData writes at most a batch of DATA and returns how much of p it took.
func (l *link) sendData(p []byte) (int, error) {
	p = p[:min(len(p), batch)]
	if len(p) > chunk {
		l.socket.gather()
	}
	b := chunks.Get().(*[frame.HeaderLen + chunk]byte)
	defer chunks.Put(b)
	var err error
	for rest := p; len(rest) > 0 && err == nil; {
		n := min(len(rest), chunk)
		err = l.send(frame.AppendData(b[:0], rest[:n]))
		rest = rest[n:]
	}
	if len(p) > chunk {
		if e := l.socket.flush(); err == nil && e != nil {
			l.broken, err = e, e
		}
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// errStopped is what await returns after stop.
var errStopped = errors.New("the connection was ended from this side")

// await reads a frame for the owner, until that time or until stop.
func (l *link) await(until time.Time) (frame.Frame, error) {
	l.mu.Lock()
	if l.stopping || l.resting && (l.leaving || l.called) {
		until = past
	}
	l.waiting = true
	l.conn.SetReadDeadline(until)
	l.mu.Unlock()

	f, err := l.frames.Next()

	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = false
	if err != nil && l.stopping {
		err = errStopped
	}
	return f, err
}

// flush sends frames for the owner behind bytes that the peer may be slow to take.
func (l *link) flush(frames []byte) error {
	l.mu.Lock()
	limit := lingering
	if l.stopping {
		limit = acknowledging
	}
	l.waiting = true
	l.conn.SetWriteDeadline(time.Now().Add(limit))
	l.mu.Unlock()

	err := l.send(frames)

	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = false
	return err
}

// stop makes the owner wait for the peer no more, now and later.
func (l *link) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopping = true
	if l.waiting {
		l.conn.SetReadDeadline(past)
		l.conn.SetWriteDeadline(time.Now().Add(acknowledging))
	}
}

// leave makes the owner wait for no further stream, now and later. One that is open
// goes on, and one that the peer has asked for meanwhile is served, or is lost before
// its verdict: then the peer asks again elsewhere.
func (l *link) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaving = true
	if l.resting && l.waiting {
		l.conn.SetReadDeadline(past)
	}
}

// call makes the owner, between two streams, come back from waiting.
func (l *link) call() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.called = true
	if l.resting && l.waiting {
		l.conn.SetReadDeadline(past)
	}
}

// rest notes that the owner is between two streams, and tells whether it may wait for
// another one.
func (l *link) rest() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resting = true
	return !l.leaving
}

// work notes that it is not. The time until which it has waited is not the stream's.
func (l *link) work() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resting, l.called = false, false
	l.conn.SetReadDeadline(time.Time{})
}

// expect reads the frame of a type that must come now, for the owner and between
// streams. Another one is answered by a RESET.
func (l *link) expect(t frame.Type, limit time.Duration) (frame.Frame, error) {
	f, err := l.await(time.Now().Add(limit))
	if err == nil && f.Type != t {
		err = unexpected(f.Type, t.String())
	}
	if errors.Is(err, frame.ErrProtocol) {
		l.answer(frame.AppendReset(nil, err.Error()), writing)
	}
	return f, err
}

// greet waits for the HELLO of who asks for streams, and answers it.
func (l *link) greet(limit time.Duration) error {
	f, err := l.expect(frame.TypeHello, limit)
	if err != nil {
		return err
	}
	if f.Hello.Version < frame.Version {
		l.answer(frame.AppendReset(nil, "this version of the protocol is not spoken"), writing)
		return unexpected(f.Type, "one of version 1 or later")
	}
	return l.answer(frame.AppendHello(nil, frame.Hello{Version: frame.Version}), writing)
}

// answer sends frames for the owner, within that time.
func (l *link) answer(frames []byte, limit time.Duration) error {
	l.conn.SetWriteDeadline(time.Now().Add(limit))
	err := l.send(frames)
	l.conn.SetWriteDeadline(time.Time{}) // it is not that of what comes later
	return err
}

func unexpected(t frame.Type, instead string) error {
	return fmt.Errorf("%w: %v where %s was due", frame.ErrProtocol, t, instead)
}
