package proxy

import (
	"context"
	"fmt"
	"runtime"
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

// renew keeps every held decision true until ctx is done: one goroutine follows
// the changes, one looks at the clock. It owns both.
func (g *Gate) renew(ctx context.Context) error {
	g.registry.mu.Lock()
	g.registry.init()
	g.registry.fresh = time.Now()
	g.registry.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { g.follow(ctx) })
	wg.Go(func() { g.watchClock(ctx) })
	wg.Wait()
	return nil
}

// follow works through the changes, and begins again, after the last one that it
// knows, when the stream breaks.
func (g *Gate) follow(ctx context.Context) {
	for ctx.Err() == nil {
		g.registry.mu.Lock()
		from := g.registry.seen
		g.registry.mu.Unlock()
		for c, err := range g.Decider.Changes(ctx, from) {
			if err != nil {
				g.Log.Warn("the stream of changes broke; leases run until it is back", "error", err)
				break
			}
			g.change(ctx, c)
		}
		select {
		case <-ctx.Done():
		case <-time.After(tick):
		}
	}
}

// change asks again for what a Change names. When it returns, whatever lost its
// right is cut.
func (g *Gate) change(ctx context.Context, c api.Change) {
	r := &g.registry
	now := time.Now()
	r.mu.Lock()
	// Before the index is read: a decision that is registered from now on is
	// either on the index or made again by catchUp.
	if c.All || c.Revision.Compare(r.seen) > 0 {
		r.seen = c.Revision
	}
	r.mu.Unlock()
	g.ask(ctx, r.naming(c.Keys, c.All), c.Revision)
	r.mu.Lock()
	r.fresh = now
	r.mu.Unlock()
}

// catchUp asks again for a Grant that was just registered, if a change was
// worked through between its decision and its registration: nobody else would.
func (g *Gate) catchUp(ctx context.Context, grant *Grant) {
	r := &g.registry
	r.mu.Lock()
	seen := r.seen
	behind := grant.held.Revision.Compare(seen) < 0
	r.mu.Unlock()
	if behind {
		g.askOne(ctx, grant, seen)
	}
}

// ask repeats the questions of grants, several at a time, and returns when all
// are answered.
func (g *Gate) ask(ctx context.Context, grants []*Grant, atLeast api.Revision) {
	workers := min(len(grants), 2*runtime.GOMAXPROCS(0))
	if workers <= 1 {
		for _, grant := range grants {
			g.askOne(ctx, grant, atLeast)
		}
		return
	}
	next := make(chan *Grant)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for grant := range next {
				g.askOne(ctx, grant, atLeast)
			}
		})
	}
	for _, grant := range grants {
		next <- grant
	}
	close(next)
	wg.Wait()
}

// askOne repeats the question of a Grant and acts on the answer.
func (g *Gate) askOne(ctx context.Context, grant *Grant, atLeast api.Revision) {
	r := &g.registry
	r.mu.Lock()
	req, config := grant.req, configName(&grant.held)
	over := grant.finished
	r.mu.Unlock()
	if over {
		return
	}
	asked := time.Now()
	req.Now, req.AtLeast = asked, atLeast
	dctx, cancel := context.WithTimeout(ctx, g.askTimeout())
	d, err := g.Decider.Decide(dctx, req)
	cancel()
	switch {
	case err != nil:
		// No answer. The lease runs on; the question is asked again at each tick.
		r.doubt(grant)
	case !d.Allowed():
		grant.revoke(&d, words(&d))
	case configName(&d) != config:
		d.Effect, d.Reason = api.Deny, api.ReasonConfig
		d.Words = fmt.Sprintf("config %q would be chosen now, not %q", configName(&d), config)
		grant.revoke(&d, d.Words)
	default:
		d.Config = grant.Config() // what is still allowed keeps what it has
		r.replace(grant, d, asked)
	}
}

func configName(d *api.Decision) string {
	if d.Config == nil {
		return ""
	}
	return d.Config.Name
}

func words(d *api.Decision) string {
	if d.Words != "" {
		return d.Words
	}
	return string(d.Reason)
}

// watchClock asks again for what reads the clock, cuts what expired, and ends
// leases.
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
			g.leases(ctx, now)
			g.settle(ctx)
		}
		g.expire(ctx, now)
		t.Reset(g.nextLook(now, last))
	}
}

// nextLook is how long to wait: to the next tick, or to the next expiry.
func (g *Gate) nextLook(now, last time.Time) time.Duration {
	wait := last.Add(tick).Sub(now)
	r := &g.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.expiries) > 0 {
		// Against the wall clock: an expiry is a point of time, not a distance.
		wait = min(wait, r.expiries[0].held.Until.Round(0).Sub(now.Round(0)))
	}
	return max(wait, 0)
}

// leases asks, once a tick, for all that reads the clock and all that is in
// doubt or not prolonged by heartbeats, and cuts what nobody answered for.
func (g *Gate) leases(ctx context.Context, now time.Time) {
	r := &g.registry
	var ask, over []*Grant
	r.mu.Lock()
	quiet := now.Sub(r.fresh) > 3*tick // no heartbeat: leases must be renewed one by one
	look := r.watched
	if quiet {
		look = r.held
	}
	for grant := range look {
		end := r.leaseEnd(grant)
		switch {
		case now.After(end):
			over = append(over, grant)
		case grant.doubt || grant.held.TimeBound || end.Sub(now) < grant.held.Lease/2:
			ask = append(ask, grant)
		}
	}
	seen := r.seen
	r.mu.Unlock()
	for _, grant := range over {
		d := r.decision(grant)
		d.Effect, d.Reason, d.Words = api.Deny, api.ReasonError, "the lease ended and no decision could be had"
		grant.revoke(&d, d.Words)
	}
	g.ask(ctx, ask, seen)
}

// expire asks again for what ends by now; what is not prolonged is cut.
func (g *Gate) expire(ctx context.Context, now time.Time) {
	r := &g.registry
	var due []*Grant
	r.mu.Lock()
	wall := now.Round(0)
	for len(r.expiries) > 0 && !r.expiries[0].held.Until.Round(0).After(wall) {
		grant := r.expiries[0]
		r.leave(grant)
		grant.held.Until = time.Time{}
		r.enter(grant)
		due = append(due, grant)
	}
	seen := r.seen
	r.mu.Unlock()
	g.ask(ctx, due, seen)
	for _, grant := range due {
		if d := r.decision(grant); d.Until.IsZero() && grant.isLive() {
			// It was not answered: what was known to end has ended.
			d.Effect, d.Reason, d.Words = api.Deny, api.ReasonSessionExpired, "the Session expired"
			grant.revoke(&d, d.Words)
		}
	}
}

func (g *Grant) isLive() bool {
	select {
	case <-g.done:
		return false
	default:
		return true
	}
}

func (g *Gate) askTimeout() time.Duration {
	if g.AskTimeout > 0 {
		return g.AskTimeout
	}
	return 5 * time.Second
}
