package proxy

import (
	"cmp"
	"container/heap"
	"hash/maphash"
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
	origin time.Time // of the clock of Grants

	mu      sync.Mutex
	held    []*Grant
	opens   int // of them, those that opened a connection
	index   index
	grounds grounds
	crowds  crowds
	share   share
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

// newRegistry returns one in which a Session may have so many connections, 0 is any number.
func newRegistry(perSession int) registry {
	return registry{
		share:  share{most: perSession, of: map[string]int{}},
		origin: time.Now(), index: newIndex(), grounds: grounds{seed: maphash.MakeSeed()}, crowds: crowds{}, watched: map[*Grant]struct{}{},
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

// add registers a decision that is held from now on, by a Grant that is new. It fails
// if a change was told since it was made (overtakenError), or if it would open one
// connection more than there may be (fullError, waitError). turn is the place of a
// connection that has waited. req and d are not kept.
func (r *registry) add(g *Grant, req *api.Request, d *api.Decision, turn *waiter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d.Revision.Compare(r.seen) < 0 {
		return &overtakenError{r.seen}
	}
	if g.opens = g == &g.conn.first; g.opens {
		c := crowdOf(g.conn, d)
		if err := r.share.admit(c.caller.session, d.Limits); err != nil {
			return err
		}
		if err := r.crowds.admit(c, d.Limits, turn, r.callers); err != nil {
			r.share.leave(c.caller.session)
			return err
		}
		r.opens++
	} else {
		g.conn.run.grants = append(g.conn.run.grants, g)
	}
	g.place = int32(len(r.held))
	r.held = append(r.held, g)
	r.enter(g, &req.Evidence, d, req.Now)
	return nil
}

// callers counts the live connections to a Service, or foreign Object, by caller. r.mu
// is held.
func (r *registry) callers(service string) map[caller]int {
	by := map[caller]int{}
	for _, g := range r.held {
		if g.opens && g.conn.from.name == service {
			by[g.caller()]++
		}
	}
	return by
}

// clock returns a time as Grants keep it.
func (r *registry) clock(t time.Time) time.Duration { return t.Sub(r.origin) }

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
		for _, g := range r.held {
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
		g.answered, g.doubt = max(g.answered, r.clock(r.fresh)), true
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
		req := g.terms.Load().request()
		req.Facts, req.AtLeast = g.facts(), r.seen
		return g, req, g.decision()
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

// decision returns the decision that g holds. r.mu is held.
func (g *Grant) decision() api.Decision {
	t := g.terms.Load()
	id := t.id
	if id == "" {
		id = g.decided.String()
	}
	return t.decision(id, g.revision)
}

// facts returns those that its decision is made on.
func (g *Grant) facts() *api.Facts {
	if g.unit != nil && g.unit.facts != nil {
		return g.unit.facts
	}
	return new(g.conn.facts())
}

// enter lets g hold d, and puts it into the indices. e is the evidence of who asked,
// and at when.
func (r *registry) enter(g *Grant, e *api.Evidence, d *api.Decision, at time.Time) {
	id, ours := api.ParseID(d.ID)
	t := r.termsOf(g.conn, e, d, ours)
	g.terms.Store(t)
	g.decided, g.revision, g.answered = id, d.Revision, r.clock(at)
	t.names.add(g)
	if t.said.TimeBound {
		r.watched[g] = struct{}{}
	}
	g.until = -1
	if !t.until.IsZero() {
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
	r.index.remove(g, g.terms.Load().names)
	if len(r.watched) > 0 {
		delete(r.watched, g)
	}
	if g.until >= 0 {
		heap.Remove(&r.expiries, int(g.until))
	}
}

// remove forgets the decision of a unit of work. It returns it, and what was dialled.
func (r *registry) remove(g *Grant) (api.Decision, []*granted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if run := g.conn.run; !g.finished {
		run.grants = slices.DeleteFunc(run.grants, func(other *Grant) bool { return other == g })
		r.drop(g)
	}
	return g.decision(), g.unit.dialled
}

// end makes a Grant not live any more.
func (r *registry) end(g *Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g.close()
}

// forget removes all that a connection holds, and returns the decision that opened
// it.
func (r *registry) forget(c *Conn) (api.Decision, *figure) {
	r.mu.Lock()
	d, figure := c.first.decision(), c.first.terms.Load().figure
	r.drop(&c.first)
	var dialled []*granted
	if run := c.run; run != nil {
		for _, g := range run.grants {
			r.drop(g)
			dialled = append(dialled, g.unit.dialled...)
		}
		dialled = append(dialled, run.own.dialled...)
		run.grants, run.own.dialled = nil, nil
	}
	r.mu.Unlock()
	for _, up := range dialled {
		up.end()
	}
	return d, figure
}

// drop takes g off the registry. r.mu is held.
func (r *registry) drop(g *Grant) {
	g.close()
	if g.finished {
		return
	}
	g.finished = true
	r.leave(g)
	r.held = without(r.held, g.place, func(moved *Grant) { moved.place = g.place })
	if g.opens {
		r.opens--
		who := g.caller()
		r.crowds.leave(crowd{g.conn.from.name, who, g.conn.from.kind()})
		r.share.leave(who.session)
	}
}

// upstreams returns what was dialled for a connection by its Handler, and is not
// closed.
func (r *registry) upstreams(c *Conn) (all []*granted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all = slices.Clone(c.run.own.dialled)
	for _, g := range c.run.grants {
		all = append(all, g.unit.dialled...)
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
		e := g.terms.Load().request().Evidence
		g.doubt = g.again
		r.enter(g, &e, &d, asked)
		if g.opens && !g.conn.from.isForeign() { // whose limits are those of when it came
			r.crowds[g.conn.from.name].bound(d.Limits.Connections)
		}
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
		g.answered, g.doubt = max(g.answered, r.clock(r.fresh)), true
		r.watched[g] = struct{}{}
	}
	r.answered(g)
}

// lapsed returns the Grants whose lease has ended, and queues those that read the
// clock, are in doubt, or are not prolonged by heartbeats.
func (r *registry) lapsed(now time.Time) (over []*Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.clock(now)
	look := func(g *Grant) {
		end, d := r.leaseEnd(g), &g.terms.Load().said
		switch {
		case at > end:
			over = append(over, g)
		case g.asking: // patience
		case g.doubt || d.TimeBound || end-at < d.Lease/2:
			r.enqueue(g)
		}
	}
	if now.Sub(r.fresh) > 3*tick { // no heartbeat: leases are renewed one by one
		for _, g := range r.held {
			look(g)
		}
		return over
	}
	for g := range r.watched {
		look(g)
	}
	return over
}

// expired returns the Grants whose decision said that it ends by now. Had it been
// prolonged, a change would have told so.
func (r *registry) expired(now time.Time) (over []*Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wall := now.Round(0) // an expiry is a point of time, not a distance
	for len(r.expiries) > 0 && !r.expiries[0].ends().After(wall) {
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
		wait = min(wait, r.expiries[0].ends().Sub(now.Round(0)))
	}
	return max(wait, 0)
}

// ends is when the decision of g says that it ends.
func (g *Grant) ends() time.Time { return g.terms.Load().until.Round(0) }

// leaseEnd is when the lease of g ends as things stand. r.mu is held.
func (r *registry) leaseEnd(g *Grant) time.Duration {
	from := g.answered
	if !g.doubt {
		from = max(from, r.clock(r.fresh))
	}
	return from + g.terms.Load().said.Lease
}

// decision returns the decision that g holds.
func (r *registry) decision(g *Grant) api.Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return g.decision()
}

// limits returns those of the decision that it holds, for the relay.
func (g *Grant) limits() relay.Limits {
	l := &g.terms.Load().said.Limits
	return relay.Limits{
		Idle: l.Idle, HalfClose: l.HalfClose, Duration: l.Duration,
		Bytes: l.Bytes, Upload: l.Upload, Download: l.Download,
	}
}

// isLive reports whether g is.
func (r *registry) isLive(g *Grant) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !g.over
}

// dialled notes an upstream connection of g; false if g is not live any more.
func (r *registry) dialled(g *Grant, up *granted) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.over {
		return false
	}
	u := g.own()
	u.dialled = append(u.dialled, up)
	return true
}

func (r *registry) undialled(g *Grant, up *granted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := g.own()
	u.dialled = slices.DeleteFunc(u.dialled, func(c *granted) bool { return c == up })
}

// conns returns every live connection, the oldest first.
func (r *registry) conns() []*Conn { return r.find(func(*Conn) bool { return true }) }

// find returns the live connections of which is holds, the oldest first.
func (r *registry) find(is func(*Conn) bool) []*Conn {
	r.mu.Lock()
	var found []*Conn
	for _, g := range r.held {
		if g.opens && is(g.conn) {
			found = append(found, g.conn)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(found, func(a, b *Conn) int { return cmp.Or(cmp.Compare(a.since, b.since), slices.Compare(a.id[:], b.id[:])) })
	return found
}

// List returns the live connections, the oldest first.
func (g *Gate) List() []api.Connection {
	list := []api.Connection{}
	for _, c := range g.registry.conns() {
		c.mu.Lock()
		there, started, upstream := c.isThere(), c.since, c.upstream.String()
		c.mu.Unlock()
		if !there {
			continue // its START, or its END, is being written
		}
		d := g.registry.decision(&c.first)
		x := api.Connection{
			ID: c.id.String(), Service: c.from.name, User: name(d.Subject.User), Session: name(d.Subject.Session), Device: name(d.Subject.Device),
			Upstream: upstream, ConfigName: configName(d.Config), Tunnel: c.from.facts.Tunnel, StartedAt: time.Unix(0, started).UTC(), DecisionID: d.ID, Rule: d.Rule,
		}
		x.ReceivedBytes, x.SentBytes = c.bytes()
		if c.ip != "" {
			x.Source = net.JoinHostPort(c.ip, strconv.Itoa(int(c.port)))
		}
		list = append(list, x)
	}
	return list
}

// isThere reports whether the connection is live as far as others are told. c.mu is
// held.
func (c *Conn) isThere() bool {
	return (c.start == begun || c.start == kept) && !c.ended && c.ending == nil
}

// Kill cuts a connection; false if there is none of that id. by says who wants
// it, for the log.
func (g *Gate) Kill(id, by string) bool {
	want, ok := api.ParseID(id)
	if !ok {
		return false
	}
	for _, c := range g.registry.find(func(c *Conn) bool { return c.id == want }) {
		c.mu.Lock()
		started := c.start == begun || c.start == kept
		c.mu.Unlock()
		if !started {
			return false
		}
		d := g.registry.decision(&c.first)
		d.Effect, d.Reason, d.Words, d.Rule = api.Deny, api.ReasonKilled, "ended by "+by, nil
		c.first.revoke(&d, d.Words)
		return true
	}
	return false
}

// expiries is a heap of Grants by held.Until.
type expiries []*Grant

func (e expiries) Len() int { return len(e) }
func (e expiries) Less(i, j int) bool {
	return e[i].ends().Before(e[j].ends())
}
func (e expiries) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].until, e[j].until = int32(i), int32(j)
}
func (e *expiries) Push(x any) {
	g := x.(*Grant)
	g.until = int32(len(*e))
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
