// Package relay says what it is to carry bytes between two connected streams:
// what a relay is given ([Pair], [Limits]), what it tells while it runs
// ([Live]) and when it ends ([Result], [Reason]), and who does it ([Engine]).
//
// Two promises hold for every engine. A half-close is passed on and lasts as
// long as the peers want, within the limits. A reset is passed on as a reset:
// what was cut short never looks finished to either peer. That holds also for a
// side that has half-closed: it is not read any more, but watched, so that one
// that then aborts or dies does not keep the other side waiting. The kernel
// watches a TCP connection (for one whose peer has died in silence only with
// keepalive, which is the business of who accepts or dials it); any other stream
// must be a [Watcher].
//
// Streams are net.Conn. What a plain net.Conn cannot say is said by small
// optional interfaces: [CloseWriter], [Resetter], [Watcher], [Layered],
// [Transparent].
//
// A net.Conn may also keep the boundaries of datagrams: see [Datagram]. Two of those are
// what the engine of package datagram carries, and nobody else.
package relay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Reason says who ended a connection, or why. The values are those of the
// access log.
type Reason string

const (
	ClientClosed   Reason = "CLIENT_CLOSED"   // both directions finished, the client's first
	UpstreamClosed Reason = "UPSTREAM_CLOSED" // both directions finished, the upstream's first; or see Departure
	ClientReset    Reason = "CLIENT_RESET"    // the client aborted, or was lost
	UpstreamReset  Reason = "UPSTREAM_RESET"  // the upstream aborted, or was lost
	DialFailed     Reason = "DIAL_FAILED"     // the upstream could not be reached
	DialTimeout    Reason = "DIAL_TIMEOUT"    // the upstream did not answer in time
	IdleTimeout    Reason = "IDLE_TIMEOUT"    // Limits.Idle or Limits.HalfClose passed
	MaxDuration    Reason = "MAX_DURATION"    // Limits.Duration passed
	Revoked        Reason = "REVOKED"         // the right to the connection was withdrawn
	Limit          Reason = "LIMIT"           // a limit on connections or bytes was met
	Unhealthy      Reason = "UNHEALTHY"       // no healthy endpoint, or it became unhealthy
	UpstreamTLS    Reason = "UPSTREAM_TLS"    // the TLS handshake with the upstream failed
	Drained        Reason = "DRAINED"         // this process is stopping
	Crashed        Reason = "CRASHED"         // this process died while it relayed
	ProtocolError  Reason = "PROTOCOL_ERROR"  // a peer broke the rules of its protocol
)

// Limits bound a relay. Zero is no bound. A limit of time never ends a relay early,
// and at most a second late; that of bytes never before so many have passed, and at
// most a second after. A write to a stream that is not TCP may count as delivered only
// when all of it is.
type Limits struct {
	Idle      time.Duration // since a byte was last delivered in either direction
	HalfClose time.Duration // the same as Idle, once one of the two directions has finished
	Duration  time.Duration // since the start
	Bytes     int64         // of both directions together: [Limit]
	// Upload and Download are how many bytes a second may go up and down, over any
	// second or more. A quarter of a second's worth, and at least 16 KiB, may go at once.
	Upload, Download int64
}

// Pair is two connected streams and how long they may be joined.
type Pair struct {
	Client   net.Conn // who asked
	Upstream net.Conn // whom they asked
	Limits   Limits
}

// Result is how a relay ended.
type Result struct {
	Received int64 // bytes from the client that were written to the upstream
	Sent     int64 // bytes from the upstream that were written to the client
	// ReceivedPackets and SentPackets count the same in datagrams, where there are any.
	ReceivedPackets, SentPackets int64

	Reason Reason
	Err    error // detail for the log; nil when both directions finished
}

// Live is a relay that was started. Its methods may be called at any time, also
// after the end, from any goroutine.
type Live interface {
	// Bytes returns the two counters of [Result] as they stand.
	Bytes() (received, sent int64)

	// Cut resets both legs at once, whatever the relay is doing, and does not
	// wait for a peer. The first reason that is given, be it by a peer, a
	// limit or Cut, is that of the result. After the end Cut does nothing.
	Cut(Reason)

	// Limit puts other limits in the place of those that the relay has. Each
	// counts from where it always does, but an Idle limit where there was none
	// may count from now. After the end it does nothing.
	Limit(Limits)
}

// Engine carries pairs.
type Engine interface {
	// Start takes ownership of both streams, clears their deadlines, and
	// returns at once. The engine calls done exactly once, from a goroutine of
	// its own, after both streams are closed; that can be before Start has
	// returned. done must not block for long and must not call Wait.
	Start(p Pair, done func(Result)) Live

	// Wait returns when no relay is running and each done has returned. It
	// ends nothing: cut what shall not run on. After it the engine holds
	// neither goroutine nor descriptor, unless a Listener serves, and may be
	// used again.
	Wait()
}

// Acceptor is an Engine that accepts TCP connections by itself, raw: nothing of them is
// known to package net until somebody asks for that.
type Acceptor interface {
	Engine

	// Listen takes a listening socket over from package net: l is closed, and what it
	// listened on stays open, with what waits in its queue. It fails only if no
	// descriptor can be had, and then l is as it was.
	Listen(l *net.TCPListener) (Listener, error)
}

// Listener is a listening socket of an Acceptor.
type Listener interface {
	// Serve calls take for each connection that comes in, until ctx is done or Close or
	// Retire is called, and returns nil when no call of take is under way any more. take
	// must not block; it is called by several goroutines at once. The connection is a
	// [Socket]. A failure to accept that passes is told to trouble, which returns how
	// long to wait; any other ends Serve.
	Serve(ctx context.Context, take func(net.Conn), trouble func(error) time.Duration) error
	// Retire ends Serve, which first takes the connections that wait in the queue.
	Retire()
	// Close ends Serve and closes the descriptor. What waits in the queue is lost unless
	// another process, or another descriptor, has the socket too.
	Close() error
	Addr() net.Addr
	// SyscallConn gives access to the descriptor while it is open.
	SyscallConn() (syscall.RawConn, error)
}

// Socket is a TCP connection that an Acceptor has accepted. Until it is given to an
// Engine it belongs to whoever was given it, and to one goroutine at a time; but while
// Await waits, Close and Reset may be called by any, and got is then told
// net.ErrClosed at most. Its addresses, Close and [Reset] cost what they must; the first
// call of any other method of net.Conn hands it to package net, as TCP does, after which
// it is an ordinary connection with one more layer.
type Socket interface {
	net.Conn
	Resetter
	CloseWriter

	// AddrPorts returns the addresses of both ends. IPv4 within IPv6 is IPv4.
	AddrPorts() (local, remote netip.AddrPort)

	// Await calls got when the client has sent something, with all that was read of it
	// and not discarded, and again when there is more, for as long as got returns true;
	// or with an error when the client finished or broke off, or when within is over
	// (os.ErrDeadlineExceeded). It returns at once. got must not block; it is called by
	// the goroutine that called take, after Await has returned. What was read stays the Socket's: an Engine, TCP
	// and Read give it out first. At most so many bytes as most are read; got is then
	// called no more by what arrives. The slice is good until got returns. In got the
	// Socket may be given away, ended, or waited for anew: then what got returns counts
	// for nothing.
	Await(within time.Duration, most int, got func(read []byte, err error) (more bool))

	// Discard forgets the first n bytes of what Await has read.
	Discard(n int)

	// TCP gives the connection to package net, and up: the Socket must not be used after
	// it. What Await has read comes with it. If it fails the connection is closed.
	TCP() (c *net.TCPConn, read []byte, err error)
}

// Connector is an Engine that also connects to upstreams by itself.
type Connector interface {
	Engine

	// Connect is Start for a client whose upstream is not there yet. It takes ownership
	// of client and returns at once, with nil if client is not a Socket of this
	// Engine, perhaps beneath a Transparent: then it has done nothing, and the caller
	// dials, and calls Start.
	//
	// The methods of o are called one at a time, by the goroutine that accepted client
	// or by another one of the engine, and must not block. The first call can come
	// before Connect has returned. Cut ends a Live that is still connecting.
	Connect(client net.Conn, o Opening) Live
}

// Opening says where a [Connector] connects to.
type Opening interface {
	// Next returns where to connect to, and how long that may take. It is called first
	// with nil, and again with the error when that failed: ETIMEDOUT, ECONNREFUSED and
	// the like. ok is false when there is nowhere else: the client is reset then, and
	// Done gets DialFailed, or DialTimeout, with the last error.
	Next(failed error) (to netip.AddrPort, within time.Duration, ok bool)

	// Connected is called when the upstream has answered, before any byte has passed.
	// local is the address of this end, where there is need of it (see NeedsLocal), and
	// else not valid. preface is sent to the upstream first, and counts as nobody's
	// bytes. An error resets both sides, and Done gets it, with ProtocolError unless it
	// has a method CloseReason() string.
	Connected(local netip.AddrPort) (l Limits, preface []byte, err error)

	// NeedsLocal reports whether Connected wants to know the local address.
	NeedsLocal() bool

	// Done is what done of Start is.
	Done(Result)
}

// CloseWriter is a stream that can finish its sending direction and go on
// receiving, as TCP does. The end of a stream that cannot be passed on this way
// ends the relay.
type CloseWriter interface {
	CloseWrite() error
}

// Resetter is a stream that aborts itself: its peer sees a reset and never an
// end of file, in whatever order it reads. Reset also closes the stream locally,
// wakes blocked reads and writes, does not wait for the peer, and may be called
// more than once. The reason is a [Reason]; a transport that can carry it should.
type Resetter interface {
	Reset(reason string) error
}

// Watcher is a stream that can tell that its peer has aborted it, or was lost,
// after the end of file, when Read has no more to say.
type Watcher interface {
	// WaitReset may be called after Read has returned io.EOF. It waits as long as
	// the stream may still be aborted, which is as long as the peers want, and
	// returns an error when it was: by the peer, or by Close or Reset at this
	// end, which wake it. It returns nil when that cannot happen, or cannot be
	// told, any more. Until it has returned there must be no call of Read, and a
	// deadline for reading that passes may make it fail.
	WaitReset() error
}

// Layered is a stream over another, as tls.Conn is. A reset must strike what is
// beneath, because the upper layer's Close says goodbye first. What lies beneath
// also tells of the peer's reset, unless the Layered stream is a Watcher itself.
type Layered interface {
	NetConn() net.Conn
}

// Transparent is a Layered stream that changes no byte: it has only read ahead,
// say to look for a server name. An engine takes Unread once, when it starts, as
// the first bytes of the stream, then reads, writes and half-closes NetConn
// directly, and closes the Transparent stream in the end.
type Transparent interface {
	Layered
	// Unread returns, and gives up, what was read from NetConn and not yet
	// returned by Read.
	Unread() []byte
}

// Reset aborts a stream so that its peer sees a reset. It asks a [Resetter],
// goes down through a [Layered] stream, and closes a TCP connection with a
// linger time of zero. Any other stream is only closed: its peer may take that
// for an end of file. (A Unix socket is such a stream: its kernel knows no
// reset.)
func Reset(c net.Conn, r Reason) error {
	switch s := c.(type) {
	case Resetter:
		return s.Reset(string(r))
	case *net.TCPConn:
		return errors.Join(s.SetLinger(0), s.Close())
	case Layered:
		err := Reset(s.NetConn(), r)
		c.Close() // for its own bookkeeping; its goodbye cannot be sent any more
		return err
	default:
		return c.Close()
	}
}

// ResetError is what a stream that is not a kernel socket returns from Read or
// Write after a reset, its peer's or its own. It is a syscall.ECONNRESET to
// errors.Is.
type ResetError struct {
	Reason string // as given to [Resetter]; from a peer: do not trust its content
}

// Error implements error.
func (e *ResetError) Error() string { return "stream reset: " + e.Reason }

// Unwrap returns syscall.ECONNRESET.
func (e *ResetError) Unwrap() error { return syscall.ECONNRESET }

// Departure is what Read may return in place of a reset: the peer went without the
// goodbye that its protocol wants, but only after it had taken our end (see
// [CloseWriter]), and had sent nothing since. For the other peer that is a reset, as
// nobody can tell whether all came. For the log it is none: the other peer was the
// first to finish, and there is no error.
type Departure interface {
	error
	// AfterEnd does nothing.
	AfterEnd()
}

// IsReset tells whether a Read or Write failed because the stream was aborted,
// be it by the peer or by this side.
func IsReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
