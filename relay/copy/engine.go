// Package copy is the portable relay engine: two goroutines for each pair, one
// for each direction.
//
// Between two TCP connections on Linux a direction waits without a buffer,
// carries small messages through a small pooled buffer, and moves to splice(2)
// through a pooled pipe for as long as reads fill that buffer. So an idle relay
// holds two descriptors and no buffer. Between other streams, and on other
// systems, it copies through pooled buffers. A stream that can only be waited on
// by reading it holds a small one while it is idle, and a large one for a second
// after bulk.
//
// A direction that has finished stays, without a buffer, for as long as the other
// goes on: it waits for the news that its source is gone.
//
// Limits of time and of bytes cost no system call, lock or timer per relay: one
// goroutine looks at the relays that have them when the earliest may have passed, at
// most ten times a second, and for bytes twice a second. Such a limit therefore ends a
// relay up to 100 ms late, or half a second.
//
// A direction with a rate reads no more than it may deliver, and so holds neither
// buffer nor pipe while it is held back. It looks sixteen times a second whether its
// source is gone, as far as the kernel knows; otherwise that shows at its next read.
package copy

import (
	"sync"
	"time"

	"cardea/relay"
)

// Engine is a relay.Engine. Make one with New. It has no goroutine and no
// descriptor of its own while no relay is running.
type Engine struct {
	epoch    time.Time
	buffers  buffers
	pipes    pipes
	patience time.Duration // what plainSource has

	mu      sync.Mutex
	running int        // relays whose done has not returned, and the sweeper
	idle    *sync.Cond // running became zero
	sweeper sweeper
}

var _ relay.Engine = (*Engine)(nil)

// New returns an engine at rest.
func New() *Engine {
	e := &Engine{epoch: time.Now(), patience: patience}
	e.idle = sync.NewCond(&e.mu)
	e.sweeper.nudge = make(chan struct{}, 1)
	return e
}

// Start implements relay.Engine.
func (e *Engine) Start(p relay.Pair, done func(relay.Result)) relay.Live {
	l := &live{engine: e, done: done, start: e.now(), carrying: 2, running: 2}
	l.setLimits(p.Limits)
	l.client.init(p.Client, relay.ClientClosed, relay.ClientReset)
	l.upstream.init(p.Upstream, relay.UpstreamClosed, relay.UpstreamReset)
	l.up.init(l, &l.client, &l.upstream)
	l.down.init(l, &l.upstream, &l.client)

	e.enter()
	if l.limited() {
		e.watch(l)
	}
	go l.up.run()
	go l.down.run()
	return l
}

// Wait implements relay.Engine.
func (e *Engine) Wait() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.running > 0 {
		e.idle.Wait()
	}
}

// now is the time on the engine's clock, which wall clock steps do not move.
func (e *Engine) now() time.Duration { return time.Since(e.epoch) }

// enter counts one relay, or the sweeper, as running.
func (e *Engine) enter() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running++
}

// leave undoes enter. The last to leave gives the pooled descriptors back.
func (e *Engine) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running--
	if e.running == 0 {
		e.pipes.close()
		e.idle.Broadcast()
	}
}
