package tls

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/wire/frame"
)

// stream is one stream of a link, at either end.
//
// Its user reads, writes and in the end closes or resets it. That waits for
// nobody: it tells the owner of the link, who then brings the stream to the end
// that the protocol wants, see settle.
type stream struct {
	link *link
	over func() // tells the owner, once, that the user is done

	users   sync.WaitGroup // calls of the user that are under way; settle waits for them
	reading sync.Mutex     // held while reading the link
	writing sync.Mutex     // held while writing it

	mu      sync.Mutex
	err     error // what the user gets: net.ErrClosed, or a *tunnel.ResetError of either side
	left    bool  // the user is done
	cut     bool  // by Reset
	silent  error // why the user may not send: the Verdict
	sentEOF bool
	gotEOF  bool
	sentEnd bool // our direction has ended: DONE, RESET or a refusal was sent
	gotEnd  bool // the peer's direction has ended
	lost    bool // the link is of no use any more

	discarded int // bytes that came after the user was done
}

var (
	_ tunnel.Conn    = (*stream)(nil)
	_ tunnel.Watcher = (*stream)(nil)
)

// enter begins a call of the user that holds one of the locks, and fails if the
// user is done.
func (s *stream) enter(lock *sync.Mutex) error {
	s.mu.Lock()
	if s.left {
		defer s.mu.Unlock()
		return s.err
	}
	s.users.Add(1)
	s.mu.Unlock()
	lock.Lock()
	return nil
}

func (s *stream) exit(lock *sync.Mutex) {
	lock.Unlock()
	s.users.Done()
}

// Read implements net.Conn. It reads into p what has come, of as many frames as there
// are, and holds no memory of its own.
func (s *stream) Read(p []byte) (int, error) {
	if err := s.enter(&s.reading); err != nil {
		return 0, err
	}
	defer s.exit(&s.reading)
	sock := s.link.socket
	sock.bulk = len(p) >= batch
	n, err := s.read(p)
	sock.brief = true
	for more := n; err == nil && n < len(p) && more > 0; n += more {
		more, err = s.read(p[n:]) // an error that stays comes again
	}
	sock.bulk, sock.brief = false, false
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// read reads from one frame.
func (s *stream) read(p []byte) (int, error) {
	frames := s.link.frames
	for {
		if err := s.readable(); err != nil || len(p) == 0 {
			return 0, err
		}
		if frames.Left() > 0 {
			n, err := frames.Data(p)
			return n, s.explain(err)
		}
		f, err := frames.Next()
		if err == nil {
			err = s.take(f)
		}
		if err != nil {
			return 0, s.explain(err)
		}
	}
}

// readable tells why nothing can be read, if so.
func (s *stream) readable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.gotEOF {
		return io.EOF
	}
	return s.err
}

// take notes a frame that came while the stream is open.
func (s *stream) take(f frame.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case f.Type == frame.TypeData && !s.gotEOF:
		return nil
	case f.Type == frame.TypeEOF && !s.gotEOF:
		s.gotEOF = true
		return nil
	case f.Type == frame.TypeDone && s.gotEOF && s.sentEOF:
		s.gotEnd = true
		return nil
	case f.Type == frame.TypeReset:
		s.gotEnd = true
		if s.err == nil {
			s.err = &tunnel.ResetError{Reason: f.Reason}
		}
		if !s.left {
			// A writer that is blocked must learn it too.
			s.link.conn.SetWriteDeadline(time.Now().Add(interrupting))
		}
		return s.err
	}
	if s.gotEOF {
		return unexpected(f.Type, "DONE, after EOF of both sides, or RESET")
	}
	return unexpected(f.Type, "DATA, EOF or RESET")
}

// WaitReset implements [tunnel.Watcher]. It reads what may follow EOF.
func (s *stream) WaitReset() error {
	if err := s.enter(&s.reading); err != nil {
		return err
	}
	defer s.exit(&s.reading)
	for {
		if watching, err := s.watchable(); !watching {
			return err
		}
		f, err := s.link.frames.Next()
		if err == nil {
			err = s.take(f)
		}
		if err != nil {
			return s.explain(err)
		}
	}
}

// watchable tells whether the peer can still cut the stream and do nothing else,
// or that it was cut.
func (s *stream) watchable() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil && s.gotEOF && !s.gotEnd, s.err
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) {
	if err := s.enter(&s.writing); err != nil {
		return 0, err
	}
	defer s.exit(&s.writing)
	written := 0
	for {
		if err := s.writable(); err != nil || written == len(p) {
			return written, err
		}
		n, err := s.link.sendData(p[written:])
		written += n
		if err != nil {
			return written, s.explain(err)
		}
	}
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
	if err := s.enter(&s.writing); err != nil {
		return err
	}
	defer s.exit(&s.writing)
	if err := s.writable(); err != nil {
		if err == syscall.EPIPE {
			return nil
		}
		return err
	}
	s.setSentEOF(true) // before the peer can answer it
	if err := s.link.send(frame.AppendEOF(nil)); err != nil {
		s.setSentEOF(false)
		return s.explain(err)
	}
	return nil
}

func (s *stream) setSentEOF(sent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sentEOF = sent
}

// explain returns what the user gets for an error of the link: its own doing if
// it is done, a deadline of its own, or a reset.
func (s *stream) explain(err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	s.lost = true
	s.err = &tunnel.ResetError{Reason: lossWords(err)}
	return s.err
}

// lossWords says what became of a connection that was lost.
func lossWords(err error) string {
	switch reset := new(tunnel.ResetError); {
	case errors.As(err, &reset):
		return reset.Reason
	case err == io.EOF:
		return "the connection was closed"
	}
	return err.Error()
}

// Close implements net.Conn. What was written is sent, and the end of file. As
// with TCP, bytes that were not read, or that still come, make it a reset.
func (s *stream) Close() error {
	if !s.leave(net.ErrClosed, false) {
		return net.ErrClosed
	}
	return nil
}

// Reset implements [tunnel.Conn]. If a write that is blocked does not get out at
// once, the peer sees the TCP connection reset, and no reason.
func (s *stream) Reset(reason string) error {
	s.leave(&tunnel.ResetError{Reason: reason}, true)
	return nil
}

// leave notes that the user is done, once, and tells the owner.
func (s *stream) leave(why error, cut bool) bool {
	s.mu.Lock()
	if s.left {
		s.mu.Unlock()
		return false
	}
	s.left, s.cut = true, cut
	if s.err == nil {
		s.err = why
	}
	s.link.conn.SetReadDeadline(past)
	s.link.conn.SetWriteDeadline(time.Now().Add(interrupting))
	s.mu.Unlock()
	s.over()
	return true
}

// settle ends both directions of a stream whose user is done. Without an error
// the link can carry another one. With an error it is of no use, and unless that
// is errStopped it was reset.
func (s *stream) settle() error {
	s.users.Wait() // nobody else reads, writes or changes s from here on
	err := s.windUp()
	if err != nil && err != errStopped {
		s.link.socket.abort()
	}
	return err
}

func (s *stream) windUp() error {
	if s.lost {
		return s.err
	}
	if err := s.lastWords(); err != nil {
		return err
	}
	until := s.patience()
	for !s.gotEnd {
		f, err := s.link.await(until)
		if errors.Is(err, os.ErrDeadlineExceeded) && !s.cut {
			// The peer may still be taking what we have sent. Closing the
			// connection leaves that to it, as closing a TCP connection does.
			return errStopped
		}
		if err != nil {
			return err
		}
		ended := s.sentEnd
		if err := s.wind(f); err != nil {
			return err
		}
		if s.sentEnd != ended {
			until = s.patience()
		}
	}
	return s.link.conn.SetDeadline(time.Time{})
}

// patience returns until when to wait for the peer.
func (s *stream) patience() time.Time {
	if s.sentEnd && !(s.sentEOF && s.gotEOF) { // by a RESET or a refusal
		return time.Now().Add(acknowledging)
	}
	return time.Now().Add(lingering)
}

// lastWords sends what our direction still owes when the user is done.
func (s *stream) lastWords() error {
	switch {
	case s.sentEnd:
		return nil
	case s.gotEnd:
		return s.sendDone()
	case s.cut:
		return s.sendReset(s.err.(*tunnel.ResetError).Reason)
	case s.silent != nil:
		return s.sendReset("closed without a verdict")
	case s.link.frames.Left() > 0:
		return s.sendReset(unread)
	}
	if !s.sentEOF {
		s.sentEOF = true
		if err := s.link.flush(frame.AppendEOF(nil)); err != nil {
			return err
		}
	}
	if s.gotEOF {
		return s.sendDone()
	}
	return nil
}

// enough is how many bytes settle discards. Who sends more than the buffers on the
// way hold has not stopped.
const enough = 8 << 20

const unread = "closed before all was read"

// wind takes a frame that came after the user was done.
func (s *stream) wind(f frame.Frame) error {
	switch {
	case f.Type == frame.TypeReset:
		s.gotEnd = true
	case f.Type == frame.TypeDone && s.sentEnd:
		s.gotEnd = true
	case f.Type == frame.TypeEOF && !s.gotEOF:
		s.gotEOF = true
	case f.Type == frame.TypeData && !s.gotEOF:
		if s.discarded += s.link.frames.Left(); s.discarded > enough {
			return errors.New("the peer sends on and on")
		}
		if s.sentEnd {
			return nil
		}
		return s.sendReset(unread)
	default:
		return unexpected(f.Type, "the end of the stream")
	}
	if s.sentEnd {
		return nil
	}
	return s.sendDone()
}

func (s *stream) sendReset(reason string) error {
	s.sentEnd = true
	return s.link.answer(frame.AppendReset(nil, reason), interrupting)
}

func (s *stream) sendDone() error {
	s.sentEnd = true
	return s.link.flush(frame.AppendDone(nil))
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return s.link.conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return s.link.conn.RemoteAddr() }

// SetDeadline implements net.Conn. As with TLS, a Write that times out has broken
// the connection.
func (s *stream) SetDeadline(t time.Time) error { return s.setDeadline(t, s.link.conn.SetDeadline) }

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error {
	return s.setDeadline(t, s.link.conn.SetReadDeadline)
}

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error {
	return s.setDeadline(t, s.link.conn.SetWriteDeadline)
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
	stream
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

// Verdict implements [tunnel.Teller]. It clears the deadline for writing: a peer
// that does not take the Verdict in a few seconds is lost.
func (a *arrival) Verdict(v api.Verdict) error {
	if err := a.enter(&a.writing); err != nil {
		return err
	}
	defer a.exit(&a.writing)
	if a.told {
		return errors.New("tunnel: the Verdict was told before")
	}
	if err := a.writable(); err != errUntold {
		return err
	}
	a.told = true
	a.SetWriteDeadline(time.Now().Add(acknowledging))
	err := a.link.send(frame.AppendVerdict(nil, frame.Verdict{Code: string(v.Code), DecisionID: v.DecisionID, Words: v.Words}))
	if err != nil {
		return a.explain(err)
	}
	a.SetWriteDeadline(time.Time{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = nil
	if v.Code != api.VerdictOK {
		a.silent, a.sentEnd = errRefused, true
	}
	return nil
}
