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
	flowQueue  = 256 << 10   // bytes that wait for a slow Service, of a flow
	portQueue  = 32 << 20    // and of all flows of a port
	flowRefuse = time.Second // for which a source that was refused is not asked for again
	flowAdmit  = time.Second // between two looks whose a source is: a port number can change hands
)

// A source is who sends datagrams to a published port: the conn of a flow, from the
// port's side. Reading gives what it has sent, writing sends to it.
type source struct {
	port   *net.UDPConn
	from   netip.AddrPort
	forget func()
	looked time.Time // whose it is was looked at; of the goroutine that reads the port
	in     *relay.Inbox
}

var (
	_ relay.Datagram = (*source)(nil)
	_ relay.Awaiter  = (*source)(nil)
)

// Datagram implements relay.Datagram.
func (s *source) Datagram() {}

// Await implements relay.Awaiter.
func (s *source) Await() error { return s.in.Await() }

// Read implements net.Conn.
func (s *source) Read(b []byte) (int, error) { return s.in.Read(b) }

// Write implements net.Conn.
func (s *source) Write(b []byte) (int, error) {
	if err := s.in.Err(); err != nil {
		return 0, err
	}
	return s.port.WriteToUDPAddrPort(b, s.from)
}

// Close implements net.Conn.
func (s *source) Close() error {
	if s.in.Drop(net.ErrClosed) {
		s.forget()
	}
	return nil
}

func (s *source) LocalAddr() net.Addr               { return s.port.LocalAddr() }
func (s *source) RemoteAddr() net.Addr              { return net.UDPAddrFromAddrPort(s.from) }
func (s *source) SetDeadline(t time.Time) error     { return s.SetReadDeadline(t) }
func (s *source) SetReadDeadline(t time.Time) error { return s.in.SetReadDeadline(t) }
func (s *source) SetWriteDeadline(time.Time) error  { return nil }

// takeDatagrams gives what comes to a port of UDP to the flow of its source, until the
// port is closed. What waits for a Service runs in goroutines of all.
func (p *Ports) takeDatagrams(ctx context.Context, o *port, all *sync.WaitGroup) {
	var mu sync.Mutex
	open := map[netip.AddrPort]*source{}
	waits := &relay.Room{Most: portQueue}
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
			s = &source{port: o.socket, from: from, in: relay.NewInbox(flowQueue, waits)}
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
		s.in.Put(b[:n]) // or it is lost, as on any network
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
