//go:build linux

package loop

import (
	"math/bits"
	"time"
)

const (
	// tick is how exact the times of a loop are: nothing comes early, and nothing
	// much more than a tick late.
	tick = 4 * time.Millisecond
	// spokes is how many ticks a wheel has. What is later waits for more than a turn.
	spokes = 1024
	// coarse is what times further away than farAway are rounded up to, so that many
	// idle relays do not wake a loop each at its own time. It divides a turn.
	coarse  = 32 * tick
	farAway = time.Second
	never   = time.Duration(1<<63 - 1)
)

// timer is a place on a wheel, in the struct that it is for.
type timer struct {
	at         int64 // tick; 0 if it is on no wheel
	next, prev *live
}

// wheel is a timer wheel: relays in lists, by the tick at which they want to be looked
// at. Setting and clearing cost the same however many there are.
type wheel struct {
	done  int64 // the last tick that was handled
	count int
	heads [spokes]*live
	used  [spokes / 64]uint64 // spokes that have a list
}

// by has c looked at not before at, and not later than it was to be.
func (w *wheel) by(c *live, at, now time.Duration) {
	if at == never {
		return
	}
	if at-now > farAway {
		at = (at + coarse - 1) / coarse * coarse
	}
	t := max(int64((at+tick-1)/tick), w.done+1)
	if c.timer.at != 0 {
		if c.timer.at <= t {
			return
		}
		w.clear(c)
	}
	i := t % spokes
	c.timer = timer{at: t, next: w.heads[i]}
	if c.timer.next != nil {
		c.timer.next.timer.prev = c
	}
	w.heads[i] = c
	w.used[i/64] |= 1 << (i % 64)
	w.count++
}

// clear takes c off.
func (w *wheel) clear(c *live) {
	if c.timer.at == 0 {
		return
	}
	if c.timer.next != nil {
		c.timer.next.timer.prev = c.timer.prev
	}
	if c.timer.prev != nil {
		c.timer.prev.timer.next = c.timer.next
	} else {
		i := c.timer.at % spokes
		w.heads[i] = c.timer.next
		if w.heads[i] == nil {
			w.used[i/64] &^= 1 << (i % 64)
		}
	}
	c.timer = timer{}
	w.count--
}

// next returns when there may be something to look at.
func (w *wheel) next() time.Duration {
	if w.count == 0 {
		return never
	}
	first := (w.done + 1) % spokes
	word := w.used[first/64] >> (first % 64) << (first % 64)
	for n := range int64(len(w.used) + 1) {
		i := (first/64 + n) % int64(len(w.used))
		if n > 0 {
			word = w.used[i]
		}
		if word != 0 {
			spoke := i*64 + int64(bits.TrailingZeros64(word))
			return time.Duration(w.done+1+(spoke-first+spokes)%spokes) * tick
		}
	}
	return never
}

// due takes off and yields what was to be looked at by now.
func (w *wheel) due(now time.Duration, look func(*live)) {
	for last := int64(now / tick); w.done < last && w.count > 0; {
		w.done++
		for c := w.heads[w.done%spokes]; c != nil; {
			next := c.timer.next
			if c.timer.at <= w.done {
				w.clear(c)
				look(c)
			}
			c = next
		}
	}
	w.done = max(w.done, int64(now/tick))
}
