//go:build linux

package loop

import (
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cardea/relay"
)

const (
	// lastWords bounds how long a peer that can no longer be written to is still
	// heard: one that says why and hangs up should be.
	lastWords = time.Second
	// keepAfter is the age at which keepalive is set on the connection to an upstream.
	// Most do not live that long.
	keepAfter = 5 * time.Second
)

// The two legs of a relay. A way has the number of the leg that it comes from.
const (
	client = iota
	upstream
)

// closed is what to say when a leg has finished first.
func closed(leg int) relay.Reason {
	if leg == client {
		return relay.ClientClosed
	}
	return relay.UpstreamClosed
}

// lost is what to say when a leg was reset.
func lost(leg int) relay.Reason {
	if leg == client {
		return relay.ClientReset
	}
	return relay.UpstreamReset
}

// phase is how far a connection has come.
type phase uint8

const (
	held       phase = iota // it belongs to whoever was given the Socket
	connecting              // the upstream has not answered
	relaying
	over
)

// live is one connection, and later one relay. Its fields belong to its loop but for
// those that say something else.
type live struct {
	loop   *loop // fixed
	sock   *socket
	told   doner // whom to tell of the end; a relay.Opening if it began with Connect
	legs   [2]leg
	ways   [2]way
	timer  timer
	terms  *terms       // nil without limits
	why    *ending      // why it is cut short, or nil
	outer  *[2]net.Conn // what is above the sockets, or nil
	began  time.Duration
	active time.Duration   // when a byte was last delivered
	half   time.Duration   // when the first side finished
	to     *netip.AddrPort // where it connects to
	until  time.Duration   // when the wait ends that it is in: for data, an answer, last words; or 0
	slot   int32           // -1 if it has none
	phase  phase
	clean  uint8 // ways that have finished
	first  uint8 // which of them was the first
	kept   bool  // keepalive is set
}

// doner is what a relay keeps of a relay.Opening.
type doner interface{ Done(relay.Result) }

// ending is why a relay was cut short.
type ending struct {
	reason relay.Reason
	err    error
}

// leg is one of the two sockets.
type leg struct {
	fd    int32
	state state
}

// state is what is known of a socket.
type state uint16

const (
	readable state = 1 << iota // it may have something to read
	stuck                      // it takes nothing until an event says so
	wary                       // an end, an urgent byte or an error has come: short reads say nothing
	gone                       // it was reset, or found dead
	shut                       // our end was sent
	ended                      // its end was read
	watched                    // it is registered
	deaf                       // a write has failed
)

func (g *leg) is(s state) bool { return g.state&s != 0 }
func (g *leg) set(s state)     { g.state |= s }
func (g *leg) clear(s state)   { g.state &^= s }

// way is one of the two directions.
type way struct {
	moved  atomic.Int64 // bytes delivered; read by anybody
	hold   *hold        // bytes that wait until the other side takes them, or nil
	over   bool         // it carries no more
	bulk   bool         // the last read filled the buffer
	plain  bool         // the kernel does not splice here
	queued bool         // it waits for its turn
}

// Bytes implements relay.Live.
func (c *live) Bytes() (received, sent int64) {
	return c.ways[client].moved.Load(), c.ways[upstream].moved.Load()
}

// Cut implements relay.Live.
func (c *live) Cut(r relay.Reason) {
	c.loop.post(func() { c.cut(r, nil) })
}

// Limit implements relay.Live.
func (c *live) Limit(n relay.Limits) {
	c.loop.post(func() { c.setLimits(n) })
}

// cut resets both sides.
func (c *live) cut(r relay.Reason, err error) {
	if c.phase == over {
		return
	}
	c.fail(r, err)
	c.finish()
}

// fail records why the relay is cut short, unless that is known already.
func (c *live) fail(r relay.Reason, err error) {
	if c.why == nil {
		c.why = &ending{r, err}
	}
}

// start begins a relay of two sockets.
func (c *live) start(n relay.Limits) {
	c.loop.enter(c)
	for i := range c.legs {
		if err := c.watch(i); err != nil {
			c.cut(lost(i), err)
			return
		}
	}
	c.begin(n)
}

// watch registers a socket, once.
func (c *live) watch(i int) error {
	g := &c.legs[i]
	if g.is(watched) {
		return nil
	}
	g.set(watched)
	if n := register(c.loop.epoll, g.fd, watchAll, c.slot<<1|int32(i), c.loop.slots[c.slot].turn); n != 0 {
		return os.NewSyscallError("epoll_ctl", n)
	}
	return nil
}

// begin carries what there is already.
func (c *live) begin(n relay.Limits) {
	c.phase = relaying
	c.began, c.active, c.until = c.loop.now, c.loop.now, 0
	c.setLimits(n)
	for i := range c.ways {
		if c.phase == relaying {
			c.carry(i)
		}
	}
}

// event takes note of what epoll says of a socket, and does what is to be done now.
func (c *live) event(i int, events uint32) {
	g := &c.legs[i]
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLPRI|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		g.set(readable)
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLPRI|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		g.set(wary)
		// A socket that both sides have finished hangs up too.
		if events&unix.EPOLLERR != 0 || events&unix.EPOLLHUP != 0 && !g.is(shut) {
			g.set(gone)
		}
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		g.clear(stuck)
	}
	switch c.phase {
	case held:
		c.sock.fill()
	case connecting:
		c.answered(i, events)
	case relaying:
		c.move(i)
	}
}

// move carries on after news of a socket.
func (c *live) move(i int) {
	g := &c.legs[i]
	if g.is(gone) && g.is(ended) && !g.is(shut) {
		c.cut(lost(i), os.NewSyscallError("wait", c.verdict(i)))
		return
	}
	c.carry(i)
	if c.phase == relaying && c.ways[1-i].hold != nil {
		c.carry(1 - i)
	}
	switch {
	case c.phase != relaying || c.why != nil || !g.is(gone) || c.ways[i].over:
	case c.ways[i].hold != nil:
		// What it has sent before is delivered, but not for ever.
		c.undelivered(1-i, os.NewSyscallError("wait", c.verdict(i)))
	case c.throttled(i):
		c.cut(lost(i), os.NewSyscallError("wait", c.verdict(i))) // a reset does not wait
	}
}

// verdict returns why a socket is gone. A reset behind an end of file is an EPIPE
// (tcp_reset in Linux).
func (c *live) verdict(i int) syscall.Errno {
	if n := pendingError(c.legs[i].fd); n != 0 && n != unix.EPIPE {
		return n
	}
	return unix.ECONNRESET
}

// sourceEnded is called when the end of a leg was read.
func (c *live) sourceEnded(i int) {
	from, to := &c.legs[i], &c.legs[1-i]
	if from.is(deaf) || from.is(gone) && !from.is(shut) {
		// A kernel reports a reset once. If that was to a write, or came behind an end, a
		// read that follows says end of file.
		c.cut(lost(i), os.NewSyscallError("read", unix.ECONNRESET))
		return
	}
	from.set(ended)
	c.ways[i].over = true
	if c.why != nil {
		c.finish()
		return
	}
	c.clean++
	if c.clean == 2 {
		c.finish()
		return
	}
	c.first, c.half = uint8(i), c.loop.now
	to.set(shut)
	if n := shutdownWrite(to.fd); n != 0 { // the kernel has closed it, which only a reset or a loss does
		c.undelivered(i, &goneError{1 - i})
		return
	}
	c.schedule()
}

// undelivered is called when way i could not write to its end. What that end had sent
// before it went may still wait to be read, and is delivered, but not for long.
// Otherwise it would be a matter of luck whether a client reads the answer of an
// upstream that did not want all it was sent.
func (c *live) undelivered(i int, err error) {
	c.fail(lost(1-i), err)
	c.legs[1-i].set(deaf | readable | wary)
	w := &c.ways[i]
	w.over = true
	c.loop.drop(w)
	if c.ways[1-i].over {
		c.finish()
		return
	}
	c.until = c.loop.now + lastWords
	c.schedule()
	c.loop.again(c, 1-i)
}

// A goneError is that the peer of a leg was gone when it was to be told of an end.
type goneError struct{ leg int }

// Error implements error.
func (e *goneError) Error() string {
	if e.leg == client {
		return "the client is gone"
	}
	return "the upstream is gone"
}

// Unwrap returns syscall.ECONNRESET.
func (*goneError) Unwrap() error { return syscall.ECONNRESET }

// finish closes or resets both sockets, and tells.
func (c *live) finish() {
	l := c.loop
	c.phase = over
	for i := range c.ways {
		l.drop(&c.ways[i])
	}
	for i := range c.legs {
		switch fd := c.legs[i].fd; {
		case fd < 0:
		case c.why != nil:
			resetFD(fd)
		default:
			closeFD(fd)
		}
		c.legs[i].fd = -1
	}
	result := relay.Result{Reason: closed(int(c.first))}
	if c.why != nil {
		result.Reason, result.Err = c.why.reason, c.why.err
	}
	c.closeOuter(result.Reason)
	result.Received, result.Sent = c.Bytes()
	c.told.Done(result)
	c.told = nil
	l.leave(c)
	if l.relays.Add(-1) == 0 {
		l.engine.relieved()
	}
}

// closeOuter closes what is above the sockets, for its own bookkeeping.
func (c *live) closeOuter(r relay.Reason) {
	if c.outer == nil {
		return
	}
	for _, s := range c.outer {
		switch {
		case s == nil:
		case c.why != nil:
			relay.Reset(s, r)
		default:
			s.Close()
		}
	}
	c.outer = nil
}
