//go:build !unix

package datagram

import (
	"errors"
	"net"
	"sync"
	"syscall"

	"cardea/relay"
)

// socketOf returns nil: what is read is read into a buffer.
func socketOf(net.Conn) syscall.RawConn { return nil }

func receive(syscall.RawConn, *sync.Pool) (*[relay.MaxDatagram]byte, int, error) {
	return nil, 0, errors.ErrUnsupported
}
