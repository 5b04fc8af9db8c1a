//go:build linux

package loop

import (
	"math"
	"time"

	"golang.org/x/sys/unix"

	"cardea/relay"
)

// grace is added to each limit of time, because the clock of a loop stands still while
// it goes through a batch: no limit ends a relay early.
const grace = 20 * time.Millisecond

// terms are the limits of a relay.
type terms struct {
	relay.Limits
	rates *[2]bucket // nil without Upload and Download
}

// bucket says how many bytes of a way may go now: a token bucket. What was read beyond
// is owed.
type bucket struct {
	tokens float64
	at     time.Duration // when tokens was right
	again  time.Duration // when the way, which is throttled, may go on; 0 if it is not
}

// setLimits puts limits in the place of those that there are.
func (c *live) setLimits(n relay.Limits) {
	switch {
	case c.phase == over:
		return
	case c.terms != nil:
		c.terms.Limits = n
	case n != relay.Limits{}:
		c.terms = &terms{Limits: n}
	}
	if t := c.terms; t != nil && t.rates == nil && (n.Upload > 0 || n.Download > 0) {
		t.rates = &[2]bucket{}
		for i := range t.rates {
			t.rates[i] = bucket{tokens: burst(t.rate(i)), at: c.loop.now}
		}
	}
	for i := range c.ways {
		if c.throttled(i) {
			c.terms.rates[i].again = c.loop.now
		}
	}
	if c.phase == relaying && !c.full() {
		c.expire()
	}
}

// full ends the relay if it has carried as much as it may, and reports that.
func (c *live) full() bool {
	if c.terms == nil || c.terms.Bytes == 0 {
		return false
	}
	if up, down := c.Bytes(); up+down < c.terms.Bytes {
		return false
	}
	c.cut(relay.Limit, nil)
	return true
}

// rate returns how many bytes a second way i may carry, 0 for any.
func (t *terms) rate(i int) float64 {
	if i == client {
		return float64(t.Upload)
	}
	return float64(t.Download)
}

// burst is what may go at once.
func burst(rate float64) float64 { return max(16<<10, rate/4) }

// allowed returns how many bytes of way i may be read now, most of want. If that is
// none, the way goes on when it may.
func (c *live) allowed(i, want int) int {
	if c.terms == nil {
		return want
	}
	rate := c.terms.rate(i)
	if rate == 0 {
		return want
	}
	b := &c.terms.rates[i]
	b.tokens = min(burst(rate), b.tokens+rate*(c.loop.now-b.at).Seconds())
	b.at, b.again = c.loop.now, 0
	// Few large pieces cost less than many small ones.
	least := min(burst(rate)/4, max(1, rate/20))
	if b.tokens >= least {
		return min(want, int(b.tokens))
	}
	wait := math.Ceil((least - b.tokens) / rate * float64(time.Second))
	b.again = c.loop.now + time.Duration(wait)
	c.schedule()
	return 0
}

// throttled reports whether way i waits until it may carry more.
func (c *live) throttled(i int) bool {
	return c.terms != nil && c.terms.rates != nil && c.terms.rates[i].again > 0
}

// spend takes n bytes of way i as read.
func (c *live) spend(i, n int) {
	if c.terms != nil && c.terms.rate(i) > 0 {
		c.terms.rates[i].tokens -= float64(n)
	}
}

// due returns the earliest time at which a limit may have passed, as things stand, and
// the reason if it has passed then.
func (c *live) due() (at time.Duration, r relay.Reason) {
	at, r = never, relay.IdleTimeout
	t := c.terms
	if t == nil || c.phase != relaying {
		return at, r
	}
	if t.Idle > 0 {
		at = c.active + t.Idle
	}
	if t.HalfClose > 0 && c.clean > 0 {
		at = min(at, max(c.half, c.active)+t.HalfClose)
	}
	if end := c.began + t.Duration; t.Duration > 0 && end < at {
		at, r = end, relay.MaxDuration
	}
	if at != never {
		at += grace
	}
	return at, r
}

// schedule has the loop look at c when there may be something to do for it.
func (c *live) schedule() {
	at, _ := c.due()
	if c.until > 0 {
		at = min(at, c.until)
	}
	for i := range c.ways {
		if c.throttled(i) {
			at = min(at, c.terms.rates[i].again)
		}
	}
	if !c.kept && c.phase == relaying {
		at = min(at, c.began+keepAfter)
	}
	c.loop.wheel.by(c, at, c.loop.now)
}

// expire does what its time has come for.
func (c *live) expire() {
	now := c.loop.now
	if c.until > 0 && c.until <= now {
		c.until = 0
		switch c.phase {
		case held:
			c.sock.late()
		case connecting:
			c.failed(unix.ETIMEDOUT)
		case relaying:
			c.finish() // its last words were not heard in time
		}
	}
	if c.phase == relaying {
		if at, reason := c.due(); at <= now {
			c.cut(reason, nil)
			return
		}
		if !c.kept && c.began+keepAfter <= now {
			c.kept = true
			keepAlive(c.legs[upstream].fd)
		}
		for i := range c.ways {
			if c.phase == relaying && c.throttled(i) && c.terms.rates[i].again <= now {
				c.terms.rates[i].again = 0
				c.carry(i)
			}
		}
	}
	if c.phase != over {
		c.schedule()
	}
}
