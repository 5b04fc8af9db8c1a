// Package ingress takes connections in. A [Listener] accepts them and keeps doing
// so: what goes wrong while accepting ends it only if the listener itself is gone.
//
// An [Admission] sees that strangers cannot keep anybody out. [Compile] makes one
// [Table] of all that wants a public port, Services and the Objects of other systems;
// a [Router] keeps the ports of the table open, and sorts what comes in: by the address
// that it came to, the header of a proxy, the server name and protocols of its TLS
// hello, and the network that it came from.
package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/api"
	"cardea/relay"
)

// raw is a relay.Listener where a net.Listener is wanted. Nobody calls its Accept.
type raw struct{ relay.Listener }

// Accept implements net.Listener.
func (raw) Accept() (net.Conn, error) { return nil, errors.ErrUnsupported }

// A Listener hands on what a net.Listener accepts. Its fields must not be changed
// while it is in use.
type Listener struct {
	net.Listener
	// Handle is given each connection, in a goroutine of its own. Serve waits
	// for it to return; ctx is Serve's. They begin in the order in which the
	// connections came: more than this process can take at a time wait in the
	// kernel's queue, which is bounded, and overtake nobody.
	Handle func(ctx context.Context, c net.Conn)
	// Direct is set if Handle returns at once: then it is called without a
	// goroutine.
	Direct bool
	// Refused is told of connections that were closed at once because this
	// process has no descriptor left. May be nil.
	Refused func(api.Refusal)
	Log     *slog.Logger

	accepted, failures atomic.Int64
	retiring           atomic.Bool

	troubled atomic.Bool // accepting has failed since it last succeeded
	mu       sync.Mutex  // of what follows
	spare    spare
	waited   time.Duration
	logged   time.Time
}

// Accepted returns how many connections were given to Handle so far.
func (l *Listener) Accepted() int64 { return l.accepted.Load() }

// Failures returns how often accepting has failed so far.
func (l *Listener) Failures() int64 { return l.failures.Load() }

// Retire ends Serve, which first takes the connections that wait: to whoever made
// one, it was accepted when the kernel said so.
func (l *Listener) Retire() {
	l.retiring.Store(true)
	takeNoMore(l.Listener)
	if r, ok := l.Listener.(raw); ok {
		r.Retire()
		return
	}
	if d, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); !ok || d.SetDeadline(time.Unix(1, 0)) != nil {
		l.Close()
	}
}

// mostWaiting is how many connections are taken of a listener that retires: the
// longest queue of a kernel as a rule (net.core.somaxconn).
const mostWaiting = 4096

// How long to wait after a failure: the first time, and at most.
const (
	firstWait = 5 * time.Millisecond
	mostWait  = time.Second
)

// logEvery is the least time between two words about failures.
const logEvery = time.Second

// Serve accepts connections until ctx is done, then closes the listener, waits
// for each Handle to return, and returns nil. It returns an error, at once but
// for that wait, if the listener cannot accept any more.
//
// Failures that pass (no descriptors or memory left, a client that has gone
// before it was accepted) do not end it. While there are no descriptors it gives
// up a spare one to take the next connection, and closes that: clients are
// refused, not left waiting, and the queue does not fill with the dead.
func (l *Listener) Serve(ctx context.Context) error {
	var handles sync.WaitGroup
	defer handles.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()

	l.mu.Lock()
	l.troubled.Store(!l.spare.keep())
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.spare.release()
	}()
	begun := make(chan struct{})
	take := func(c net.Conn) {
		if l.troubled.Load() && !l.settle(c) {
			return
		}
		l.accepted.Add(1)
		if l.Direct {
			l.Handle(ctx, c)
			return
		}
		handles.Go(func() {
			begun <- struct{}{}
			l.Handle(ctx, c)
		})
		<-begun
	}
	serve := l.serve
	if r, ok := l.Listener.(raw); ok {
		serve = r.Serve
	}
	if err := serve(ctx, take, l.trouble); err != nil && ctx.Err() == nil {
		return fmt.Errorf("accept on %v: %w", l.Addr(), err)
	}
	return nil
}

// serve is relay.Listener.Serve with a net.Listener.
func (l *Listener) serve(ctx context.Context, take func(net.Conn), trouble func(error) time.Duration) error {
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case err == nil:
			take(c)
			continue
		case l.retiring.Load():
			for range mostWaiting {
				c := acceptNow(l.Listener)
				if c == nil {
					break
				}
				take(c)
			}
			return nil
		case !passes(err):
			return err
		}
		if wait := trouble(err); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
}

// trouble notes that accepting has failed for a reason that passes, and returns how
// long to wait. If there is no descriptor it gives up the spare one: the next
// connection is taken with it.
func (l *Listener) trouble(err error) time.Duration {
	failures := l.failures.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.troubled.Store(true)
	if now := time.Now(); now.Sub(l.logged) >= logEvery {
		l.Log.Warn("accepting connections fails; it will be tried again", "listener", l.Addr().String(), "error", err, "failures", failures)
		l.logged = now
	}
	if noDescriptors(err) && l.spare.release() {
		return 0
	}
	l.waited = min(max(2*l.waited, firstWait), mostWait)
	return l.waited
}

// settle is called with a connection that was accepted after trouble, and reports
// whether the trouble is over. If not, the connection has the spare descriptor, and is
// refused.
func (l *Listener) settle(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.spare.keep() {
		l.waited = 0
		l.troubled.Store(false)
		return true
	}
	r := api.Refusal{Facts: facts(c), Reason: api.ReasonOverload, Words: "no descriptors left"}
	abort(c)
	l.spare.keep()
	if l.Refused != nil {
		l.Refused(r)
	}
	return false
}

// facts returns what is known of a connection before its first byte.
func facts(c net.Conn) api.Facts {
	from := addrPort(c.RemoteAddr())
	f := api.Facts{Port: int(from.Port()), Listener: c.LocalAddr().String()}
	if from.IsValid() {
		f.IP = from.Addr().String()
	}
	return f
}

// passes tells whether accepting may succeed after such a failure.
func passes(err error) bool {
	for _, e := range []error{syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return noDescriptors(err)
}

func noDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// spare is a descriptor that is kept to be given up.
type spare struct{ file *os.File }

// keep takes a descriptor unless there is one, and reports whether there is now.
func (s *spare) keep() bool {
	if s.file == nil {
		s.file, _ = os.Open(os.DevNull)
	}
	return s.file != nil
}

// release gives the descriptor up, and reports whether there was one.
func (s *spare) release() bool {
	if s.file == nil {
		return false
	}
	s.file.Close()
	s.file = nil
	return true
}

// refusal reports a connection that came to nothing.
func refusal(f api.Facts, err error) api.Refusal {
	r := api.Refusal{Facts: f, Reason: api.ReasonHandshake, Words: err.Error()}
	if e := interface{ Reason() api.ReasonType }(nil); errors.As(err, &e) {
		r.Reason = e.Reason()
	}
	return r
}
