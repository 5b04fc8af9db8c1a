package tls

import (
	"errors"
	"io"
	"net"
	"sync"

	"cardea/tunnel"
)

// socket is the connection beneath a tls.Conn.
//
// crypto/tls reports a connection that ends without close_notify as io.EOF, just
// as one that ends with it. It does not read on after close_notify, though. So an
// end of file that is seen here was not announced, and a strict socket says that
// it is a reset; what crypto/tls then calls io.EOF is close_notify and nothing
// else.
//
// It also borrows memory while there is much to read or write, so that bulk takes
// few system calls though its records are small.
type socket struct {
	net.Conn
	hello     hello
	heard     func() error // called when the hello is there; only during a handshake
	allowance int          // bytes that may still be read; zero is no bound
	mute      bool         // says nothing: it is not known yet that the peer may hear something
	strict    bool

	// Of the one who reads:
	full  bool    // the last read was: there is probably more
	ahead *buffer // what was read ahead, borrowed
	next  []byte  // the part of ahead that was not asked for yet

	mu        sync.Mutex // crypto/tls may answer a KeyUpdate while gathering
	gathered  *buffer    // what is to be written at once, borrowed
	gathering int        // how much of it, if gathered is set
}

// A buffer takes a batch of small records, and more.
type buffer [20 << 10]byte

// buffers lends buffers.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

var errUnannounced = &tunnel.ResetError{Reason: "the connection ended without close_notify"}

var errTooLong = errors.New("the handshake is too long")

// NetConn returns the connection beneath, whose kernel knows of a reset that
// crypto/tls does not read.
func (s *socket) NetConn() net.Conn { return s.Conn }

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.read(p)
	if s.allowance > 0 {
		if s.allowance -= n; s.allowance <= 0 {
			return 0, errTooLong
		}
	}
	if s.strict && n == 0 && err == io.EOF {
		err = errUnannounced
	}
	return n, err
}

// read reads ahead when the last read got all that it had room for. A connection
// that waits for more than the rest of a burst so holds no buffer.
func (s *socket) read(p []byte) (int, error) {
	if s.ahead == nil {
		if !s.full || len(p) >= len(buffer{}) {
			n, err := s.Conn.Read(p)
			s.full = n > 0 && n == len(p)
			return n, err
		}
		b := buffers.Get().(*buffer)
		n, err := s.Conn.Read(b[:])
		s.full = n == len(b)
		if n == 0 {
			buffers.Put(b)
			return 0, err // with bytes it comes again
		}
		s.ahead, s.next = b, b[:n]
	}
	n := copy(p, s.next)
	if s.next = s.next[n:]; len(s.next) == 0 {
		buffers.Put(s.ahead)
		s.ahead, s.next = nil, nil
	}
	return n, nil
}

func (s *socket) Write(p []byte) (int, error) {
	if s.mute {
		return len(p), nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gathered == nil {
		return s.Conn.Write(p)
	}
	if s.gathering+len(p) > len(s.gathered) {
		if err := s.emit(); err != nil {
			return 0, err
		}
	}
	if len(p) > len(s.gathered) {
		return s.Conn.Write(p)
	}
	s.gathering += copy(s.gathered[s.gathering:], p)
	return len(p), nil
}

// gather keeps what is written until flush.
func (s *socket) gather() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gathered = buffers.Get().(*buffer)
}

// flush writes what was gathered.
func (s *socket) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.emit()
	buffers.Put(s.gathered)
	s.gathered = nil
	return err
}

func (s *socket) emit() error {
	n := s.gathering
	s.gathering = 0
	if n == 0 {
		return nil
	}
	_, err := s.Conn.Write(s.gathered[:n])
	return err
}

// abort ends the TCP connection with a RST.
func (s *socket) abort() error {
	if l, ok := s.Conn.(interface{ SetLinger(int) error }); ok {
		return errors.Join(l.SetLinger(0), s.Conn.Close())
	}
	return s.Conn.Close()
}
