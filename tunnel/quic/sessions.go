package quic

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"sync"

	"github.com/quic-go/quic-go"
)

// heads counts the connections of Sessions that carry streams: each may hold memory.
type heads struct {
	mu sync.Mutex
	of map[string]int
}

// enter counts one more, and reports false if there are enough.
func (h *heads) enter(session string, most int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of[session] >= most {
		return false
	}
	if h.of == nil {
		h.of = map[string]int{}
	}
	h.of[session]++
	return true
}

func (h *heads) leave(session string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of[session]--; h.of[session] == 0 {
		delete(h.of, session)
	}
}

// owner names the Session of a certificate.
func (s *Server) owner(leaf *x509.Certificate) string {
	if s.Session != nil {
		if uid, ok := s.Session(leaf); ok {
			return uid
		}
	}
	return string(leaf.Raw)
}

// pipes are those of Sessions, by their uid; of one the oldest first.
type pipes struct {
	mu  sync.Mutex
	all map[string][]*pipe
}

// add adds a pipe, and returns the one that there is no room for, nil if there is.
func (s *pipes) add(session string, p *pipe, most int) (old *pipe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string][]*pipe{}
	}
	all := append(s.all[session], p)
	if len(all) > most {
		old = all[0]
		all = slices.Delete(all, 0, 1)
	}
	s.all[session] = all
	return old
}

func (s *pipes) remove(session string, p *pipe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.DeleteFunc(s.all[session], func(x *pipe) bool { return x == p })
	if s.all[session] = all; len(all) == 0 {
		delete(s.all, session)
	}
}

func (s *pipes) of(session string) []*pipe {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all[session])
}

var (
	errNoSession = errors.New("the client certificate is not that of a Session")
	errManyConns = errors.New("the Session has too many connections to the gateway")
	errDeadOne   = errors.New("the Session of the client certificate is not there any more")
)

// pipe serves a pipe, and returns when it is over. The error says why it was none.
func (s *Server) pipe(ctx context.Context, conn *quic.Conn, leaf *x509.Certificate) error {
	session, ok := s.Session(leaf)
	if !ok {
		conn.CloseWithError(codeEnded, errNoSession.Error())
		return errNoSession
	}
	p := newPipe(conn, nil)
	defer p.Close()
	stop := context.AfterFunc(ctx, func() { p.leave(codeNone, "the server is stopping") })
	defer stop()
	if old := s.pipes.add(session, p, s.Limits.Pipes); old != nil {
		old.leave(codeNone, "the Session has made another one")
	}
	defer s.pipes.remove(session, p)
	// DropSession knows of the pipe: there is no moment at which neither it nor Alive
	// sees to a Session that ends.
	if s.Alive != nil && !s.Alive(leaf) {
		p.leave(codeEnded, errDeadOne.Error())
		return errDeadOne
	}
	if p.welcome() != nil {
		return nil // it went as it came
	}
	p.work.Go(func() {
		if large, err := conn.AcceptUniStream(conn.Context()); err == nil {
			p.receiveLarge(large)
		}
	})
	s.counters.pipes.Add(1)
	defer s.counters.pipes.Add(-1)
	s.Pipe(ctx, leaf, p)
	return nil
}

// DropSession ends the pipes of a Session at once. That others come is for Alive to
// prevent.
func (s *Server) DropSession(uid string) {
	for _, p := range s.pipes.of(uid) {
		p.leave(codeEnded, "the Session has ended")
	}
}
