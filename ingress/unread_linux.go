package ingress

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// unread reports whether bytes of the peer have arrived that nobody has read.
func unread(c net.Conn) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return n > 0
}
