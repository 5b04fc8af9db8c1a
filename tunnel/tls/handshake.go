package tls

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"cardea/api"
)

// handshakeTime is how long a handshake may take if nothing else is said.
const handshakeTime = 10 * time.Second

// handshakeBytes is what a peer may send until its handshake is complete. Its
// hello may have 64 KiB (crypto/tls sees to that) and its certificates what is
// left; those of a Session have one.
const handshakeBytes = 128 << 10

// A handshake is how a server makes one.
type handshake struct {
	admit  func(context.Context, net.Conn) (heard func() error, leave func(proved bool) error, err error)
	limit  time.Duration
	proves func(*tls.Conn) bool // whether it has proved a Session
}

// do returns the TLS connection over sock, once its peer has proved what the
// config asks for. The config must call sock.heard when the hello is there.
func (h handshake) do(ctx context.Context, sock *socket, config *tls.Config) (*tls.Conn, error) {
	leave := func(bool) error { return nil }
	sock.heard = func() error { return nil }
	if h.admit != nil {
		var err error
		if sock.heard, leave, err = h.admit(ctx, sock.Conn); err != nil {
			sock.abort() // nothing was said, and nothing shall be left of it
			return nil, err
		}
	}
	conn, err := h.shake(ctx, sock, config)
	if e := leave(err == nil && h.proves(conn)); e != nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (h handshake) shake(ctx context.Context, sock *socket, config *tls.Config) (*tls.Conn, error) {
	if err := sock.SetDeadline(time.Now().Add(h.limit)); err != nil {
		return nil, err
	}
	sock.allowance = handshakeBytes
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	conn := tls.Server(sock, config)
	err := conn.HandshakeContext(context.WithoutCancel(ctx)) // stop does it without a goroutine
	if !stop() {
		return nil, errStopping
	}
	if err != nil {
		return nil, err
	}
	sock.allowance = 0
	sock.heard = nil // it holds on to what is over
	return conn, sock.SetDeadline(time.Time{})
}

// An overload is an error that says that a limit of the process was met.
type overload struct{ error }

// Reason returns what a Refusal says.
func (overload) Reason() api.ReasonType { return api.ReasonOverload }

var errStopping = overload{errors.New("the server is stopping")}

// A refusal is why a connection ended in its handshake, in words for the log.
type refusal struct {
	words  string
	reason api.ReasonType
}

// Error implements error.
func (r refusal) Error() string { return r.words }

// Reason returns what a Refusal says.
func (r refusal) Reason() api.ReasonType { return r.reason }

// refused returns the refusal that an error means.
func refused(err error) refusal {
	r := refusal{words(err), api.ReasonHandshake}
	if e := interface{ Reason() api.ReasonType }(nil); errors.As(err, &e) {
		r.reason = e.Reason()
	}
	return r
}

// words says for the log why a handshake failed.
func words(err error) string {
	var header tls.RecordHeaderError
	var remote *net.OpError
	switch {
	case errors.As(err, &header):
		return "not TLS"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "no complete handshake in time"
	case errors.As(err, &remote) && remote.Op == "remote error":
		return "the client ended the handshake: " + remote.Err.Error()
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the client went away before the handshake was complete"
	}
	w := strings.TrimPrefix(err.Error(), "tls: ")
	return w[:min(len(w), 200)]
}
