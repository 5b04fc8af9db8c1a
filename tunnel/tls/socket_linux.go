package tls

import (
	"net"

	"golang.org/x/sys/unix"
)

// delivered tells whether the TCP of the peer has confirmed all that was sent.
func delivered(c net.Conn) bool {
	tcp := tcpOf(c)
	if tcp == nil {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	done := false
	raw.Control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		done = err == nil && n == 0
	})
	return done
}
