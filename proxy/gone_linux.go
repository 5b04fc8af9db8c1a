package proxy

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// isGone reports whether the peer of a connection has broken it off, or was lost, or
// both ends have finished. One that has only finished sending is not gone. The kernel
// tells so of the TCP connection at the bottom; what has none is not gone.
func isGone(c net.Conn) bool {
	for c != nil {
		if s, ok := c.(syscall.Conn); ok {
			raw, err := s.SyscallConn()
			return err == nil && hungUp(raw)
		}
		l, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return false
		}
		c = l.NetConn()
	}
	return false
}

// hungUp reports whether nothing can pass through a socket any more in either
// direction. Nothing is read, and no error is taken off it.
func hungUp(raw syscall.RawConn) (yes bool) {
	raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}} // what is looked for is told unasked
		n, err := unix.Poll(p, 0)
		yes = err == nil && n == 1 && p[0].Revents&unix.POLLHUP != 0
	})
	return yes
}
