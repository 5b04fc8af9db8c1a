package proxy

import (
	"cmp"
	"container/heap"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"cardea/api"
	"cardea/relay"
)

// The registry knows every live connection and every decision that is held, and
// which of them hang on which name.
//
// Its lock is never held while the Decider, the log or a socket is asked.
type registry struct {
	mu     sync.Mutex
	byID   map[string]*Conn
	held   map[*Grant]struct{}
	index  index
	crowds crowds
	// watched are the Grants that are looked at each second: the decision read
	// the clock, or is in doubt.
	watched map[*Grant]struct{}
	// expiries are the Grants whose decision ends at a known time, soonest first.
	expiries expiries
	// sooner wakes the clock when an expiry comes before all others.
	sooner chan struct{}
	// queue are the Grants to be asked for again, each once; queued wakes an asker.
	queue  []*Grant
	queued chan struct{}
	// seen is the revision of the last Change that was told: no decision on older
	// data is held without its question being in the queue.
	seen api.Revision
	// fresh is when the Decider last said that what no change named still holds.
	fresh time.Time
}

func newRegistry() registry {
	return registry{
		byID: map[string]*Conn{}, held: map[*Grant]struct{}{}, index: newIndex(), crowds: crowds{}, watched: map[*Grant]struct{}{},
		sooner: make(chan struct{}, 1), queued: make(chan struct{}, 1),
	}
}

// begin notes that the Decider was asked to tell of changes.
func (r *registry) begin(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fresh = now
}

func (r *registry) revision() api.Revision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}

// An overtakenError says that a change was told since a decision was made.
type overtakenError struct{ revision api.Revision } // to decide on

func (*overtakenError) Error() string { return "a change was told meanwhile" }

// add registers a decision that is held from now on. It fails if a change was
// told since it was made (overtakenError), or if it would open one connection
// more than there may be (fullError, waitError). turn is the place of a connection
// that has waited.
func (r *registry) add(g *Grant, turn *waiter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.held.Revision.Compare(r.seen) < 0 {
		return &overtakenError{r.seen}
	}
	if g.opens {
		g.among = crowdOf(g)
		if err := r.crowds.admit(g.among, g.held.Limits, turn); err != nil {
			return err
		}
		r.byID[g.conn.ID] = g.conn
	}
	r.held[g] = struct{}{}
	g.conn.grants = append(g.conn.grants, g)
	r.enter(g)
	return nil
}

// giveUp ends the wait of a connection that has not come in.
func (r *registry) giveUp(w *waiter) {
	if w == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.crowds.giveUp(w)
}

// change queues what hangs on the keys of a Change.
func (r *registry) change(c api.Change, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.All || c.Revision.Compare(r.seen) > 0 {
		r.seen = c.Revision
	}
	r.fresh = now
	if c.All {
		for g := range r.held {
			r.enqueue(g)
		}
		return
	}
	for _, k := range c.Keys {
		for g := range r.index.on(k) {
			r.enqueue(g)
		}
	}
}

// enqueue puts g into the queue. From here to the answer no heartbeat prolongs
// its lease. r.mu is held.
func (r *registry) enqueue(g *Grant) {
	if !g.doubt {
		g.granted, g.doubt = later(g.granted, r.fresh), true
		r.watched[g] = struct{}{}
	}
	if g.asking {
		g.again = true // what is being answered may be older
		return
	}
	if !g.waiting {
		g.waiting = true
		r.queue = append(r.queue, g)
		r.wake()
	}
}

// wake wakes an asker, if all sleep. r.mu is held.
func (r *registry) wake() {
	select {
	case r.queued <- struct{}{}:
	default:
	}
}

// next takes a Grant out of the queue: its question, and the answer that it has.
// It returns nil if the queue is empty. Each Grant is asked for by one asker at
// a time, so that answers are in the order of the questions.
func (r *registry) next() (*Grant, api.Request, api.Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) > 0 {
		g := r.queue[0]
		r.queue[0] = nil
		r.queue = r.queue[1:]
		g.waiting = false
		if g.finished {
			continue
		}
		if len(r.queue) > 0 {
			r.wake() // another asker
		}
		g.asking, g.again = true, false
		req := g.req
		req.AtLeast = r.seen
		return g, req, g.held
	}
	return nil, api.Request{}, api.Decision{}
}

// answered notes that the question of g is answered, or cannot be. It puts g
// back into the queue if a change was told meanwhile. r.mu is held.
func (r *registry) answered(g *Grant) {
	g.asking = false
	if g.again && !g.finished {
		g.again, g.waiting = false, true
		r.queue = append(r.queue, g)
		r.wake()
	}
}

// enter puts what g holds into the indices.
func (r *registry) enter(g *Grant) {
	g.names = r.index.add(g, g.held.DependsOn)
	if g.held.TimeBound {
		r.watched[g] = struct{}{}
	}
	if !g.held.Until.IsZero() {
		heap.Push(&r.expiries, g)
		if g.until == 0 {
			select {
			case r.sooner <- struct{}{}:
			default:
			}
		}
	}
}

// leave takes what g holds out of the indices.
func (r *registry) leave(g *Grant) {
	r.index.remove(g, g.names)
	g.names = nil
	delete(r.watched, g)
	if g.until >= 0 {
		heap.Remove(&r.expiries, g.until)
	}
}

// remove forgets a decision, and returns what was dialled with it.
func (r *registry) remove(g *Grant) []net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	g.conn.grants = slices.DeleteFunc(g.conn.grants, func(other *Grant) bool { return other == g })
	return r.drop(g)
}

// forget removes all that a connection holds.
func (r *registry) forget(c *Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range c.grants {
		r.drop(g)
		g.close()
	}
	c.grants = nil
}

// drop is remove, but for the list of the connection. r.mu is held.
func (r *registry) drop(g *Grant) []net.Conn {
	if g.finished {
		return nil
	}
	r.leave(g)
	delete(r.held, g)
	g.finished = true
	if g.opens {
		delete(r.byID, g.conn.ID)
		r.crowds.leave(g.among)
	}
	return g.dialled
}

// upstreams returns what was dialled for a connection and is not closed.
func (r *registry) upstreams(c *Conn) (all []net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range c.grants {
		all = append(all, g.dialled...)
	}
	return all
}

// replace puts the answer to a repeated question in the place of the one that
// was held. If a change was told since it was made, nobody has looked whether it
// hangs on that: it is asked again.
func (r *registry) replace(g *Grant, d api.Decision, asked time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !g.finished {
		r.leave(g)
		g.held, g.granted, g.doubt = d, asked, g.again
		if g.opens && !g.conn.isForeign() { // whose limits are those of when it came
			r.crowds[g.among.service].bound(d.Limits.Connections)
		}
		r.enter(g)
		if d.Revision.Compare(r.seen) < 0 {
			g.doubt, g.again = true, true
		}
		if g.doubt {
			r.watched[g] = struct{}{}
		}
	}
	r.answered(g)
}

// doubt notes that the question of g could not be answered: it stays in doubt,
// and is asked again at the next tick.
func (r *registry) doubt(g *Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !g.finished && !g.doubt {
		g.granted, g.doubt = later(g.granted, r.fresh), true
		r.watched[g] = struct{}{}
	}
	r.answered(g)
}

// lapsed returns the Grants whose lease has ended, and queues those that read the
// clock, are in doubt, or are not prolonged by heartbeats.
func (r *registry) lapsed(now time.Time) (over []*Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	look := r.watched
	if now.Sub(r.fresh) > 3*tick { // no heartbeat: leases are renewed one by one
		look = r.held
	}
	for g := range look {
		end := r.leaseEnd(g)
		switch {
		case now.After(end):
			over = append(over, g)
		case g.asking: // patience
		case g.doubt || g.held.TimeBound || end.Sub(now) < g.held.Lease/2:
			r.enqueue(g)
		}
	}
	return over
}

// expired returns the Grants whose decision said that it ends by now. Had it been
// prolonged, a change would have told so.
func (r *registry) expired(now time.Time) (over []*Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wall := now.Round(0) // an expiry is a point of time, not a distance
	for len(r.expiries) > 0 && !r.expiries[0].held.Until.Round(0).After(wall) {
		over = append(over, heap.Pop(&r.expiries).(*Grant))
	}
	return over
}

// untilNext is how long the clock may sleep: to its tick, or to the next expiry.
func (r *registry) untilNext(now, tick time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait := tick.Sub(now)
	if len(r.expiries) > 0 {
		wait = min(wait, r.expiries[0].held.Until.Round(0).Sub(now.Round(0)))
	}
	return max(wait, 0)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// leaseEnd is when the lease of g ends as things stand. r.mu is held.
func (r *registry) leaseEnd(g *Grant) time.Time {
	from := g.granted
	if !g.doubt {
		from = later(from, r.fresh)
	}
	return from.Add(g.held.Lease)
}

// decision returns the decision that g holds.
func (r *registry) decision(g *Grant) api.Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return g.held
}

// limits returns those of the decision that g holds, for the relay.
func (r *registry) limits(g *Grant) relay.Limits {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &g.held.Limits
	return relay.Limits{Idle: l.Idle, HalfClose: l.HalfClose, Duration: l.Duration}
}

// dialled notes an upstream connection of g; false if g is not live any more. One
// that is handed to the relay without a Handler is not noted: the relay has it.
func (r *registry) dialled(g *Grant, up net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.finished || g.isOver() {
		return false
	}
	if g.conn.handled {
		g.dialled = append(g.dialled, up)
	}
	return true
}

func (r *registry) undialled(g *Grant, up net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g.dialled = slices.DeleteFunc(g.dialled, func(c net.Conn) bool { return c == up })
}

// conns returns every live connection, the oldest first.
func (r *registry) conns() []*Conn { return r.find(func(*Conn) bool { return true }) }

// find returns the live connections of which is holds, the oldest first.
func (r *registry) find(is func(*Conn) bool) []*Conn {
	r.mu.Lock()
	var found []*Conn
	for _, c := range r.byID {
		if is(c) {
			found = append(found, c)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(found, func(a, b *Conn) int {
		if n := a.startedAt.Compare(b.startedAt); n != 0 {
			return n
		}
		return cmp.Compare(a.ID, b.ID)
	})
	return found
}

// List returns the live connections, the oldest first.
func (g *Gate) List() []api.Connection {
	list := []api.Connection{}
	for _, c := range g.registry.conns() {
		c.mu.Lock()
		first, ending, started, upstream := c.first, c.ending.reason, c.startedAt.UTC(), address(c.upstream)
		c.mu.Unlock()
		if first == nil || ending != "" {
			continue // its START, or its END, is being written
		}
		d := g.registry.decision(first)
		x := api.Connection{
			ID: c.ID, Service: c.service(&d), User: name(d.Subject.User), Session: name(d.Subject.Session), Device: name(d.Subject.Device),
			Upstream: upstream, ConfigName: configName(d.Config), Tunnel: c.facts.Tunnel, StartedAt: started, DecisionID: d.ID, Rule: d.Rule,
		}
		x.ReceivedBytes, x.SentBytes = c.bytes()
		if c.facts.IP != "" {
			x.Source = net.JoinHostPort(c.facts.IP, strconv.Itoa(c.facts.Port))
		}
		list = append(list, x)
	}
	return list
}

// Kill cuts a connection; false if there is none of that id. by says who wants
// it, for the log.
func (g *Gate) Kill(id, by string) bool {
	g.registry.mu.Lock()
	c := g.registry.byID[id]
	g.registry.mu.Unlock()
	if c == nil {
		return false
	}
	c.mu.Lock()
	first := c.first
	c.mu.Unlock()
	if first == nil {
		return false
	}
	d := g.registry.decision(first)
	d.Effect, d.Reason, d.Words, d.Rule = api.Deny, api.ReasonKilled, "ended by "+by, nil
	first.revoke(&d, d.Words)
	return true
}

// expiries is a heap of Grants by held.Until.
type expiries []*Grant

func (e expiries) Len() int           { return len(e) }
func (e expiries) Less(i, j int) bool { return e[i].held.Until.Before(e[j].held.Until) }
func (e expiries) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].until, e[j].until = i, j
}
func (e *expiries) Push(x any) {
	g := x.(*Grant)
	g.until = len(*e)
	*e = append(*e, g)
}
func (e *expiries) Pop() any {
	old := *e
	g := old[len(old)-1]
	old[len(old)-1] = nil
	*e = old[:len(old)-1]
	g.until = -1
	return g
}
