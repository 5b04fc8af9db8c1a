package copy

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/relay"
)

// lastWords bounds how long a stream that can no longer be written to is still
// read: a peer that says why and hangs up should be heard.
const lastWords = time.Second

// live is one relay. Its two directions run on their own and meet here.
type live struct {
	engine           *Engine
	done             func(relay.Result)
	client, upstream leg
	up, down         direction     // client to upstream, upstream to client
	start            time.Duration // all times are on the engine's clock
	idles            atomic.Bool   // limits.Idle or limits.HalfClose is set
	active           atomic.Int64  // when a byte was last delivered; kept up only if idles

	mu       sync.Mutex
	limits   relay.Limits
	carrying int           // directions that have not stopped
	running  int           // directions that have not left
	clean    int           // directions that have finished
	first    relay.Reason  // which side finished first
	half     time.Duration // when it did
	reason   relay.Reason  // why the relay is being cut short, or empty
	err      error         // detail of reason
	over     bool          // both directions have stopped: nothing is left to cut
	broken   bool          // both legs are being reset
	news     chan struct{} // for whoever pauses: closed when limits change or the legs are reset

	gone bool // it is not to be watched any more; Engine.mu guards it
}

// Bytes implements relay.Live.
func (l *live) Bytes() (received, sent int64) {
	return l.up.moved.Load(), l.down.moved.Load()
}

// Cut implements relay.Live.
func (l *live) Cut(r relay.Reason) {
	if l.fail(r, nil) {
		l.reset()
	}
}

// Limit implements relay.Live.
func (l *live) Limit(n relay.Limits) {
	l.setLimits(n)
	l.engine.watch(l)
}

func (l *live) setLimits(n relay.Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if idles := n.Idle > 0 || n.HalfClose > 0; idles != l.idles.Load() {
		l.active.Store(int64(l.engine.now())) // nobody took note until now
		l.idles.Store(idles)
	}
	l.limits = n
	l.up.rate.Store(n.Upload)
	l.down.rate.Store(n.Download)
	l.wake()
}

// limited reports whether there is a limit for the sweeper to keep.
func (l *live) limited() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.limits
	n.Upload, n.Download = 0, 0
	return n != relay.Limits{}
}

// pause waits until the timer fires, limits change or the legs are reset, and reports
// whether they are not.
func (l *live) pause(timer *time.Timer) bool {
	l.mu.Lock()
	if l.news == nil {
		l.news = make(chan struct{})
	}
	broken, news := l.broken, l.news
	l.mu.Unlock()
	if broken {
		return false
	}
	select {
	case <-timer.C:
	case <-news:
	}
	return true
}

// wake ends all pauses. l.mu is held.
func (l *live) wake() {
	if l.news != nil {
		close(l.news)
		l.news = nil
	}
}

// fail records why the relay is cut short, unless that is known already. It
// reports whether there is still something to cut.
func (l *live) fail(r relay.Reason, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	if l.reason == "" {
		l.reason, l.err = r, err
	}
	return true
}

// reset aborts both legs, which ends both directions. fail comes first.
func (l *live) reset() {
	l.mu.Lock()
	reason := l.reason
	l.broken = true
	l.wake()
	l.mu.Unlock()
	l.client.reset(reason)
	l.upstream.reset(reason)
}

// finished is called by a direction that met its clean end. It reports whether
// that end may be passed on: not when the relay is being cut short.
func (l *live) finished(d *direction) bool {
	l.mu.Lock()
	if l.reason != "" {
		l.mu.Unlock()
		return false
	}
	l.clean++
	limited := false
	if l.clean == 1 {
		l.first, l.half = d.from.closed, l.engine.now()
		limited = l.limits.HalfClose > 0
	}
	l.mu.Unlock()
	if limited {
		l.engine.watch(l)
	}
	return true
}

// hangUp ends the relay because d has finished and its end can only be told by
// closing: what d.from could still have been sent is lost, so it is reset.
func (l *live) hangUp(d *direction) {
	l.mu.Lock()
	both, first := l.clean == 2, l.first
	l.mu.Unlock()
	if both || !l.fail(first, nil) {
		return // the last direction to stop closes both legs
	}
	d.to.close()
	l.reset()
}

// deaf is called by a direction that could not write to its end. What that end
// had sent before it went may still wait to be read: the other direction is left
// to deliver it, but not for long. Otherwise it would be a matter of luck whether
// a client reads the answer of an upstream that did not want all it was sent.
func (l *live) deaf(d *direction) {
	l.mu.Lock()
	alone := l.carrying == 1
	l.mu.Unlock()
	until := time.Now().Add(lastWords)
	if alone || d.to.readLast(until) != nil || d.from.conn.SetWriteDeadline(until) != nil {
		l.reset()
	}
}

// stopped is called by each direction when it carries no more. The second, to
// which it reports true, closes what is left.
func (l *live) stopped() (last bool) {
	l.mu.Lock()
	l.carrying--
	l.over = l.carrying == 0
	last, clean := l.over, l.reason == ""
	l.mu.Unlock()
	switch {
	case !last:
	case clean:
		l.client.close()
		l.upstream.close()
	default:
		l.reset()
	}
	return last
}

// leave is the last act of each direction. The second reports.
func (l *live) leave() {
	l.mu.Lock()
	l.running--
	if l.running > 0 {
		l.mu.Unlock()
		return
	}
	result := relay.Result{Received: l.up.moved.Load(), Sent: l.down.moved.Load(), Reason: l.reason, Err: l.err}
	if result.Reason == "" {
		result.Reason = l.first
	}
	l.mu.Unlock()
	l.engine.forget(l)
	l.done(result)
	l.engine.leave()
}

// due returns the earliest time at which a limit may have passed, as things stand
// now, and the reason if it has passed then. That is now for a limit of bytes that has
// passed, and for another the time to look again.
func (l *live) due(now time.Duration) (at time.Duration, r relay.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, r = never, relay.IdleTimeout
	active := time.Duration(l.active.Load())
	if l.limits.Idle > 0 {
		at = active + l.limits.Idle
	}
	if l.limits.HalfClose > 0 && l.clean > 0 {
		at = min(at, max(l.half, active)+l.limits.HalfClose)
	}
	if end := l.start + l.limits.Duration; l.limits.Duration > 0 && end < at {
		at, r = end, relay.MaxDuration
	}
	if l.limits.Bytes > 0 {
		switch received, sent := l.Bytes(); {
		case received+sent >= l.limits.Bytes:
			at, r = now, relay.Limit
		default:
			at = min(at, (now/byteGrain+1)*byteGrain)
		}
	}
	return at, r
}

// leg is one of the two streams.
type leg struct {
	outer  net.Conn        // as given: what is closed and reset
	conn   net.Conn        // what is read, written and half-closed: outer, or what is beneath a Transparent
	raw    syscall.RawConn // of the TCP connection at the bottom, or nil
	unread []byte          // read ahead by a Transparent

	last         atomic.Pointer[time.Time] // when reading ends, whatever else, or nil
	closed, lost relay.Reason              // what to say when this side finishes first, or is reset
	shut         atomic.Bool               // our sending direction was finished, or is about to be
	end          sync.Once                 // outer is closed or reset, once
}

func (g *leg) init(c net.Conn, closed, lost relay.Reason) {
	g.outer, g.conn, g.closed, g.lost = c, c, closed, lost
	for {
		t, ok := g.conn.(relay.Transparent)
		if !ok {
			break
		}
		// What a lower layer has read ahead came after what this one has.
		g.unread = append(g.unread, t.Unread()...)
		g.conn = t.NetConn()
	}
	if tcp := bottom(g.conn); tcp != nil {
		g.raw, _ = tcp.SyscallConn() // it fails for a nil connection only
	}
	g.conn.SetDeadline(time.Time{}) // a closed stream says so when it is read
}

// readLast sets a deadline for reading that nothing moves any more.
func (g *leg) readLast(t time.Time) error {
	g.last.Store(&t)
	return g.conn.SetReadDeadline(t)
}

// readBy sets a deadline for reading, unless there is a last one.
func (g *leg) readBy(t time.Time) error {
	err := g.conn.SetReadDeadline(t)
	if last := g.last.Load(); last != nil { // it may just have been overwritten
		err = g.conn.SetReadDeadline(*last)
	}
	return err
}

// isLast reports whether the last deadline for reading has passed.
func (g *leg) isLast() bool {
	last := g.last.Load()
	return last != nil && !time.Now().Before(*last)
}

// bottom returns the TCP connection that carries c, or nil.
func bottom(c net.Conn) *net.TCPConn {
	for {
		switch s := c.(type) {
		case *net.TCPConn:
			return s
		case relay.Layered:
			c = s.NetConn()
		default:
			return nil
		}
	}
}

// closeWrite passes on the end of the other direction. It fails with
// errors.ErrUnsupported if the stream cannot be half-closed.
func (g *leg) closeWrite() error {
	c, ok := g.conn.(relay.CloseWriter)
	if !ok {
		return errors.ErrUnsupported
	}
	g.shut.Store(true)
	err := c.CloseWrite()
	if errors.Is(err, syscall.ENOTCONN) { // the kernel has closed it, which only a reset or a loss does
		return &goneError{g}
	}
	return err
}

// A goneError is that the peer of a leg was gone when it was to be told of an end.
type goneError struct{ leg *leg }

func (e *goneError) Error() string {
	if e.leg.lost == relay.ClientReset {
		return "the client is gone"
	}
	return "the upstream is gone"
}

func (*goneError) Unwrap() error { return syscall.ECONNRESET }

// waitReset waits, after an end of file, until the leg turns out to be reset, or is
// closed; see relay.Watcher.
func (g *leg) waitReset() error {
	for c := g.conn; ; {
		switch s := c.(type) {
		case relay.Watcher:
			return s.WaitReset()
		case *net.TCPConn:
			return g.waitTCP()
		case relay.Layered:
			c = s.NetConn()
		default:
			return nil
		}
	}
}

func (g *leg) close() { g.end.Do(func() { g.outer.Close() }) }

// reset returns after the leg is reset, whoever does it.
func (g *leg) reset(r relay.Reason) { g.end.Do(func() { relay.Reset(g.outer, r) }) }

// wasReset tells, after an end of file, whether it was in truth a reset. A kernel
// reports a reset once: if that was to a write, a read that follows says end of
// file. A socket that has received a reset is closed, though, and one that has
// received an end of file is not, unless we have sent ours.
func (g *leg) wasReset() bool {
	return g.raw != nil && g.tcpClosed() && !g.shut.Load()
}

// gone tells why the peer of a stream that is not being read is gone, if that is known.
func (g *leg) gone() error {
	if g.raw == nil {
		return nil
	}
	return g.lostTCP()
}
