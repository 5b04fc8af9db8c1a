//go:build linux

package loop

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"cardea/relay"
)

// socket is a relay.Socket: a connection that a loop has accepted. It is also a
// relay.Transparent, so that other engines find the connection beneath it.
type socket struct {
	live     live
	listener *listener
	remote   netip.AddrPort
	local    *netip.AddrPort // if it was asked for, and the listener has many

	mu     sync.Mutex
	given  bool         // it was given away, or closed
	posted bool         // the loop may know it
	tcp    *net.TCPConn // what package net has made of it, or nil
	wait   *wait        // nil if Await was never called
}

var (
	_ relay.Socket      = (*socket)(nil)
	_ relay.CloseWriter = (*socket)(nil)
	_ relay.Transparent = (*socket)(nil)
)

// wait is what Await needs.
type wait struct {
	read []byte                   // that nobody has taken; guarded by socket.mu
	most int                      // of read; the loop's, as is the rest
	got  func([]byte, error) bool // nil if nobody waits
	call int                      // counts calls of Await
}

// AddrPorts implements relay.Socket.
func (s *socket) AddrPorts() (local, remote netip.AddrPort) {
	if !s.listener.local.Addr().IsUnspecified() {
		return s.listener.local, s.remote
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.local == nil {
		if s.given || s.tcp != nil {
			return s.listener.local, s.remote
		}
		at := localAddr(s.live.legs[client].fd)
		s.local = &at
	}
	return *s.local, s.remote
}

// LocalAddr implements net.Conn.
func (s *socket) LocalAddr() net.Addr {
	local, _ := s.AddrPorts()
	return net.TCPAddrFromAddrPort(local)
}

// RemoteAddr implements net.Conn.
func (s *socket) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.remote) }

// Await implements relay.Socket.
func (s *socket) Await(within time.Duration, most int, got func(read []byte, err error) (more bool)) {
	s.mu.Lock()
	s.posted = true
	if s.wait == nil {
		s.wait = &wait{}
	}
	s.mu.Unlock()
	s.live.loop.post(func() { s.await(s.live.loop.engine.now()+within, most, got) })
}

// await begins to wait.
func (s *socket) await(until time.Duration, most int, got func([]byte, error) bool) {
	c, w := &s.live, s.wait
	w.most, w.got, w.call = most, got, w.call+1
	s.mu.Lock()
	err := net.ErrClosed
	if !s.given && s.tcp == nil {
		c.loop.enter(c)
		err = c.watch(client)
	}
	read := len(w.read)
	s.mu.Unlock()
	if err != nil {
		s.tell(err)
		return
	}
	c.until = max(until, 1)
	c.schedule()
	if read > 0 {
		s.tell(nil)
	}
	s.fill()
}

// waits reports whether somebody waits for the client to send something.
func (s *socket) waits() bool { return s.wait != nil && s.wait.got != nil }

// fill reads what there is, for whoever waits for it.
func (s *socket) fill() {
	for s.waits() && s.live.legs[client].is(readable) {
		switch n, err := s.more(); {
		case n > 0:
			s.tell(nil)
		case err == nil:
			return // as much as was wanted was read
		case err != syscall.EAGAIN:
			s.tell(err)
		}
	}
}

// more reads once. The error is EAGAIN when there is nothing.
func (s *socket) more() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given || s.tcp != nil {
		return 0, net.ErrClosed
	}
	g, buffer := &s.live.legs[client], s.live.loop.buffer
	b := buffer[:max(0, min(len(buffer), s.wait.most-len(s.wait.read)))]
	if len(b) == 0 {
		return 0, nil
	}
	n, errno := read(g.fd, b)
	switch {
	case errno == syscall.EAGAIN:
		g.drained()
		return 0, errno
	case errno != 0:
		return 0, os.NewSyscallError("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	if n < len(b) && !g.is(wary) {
		g.clear(readable)
	}
	s.wait.read = append(s.wait.read, b[:n]...)
	return n, nil
}

// tell calls back whoever waits, for the last time if there is an error. That can call
// Await again.
func (s *socket) tell(err error) {
	w := s.wait
	got, call := w.got, w.call
	if err != nil {
		w.got, s.live.until = nil, 0
	}
	s.mu.Lock()
	read := w.read
	s.mu.Unlock()
	if more := got(read, err); !more && w.call == call {
		w.got, s.live.until = nil, 0
	}
}

// late is called when the wait is over.
func (s *socket) late() {
	if s.waits() {
		s.tell(os.ErrDeadlineExceeded)
	}
}

// Discard implements relay.Socket.
func (s *socket) Discard(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 {
		s.wait.read = s.wait.read[n:]
	}
}

// Unread implements relay.Transparent.
func (s *socket) Unread() (read []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wait != nil {
		read, s.wait.read = s.wait.read, nil
	}
	return read
}

// take has the socket for an engine. It reports false if it is too late for that.
func (s *socket) take() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given || s.tcp != nil {
		return false
	}
	s.given = true
	return true
}

// TCP implements relay.Socket.
func (s *socket) TCP() (*net.TCPConn, []byte, error) {
	tcp, err := s.convert()
	if err != nil {
		return nil, nil, err
	}
	return tcp, s.Unread(), nil
}

// NetConn implements relay.Layered: it gives the connection to package net.
func (s *socket) NetConn() net.Conn { return s.ordinary() }

// ordinary is convert for those who cannot be told of an error but by the connection.
func (s *socket) ordinary() *net.TCPConn {
	if tcp, err := s.convert(); err == nil {
		return tcp
	}
	return &net.TCPConn{} // each method fails
}

// convert gives the connection to package net, once.
func (s *socket) convert() (*net.TCPConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.tcp != nil:
		return s.tcp, nil
	case s.given:
		return nil, net.ErrClosed
	}
	fd := s.live.legs[client].fd
	if s.posted {
		// A duplicate keeps a registration alive.
		unregister(s.live.loop.epoll, fd)
	}
	f := os.NewFile(uintptr(fd), "")
	made, err := net.FileConn(f)
	f.Close()
	s.forget()
	if err != nil {
		s.given = true
		return nil, err
	}
	s.tcp = made.(*net.TCPConn)
	return s.tcp, nil
}

// forget has the loop forget the socket, which is closed. mu is held.
func (s *socket) forget() {
	if l := s.live.loop; s.posted {
		l.post(s.forgotten)
	} else {
		l.lighten()
	}
}

// forgotten is forget, in the loop.
func (s *socket) forgotten() {
	s.live.phase = over
	if s.waits() {
		s.tell(net.ErrClosed)
	}
	s.live.loop.leave(&s.live)
}

// Close implements net.Conn.
func (s *socket) Close() error { return s.end(closeFD, (*net.TCPConn).Close) }

// Reset implements relay.Resetter.
func (s *socket) Reset(reason string) error {
	return s.end(resetFD, func(c *net.TCPConn) error { return relay.Reset(c, relay.Reason(reason)) })
}

// end closes the connection in one of two ways, once.
func (s *socket) end(raw func(int32), ordinary func(*net.TCPConn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.tcp != nil:
		return ordinary(s.tcp)
	case s.given:
		return nil
	}
	s.given = true
	raw(s.live.legs[client].fd)
	s.forget()
	return nil
}

// The rest of net.Conn, and what a *net.TCPConn has beyond it.

// Read implements net.Conn.
func (s *socket) Read(b []byte) (int, error) {
	tcp := s.ordinary()
	s.mu.Lock()
	if s.wait != nil && len(s.wait.read) > 0 {
		defer s.mu.Unlock()
		n := copy(b, s.wait.read)
		s.wait.read = s.wait.read[n:]
		return n, nil
	}
	s.mu.Unlock()
	return tcp.Read(b)
}

// Write implements net.Conn.
func (s *socket) Write(b []byte) (int, error) { return s.ordinary().Write(b) }

// CloseWrite implements relay.CloseWriter.
func (s *socket) CloseWrite() error { return s.ordinary().CloseWrite() }

// SetDeadline implements net.Conn.
func (s *socket) SetDeadline(t time.Time) error { return s.ordinary().SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (s *socket) SetReadDeadline(t time.Time) error { return s.ordinary().SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (s *socket) SetWriteDeadline(t time.Time) error { return s.ordinary().SetWriteDeadline(t) }

// SyscallConn gives access to the descriptor, as long as the Socket is nobody else's.
// Only Control may be used.
func (s *socket) SyscallConn() (syscall.RawConn, error) { return rawSocket{s}, nil }

type rawSocket struct{ *socket }

// Control implements syscall.RawConn.
func (r rawSocket) Control(f func(fd uintptr)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.tcp != nil:
		raw, err := r.tcp.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(f)
	case r.given:
		return net.ErrClosed
	}
	f(uintptr(r.live.legs[client].fd))
	return nil
}

// Read implements syscall.RawConn: it fails.
func (r rawSocket) Read(func(fd uintptr) bool) error { return syscall.ENOSYS }

// Write implements syscall.RawConn: it fails.
func (r rawSocket) Write(func(fd uintptr) bool) error { return syscall.ENOSYS }
