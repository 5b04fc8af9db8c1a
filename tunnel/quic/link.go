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
	knocking      = 2 * time.Second  // of the client, after which it says something: so the server learns a new address of a client that only listens
)

// Windows of flow control, in bytes. They are small, because a peer that sends a byte at a
// time makes 150 bytes of memory of each until it is read. What begins a connection to a Server has room for 32
// streams that nobody reads, before the others wait for them; a Dialer's own memory is
// nobody's business but its own, and so has room for many.
const (
	streamWindow     = 32 << 10 // to begin with
	mostStreamWindow = 4 << 20
	connWindow       = 1 << 20 // of a Server, to begin with
	mostConnWindow   = 64 << 20
)

// mostRecords is how many bytes of records may wait to be written.
const mostRecords = 1 << 20

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

	told    chan struct{} // there is something in records
	telling sync.Mutex
	records []byte // that wait to be written
}

// A crowd counts the connections that have no stream, which are to be no more than most.
type crowd struct {
	idle atomic.Int64
	most int64
}

// newLink returns the link of a connection, to be served by [link.serve].
func newLink(conn *quic.Conn, crowd *crowd, idleTime time.Duration) *link {
	crowd.idle.Add(1)
	return &link{conn: conn, crowd: crowd, idleTime: idleTime, changed: make(chan struct{}, 1), told: make(chan struct{}, 1), streams: map[quic.StreamID]*stream{}}
}

// serve hears what the peer tells, and returns when the connection is over: it has
// ended, it was left and has no stream any more (but for those whose peer does not end
// them in time), or it had none for too long.
func (l *link) serve() {
	defer l.work.Wait()
	l.begin(l.hear)
	l.begin(l.write)
	for last := l.now(); ; {
		now := l.now()
		if now.broken != nil {
			l.conn.CloseWithError(codeProtocol, lossWords(now.broken))
		}
		if now.leaving && now.streams == 0 && l.finish() {
			l.conn.CloseWithError(codeNone, "")
			return
		}
		limit := time.Duration(math.MaxInt64)
		switch {
		case now.leaving && !now.inUse:
			limit = acknowledging
		case now.streams == 0:
			limit = l.idleTime
		}
		if now.leaving == last.leaving && now.inUse == last.inUse && now.streams == 0 == (last.streams == 0) {
			now.since = last.since
		}
		last = now
		timer := time.NewTimer(limit - time.Since(now.since))
		select {
		case <-l.changed:
		case <-timer.C:
			l.leave()
			if now.leaving {
				l.conn.CloseWithError(codeNone, "")
			}
		case <-l.conn.Context().Done():
			l.finish()
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// A moment is how a link stands.
type moment struct {
	streams int   // that it has
	inUse   bool  // a user has one of them
	leaving bool  // there shall be no other
	broken  error // why the connection is to be ended, if so
	since   time.Time
}

// now returns how the link stands.
func (l *link) now() moment {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := moment{streams: len(l.streams), leaving: l.leaving, broken: l.broken, since: time.Now()}
	for _, s := range l.streams {
		m.inUse = m.inUse || !s.isLeft()
	}
	return m
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

// tell has a record written, and waits for nobody.
func (l *link) tell(id quic.StreamID, f []byte) {
	l.telling.Lock()
	l.records = append(binary.BigEndian.AppendUint64(l.records, uint64(id)), f...)
	tooMany := len(l.records) > mostRecords
	l.telling.Unlock()
	if tooMany {
		l.fail(errors.New("the peer does not read records"))
	}
	select {
	case l.told <- struct{}{}:
	default:
	}
}

// write writes what was told, until the connection is over.
func (l *link) write() {
	var control *quic.SendStream
	for {
		select {
		case <-l.told:
		case <-l.conn.Context().Done():
			return
		}
		l.telling.Lock()
		b := l.records
		l.records = nil
		l.telling.Unlock()
		if control == nil {
			var err error
			if control, err = l.conn.OpenUniStream(); err != nil {
				l.fail(fmt.Errorf("no control stream: %w", err))
				return
			}
		}
		if _, err := control.Write(b); err != nil {
			l.fail(fmt.Errorf("no record can be written: %w", err))
			return
		}
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
