package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"cardea/api"
	"cardea/relay"
)

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
	return c.authorize(ctx, ask, nil)
}

// authorize is Authorize, for one who may have begun to wait.
func (c *Conn) authorize(ctx context.Context, ask Ask, wait *pending) (grant *Grant, err error) {
	if wait == nil {
		grant, wait, err = c.admit(ctx, ask, nil)
	}
	for range maxOvertaken {
		if wait == nil {
			break
		}
		turn := wait
		reason, words := turn.wait(ctx, c)
		if reason != "" {
			c.gate.registry.giveUp(turn.waiter)
			return nil, c.deny(refusal(turn.decision, reason, words+turn.words, turn.message))
		}
		grant, wait, err = c.admit(ctx, ask, turn)
		c.gate.registry.giveUp(turn.waiter)
	}
	switch {
	case wait != nil:
		c.gate.registry.giveUp(wait.waiter)
		return nil, c.overtaken()
	case err != nil:
		return nil, err
	case grant.opens:
		if err := c.keep(); err != nil {
			return nil, err
		}
	}
	return grant, nil
}

// A pending connection waits until there is a place for it.
type pending struct {
	*waitError
	decision api.Decision // which lets it in
}

// admit is what of Authorize does not wait, but for the Decider: it decides, and
// registers what allows. turn is what it gave before, if it is called again because
// the turn has come. START is begun, but not kept yet.
func (c *Conn) admit(ctx context.Context, ask Ask, turn *pending) (*Grant, *pending, error) {
	g := c.gate
	if c.start == lost || g.Audit.Owes() >= maxOwed {
		return nil, nil, c.unavailable("", errDebt)
	}
	req := api.Request{Service: c.from.service, Evidence: c.passage.evidence, Facts: &c.passage.facts}
	if c.from.isForeign() {
		req.Route = &c.from.route.Object
	}
	if ask.Evidence != nil {
		req.Evidence = *ask.Evidence
	}
	if ask.Facts != nil {
		req.Facts = ask.Facts
	}
	grant := &c.first
	if n := c.nextUnit(); c.start != unborn {
		grant = &Grant{conn: c, unit: &unit{n: n, since: time.Now(), facts: ask.Facts}}
	}
	// A change that is told between decision and registration would reach nobody:
	// then it is decided anew.
	for range maxOvertaken {
		req.Now = time.Now()
		if grant == &c.first {
			c.since = req.Now.UnixNano() // nobody else knows the connection yet
		}
		d := c.decide(ctx, req)
		if c.start == unborn {
			c.datagrams = relay.IsDatagram(c.Conn) || c.carriesDatagrams(&d)
		}
		if !d.Allowed() {
			return nil, nil, c.deny(d)
		}
		switch err := g.registry.add(grant, &req, &d, turn.place()).(type) {
		case nil:
		case *overtakenError:
			req.AtLeast = err.revision
			continue
		case *waitError:
			return nil, &pending{err, d}, nil
		case *fullError:
			return nil, nil, c.deny(refusal(d, api.ReasonLimit, err.words, err.message))
		default:
			return nil, nil, c.deny(refusal(d, api.ReasonError, err.Error(), ""))
		}
		if grant.opens {
			return grant, nil, c.begin(&d)
		}
		g.counters.decisions.add(Decided{d.Effect, d.Reason}, 1)
		return grant, nil, nil
	}
	return nil, nil, c.overtaken()
}

// maxOvertaken is how often a decision may be overtaken by changes.
const maxOvertaken = 10

// overtaken is the refusal of one whose decision was overtaken too often.
func (c *Conn) overtaken() error {
	return c.deny(api.Decision{ID: api.NewID(), Effect: api.Deny, Reason: api.ReasonError, Words: "decisions were overtaken by changes, one after the other"})
}

// refusal makes a denial of a decision that allows.
func refusal(d api.Decision, reason api.ReasonType, words, message string) api.Decision {
	d.Effect, d.Reason, d.Words, d.Message, d.Rule = api.Deny, reason, words, message, nil
	return d
}

// defaultPending is how long a connection waits if the limits do not say.
const defaultPending = 5 * time.Second

// place is that of a connection that has waited, nil if it has not.
func (p *pending) place() *waiter {
	if p == nil {
		return nil
	}
	return p.waiter
}

// lookAfter is how often it is looked whether the client of a connection that waits is
// still there: whoever has gone does not keep a place from others for longer.
const lookAfter = 250 * time.Millisecond

// wait returns when the turn of c has come or, with why and the beginning of words, when
// it has waited too long or its client has gone.
func (p *pending) wait(ctx context.Context, c *Conn) (api.ReasonType, string) {
	patience := cmp.Or(p.decision.Limits.PendingTimeout, defaultPending)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	look := time.NewTicker(lookAfter)
	defer look.Stop()
	for {
		hasTurn := false
		select {
		case <-p.turn:
			hasTurn = true
		case <-look.C:
		case <-timer.C:
			return api.ReasonLimit, fmt.Sprintf("waited %v in vain: ", patience)
		case <-ctx.Done():
			return api.ReasonDrained, "the server is stopping: "
		case <-c.run.closing:
			return api.ReasonDrained, "the server is stopping: "
		}
		if isGone(c.Conn) {
			return api.ReasonLimit, "the client went away while it waited: "
		}
		if hasTurn {
			return "", ""
		}
	}
}

// decide asks, and turns everything that is not an answer into a denial.
func (c *Conn) decide(ctx context.Context, req api.Request) api.Decision {
	d, err := c.gate.question(ctx, req)
	c.from.complete(&d)
	switch {
	case err != nil:
		// An error voids the answer beside it.
		return api.Decision{ID: cmp.Or(d.ID, api.NewID()), Effect: api.Deny, Reason: api.ReasonError, Words: err.Error(), Subject: d.Subject}
	case d.Effect == api.Allow && relay.IsDatagram(c.Conn) && !c.carriesDatagrams(&d):
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonNoRoute, fmt.Sprintf("it came in datagrams, and mode %s carries none", d.Subject.Mode)
	case d.Effect == api.Allow && d.Lease <= 0:
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, "the decision allowed for no time at all"
	case d.Effect == api.Allow && d.Subject.Session == nil && !d.Subject.IsAnonymous:
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, "the decision names no Session"
	case d.Effect == api.Allow && d.Subject.Session != nil && d.Subject.IsAnonymous:
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, "the decision names a Session, and says that there is none"
	}
	return d
}

// carriesDatagrams reports whether a connection that d is about does, or would.
func (c *Conn) carriesDatagrams(d *api.Decision) bool {
	m, ok := c.gate.mode(d.Subject.Mode)
	return ok && m.Datagrams
}

// deny records a refusal and says what the caller may be told. The record is made
// by the recorder of refusals: whoever is refused again and again must not push
// the rest out of the log.
func (c *Conn) deny(d api.Decision) error {
	c.gate.counters.decisions.add(Decided{api.Deny, d.Reason}, 1)
	c.gate.Refuse(api.Refusal{Facts: c.facts(), Reason: d.Reason, Words: d.Words, Record: &c.record(api.LogDenied, &d, nil).AccessLog})
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
	if v.Code != api.VerdictOK && c.from.anonymous() {
		v = api.Verdict{Code: api.VerdictDenied}
	}
	c.mu.Lock()
	told, conn := c.told, c.Conn
	c.told = true
	c.mu.Unlock()
	if t, ok := conn.(teller); ok && !told {
		return t.Verdict(v)
	}
	return nil
}

// A teller is the conn of a road that can carry a verdict. One that is also a
// relay.Socket, or has one beneath, does not wait for the client.
type teller interface{ Verdict(api.Verdict) error }

// hears reports whether the client can be told what becomes of its request.
func (c *Conn) hears() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.Conn.(teller)
	return ok
}
