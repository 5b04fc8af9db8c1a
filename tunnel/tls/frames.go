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
	err := l.greet(limit)
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

// links are the connections to which [Server.Leave] matters.
type links struct {
	mu   sync.Mutex
	all  map[leaver]struct{}
	left bool
}

// A leaver is a connection that can be told to end as soon as it is not in use.
type leaver interface{ leave() }

func (s *links) add(l leaver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[leaver]struct{}{}
	}
	s.all[l] = struct{}{}
	if s.left {
		l.leave()
	}
}

func (s *links) remove(l leaver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, l)
}

// Leave lets connections that speak cardea/1, and reverse links, carry no further
// stream: those without one are closed now, the others after theirs. Pipes are closed.
// Their clients come again, to whoever takes connections then. A new connection that
// speaks cardea/1 is still served its first stream.
func (s *Server) Leave() {
	s.links.mu.Lock()
	defer s.links.mu.Unlock()
	s.links.left = true
	for l := range s.links.all {
		l.leave()
	}
}
