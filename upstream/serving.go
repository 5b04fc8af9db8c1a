package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"cardea/api"
	"cardea/relay"
	"cardea/upstream/balance"
)

// A Serving leads to the Sessions that serve upstreams, wherever their devices are: what
// they are asked for they connect to, as they see it. Its methods may be called from any
// number of goroutines. All but Dial return at once, and call nothing of the Dialer.
type Serving interface {
	// Sessions returns the uids of the Sessions of a User that serve a Service
	// (SERVICE.NAMESPACE) and can be reached now.
	Sessions(service, user string) []string
	// Name returns the name of a Session, for words; "" if it is not known.
	Name(session string) string
	// Dial opens a connection through a Session to what it serves as target (see
	// [api.ServeTarget]). Beside net.Conn the connection has CloseWrite, Reset and
	// WaitReset, as package relay wants them.
	Dial(ctx context.Context, session, target string) (net.Conn, error)
}

// servedOut is for how many seconds a Session is passed over that has failed, if the
// config does not say: as long as there is another one.
const servedOut = 5

// A device that was there a moment ago, or may be about to come to a process that has
// just begun, is waited for.
const (
	hopeTime = 10 * time.Second      // how long it may come
	comeTime = 2 * time.Second       // how long one connection waits
	comeLook = 50 * time.Millisecond // how often it looks
)

// await waits for a Session that serves the place, where none does and one may come, and
// reports whether one has.
func (p *place) await(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, comeTime)
	defer cancel()
	look := time.NewTicker(comeLook)
	defer look.Stop()
	for p.isHoped() {
		select {
		case <-look.C:
		case <-ctx.Done():
			return false
		}
		if p.follow() {
			return true
		}
	}
	return false
}

// isHoped tells whether no Session serves the place, and one may come.
func (p *place) isHoped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.hope) && !slices.ContainsFunc(p.sources, func(s *source) bool { return len(s.sessions) > 0 })
}

// follow makes the Sessions that serve the place those of now, and reports whether there
// are any.
func (p *place) follow() (some bool) {
	if s := p.shape.Load(); s == nil || !s.served {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := false
	for _, s := range p.sources {
		if !s.isServed() {
			continue
		}
		var now []string
		if p.serving != nil {
			now = slices.Sorted(slices.Values(p.serving.Sessions(p.key.service, s.end.User)))
		}
		if !slices.Equal(now, s.sessions) {
			s.sessions, changed = now, true
		}
		some = some || len(now) > 0
	}
	if some {
		p.hope = time.Now().Add(hopeTime)
	}
	if changed {
		p.update()
	}
	return some
}

// served returns the targets of a source that Sessions serve. mu must be held.
func (p *place) served(s *source) (out []balance.Spec) {
	for _, uid := range s.sessions {
		out = append(out, balance.Spec{
			Session: uid, Name: cmp.Or(p.serving.Name(uid), uid), Host: s.address(), Group: s.address(),
			Weight: max(s.end.Weight, 1), Backup: s.end.Backup, Max: s.end.MaxConnections, Share: shareUnit, Until: forever(),
		})
	}
	return out
}

// unserved says for a person which endpoints no Session serves.
func (p *place) unserved() (words []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sources {
		if s.isServed() && len(s.sessions) == 0 {
			words = append(words, fmt.Sprintf("%s: no connected Session of User %s serves it: run `cardea connect --serve %s` where %s is logged in", s.address(), s.end.User, p.key.service, s.end.User))
		}
	}
	return words
}

// A sessionError says what became of a connection through a Session.
type sessionError struct {
	at  string // of the Session
	err error
}

func (e *sessionError) Error() string {
	why := e.err.Error()
	if x, ok := errors.AsType[*api.Error](e.err); ok {
		why = x.Message
	}
	if errors.Is(e.err, context.DeadlineExceeded) {
		why = "no answer of the device"
	}
	return e.at + ": " + why
}

func (e *sessionError) Unwrap() error { return e.err }

// connectSession connects through a Session. What is there is no address of this network,
// so none is checked: the device that serves has agreed to the URL. Datagrams travel with
// their lengths.
func (d *Dialer) connectSession(ctx context.Context, to api.Destination, t *balance.Target, udp bool) (net.Conn, error) {
	conn, err := d.Serving.Dial(ctx, t.Session, api.ServeTarget(to.Service, cmp.Or(to.Config.Name, api.DefaultConfig)))
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, &sessionError{t.At(), err}
	}
	s, ok := conn.(stream)
	if !ok {
		conn.Close()
		return nil, &sessionError{t.At(), fmt.Errorf("the connection (%T) cannot be half-closed and reset", conn)}
	}
	var c net.Conn = &servedConn{stream: s, at: sessionAddr(t.At())}
	if udp {
		c = relay.Messages(c)
	}
	return c, nil
}

// A stream is what Serving.Dial returns.
type stream interface {
	net.Conn
	CloseWrite() error
	Reset(reason string) error
	WaitReset() error
}

// A servedConn is a connection through a Session, by whose name it is known.
type servedConn struct {
	stream
	at sessionAddr
}

// sessionAddr is the address of what a Session serves: see [api.ServedAt].
type sessionAddr string

func (sessionAddr) Network() string  { return "session" }
func (a sessionAddr) String() string { return string(a) }

// RemoteAddr returns the name of the Session.
func (c *servedConn) RemoteAddr() net.Addr { return c.at }
