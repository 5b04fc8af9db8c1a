package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync"

	"cardea/tunnel"
)

// ended is what the user of a stream hears when its Session is gone.
const ended = "the Session has ended"

// sessions are the pipes and reverse links of Sessions, by their uid.
type sessions struct {
	mu  sync.Mutex
	all map[string]*attached

	telling sync.Mutex // held while OnBacks is called; before mu
}

// attached is what one Session has. Without anything it is not kept.
type attached struct {
	pipes    []*pipe // the oldest first
	expected []*back // that have not said HELLO
	backs    []*back
	idle     []*back      // of backs, that wait for a stream; the one that was last in use last
	waiting  []chan *back // calls of DialBack that wait for one, the oldest first; each has room for one
}

// of returns what a Session has. mu must be held, and tidy called when it was changed.
func (s *sessions) of(session string) *attached {
	if s.all == nil {
		s.all = map[string]*attached{}
	}
	a := s.all[session]
	if a == nil {
		a = new(attached)
		s.all[session] = a
	}
	return a
}

// tidy forgets a Session that has nothing. mu must be held.
func (s *sessions) tidy(session string) {
	if a := s.all[session]; a != nil && len(a.pipes)+len(a.expected)+len(a.backs)+len(a.waiting) == 0 {
		delete(s.all, session)
	}
}

// without returns all but x.
func without[T comparable](all []T, x T) []T {
	return slices.DeleteFunc(all, func(y T) bool { return y == x })
}

var (
	errNoSession = errors.New("the client certificate is not that of a Session")
	errDeadOne   = errors.New("the Session of the client certificate is not there any more")
)

// attach makes a pipe or a reverse link of a connection, and returns when it is over.
// The error says why it was none.
func (s *Server) attach(ctx context.Context, conn *tls.Conn, sock *socket, leaf *x509.Certificate) error {
	session, ok := s.Session(leaf)
	if !ok {
		conn.Close()
		return errNoSession
	}
	if sock.hello.form == formServe {
		return s.back(ctx, newLink(conn, sock), leaf, session)
	}
	return s.pipe(ctx, newPipe(conn, sock), leaf, session)
}

// dead tells whether a Session has ended. It is asked when DropSession knows of the
// connection: so there is no moment at which neither sees to it.
func (s *Server) dead(leaf *x509.Certificate) bool { return s.Alive != nil && !s.Alive(leaf) }

// pipe serves a pipe.
func (s *Server) pipe(ctx context.Context, p *pipe, leaf *x509.Certificate, session string) error {
	defer p.Close()
	stop := context.AfterFunc(ctx, p.leave)
	defer stop()
	s.links.add(p)
	defer s.links.remove(p)
	s.addPipe(p, session)
	defer s.removePipe(p, session)
	if s.dead(leaf) {
		return errDeadOne
	}
	if p.send(nil) != nil { // the welcome
		return nil // it went as it came
	}
	s.counters.pipes.Add(1)
	defer s.counters.pipes.Add(-1)
	s.Pipe(ctx, leaf, tunnel.Pipe(p))
	return nil
}

func (s *Server) addPipe(p *pipe, session string) {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	a := s.sessions.of(session)
	a.pipes = append(a.pipes, p)
	if len(a.pipes) > s.Limits.Pipes {
		a.pipes[0].leave()
		a.pipes = slices.Delete(a.pipes, 0, 1)
	}
}

func (s *Server) removePipe(p *pipe, session string) {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	a := s.sessions.of(session)
	a.pipes = without(a.pipes, p)
	s.sessions.tidy(session)
}

// DropSession ends the pipes of a Session, its reverse links and their streams, at once.
// That others come is for Alive to prevent.
func (s *Server) DropSession(uid string) {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	a := s.sessions.all[uid]
	if a == nil {
		return
	}
	for _, p := range a.pipes {
		p.leave()
	}
	for _, b := range slices.Concat(a.expected, a.backs) {
		b.drop()
	}
}
