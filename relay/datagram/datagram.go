// Package datagram is the relay engine of flows: pairs of which both sides keep the
// boundaries of datagrams (see relay.Datagram). What was read as one datagram is written
// as one, or not at all: nothing is cut in two, joined, or sent twice.
//
// A flow has no end of its own. It ends when a side ends or breaks off, when nothing has
// passed for a while, at a limit, or when it is cut; then both sides are closed. What can
// not be written is lost, as on any network: a datagram that is too large for the other
// side, that finds no room, or that is over a limit of bytes a second.
//
// Each flow has two goroutines, one for each direction, and while nothing passes no
// buffer, as far as its sides can be waited on without one.
package datagram

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/relay"
)

// DefaultIdle ends a flow on which nothing has passed for so long, if its limits do not
// say: there is nothing else by which it could be known that a client has gone.
const DefaultIdle = 60 * time.Second

// Engine is a relay.Engine for pairs of which both sides are datagrams. Make one with New.
type Engine struct {
	epoch   time.Time
	buffers sync.Pool

	mu      sync.Mutex
	running int        // flows whose done has not returned, and timers that may fire
	idle    *sync.Cond // running became zero
}

var _ relay.Engine = (*Engine)(nil)

// New returns an engine at rest.
func New() *Engine {
	e := &Engine{epoch: time.Now(), buffers: sync.Pool{New: func() any { return new([relay.MaxDatagram]byte) }}}
	e.idle = sync.NewCond(&e.mu)
	return e
}

// Wait implements relay.Engine.
func (e *Engine) Wait() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.running > 0 {
		e.idle.Wait()
	}
}

func (e *Engine) enter() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running++
}

func (e *Engine) leave() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running--; e.running == 0 {
		e.idle.Broadcast()
	}
}

// now is the time on the engine's clock.
func (e *Engine) now() time.Duration { return time.Since(e.epoch) }

// Start implements relay.Engine. A side that is no datagram ends the flow at once
// (ProtocolError).
func (e *Engine) Start(p relay.Pair, done func(relay.Result)) relay.Live {
	now := e.now()
	f := &flow{engine: e, done: done, client: p.Client, upstream: p.Upstream, start: now, limits: p.Limits, running: 2}
	f.active.Store(int64(now))
	f.up = direction{flow: f, from: newSource(p.Client), to: p.Upstream, closed: relay.ClientClosed, lost: relay.ClientReset, deaf: relay.UpstreamReset}
	f.down = direction{flow: f, from: newSource(p.Upstream), to: p.Client, closed: relay.UpstreamClosed, lost: relay.UpstreamReset, deaf: relay.ClientReset}
	f.up.bucket.since, f.down.bucket.since = now, now
	f.up.bucket.full(p.Limits.Upload)
	f.down.bucket.full(p.Limits.Download)
	p.Client.SetDeadline(time.Time{}) // a closed conn says so when it is read
	p.Upstream.SetDeadline(time.Time{})
	e.enter()
	f.mu.Lock()
	f.arm()
	f.mu.Unlock()
	if !relay.IsDatagram(p.Client) || !relay.IsDatagram(p.Upstream) {
		f.Cut(relay.ProtocolError)
	}
	go f.up.run()
	go f.down.run()
	return f
}

// A flow is a relay of datagrams.
type flow struct {
	engine           *Engine
	done             func(relay.Result)
	client, upstream net.Conn
	up, down         direction
	start            time.Duration // on the engine's clock, as all times
	active           atomic.Int64  // when a datagram was last delivered

	mu      sync.Mutex
	limits  relay.Limits
	timer   *time.Timer // at the earliest time at which a limit may have passed
	timers  int         // how many there were: the last one counts
	running int         // directions that have not ended
	ended   bool        // both sides are closed, or about to be
	reason  relay.Reason
	err     error
}

// Bytes implements relay.Live.
func (f *flow) Bytes() (received, sent int64) { return f.up.bytes.Load(), f.down.bytes.Load() }

// Cut implements relay.Live.
func (f *flow) Cut(r relay.Reason) { f.end(r, nil) }

// end closes both sides, once. What the first says is the result.
func (f *flow) end(r relay.Reason, err error) {
	f.mu.Lock()
	if f.ended {
		f.mu.Unlock()
		return
	}
	f.ended, f.reason, f.err = true, r, err
	f.disarm()
	f.mu.Unlock()
	if r == relay.ClientClosed || r == relay.UpstreamClosed {
		f.client.Close()
		f.upstream.Close()
		return
	}
	relay.Reset(f.client, r)
	relay.Reset(f.upstream, r)
}

// Limit implements relay.Live.
func (f *flow) Limit(l relay.Limits) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return
	}
	f.limits = l
	f.disarm()
	f.arm()
}

// arm sets the timer. f.mu is held.
func (f *flow) arm() {
	if f.ended {
		return
	}
	at, _ := f.due()
	f.timers++
	this := f.timers
	f.engine.enter() // until it has fired, or was stopped
	f.timer = time.AfterFunc(at-f.engine.now(), func() {
		defer f.engine.leave()
		f.look(this)
	})
}

// disarm stops the timer. f.mu is held.
func (f *flow) disarm() {
	if f.timer.Stop() {
		f.engine.leave()
	}
}

// look ends the flow if a limit of time has passed. timer says which one has fired.
func (f *flow) look(timer int) {
	f.mu.Lock()
	if f.ended || f.timers != timer { // another one looks
		f.mu.Unlock()
		return
	}
	at, reason := f.due()
	if f.engine.now() < at {
		f.arm()
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	f.end(reason, nil)
}

// due returns when a limit of time will have passed if nothing more does, and which.
// f.mu is held.
func (f *flow) due() (time.Duration, relay.Reason) {
	idle := f.limits.Idle
	if idle <= 0 {
		idle = DefaultIdle
	}
	at := time.Duration(f.active.Load()) + idle
	if end := f.start + f.limits.Duration; f.limits.Duration > 0 && end < at {
		return end, relay.MaxDuration
	}
	return at, relay.IdleTimeout
}

// leave is the last act of a direction. The second reports.
func (f *flow) leave() {
	f.mu.Lock()
	f.running--
	last := f.running == 0
	result := relay.Result{
		Received: f.up.bytes.Load(), Sent: f.down.bytes.Load(),
		ReceivedPackets: f.up.packets.Load(), SentPackets: f.down.packets.Load(), Reason: f.reason, Err: f.err,
	}
	f.mu.Unlock()
	if last {
		f.done(result)
		f.engine.leave()
	}
}

// A direction carries datagrams from one side to the other.
type direction struct {
	flow         *flow
	from         source
	to           net.Conn
	closed, lost relay.Reason // what to say when from ends, or breaks off
	deaf         relay.Reason // when to does

	bytes, packets atomic.Int64 // that were delivered
	bucket         bucket       // of run alone
}

func (d *direction) run() {
	f := d.flow
	defer f.leave()
	for {
		b, n, err := d.from.read(&f.engine.buffers)
		if err != nil {
			f.end(d.ending(err))
			return
		}
		err = d.pass(b[:n])
		f.engine.buffers.Put(b)
		if err != nil {
			f.end(d.deaf, err)
			return
		}
	}
}

// ending says how a flow ends whose source failed.
func (d *direction) ending(err error) (relay.Reason, error) {
	if errors.Is(err, io.EOF) {
		return d.closed, nil
	}
	return d.lost, err
}

// pass delivers a datagram, unless it is to be lost.
func (d *direction) pass(p []byte) error {
	f := d.flow
	now := f.engine.now()
	f.mu.Lock()
	limits := f.limits
	f.mu.Unlock()
	rate := limits.Upload
	if d == &f.down {
		rate = limits.Download
	}
	if !d.bucket.take(now, rate, len(p)) {
		return nil
	}
	if _, err := d.to.Write(p); err != nil {
		if isLoss(err) {
			return nil
		}
		return err
	}
	d.bytes.Add(int64(len(p)))
	d.packets.Add(1)
	f.active.Store(int64(f.engine.now()))
	if received, sent := f.Bytes(); limits.Bytes > 0 && received+sent >= limits.Bytes {
		f.end(relay.Limit, nil)
	}
	return nil
}

// isLoss tells whether a write failed for this datagram alone: it was too large for the
// way, or there was no room for it.
func isLoss(err error) bool {
	return errors.Is(err, syscall.EMSGSIZE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM)
}

// A bucket holds how many bytes may pass now. A datagram may pass whole if there is one
// byte left for it; what it is over is taken from what comes later.
type bucket struct {
	since time.Duration
	holds float64
}

// leastBurst is how many bytes may pass at once whatever the rate is.
const leastBurst = 16 << 10

// burst is how many bytes may pass at once at a rate.
func burst(rate int64) float64 { return float64(max(rate/4, leastBurst)) }

func (b *bucket) full(rate int64) { b.holds = burst(rate) }

// take reports whether n bytes may pass at a rate, in bytes a second; 0 is any.
func (b *bucket) take(now time.Duration, rate int64, n int) bool {
	if rate <= 0 {
		b.since = now
		b.full(rate)
		return true
	}
	b.holds = min(b.holds+(now-b.since).Seconds()*float64(rate), burst(rate))
	b.since = now
	if b.holds < 1 {
		return false
	}
	b.holds -= float64(n)
	return true
}
