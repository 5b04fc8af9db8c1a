package copy

import (
	"math"
	"slices"
	"sync"
	"time"

	"cardea/relay"
)

const (
	// grain is the step in which limits of time are looked at, and so the longest
	// delay of one.
	grain = 100 * time.Millisecond
	// byteGrain is the same for limits of bytes, as long as there are any.
	byteGrain = 500 * time.Millisecond
)

// never is later than any time on the engine's clock.
const never = time.Duration(math.MaxInt64)

// sweeper cuts relays whose limits have passed. Its goroutine runs while a relay
// with limits is running. Engine.mu guards it.
type sweeper struct {
	watched map[*live]struct{}
	running bool
	wake    time.Duration // when it looks next
	nudge   chan struct{} // wake was moved forward, or watched became empty
}

// watch has the limits of l kept, as they stand now; if there are none, it has l
// forgotten.
func (e *Engine) watch(l *live) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := &e.sweeper
	switch {
	case l.gone:
	case !l.limited():
		e.unwatch(l)
	default:
		if s.watched == nil {
			s.watched = make(map[*live]struct{})
		}
		s.watched[l] = struct{}{}
		if !s.running {
			s.running, s.wake = true, never
			e.running++
			go e.sweep()
		}
		at, _ := l.due(e.now())
		if at = roundUp(at); at < s.wake {
			s.wake = at
			s.poke()
		}
	}
}

// forget ends the watching of a relay that is over.
func (e *Engine) forget(l *live) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l.gone = true
	e.unwatch(l)
}

// unwatch undoes watch. e.mu is held.
func (e *Engine) unwatch(l *live) {
	delete(e.sweeper.watched, l)
	if e.sweeper.running && len(e.sweeper.watched) == 0 {
		e.sweeper.poke()
	}
}

func (s *sweeper) poke() {
	select {
	case s.nudge <- struct{}{}:
	default: // a nudge is waiting already
	}
}

// sweep sleeps until a limit may have passed, cuts what is due, and so on until
// no relay is watched.
func (e *Engine) sweep() {
	defer e.leave()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			e.cut(e.overdue())
		case <-e.sweeper.nudge:
		}
		e.mu.Lock()
		if len(e.sweeper.watched) == 0 {
			e.sweeper.running = false
			e.mu.Unlock()
			return
		}
		timer.Reset(e.sweeper.wake - e.now())
		e.mu.Unlock()
	}
}

// ending is a relay that has outlived a limit.
type ending struct {
	live   *live
	reason relay.Reason
}

// cut cuts relays, many at a time if they are many.
func (*Engine) cut(all []ending) {
	var tasks sync.WaitGroup
	for some := range slices.Chunk(all, 256) {
		tasks.Go(func() {
			for _, x := range some {
				x.live.Cut(x.reason)
			}
		})
	}
	tasks.Wait()
}

// overdue returns the relays that have outlived a limit, and sets when to look
// again at the others.
func (e *Engine) overdue() []ending {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []ending
	next, now := never, e.now()
	for l := range e.sweeper.watched {
		if at, reason := l.due(now); at > now {
			next = min(next, at)
		} else {
			found = append(found, ending{l, reason})
		}
	}
	e.sweeper.wake = roundUp(next)
	return found
}

// roundUp returns the first whole grain that is not before at.
func roundUp(at time.Duration) time.Duration {
	if at > never-grain {
		return never
	}
	return (at + grain - 1) / grain * grain
}
