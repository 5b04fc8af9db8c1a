package quic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"cardea/tunnel"
	"cardea/wire/frame"
)

// The ALPN protocols, and what Facts.Tunnel says of streams.
const (
	Protocol        = "cardea/1"
	PacketsProtocol = "cardea-packets/1"
	Name            = "quic"
)

// Codes of a stream.
const (
	codeReset quic.StreamErrorCode = 1 // the stream was cut
	codeDone  quic.StreamErrorCode = 2 // what comes would be for nobody; nothing was cut
	codeLeave quic.StreamErrorCode = 3 // the server serves no further stream on this connection
)

// errLeaving is what the user of a stream gets that came too late.
var errLeaving = &tunnel.ResetError{Reason: "the gateway serves no further stream on this connection"}

// Codes of a connection.
const (
	codeNone     quic.ApplicationErrorCode = 0
	codeProtocol quic.ApplicationErrorCode = 1 // the peer broke the rules
	codeEnded    quic.ApplicationErrorCode = 2 // the Session has ended
)

// How long things may take.
const (
	handshakeTime = 10 * time.Second
	lingering     = time.Minute      // for the peer to take what was written before Close, and to end its direction
	acknowledging = 5 * time.Second  // for a Verdict to be taken
	explaining    = time.Second      // for the reason of a reset to come after it
	silence       = 20 * time.Second // of the peer, after which a connection is lost
	knocking      = 5 * time.Second  // of the client, after which it asks whether the server is there
)

// all is the stream of a record that is about the connection.
const all = quic.StreamID(math.MaxInt64)

// link is a connection that carries streams, at either end.
type link struct {
	conn     *quic.Conn
	crowd    *crowd
	idleTime time.Duration // after which it ends, if it has no stream

	changed chan struct{} // something of what follows has
	mu      sync.Mutex
	streams map[quic.StreamID]*stream
	leaving bool  // it takes no further stream, and ends with its last one
	broken  error // why it is to be ended now
	ended   bool  // no work is begun any more

	work sync.WaitGroup // that serve waits for

	telling sync.Mutex // held while a record is written
	control *quic.SendStream
}

// A crowd counts the connections that have no stream, which are to be no more than most.
type crowd struct {
	idle atomic.Int64
	most int64
}

// newLink returns the link of a connection, to be served by [link.serve].
func newLink(conn *quic.Conn, crowd *crowd, idleTime time.Duration) *link {
	crowd.idle.Add(1)
	return &link{conn: conn, crowd: crowd, idleTime: idleTime, changed: make(chan struct{}, 1), streams: map[quic.StreamID]*stream{}}
}

// serve hears what the peer tells, and returns when the connection is over: it has
// ended, it was left and has no stream any more, or it had none for too long.
func (l *link) serve() {
	defer l.work.Wait()
	l.begin(l.hear)
	idle := time.Time{} // since when
	for {
		n, leaving, broken := l.state()
		if broken != nil {
			l.conn.CloseWithError(codeProtocol, lossWords(broken))
		}
		if n > 0 {
			idle = time.Time{}
		} else if idle.IsZero() {
			idle = time.Now()
		}
		if n == 0 && (leaving || time.Since(idle) >= l.idleTime) && l.finish() {
			l.conn.CloseWithError(codeNone, "")
			return
		}
		var timer <-chan time.Time
		if n == 0 {
			timer = time.After(l.idleTime - time.Since(idle))
		}
		select {
		case <-l.changed:
		case <-timer:
		case <-l.conn.Context().Done():
			l.finish()
			return
		}
	}
}

// state returns how many streams there are, whether there shall be others, and why the
// connection is to be ended, if so.
func (l *link) state() (streams int, leaving bool, broken error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.streams), l.leaving, l.broken
}

// finish lets no stream begin any more, and reports false if there is one, unless the
// connection is over.
func (l *link) finish() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.streams) > 0 && l.conn.Context().Err() == nil {
		return false
	}
	l.leaving, l.ended = true, true
	return true
}

// begin does some work of the connection beside, and reports false if this is over.
func (l *link) begin(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.work.Go(f)
	}
	return !l.ended
}

// inUse tells whether there is a stream that a user has.
func (l *link) inUse() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.streams {
		if !s.isLeft() {
			return true
		}
	}
	return false
}

// change changes what mu guards, and wakes serve.
func (l *link) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// leave lets the link end with its last stream.
func (l *link) leave() { l.change(func() { l.leaving = true }) }

// add takes a stream, and reports false if there shall be none.
func (l *link) add(s *stream) bool {
	added := false
	l.change(func() {
		if added = !l.leaving; added {
			if len(l.streams) == 0 {
				l.crowd.idle.Add(-1)
			}
			l.streams[s.quic.StreamID()] = s
		}
	})
	return added
}

// remove forgets a stream that has come to its end.
func (l *link) remove(s *stream) {
	s.forget()
	l.change(func() {
		delete(l.streams, s.quic.StreamID())
		if len(l.streams) == 0 && l.crowd.idle.Add(1) > l.crowd.most {
			l.leaving = true
		}
	})
}

// find returns a stream, nil if there is none of that id.
func (l *link) find(id quic.StreamID) *stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.streams[id]
}

// tell writes a record. A peer that does not read records has lost its connection.
func (l *link) tell(id quic.StreamID, f []byte) {
	l.telling.Lock()
	defer l.telling.Unlock()
	if l.control == nil {
		control, err := l.conn.OpenUniStream()
		if err != nil {
			l.fail(fmt.Errorf("no control stream: %w", err))
			return
		}
		l.control = control
	}
	record := append(binary.BigEndian.AppendUint64(nil, uint64(id)), f...)
	if err := l.control.TryWriteAll(record); err != nil {
		l.fail(fmt.Errorf("no record can be written: %w", err))
	}
}

// fail has the connection ended.
func (l *link) fail(err error) { l.change(func() { l.broken = err }) }

// hear reads the records of the peer.
func (l *link) hear() {
	control, err := l.conn.AcceptUniStream(l.conn.Context())
	if err != nil {
		return
	}
	frames := frame.NewReader(control)
	for err == nil {
		err = l.record(control, frames)
	}
	l.fail(err)
}

// record reads a record and does what it says. One about a stream that is not there any
// more says nothing.
func (l *link) record(control io.Reader, frames *frame.Reader) error {
	var id [8]byte
	if _, err := io.ReadFull(control, id[:]); err != nil {
		return err
	}
	f, err := frames.Next()
	if err != nil {
		return err
	}
	if f.Type != frame.TypeReset && f.Type != frame.TypeDone {
		return fmt.Errorf("%w: %v on the control stream", frame.ErrProtocol, f.Type)
	}
	stream := quic.StreamID(binary.BigEndian.Uint64(id[:]))
	if stream == all {
		l.leave()
		return nil
	}
	s := l.find(stream)
	switch {
	case s == nil:
	case f.Type == frame.TypeReset:
		s.lose(&tunnel.ResetError{Reason: f.Reason})
	default:
		s.confirm()
	}
	return nil
}

// lossWords says what became of a connection or a stream.
func lossWords(err error) string {
	if reset, ok := errors.AsType[*tunnel.ResetError](err); ok {
		return reset.Reason
	}
	if app, ok := errors.AsType[*quic.ApplicationError](err); ok {
		switch {
		case app.ErrorMessage != "":
			return app.ErrorMessage
		case app.ErrorCode == codeNone:
			return "the connection was closed"
		}
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return "the peer is silent"
	}
	if _, ok := errors.AsType[*quic.StatelessResetError](err); ok {
		return "the peer does not know the connection any more: it has started anew"
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return "the stream was cut short"
	}
	return err.Error()
}
