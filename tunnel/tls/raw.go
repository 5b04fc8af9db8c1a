package tls

import (
	"crypto/tls"
	"net"
	"sync"

	"cardea/tunnel"
)

// raw is a stream that is a TLS connection. It is no [tunnel.Watcher]: after
// close_notify nothing is left to read, and that the peer is gone is told by the TCP
// connection beneath, to which NetConn leads.
type raw struct {
	*tls.Conn // over a strict socket
	socket    *socket

	mu  sync.Mutex
	err error // why this end is over
}

var _ tunnel.Conn = (*raw)(nil)

// end ends this end, once.
func (r *raw) end(why error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return false
	}
	r.err = why
	return true
}

// ended returns the error to show for err: once this end is over, why it is, and
// an alert of the peer (who did not like our certificate, say) as a reset.
func (r *raw) ended(err error) error {
	if err == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	if remote, ok := err.(*net.OpError); ok && remote.Op == "remote error" {
		return &tunnel.ResetError{Reason: remote.Err.Error()}
	}
	return err
}

func (r *raw) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	return n, r.ended(err)
}

func (r *raw) Write(p []byte) (int, error) {
	n, err := r.Conn.Write(p)
	return n, r.ended(err)
}

// CloseWrite sends close_notify.
func (r *raw) CloseWrite() error { return r.ended(r.socket.closeWrite(r.Conn)) }

// Close sends close_notify, if CloseWrite has not, and closes the connection.
func (r *raw) Close() error {
	if !r.end(net.ErrClosed) {
		return net.ErrClosed
	}
	return r.Conn.Close()
}

// Reset ends the TCP connection with a RST, and without close_notify. TLS has no
// place for a reason.
func (r *raw) Reset(reason string) error {
	if !r.end(&tunnel.ResetError{Reason: reason}) {
		return nil
	}
	err := r.socket.abort()
	r.Conn.Close() // for its own bookkeeping; its goodbye cannot be sent any more
	return err
}
