package wireguard

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/wire/packet"
)

// Bounds of UDP.
const (
	flowsMost   = 1024            // flows of a Session
	flowIdle    = 2 * time.Minute // without a datagram in either direction
	flowQueue   = 256 << 10       // bytes that wait to be read, of a flow
	queuesMost  = 16 << 20        // and of all flows of a Session
	overhead    = 64              // that a datagram that waits counts beside its bytes
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
	read    *tunnel.Deadline
	active  atomic.Int64 // when a datagram passed last, in nanoseconds since 1970
	refused bool         // guarded by s.mu: it is over, and what comes yet is dropped until
	until   time.Time    // guarded by s.mu

	mu      sync.Mutex
	queue   [][]byte
	size    int
	changed chan struct{} // has something when the queue has, or may have
	err     error
	gone    chan struct{}
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
		key: key, pl: pl, s: s, read: tunnel.NewDeadline(), changed: make(chan struct{}, 1), gone: make(chan struct{}),
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
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return
	}
	cost := len(data) + overhead
	f.size += cost
	if all := f.s.queued.Add(int64(cost)); f.size > flowQueue || all > queuesMost {
		f.forget(cost)
		f.pl.drop(dropQueue)
		return
	}
	f.queue = append(f.queue, append(make([]byte, 0, len(data)), data...))
	f.wake()
}

// forget notes that so much is not queued any more. f.mu is held.
func (f *flow) forget(cost int) {
	f.size -= cost
	f.s.queued.Add(-int64(cost))
}

// wake wakes one reader.
func (f *flow) wake() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// Read implements net.Conn. What of a datagram does not fit into p is lost.
func (f *flow) Read(p []byte) (int, error) {
	for {
		until := f.read.Wait()
		f.mu.Lock()
		if len(f.queue) > 0 && (f.err == nil || f.err == io.EOF) {
			data := f.queue[0]
			f.queue[0] = nil
			if f.queue = f.queue[1:]; len(f.queue) == 0 {
				f.queue = nil
			} else {
				f.wake()
			}
			f.forget(len(data) + overhead)
			f.mu.Unlock()
			return copy(p, data), nil
		}
		err := f.err
		f.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if tunnel.IsClosed(until) && tunnel.IsClosed(f.read.Wait()) {
			return 0, os.ErrDeadlineExceeded
		}
		select {
		case <-f.changed:
		case <-f.gone:
		case <-until:
		}
	}
}

// Await returns when Read would not wait: with its error, if it is over.
func (f *flow) Await() error {
	for {
		until := f.read.Wait()
		f.mu.Lock()
		ready, err := len(f.queue) > 0, f.err
		f.mu.Unlock()
		switch {
		case err != nil && (err != io.EOF || !ready):
			return err
		case ready:
			f.wake() // for Read, or another one who waits
			return nil
		}
		if tunnel.IsClosed(until) && tunnel.IsClosed(f.read.Wait()) {
			return os.ErrDeadlineExceeded
		}
		select {
		case <-f.changed:
		case <-f.gone:
		case <-until:
		}
	}
}

// Write implements net.Conn.
func (f *flow) Write(p []byte) (int, error) {
	if len(p) > packet.MaxUDP {
		return 0, syscall.EMSGSIZE
	}
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	if err == io.EOF {
		err = net.ErrClosed
	}
	if err != nil {
		return 0, err
	}
	f.active.Store(time.Now().UnixNano())
	f.pl.send(f.key.service, f.key.client, p)
	return len(p), nil
}

// end ends the flow, once. A refused one keeps its place for a while.
func (f *flow) end(why error, refused bool) bool {
	f.mu.Lock()
	if f.err != nil && f.err != io.EOF {
		f.mu.Unlock()
		return false
	}
	if f.err == nil {
		close(f.gone)
	}
	if f.err = why; why != io.EOF { // nobody reads what is left
		f.queue = nil
		f.forget(f.size)
	}
	f.mu.Unlock()
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.flows[f.key] == f {
		if refused && !f.s.gone {
			f.refused, f.until = true, time.Now().Add(flowRefused)
		} else {
			delete(f.s.flows, f.key)
		}
	}
	return true
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
func (f *flow) SetReadDeadline(t time.Time) error {
	f.read.Set(t)
	return nil
}

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
