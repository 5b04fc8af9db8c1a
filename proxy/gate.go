// Package proxy is the policy enforcement point (PEP). A [Gate] takes every
// connection that arrives, asks the Decider, hands the connection to the
// [Mode] of its Service or relays it as it is, keeps the registry of what is
// live, cuts what loses its right, and writes the access log.
//
// # No grant, no upstream
//
// A Mode knows one protocol and nothing else. It has no way to an upstream but
// [Grant.Dial], and no way to a Grant but [Conn.Authorize], which asks the
// Decider, registers what is held, and writes the log. A protocol whose author
// forgets to ask therefore carries no traffic.
//
// # Held decisions
//
// A decision is a lease plus the names of what it was made from. The Gate keeps
// the index from name to held decisions; when a name changes it asks again for
// exactly those. A DENY cuts. An error is no answer: the lease runs on and the
// question is repeated, and the end of the lease cuts. Each heartbeat of the
// Decider says that whatever no change named still holds, so a held decision
// costs nothing while nothing happens.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/policy"
	"cardea/relay"
)

// A Mode is one protocol that a Service can speak.
type Mode struct {
	Name api.Mode
	// Opaque modes understand nothing of what they carry: the Gate runs their
	// connections itself, and New returns no Handler.
	Opaque bool
	// New checks svc and builds a Handler for it. It opens nothing and starts
	// nothing: calling it is how a Service is validated.
	New func(svc *api.Service) (Handler, error)
}

// A Handler serves the connections of one Service whose Mode is not opaque.
type Handler interface {
	// Serve speaks the protocol on c and returns when it is over, or when it has
	// called c.Relay. It returns soon after ctx is done. It calls c.Authorize
	// before every unit of work that the protocol can tell apart.
	Serve(ctx context.Context, c *Conn) error
}

// DialFunc opens a connection to the upstream of a config. An error may have a
// method CloseReason() string, which says what the log shall call it.
type DialFunc func(ctx context.Context, cfg *api.ServiceConfig) (net.Conn, error)

// Rooms are what a Gate needs; all but those that say otherwise must be set.
type Rooms struct {
	Decider policy.Decider
	Dial    DialFunc
	Audit   audit.Log
	// Refuse records what was refused, whole or counted: see refusals.Recorder.
	Refuse func(api.Refusal)
	Engine relay.Engine
	Modes  []Mode
	Log    *slog.Logger
	// AskTimeout bounds one question to the Decider; 0 is 5 seconds.
	AskTimeout time.Duration
}

// A Gate is the enforcement point of one process.
type Gate struct {
	Rooms

	mu       sync.Mutex
	life     context.Context // of Run; nil before it and after it
	handlers map[string]Handler
	registry registry
	owed     []*api.AccessLog // what the log could not take when it happened
	arriving sync.WaitGroup   // goroutines of Arrive
}

// New returns a Gate; it starts nothing.
func New(r Rooms) *Gate { return &Gate{Rooms: r, registry: newRegistry()} }

// Set makes the Gate serve svc as it now is, from the next connection on. Live
// connections keep what they have. Services of opaque modes need no Set.
func (g *Gate) Set(svc *api.Service) error {
	m, ok := g.mode(svc.Spec.Mode)
	if !ok {
		return fmt.Errorf("service %s: no mode %q", svc.Metadata.Name, svc.Spec.Mode)
	}
	h, err := m.New(svc)
	if err != nil || m.Opaque {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.handlers == nil {
		g.handlers = map[string]Handler{}
	}
	g.handlers[svc.Metadata.Name] = h
	return nil
}

// Remove forgets a Service that was Set. Live connections keep what they have
// until they are decided again.
func (g *Gate) Remove(service string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.handlers, service)
}

func (g *Gate) mode(name api.Mode) (Mode, bool) {
	for _, m := range g.Modes {
		if m.Name == name {
			return m, true
		}
	}
	return Mode{}, false
}

// Run keeps what is held true until ctx is done; then it cuts all that is live
// (DRAINED), and returns when the registry is empty and all it started is over.
// Connections that arrive before Run, or after it, are reset.
func (g *Gate) Run(ctx context.Context) error {
	g.mu.Lock()
	g.life = ctx
	g.mu.Unlock()

	err := g.renew(ctx)

	g.mu.Lock()
	g.life = nil
	g.mu.Unlock()
	g.drain()
	g.arriving.Wait()
	g.drain() // what got its relay meanwhile
	g.Engine.Wait()
	g.settle(ctx)
	return err
}

func (g *Gate) drain() {
	for _, c := range g.registry.conns() {
		c.cut(relay.Drained, "the server is stopping", nil)
	}
}

// Arrive takes a connection over. It returns at once.
func (g *Gate) Arrive(a api.Arrival) {
	g.mu.Lock()
	life, h := g.life, g.handlers[a.Service]
	if life != nil && life.Err() == nil {
		g.arriving.Add(1) // under the lock: Run waits only after it took life away
	} else {
		life = nil
	}
	g.mu.Unlock()
	if life == nil {
		relay.Reset(a.Conn, relay.Drained)
		return
	}
	go func() {
		defer g.arriving.Done()
		c := newConn(g, life, a)
		c.handled = h != nil
		g.serve(c, h)
	}()
}

// serve runs a connection until it is over or given to the relay.
func (g *Gate) serve(c *Conn, h Handler) {
	defer c.cancel(nil)
	var err error
	if h != nil {
		err = h.Serve(c.ctx, c)
	} else {
		err = g.opaque(c)
	}
	c.finish(err)
}

// opaque is the whole life of a connection that nobody looks into: arrived →
// decided → connecting → relaying.
func (g *Gate) opaque(c *Conn) error {
	grant, err := c.Authorize(c.ctx, Ask{})
	if err != nil {
		return err
	}
	d := g.registry.decision(grant)
	if m, ok := g.mode(d.Subject.Mode); !ok || !m.Opaque {
		// A Service of a mode that looks into its traffic must never be carried
		// blindly, also not while its Handler is on its way here.
		return &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("mode %s is not served here", d.Subject.Mode)}
	}
	up, err := grant.Dial(c.ctx)
	if err != nil {
		return err
	}
	if err := c.verdict(api.Verdict{Code: api.VerdictOK, DecisionID: d.ID}); err != nil {
		relay.Reset(up, relay.ClientReset)
		return errClientGone
	}
	c.Relay(up)
	return nil
}

var errClientGone = errors.New("the client went away before it was connected")
