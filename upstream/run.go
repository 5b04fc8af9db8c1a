package upstream

import (
	"context"
	"sync"
	"time"
)

const (
	// tickEvery is how often it is looked for names that are to be resolved again, and
	// for endpoints whose ejection is over.
	tickEvery = time.Second
	// aheadTime is how long before their end answers are asked for again, so that no
	// connection waits for that; usedTime is for how long after the last one.
	aheadTime = 2 * time.Second
	usedTime  = 30 * time.Second
	// keptTime is for how long a config is remembered after its last connection.
	keptTime = time.Hour
	// maxRenewals is the number of configs whose names are resolved again at once.
	maxRenewals = 16
)

// Run asks what Watch says, tells Changed and Unhealthy, and resolves the names that are
// in use again before their time is over, until ctx is done; then it returns nil, when
// nothing that it has begun goes on. A Dialer can do without it, but for these.
func (d *Dialer) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { d.tell(ctx) })
	all.Go(func() { d.work(ctx) })
	all.Go(func() { d.renew(ctx) })
	<-ctx.Done()
	return nil
}

// renew ends ejections, and resolves names again.
func (d *Dialer) renew(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	busy := make(chan struct{}, maxRenewals)
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := d.names.time()
		for _, p := range d.all() {
			p.set.Tick(now)
			s := p.shape.Load()
			unused := time.Since(time.Unix(p.used.Load(), 0))
			if unused > keptTime {
				d.mu.Lock()
				d.forget(p)
				d.mu.Unlock()
			}
			if s == nil || !s.named || unused > usedTime || p.set.Fresh(now.Add(aheadTime)) || !p.renewing.CompareAndSwap(false, true) {
				continue
			}
			select {
			case busy <- struct{}{}:
			default:
				p.renewing.Store(false)
				continue // the next time
			}
			all.Go(func() {
				defer func() {
					p.renewing.Store(false)
					<-busy
				}()
				d.resolveAll(ctx, p, aheadTime)
			})
		}
	}
}

// all returns all places.
func (d *Dialer) all() []*place {
	d.mu.RLock()
	defer d.mu.RUnlock()
	list := make([]*place, 0, len(d.places))
	for _, p := range d.places {
		list = append(list, p)
	}
	return list
}

// resolveAll resolves the names of a place that hold no longer than ahead. What cannot
// be resolved is left to who dials.
func (d *Dialer) resolveAll(ctx context.Context, p *place, ahead time.Duration) {
	for range 2 { // names of SRV records, then what they lead to
		for _, s := range p.stale(d.names.time().Add(ahead)) {
			within, cancel := context.WithTimeout(ctx, DefaultTimeout)
			d.resolveSource(within, p, s, ahead)
			cancel()
		}
	}
}
