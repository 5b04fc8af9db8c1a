package proxy

import (
	"maps"
	"sync"
	"sync/atomic"

	"cardea/api"
	"cardea/relay"
)

// Stats is what a Gate does now, and what it has done since New.
type Stats struct {
	Live    int                 // connections
	Objects map[Counted]Figures // of connections, by what they are to
	Waiting int                 // connections that wait for others to end
	Held    int                 // decisions
	Owed    int                 // records that the log has not taken yet

	Arrivals   int64                    // connections that arrived
	TurnedAway int64                    // of them, those that came while Run did not take any
	Decisions  map[Decided]int64        // about new connections and units of work
	Unlogged   int64                    // of what was allowed, what was refused because the log could not be written
	Renewals   int64                    // questions that were asked again
	Unanswered int64                    // of them, those without an answer
	Cuts       map[api.ReasonType]int64 // Grants that were revoked, by why
	Ends       map[relay.Reason]int64   // connections that ended, by how
	Received   int64                    // bytes from clients, of those that ended
	Sent       int64                    // bytes to clients, of those that ended
}

// Decided is how a decision came out.
type Decided struct {
	Effect api.Effect
	Reason api.ReasonType
}

// Stats returns the figures as they stand. They are read one after the other: what
// happens meanwhile may be in one and not yet in another.
func (g *Gate) Stats() Stats {
	c := &g.counters
	s := Stats{
		Owed: g.Audit.Owes(), Arrivals: c.arrivals.Load(), TurnedAway: c.turnedAway.Load(), Decisions: c.decisions.all(), Unlogged: c.unlogged.Load(),
		Renewals: c.renewals.Load(), Unanswered: c.unanswered.Load(), Cuts: c.cuts.all(), Ends: c.ends.all(),
		Received: c.received.Load(), Sent: c.sent.Load(),
	}
	s.Live, s.Held, s.Waiting = g.registry.sizes()
	s.Objects = g.figures.all()
	return s
}

// counters are those of Stats that only grow.
type counters struct {
	arrivals, turnedAway, unlogged, renewals, unanswered, received, sent atomic.Int64

	decisions tally[Decided]
	cuts      tally[api.ReasonType]
	ends      tally[relay.Reason]
}

// A tally counts by kind. The kinds are few.
type tally[K comparable] struct {
	mu sync.Mutex
	n  map[K]int64
}

func (t *tally[K]) add(k K, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[K]int64{}
	}
	t.n[k] += n
}

func (t *tally[K]) all() map[K]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.n)
}

// sizes returns how many connections are live, how many decisions are held, and
// how many connections wait.
func (r *registry) sizes() (live, held, waiting int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.crowds {
		waiting += n.waiting.Len()
	}
	return r.opens, len(r.held), waiting
}
