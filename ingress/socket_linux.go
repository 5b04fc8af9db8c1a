package ingress

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// unread reports whether bytes of the peer have arrived that nobody has read.
func unread(c any) bool {
	n := 0
	control(c, func(fd int) { n, _ = unix.IoctlGetInt(fd, unix.SIOCINQ) })
	return n > 0
}

// acceptNow returns a connection that waits at a listener, nil if there is none.
func acceptNow(l net.Listener) net.Conn {
	accepted := -1
	control(l, func(fd int) {
		for {
			var err error
			if accepted, _, err = unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err != unix.EINTR && err != unix.ECONNABORTED {
				return
			}
		}
	})
	if accepted < 0 {
		return nil
	}
	f := os.NewFile(uintptr(accepted), "")
	defer f.Close() // FileConn has one of its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetKeepAliveConfig(keepAlive())
	}
	return c
}

// sharePort lets others of the same user have the port of a socket.
func sharePort(c syscall.RawConn) (err error) {
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
		return e
	}
	return os.NewSyscallError("setsockopt", err)
}

// bequeath makes the connections of a listener be as those that package net accepts:
// they inherit it.
func bequeath(l *net.TCPListener) (err error) {
	c, err := l.SyscallConn()
	if err != nil {
		return err
	}
	alive := keepAlive()
	e := c.Control(func(fd uintptr) {
		for _, o := range []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(alive.Idle.Seconds())},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(alive.Interval.Seconds())},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, alive.Count},
			{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		} {
			if err == nil {
				err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), o.level, o.name, o.value))
			}
		}
	})
	return errors.Join(e, err)
}

// takeNoMore makes the kernel drop what else comes to a listener, so that between the
// last accept and the close nobody comes who would be reset. Who begins now tries
// again, and then comes to the next listener of the address.
func takeNoMore(l net.Listener) {
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	control(l, func(fd int) {
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	})
}

// control calls f with the descriptor of a connection or listener, if it has one.
func control(x any, f func(fd int)) {
	s, ok := x.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) })
	}
}
