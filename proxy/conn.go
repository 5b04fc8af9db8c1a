package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/relay"
)

// A Conn is a client's connection on its way through a Gate. Handlers read and
// write it as a net.Conn; what passes is counted.
type Conn struct {
	net.Conn
	// ID names the connection in the log: one for its START, its END and what is
	// between.
	ID string

	gate    *Gate
	handled bool            // by a Handler
	closing <-chan struct{} // closed when nobody new is let in
	foreign string          // the key of the foreign Object that it is to, or ""
	arrival api.Arrival
	facts   *api.Facts
	ctx     context.Context // done when the connection is over or cut
	cancel  context.CancelFunc

	sent, received atomic.Int64 // of a Handler; a relay counts for itself
	units          atomic.Int64 // Authorize calls

	grants []*Grant  // those that are registered; it belongs to the registry, under its lock
	one    [1]*Grant // room for them

	mu        sync.Mutex
	first     *Grant     // the one that opened the connection: its START is in the log
	live      relay.Live // once it is relayed
	startedAt time.Time
	upstream  net.Addr       // where the last upstream is
	report    api.DialReport // of the last dial
	figure    *figure        // that it is counted in, from START to END
	told      bool           // the verdict was given
	ended     bool           // it is over: END was written, if there was a START
	ending    ending
}

// An ending is why a connection is over. The first one counts.
type ending struct {
	reason relay.Reason
	words  string
	by     *api.Decision // the decision that took the right away
}

func newConn(g *Gate, life context.Context, closing <-chan struct{}, a api.Arrival) *Conn {
	c := &Conn{Conn: a.Conn, ID: api.NewID(), gate: g, closing: closing, arrival: a, startedAt: time.Now()}
	if a.Route != nil && a.Service == "" {
		c.foreign = a.Route.Object.String()
	}
	c.facts, c.grants = &c.arrival.Facts, c.one[:0]
	c.ctx, c.cancel = context.WithCancel(life)
	return c
}

// anonymous reports whether nobody asked who the client is.
func (c *Conn) anonymous() bool {
	return c.isForeign() || c.arrival.Evidence.Kind == api.EvidenceAnonymous
}

// service is the full name of the Service that a decision is about, or the key of
// the foreign Object.
func (c *Conn) service(d *api.Decision) string {
	if c.isForeign() {
		return c.foreign
	}
	if d.Subject.Service != nil {
		return d.Subject.Service.Name
	}
	return api.ServiceName(c.arrival.Service)
}

// Read counts what the client sent.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(int64(n))
	return n, err
}

// Write counts what the client was sent.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// An Ask is what a Mode adds to the question: evidence that was found inside the
// protocol (then the one of the connection does not count) and facts of the unit
// of work (then they stand instead of the connection's).
type Ask struct {
	Evidence *api.Evidence
	Facts    *api.Facts
}

// ErrDenied is the cause of every refusal by decision. What may be told to the
// caller is in the *Denied that wraps it.
var ErrDenied = errors.New("denied")

// Denied is the refusal of a unit of work.
type Denied struct {
	// Verdict is what the caller may be told: nothing, if it has no Session.
	Verdict api.Verdict
}

// Error implements error.
func (d *Denied) Error() string { return "denied: " + d.Verdict.Words }

// Unwrap makes a Denied an ErrDenied.
func (d *Denied) Unwrap() error { return ErrDenied }

// Authorize asks whether the client may do one unit of work now: the connection
// itself, the first time, which must have returned before the next begins; a
// request, a query or a channel after that. Before it returns a Grant, the
// decision is registered, so that every later change reaches it, and the START of
// the connection is in the log. If the log cannot be written nobody gets in, and
// if there are as many connections as there may be, no further one, or only when
// its turn has come. The error is a *Denied.
func (c *Conn) Authorize(ctx context.Context, ask Ask) (*Grant, error) {
	req := api.Request{Service: c.arrival.Service, Evidence: c.arrival.Evidence, Facts: c.facts}
	if c.isForeign() {
		req.Route = &c.arrival.Route.Object
	}
	if ask.Evidence != nil {
		req.Evidence = *ask.Evidence
	}
	if ask.Facts != nil {
		req.Facts = ask.Facts
	}
	c.mu.Lock()
	opens := c.first == nil
	c.mu.Unlock()
	unit := c.units.Add(1)
	if c.gate.owes() >= maxOwed {
		return nil, c.unavailable("", errDebt)
	}
	// A change that is told between decision and registration would reach nobody:
	// then it is decided anew.
	var turn *waiter // once it has waited
	defer func() { c.gate.registry.giveUp(turn) }()
	for range maxOvertaken {
		req.Now = time.Now()
		d := c.decide(ctx, req)
		if !d.Allowed() {
			return nil, c.deny(d)
		}
		grant := newGrant(c, unit, opens, req, d)
		if opens {
			c.mu.Lock()
			c.startedAt = req.Now
			c.mu.Unlock()
		}
		switch err := c.gate.registry.add(grant, turn).(type) {
		case nil:
		case *overtakenError:
			req.AtLeast = err.revision
			continue
		case *waitError:
			turn = err.waiter
			if reason, words := turn.wait(ctx, c.closing, d.Limits.PendingTimeout); reason != "" {
				return nil, c.deny(refusal(d, reason, words+err.words, err.message))
			}
			continue
		case *fullError:
			return nil, c.deny(refusal(d, api.ReasonLimit, err.words, err.message))
		default:
			return nil, c.deny(refusal(d, api.ReasonError, err.Error(), ""))
		}
		if opens {
			if err := c.append(c.record(api.LogStart, &d, nil)); err != nil {
				c.gate.registry.remove(grant)
				return nil, c.unavailable(d.ID, err)
			}
			c.mu.Lock()
			c.first, c.figure = grant, c.gate.figures.get(c.counted())
			c.figure.live.Add(1)
			c.mu.Unlock()
		}
		c.gate.counters.decisions.add(Decided{d.Effect, d.Reason}, 1)
		return grant, nil
	}
	return nil, c.deny(api.Decision{ID: api.NewID(), Effect: api.Deny, Reason: api.ReasonError, Words: "decisions were overtaken by changes, one after the other"})
}

// maxOvertaken is how often a decision may be overtaken by changes.
const maxOvertaken = 10

// refusal makes a denial of a decision that allows.
func refusal(d api.Decision, reason api.ReasonType, words, message string) api.Decision {
	d.Effect, d.Reason, d.Words, d.Message, d.Rule = api.Deny, reason, words, message, nil
	return d
}

// defaultPending is how long a connection waits if the limits do not say.
const defaultPending = 5 * time.Second

// wait returns when the turn of w has come or, with why and the beginning of words,
// when it has waited too long.
func (w *waiter) wait(ctx context.Context, closing <-chan struct{}, patience time.Duration) (api.ReasonType, string) {
	patience = cmp.Or(patience, defaultPending)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-w.turn:
		return "", ""
	case <-timer.C:
		return api.ReasonLimit, fmt.Sprintf("waited %v in vain: ", patience)
	case <-ctx.Done():
	case <-closing:
	}
	return api.ReasonDrained, "the server is stopping: "
}

// decide asks, and turns everything that is not an answer into a denial.
func (c *Conn) decide(ctx context.Context, req api.Request) api.Decision {
	d, err := c.gate.question(ctx, req)
	c.complete(&d)
	switch {
	case err != nil:
		// An error voids the answer beside it.
		return api.Decision{ID: cmp.Or(d.ID, api.NewID()), Effect: api.Deny, Reason: api.ReasonError, Words: err.Error(), Subject: d.Subject}
	case d.Effect == api.Allow && d.Lease <= 0:
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, "the decision allowed for no time at all"
	case d.Effect == api.Allow && d.Subject.Session == nil && !d.Subject.IsAnonymous:
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, "the decision names no Session"
	case d.Effect == api.Allow && d.Subject.Session != nil && d.Subject.IsAnonymous:
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, "the decision names a Session, and says that there is none"
	}
	return d
}

// deny records a refusal and says what the caller may be told. The record is made
// by the recorder of refusals: whoever is refused again and again must not push
// the rest out of the log.
func (c *Conn) deny(d api.Decision) error {
	c.gate.counters.decisions.add(Decided{api.Deny, d.Reason}, 1)
	c.gate.Refuse(api.Refusal{Facts: *c.facts, Reason: d.Reason, Words: d.Words, Record: c.record(api.LogDenied, &d, nil)})
	return &Denied{Verdict: verdictOf(&d)}
}

// unavailable is deny for a failure of ours; nothing can be recorded. It is said
// once a second: strangers may come faster.
func (c *Conn) unavailable(decision string, err error) error {
	n := c.gate.counters.unlogged.Add(1)
	if now := time.Now().Unix(); c.gate.complained.Swap(now) != now {
		c.gate.Log.Error("connections are refused: the access log cannot be written", "error", err, "refused", n)
	}
	return &Denied{Verdict: api.Verdict{Code: api.VerdictUnavailable, DecisionID: decision, Words: "the cluster cannot take connections now; its administrator finds the reason in its log"}}
}

// verdictOf says what a caller may be told. Whoever proved no Session is told
// nothing. A Session learns whether it ended, and else the decision's id and the
// message of the rule; whether the Service exists, it does not learn.
func verdictOf(d *api.Decision) api.Verdict {
	v := api.Verdict{Code: api.VerdictDenied}
	if d.Subject.IsAnonymous {
		return v
	}
	switch d.Reason {
	case api.ReasonUnauthenticated, api.ReasonKeyMismatch:
	case api.ReasonKilled:
		v.DecisionID, v.Words = d.ID, "an administrator ended the connection"
	case api.ReasonLimit, api.ReasonDrained:
		v.Code, v.DecisionID, v.Words = api.VerdictUnavailable, d.ID, d.Message
	case api.ReasonError:
		v.Code, v.DecisionID, v.Words = api.VerdictUnavailable, d.ID, "no decision could be had; try again"
	case api.ReasonNoSession, api.ReasonSessionExpired:
		v.Words = "this Session has ended: log in again"
	case api.ReasonSessionNotActive, api.ReasonNoUser, api.ReasonUserDisabled:
		v.DecisionID, v.Words = d.ID, "this Session may not be used now"
	case api.ReasonDeviceNotActive:
		v.DecisionID, v.Words = d.ID, "the Device of this Session may not be used now"
	default:
		v.DecisionID = d.ID
		v.Words = cmp.Or(d.Message, "you may not reach this Service, or there is none of that name")
	}
	return v
}

// verdict tells the client what became of its request, once, where the road can
// carry it. Nobody tells a caller without a name why he is refused.
func (c *Conn) verdict(v api.Verdict) error {
	if v.Code != api.VerdictOK && c.anonymous() {
		v = api.Verdict{Code: api.VerdictDenied}
	}
	c.mu.Lock()
	told := c.told
	c.told = true
	c.mu.Unlock()
	if t, ok := c.Conn.(interface{ Verdict(api.Verdict) error }); ok && !told {
		return t.Verdict(v)
	}
	return nil
}

// Relay gives the client and up to the relay engine, and returns at once. The
// connection ends when the relay does.
func (c *Conn) Relay(up net.Conn) {
	if g, ok := up.(*granted); ok {
		up = g.Conn
	}
	limits := c.gate.registry.limits(c.first)
	live := c.gate.Engine.Start(relay.Pair{Client: c.leg(), Upstream: up, Limits: limits}, c.relayed)
	c.mu.Lock()
	c.live = live
	cut := c.ending.reason
	if now := c.gate.registry.limits(c.first); now != limits {
		live.Limit(now) // they changed while it was being handed over
	}
	c.mu.Unlock()
	if cut != "" {
		live.Cut(cut) // likewise
	}
}

// limit applies the limits that the decision has now to the relay, if it is
// running. Relay looks after those of one that is about to begin.
func (c *Conn) limit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live != nil {
		c.live.Limit(c.gate.registry.limits(c.first))
	}
}

// relayed is called by the engine when the relay is over.
func (c *Conn) relayed(r relay.Result) {
	c.received.Store(r.Received)
	c.sent.Store(r.Sent)
	e := ending{reason: r.Reason}
	if r.Err != nil {
		e.words = r.Err.Error()
	}
	// In TLS 1.3 an upstream says what it thinks of our certificate after the dial.
	var says interface{ CloseReason() string }
	if r.Reason == relay.UpstreamReset && errors.As(r.Err, &says) {
		e.reason = relay.Reason(says.CloseReason())
	}
	c.end(e)
	c.cancel()
}

// cut ends a connection against its will: both legs are reset.
func (c *Conn) cut(why relay.Reason, words string, by *api.Decision) {
	c.mu.Lock()
	if c.ended || c.ending.reason != "" {
		c.mu.Unlock()
		return
	}
	c.ending = ending{reason: why, words: words, by: by}
	live := c.live
	c.mu.Unlock()
	if live != nil {
		live.Cut(why)
		return
	}
	// Still deciding or connecting: the goroutine that does it ends the connection.
	// Here nothing is written to the client, who may not read.
	c.cancel()
	if c.handled { // its Handler may wait for the client, or for an upstream
		relay.Reset(c.leg(), why)
		for _, up := range c.gate.registry.upstreams(c) {
			relay.Reset(up, why)
		}
	}
}

// finish closes what a Handler, or opaque, has left: err is what it returned.
func (c *Conn) finish(err error) {
	c.mu.Lock()
	live, first, cut := c.live, c.first, c.ending
	c.mu.Unlock()
	if live != nil {
		return // the relay ends it
	}
	if cut.reason != "" {
		if cut.by != nil {
			c.verdict(verdictOf(cut.by))
		}
		relay.Reset(c.leg(), cut.reason)
		c.end(cut)
		return
	}
	e := ending{reason: relay.ClientClosed}
	var denied *Denied
	var failed *dialError
	switch {
	case err == nil:
	case errors.As(err, &denied):
		c.verdict(denied.Verdict)
		e = ending{reason: relay.Revoked, words: "a unit of work was refused"}
	case errors.As(err, &failed):
		e = ending{reason: failed.reason(), words: failed.Error()}
		c.verdict(api.Verdict{Code: api.VerdictUnavailable, DecisionID: first.id(), Words: "the Service does not answer; its administrator finds the reason in the log"})
	case errors.Is(err, errClientGone):
		e = ending{reason: relay.ClientReset, words: err.Error()}
	default:
		e = ending{reason: relay.ProtocolError, words: err.Error()}
		c.verdict(api.Verdict{Code: api.VerdictUnavailable, DecisionID: first.id(), Words: "the Service cannot be reached now"})
	}
	if err == nil {
		c.Conn.Close()
	} else {
		relay.Reset(c.leg(), e.reason)
	}
	c.end(e)
}

// end writes END, once, and forgets the connection.
func (c *Conn) end(e ending) {
	c.mu.Lock()
	if c.ending.reason == "" {
		c.ending = e
	} else if c.ending.words == "" {
		c.ending.words = e.words
	}
	e = c.ending
	done, first, figure := c.ended, c.first, c.figure
	c.ended = true
	c.mu.Unlock()
	if done || first == nil {
		return
	}
	c.gate.registry.forget(c)
	received, sent := c.bytes()
	figure.end(e.reason, received, sent)
	c.gate.counters.ends.add(e.reason, 1)
	c.gate.counters.received.Add(received)
	c.gate.counters.sent.Add(sent)
	d := c.gate.registry.decision(first)
	c.owe(c.record(api.LogEnd, &d, &e))
}

// bytes returns what has passed so far.
func (c *Conn) bytes() (received, sent int64) {
	c.mu.Lock()
	live := c.live
	c.mu.Unlock()
	if live != nil {
		return live.Bytes()
	}
	return c.received.Load(), c.sent.Load()
}

// leg is the client's side as a relay sees it: the bare conn, for a socket that
// can be spliced, else one whose reset tells the client why.
func (c *Conn) leg() net.Conn {
	if r, ok := c.Conn.(resetter); ok {
		return &leg{Conn: c.Conn, resetter: r, conn: c}
	}
	return c.Conn
}

type resetter interface {
	CloseWrite() error
	Reset(reason string) error
}

// A leg adds words for the client to a reset.
type leg struct {
	net.Conn
	resetter
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
	if e.reason == relay.Revoked && e.by != nil && !l.conn.anonymous() {
		v := verdictOf(e.by)
		if v.DecisionID != "" {
			reason += " (decision " + v.DecisionID + ")"
		}
		if v.Words != "" {
			reason += ": " + v.Words
		}
	}
	return l.resetter.Reset(reason)
}
