package wireguard

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/api"
	"cardea/relay"
	"cardea/tunnel"
	"cardea/wire/packet"
)

// Bounds of UDP.
const (
	flowsMost   = 1024            // flows of a Session
	flowIdle    = 2 * time.Minute // without a datagram in either direction
	flowQueue   = 256 << 10       // bytes that wait to be read, of a flow
	queuesMost  = 16 << 20        // and of all flows of a Session
	flowRefused = 2 * time.Second // how long a flow that was refused stays refused
	partsMost   = 192 << 10       // bytes of datagrams that are not whole, of a Session
	partsWithin = 5 * time.Second // within which all parts must come
	asksMost    = 64              // questions to the name server under way, of a Session
	askersMost  = 16              // TCP connections to it, of a Session, each with one question under way
	dnsPort     = 53
)

// flowKey names a flow of UDP.
type flowKey struct{ client, service netip.AddrPort }

// flow is the datagrams between a client's port and a Service: the conn of an Arrival.
// Read returns one datagram, and Write sends one.
type flow struct {
	key     flowKey
	pl      *plane
	s       *session
	teller  teller
	in      *relay.Inbox
	active  atomic.Int64 // when a datagram passed last, in nanoseconds since 1970
	refused bool         // guarded by s.mu: it is over, and what comes yet is dropped until
	until   time.Time    // guarded by s.mu
}

var _ tunnel.Conn = (*flow)(nil)

// Datagram says that every Read and Write is a datagram.
func (f *flow) Datagram() {}

// datagram takes one of the Session to a Service.
func (s *session) datagram(pl *plane, p []byte, i *packet.Info) {
	key := flowKey{i.Source, i.Destination}
	now := time.Now()
	s.mu.Lock()
	f := s.flows[key]
	if f != nil && f.refused {
		if now.Before(f.until) {
			s.mu.Unlock()
			pl.drop(dropRefused)
			return
		}
		delete(s.flows, key)
		f = nil
	}
	if f != nil {
		s.mu.Unlock()
		f.push(p[i.Data:], now)
		return
	}
	if s.gone || len(s.flows) >= flowsMost {
		s.mu.Unlock()
		pl.drop(dropFlows)
		return
	}
	s.mu.Unlock()
	service, ok := pl.g.Find(i.Destination, "udp")
	if !ok {
		pl.unreachable(p, i)
		pl.drop(dropService)
		return
	}
	f = &flow{
		key: key, pl: pl, s: s, in: relay.NewInbox(flowQueue, &s.waits),
		teller: teller{g: pl.g, session: s.id, service: api.ServiceName(service)},
	}
	f.push(p[i.Data:], now)
	s.mu.Lock()
	if s.flows == nil {
		s.flows = map[flowKey]*flow{}
	}
	// A peer's packets come one after the other: nobody else has made it meanwhile.
	s.flows[key] = f
	s.mu.Unlock()
	pl.g.Handler.Arrive(pl.g.arrival(f, f.teller.service, s, i.Source, i.Destination))
}

// push takes a datagram from the client.
func (f *flow) push(data []byte, now time.Time) {
	f.active.Store(now.UnixNano())
	if !f.in.Put(data) && f.in.Err() == nil {
		f.pl.drop(dropQueue)
	}
}

// Read implements net.Conn. What of a datagram does not fit into p is lost.
func (f *flow) Read(p []byte) (int, error) { return f.in.Read(p) }

// Await implements relay.Awaiter.
func (f *flow) Await() error { return f.in.Await() }

// Write implements net.Conn.
func (f *flow) Write(p []byte) (int, error) {
	if len(p) > packet.MaxUDP {
		return 0, syscall.EMSGSIZE
	}
	if err := f.in.Err(); err == io.EOF {
		return 0, net.ErrClosed
	} else if err != nil {
		return 0, err
	}
	f.active.Store(time.Now().UnixNano())
	f.pl.send(f.key.service, f.key.client, p)
	return len(p), nil
}

// expire ends a flow that has been silent.
func (f *flow) expire() {
	if f.in.End(io.EOF) {
		f.leave(false)
	}
}

// end ends the flow, once. A refused one keeps its place for a while.
func (f *flow) end(why error, refused bool) bool {
	if !f.in.Drop(why) {
		return false
	}
	f.leave(refused)
	return true
}

// leave gives the flow's place up or, if it was refused, in a while.
func (f *flow) leave(refused bool) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.flows[f.key] == f {
		if refused && !f.s.gone {
			f.refused, f.until = true, time.Now().Add(flowRefused)
		} else {
			delete(f.s.flows, f.key)
		}
	}
}

// Close implements net.Conn.
func (f *flow) Close() error {
	if !f.end(net.ErrClosed, f.teller.isRefused()) {
		return net.ErrClosed
	}
	return nil
}

// Most flows end idleTimeout, and those of a process that another one replaces go on there:
// that is nothing to tell of.
const (
	idleTimeout = "IDLE_TIMEOUT"
	drained     = "DRAINED"
)

// Reset implements tunnel.Conn.
func (f *flow) Reset(reason string) error {
	if f.end(&tunnel.ResetError{Reason: reason}, true) && reason != idleTimeout && reason != drained {
		f.teller.reset(reason)
	}
	return nil
}

// CloseWrite implements tunnel.Conn. UDP knows no end.
func (f *flow) CloseWrite() error { return nil }

// Verdict implements tunnel.Teller.
func (f *flow) Verdict(v api.Verdict) error { return f.teller.verdict(v) }

// LocalAddr implements net.Conn.
func (f *flow) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(f.key.service) }

// RemoteAddr implements net.Conn.
func (f *flow) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(f.key.client) }

// SetDeadline implements net.Conn.
func (f *flow) SetDeadline(t time.Time) error {
	return errors.Join(f.SetReadDeadline(t), f.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (f *flow) SetReadDeadline(t time.Time) error { return f.in.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn. A Write waits for nobody.
func (f *flow) SetWriteDeadline(time.Time) error { return nil }

// ask has a question to the name server answered, and reports whether it could.
func (s *session) ask(pl *plane, query []byte, client, server netip.AddrPort) bool {
	query = slices.Clone(query)
	return s.task(pl.g, &s.asks, asksMost, func() {
		if a := pl.g.Answer(pl.g.ctx, s.id, query, false); a != nil && len(a) <= packet.MaxUDP {
			pl.send(server, client, a)
		}
	})
}
