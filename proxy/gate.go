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
//
// A decision is about a Session or, where the Service lets in who has none, about
// nobody: then each further question repeats the evidence, and the caller is told
// nothing whatever the answer.
//
// # In line
//
// A connection that nobody looks into needs no goroutine where nothing waits: if the
// engine connects by itself, the Decider never waits, and it is known where to
// connect to, Arrive decides, registers and hands the connection to the engine, and
// the engine calls back when the upstream has answered and when all is over. Its
// START is begun before the upstream is asked for, and kept before a byte passes.
// What arrives may be a layer over the socket, which tells the client more than that
// can: its verdict, or why it was cut. Whatever must wait goes to a goroutine, with what
// was done for it so far; the promises are the same.
//
// # Datagrams
//
// A Service may speak in datagrams. A flow of those, of one source, is a connection like
// any other: one decision, that is held, one START and one END. Where its road has only
// streams, each datagram travels with its length (see relay.Messages).
//
// # Limits
//
// How many connections a Service, and a Session on it, may have at once is counted
// where decisions are registered, under the same lock, and how many a Session has in
// all: a connection counts from before its START until its END. Limits of time are the
// relay's; when a decision that is made again brings others, the relay gets them. Lower
// limits on connections cut nobody. Where the limits let connections wait, those that are too
// many do, in order: a place that becomes free is kept for the next of them, who is
// decided about anew. Whoever is seen to have gone meanwhile is DENIED, and not connected.
//
// # Routes
//
// A connection may have been sent by the routing table to an Object of another
// system. Then the question is about that, nobody is asked who he is, and config and
// limits are the table's; the rest is as for a Service. Once the Object is deleted
// its connections may go on for as long as the Decider says, and are DRAINED then.
package proxy

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
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
	// Datagrams is set if what is carried are datagrams, and not a stream of bytes. The
	// mode is opaque then.
	Datagrams bool
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

// DialFunc opens a connection to where a Grant leads. The connection may have the
// methods of relay.CloseWriter, relay.Resetter and relay.Layered, and must have the
// first two if it is not TCP itself. An error may have a method CloseReason() string,
// which says what the log shall call it; the report counts beside it too.
type DialFunc func(ctx context.Context, to api.Destination) (net.Conn, api.DialReport, error)

// Rooms are what a Gate needs; all but those that say otherwise must be set.
type Rooms struct {
	Decider policy.Decider
	// InLine says that Decider.Decide never waits: Arrive may call it.
	InLine bool
	Dial   DialFunc
	// Plan says how an Engine that is a relay.Connector gets to a Destination. If it is
	// nil, or returns nil, Dial does it.
	Plan  func(api.Destination) Plan
	Audit audit.Ledger
	// Refuse records what was refused, whole or counted: see refusals.Recorder.
	Refuse func(api.Refusal)
	Engine relay.Engine
	// Datagrams is the Engine of modes that carry those; it may be nil where there is
	// none.
	Datagrams relay.Engine
	Modes     []Mode
	Log       *slog.Logger
	// PerSession is how many connections a Session may have at once in all. Those to a
	// Service that says how many of one Session it takes do not end there. 0 is any number.
	PerSession int
	// AskTimeout bounds one question to the Decider; 0 is 5 seconds.
	AskTimeout time.Duration
	// Grace is how long live connections may go on once Run is told to end; 0 is
	// not at all.
	Grace time.Duration
}

// A Plan is a way to an upstream that needs no waiting: what a relay.Connector, which
// calls it, does not know. None of its methods waits. Either Connected or Failure is
// called, once, and then nothing more.
type Plan interface {
	// Next and NeedsLocal are those of relay.Opening.
	Next(failed error) (to netip.AddrPort, within time.Duration, ok bool)
	NeedsLocal() bool
	// Connected is called when the upstream has answered. preface is what it is sent
	// first.
	Connected(local netip.AddrPort) (preface []byte, report api.DialReport)
	// Failure says what happened when there was nowhere left, or the way was given up:
	// the error is that of DialFunc.
	Failure() (api.DialReport, error)
}

// A Gate is the enforcement point of one process.
type Gate struct {
	Rooms

	connector relay.Connector // the Engine, if it is one
	registry  registry
	counters  counters
	figures   figures
	endpoints endpoints
	origins   origins
	entries   sync.Pool // of *entry that are not in use
	// complained is when it was last said, in Unix seconds, that the access log
	// cannot be written.
	complained atomic.Int64
	running    chan struct{} // closed when Run takes connections

	mu       sync.Mutex
	life     context.Context // of connections that arrive; nil if none may
	closing  <-chan struct{} // closed when Run is told to end
	handlers map[string]Handler
	arriving sync.WaitGroup // calls and goroutines of Arrive
}

// New returns a Gate; it starts nothing.
func New(r Rooms) *Gate {
	g := &Gate{Rooms: r, registry: newRegistry(r.PerSession), origins: origins{seed: maphash.MakeSeed()}, running: make(chan struct{})}
	g.connector, _ = r.Engine.(relay.Connector)
	return g
}

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

// mode returns the Mode of that name. ok is false if it is not served here.
func (g *Gate) mode(name api.Mode) (m Mode, ok bool) {
	for _, m := range g.Modes {
		if m.Name == name {
			return m, !m.Datagrams || g.Datagrams != nil
		}
	}
	return Mode{}, false
}

// Run takes connections, and keeps what is held true, until ctx is done. From
// then on nobody new gets in. What is live goes on for as long as Grace allows,
// and is cut as before if it loses its right; the rest is cut at the end (DRAINED).
// Run returns when nothing is live and all it started is over. Connections that
// arrive before Run, or when it has been told to end, are reset. It is called once.
func (g *Gate) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var renewing sync.WaitGroup
	renewing.Go(func() { g.renew(life) })
	g.admit(life, ctx.Done())
	close(g.running)

	<-ctx.Done()
	g.admit(nil, nil)
	over := make(chan struct{})
	go func() {
		g.arriving.Wait()
		g.Engine.Wait()
		if g.Datagrams != nil {
			g.Datagrams.Wait()
		}
		close(over)
	}()
	if g.Grace > 0 {
		select {
		case <-over:
		case <-time.After(g.Grace):
		}
	}
	end()
	renewing.Wait()
	g.drain()
	g.arriving.Wait()
	g.drain() // what got its relay meanwhile
	<-over
	return nil
}

// Ready waits until Run takes connections.
func (g *Gate) Ready(ctx context.Context) error {
	select {
	case <-g.running:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// admit lets connections arrive, to live in life; nil lets none.
func (g *Gate) admit(life context.Context, closing <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.life, g.closing = life, closing
}

// drain cuts all that is live.
func (g *Gate) drain() {
	for _, c := range g.registry.conns() {
		c.cut(relay.Drained, "the server is stopping", nil)
	}
}

// Arrive takes a connection over. It returns at once.
func (g *Gate) Arrive(a api.Arrival) {
	g.counters.arrivals.Add(1)
	g.mu.Lock()
	life, closing, h := g.life, g.closing, g.handlers[a.Service]
	if life != nil {
		g.arriving.Add(1) // under the lock: Run waits only after it took life away
	}
	g.mu.Unlock()
	if life == nil {
		g.counters.turnedAway.Add(1)
		g.Refuse(api.Refusal{Facts: a.Facts, Reason: api.ReasonDrained, Datagrams: relay.IsDatagram(a.Conn), Words: "the server is stopping, or has not started"})
		relay.Reset(a.Conn, relay.Drained)
		return
	}
	c := newConn(g, &a)
	if h == nil && c.mayGoInLine() {
		g.pass(c, life, closing)
		g.arriving.Done()
		return
	}
	c.attend(life, closing, h != nil)
	go g.serve(c, h, nil)
}

// serve runs a connection, from where it is, until it is over or given to the relay.
// The goroutine that does is counted in arriving.
func (g *Gate) serve(c *Conn, h Handler, w *pending) {
	defer g.arriving.Done()
	defer c.unattend()
	var err error
	if h != nil {
		err = h.Serve(c.run.ctx, c)
	} else {
		err = g.opaque(c, w)
	}
	c.finish(err)
}

// opaque is the whole life of a connection that nobody looks into: arrived →
// decided → connecting → relaying. w is set if it waits for its turn.
func (g *Gate) opaque(c *Conn, w *pending) error {
	var err error
	if c.start == unborn {
		_, err = c.authorize(c.run.ctx, Ask{}, w)
	} else {
		err = c.keep()
	}
	if err != nil {
		return err
	}
	if err := c.carried(); err != nil {
		return err
	}
	up, hold, err := c.first.dial(c.run.ctx)
	if err != nil {
		return err
	}
	if err := c.verdict(api.Verdict{Code: api.VerdictOK, DecisionID: c.first.id()}); err != nil {
		relay.Reset(up, relay.ClientReset)
		release(hold, relay.Result{})
		return errClientGone
	}
	c.relay(up, hold)
	return nil
}

// carried returns an error if the connection may not be carried without a look into
// it. A Service of a mode that looks must never be, also not while its Handler is on
// its way here.
func (c *Conn) carried() error {
	mode := c.first.terms.Load().said.Subject.Mode
	if m, ok := c.gate.mode(mode); !ok || !m.Opaque {
		return &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("mode %s is not served here", mode)}
	}
	return nil
}

// errClientGone is that nobody hears the verdict any more.
var errClientGone error = clientGoneError{}

type clientGoneError struct{}

// Error implements error.
func (clientGoneError) Error() string { return "the client went away before it was connected" }

// CloseReason is what the log shall call it.
func (clientGoneError) CloseReason() string { return string(relay.ClientReset) }
