package tls

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"cardea/tunnel"
)

// socket is the connection beneath a tls.Conn.
//
// crypto/tls reports a connection that ends without close_notify as io.EOF, just
// as one that ends with it. It does not read on after close_notify, though. So an
// end of file that is seen here was not announced, and a strict socket says that
// it is a reset; what crypto/tls then calls io.EOF is close_notify and nothing
// else. Whoever goes that way when all is over is told apart, see [socket.unannounced].
//
// It also borrows memory while there is much to read or write, so that bulk takes
// few system calls though its records are small, and withholds session tickets until
// there is something else to send, see [socket.config].
type socket struct {
	net.Conn
	hello     hello
	heard     func() error // called when the hello is there; only during a handshake
	allowance int          // bytes that may still be read; zero is no bound
	mute      bool         // says nothing: it is not known yet that the peer may hear something
	strict    bool

	// Of the one who reads:
	full  bool    // the last read was: there is probably more
	bulk  bool    // what is read goes into a large buffer: as much memory more may be borrowed
	brief bool    // only what was read ahead is wanted: instead of waiting a read fails
	ahead *buffer // what was read ahead, borrowed
	next  []byte  // the part of ahead that was not asked for yet
	last  record  // how far the last record has come
	spoke bool    // something came when we had ended, or were about to

	ending atomic.Bool // our close_notify was sent, or is about to be
	end    sync.Mutex  // held while it is sent
	ended  bool        // it was sent; guarded by end

	mu        sync.Mutex // crypto/tls may answer a KeyUpdate while gathering
	gathered  *buffer    // what is to be written at once, borrowed
	gathering int        // how much of it, if gathered is set
	ticket    bool       // the last record of the next write is to be withheld
	withheld  []byte     // that record: it goes before whatever is written next
}

// A buffer takes a batch of small records, and more.
type buffer [batch + batch/16]byte

// buffers lends buffers.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

var (
	errUnannounced = &tunnel.ResetError{Reason: "the connection ended without close_notify"}
	errLeft        = departure{&tunnel.ResetError{Reason: "the connection ended without close_notify, after ours"}}
)

// A departure is a [cardea/relay.Departure].
type departure struct{ *tunnel.ResetError }

// AfterEnd implements [cardea/relay.Departure].
func (departure) AfterEnd() {}

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
	s.last.take(p[:n])
	s.spoke = s.spoke || n > 0 && s.ending.Load()
	if s.strict && n == 0 && err == io.EOF {
		err = s.unannounced()
	}
	return n, err
}

// closeWrite sends close_notify on conn, which is over s.
func (s *socket) closeWrite(conn *tls.Conn) error {
	s.ending.Store(true)
	s.end.Lock()
	defer s.end.Unlock()
	err := conn.CloseWrite() // takes five seconds at most
	s.ended = err == nil
	return err
}

// unannounced returns the error for an end of file without close_notify.
//
// Many clients that read ours just close the connection. That is told by four things:
// ours was sent, and the peer's TCP has confirmed it; no byte came after it; and what
// came before it ends with a record. As a system resets a connection that is closed
// while it holds bytes that were not read, an end of file then comes from somebody who
// has read our close_notify, and not from one who died before. What cannot be told is
// whether it would have sent more: so it is a reset all the same, and only the log says
// it in another way.
func (s *socket) unannounced() error {
	if !s.ending.Load() || s.spoke || !s.last.whole() {
		return errUnannounced
	}
	s.end.Lock()
	defer s.end.Unlock()
	if !s.ended || !delivered(s.Conn) {
		return errUnannounced
	}
	return errLeft
}

// A record is how far the last record of a TLS connection has come (RFC 8446, section
// 5.1).
type record struct {
	header [5]byte
	have   int // of the header
	left   int // of what follows it
}

// take notes the next bytes of the connection.
func (r *record) take(p []byte) {
	for len(p) > 0 {
		if r.left > 0 {
			n := min(r.left, len(p))
			r.left -= n
			p = p[n:]
			continue
		}
		n := copy(r.header[r.have:], p)
		r.have += n
		p = p[n:]
		if r.have == len(r.header) {
			r.have, r.left = 0, int(binary.BigEndian.Uint16(r.header[3:]))
		}
	}
}

// whole tells whether no part of a record is missing.
func (r *record) whole() bool { return r.have == 0 && r.left == 0 }

// tcpOf returns the TCP connection beneath c, nil if there is none.
func tcpOf(c net.Conn) *net.TCPConn {
	for {
		switch l := c.(type) {
		case *net.TCPConn:
			return l
		case interface{ NetConn() net.Conn }:
			c = l.NetConn()
		default:
			return nil
		}
	}
}

// watch has TCP notice within seconds that the peer of a silent connection is gone.
func watch(c net.Conn) {
	if tcp := tcpOf(c); tcp != nil {
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: time.Second, Count: 3})
	}
}

// read reads ahead when the last read got all that it had room for. A connection
// that waits for more than the rest of a burst so holds no buffer, unless its reader
// holds one.
func (s *socket) read(p []byte) (int, error) {
	if s.ahead == nil {
		if s.brief {
			return 0, os.ErrDeadlineExceeded // for crypto/tls an error that passes
		}
		if !s.full && !s.bulk || len(p) >= len(buffer{}) {
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
	switch {
	case s.ticket:
		return s.withhold(p)
	case s.withheld != nil:
		first := s.withheld
		s.withheld = nil
		n, err := s.Conn.Write(append(first, p...))
		return max(n-len(first), 0), err
	case s.gathered == nil:
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

// config returns a copy of c for this connection, which makes and takes the session
// tickets of c, but sends them late.
//
// In TLS 1.3 a server sends a ticket unasked, at the end of the handshake. A client
// that only writes never reads it, and TCP resets a connection that is closed with
// bytes unread, by which what was sent last can be lost. So the ticket waits for the
// first other bytes: who does not read those has lost the connection anyway. In TLS
// 1.2 a ticket is part of the handshake, and read with it.
func (s *socket) config(c *tls.Config) *tls.Config {
	own := c.Clone()
	own.GetConfigForClient = nil
	if c.SessionTicketsDisabled {
		return own
	}
	// The keys are those of c, which makes others from time to time.
	own.UnwrapSession = c.DecryptTicket
	own.WrapSession = func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		ticket, err := c.EncryptTicket(state, session)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ticket = err == nil && state.Version == tls.VersionTLS13 && len(ticket) < mostWithheld
		return ticket, err
	}
	return own
}

// mostWithheld is the longest ticket that is withheld. It fits into one record.
const mostWithheld = 8 << 10

// withhold writes the records p without the last one. mu must be held.
func (s *socket) withhold(p []byte) (int, error) {
	s.ticket = false
	last := 0
	for next := 0; next+5 <= len(p); next += 5 + int(binary.BigEndian.Uint16(p[next+3:])) {
		last = next
	}
	if last > 0 {
		if n, err := s.Conn.Write(p[:last]); err != nil {
			return n, err
		}
	}
	s.withheld = bytes.Clone(p[last:])
	return len(p), nil
}

// abort ends the TCP connection with a RST.
func (s *socket) abort() error {
	for c := s.Conn; ; {
		switch l := c.(type) {
		case interface{ SetLinger(int) error }:
			return errors.Join(l.SetLinger(0), s.Conn.Close())
		case interface{ NetConn() net.Conn }:
			c = l.NetConn()
		default:
			return s.Conn.Close()
		}
	}
}
