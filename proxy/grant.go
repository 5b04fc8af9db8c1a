package proxy

import (
	"cmp"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/relay"
)

// A Grant is leave to do one unit of work. It is live from Authorize until End, or
// until it is revoked: then Done is closed, and what it covers is cut: the
// connection for the Grant that opened it, else what was dialled with it.
//
// What it has belongs to the registry, under its lock, but for conn and unit; terms can be
// read without.
type Grant struct {
	conn  *Conn
	unit  *unit // nil if it is the one that opens the connection
	terms atomic.Pointer[terms]
	// decided and revision are what terms leaves out of the decision; decided is only
	// there if terms has no ID.
	decided  api.ID
	revision api.Revision
	answered time.Duration // when, on the clock of the registry

	place int32 // among those that are held
	spot  int32 // among those that hang on the same names
	until int32 // in the heap of expiries; -1 if not there

	opens    bool // it is the one that opens the connection
	doubt    bool // a change named it, and it has not been asked again
	waiting  bool // it is in the queue
	asking   bool // its question is being answered
	again    bool // … and a change was told meanwhile
	over     bool // it is not live any more
	finished bool // it is not registered any more
}

// A unit is what a Grant has only where there is a Handler.
type unit struct {
	n       int64
	since   time.Time
	facts   *api.Facts // nil if they are the connection's
	dialled []*granted
	done    chan struct{} // closed when it is over; made by who waits for that
}

// own returns the unit of g, nil if there is no Handler. The registry's lock is held.
func (g *Grant) own() *unit {
	if g.opens && g.conn.run != nil {
		return &g.conn.run.own
	}
	return g.unit
}

// id returns the id of the decision, "" if there is none.
func (g *Grant) id() string {
	d := g.conn.gate.registry.decision(g)
	return d.ID
}

// Done is closed when the Grant is no longer live.
func (g *Grant) Done() <-chan struct{} {
	r := &g.conn.gate.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	u := g.own()
	if u.done == nil {
		u.done = make(chan struct{})
		if g.over {
			close(u.done)
		}
	}
	return u.done
}

// close makes it no longer live. The registry's lock is held.
func (g *Grant) close() {
	if u := g.own(); !g.over && u != nil && u.done != nil {
		close(u.done)
	}
	g.over = true
}

// Config returns the config that was chosen; it must not be written to.
func (g *Grant) Config() *api.ServiceConfig {
	return g.terms.Load().said.Config
}

// errRevoked is what Dial returns for a Grant that is not live.
var errRevoked = errors.New("the grant is not live")

// Dial connects to the upstream that was granted. Nothing can be dialled once
// the Grant is not live, and a connection that was being made when it ended is
// closed.
func (g *Grant) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.conn.run.ctx, cancel)()
	up, hold, err := g.dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &granted{Conn: up, grant: g, hold: hold}
	if !g.conn.gate.registry.dialled(g, c) {
		relay.Reset(up, relay.Revoked)
		c.end()
		return nil, errRevoked
	}
	return c, nil
}

// destination says where it leads.
func (g *Grant) destination() api.Destination {
	c := g.conn
	return api.Destination{Service: c.from.name, Object: c.from.object(), Config: g.terms.Load().said.Config, Facts: &c.passage.facts, ConnectionID: c.ID()}
}

// dial is Dial for a ctx that ends with the connection. What it returns is not
// taken off the Grant when it is closed; whoever has it releases the hold.
func (g *Grant) dial(ctx context.Context) (net.Conn, api.Hold, error) {
	c := g.conn
	to := g.destination()
	if to.Config == nil {
		return nil, nil, &dialError{err: errors.New("the decision names no config")}
	}
	if !c.gate.registry.isLive(g) {
		return nil, nil, errRevoked
	}
	var a approach
	c.approaches(&a, to.Config)
	up, report, err := c.gate.Dial(ctx, to)
	c.note(report)
	var at *endpoint
	if err == nil {
		at = c.gate.endpoints.to(up.RemoteAddr())
	}
	c.mu.Lock()
	shunned := c.arrives(&a, at)
	if err == nil {
		c.upstream = at
	}
	c.mu.Unlock()
	if err != nil {
		return nil, nil, &dialError{err: err}
	}
	if shunned != nil {
		c.cut(shunned.reason, shunned.words, nil)
		relay.Reset(up, shunned.reason)
		release(report.Hold, relay.Result{})
		return nil, nil, errRevoked
	}
	if !c.gate.registry.isLive(g) {
		relay.Reset(up, relay.Revoked)
		release(report.Hold, relay.Result{})
		return nil, nil, errRevoked
	}
	return up, report.Hold, nil
}

// End says that the unit of work is over, and writes its record: info is what
// the protocol has to say of it. The Grant that opened a connection ends with
// the connection, and needs no End.
func (g *Grant) End(info api.AccessLogInfo) {
	if g.opens {
		return
	}
	d, _ := g.conn.gate.registry.remove(g)
	rec := g.conn.record(api.LogEnd, &d, &ending{})
	rec.Entry.Info = info
	rec.Entry.Common.Sequence, rec.Entry.Common.StartedAt = g.unit.n, g.unit.since.UTC()
	g.conn.owe(rec)
}

// revoke cuts what the Grant covers. d is the decision that took it away.
func (g *Grant) revoke(d *api.Decision, words string) {
	r := &g.conn.gate.registry
	r.end(g)
	g.conn.gate.counters.cuts.add(d.Reason, 1)
	why := relay.Revoked
	if d.Reason == api.ReasonRouteRemoved {
		why = relay.Drained
	}
	if g.opens {
		g.conn.cut(why, words, d)
		return
	}
	_, dialled := r.remove(g)
	for _, up := range dialled {
		relay.Reset(up.Conn, why)
		up.end()
	}
}

// granted is an upstream connection of a Handler; closing it takes it off its Grant.
type granted struct {
	net.Conn
	grant  *Grant
	sent   atomic.Int64 // bytes that the upstream sent
	broken atomic.Bool  // it broke the connection off

	mu   sync.Mutex
	hold api.Hold // nil once it was released, or taken
}

// Read implements net.Conn.
func (c *granted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.sent.Add(int64(n))
	if relay.IsReset(err) {
		c.broken.Store(true)
	}
	return n, err
}

// Close implements net.Conn. What was cut is reset, though the Handler comes first: the
// upstream must not take it for an end.
func (c *granted) Close() error {
	c.grant.conn.gate.registry.undialled(c.grant, c)
	if c.grant.conn.isCut() {
		relay.Reset(c.Conn, relay.Revoked)
	}
	err := c.Conn.Close()
	c.end()
	return err
}

// take takes the hold away.
func (c *granted) take() api.Hold {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hold
	c.hold = nil
	return h
}

// end gives its place back.
func (c *granted) end() {
	if h := c.take(); h != nil {
		h.Release(c.sent.Load(), c.broken.Load())
	}
}

// A dialError says that the upstream could not be had.
type dialError struct {
	err       error
	otherwise relay.Reason // if err does not say; "" is relay.DialFailed
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// reason is what the log calls it.
func (e *dialError) reason() relay.Reason {
	var r interface{ CloseReason() string }
	switch {
	case errors.Is(e.err, context.DeadlineExceeded):
		return relay.DialTimeout
	case errors.Is(e.err, context.Canceled):
		return relay.Drained // nothing else cancels what was not cut
	case errors.As(e.err, &r):
		return relay.Reason(r.CloseReason())
	}
	return cmp.Or(e.otherwise, relay.DialFailed)
}
