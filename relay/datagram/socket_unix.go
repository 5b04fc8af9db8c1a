//go:build unix

package datagram

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"

	"cardea/relay"
)

// socketOf returns the socket of a conn, nil if it is not one of UDP.
func socketOf(c net.Conn) syscall.RawConn {
	udp, ok := c.(*net.UDPConn)
	if !ok {
		return nil
	}
	raw, _ := udp.SyscallConn() // it fails for a nil conn only
	return raw
}

// receive reads from a socket, which is waited on without a buffer.
func receive(s syscall.RawConn, buffers *sync.Pool) (b *[relay.MaxDatagram]byte, n int, err error) {
	failed := s.Read(func(fd uintptr) bool {
		b = buffers.Get().(*[relay.MaxDatagram]byte)
		n, err = syscall.Read(int(fd), b[:])
		for errors.Is(err, syscall.EINTR) {
			n, err = syscall.Read(int(fd), b[:])
		}
		if err != nil {
			buffers.Put(b)
			b = nil
		}
		return !errors.Is(err, syscall.EAGAIN)
	})
	switch {
	case failed != nil:
		return nil, 0, failed
	case err != nil:
		return nil, 0, os.NewSyscallError("read", err)
	}
	return b, n, nil
}
