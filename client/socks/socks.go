// Package socks is the proxy through which programs of this machine reach what has no
// local address of its own: SOCKS version 5 (RFC 1928), and HTTP CONNECT (RFC 9110,
// section 9.3.6), told apart by the first byte of a connection.
//
// It lends the rights of a person to whoever can connect, so it is strict: whom Admit
// refuses is reset, and what a web page can make a browser send (a request of HTTP
// other than CONNECT, or one that says where it comes from) is refused in words and
// never reaches a Service.
package socks

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardea/api"
)

const (
	requestTime = 10 * time.Second // for a client to say what it wants
	dialTime    = 45 * time.Second // for what it wants to be there
	goodbyeTime = time.Second      // for a refused client to read why
	maxRequests = 256              // clients at once that have not said what they want
	maxRequest  = 16 << 10         // bytes of a request of HTTP
)

// Server is the proxy. The fields are all that it needs.
type Server struct {
	// Dial connects to what a client asks for: a name or an IP address, and a port from
	// 1 to 65535. An [*api.Error] is told to the client, in words by HTTP and by its code
	// in SOCKS; to tell anybody else is the business of Dial.
	Dial func(ctx context.Context, host string, port int) (net.Conn, error)
	// DialPackets is the same for datagrams: each Read and Write is one. Nil refuses
	// UDP ASSOCIATE.
	DialPackets func(ctx context.Context, host string, port int) (net.Conn, error)
	// Admit says whether a client may use the proxy. Nil admits all that can connect.
	Admit func(net.Conn) error
	// AdmitPackets says the same of the sender of datagrams, whose address is client, to
	// the socket that was opened for it. Nil admits all of the client's IP address.
	AdmitPackets func(client, socket netip.AddrPort) error
	// Relay joins a client to what Dial returned, and owns both. It may return before
	// they are done; Serve does not wait for what it leaves behind.
	Relay func(client, upstream net.Conn)
	Log   *slog.Logger
}

// Serve takes the connections of a listener, which it closes, until ctx is done or the
// listener fails. It returns nil, or why the listener failed, when no client waits to
// be served any more.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	var clients sync.WaitGroup
	defer func() {
		stop()
		cancel()
		l.Close()
		clients.Wait()
	}()
	asking := make(chan struct{}, maxRequests)
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			s.Log.Warn("cannot accept a connection", "error", err)
			pause(ctx, 100*time.Millisecond)
			continue
		case err != nil:
			return err
		}
		select {
		case asking <- struct{}{}:
			clients.Go(func() { s.serve(ctx, c, sync.OnceFunc(func() { <-asking })) })
		default:
			s.Log.Warn("refused a client of the proxy: too many have not said yet what they want", "limit", maxRequests)
			reset(c)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// serve serves a client. It calls asked when the client has said what it wants.
func (s *Server) serve(ctx context.Context, c net.Conn, asked func()) {
	defer asked()
	if s.Admit != nil {
		if err := s.Admit(c); err != nil {
			s.Log.Warn("refused a client of the proxy", "error", err)
			reset(c)
			return
		}
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	c.SetDeadline(time.Now().Add(requestTime))
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		c.Close()
		return
	}
	p := protocol(first[0])
	if p == nil {
		s.Log.Warn("refused a client of the proxy", "error", "it speaks neither SOCKS5 nor HTTP")
		reset(c)
		return
	}
	want, err := p.request(c, first[0])
	if err != nil {
		if !isBroken(err) {
			s.Log.Warn("refused a client of the proxy", "error", err)
		}
		bye(c)
		return
	}
	asked()
	c.SetDeadline(time.Time{})
	if want.packets {
		s.associate(ctx, c)
		return
	}
	dial, cancel := context.WithTimeout(ctx, dialTime)
	upstream, err := s.Dial(dial, want.host, want.port)
	cancel()
	if err != nil {
		c.SetDeadline(time.Now().Add(goodbyeTime))
		p.refuse(c, err)
		bye(c)
		return
	}
	if err := p.accept(c, upstream); err != nil || !stop() {
		upstream.Close()
		c.Close()
		return
	}
	s.Relay(c, upstream)
}

// target is what a client asks for.
type target struct {
	host    string
	port    int
	packets bool // UDP ASSOCIATE; then without the others
}

// A dialect is one of the two protocols, at the side of the proxy.
type dialect interface {
	// request reads what the client wants, after the first byte. If that cannot be, it
	// has told the client so, and returns why.
	request(c net.Conn, first byte) (target, error)
	// accept tells the client that it is connected.
	accept(c, upstream net.Conn) error
	// refuse tells the client why it is not.
	refuse(c net.Conn, why error)
}

func protocol(first byte) dialect {
	switch {
	case first == version:
		return socks5{}
	case first >= 'A' && first <= 'Z':
		return connect{}
	}
	return nil
}

// isHost reports whether a name may be asked for: what is in it is printed to people,
// and looked for among the names of Services.
func isHost(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// isBroken reports whether an error is one of the connection: its client left, or was
// too slow.
func isBroken(err error) bool {
	e := net.Error(nil)
	return errors.As(err, &e) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// bye closes a connection in a way that lets its client read what it was told last: a
// close with something unread would be a reset, which may overtake that.
func bye(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		c.SetReadDeadline(time.Now().Add(goodbyeTime))
		io.Copy(io.Discard, io.LimitReader(c, maxRequest))
	}
	c.Close()
}

// reset closes a connection without a word.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// A failure is what went wrong, as both protocols can say it.
type failure int

const (
	failed failure = iota
	notAllowed
	networkUnreachable
	hostUnreachable
	refused
	timedOut
)

func classify(err error) failure {
	if e, ok := errors.AsType[*api.Error](err); ok {
		switch e.Code {
		case api.CodePermissionDenied, api.CodeUnauthenticated:
			return notAllowed
		case api.CodeNotFound:
			return hostUnreachable
		}
	}
	lookup := (*net.DNSError)(nil)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	case errors.Is(err, syscall.ENETUNREACH):
		return networkUnreachable
	case errors.Is(err, syscall.EHOSTUNREACH), errors.As(err, &lookup):
		return hostUnreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return timedOut
	}
	return failed
}
