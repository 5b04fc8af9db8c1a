package proxy

import (
	"container/heap"
	"maps"
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
	mu    sync.Mutex
	byID  map[string]*Conn
	held  map[*Grant]struct{}
	index map[api.Key]map[*Grant]struct{}
	// watched are the Grants that are looked at each second: the decision read
	// the clock, or is in doubt.
	watched map[*Grant]struct{}
	// expiries are the Grants whose decision ends at a known time, soonest first.
	expiries expiries
	// sooner wakes the renewer when an expiry comes before all others.
	sooner chan struct{}
	// seen is the revision of the last Change that was worked through.
	seen api.Revision
	// fresh is when the Decider last said that what no change named still holds.
	fresh time.Time
}

func (r *registry) init() {
	if r.held == nil {
		r.byID, r.held = map[string]*Conn{}, map[*Grant]struct{}{}
		r.index, r.watched = map[api.Key]map[*Grant]struct{}{}, map[*Grant]struct{}{}
		r.sooner = make(chan struct{}, 1)
	}
}

// add registers a decision that is held from now on.
func (r *registry) add(g *Grant, opens bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.init()
	g.opens = opens
	if opens {
		r.byID[g.conn.ID] = g.conn
	}
	r.held[g] = struct{}{}
	r.enter(g)
}

// enter puts what g holds into the indices.
func (r *registry) enter(g *Grant) {
	for _, k := range g.held.DependsOn {
		m := r.index[k]
		if m == nil {
			m = map[*Grant]struct{}{}
			r.index[k] = m
		}
		m[g] = struct{}{}
	}
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
	for _, k := range g.held.DependsOn {
		if m := r.index[k]; m != nil {
			delete(m, g)
			if len(m) == 0 {
				delete(r.index, k)
			}
		}
	}
	delete(r.watched, g)
	if g.until >= 0 {
		heap.Remove(&r.expiries, g.until)
	}
}

// remove forgets a decision, and returns what was dialled with it.
func (r *registry) remove(g *Grant) []net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.held[g]; !ok {
		return nil
	}
	r.leave(g)
	delete(r.held, g)
	g.finished = true
	if g.opens {
		delete(r.byID, g.conn.ID)
	}
	return g.dialled
}

// forget removes all that a connection holds.
func (r *registry) forget(c *Conn) {
	r.mu.Lock()
	var gone []*Grant
	if c.units.Load() == 1 {
		gone = []*Grant{c.first}
	} else {
		for g := range r.held {
			if g.conn == c {
				gone = append(gone, g)
			}
		}
	}
	r.mu.Unlock()
	for _, g := range gone {
		r.remove(g)
		g.close()
	}
}

// replace puts the answer to a repeated question in the place of the one that
// was held. It reports false if the Grant ended meanwhile.
func (r *registry) replace(g *Grant, d api.Decision, asked time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.finished {
		return false
	}
	r.leave(g)
	g.held, g.granted, g.doubt = d, asked, false
	r.enter(g)
	return true
}

// doubt marks a Grant that a change named and that could not be asked again: no
// heartbeat prolongs its lease any more.
func (r *registry) doubt(g *Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !g.doubt && !g.finished {
		g.granted, g.doubt = later(g.granted, r.fresh), true
		r.watched[g] = struct{}{}
	}
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

// dialled notes an upstream connection of g; false if g is not live any more.
func (r *registry) dialled(g *Grant, up net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.finished {
		return false
	}
	select {
	case <-g.done:
		return false
	default:
	}
	g.dialled = append(g.dialled, up)
	return true
}

func (r *registry) undialled(g *Grant, up net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g.dialled = slices.DeleteFunc(g.dialled, func(c net.Conn) bool { return c == up })
}

// naming returns the Grants that hang on one of keys, all of them if all is set.
func (r *registry) naming(keys []api.Key, all bool) []*Grant {
	r.mu.Lock()
	defer r.mu.Unlock()
	if all {
		return slices.Collect(maps.Keys(r.held))
	}
	if len(keys) == 1 {
		return slices.Collect(maps.Keys(r.index[keys[0]]))
	}
	set := map[*Grant]struct{}{}
	for _, k := range keys {
		maps.Copy(set, r.index[k])
	}
	return slices.Collect(maps.Keys(set))
}

// conns returns every live connection, the oldest first.
func (r *registry) conns() []*Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.byID), func(a, b *Conn) int {
		if n := a.startedAt.Compare(b.startedAt); n != 0 {
			return n
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
}

// List returns the live connections, the oldest first.
func (g *Gate) List() []api.Connection {
	list := []api.Connection{}
	for _, c := range g.registry.conns() {
		d := g.registry.decision(c.first)
		received, sent := c.bytes()
		c.mu.Lock()
		over := c.ending.reason != "" // its END is being written
		x := api.Connection{
			ID: c.ID, Service: d.Subject.Service.Name, Tunnel: c.facts.Tunnel, StartedAt: c.startedAt.UTC(),
			Upstream: c.upstream, ReceivedBytes: received, SentBytes: sent, DecisionID: d.ID, Rule: d.Rule,
		}
		c.mu.Unlock()
		if over {
			continue
		}
		if c.facts.IP != "" {
			x.Source = net.JoinHostPort(c.facts.IP, strconv.Itoa(c.facts.Port))
		}
		if d.Subject.User != nil {
			x.User = d.Subject.User.Name
		}
		if d.Subject.Session != nil {
			x.Session = d.Subject.Session.Name
		}
		if d.Config != nil {
			x.ConfigName = d.Config.Name
		}
		list = append(list, x)
	}
	return list
}

// Kill cuts a connection; false if there is none of that id. Who wanted it is in
// the record of the API call.
func (g *Gate) Kill(id string) bool {
	g.registry.mu.Lock()
	c := g.registry.byID[id]
	g.registry.mu.Unlock()
	if c == nil {
		return false
	}
	c.cut(relay.Revoked, "ended by hand", nil)
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
