package tls

import (
	"context"
	"errors"
	"sync"

	"cardea/api"
	"cardea/wire/frame"
)

// frames serves a connection that speaks cardea/1. a is what all its Arrivals
// have in common, which they share.
func (s *Server) frames(ctx context.Context, l *link, a api.Arrival) {
	stop := context.AfterFunc(ctx, l.stop)
	defer stop()
	s.counters.framed.Add(1)
	defer s.counters.framed.Add(-1)
	s.links.add(l)
	defer s.links.remove(l)
	limit := s.Limits.Handshake
	err := s.greet(l)
	for first := true; ; first = false {
		var f frame.Frame
		if err == nil {
			if !first {
				l.rest()
			}
			f, err = l.expect(frame.TypeOpen, limit)
			l.work()
		}
		if !first {
			s.idle.Add(-1)
		}
		if err != nil && first {
			s.refuse(a.Facts, beforeOpen(err))
		}
		if err == nil {
			err = s.carry(l, f.Open, a)
		}
		if err != nil {
			break
		}
		limit = s.Limits.IdleTime
		if s.idle.Add(1) > int64(s.Limits.Idle) {
			s.idle.Add(-1)
			break
		}
	}
	l.conn.Close()
}

// greet answers the client's HELLO.
func (s *Server) greet(l *link) error {
	f, err := l.expect(frame.TypeHello, s.Limits.Handshake)
	if err != nil {
		return err
	}
	if f.Hello.Version < frame.Version {
		l.answer(frame.AppendReset(nil, "this version of the protocol is not spoken"), writing)
		return unexpected(f.Type, "one of version 1 or later")
	}
	return l.answer(frame.AppendHello(nil, frame.Hello{Version: frame.Version}), writing)
}

// carry gives a stream to the Handler and brings it to its end.
func (s *Server) carry(l *link, open frame.Open, a api.Arrival) error {
	if open.TraceID != "" {
		s.Log.Debug("stream", "service", open.Service, "trace", open.TraceID, "from", l.conn.RemoteAddr())
	}
	over := make(chan struct{})
	conn := &arrival{stream: stream{link: l, over: func() { close(over) }, silent: errUntold}}
	a.Service, a.Conn = api.ServiceName(open.Service), conn
	s.counters.streams.Add(1)
	s.Handler.Arrive(a)
	<-over
	return conn.settle()
}

// beforeOpen says why a connection came to nothing after its handshake.
func beforeOpen(err error) error {
	if errors.Is(err, errStopped) {
		return errStopping
	}
	if errors.Is(err, frame.ErrProtocol) {
		return err
	}
	return errors.New("no stream was opened: " + lossWords(err))
}

// links are the connections that speak cardea/1.
type links struct {
	mu   sync.Mutex
	all  map[*link]struct{}
	left bool
}

func (s *links) add(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[*link]struct{}{}
	}
	s.all[l] = struct{}{}
	if s.left {
		l.leave()
	}
}

func (s *links) remove(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, l)
}

// Leave lets connections that speak cardea/1 carry no further stream: those without
// one are closed now, the others after theirs. Their clients come again, to whoever
// takes connections then. A new connection is still served its first stream.
func (s *Server) Leave() {
	s.links.mu.Lock()
	defer s.links.mu.Unlock()
	s.links.left = true
	for l := range s.links.all {
		l.leave()
	}
}
