//go:build linux

package loop

import (
	"encoding/binary"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// batch is how many events are fetched at once.
	batch = 128
	// turn is how many bytes a direction may carry before others have their turn.
	turn = 256 << 10
	// yieldAfter is how long a loop goes on without a word to the Go scheduler, waiting
	// or not. One that is silent for 10 ms is taken for a goroutine that hogs its
	// processor: it loses it at each wait, and the runtime's monitor does not sleep for
	// longer than 20 µs any more, which was a tenth of all processor time.
	yieldAfter = 5 * time.Millisecond
)

// The first word of an event says what it is of: a connection if it is not negative.
const (
	ofInbox     = -1
	ofListeners = -2 // and below
)

// loop is one event loop. Its fields belong to its goroutine but for those that say
// something else.
type loop struct {
	engine *Engine
	others []*loop // all of the engine; fixed
	epoll  int32   // fixed
	wake   int32   // an eventfd; fixed
	load   burden  // Sockets and relays, also those that are on their way here; for all
	relays burden  // those of load that an Engine has been given; for all

	mu     sync.Mutex
	inbox  []func() // guarded by mu
	asleep bool     // guarded by mu: whoever posts must wake the loop

	stopped   bool
	now       time.Duration // when the batch began
	yielded   time.Duration // when other goroutines last had a chance
	slots     []slot
	free      []int32 // slots without a relay
	ready     []chance
	spare     []chance // the array of ready that is not in use
	taken     []func() // likewise of inbox
	wheel     wheel
	listeners []*seat // registered here
	buffer    []byte
	pipes     pipes
	peer      address
	events    [batch]unix.EpollEvent
}

// slot is where events find their relay. Each user has a number of its own, so that an
// event that is late finds nobody.
type slot struct {
	live *live
	turn int32
}

// chance is a direction that has more to carry, and waits for its turn.
type chance struct {
	live *live
	way  int
}

func newLoop(e *Engine) (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, os.NewSyscallError("eventfd", err)
	}
	l := &loop{engine: e, epoll: int32(epoll), wake: int32(wake), buffer: make([]byte, bufferSize)}
	// Each write to it is an event, read or not.
	if n := register(l.epoll, l.wake, unix.EPOLLIN|unix.EPOLLET&0xffffffff, ofInbox, 0); n != 0 {
		l.close()
		return nil, os.NewSyscallError("epoll_ctl", n)
	}
	l.now = e.now()
	l.wheel.done = int64(l.now / tick)
	return l, nil
}

// close gives the descriptors back.
func (l *loop) close() {
	closeFD(l.epoll)
	closeFD(l.wake)
	l.pipes.close()
}

// run is the loop.
func (l *loop) run() {
	defer l.engine.ended()
	defer l.close()
	for !l.stopped {
		var n int
		if len(l.ready) == 0 && l.rest() {
			n = pollWait(l.epoll, l.events[:], l.patience())
		} else {
			n = pollNow(l.epoll, l.events[:])
		}
		l.now = l.engine.now()
		l.empty() // first, so that limits hold for what was sent after they were set
		for i := range n {
			l.event(&l.events[i])
		}
		l.empty()
		l.turns()
		l.listen()
		l.wheel.due(l.now, (*live).expire)
		if l.now-l.yielded > yieldAfter {
			l.yielded = l.now
			runtime.Gosched()
		}
	}
}

// post has f called by the loop. It may be called by anybody.
func (l *loop) post(f func()) {
	l.mu.Lock()
	l.inbox = append(l.inbox, f)
	wake := l.asleep
	l.asleep = false
	l.mu.Unlock()
	if wake {
		write(l.wake, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

// rest says that the loop is about to wait. It reports false if something was posted.
func (l *loop) rest() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asleep = len(l.inbox) == 0
	return l.asleep
}

// empty does what was posted.
func (l *loop) empty() {
	l.mu.Lock()
	todo := l.inbox
	l.inbox, l.asleep = l.taken, false
	l.mu.Unlock()
	for i, f := range todo {
		f()
		todo[i] = nil
	}
	l.taken = todo[:0]
}

// patience returns for how many milliseconds the loop may wait, -1 for ever.
func (l *loop) patience() int {
	at := l.wheel.next()
	for _, p := range l.listeners {
		if p != nil && p.paused {
			at = min(at, p.until)
		}
	}
	if at == never {
		return -1
	}
	return int((max(0, at-l.engine.now()) + time.Millisecond - 1) / time.Millisecond)
}

// event tells whom an event is for.
func (l *loop) event(e *unix.EpollEvent) {
	switch {
	case e.Fd >= 0:
		if s := &l.slots[e.Fd>>1]; s.live != nil && s.turn == e.Pad {
			s.live.event(int(e.Fd&1), e.Events)
		}
	case e.Fd <= ofListeners:
		l.incoming(e.Pad)
	}
}

// turns gives each that has more to carry one turn.
func (l *loop) turns() {
	todo := l.ready
	l.ready = l.spare[:0]
	for i, t := range todo {
		todo[i].live = nil
		t.live.ways[t.way].queued = false
		t.live.carry(t.way)
	}
	l.spare = todo[:0]
}

// again has a direction carried on when others have had their turn.
func (l *loop) again(c *live, way int) {
	if w := &c.ways[way]; !w.queued {
		w.queued = true
		l.ready = append(l.ready, chance{c, way})
	}
}

// enter gives c a slot.
func (l *loop) enter(c *live) {
	if c.slot >= 0 {
		return
	}
	if n := len(l.free) - 1; n >= 0 {
		c.slot = l.free[n]
		l.free = l.free[:n]
	} else {
		c.slot = int32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	l.slots[c.slot].live = c
}

// leave undoes enter, and counts c no more.
func (l *loop) leave(c *live) {
	l.wheel.clear(c)
	if c.slot >= 0 {
		s := &l.slots[c.slot]
		s.live = nil
		s.turn++
		l.free = append(l.free, c.slot)
		c.slot = -1
	}
	l.lighten()
}

// lighten counts one connection less. It may be called by anybody.
func (l *loop) lighten() {
	if l.load.Add(-1) == 0 {
		l.engine.unburden()
	}
}
