package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"cardea/api"
)

// How often time itself is looked at, and how far the wall clock may stray from
// the monotonic one within that time before it counts as a step.
const (
	tick      = time.Second
	clockStep = 500 * time.Millisecond
)

// askers is how many questions are under way at once.
const askers = 16

// renew keeps every held decision true until ctx is done. One goroutine follows
// the changes and one looks at the clock; neither of them asks, so that neither
// waits: they put Grants into the queue of the registry, and the askers take
// them out. renew owns all of them.
func (g *Gate) renew(ctx context.Context) {
	g.registry.begin(time.Now())
	var wg sync.WaitGroup
	wg.Go(func() { g.follow(ctx) })
	wg.Go(func() { g.watchClock(ctx) })
	for range askers {
		wg.Go(func() { g.answer(ctx) })
	}
	wg.Wait()
}

// follow works through the changes, and begins again, after the last one that it
// knows, when the stream breaks.
func (g *Gate) follow(ctx context.Context) {
	for ctx.Err() == nil {
		for c, err := range g.Decider.Changes(ctx, g.registry.revision()) {
			if err != nil {
				g.Log.Warn("the stream of changes broke; leases run until it is back", "error", err)
				break
			}
			g.registry.change(c, time.Now())
		}
		select {
		case <-ctx.Done():
		case <-time.After(tick):
		}
	}
}

// answer asks again for what is in the queue until ctx is done.
func (g *Gate) answer(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.registry.queued:
		}
		for {
			grant, req, held := g.registry.next()
			if grant == nil {
				break
			}
			g.ask(ctx, grant, req, held)
		}
	}
}

// ask repeats the question of a Grant and acts on the answer.
func (g *Gate) ask(ctx context.Context, grant *Grant, req api.Request, held api.Decision) {
	asked := time.Now()
	req.Now = asked
	d, err := g.question(ctx, req)
	grant.conn.from.complete(&d)
	g.counters.renewals.Add(1)
	switch {
	case err != nil:
		g.counters.unanswered.Add(1)
		// No answer. The lease runs on; the question is asked again at each tick.
		g.registry.doubt(grant)
	case !d.Allowed():
		grant.revoke(&d, words(&d))
	case uid(d.Subject.Service) != uid(held.Subject.Service) && !grant.conn.from.isForeign():
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonNoService, "the Service was deleted, and made again under the same name"
		grant.revoke(&d, d.Words)
	case uid(d.Subject.Session) != uid(held.Subject.Session) || d.Subject.IsAnonymous != held.Subject.IsAnonymous:
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, "the answer is about another caller"
		grant.revoke(&d, d.Words)
	case configName(d.Config) != configName(held.Config):
		d.Effect, d.Reason = api.Deny, api.ReasonConfig
		d.Words = fmt.Sprintf("config %q would be chosen now, not %q", configName(d.Config), configName(held.Config))
		grant.revoke(&d, d.Words)
	default:
		d.Config = held.Config // what is still allowed keeps what it has
		g.registry.replace(grant, d, asked)
		if grant.opens && d.Limits != held.Limits {
			grant.conn.limit()
		}
	}
}

// uid returns that of a reference, "" if there is none.
func uid(r *api.Ref) string {
	if r == nil {
		return ""
	}
	return r.UID
}

// name returns that of a reference, "" if there is none.
func name(r *api.Ref) string {
	if r == nil {
		return ""
	}
	return r.Name
}

func configName(c *api.ServiceConfig) string {
	if c == nil {
		return ""
	}
	return c.Name
}

func words(d *api.Decision) string {
	if d.Words != "" {
		return d.Words
	}
	return string(d.Reason)
}

// watchClock queues what reads the clock or is in doubt, and cuts what has
// expired and whose lease has ended.
func (g *Gate) watchClock(ctx context.Context) {
	t := time.NewTimer(tick)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.registry.sooner:
		case <-t.C:
		}
		now := time.Now()
		wall := now.Round(0).Sub(last.Round(0)) // without the monotonic reading
		if drift := wall - now.Sub(last); drift > clockStep || drift < -clockStep {
			g.Log.Warn("the clock was set; what depends on time is decided again", "step", drift)
		}
		if now.Sub(last) >= tick || wall < 0 {
			last = now
			g.cut(g.registry.lapsed(now), api.ReasonError, "the lease ended and no decision could be had")
		}
		g.expire(g.registry.expired(now))
		t.Reset(g.registry.untilNext(now, last.Add(tick)))
	}
}

// expire revokes Grants whose decision has said when it ends: with the Session or, of
// a foreign Object that was deleted, when its connections have been drained.
func (g *Gate) expire(grants []*Grant) {
	for _, grant := range grants {
		if grant.conn.from.isForeign() {
			g.cut([]*Grant{grant}, api.ReasonRouteRemoved, grant.conn.from.object().String()+" was deleted, and the time to drain its connections is over")
		} else {
			g.cut([]*Grant{grant}, api.ReasonSessionExpired, "the Session expired")
		}
	}
}

// cut revokes Grants whose time is over.
func (g *Gate) cut(grants []*Grant, reason api.ReasonType, words string) {
	for _, grant := range grants {
		d := g.registry.decision(grant)
		d.Effect, d.Reason, d.Words, d.Rule = api.Deny, reason, words, nil
		grant.revoke(&d, words)
	}
}
