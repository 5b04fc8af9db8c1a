package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"cardea/relay"
)

const (
	maxFlows   = 1024        // of one port: a program that uses more sources than that waits
	flowQueue  = 64          // datagrams that a flow holds while its Service is slow
	flowRefuse = time.Second // for which a source that was refused is not asked for again
	flowAdmit  = time.Second // between two looks whose a source is: a port number can change hands
)

// A source is who sends datagrams to a published port: the conn of a flow, from the
// port's side. Reading gives what it has sent, writing sends to it.
type source struct {
	port    *net.UDPConn
	from    netip.AddrPort
	forget  func()
	looked  time.Time // whose it is was looked at; of the goroutine that reads the port
	once    sync.Once
	closed  chan struct{}
	arrived chan []byte
	mu      sync.Mutex
	next    []byte // taken from arrived by Await
}

var (
	_ relay.Datagram = (*source)(nil)
	_ relay.Awaiter  = (*source)(nil)
)

// Datagram implements relay.Datagram.
func (s *source) Datagram() {}

// Await implements relay.Awaiter.
func (s *source) Await() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		return nil
	}
	select {
	case s.next = <-s.arrived:
		return nil
	case <-s.closed:
		return net.ErrClosed
	}
}

// Read implements net.Conn. There are no deadlines: Close ends it.
func (s *source) Read(b []byte) (int, error) {
	if err := s.Await(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := copy(b, s.next)
	s.next = nil
	return n, nil
}

// Write implements net.Conn.
func (s *source) Write(b []byte) (int, error) {
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
		return s.port.WriteToUDPAddrPort(b, s.from)
	}
}

// Close implements net.Conn.
func (s *source) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.forget()
	})
	return nil
}

func (s *source) LocalAddr() net.Addr              { return s.port.LocalAddr() }
func (s *source) RemoteAddr() net.Addr             { return net.UDPAddrFromAddrPort(s.from) }
func (s *source) SetDeadline(time.Time) error      { return nil }
func (s *source) SetReadDeadline(time.Time) error  { return nil }
func (s *source) SetWriteDeadline(time.Time) error { return nil }

// takeDatagrams gives what comes to a port of UDP to the flow of its source, until the
// port is closed. What waits for a Service runs in goroutines of all.
func (p *Ports) takeDatagrams(ctx context.Context, o *port, all *sync.WaitGroup) {
	var mu sync.Mutex
	open := map[netip.AddrPort]*source{}
	local := o.socket.LocalAddr().(*net.UDPAddr).AddrPort()
	b := make([]byte, relay.MaxDatagram)
	for {
		n, from, err := o.socket.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an answer could not be delivered: that is the flow's business
			pause(ctx, time.Millisecond)
			continue
		}
		mu.Lock()
		s, known := open[from]
		full := !known && len(open) == maxFlows
		mu.Unlock()
		if full {
			continue
		}
		if !known {
			s = &source{port: o.socket, from: from, closed: make(chan struct{}), arrived: make(chan []byte, flowQueue)}
			s.forget = func() {
				mu.Lock()
				defer mu.Unlock()
				delete(open, from)
			}
		}
		if err := p.admitSource(o, s, local); err != nil {
			p.Log.Warn("refused a local datagram", "service", o.Service, "address", o.Address, "from", from, "error", err)
			if known {
				s.Close()
			}
			continue
		}
		select {
		case s.arrived <- append(make([]byte, 0, n), b[:n]...):
		default: // it is lost, as on any network
		}
		if !known {
			mu.Lock()
			open[from] = s
			mu.Unlock()
			all.Go(func() { p.carryFlow(ctx, o, s) })
		}
	}
}

// admitSource refuses datagrams that are not of the publisher's own processes.
func (p *Ports) admitSource(o *port, s *source, local netip.AddrPort) error {
	if now := time.Now(); !o.Share && now.Sub(s.looked) >= flowAdmit {
		s.looked = now
		return own(senderUID(s.from, local))
	}
	return nil
}

// carryFlow joins a source to its Service.
func (p *Ports) carryFlow(ctx context.Context, o *port, s *source) {
	stream, err := p.dial(ctx, o.Service, p.dialFlow)
	if err != nil {
		pause(ctx, flowRefuse)
		s.Close()
		return
	}
	p.relay(ctx, p.flows, o.Service, relay.Pair{Client: s, Upstream: stream})
}

// A flowDialer is a tunnel.Dialer whose road carries datagrams as they are.
type flowDialer interface {
	DialDatagrams(ctx context.Context, service string) (net.Conn, error)
}

// dialFlow opens a conn to a Service that keeps the boundaries of datagrams.
func (p *Ports) dialFlow(ctx context.Context, service string) (net.Conn, error) {
	if d, ok := p.Dialer.(flowDialer); ok {
		return d.DialDatagrams(ctx, service)
	}
	stream, err := p.Dialer.Dial(ctx, service)
	if err != nil {
		return nil, err
	}
	return relay.Messages(stream), nil
}
