package upstream

import (
	"context"
	"sync"
	"time"

	"cardea/api"
	"cardea/upstream/balance"
)

// changeEvery is the time between two words about the health of one target, of which
// changeBurst may come at once: one that comes and goes all the time is told of so
// often, as it stands then.
const (
	changeEvery = 10 * time.Second
	changeBurst = 3
)

// changes are the changes of health that are to be told. They are noted while a Set is
// locked, and told by Run.
type changes struct {
	mu   sync.Mutex
	wake chan struct{} // has one when there is something to tell; nil while nobody runs
	rows map[*balance.Target]*change
}

// A change is what is to be told of a target.
type change struct {
	place    *place
	from, to api.HealthState // the same if there is nothing to tell
	words    string
	full     time.Time // when as much as changeBurst may be told again
}

// note notes a change.
func (c *changes) note(p *place, t *balance.Target, from, to api.HealthState, words string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wake == nil {
		return
	}
	row := c.rows[t]
	if row == nil {
		row = &change{place: p, from: from}
		c.rows[t] = row
	} else if row.from == row.to {
		row.from = from
	}
	row.to, row.words = to, words
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// due returns what may be told now, and when it is to be asked again if nothing else
// happens; the zero time is never.
func (c *changes) due(now time.Time) (list map[*balance.Target]change, next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	list = map[*balance.Target]change{}
	for t, row := range c.rows {
		again := row.full
		switch may := row.full.Add(-(changeBurst - 1) * changeEvery); {
		case row.from != row.to && may.After(now):
			again = may
		case row.from != row.to:
			list[t] = *row
			if row.from = row.to; row.full.Before(now) {
				row.full = now
			}
			row.full = row.full.Add(changeEvery)
			again = row.full
		case !row.full.After(now):
			delete(c.rows, t)
			continue
		}
		if next.IsZero() || again.Before(next) {
			next = again
		}
	}
	return list, next
}

// tell tells of changes until ctx is done.
func (d *Dialer) tell(ctx context.Context) {
	c := &d.changes
	c.mu.Lock()
	c.wake, c.rows = make(chan struct{}, 1), map[*balance.Target]*change{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.wake, c.rows = nil, nil
	}()
	for {
		list, next := c.due(time.Now())
		for t, row := range list {
			if d.Changed != nil {
				d.Changed(row.place.destination(), api.HealthInfo{Config: row.place.name, Endpoint: t.Group, Address: t.At(), From: row.from, To: row.to, Words: row.words})
			}
		}
		var later <-chan time.Time
		if !next.IsZero() {
			later = time.After(time.Until(next))
		}
		select {
		case <-c.wake:
		case <-later:
		case <-ctx.Done():
			return
		}
	}
}

// destination returns that of the place, of nobody's connection.
func (p *place) destination() api.Destination {
	return api.Destination{Service: p.key.service, Object: p.object, Config: p.shape.Load().configs[0]}
}
