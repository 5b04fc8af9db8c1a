package quic

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"

	"cardea/api"
	"cardea/tunnel"
	"cardea/wire/frame"
)

// stream is one stream of a link, at either end.
//
// Its user reads, writes and in the end closes or resets it. That waits for nobody: it
// tells the owner of the stream, who then brings it to its end, see settle.
type stream struct {
	quic *quic.Stream
	link *link
	over func() // tells the owner, once, that the user is done

	reading sync.Mutex // held while reading
	writing sync.Mutex // held while writing

	gone      chan struct{} // closed with err
	confirmed chan struct{} // the peer has read all; closed once
	unwatch   func() bool   // of the peer's STOP_SENDING

	mu      sync.Mutex
	err     error       // what the user gets: net.ErrClosed, or a *tunnel.ResetError of either side
	left    bool        // the user is done
	cutOff  bool        // by a reset of this side
	silent  error       // why the user may not send: the Verdict; guarded by writing, too
	sentEOF bool        // FIN was sent
	gotEOF  bool        // FIN was read
	done    bool        // confirmed is closed
	lost    error       // of the connection, by which the stream was lost
	cut     *time.Timer // the peer has cut the stream, and the reason is due
}

var (
	_ tunnel.Conn    = (*stream)(nil)
	_ tunnel.Watcher = (*stream)(nil)
)

func newStream(q *quic.Stream, l *link) *stream {
	s := &stream{quic: q, link: l, gone: make(chan struct{}), confirmed: make(chan struct{})}
	s.unwatch = context.AfterFunc(q.Context(), func() {
		if e, ok := errors.AsType[*quic.StreamError](context.Cause(q.Context())); ok && e.Remote && e.ErrorCode == codeReset {
			s.explained()
		}
	})
	return s
}

// forget releases what the stream has outside of itself.
func (s *stream) forget() {
	s.unwatch()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut != nil {
		s.cut.Stop()
	}
}

// lose notes that the stream is over, and why, unless it was before; the peer knows.
func (s *stream) lose(why *tunnel.ResetError) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = why
		close(s.gone)
	}
	s.mu.Unlock()
	if !first {
		s.confirm() // settle need not wait
	}
	s.quic.CancelRead(codeDone) // to wake who waits
	s.quic.CancelWrite(codeDone)
}

// explained waits for the reason of a reset by the peer, in that lose is called, but not
// for ever; and for nobody.
func (s *stream) explained() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut == nil && s.err == nil {
		s.cut = time.AfterFunc(explaining, func() { s.lose(&tunnel.ResetError{Reason: "the peer has cut the stream"}) })
	}
}

// confirm notes that the peer has read all.
func (s *stream) confirm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.done = true
		close(s.confirmed)
	}
}

// ended returns what the user gets, nil if the stream goes on.
func (s *stream) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if err := s.ended(); err != nil {
		return 0, err
	}
	return s.read(p)
}

// read is Read also for the owner. reading must be held.
func (s *stream) read(p []byte) (int, error) {
	if s.gotEOF {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.quic.Read(p)
	if n > 0 {
		return n, nil // the error comes again
	}
	if err != io.EOF {
		return 0, s.explain(err)
	}
	s.mu.Lock()
	s.gotEOF = true
	s.mu.Unlock()
	s.link.tell(s.quic.StreamID(), frame.AppendDone(nil))
	return 0, io.EOF
}

// explain returns what the user gets for an error of QUIC: its own doing if it is done,
// a deadline of its own, or a reset.
func (s *stream) explain(err error) error {
	if e := s.ended(); e != nil {
		return e
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	if e, ok := errors.AsType[*quic.StreamError](err); ok && e.Remote && e.ErrorCode == codeReset {
		s.explained()
		<-s.gone
		return s.ended()
	} else if ok && e.ErrorCode == codeLeave {
		s.lose(errLeaving)
	} else if ok {
		err = &tunnel.ResetError{Reason: "the peer has cut the stream"}
	} else {
		s.mu.Lock()
		s.lost = err
		s.mu.Unlock()
	}
	s.lose(&tunnel.ResetError{Reason: lossWords(err)})
	return s.ended()
}

// WaitReset implements [tunnel.Watcher].
func (s *stream) WaitReset() error {
	select {
	case <-s.gone:
		return s.ended()
	case <-s.confirmed:
		return s.ended()
	case <-s.link.conn.Context().Done():
		return s.explain(context.Cause(s.link.conn.Context()))
	}
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.writable(); err != nil {
		return 0, err
	}
	n, err := s.quic.Write(p)
	if err != nil {
		return n, s.explain(err)
	}
	return n, nil
}

// writable tells why nothing can be written, if so.
func (s *stream) writable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case s.silent != nil:
		return s.silent
	case s.sentEOF:
		return syscall.EPIPE
	}
	return nil
}

// CloseWrite implements [tunnel.Conn].
func (s *stream) CloseWrite() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.writable(); err != nil {
		if err == syscall.EPIPE {
			return nil
		}
		return err
	}
	s.finish()
	return nil
}

// finish sends FIN. writing must be held.
func (s *stream) finish() {
	s.mu.Lock()
	s.sentEOF = true
	s.mu.Unlock()
	s.quic.Close()
}

// Close implements net.Conn. What was written is sent, and the end of file. As
// with TCP, bytes that were not read, or that still come, make it a reset; and so does a
// Write that is under way.
func (s *stream) Close() error {
	if !s.leave(net.ErrClosed) {
		return net.ErrClosed
	}
	defer s.over()
	if s.ended() != net.ErrClosed {
		return nil // it was lost
	}
	if !s.writing.TryLock() {
		s.sendReset("closed while something was written")
		return nil
	}
	defer s.writing.Unlock()
	if s.silent != nil {
		s.sendReset("closed without a verdict")
		return nil
	}
	if !s.sentEOF {
		s.finish()
	}
	s.quic.SetReadDeadline(time.Unix(1, 0)) // for the user, who may wait
	return nil
}

// Reset implements [tunnel.Conn].
func (s *stream) Reset(reason string) error {
	why := &tunnel.ResetError{Reason: reason}
	if !s.leave(why) {
		return nil
	}
	if s.ended() == why {
		s.sendReset(reason)
	}
	s.over()
	return nil
}

// leave notes that the user is done, once.
func (s *stream) leave(why error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left {
		return false
	}
	s.left = true
	if s.err == nil {
		s.err = why
		close(s.gone)
	}
	return true
}

// sendReset cuts the stream, and tells the peer why.
func (s *stream) sendReset(reason string) {
	s.mu.Lock()
	s.cutOff = true
	s.mu.Unlock()
	s.link.tell(s.quic.StreamID(), frame.AppendReset(nil, reason))
	s.quic.CancelWrite(codeReset)
	s.quic.CancelRead(codeReset)
}

const unread = "closed before all was read"

// settle waits until both directions of a stream whose user is done have ended.
func (s *stream) settle() {
	defer s.link.remove(s)
	if s.isCut() {
		return
	}
	s.link.change(func() {}) // nobody uses it any more
	until := time.Now().Add(lingering)
	s.reading.Lock() // the user's call has come back
	defer s.reading.Unlock()
	s.quic.SetReadDeadline(until)
	if !s.gotEOF {
		n, err := s.quic.Read(make([]byte, 1))
		switch {
		case n > 0:
			s.sendReset(unread)
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.sendReset("closed, and the peer would not end")
			return
		case err != io.EOF:
			s.quic.CancelRead(codeDone)
			s.quic.CancelWrite(codeDone)
			return
		}
		s.link.tell(s.quic.StreamID(), frame.AppendDone(nil))
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-s.confirmed:
	case <-timer.C:
	case <-s.link.conn.Context().Done():
	}
}

// lostBy returns the error of the connection by which the stream was lost, if it was.
func (s *stream) lostBy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *stream) isLeft() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

// isCut tells whether nothing is left of the stream but to forget it.
func (s *stream) isCut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != net.ErrClosed || s.cutOff || s.silent != nil
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return s.link.conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return s.link.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error { return s.setDeadline(t, s.quic.SetDeadline) }

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error { return s.setDeadline(t, s.quic.SetReadDeadline) }

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error {
	return s.setDeadline(t, s.quic.SetWriteDeadline)
}

// setDeadline leaves the deadlines alone once they are the owner's.
func (s *stream) setDeadline(t time.Time, set func(time.Time) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left {
		return net.ErrClosed
	}
	return set(t)
}

// arrival is the house's end of a stream.
type arrival struct {
	*stream
	told bool // guarded by writing
}

var (
	_ tunnel.Conn   = (*arrival)(nil)
	_ tunnel.Teller = (*arrival)(nil)
)

var (
	errUntold  = errors.New("tunnel: no byte may be sent before the Verdict")
	errRefused = errors.New("tunnel: the stream was refused")
)

// Verdict implements [tunnel.Teller]. It clears the deadline for writing: a peer that does
// not take the Verdict in a few seconds is lost.
func (a *arrival) Verdict(v api.Verdict) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	if a.told {
		return errors.New("tunnel: the Verdict was told before")
	}
	if err := a.writable(); err != errUntold {
		return err
	}
	a.told = true
	a.SetWriteDeadline(time.Now().Add(acknowledging))
	_, err := a.quic.Write(frame.AppendVerdict(nil, frame.Verdict{Code: string(v.Code), DecisionID: v.DecisionID, Words: v.Words}))
	if err != nil {
		return a.explain(err)
	}
	a.SetWriteDeadline(time.Time{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = nil
	if v.Code != api.VerdictOK {
		a.silent = errRefused
	}
	return nil
}

// Close implements net.Conn.
func (a *arrival) Close() error {
	if a.refused() && a.leave(net.ErrClosed) {
		a.quic.Close() // behind the Verdict
		a.quic.CancelRead(codeDone)
		a.over()
		return nil
	}
	return a.stream.Close()
}

// Reset implements [tunnel.Conn]. Of a stream that was refused nothing is left to cut.
func (a *arrival) Reset(reason string) error {
	if a.refused() {
		a.Close()
		return nil
	}
	return a.stream.Reset(reason)
}

func (a *arrival) refused() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.silent == errRefused && a.err == nil
}
