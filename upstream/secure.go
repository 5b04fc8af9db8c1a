package upstream

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// errUnannounced is a syscall.ECONNRESET to errors.Is.
var errUnannounced error = &resetError{"the connection ended without close_notify"}

// A resetError says that a connection was aborted.
type resetError struct{ words string }

func (e *resetError) Error() string { return e.words }

func (e *resetError) Unwrap() error { return syscall.ECONNRESET }

// A socket is the connection beneath a tls.Conn.
//
// crypto/tls reports a connection that ends without close_notify as io.EOF, just
// as one that ends with it. It does not read on after close_notify, though. So an
// end of file that is seen here was not announced: it is a reset, and what
// crypto/tls then calls io.EOF is close_notify and nothing else.
type socket struct{ net.Conn }

// NetConn returns the connection beneath, whose kernel knows of a reset that
// crypto/tls does not read.
func (s *socket) NetConn() net.Conn { return s.Conn }

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if n == 0 && err == io.EOF {
		err = errUnannounced
	}
	return n, err
}

// abort ends the connection beneath with a reset: a RST of TCP.
func (s *socket) abort(reason string) error {
	if r, ok := s.Conn.(interface{ Reset(string) error }); ok {
		return r.Reset(reason)
	}
	if l, ok := s.Conn.(interface{ SetLinger(int) error }); ok {
		return errors.Join(l.SetLinger(0), s.Conn.Close())
	}
	return s.Conn.Close()
}

// A secureConn is a connection with TLS. It is half-closed by CloseWrite
// (close_notify), aborted by Reset, and a peer that goes without close_notify has
// reset it. It is no relay.Watcher: after close_notify nothing is left to read, and
// that the peer is gone is told by the TCP connection beneath, to which NetConn
// leads.
type secureConn struct {
	*tls.Conn // over socket
	socket    *socket
	session   *session

	mu       sync.Mutex
	heard    bool  // something was read
	finished bool  // CloseWrite was called
	err      error // why this end is over
}

// end ends this end, once.
func (c *secureConn) end(why error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	c.err = why
	return true
}

// ended returns the error to show for err: once this end is over, why it is; and
// for what the upstream said of our handshake, which in TLS 1.3 comes only with the
// first read, an *Error. There are upstreams (nginx before a stream) that want a
// certificate and, if there is none, say goodbye in order and not a word before.
func (c *secureConn) ended(err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == io.EOF {
		if s := c.session; !c.heard && !c.finished && s.asked.Load() && s.secret == "" {
			return s.late(err)
		}
		return err
	}
	if c.err != nil {
		return c.err
	}
	alert, isAlert := isAlert(err)
	switch {
	case !c.heard && (isAlert || c.session.asked.Load() && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE))):
		return c.session.late(err)
	case isAlert:
		return &resetError{"the upstream ended TLS: " + alert}
	}
	return err
}

// Read implements net.Conn.
func (c *secureConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		c.heard = true
		c.mu.Unlock()
	}
	return n, c.ended(err)
}

// Write implements net.Conn.
func (c *secureConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.ended(err)
}

// CloseWrite sends close_notify.
func (c *secureConn) CloseWrite() error {
	c.mu.Lock()
	c.finished = true
	c.mu.Unlock()
	return c.ended(c.Conn.CloseWrite())
}

// Close sends close_notify, if CloseWrite has not, and closes the connection.
func (c *secureConn) Close() error {
	if !c.end(net.ErrClosed) {
		return net.ErrClosed
	}
	return c.Conn.Close()
}

// Reset ends the TCP connection with a RST, and without close_notify. TLS has no
// place for a reason.
func (c *secureConn) Reset(reason string) error {
	if !c.end(&resetError{"stream reset: " + reason}) {
		return nil
	}
	err := c.socket.abort(reason)
	c.Conn.Close() // for its own bookkeeping; its goodbye cannot be sent any more
	return err
}
