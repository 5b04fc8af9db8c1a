package tls

import (
	"crypto/tls"
	"sync/atomic"
)

// Stats are counters of a [Server].
type Stats struct {
	Handshakes int64 // that were completed
	Resumed    int64 // of those: without a signature of either side
	Framed     int   // connections that speak cardea/1
	Idle       int   // of those: without a stream
	Streams    int64 // that were opened, framed and raw, and on reverse links
	Pipes      int   // that are open
	Backs      int   // reverse links
}

type counters struct {
	handshakes, resumed, framed, streams, pipes, backs atomic.Int64
}

func (c *counters) handshake(state *tls.ConnectionState) {
	c.handshakes.Add(1)
	if state.DidResume {
		c.resumed.Add(1)
	}
}

// Stats returns the counters as they stand.
func (s *Server) Stats() Stats {
	return Stats{
		Handshakes: s.counters.handshakes.Load(),
		Resumed:    s.counters.resumed.Load(),
		Framed:     int(s.counters.framed.Load()),
		Idle:       int(s.idle.Load()),
		Streams:    s.counters.streams.Load(),
		Pipes:      int(s.counters.pipes.Load()),
		Backs:      int(s.counters.backs.Load()),
	}
}
