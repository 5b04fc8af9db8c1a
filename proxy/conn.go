package proxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"cardea/api"
	"cardea/audit"
	"cardea/relay"
)

// A Conn is a client's connection on its way through a Gate. Handlers read and
// write it as a net.Conn; what passes is counted.
//
// There are many, and most of them only wait: what connections have in common is
// shared, and what few of them need is behind a pointer.
type Conn struct {
	net.Conn // nil once the engine has it from Arrive itself

	gate    *Gate
	id      api.ID
	from    *origin
	ip      string   // of the client
	first   Grant    // the one that opens the connection
	since   int64    // when it was decided, in Unix nanoseconds
	passage *passage // nil once an engine has it; of who runs it alone
	run     *run     // nil unless a goroutine runs it

	mu   sync.Mutex
	port uint16 // of the client
	// datagrams says that it carries those, and not bytes. It is set before START, and
	// then stays.
	datagrams bool
	start     birth
	told      bool            // the verdict was given
	ended     bool            // it is over: END was written, if there was a START
	live      relay.Live      // once the engine has it
	hold      api.Hold        // at its upstream
	upstream  *endpoint       // where the last upstream is, or may be
	approach  *approach       // those that are under way
	report    *api.DialReport // of the last dial, if there is something to report
	ending    *ending         // why it was cut
}

// A passage is what a connection has only until it is relayed.
type passage struct {
	id       string // of the connection, once somebody has asked for it
	evidence api.Evidence
	facts    api.Facts
	plan     Plan       // while the engine connects it
	approach approach   // likewise
	mark     audit.Mark // of START
}

// A birth is how it stands with the START of a connection.
type birth uint8

const (
	unborn birth = iota // it has none
	begun               // the log has taken it
	kept                // it is in the log
	lost                // it could not be kept: there is no END either
)

// A run is what a connection has while a goroutine runs it.
type run struct {
	ctx     context.Context    // done when the connection is over or cut
	cancel  context.CancelFunc // of ctx
	closing <-chan struct{}    // closed when nobody new is let in
	handled bool               // by a Handler

	sent, received atomic.Int64 // of a Handler; a relay counts for itself
	units          atomic.Int64 // Authorize calls

	// What follows belongs to the registry, under its lock.
	grants []*Grant // beside the first
	own    unit     // of the first
}

// An ending is why a connection is over. The first one counts.
type ending struct {
	reason relay.Reason
	words  string
	by     *api.Decision // the decision that took the right away
}

func newConn(g *Gate, a *api.Arrival) *Conn {
	c := &Conn{
		Conn: a.Conn, gate: g, id: api.DrawID(), from: g.origins.get(a), ip: a.Facts.IP, port: uint16(a.Facts.Port),
		passage: &passage{evidence: a.Evidence, facts: a.Facts},
	}
	c.first.conn = c
	return c
}

// ID names the connection in the log: one for its START, its END and what is between.
func (c *Conn) ID() string {
	p := c.passage
	if p == nil {
		return c.id.String()
	}
	if p.id == "" {
		p.id = c.id.String()
	}
	return p.id
}

// facts returns those of the connection.
func (c *Conn) facts() api.Facts {
	f := c.from.facts
	f.IP, f.Port = c.ip, int(c.port)
	return f
}

// attend gives the connection to a goroutine.
func (c *Conn) attend(life context.Context, closing <-chan struct{}, handled bool) {
	ctx, cancel := context.WithCancel(life)
	c.setRun(&run{ctx: ctx, cancel: cancel, closing: closing, handled: handled})
	if c.isCut() { // before there was something to cancel
		cancel()
	}
}

// unattend says that the goroutine has ended.
func (c *Conn) unattend() {
	c.run.cancel()
	if !c.run.handled {
		c.setRun(nil)
	}
}

// setRun sets run, at which others look under either lock.
func (c *Conn) setRun(r *run) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gate.registry.mu.Lock()
	defer c.gate.registry.mu.Unlock()
	c.run = r
}

// nextUnit counts a call of Authorize.
func (c *Conn) nextUnit() int64 {
	if c.run == nil {
		return 1
	}
	return c.run.units.Add(1)
}

// handled reports whether a Handler serves the connection.
func (c *Conn) handled() bool { return c.run != nil && c.run.handled }

// Read counts what the client sent.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.run.received.Add(int64(n))
	return n, err
}

// Write counts what the client was sent.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.run.sent.Add(int64(n))
	return n, err
}

// begin begins the START of the connection, which d lets in.
func (c *Conn) begin(d *api.Decision) error {
	rec := c.record(api.LogStart, d, nil)
	var err error
	c.passage.mark, err = c.gate.Audit.Begin(&rec.AccessLog)
	c.gate.free(rec)
	c.mu.Lock()
	c.start = begun
	if err != nil {
		c.start = lost
	}
	c.mu.Unlock()
	if err != nil {
		c.gate.registry.forget(c)
		return c.unavailable(d.ID, err)
	}
	return nil
}

// keep returns when START is in the log. If it cannot be kept, the connection counts
// as refused.
func (c *Conn) keep() error {
	if c.start != begun {
		return nil
	}
	g := c.gate
	err := g.Audit.Keep(c.passage.mark)
	c.mu.Lock()
	c.start = kept
	if err != nil {
		c.start = lost
	}
	c.mu.Unlock()
	if err != nil {
		id := c.first.id()
		g.registry.forget(c)
		return c.unavailable(id, err)
	}
	t := c.first.terms.Load()
	t.figure.live.Add(1)
	g.counters.decisions.add(Decided{t.said.Effect, t.said.Reason}, 1)
	return nil
}

// Relay gives the client and up to the relay engine, and returns at once. The
// connection ends when the relay does.
func (c *Conn) Relay(up net.Conn) {
	var hold api.Hold
	if g, ok := up.(*granted); ok {
		up, hold = g.Conn, g.take()
	}
	c.relay(up, hold)
}

func (c *Conn) relay(up net.Conn, hold api.Hold) {
	c.holds(hold)
	if !c.run.handled {
		c.passage = nil
	}
	limits := c.first.limits()
	engine, client := c.gate.Engine, c.leg()
	if c.datagrams {
		if engine = c.gate.Datagrams; !relay.IsDatagram(c.Conn) {
			client = relay.Messages(client)
		}
	}
	live := engine.Start(relay.Pair{Client: client, Upstream: up, Limits: limits}, c.relayed)
	c.mu.Lock()
	c.live = live
	cut := c.ending
	if now := c.first.limits(); now != limits {
		live.Limit(now) // they changed while it was being handed over
	}
	c.mu.Unlock()
	if cut != nil {
		live.Cut(cut.reason) // likewise
	}
}

// limit applies the limits that the decision has now to the relay, if it is
// running. Who hands the connection over looks after those of one that is about to
// begin.
func (c *Conn) limit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live != nil {
		c.live.Limit(c.first.limits())
	}
}

// relayed is called by the engine when the relay is over.
func (c *Conn) relayed(r relay.Result) { c.over(endingOf(r), r) }

// endingOf says how a relay ended.
func endingOf(r relay.Result) ending {
	e := ending{reason: r.Reason}
	if r.Reason == relay.Limit {
		e.words = "it has carried as many bytes as it may"
	}
	if r.Err == nil {
		return e
	}
	e.words = r.Err.Error()
	// In TLS 1.3 an upstream says what it thinks of our certificate after the dial.
	var says interface{ CloseReason() string }
	if r.Reason == relay.UpstreamReset && errors.As(r.Err, &says) {
		e.reason = relay.Reason(says.CloseReason())
	}
	return e
}

// over ends a connection that the engine had.
func (c *Conn) over(e ending, r relay.Result) {
	c.mu.Lock()
	hold := c.hold
	c.hold = nil
	c.mu.Unlock()
	release(hold, r) // before anybody comes in its place
	c.end(e, r)
}

// holds notes the place that the connection has at its upstream.
func (c *Conn) holds(h api.Hold) {
	c.mu.Lock()
	c.hold = h
	c.mu.Unlock()
}

// release gives the place of a connection back, which ended as r says.
func release(h api.Hold, r relay.Result) {
	if h != nil {
		h.Release(r.Sent, r.Reason == relay.UpstreamReset)
	}
}

// note keeps what a dial tells.
func (c *Conn) note(r api.DialReport) {
	var report *api.DialReport
	if r.Retries != 0 || r.Verified != nil || r.Words != "" {
		report = &api.DialReport{Retries: r.Retries, Verified: r.Verified, Words: r.Words}
	}
	c.mu.Lock()
	c.report = report
	c.mu.Unlock()
}

// isCut reports whether the connection was cut.
func (c *Conn) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ending != nil
}

// cut ends a connection against its will: both legs are reset.
func (c *Conn) cut(why relay.Reason, words string, by *api.Decision) {
	c.mu.Lock()
	if c.ended || c.ending != nil {
		c.mu.Unlock()
		return
	}
	c.ending = &ending{why, words, by}
	live := c.live
	if live == nil && c.run != nil {
		// Still deciding or connecting: the goroutine that does it ends the connection.
		// Here nothing is written to the client, who may not read.
		c.run.cancel()
	}
	handled := c.handled()
	c.mu.Unlock()
	switch {
	case live != nil:
		live.Cut(why)
	case handled: // its Handler may wait for the client, or for an upstream
		relay.Reset(c.leg(), why)
		for _, up := range c.gate.registry.upstreams(c) {
			relay.Reset(up.Conn, why)
		}
	}
}

// finish closes what a Handler, or the Gate, has left: err is why.
func (c *Conn) finish(err error) {
	c.mu.Lock()
	live := c.live
	c.mu.Unlock()
	if live != nil {
		return // the relay ends it
	}
	e, cut := c.explain(err)
	if err == nil && !cut {
		c.Conn.Close()
	} else {
		relay.Reset(c.leg(), e.reason)
	}
	c.closed(e)
}

// explain says why a connection is over that was not relayed: it was cut or, if not,
// because of err. The client is told what he may know.
func (c *Conn) explain(err error) (e ending, cut bool) {
	c.mu.Lock()
	by := c.ending
	c.mu.Unlock()
	if by != nil {
		if by.by != nil {
			c.verdict(verdictOf(by.by))
		}
		return *by, true
	}
	var denied *Denied
	var failed *dialError
	switch {
	case err == nil:
		return ending{reason: relay.ClientClosed}, false
	case errors.As(err, &denied):
		c.verdict(denied.Verdict)
		return ending{reason: relay.Revoked, words: "a unit of work was refused"}, false
	case errors.As(err, &failed):
		c.unanswered()
		return ending{reason: failed.reason(), words: failed.Error()}, false
	case errors.Is(err, errClientGone):
		return ending{reason: relay.ClientReset, words: err.Error()}, false
	}
	c.verdict(api.Verdict{Code: api.VerdictUnavailable, DecisionID: c.first.id(), Words: "the Service cannot be reached now"})
	return ending{reason: relay.ProtocolError, words: err.Error()}, false
}

// unanswered tells the client that there is no upstream.
func (c *Conn) unanswered() {
	c.verdict(api.Verdict{Code: api.VerdictUnavailable, DecisionID: c.first.id(), Words: "the Service does not answer; its administrator finds the reason in the log"})
}

// closed ends a connection that no engine had.
func (c *Conn) closed(e ending) {
	if c.run == nil {
		c.end(e, relay.Result{})
	} else {
		c.end(e, relay.Result{Received: c.run.received.Load(), Sent: c.run.sent.Load()})
	}
}

// end writes END, once, and forgets the connection. What passed is in r.
func (c *Conn) end(e ending, r relay.Result) {
	c.mu.Lock()
	if cut := c.ending; cut != nil {
		if cut.words != "" {
			e.words = cut.words
		}
		e.reason, e.by = cut.reason, cut.by
	}
	done, start := c.ended, c.start
	c.ended = true
	c.mu.Unlock()
	if done || start == unborn || start == lost || c.keep() != nil {
		return
	}
	g := c.gate
	d, figure := g.registry.forget(c)
	figure.end(e.reason, r.Received, r.Sent)
	g.counters.ends.add(e.reason, 1)
	g.counters.received.Add(r.Received)
	g.counters.sent.Add(r.Sent)
	rec := c.record(api.LogEnd, &d, &e)
	rec.carried = [4]int64{r.Received, r.Sent, r.ReceivedPackets, r.SentPackets}
	rec.flow.ReceivedBytes, rec.flow.SentBytes = &rec.carried[0], &rec.carried[1]
	if c.datagrams {
		rec.flow.ReceivedPackets, rec.flow.SentPackets = &rec.carried[2], &rec.carried[3]
	}
	c.owe(rec)
}

// bytes returns what has passed so far.
func (c *Conn) bytes() (received, sent int64) {
	c.mu.Lock()
	live, run := c.live, c.run
	c.mu.Unlock()
	switch {
	case live != nil:
		return live.Bytes()
	case run != nil:
		return run.received.Load(), run.sent.Load()
	}
	return 0, 0
}

// leg is the client's side as a relay sees it: the bare conn, for a socket that
// can be spliced, else one whose reset tells the client why.
func (c *Conn) leg() net.Conn {
	if _, ok := c.Conn.(relay.Socket); ok {
		return c.Conn
	}
	if _, ok := c.Conn.(relay.Resetter); !ok {
		return c.Conn
	}
	l := leg{c.Conn, c}
	if relay.IsDatagram(c.Conn) {
		return &datagramLeg{l}
	}
	if _, ok := c.Conn.(relay.CloseWriter); !ok {
		return c.Conn
	}
	if _, ok := c.Conn.(relay.Transparent); ok {
		return &transparentLeg{streamLeg{l}}
	}
	return &streamLeg{l}
}

// A leg adds words for the client to a reset. Its Conn is a relay.Resetter.
type leg struct {
	net.Conn
	conn *Conn
}

// NetConn implements relay.Layered: the conn itself tells of a reset behind its
// end.
func (l *leg) NetConn() net.Conn { return l.Conn }

// Reset implements relay.Resetter.
func (l *leg) Reset(reason string) error {
	l.conn.mu.Lock()
	e := l.conn.ending
	l.conn.mu.Unlock()
	if e != nil {
		reason = string(e.reason)
	}
	if e != nil && e.reason == relay.Revoked && e.by != nil && !l.conn.from.anonymous() {
		v := verdictOf(e.by)
		if v.DecisionID != "" {
			reason += " (decision " + v.DecisionID + ")"
		}
		if v.Words != "" {
			reason += ": " + v.Words
		}
	}
	return l.Conn.(relay.Resetter).Reset(reason)
}

// A streamLeg is one of a stream, which is a relay.CloseWriter.
type streamLeg struct{ leg }

// CloseWrite implements relay.CloseWriter.
func (l *streamLeg) CloseWrite() error { return l.Conn.(relay.CloseWriter).CloseWrite() }

// A transparentLeg is one of a relay.Transparent: an engine finds the socket beneath.
type transparentLeg struct{ streamLeg }

// Unread implements relay.Transparent: what was read ahead, the conn itself tells.
func (*transparentLeg) Unread() []byte { return nil }

// A datagramLeg is one of a relay.Datagram.
type datagramLeg struct{ leg }

// Datagram implements relay.Datagram.
func (*datagramLeg) Datagram() {}

// Await implements relay.Awaiter.
func (l *datagramLeg) Await() error {
	if a, ok := l.Conn.(relay.Awaiter); ok {
		return a.Await()
	}
	return nil
}
