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

// Of a connection that carries packets: how many bytes its TCP may hold that were not
// sent, so that what is lost is lost early, and how long it waits for the peer to
// confirm some, in milliseconds (tcp(7)).
const (
	mostUnsent  = 64 << 10
	unconfirmed = 8_000
)

// hurry prefers, for a connection that carries packets, a loss to a delay.
func hurry(c net.Conn) {
	watch(c)
	tcp := tcpOf(c)
	if tcp == nil {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, mostUnsent)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, unconfirmed)
	})
}
