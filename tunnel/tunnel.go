// Package tunnel is the road between a client and the house: on the house's
// side a road ends in [api.Arrival]s, on the client's side in net.Conns.
//
// Implementations live beside it: memory (inside one process), tls (mutual TLS: raw
// streams by SNI, the protocol cardea/1, and streams to devices that serve), quic and
// wireguard. Package tunneltest holds the contract that they pass.
//
// # Contract
//
// The conns of both ends are [Conn]s. They keep half-close in both directions:
// what was written before CloseWrite arrives whole, then the end of file, and
// the answer may come later.
//
// What was cut short never looks finished. After Reset at one end, or when the
// peer is lost, Read and Write at the other return an error that is
// syscall.ECONNRESET to errors.Is, whatever it had left unread. Reset wakes what
// is blocked at its own end and waits for no peer. Close is for a conn that has
// said and heard all: if the peer still writes, it sees a reset.
//
// Where the road can carry a verdict, the conn of an Arrival is a [Teller]; it
// carries no byte to the peer before Verdict, Dial returns after it, and what a
// refused peer has sent is discarded.
//
// SetDeadline and its kin work as net.Conn says, except that a Write that timed
// out may have ended the conn. Before a conn is handed over its deadlines are
// clear.
package tunnel

import (
	"context"
	"net"
	"syscall"

	"cardea/api"
)

// A Dialer is the client's end of a road.
type Dialer interface {
	// Dial opens a connection to a Service (SERVICE or SERVICE.NAMESPACE). A
	// refusal is an *api.Error, as far as the house tells one: PERMISSION_DENIED,
	// UNAVAILABLE, UNAUTHENTICATED. The conn is a [Conn]; ctx bounds the dialling
	// only.
	Dial(ctx context.Context, service string) (net.Conn, error)
}

// A Handler takes what arrives. It returns at once: the Arrival is the
// handler's from then on.
type Handler interface {
	Arrive(api.Arrival)
	// Refused reports an attempt that ended before there was an Arrival.
	Refused(api.Refusal)
}

// A Conn is a stream that can end in three ways: closed in one direction, closed
// in both, and cut.
type Conn interface {
	net.Conn
	// CloseWrite says that no more bytes come. Reading goes on.
	CloseWrite() error
	// Reset cuts the stream and closes it. The reason reaches the peer if the
	// road can carry one. It may be called more than once.
	Reset(reason string) error
}

// A Watcher is a Conn that can tell that its peer has cut it, or was lost, after
// the end of file, when Read has no more to say. A Conn that is none leads down to
// its TCP connection by NetConn() net.Conn, and the kernel can tell.
type Watcher interface {
	// WaitReset may be called after Read has returned io.EOF. It waits as long as
	// the stream may still be cut, and returns an error when it was: by the peer,
	// as Read would, or by Close or Reset at this end, which wake it. It returns
	// nil when the peer can only close any more. Until it has returned there must
	// be no call of Read, and a deadline for reading that passes may make it fail.
	WaitReset() error
}

// A Teller is the conn of an Arrival that can tell the peer what became of its
// request.
type Teller interface {
	// Verdict tells the peer, once, before any byte. After one that is not OK
	// nothing but Close or Reset is left to do.
	Verdict(api.Verdict) error
}

// A ResetError is what Read and Write of a conn return after a reset, be it the
// peer's or this side's own. It is syscall.ECONNRESET to errors.Is.
type ResetError struct {
	Reason string // as given to Reset, or what became of the peer; do not trust its content
}

// Error implements error.
func (e *ResetError) Error() string { return "stream reset: " + e.Reason }

// Unwrap returns syscall.ECONNRESET.
func (e *ResetError) Unwrap() error { return syscall.ECONNRESET }

// Refused returns what Dial returns after a Verdict: nil if it is OK, and an
// *api.Error otherwise.
func Refused(service string, v api.Verdict) error {
	e := &api.Error{DecisionID: v.DecisionID}
	switch v.Code {
	case api.VerdictOK:
		return nil
	case api.VerdictUnavailable:
		e.Code = api.CodeUnavailable
		e.Message = "Service " + service + " is not available"
	default: // also a code of a later version: what is not OK is refused
		e.Code = api.CodePermissionDenied
		e.Message = "access to Service " + service + " is denied"
	}
	if v.Words != "" {
		e.Message += ": " + v.Words
	}
	return e
}

// Lost returns what Dial returns when the house went away before its Verdict.
func Lost(service, reason string) error {
	return api.Errorf(api.CodeUnavailable, "no answer for Service %s: %s", service, reason)
}

// MaxPacket is the size in bytes of the largest packet of a [Pipe].
const MaxPacket = 1<<16 - 1

// A Pipe carries packets between a client and a gateway, each whole or not at all. It
// may lose some, and bring them in another order: it is for those of WireGuard, where
// these cannot go by UDP of their own, and trusts nothing to be what it says it is.
type Pipe interface {
	// Receive reads the next packet into b and returns its size. What is larger than b is
	// lost.
	Receive(b []byte) (int, error)
	// Send sends a packet. It does not wait for a peer that is slow: it loses the packet
	// then, and returns nil. An error says that the pipe is over.
	Send(b []byte) error
	// Close ends the pipe, and wakes Receive.
	Close() error
	// RemoteAddr is where the packets come from.
	RemoteAddr() net.Addr
}
