//go:build linux

package loop

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cardea/relay"
)

const (
	// acceptBurst is how many connections a loop accepts before it looks at others.
	acceptBurst = 4
	// mostWaiting is how many connections each loop takes of a listener that retires:
	// the longest queue of a kernel as a rule (net.core.somaxconn).
	mostWaiting = 4096
)

// listener is a relay.Listener.
type listener struct {
	engine  *Engine
	fd      int32
	addr    net.Addr
	local   netip.AddrPort
	take    func(net.Conn)
	telling sync.Mutex // one at a time
	trouble func(error) time.Duration

	mu      sync.Mutex
	users   int // of the descriptor: who has it open, Serve, and calls of Control
	closed  bool
	retired bool
	failed  error
	stop    chan struct{} // Serve is to end; closed once
	stopped bool
}

// Listen implements relay.Acceptor.
func (e *Engine) Listen(l *net.TCPListener) (relay.Listener, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	control := raw.Control(func(given uintptr) { fd, err = unix.FcntlInt(given, unix.F_DUPFD_CLOEXEC, 0) })
	if control != nil {
		return nil, control
	}
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	s := &listener{engine: e, fd: int32(fd), addr: l.Addr(), users: 1, stop: make(chan struct{})}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	s.local = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	// What is accepted inherits these.
	noDelay(s.fd)
	keepAlive(s.fd)
	l.Close()
	return s, nil
}

// Addr implements relay.Listener.
func (s *listener) Addr() net.Addr { return s.addr }

// Serve implements relay.Listener.
func (s *listener) Serve(ctx context.Context, take func(net.Conn), trouble func(error) time.Duration) error {
	if !s.use() {
		return nil
	}
	defer s.unuse()
	loops, err := s.engine.hold()
	if err != nil {
		return err
	}
	defer s.engine.release()
	s.take, s.trouble = take, trouble
	each(loops, func(l *loop) { l.enlist(s) })
	select {
	case <-ctx.Done():
	case <-s.stop:
	}
	s.mu.Lock()
	drain := s.retired && !s.closed && ctx.Err() == nil
	s.mu.Unlock()
	each(loops, func(l *loop) { l.discharge(s, drain) })
	each(loops, func(*loop) {}) // what one loop has accepted for another is taken
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// each has f called in every loop, and waits for that.
func each(loops []*loop, f func(*loop)) {
	var done sync.WaitGroup
	for _, l := range loops {
		done.Add(1)
		l.post(func() {
			defer done.Done()
			f(l)
		})
	}
	done.Wait()
}

// Retire implements relay.Listener.
func (s *listener) Retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	s.end()
}

// Close implements relay.Listener. If Serve is under way, the descriptor is closed when
// it ends.
func (s *listener) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	s.end()
	s.mu.Unlock()
	s.unuse()
	return nil
}

// fail ends Serve with an error.
func (s *listener) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
	s.end()
}

// end ends Serve. mu is held.
func (s *listener) end() {
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
}

// use keeps the descriptor open until unuse is called. It reports false if it is closed.
func (s *listener) use() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.users++
	return true
}

func (s *listener) unuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 {
		closeFD(s.fd)
	}
}

// SyscallConn implements relay.Listener. Only Control may be used.
func (s *listener) SyscallConn() (syscall.RawConn, error) { return rawListener{s}, nil }

type rawListener struct{ *listener }

// Control implements syscall.RawConn.
func (r rawListener) Control(f func(fd uintptr)) error {
	if !r.use() {
		return net.ErrClosed
	}
	defer r.unuse()
	f(uintptr(r.fd))
	return nil
}

// Read implements syscall.RawConn: it fails.
func (r rawListener) Read(func(fd uintptr) bool) error { return syscall.ENOSYS }

// Write implements syscall.RawConn: it fails.
func (r rawListener) Write(func(fd uintptr) bool) error { return syscall.ENOSYS }

// seat is a listener in one loop.
type seat struct {
	*listener
	paused bool // it could not accept, and waits
	until  time.Duration
}

// enlist begins to accept.
func (l *loop) enlist(s *listener) {
	i := slices.Index(l.listeners, nil)
	if i < 0 {
		i = len(l.listeners)
		l.listeners = append(l.listeners, nil)
	}
	l.listeners[i] = &seat{listener: s}
	l.sit(i)
}

// sit registers a listener. Of the loops that wait for it the kernel wakes one.
func (l *loop) sit(i int) {
	s := l.listeners[i]
	s.paused = false
	if n := register(l.epoll, s.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, ofListeners, int32(i)); n != 0 {
		s.fail(os.NewSyscallError("epoll_ctl", n))
	}
}

// discharge accepts no more, after what waits in the queue if drain is set. The
// registration must go before the descriptor does, which others may have too.
func (l *loop) discharge(s *listener, drain bool) {
	i := slices.IndexFunc(l.listeners, func(t *seat) bool { return t != nil && t.listener == s })
	if i < 0 {
		return
	}
	t := l.listeners[i]
	l.listeners[i] = nil
	unregister(l.epoll, s.fd)
	for range mostWaiting {
		if !drain || !l.accept(t, l) {
			return
		}
	}
}

// listen lets listeners go on that have waited.
func (l *loop) listen() {
	for i, s := range l.listeners {
		if s != nil && s.paused && s.until <= l.now {
			l.sit(i)
		}
	}
}

// incoming accepts connections.
func (l *loop) incoming(i int32) {
	s := l.listeners[i]
	if s == nil || s.paused {
		return
	}
	for range acceptBurst {
		if !l.accept(s, l.relief()) {
			break
		}
	}
	if s.paused {
		unregister(l.epoll, s.fd)
	}
}

// relief returns the loop that should have the next connection: this one, unless
// another has much less to do. The kernel tells the loops of a new connection always in
// the same order, as far as they are idle.
func (l *loop) relief() *loop {
	best, least := l, l.load.Load()
	for _, o := range l.others {
		if n := o.load.Load(); n < least {
			best, least = o, n
		}
	}
	if l.load.Load() >= least+least/4+2 {
		return best
	}
	return l
}

// accept accepts one connection, for a loop. It reports whether there may be more.
func (l *loop) accept(s *seat, to *loop) bool {
	fd, n := accept4(s.fd, &l.peer)
	if n != 0 {
		return n != unix.EAGAIN && l.cannot(s, n)
	}
	c := &socket{listener: s.listener, remote: l.peer.get()}
	c.live = live{loop: to, sock: c, slot: -1}
	c.live.legs[client].fd = fd
	to.load.Add(1)
	if to == l {
		s.take(c)
	} else {
		to.post(func() { c.listener.take(c) })
	}
	return true
}

// cannot sees to a failure to accept, and reports whether to try again at once.
func (l *loop) cannot(s *seat, n syscall.Errno) bool {
	err := &net.OpError{Op: "accept", Net: "tcp", Addr: s.addr, Err: os.NewSyscallError("accept4", n)}
	switch n {
	case unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EOPNOTSUPP, unix.EFAULT:
		s.fail(err)
		s.paused, s.until = true, never
		return false
	}
	s.telling.Lock()
	wait := s.trouble(err)
	s.telling.Unlock()
	if wait > 0 {
		s.paused, s.until = true, l.engine.now()+wait
	}
	return wait <= 0
}
