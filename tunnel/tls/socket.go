package tls

import (
	"errors"
	"io"
	"net"

	"cardea/tunnel"
)

// socket is the connection beneath a tls.Conn.
//
// crypto/tls reports a connection that ends without close_notify as io.EOF, just
// as one that ends with it. It does not read on after close_notify, though. So an
// end of file that is seen here was not announced, and a strict socket says that
// it is a reset; what crypto/tls then calls io.EOF is close_notify and nothing
// else.
type socket struct {
	net.Conn
	hello  hello
	mute   bool // says nothing: it is not known yet that the peer may hear something
	strict bool
}

var errUnannounced = &tunnel.ResetError{Reason: "the connection ended without close_notify"}

// NetConn returns the connection beneath, whose kernel knows of a reset that
// crypto/tls does not read.
func (s *socket) NetConn() net.Conn { return s.Conn }

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if s.strict && n == 0 && err == io.EOF {
		err = errUnannounced
	}
	return n, err
}

func (s *socket) Write(p []byte) (int, error) {
	if s.mute {
		return len(p), nil
	}
	return s.Conn.Write(p)
}

// abort ends the TCP connection with a RST.
func (s *socket) abort() error {
	if l, ok := s.Conn.(interface{ SetLinger(int) error }); ok {
		return errors.Join(l.SetLinger(0), s.Conn.Close())
	}
	return s.Conn.Close()
}
