package tls

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"slices"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/wire/frame"
)

// A back is a reverse link, at the gateway: after the handshake it is the gateway that
// asks for streams. Its owner is the call of [Server.Conn], which opens them and brings
// them to their end; [Server.DialBack] tells it to.
type back struct {
	*link
	asks   chan ask // has room for one, that of who has taken the link from the idle ones
	stream *stream  // that is open, nil if none is; guarded by sessions.mu
}

// An ask is a call of DialBack.
type ask struct {
	ctx    context.Context
	target string
	open   []byte        // the frame
	answer chan<- answer // has room for it
}

type answer struct {
	conn net.Conn
	err  error
}

// drop ends the link and its stream. sessions.mu must be held.
func (b *back) drop() {
	if b.stream != nil {
		b.stream.Reset(ended)
	}
	b.stop()
	b.socket.abort()
}

// back serves a reverse link.
func (s *Server) back(ctx context.Context, l *link, leaf *x509.Certificate, session string) error {
	defer l.conn.Close()
	stop := context.AfterFunc(ctx, l.stop)
	defer stop()
	s.links.add(l)
	defer s.links.remove(l)
	b := &back{link: l, asks: make(chan ask, 1)}
	if !s.expectBack(b, session) {
		return errTooManyBacks
	}
	defer s.removeBack(b, session)
	if s.dead(leaf) {
		return errDeadOne
	}
	watch(l.socket.Conn)
	if err := l.salute(s.Limits.Handshake); err != nil {
		return beforeOpen(err)
	}
	s.addBack(b, session)
	s.counters.backs.Add(1)
	defer s.counters.backs.Add(-1)
	for {
		if !l.rest() || !s.offer(b, session) {
			return nil
		}
		f, err := l.await(time.Time{})
		if err == nil { // nothing may come
			err = unexpected(f.Type, "nothing")
			l.answer(frame.AppendReset(nil, err.Error()), writing)
		}
		if s.withdraw(b, session) {
			return nil
		}
		a := <-b.asks
		l.work()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			a.answer <- answer{err: staleError{err}}
			return nil
		}
		if s.open(b, a) != nil {
			return nil
		}
	}
}

var errTooManyBacks = errors.New("the Session has as many connections that serve, and carry nothing, as it may")

// salute begins the talk of who asks for streams.
func (l *link) salute(limit time.Duration) error {
	if err := l.answer(frame.AppendHello(nil, frame.Hello{Version: frame.Version}), writing); err != nil {
		return err
	}
	f, err := l.expect(frame.TypeHello, limit)
	if err == nil && f.Hello.Version != frame.Version {
		err = unexpected(f.Type, "HELLO of version 1")
	}
	return err
}

// open opens a stream and brings it to its end. With an error the link is of no use.
func (s *Server) open(b *back, a ask) error {
	if err := a.ctx.Err(); err != nil {
		a.answer <- answer{err: tunnel.Lost(a.target, err.Error())}
		return nil
	}
	conn, v, err := b.link.open(a.ctx, a.open, false)
	switch _, refused := err.(refusedError); {
	case err == nil:
	case err == a.ctx.Err(), refused, errors.Is(err, frame.ErrProtocol):
		a.answer <- answer{err: tunnel.Lost(a.target, lossWords(err))}
		return err
	default:
		a.answer <- answer{err: staleError{err}}
		return err
	}
	over := make(chan struct{})
	conn.over = func() { close(over) }
	if err := tunnel.Refused(a.target, v); err != nil {
		conn.Close()
		a.answer <- answer{err: err}
		return conn.settle()
	}
	s.counters.streams.Add(1)
	s.occupy(b, conn)
	a.answer <- answer{conn: conn}
	<-over
	s.occupy(b, nil)
	return conn.settle()
}

// occupy notes which stream is open.
func (s *Server) occupy(b *back, conn *stream) {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	b.stream = conn
}

// DialBack opens a stream to a Session that serves, on one of its reverse links; if all
// are in use it waits for another until ctx is done. The target is what the device shall
// connect it to, SERVICE.NAMESPACE/CONFIG. The conn is a [tunnel.Conn]; ctx bounds the
// dialling only. An error is an *api.Error: UNAVAILABLE if there is no link, or the
// device does not get there, and what else its verdict says.
func (s *Server) DialBack(ctx context.Context, session, target string) (net.Conn, error) {
	open, err := frame.AppendOpen(nil, frame.Open{Service: target})
	if err != nil {
		return nil, err
	}
	for {
		var b *back
		if ctx.Err() == nil { // a device may offer ever more links that are of no use
			b = s.take(ctx, session)
		}
		if b == nil {
			return nil, api.Errorf(api.CodeUnavailable, "the device that serves %s has no free connection to the gateway", target)
		}
		answered := make(chan answer, 1)
		b.asks <- ask{ctx, target, open, answered}
		b.call()
		a := <-answered
		if _, stale := a.err.(staleError); !stale {
			return a.conn, a.err
		}
	}
}

// Backs returns how many reverse links a Session has, in use or not: those that have said
// HELLO.
func (s *Server) Backs(session string) int {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	if a := s.sessions.all[session]; a != nil {
		return len(a.backs)
	}
	return 0
}

// expectBack notes a link that is yet to say HELLO; false if the Session has as many that
// carry nothing as it may.
func (s *Server) expectBack(b *back, session string) bool {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	defer s.sessions.tidy(session)
	a := s.sessions.of(session)
	if len(a.expected)+len(a.idle) >= s.Limits.Backs {
		return false
	}
	a.expected = append(a.expected, b)
	return true
}

// addBack notes that a link which was expected can carry streams.
func (s *Server) addBack(b *back, session string) {
	s.sessions.mu.Lock()
	a := s.sessions.of(session)
	a.expected, a.backs = without(a.expected, b), append(a.backs, b)
	s.sessions.mu.Unlock()
	s.tellBacks(session)
}

func (s *Server) removeBack(b *back, session string) {
	s.sessions.mu.Lock()
	a := s.sessions.of(session)
	counted := slices.Contains(a.backs, b)
	a.expected, a.backs = without(a.expected, b), without(a.backs, b)
	s.sessions.tidy(session)
	s.sessions.mu.Unlock()
	if counted {
		s.tellBacks(session)
	}
}

func (s *Server) tellBacks(session string) {
	if s.OnBacks == nil {
		return
	}
	s.sessions.telling.Lock()
	defer s.sessions.telling.Unlock()
	s.OnBacks(session, s.Backs(session))
}

// offer gives a link to who waits for one, or else makes it idle. It reports false if
// there are enough.
func (s *Server) offer(b *back, session string) bool {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	a := s.sessions.of(session)
	if len(a.waiting) > 0 {
		a.waiting[0] <- b
		a.waiting = slices.Delete(a.waiting, 0, 1)
		return true
	}
	if len(a.idle) >= s.Limits.Backs {
		return false
	}
	a.idle = append(a.idle, b)
	return true
}

// withdraw makes a link idle no more, and reports false if somebody has taken it.
func (s *Server) withdraw(b *back, session string) bool {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	a := s.sessions.of(session)
	if !slices.Contains(a.idle, b) {
		return false
	}
	a.idle = without(a.idle, b)
	return true
}

// take returns an idle link of a Session, when there is one; nil if ctx was done before.
// An ask must follow.
func (s *Server) take(ctx context.Context, session string) *back {
	s.sessions.mu.Lock()
	a := s.sessions.of(session)
	if n := len(a.idle); n > 0 {
		b := a.idle[n-1]
		a.idle = slices.Delete(a.idle, n-1, n)
		s.sessions.mu.Unlock()
		return b
	}
	given := make(chan *back, 1)
	a.waiting = append(a.waiting, given)
	s.sessions.mu.Unlock()

	select {
	case b := <-given:
		return b
	case <-ctx.Done():
	}
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	a.waiting = without(a.waiting, given)
	s.sessions.tidy(session)
	select {
	case b := <-given: // meanwhile
		return b
	default:
		return nil
	}
}
