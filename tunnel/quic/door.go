package quic

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"cardea/api"
)

// A door counts the handshakes that are under way, so that no number of strangers takes
// all there is.
type door struct {
	limit    int
	attempts sync.WaitGroup // connections, to their end

	mu   sync.Mutex
	all  int
	from map[netip.Prefix]int // of all, by network
}

// An attempt is a connection, from its first packet.
type attempt struct {
	facts   api.Facts
	network netip.Prefix
	windows atomic.Pointer[hold] // nil until its Session is known

	mu    sync.Mutex
	over  bool  // the handshake is
	cause error // why it was refused
}

// attemptKey is that of an attempt in the context of its connection.
type attemptKey struct{}

func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// refuse notes why the connection is not let in.
func (a *attempt) refuse(cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cause = cause
}

func (a *attempt) refused() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cause
}

var (
	errTooMany  = errors.New("too many handshakes at once")
	errTooMany1 = errors.New("too many handshakes at once from this network")
)

// begin decides whether a connection may make its handshake, and sees to the count of
// it until the handshake or the connection has ended. A refusal is counted, and not
// reported: the address may be another's.
func (s *Server) begin(ctx context.Context, facts api.Facts) (context.Context, error) {
	ip, _ := netip.ParseAddr(facts.IP) // the transport tells where every packet comes from
	a := &attempt{facts: facts, network: api.SourceNetwork(ip)}
	if err := s.door.enter(a); err != nil {
		s.counters.refused.Add(1)
		return nil, err
	}
	s.door.attempts.Add(1)
	context.AfterFunc(ctx, func() {
		defer s.door.attempts.Done()
		s.door.end(a)
		if cause := a.refused(); cause != nil {
			s.refuse(a.facts, cause)
		}
	})
	return context.WithValue(ctx, attemptKey{}, a), nil
}

func (d *door) enter(a *attempt) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.all >= d.limit:
		return errTooMany
	case d.from[a.network] >= max(d.limit/4, 1):
		return errTooMany1
	}
	if d.from == nil {
		d.from = map[netip.Prefix]int{}
	}
	d.all++
	d.from[a.network]++
	return nil
}

// end notes, once, that a handshake is over.
func (d *door) end(a *attempt) {
	a.mu.Lock()
	over := a.over
	a.over = true
	a.mu.Unlock()
	if over {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if d.from[a.network]--; d.from[a.network] == 0 {
		delete(d.from, a.network)
	}
}

// busy tells whether clients have to prove their address.
func (d *door) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all >= d.limit/8
}
