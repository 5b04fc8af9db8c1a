//go:build linux

package loop

import (
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"cardea/relay"
	"cardea/relay/copy"
)

// Options are how an Engine is made.
type Options struct {
	// Loops is how many loops there are: one for each processor if it is 0.
	Loops int
	// Log is told what an operator should know. May be nil.
	Log *slog.Logger
}

// Engine is a relay.Engine, a relay.Acceptor and a relay.Connector. Make one with New.
// Its loops run while there is a relay, a Socket or a Listener that serves.
type Engine struct {
	count int
	log   *slog.Logger
	epoch time.Time
	inner *copy.Engine // carries what is not TCP

	mu        sync.Mutex
	loops     []*loop    // that run, or nil
	listeners int        // that serve, and other reasons to keep the loops for a moment
	ending    int        // loops that were told to end
	idle      *sync.Cond // a loop has ended, or has no relay any more
}

var (
	_ relay.Acceptor  = (*Engine)(nil)
	_ relay.Connector = (*Engine)(nil)
)

// New returns an engine at rest.
func New(o Options) *Engine {
	if o.Loops <= 0 {
		o.Loops = runtime.GOMAXPROCS(0)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{count: o.Loops, log: o.Log, epoch: time.Now(), inner: copy.New()}
	e.idle = sync.NewCond(&e.mu)
	return e
}

// now is the time on the engine's clock, which wall clock steps do not move.
func (e *Engine) now() time.Duration { return time.Since(e.epoch) }

// hold keeps the loops running, and starts them if need be, until release is called.
func (e *Engine) hold() ([]*loop, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.loops == nil {
		loops := make([]*loop, 0, e.count)
		for range e.count {
			l, err := newLoop(e)
			if err != nil {
				for _, l := range loops {
					l.close()
				}
				return nil, err
			}
			loops = append(loops, l)
		}
		for _, l := range loops {
			l.others = loops
			go l.run()
		}
		e.loops = loops
	}
	e.listeners++
	return e.loops, nil
}

func (e *Engine) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listeners--
	e.rest()
}

// unburden is called when a loop has become empty.
func (e *Engine) unburden() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rest()
}

// rest ends the loops if nothing needs them. mu is held. New work comes to a loop only
// from a Socket or a Listener that there is, or under hold.
func (e *Engine) rest() {
	if e.loops == nil || e.listeners > 0 {
		return
	}
	for _, l := range e.loops {
		if l.load.Load() > 0 {
			return
		}
	}
	e.ending += len(e.loops)
	for _, l := range e.loops {
		l.post(func() { l.stopped = true })
	}
	e.loops = nil
}

// ended is called by a loop at its end.
func (e *Engine) ended() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ending--
	e.idle.Broadcast()
}

// Wait implements relay.Engine.
func (e *Engine) Wait() {
	e.mu.Lock()
	for e.busy() {
		e.idle.Wait()
	}
	e.mu.Unlock()
	e.inner.Wait()
}

// busy reports whether there is what Wait waits for: a relay and, if no Listener serves,
// whatever there is. mu is held.
func (e *Engine) busy() bool {
	if e.ending > 0 || e.loops != nil && e.listeners == 0 {
		return true
	}
	return slices.ContainsFunc(e.loops, func(l *loop) bool { return l.relays.Load() > 0 })
}

// relieved is called when a loop has no relay any more.
func (e *Engine) relieved() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.idle.Broadcast()
}

// Start implements relay.Engine.
func (e *Engine) Start(p relay.Pair, done func(relay.Result)) relay.Live {
	c := e.adopt(p)
	if c == nil {
		return e.inner.Start(p, done)
	}
	c.told = started(done)
	c.loop.post(func() { c.start(p.Limits) })
	return c
}

// adopt takes a pair over, or returns nil: it is not TCP, or there is no descriptor
// left. Then nothing has happened to it.
func (e *Engine) adopt(p relay.Pair) *live {
	var from, to end
	if !from.find(p.Client) || !to.find(p.Upstream) {
		return nil
	}
	if s := to.sock; s != nil {
		to.tcp, to.sock, to.above = s.ordinary(), nil, append(to.above, s)
	}
	loops, err := e.hold()
	if err != nil {
		e.log.Warn("the event loops cannot run; a connection is carried without them", "error", err)
		return nil
	}
	defer e.release()
	if !to.open(e) {
		return nil
	}
	if !from.open(e) {
		to.undo()
		return nil
	}
	var c *live
	if from.sock != nil {
		c = &from.sock.live
	} else {
		c = &live{loop: least(loops), slot: -1}
		c.legs[client].fd = from.fd
		c.loop.load.Add(1)
	}
	c.loop.relays.Add(1)
	c.legs[upstream].fd = to.fd
	c.kept = true // whoever made the connections has seen to keepalive
	c.outer = outers(from.outer, to.outer)
	c.ways[client].ahead(from.take())
	c.ways[upstream].ahead(to.take())
	return c
}

// started is told of the end of a relay that Start has begun.
type started func(relay.Result)

// Done calls the function.
func (s started) Done(r relay.Result) { s(r) }

// end is one of two streams that are given to Start, as far as it is TCP.
type end struct {
	outer net.Conn            // as given, if there is more to close than the socket
	above []relay.Transparent // what is over the socket
	tcp   *net.TCPConn        // at the bottom, or nil
	sock  *socket             // at the bottom, or nil
	fd    int32               // a duplicate of the descriptor of tcp
}

// find reports whether c is a TCP connection, perhaps beneath somebody who has read
// ahead.
func (x *end) find(c net.Conn) bool {
	x.fd = -1
	for given := c; ; {
		switch s := c.(type) {
		case *net.TCPConn:
			x.tcp = s
			return true
		case *socket:
			x.sock = s
			return true
		case relay.Transparent:
			x.outer = given
			x.above = append(x.above, s)
			c = s.NetConn()
		default:
			return false
		}
	}
}

// open has a descriptor at hand. It changes nothing of the stream, unless that is a
// Socket, which is ours then.
func (x *end) open(e *Engine) bool {
	if s := x.sock; s != nil {
		if s.live.loop.engine == e && s.take() {
			return true
		}
		x.tcp, x.sock, x.above = s.ordinary(), nil, append(x.above, s)
	}
	raw, err := x.tcp.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		if n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			x.fd = int32(n)
		}
	})
	return x.fd >= 0
}

// undo forgets what open has made.
func (x *end) undo() {
	if x.fd >= 0 {
		closeFD(x.fd)
	}
}

// take has the socket for ourselves, and returns what was read of it.
func (x *end) take() (unread []byte) {
	for _, t := range x.above {
		// What a lower layer has read ahead came after what this one has.
		unread = append(unread, t.Unread()...)
	}
	if x.sock != nil {
		return append(unread, x.sock.Unread()...)
	}
	x.tcp.Close()
	return unread
}

// outers returns the streams that are to be closed with the sockets beneath them.
func outers(client, upstream net.Conn) *[2]net.Conn {
	if client == nil && upstream == nil {
		return nil
	}
	return &[2]net.Conn{client, upstream}
}

// least returns the loop with the fewest connections.
func least(loops []*loop) *loop {
	best := loops[0]
	for _, l := range loops[1:] {
		if l.load.Load() < best.load.Load() {
			best = l
		}
	}
	return best
}

// blank is room for words of other processors between the counters of two loops.
type blank [64]byte

// burden counts what a loop has to look after.
type burden struct {
	_ blank
	atomic.Int64
	_ blank
}
