package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"cardea/api"
	"cardea/client/resolver"
	"cardea/netif"
	"cardea/tunnel"
	"cardea/tunnel/wireguard"
)

// An end is a [wireguard.Client], as far as a Network needs it.
type end interface {
	Set([]wireguard.Remote) error
	Via(name string, p tunnel.Pipe) error
	Probe(ctx context.Context, name string) (time.Duration, error)
	Renew(name string)
	Links() []wireguard.LinkStatus
	DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	Close() error
}

// An inside is this device's end of the tunnel, and what it has changed on this machine.
type inside struct {
	end
	network string // the name of the interface; "" if there is none
	form    string // how names are set; or why they are not
	// echo asks for an answer through the tunnel. It is nil if the cluster has no DNS,
	// which answers.
	echo   func(context.Context) (time.Duration, error)
	own    []netip.Addr
	dns    []netip.Addr
	names  *resolver.Settings // nil if they were left alone
	nif    *netif.Interface   // nil if there is none
	ctx    context.Context    // done when it is being closed
	cancel context.CancelFunc
	work   sync.WaitGroup // what uses it, beside the carriers
}

// openInside makes this device's end, with an interface if one is asked for.
func (n *Network) openInside(ctx context.Context, s *api.NetworkState) (_ *inside, err error) {
	in := &inside{form: "none: published ports and the proxy know names by themselves"}
	in.ctx, in.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			in.cancel()
		}
	}()
	if in.own, err = addresses(s.Addresses.IPv4, s.Addresses.IPv6); err != nil {
		return nil, err
	}
	if in.dns, err = addresses(s.DNS...); err != nil {
		return nil, err
	}
	if len(in.dns) > 0 {
		in.echo = func(ctx context.Context) (time.Duration, error) { return echo(ctx, in.dial, in.dns[0], s.Domain) }
	}
	if n.Options.Interface == "" {
		end := &wireguard.Client{Key: n.key, Addresses: in.own, MTU: s.MTU, Log: n.Log}
		if err := end.Open(); err != nil {
			return nil, fmt.Errorf("make the tunnel: %w", err)
		}
		in.end = end
		return in, nil
	}
	in.form = "not asked at the cluster yet: nothing has come back from a gateway"
	if err := n.openInterface(in, s); err != nil {
		return nil, err
	}
	return in, nil
}

// openInterface makes the interface, and WireGuard on it.
func (n *Network) openInterface(in *inside, s *api.NetworkState) error {
	c, err := n.interfaceConfig(s)
	if err != nil {
		return err
	}
	i, err := netif.Open(c)
	if err != nil {
		return noInterface(err)
	}
	end := &wireguard.Client{Key: n.key, Addresses: in.own, TUN: i.TUN(), MTU: s.MTU, Log: n.Log}
	if err := end.Open(); err != nil {
		return errors.Join(fmt.Errorf("make the tunnel: %w", err), i.Close())
	}
	in.end, in.nif, in.network = end, i, i.Name()
	return nil
}

// interfaceConfig returns the interface as it is to be.
func (n *Network) interfaceConfig(s *api.NetworkState) (netif.Config, error) {
	c := netif.Config{Name: n.Options.Interface, MTU: s.MTU}
	own, err := addresses(s.Addresses.IPv4, s.Addresses.IPv6)
	if err != nil {
		return c, err
	}
	for _, a := range own {
		c.Addresses = append(c.Addresses, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, text := range s.Services {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return c, fmt.Errorf("the cluster named a network that is none: %.60q", text)
		}
		c.Routes = append(c.Routes, p)
	}
	return c, nil
}

// noInterface says why there is none, and what can be done without.
func noInterface(err error) error {
	e := api.Errorf(api.CodeUnavailable, "no network interface: %v", err)
	without := "without one: cardea connect -p SERVICE:PORT, or --socks5 1080"
	if n, ok := errors.AsType[*netif.Error](err); ok {
		e.Message = "no network interface: " + n.Message
		e.Hint = n.Hint
	}
	if errors.Is(err, errors.ErrUnsupported) {
		e.Message = "no network interface: this system has none for cardea yet"
	}
	if e.Hint != "" {
		e.Hint += "; "
	}
	e.Hint += without
	return e
}

// openDNS has this machine ask the cluster for its names, if there is an interface. That it
// cannot is told, and no error: addresses work.
func (n *Network) openDNS(ctx context.Context, in *inside, s *api.NetworkState) {
	if in.nif == nil {
		return
	}
	names, form := n.setNames(ctx, in, s)
	n.mu.Lock()
	defer n.mu.Unlock()
	in.names, in.form = names, form
}

// setNames is openDNS, and returns what was set and in which form, or why not.
func (n *Network) setNames(ctx context.Context, in *inside, s *api.NetworkState) (names *resolver.Settings, form string) {
	switch {
	case n.Options.NoDNS:
		return nil, "left alone (--no-dns)"
	case len(in.dns) == 0:
		return nil, "the cluster has none"
	}
	names, err := resolver.Set(ctx, resolver.Config{
		Interface: in.network, Servers: in.dns, Dir: n.Client.home,
		// Not the whole Domain: the way to the API must not depend on the tunnel.
		Domains: []string{"svc." + s.Domain, "local." + s.Domain, "gateway." + s.Domain, "dns." + s.Domain},
		Search:  []string{"svc." + s.Domain},
	})
	if err != nil {
		n.Log.Warn("names of Services cannot be resolved on this machine; their addresses work (cardea services)", "error", err)
		return nil, "not set: " + err.Error()
	}
	return names, names.Form()
}

// keepDNS makes the settings again if somebody, a DHCP client say, has overwritten them.
func (n *Network) keepDNS() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inside == nil || n.inside.names == nil {
		return
	}
	switch again, err := n.inside.names.Renew(); {
	case err != nil:
		if words := "not set: " + err.Error(); n.inside.form != words {
			n.inside.form = words
			n.Log.Warn("another program has changed the settings of names, and they cannot be made again", "error", err)
		}
	case again:
		n.inside.form = n.inside.names.Form()
		n.Log.Info("another program has changed the settings of names: they were made again")
	}
}

// closeInside ends the carriers and the tunnel, and puts back what it has changed.
func (n *Network) closeInside() {
	n.mu.Lock()
	in, all := n.inside, n.carriers
	n.inside, n.carriers = nil, map[string]*carrying{}
	n.mu.Unlock()
	if in == nil {
		return
	}
	in.cancel()
	in.work.Wait()
	for _, c := range all {
		c.stop()
	}
	if in.names != nil {
		if err := in.names.Restore(); err != nil {
			n.Log.Error("the settings of names were not put back; cardea disconnect tries again", "error", err)
		}
	}
	in.reset(n.Log)
	if err := in.end.Close(); err != nil {
		n.Log.Warn("end the tunnel", "error", err)
	}
	if in.nif != nil {
		if err := in.nif.Close(); err != nil {
			n.Log.Error("the network interface was not removed", "interface", in.network, "error", err)
		}
	}
}

// reset resets the connections of this machine that go through the interface: without one
// their programs would wait for minutes.
func (in *inside) reset(log *slog.Logger) {
	if in.nif == nil {
		return
	}
	if n, err := resetConnections(in.own); err != nil {
		log.Warn("connections through the tunnel were not reset: their programs may wait for a while", "error", err)
	} else if n > 0 {
		log.Info("connections through the tunnel were reset", "connections", n)
	}
}

// status fills in what is inside.
func (in *inside) status(s *NetworkStatus) {
	s.DNS = in.form
	for _, a := range in.dns {
		s.Servers = append(s.Servers, a.String())
	}
	if in.nif != nil {
		s.Form, s.Interface = FormInterface, in.network
	}
}

// link fills in what WireGuard knows of a gateway.
func (in *inside) link(s *GatewayStatus) {
	if in == nil {
		return
	}
	for _, l := range in.Links() {
		if l.Name == s.Name {
			s.HandshakeAt, s.ReceivedBytes, s.SentBytes = l.Handshake.UTC(), int64(l.Received), int64(l.Sent)
		}
	}
}

// dial opens a connection through the tunnel.
func (in *inside) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if in.nif == nil {
		return in.DialContext(ctx, network, to)
	}
	return new(net.Dialer).DialContext(ctx, network, to.String())
}

// A carrying is a carrier at work.
type carrying struct {
	*carrier
	stop func() // ends it, and waits for that

	mu     sync.Mutex
	remote wireguard.Remote // whose Allowed is what the gateway leads to
	ways   []netip.AddrPort // where it may be; remote.Endpoint is one of them
}

// take notes where the gateway is, and under which key.
func (c *carrying) take(r wireguard.Remote, ways []netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(ways, c.remote.Endpoint) { // the one that was found to be good
		r.Endpoint = c.remote.Endpoint
	}
	c.remote, c.ways = r, ways
}

func (c *carrying) endpoint() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.remote.Endpoint.IsValid() {
		return ""
	}
	return c.remote.Endpoint.String()
}

// setGateways makes the gateways of a state those that the tunnel leads to: what has come,
// gone or changed of them is done, and nothing else is touched.
func (n *Network) setGateways(ctx context.Context, in *inside, s *api.NetworkState) {
	listed := map[string]*api.GatewayPlace{}
	for i := range s.Gateways {
		g := &s.Gateways[i]
		remote, ways, err := n.remote(ctx, *g, s.Services)
		n.mu.Lock()
		c := n.carriers[g.Name]
		if err == nil && c == nil {
			c = new(carrying)
			c.carrier = n.carrier(in, g.Name, c)
			n.carriers[g.Name] = c
		}
		n.mu.Unlock()
		if c != nil {
			listed[g.Name] = g
		}
		if err != nil { // one that works goes on as it is
			n.Log.Warn("a gateway cannot be used as the cluster says", "gateway", g.Name, "error", err)
			continue
		}
		c.take(remote, ways)
	}
	n.mu.Lock()
	var gone []*carrying
	for name, c := range n.carriers {
		if listed[name] == nil {
			delete(n.carriers, name)
			gone = append(gone, c)
		}
	}
	n.mu.Unlock()
	for _, c := range gone {
		n.Log.Info("a gateway is gone", "gateway", c.name)
		c.stop()
	}
	if err := n.setRemotes(in); err != nil {
		n.Log.Error("the tunnel does not take the gateways", "error", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, c := range n.carriers {
		c.offer(n.offers(listed[name]))
		if c.stop == nil {
			c.start(ctx)
		}
	}
}

// start lets the carrier run. The tunnel knows the gateway by now.
func (c *carrying) start(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	c.stop = func() {
		cancel()
		<-done
	}
}

// setRemotes tells the tunnel of the gateways as they stand.
func (n *Network) setRemotes(in *inside) error {
	n.mu.Lock()
	var all []wireguard.Remote
	for _, name := range slices.Sorted(maps.Keys(n.carriers)) {
		c := n.carriers[name]
		c.mu.Lock()
		all = append(all, c.remote)
		c.mu.Unlock()
	}
	n.leads = lead(all, n.leads)
	n.mu.Unlock()
	return in.Set(all)
}

// lead leaves each network to one of the gateways that lead to it, as the tunnel sends a
// packet to one: to the one that had it before if that is still there, so that connections
// stay where they are, and else to the first. It returns who has which.
func lead(all []wireguard.Remote, before map[netip.Prefix]string) map[netip.Prefix]string {
	now := map[netip.Prefix]string{}
	for _, r := range all {
		for _, p := range r.Allowed {
			if now[p] == "" || before[p] == r.Name {
				now[p] = r.Name
			}
		}
	}
	for i := range all {
		r := &all[i]
		r.Allowed = slices.DeleteFunc(slices.Clone(r.Allowed), func(p netip.Prefix) bool { return now[p] != r.Name })
	}
	return now
}

// carrier returns what sees to the way to a gateway.
func (n *Network) carrier(in *inside, name string, c *carrying) *carrier {
	return &carrier{
		name: name, tunnel: cmp.Or(n.Options.Tunnel, TunnelAuto),
		via:   func(p tunnel.Pipe) error { return in.Via(name, p) },
		probe: func(ctx context.Context) (time.Duration, error) { return in.Probe(ctx, name) },
		echo:  in.echo,
		missed: func() {
			if c.other() {
				if err := n.setRemotes(in); err != nil {
					n.Log.Warn("the tunnel does not take another address of the gateway", "gateway", name, "error", err)
				}
			}
		},
		log: n.Log, kick: make(chan struct{}, 1), settled: make(chan struct{}),
	}
}

// offers returns the ways to a gateway.
func (n *Network) offers(g *api.GatewayPlace) offers {
	o := offers{udp: g.WireGuardPort != 0}
	if g.QUICPort != 0 {
		o.pipes = append(o.pipes, pipeKind{TunnelQUIC, func(ctx context.Context) (tunnel.Pipe, error) {
			d, err := n.quicTo(ctx, g.Name)
			if err != nil {
				return nil, err
			}
			return d.Pipe(ctx)
		}})
	}
	o.pipes = append(o.pipes, pipeKind{TunnelTLS, n.tlsPipe})
	return o
}

// other takes the next of the addresses at which the gateway may be, and reports whether
// there is another.
func (c *carrying) other() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ways) < 2 {
		return false
	}
	i := slices.Index(c.ways, c.remote.Endpoint)
	c.remote.Endpoint = c.ways[(i+1)%len(c.ways)]
	return true
}

// remote returns a gateway as WireGuard wants it, and all addresses at which it may be.
func (n *Network) remote(ctx context.Context, g api.GatewayPlace, all []string) (r wireguard.Remote, ways []netip.AddrPort, err error) {
	r.Name = g.Name
	if r.PublicKey, err = wireguard.ParseKey(g.PublicKey); err != nil {
		return r, nil, fmt.Errorf("its key: %w", err)
	}
	services := g.Services
	if len(services) == 0 { // it leads to all
		services = all
	}
	for _, text := range services {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return r, nil, fmt.Errorf("%.60q is no network", text)
		}
		r.Allowed = append(r.Allowed, p)
	}
	if g.WireGuardPort == 0 {
		return r, nil, nil // it is reached by a pipe alone
	}
	if ways, err = n.places(ctx, g, g.WireGuardPort); err != nil {
		return r, nil, err
	}
	r.Endpoint = ways[0]
	return r, ways, nil
}

// places returns the addresses at which a port of a gateway may be.
func (n *Network) places(ctx context.Context, g api.GatewayPlace, port int) ([]netip.AddrPort, error) {
	l, err := n.Client.current(ctx)
	if err != nil {
		return nil, err
	}
	hosts := g.Addresses
	if len(hosts) == 0 {
		host, _, err := net.SplitHostPort(l.Address)
		if err != nil {
			return nil, err
		}
		hosts = []string{host}
	}
	var all []netip.AddrPort
	var failures []error
	for _, h := range hosts {
		found, err := l.book.resolve(ctx, h)
		failures = append(failures, err)
		for _, a := range found {
			all = append(all, netip.AddrPortFrom(a, uint16(port)))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no address of %s: %w", net.JoinHostPort(hosts[0], strconv.Itoa(port)), errors.Join(failures...))
	}
	return all, nil
}

// heal sees, after the cluster could not be listened to, whether the tunnel still works: a
// gateway that has started anew knows nothing of it. If it does not it is begun anew.
func (n *Network) heal(in *inside) {
	if in.echo == nil {
		return
	}
	brief, cancel := context.WithTimeout(in.ctx, probeTime)
	defer cancel()
	if _, err := in.echo(brief); err == nil || in.ctx.Err() != nil {
		return
	}
	n.Log.Info("the tunnel does not answer: it is begun anew")
	n.renew()
}

// renew makes new handshakes with the gateways, and has the carriers look.
func (n *Network) renew() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inside == nil {
		return
	}
	for name, c := range n.carriers {
		n.inside.Renew(name)
		c.look()
	}
}

// addresses reads IP addresses; "" is none.
func addresses(list ...string) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, text := range list {
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("the cluster named an address that is none: %.60q", text)
		}
		all = append(all, a)
	}
	return all, nil
}
