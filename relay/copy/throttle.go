package copy

import (
	"math"
	"net"
	"time"
)

// beat is how long a direction is held back without looking round.
const beat = time.Second / 16

// throttle is a token bucket: it fills at the rate, and a byte that is delivered takes
// one token. It belongs to the goroutine of its direction.
type throttle struct {
	rate   int64   // bytes a second
	tokens float64 // at time at
	at     time.Duration
	timer  *time.Timer
}

// newThrottle returns a full bucket.
func newThrottle(rate int64, now time.Duration) *throttle {
	timer := time.NewTimer(math.MaxInt64)
	timer.Stop()
	t := &throttle{rate: rate, at: now, timer: timer}
	t.tokens = t.burst()
	return t
}

// burst is what the bucket holds: what may be delivered at once.
func (t *throttle) burst() float64 { return max(16<<10, float64(t.rate)/4) }

// worth is what direction waits for before it goes on, so as not to go on for each
// byte: as much as comes in one beat.
func (t *throttle) worth() float64 { return max(1, float64(t.rate)*beat.Seconds()) }

// fill brings the bucket up to now.
func (t *throttle) fill(now time.Duration) {
	t.tokens = min(t.burst(), t.tokens+(now-t.at).Seconds()*float64(t.rate))
	t.at = now
}

// setRate fills at another rate from now on. What the bucket holds stays, if it has
// room for it.
func (t *throttle) setRate(rate int64, now time.Duration) {
	t.fill(now)
	t.rate = rate
	t.tokens = min(t.tokens, t.burst())
}

// take counts n bytes that were delivered.
func (t *throttle) take(n int, now time.Duration) {
	t.fill(now)
	t.tokens -= float64(n)
}

// ready returns how many bytes may be delivered now, or else how long to wait.
func (t *throttle) ready(now time.Duration) (n int, wait time.Duration) {
	t.fill(now)
	if lacking := t.worth() - t.tokens; lacking > 0 {
		return 0, time.Duration(math.Ceil(lacking / float64(t.rate) * float64(time.Second)))
	}
	return int(min(t.tokens, math.MaxInt32)), 0
}

// allowance returns how many bytes may be delivered now, and waits until that is worth
// it. It fails when the relay is cut, or the source turns out to be gone: what was
// received from it, but not delivered, is lost then, as a reset does not wait.
func (d *direction) allowance() (int, error) {
	for {
		rate := d.rate.Load()
		if rate <= 0 {
			d.throttle = nil
			return math.MaxInt, nil
		}
		now := d.live.engine.now()
		if d.throttle == nil {
			d.throttle = newThrottle(rate, now)
		} else if d.throttle.rate != rate {
			d.throttle.setRate(rate, now)
		}
		n, wait := d.throttle.ready(now)
		if wait == 0 {
			return n, nil
		}
		d.throttle.timer.Reset(min(wait, beat))
		if !d.live.pause(d.throttle.timer) {
			return 0, net.ErrClosed
		}
		if err := d.from.gone(); err != nil {
			return 0, err
		}
	}
}
