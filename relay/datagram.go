package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// MaxDatagram is the size in bytes of the largest datagram that a [Datagram] reads, or
// writes. UDP carries 65,507 bytes over IPv4, and 20 more over IPv6.
const MaxDatagram = 1<<16 - 1

// Datagram is a conn that keeps the boundaries of datagrams: Read reads one, which is cut
// off where p is too short, and Write sends one, or fails with EMSGSIZE if it is too
// large. Either may be of no bytes at all; the end is io.EOF, and never a Read of nothing.
// A *net.UDPConn that is connected is one, although it has not the method.
type Datagram interface {
	net.Conn
	// Datagram does nothing.
	Datagram()
}

// IsDatagram reports whether a conn keeps the boundaries of datagrams.
func IsDatagram(c net.Conn) bool {
	switch c.(type) {
	case *net.UDPConn, Datagram:
		return true
	}
	return false
}

// Awaiter is a [Datagram] that can be waited on without a buffer, so that one on which
// nothing passes holds none. A *net.UDPConn can be, too.
type Awaiter interface {
	// Await returns when a Read would not wait. It may fail as Read does.
	Await() error
}

// Messages makes a stream a [Datagram]: each datagram travels as its length, two bytes,
// the higher one first, and what it is of. That is how datagrams go through a tunnel that
// has only streams. What has been said of c by a Verdict must have been said before.
func Messages(c net.Conn) net.Conn {
	return &messages{Conn: c, in: bufio.NewReaderSize(c, messageBuffer)}
}

const (
	messageHead   = 2
	messageBuffer = 2 << 10 // of what was read ahead: each flow holds one
)

// messages is a stream as Messages makes it.
type messages struct {
	net.Conn

	reading sync.Mutex
	in      *bufio.Reader

	writing sync.Mutex
	broken  error // a part of a message was written: no other can follow
}

var (
	_ Datagram = (*messages)(nil)
	_ Awaiter  = (*messages)(nil)
	_ Resetter = (*messages)(nil)
)

// Datagram implements Datagram.
func (*messages) Datagram() {}

// Reset implements Resetter.
func (m *messages) Reset(reason string) error { return Reset(m.Conn, Reason(reason)) }

// Await implements Awaiter.
func (m *messages) Await() error {
	m.reading.Lock()
	defer m.reading.Unlock()
	_, err := m.length()
	return err
}

// length returns that of the next message, which stays to be read. A stream that ends
// within it was cut short, which is an error.
func (m *messages) length() (int, error) {
	head, err := m.in.Peek(messageHead)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	return int(binary.BigEndian.Uint16(head)), nil
}

// Read implements net.Conn. A deadline that passes within a message ends the stream.
func (m *messages) Read(p []byte) (int, error) {
	m.reading.Lock()
	defer m.reading.Unlock()
	size, err := m.length()
	if err != nil {
		return 0, err
	}
	m.in.Discard(messageHead)
	n, err := io.ReadFull(m.in, p[:min(size, len(p))])
	if err == nil {
		_, err = m.in.Discard(size - n)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// Write implements net.Conn.
func (m *messages) Write(p []byte) (int, error) {
	if len(p) > MaxDatagram {
		return 0, syscall.EMSGSIZE
	}
	b := messageBuffers.Get().(*[messageHead + MaxDatagram]byte)
	defer messageBuffers.Put(b)
	binary.BigEndian.PutUint16(b[:], uint16(len(p)))
	size := messageHead + copy(b[messageHead:], p)

	m.writing.Lock()
	defer m.writing.Unlock()
	if m.broken != nil {
		return 0, m.broken
	}
	n, err := m.Conn.Write(b[:size])
	if err != nil {
		if n > 0 {
			m.broken = errors.Join(net.ErrClosed, err)
		}
		return 0, err
	}
	return len(p), nil
}

// messageBuffers are what messages are put together in.
var messageBuffers = sync.Pool{New: func() any { return new([messageHead + MaxDatagram]byte) }}
