package proxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"cardea/api"
	"cardea/relay"
)

// A Grant is leave to do one unit of work. It is live from Authorize until End,
// or until it is revoked: then Done is closed, and what it covers is cut: the
// connection for the Grant that opened it, else what was dialled with it.
type Grant struct {
	conn  *Conn
	opens bool // it is the one that opened the connection
	unit  int64
	since time.Time

	mu   sync.Mutex
	over bool
	done chan struct{} // closed when it is over; made by who waits for that

	// What follows belongs to the registry, under its lock.
	req      api.Request // the question, to be asked again
	held     api.Decision
	granted  time.Time // when held was answered
	doubt    bool      // a change named it, and it has not been asked again
	waiting  bool      // it is in the queue
	asking   bool      // its question is being answered
	again    bool      // … and a change was told meanwhile
	until    int       // place in the heap of expiries; -1 if not there
	dialled  []net.Conn
	finished bool
	names    *names // what held depends on, in the index
	among    crowd  // whom it is counted among, if it opened the connection
}

func newGrant(c *Conn, unit int64, opens bool, req api.Request, d api.Decision) *Grant {
	if d.Subject.Session != nil {
		// Later questions are about the Session, whatever becomes of the evidence.
		req.Evidence, req.Session = api.Evidence{}, d.Subject.Session.UID
	}
	return &Grant{conn: c, unit: unit, opens: opens, req: req, held: d, granted: req.Now, since: req.Now, until: -1}
}

// id returns the id of the decision, "" for no Grant.
func (g *Grant) id() string {
	if g == nil {
		return ""
	}
	d := g.conn.gate.registry.decision(g)
	return d.ID
}

// Done is closed when the Grant is no longer live.
func (g *Grant) Done() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done == nil {
		g.done = make(chan struct{})
		if g.over {
			close(g.done)
		}
	}
	return g.done
}

// isOver reports whether it is no longer live.
func (g *Grant) isOver() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.over
}

// close makes it no longer live.
func (g *Grant) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over && g.done != nil {
		close(g.done)
	}
	g.over = true
}

// Config returns the config that was chosen; it must not be written to.
func (g *Grant) Config() *api.ServiceConfig {
	d := g.conn.gate.registry.decision(g)
	return d.Config
}

// errRevoked is what Dial returns for a Grant that is not live.
var errRevoked = errors.New("the grant is not live")

// Dial connects to the upstream that was granted. Nothing can be dialled once
// the Grant is not live, and a connection that was being made when it ended is
// closed.
func (g *Grant) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.conn.ctx, cancel)()
	up, err := g.dial(ctx)
	if err != nil {
		return nil, err
	}
	return &granted{up, g}, nil
}

// dial is Dial for a ctx that ends with the connection. What it returns is not
// taken off the Grant when it is closed.
func (g *Grant) dial(ctx context.Context) (net.Conn, error) {
	d := g.conn.gate.registry.decision(g)
	if d.Config == nil {
		return nil, &dialError{errors.New("the decision names no config")}
	}
	if g.isOver() {
		return nil, errRevoked
	}
	up, report, err := g.conn.gate.Dial(ctx, api.Destination{
		Service: g.conn.service(&d), Object: g.conn.object(), Config: d.Config, Facts: g.conn.facts, ConnectionID: g.conn.ID,
	})
	g.conn.mu.Lock()
	g.conn.report = report
	if err == nil {
		g.conn.upstream = up.RemoteAddr()
	}
	g.conn.mu.Unlock()
	if err != nil {
		return nil, &dialError{err}
	}
	if !g.conn.gate.registry.dialled(g, up) {
		relay.Reset(up, relay.Revoked)
		return nil, errRevoked
	}
	return up, nil
}

// End says that the unit of work is over, and writes its record: info is what
// the protocol has to say of it. The Grant that opened a connection ends with
// the connection, and needs no End.
func (g *Grant) End(info api.AccessLogInfo) {
	if g.opens {
		return
	}
	d := g.conn.gate.registry.decision(g)
	g.conn.gate.registry.remove(g)
	g.close()
	rec := g.conn.record(api.LogEnd, &d, &ending{})
	rec.Entry.Info = info
	rec.Entry.Common.Sequence, rec.Entry.Common.StartedAt = g.unit, g.since.UTC()
	g.conn.owe(rec)
}

// revoke cuts what the Grant covers. d is the decision that took it away.
func (g *Grant) revoke(d *api.Decision, words string) {
	g.close()
	g.conn.gate.counters.cuts.add(d.Reason, 1)
	why := relay.Revoked
	if d.Reason == api.ReasonRouteRemoved {
		why = relay.Drained
	}
	if g.opens {
		g.conn.cut(why, words, d)
		return
	}
	for _, up := range g.conn.gate.registry.remove(g) {
		relay.Reset(up, why)
	}
}

// granted is an upstream connection; closing it takes it off its Grant.
type granted struct {
	net.Conn
	grant *Grant
}

// Close implements net.Conn.
func (c *granted) Close() error {
	c.grant.conn.gate.registry.undialled(c.grant, c.Conn)
	return c.Conn.Close()
}

// A dialError says that the upstream could not be had.
type dialError struct{ err error }

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
	return relay.DialFailed
}
