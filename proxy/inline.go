package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"

	"cardea/api"
	"cardea/relay"
)

// mayGoInLine reports whether the connection, which nobody looks into, may be taken on
// without a goroutine.
func (c *Conn) mayGoInLine() bool {
	g := c.gate
	if g.connector == nil || !g.InLine || g.Plan == nil || g.Audit.Slow() {
		return false
	}
	return isSocket(c.Conn)
}

// isSocket reports whether a conn is a relay.Socket, perhaps beneath one that knows more.
func isSocket(c net.Conn) bool {
	for {
		switch x := c.(type) {
		case relay.Socket:
			return true
		case relay.Transparent:
			c = x.NetConn()
		default:
			return false
		}
	}
}

// pass takes a connection as far as that goes without waiting: to its refusal, to the
// engine, or to a goroutine.
func (g *Gate) pass(c *Conn, life context.Context, closing <-chan struct{}) {
	_, wait, err := c.admit(life, Ask{}, nil)
	if err == nil && wait == nil {
		err = c.carried()
	}
	if err != nil {
		c.finish(err)
		return
	}
	if wait != nil || c.datagrams || !g.connect(c) {
		g.arriving.Add(1) // the caller is counted too
		c.attend(life, closing, false)
		c.run.units.Store(1)
		go g.serve(c, nil, wait)
	}
}

// connect lets the engine connect a connection that was decided; false if it cannot.
func (g *Gate) connect(c *Conn) bool {
	to := c.first.destination()
	if to.Config == nil || c.isCut() {
		return false // which opaque says
	}
	plan := g.Plan(to)
	if plan == nil {
		return false
	}
	c.passage.plan = plan
	c.approaches(&c.passage.approach, to.Config)
	client := c.leg()
	live := g.connector.Connect(client, (*opening)(c))
	if live == nil {
		c.passage.plan = nil
		plan.Failure()
		c.mu.Lock()
		c.arrives(&c.passage.approach, nil)
		c.mu.Unlock()
		return false
	}
	c.mu.Lock()
	c.live = live
	if client == c.Conn { // else the client may still be told something
		c.Conn = nil
	}
	cut := c.ending
	c.mu.Unlock()
	if cut != nil {
		live.Cut(cut.reason)
	}
	return true
}

// An opening is a Conn as a relay.Connector sees it.
type opening Conn

// Next implements relay.Opening.
func (o *opening) Next(failed error) (to netip.AddrPort, within time.Duration, ok bool) {
	c := (*Conn)(o)
	c.mu.Lock()
	cut := c.ending != nil
	c.passage.approach.shunned = nil // of the address before
	c.mu.Unlock()
	if cut {
		c.explain(errRevoked)
		return to, 0, false
	}
	if to, within, ok = c.passage.plan.Next(failed); ok {
		at := c.gate.endpoints.at(to)
		c.mu.Lock()
		c.upstream = at
		c.mu.Unlock()
	} else if c.hears() {
		c.unanswered()
	}
	return to, within, ok
}

// NeedsLocal implements relay.Opening.
func (o *opening) NeedsLocal() bool { return o.passage.plan.NeedsLocal() }

// Connected implements relay.Opening. No byte passes before START is kept.
func (o *opening) Connected(local netip.AddrPort) (relay.Limits, []byte, error) {
	c := (*Conn)(o)
	preface, report := c.passage.plan.Connected(local)
	c.passage.plan = nil
	c.note(report)
	c.holds(report.Hold)
	if err := c.keep(); err != nil {
		c.explain(err)
		return relay.Limits{}, nil, err
	}
	c.mu.Lock()
	shunned := c.arrives(&c.passage.approach, c.upstream)
	if c.ending == nil {
		c.ending = shunned
	}
	cut := c.ending != nil
	c.mu.Unlock()
	if cut {
		c.explain(errRevoked)
		return relay.Limits{}, nil, errRevoked
	}
	if c.hears() && c.verdict(api.Verdict{Code: api.VerdictOK, DecisionID: c.first.id()}) != nil {
		return relay.Limits{}, nil, errClientGone
	}
	c.passage = nil
	return c.first.limits(), preface, nil
}

// Done implements relay.Opening.
func (o *opening) Done(r relay.Result) {
	c := (*Conn)(o)
	e := endingOf(r)
	if c.passage != nil && c.passage.plan != nil { // it never was connected
		report, err := c.passage.plan.Failure()
		c.note(report)
		if err != nil && (r.Reason == relay.DialFailed || r.Reason == relay.DialTimeout) {
			failed := &dialError{err, r.Reason}
			e = ending{reason: failed.reason(), words: failed.Error()}
		}
	}
	c.over(e, r)
}
