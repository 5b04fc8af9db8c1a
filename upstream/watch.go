package upstream

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"cardea/api"
	"cardea/upstream/balance"
)

const (
	// maxProbes is the number of questions that are under way at once.
	maxProbes = 512
	// namesEvery is how often the names of what is checked are looked at.
	namesEvery = 5 * time.Second
	// spread is the time within which the first questions are asked.
	spread = time.Second

	defaultInterval       = 5 * time.Second
	defaultProbeTimeout   = 2 * time.Second
	defaultHealthyAfter   = 2
	defaultUnhealthyAfter = 3
)

// checks are the questions that are to be asked.
type checks struct {
	mu      sync.Mutex
	watches map[placeKey]*watch
	known   map[placeKey]api.Destination // that are not asked
	jobs    jobs
	running int
	wake    chan struct{} // has one when jobs are due that were not before; nil while nobody runs
}

// A watch is a config whose endpoints are asked.
type watch struct {
	place *place
	// What follows is guarded by the checks' mu.
	to      api.Destination
	names   *job // that looks at its names
	asked   map[*balance.Target]bool
	cancels map[*job]context.CancelFunc // of what is under way
	over    bool
}

// A job is a question that is asked again and again, or the look at names.
type job struct {
	at     time.Time
	watch  *watch
	target *balance.Target // nil for the look at names
	index  int             // in the heap; -1 while it is under way
	soon   bool            // it was to be done while it was under way
}

// jobs is a heap of jobs, the first first.
type jobs []*job

func (h jobs) Len() int           { return len(h) }
func (h jobs) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h jobs) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }

// Push implements heap.Interface.
func (h *jobs) Push(x any) {
	x.(*job).index = len(*h)
	*h = append(*h, x.(*job))
}

// Pop implements heap.Interface.
func (h *jobs) Pop() any {
	j := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	j.index = -1
	return j
}

// Watch says whose endpoints are asked whether they serve: those of all whose Config
// has Health.Check. It is the complete list each time. Run asks. Of the others it is known
// from then on, before anybody connects, how it stands with the Sessions that serve them.
func (d *Dialer) Watch(all []api.Destination) {
	c := &d.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches == nil {
		c.watches = map[placeKey]*watch{}
	}
	now := time.Now()
	wanted, known := map[placeKey]bool{}, map[placeKey]api.Destination{}
	for _, to := range all {
		if to.Config == nil {
			continue
		}
		p := d.watched(&to, true)
		if _, err := d.configure(p, to.Config); err != nil {
			continue
		}
		if h := to.Config.Upstream.Health; h == nil || h.Check == nil {
			known[p.key] = to
			continue
		}
		wanted[p.key] = true
		w := c.watches[p.key]
		if w == nil {
			w = &watch{place: p, asked: map[*balance.Target]bool{}, cancels: map[*job]context.CancelFunc{}}
			w.names = &job{watch: w, index: -1, at: now}
			c.watches[p.key] = w
			heap.Push(&c.jobs, w.names)
		} else if w.to.Config != to.Config {
			c.hasten(w.names, now)
		}
		w.to = to
	}
	for k, w := range c.watches {
		if wanted[k] {
			continue
		}
		delete(c.watches, k)
		w.over = true
		for _, cancel := range w.cancels {
			cancel()
		}
		if _, is := known[k]; !is {
			d.watched(&w.to, false)
		}
		w.place.set.Forget()
	}
	for k, to := range c.known {
		if _, is := known[k]; !is && !wanted[k] {
			d.watched(&to, false)
		}
	}
	c.known = known
	c.awake()
}

// watched returns the place of a destination, which is checked from now on, or is not.
func (d *Dialer) watched(to *api.Destination, is bool) *place {
	p := d.place(to)
	d.mu.Lock()
	defer d.mu.Unlock()
	p.watched = is
	return p
}

// hasten has a job done now. mu must be held.
func (c *checks) hasten(j *job, now time.Time) {
	if j.index < 0 {
		j.soon = true
		return
	}
	j.at = now
	heap.Fix(&c.jobs, j.index)
}

// awake wakes who does the jobs. mu must be held.
func (c *checks) awake() {
	select {
	case c.wake <- struct{}{}: // not if it is nil
	default:
	}
}

// work does the jobs until ctx is done.
func (d *Dialer) work(ctx context.Context) {
	c := &d.checks
	c.mu.Lock()
	wake := make(chan struct{}, 1)
	c.wake = wake
	c.mu.Unlock()
	var all sync.WaitGroup
	defer all.Wait()
	for ctx.Err() == nil {
		c.mu.Lock()
		now := time.Now()
		for c.running < maxProbes && len(c.jobs) > 0 && !c.jobs[0].at.After(now) {
			j := heap.Pop(&c.jobs).(*job)
			if j.watch.over {
				continue
			}
			c.running++
			asking, cancel := context.WithCancel(ctx)
			j.watch.cancels[j] = cancel
			to := j.watch.to
			all.Go(func() {
				next := d.do(asking, j, to)
				cancel()
				d.done(j, next)
			})
		}
		var later <-chan time.Time
		if c.running < maxProbes && len(c.jobs) > 0 {
			later = time.After(c.jobs[0].at.Sub(now))
		}
		c.mu.Unlock()
		select {
		case <-wake:
		case <-later:
		case <-ctx.Done():
		}
	}
}

// do does a job, and returns when it is to be done again; the zero time is never.
func (d *Dialer) do(ctx context.Context, j *job, to api.Destination) time.Time {
	now := time.Now()
	h := to.Config.Upstream.Health
	if j.target == nil {
		j.watch.place.follow()
		d.resolveAll(ctx, j.watch.place, 0)
		d.schedule(j.watch, h.Check.Interval.Or(defaultInterval))
		return now.Add(namesEvery)
	}
	d.ask(ctx, j.watch.place, j.target, to)
	interval := h.Check.Interval.Or(defaultInterval)
	return now.Add(interval - interval/20 + rand.N(interval/10+1)) // so that they do not come all at once
}

// schedule sees that all targets of a watch are asked.
func (d *Dialer) schedule(w *watch, interval time.Duration) {
	c := &d.checks
	targets := w.place.set.Targets()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range targets {
		if t.IsKnown() && !w.asked[t] {
			w.asked[t] = true
			heap.Push(&c.jobs, &job{at: time.Now().Add(rand.N(min(interval, spread))), watch: w, target: t})
		}
	}
}

// done puts a job that was done in its place.
func (d *Dialer) done(j *job, next time.Time) {
	c := &d.checks
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	delete(j.watch.cancels, j)
	switch {
	case j.target != nil && !j.watch.place.set.Has(j.target):
		delete(j.watch.asked, j.target)
	case !j.watch.over:
		if j.at = next; j.soon {
			j.at, j.soon = time.Now(), false
		}
		heap.Push(&c.jobs, j)
	}
	c.awake()
}

// ask asks a target, and sees to what follows from its answer.
func (d *Dialer) ask(ctx context.Context, p *place, t *balance.Target, to api.Destination) {
	h := to.Config.Upstream.Health
	failed := d.probe(ctx, p, t, to)
	if ctx.Err() != nil {
		return // nobody wants to know any more
	}
	words := ""
	if failed != nil {
		if words = failed.short(); h.Check.Port != 0 {
			words = fmt.Sprintf("port %d: %s", h.Check.Port, words)
		}
		words = cut(words)
	}
	from, state := p.set.Judge(t, failed == nil, words, cmp.Or(h.Check.HealthyAfter, defaultHealthyAfter), cmp.Or(h.Check.UnhealthyAfter, defaultUnhealthyAfter))
	if state == api.HealthUnhealthy && from != state && h.CloseOnUnhealthy && d.Unhealthy != nil {
		d.Unhealthy(to, t.At(), words)
	}
}

// maxShort is the number of bytes that are told of why a target does not serve.
const maxShort = 500

// cut returns words that are not too long.
func cut(words string) string {
	if len(words) > maxShort {
		return words[:maxShort] + "…"
	}
	return words
}
