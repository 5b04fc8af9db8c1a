package datagram

import (
	"net"
	"sync"
	"syscall"

	"cardea/relay"
)

// A source is a side that is read.
type source struct {
	net.Conn
	raw   syscall.RawConn // of a socket that can be waited on; nil if it is none
	await relay.Awaiter   // nil if it is none
}

func newSource(c net.Conn) source {
	s := source{Conn: c, raw: socketOf(c)}
	s.await, _ = c.(relay.Awaiter)
	return s
}

// read waits for a datagram, then takes a buffer and reads it. The buffer is the
// caller's, who puts it back; there is none beside an error.
func (s source) read(buffers *sync.Pool) (b *[relay.MaxDatagram]byte, n int, err error) {
	if s.raw != nil {
		return receive(s.raw, buffers)
	}
	if s.await != nil {
		if err := s.await.Await(); err != nil {
			return nil, 0, err
		}
	}
	b = buffers.Get().(*[relay.MaxDatagram]byte)
	if n, err = s.Read(b[:]); err != nil {
		buffers.Put(b)
		return nil, 0, err
	}
	return b, n, nil
}
