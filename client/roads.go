package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"cardea/api"
	"cardea/relay"
	"cardea/tunnel"
	"cardea/tunnel/quic"
)

// Dialer returns the road of published ports and of the proxy: streams over TLS, unless
// the Options say QUIC, or WireGuard without an interface.
func (n *Network) Dialer() tunnel.Dialer {
	switch {
	case n.Options.Tunnel == TunnelQUIC:
		return quicRoad{n}
	case n.Options.Tunnel == TunnelWireGuard && n.Options.Interface == "":
		return &stackRoad{network: n}
	}
	return n.Client
}

// placed returns the state, for which it waits.
func (n *Network) placed(ctx context.Context) (*api.NetworkState, error) {
	n.init()
	select {
	case <-n.place:
	case <-n.closed:
		return nil, api.Errorf(api.CodeUnavailable, "the private network has ended")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state, nil
}

// tlsPipe opens a pipe over TLS, to where the API is.
func (n *Network) tlsPipe(ctx context.Context) (tunnel.Pipe, error) {
	l, err := n.Client.current(ctx)
	if err != nil {
		return nil, err
	}
	return l.dialer.Pipe(ctx)
}

// quicRoads are the connections of QUIC to gateways, by their names.
type quicRoads struct {
	mu     sync.Mutex
	closed bool
	open   map[string]*quicTo
}

// quicTo is the connection to one gateway.
type quicTo struct {
	*quic.Dialer
	at    netip.AddrPort
	login *login
}

// quicTo returns the QUIC of a gateway as it is now.
func (n *Network) quicTo(ctx context.Context, name string) (*quic.Dialer, error) {
	s, err := n.placed(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(s.Gateways, func(g api.GatewayPlace) bool { return g.QUICPort != 0 && (g.Name == name || name == "") })
	if i < 0 {
		e := api.Errorf(api.CodeUnavailable, "no gateway of the cluster has QUIC now")
		e.Hint = "leave out --tunnel quic"
		return nil, e
	}
	g := s.Gateways[i]
	l, err := n.Client.current(ctx)
	if err != nil {
		return nil, err
	}
	places, err := n.places(ctx, g, g.QUICPort)
	if err != nil {
		return nil, err
	}
	return n.roads.to(g.Name, places[0], l)
}

// to returns a connection to a gateway at an address, for a login.
func (r *quicRoads) to(name string, at netip.AddrPort, l *login) (*quic.Dialer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, net.ErrClosed
	}
	old := r.open[name]
	if old != nil && old.at == at && old.login == l {
		return old.Dialer, nil
	}
	if r.open == nil {
		r.open = map[string]*quicTo{}
	}
	fresh := &quicTo{&quic.Dialer{Address: at.String(), Domain: l.Domain, Roots: l.roots, Certificate: l.fresh}, at, l}
	r.open[name] = fresh
	if old != nil {
		old.Close() // of a login that is gone, or a place where the gateway is not any more
	}
	return fresh.Dialer, nil
}

// keep closes the connections to gateways that are gone, or have no QUIC any more.
func (r *quicRoads) keep(all []api.GatewayPlace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, d := range r.open {
		if !slices.ContainsFunc(all, func(g api.GatewayPlace) bool { return g.Name == name && g.QUICPort != 0 }) {
			delete(r.open, name)
			d.Close()
		}
	}
}

// status fills in how a gateway is reached by streams over QUIC.
func (r *quicRoads) status(s *GatewayStatus) {
	s.Transport, s.Why = TunnelQUIC, "asked for by --tunnel"
	r.mu.Lock()
	d := r.open[s.Name]
	r.mu.Unlock()
	if d == nil {
		s.Why += "; no connection has been asked for yet"
		return
	}
	s.Address = d.at.String()
	x := d.Status()
	if !x.Connected {
		s.Why += "; no connection is open now"
		return
	}
	s.LatencyMilliseconds = milliseconds(x.RTT)
	s.ReceivedBytes, s.SentBytes = int64(x.Received), int64(x.Sent)
}

// tlsStreams fills in how a gateway is reached by streams over TLS: where the API is.
func tlsStreams(s *GatewayStatus, address string, asked Tunnel) {
	s.Address, s.Transport, s.Why = address, TunnelTLS, "connections are streams here, which cost least over TLS"
	if asked != TunnelAuto {
		s.Why = "asked for by --tunnel"
	}
}

func (r *quicRoads) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, d := range r.open {
		d.Close() // never fails
	}
}

// A quicRoad carries each connection on a stream of QUIC.
type quicRoad struct{ network *Network }

// Dial implements tunnel.Dialer.
func (r quicRoad) Dial(ctx context.Context, service string) (net.Conn, error) {
	d, err := r.network.quicTo(ctx, "")
	if err != nil {
		return nil, err
	}
	return d.Dial(ctx, service)
}

// A stackRoad carries connections through WireGuard in this process.
type stackRoad struct {
	network *Network

	mu    sync.Mutex
	known map[string]knownPlace
}

// A knownPlace is where a Service was found.
type knownPlace struct {
	at    netip.AddrPort
	found time.Time
}

// placeTime is for how long it is not asked again where a Service is.
const placeTime = 5 * time.Second

// Dial implements tunnel.Dialer.
func (r *stackRoad) Dial(ctx context.Context, service string) (net.Conn, error) {
	return r.dial(ctx, "tcp", service)
}

// DialDatagrams opens a flow to a Service of UDP.
func (r *stackRoad) DialDatagrams(ctx context.Context, service string) (net.Conn, error) {
	c, err := r.dial(ctx, "udp", service)
	if err != nil || relay.IsDatagram(c) {
		return c, err
	}
	return flowConn{c}, nil
}

// A flowConn keeps the boundaries of datagrams.
type flowConn struct{ net.Conn }

// Datagram implements relay.Datagram.
func (flowConn) Datagram() {}

func (r *stackRoad) dial(ctx context.Context, network, service string) (net.Conn, error) {
	s, err := r.network.placed(ctx)
	if err != nil {
		return nil, err
	}
	r.network.mu.Lock()
	in := r.network.inside
	r.network.mu.Unlock()
	if in == nil {
		return nil, api.Errorf(api.CodeUnavailable, "the tunnel is being made anew")
	}
	service = api.ServiceName(service)
	at, err := r.find(ctx, in, service, s.Domain)
	if err != nil {
		return nil, err
	}
	c, err := in.DialContext(ctx, network, at)
	if err != nil {
		return nil, fmt.Errorf("connect to %s at %s through the tunnel: %w", service, at, err)
	}
	return c, nil
}

// find returns where a Service is.
func (r *stackRoad) find(ctx context.Context, in *inside, service, domain string) (netip.AddrPort, error) {
	r.mu.Lock()
	known, ok := r.known[service]
	r.mu.Unlock()
	if ok && time.Since(known.found) < placeTime {
		return known.at, nil
	}
	if len(in.dns) == 0 {
		return netip.AddrPort{}, api.Errorf(api.CodeUnavailable, "the cluster has no DNS to ask where %s is", service)
	}
	at, err := find(ctx, in.dial, in.dns[0], service, domain)
	if errors.Is(err, errNoService) {
		return at, api.Errorf(api.CodePermissionDenied, "access to Service %s is denied: %v, or does not tell this Session of it", service, err)
	}
	if err != nil {
		return at, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil || len(r.known) > 1024 {
		r.known = map[string]knownPlace{}
	}
	r.known[service] = knownPlace{at, time.Now()}
	return at, nil
}
