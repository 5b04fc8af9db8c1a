package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardea/address"
	"cardea/api"
	"cardea/dns"
	"cardea/identity/certificate"
	"cardea/netif"
	"cardea/store"
	"cardea/tunnel"
	"cardea/tunnel/quic"
	"cardea/tunnel/wireguard"
)

// The forms of the private network in a process.
const (
	networkAuto      = "auto"
	networkKernel    = "kernel"
	networkTUN       = "tun"
	networkUserspace = "userspace"
	networkOff       = "off"
)

// A NetworkConfig says what part of the private network a process has.
type NetworkConfig struct {
	// Form says how much of the tunnels is the kernel's: "kernel", WireGuard and TCP; "tun",
	// TCP behind a network interface; "userspace", nothing; "off", there are no tunnels; ""
	// or "auto", as much as the kernel has and the process may, and nothing where it listens
	// on loopback alone.
	Form string
	// WireGuard is the port (UDP) of WireGuard, 0 is any; -1 is 51820 or, if that is taken,
	// any.
	WireGuard int
	// Addresses are where clients reach the tunnels, IP addresses or host names; where
	// they reach the API if there are none.
	Addresses []string
}

const (
	wireguardPort  = 51820
	gatewayKeyFile = "keys/gateway.key"
	resetKeySize   = 32
	gatewayName    = "default"
	tunInterface   = netif.Gateway
	// cutTime is for the resets of what has ended to reach the client, before its tunnel ends.
	cutTime = 30 * time.Millisecond
	// cutKinTime is how long older processes are waited for before that.
	cutKinTime = 200 * time.Millisecond
	// reopenTime is the time between two attempts to open what the process before this one
	// still has, and inheritTime how long that should take at most.
	reopenTime  = 50 * time.Millisecond
	inheritTime = 3 * time.Second
)

// A network is the part of the private network that this process has: the gateway, and
// what it knows of the store. It follows the store; a tunnel is there because a Session
// says so, and for no other reason.
type network struct {
	*house
	gateway *wireguard.Gateway
	quic    *quic.Server
	names   *dns.Server
	plan    address.Plan
	form    string           // networkKernel, networkTUN or networkUserspace
	worse   string           // form in place of that, if it cannot be; "" is none
	why     error            // there is no better form, though nobody has asked for this one; nil if there is none
	ports   []netip.AddrPort // for WireGuard, the best first
	quicAt  netip.AddrPort
	udp     *quic.Socket // nil if there is no QUIC
	keys    gatewayKeys
	serving *serving
	loaded  *api.Revision // of which the peers are, if that is known; nil if not
	over    chan struct{} // closed when the tunnels are another process's

	mu       sync.RWMutex
	opened   bool                    // gateway and udp are open
	words    string                  // what there is, while it is open
	lack     error                   // what there should be more; nil if it is all there
	services map[string]*api.Service // by full name
	at       map[netip.Addr]string   // the Service at an address
	sessions map[string]*api.Session // by uid, those that are connected
	gateways map[string]*api.Gateway
	changed  chan struct{} // closed, and made anew, when gateways change
	removing sync.WaitGroup
}

// newNetwork returns the network of a process, nil if it is to have none.
func newNetwork(h *house) (*network, error) {
	c := h.cfg.Network
	if err := c.check(h.socket.Addr().(*net.TCPAddr).Port); err != nil {
		return nil, err
	}
	n := &network{
		house: h, quicAt: h.socket.Addr().(*net.TCPAddr).AddrPort(), services: map[string]*api.Service{}, at: map[netip.Addr]string{}, sessions: map[string]*api.Session{},
		gateways: map[string]*api.Gateway{}, changed: make(chan struct{}), over: make(chan struct{}),
	}
	n.serving = newServing(n)
	switch c.Form {
	case "", networkAuto:
		n.form = networkUserspace
		if isLoopback(h.socket.Addr()) {
			n.why = errors.New("the cluster listens on loopback alone")
		} else if n.why = netif.Able(tunInterface); n.why == nil {
			n.form, n.worse = networkTUN, networkUserspace
		}
	case networkKernel, networkTUN, networkUserspace:
		n.form = c.Form
	case networkOff:
		return nil, nil
	default:
		return nil, fmt.Errorf("--network %q: must be %s, %s, %s, %s or %s", c.Form, networkAuto, networkKernel, networkTUN, networkUserspace, networkOff)
	}
	return n, nil
}

// check reports what is wrong with the numbers and names of c, where the cluster listens at
// a port.
func (c *NetworkConfig) check(listen int) error {
	if c.WireGuard < -1 || c.WireGuard > 65535 {
		return fmt.Errorf("--wireguard-port %d: must be from 1 to 65535, or 0 for any that is free", c.WireGuard)
	}
	if c.WireGuard == listen && c.Form != networkOff {
		return fmt.Errorf("--wireguard-port %d: QUIC has that port of UDP, which is the number of --listen; choose another", c.WireGuard)
	}
	for _, a := range c.Addresses {
		if _, err := netip.ParseAddr(a); err != nil && (a == "" || strings.ContainsAny(a, ":/[]@ \t")) {
			return fmt.Errorf("--gateway-address %q: must be an IP address or the name of a host, without a port", a)
		}
	}
	return nil
}

// prepare takes what can fail, once the store is known to be that of a cluster. Where
// another process still has the ports, and does not hand them over, that is for later.
func (n *network) prepare(ctx context.Context) error {
	if err := n.openKeys(); err != nil {
		return err
	}
	if err := n.build(ctx); err != nil {
		return err
	}
	if e := n.cfg.Estate; e != nil && (e.Text(handTunnels) == "" || !n.takesOver(e.Has(handTunnel+wireguard.DeviceName))) {
		return nil
	}
	if err := n.open(true); err != nil {
		return err
	}
	// Who comes as soon as the doors are open finds his tunnel: WireGuard asks again only
	// after 5 seconds.
	at, err := n.load(ctx)
	n.loaded = &at
	return err
}

// takesOver reports whether tunnels that were handed over, with an interface or without, are
// of use here.
func (n *network) takesOver(device bool) bool {
	if device {
		n.worse = "" // connections live by that interface: there is nothing else then
	}
	return n.form != networkKernel
}

// build makes the rooms of the network anew, for the address plan as it is.
func (n *network) build(ctx context.Context) error {
	var cc *api.ClusterConfig
	var known *api.Gateway
	err := n.store.View(ctx, func(r store.Reader) (err error) {
		cc, err = store.Get[*api.ClusterConfig](r, api.Key{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName})
		if err != nil {
			return err
		}
		known, err = store.Get[*api.Gateway](r, n.key())
		if api.HasCode(err, api.CodeNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	plan, err := address.ParsePlan(cc.Status.Network)
	if err != nil {
		return fmt.Errorf("the address plan of the private network: %w", err)
	}
	n.ports = n.wireguardPorts(known)
	n.names = &dns.Server{
		Domain: n.cfg.Domain, Find: n.find, At: n.nameAt, Plan: slices.Concat(plan.Services(), plan.Sessions()), Own: plan.DNS(),
		May: n.mayBeTold, Zone: n.settings.fallbackZone, Log: n.cfg.Log,
	}
	gateway := &wireguard.Gateway{
		Handler: arrivals{n.gate, n.doors, n.house.sessions}, Find: n.serviceAt, Ports: n.tcpPorts, Answer: n.names.Answer, Tell: n.control.Tell, Accept: acceptOf(n.engine), Interface: tunInterface,
		Services: plan.Services(), Sessions: plan.Sessions(), DNS: plan.DNS(), Key: wireguard.Key(n.keys.Private), MTU: api.NetworkMTU, Log: n.cfg.Log,
		Inherit: func(name string) *os.File { return n.inheritedFile(handTunnel + name) },
	}
	if n.cfg.Estate != nil {
		gateway.Memory = n.cfg.Estate.Text(handTunnels)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.plan, n.gateway = plan, gateway
	n.sessions = map[string]*api.Session{} // so that each becomes a peer
	n.quic = &quic.Server{
		Handler: arrivals{n.gate, n.doors, n.house.sessions}, Domain: n.cfg.Domain, Certificate: n.serverCertificate, ClientCAs: n.authority.Pool,
		Alive: n.alive, Session: sessionOf, Pipe: n.carry, ResetKey: [resetKeySize]byte(n.keys.Reset), Log: n.cfg.Log,
	}
	return nil
}

// gatewayForm is the form of a gateway of that name.
func gatewayForm(name string) wireguard.Form {
	switch name {
	case networkKernel:
		return wireguard.Kernel
	case networkTUN:
		return wireguard.TUN
	}
	return wireguard.Userspace
}

// wireguardPorts says at which ports WireGuard may be, the best first: clients find the
// one that they know without asking.
func (n *network) wireguardPorts(known *api.Gateway) (at []netip.AddrPort) {
	ports := []int{n.cfg.Network.WireGuard}
	if ports[0] < 0 {
		ports = []int{wireguardPort, 0}
		if known != nil && known.Status.WireGuard != nil && known.Status.WireGuard.Port != wireguardPort {
			ports = []int{known.Status.WireGuard.Port, wireguardPort, 0}
		}
	}
	for _, p := range ports {
		at = append(at, netip.AddrPortFrom(n.quicAt.Addr(), uint16(p)))
	}
	return at
}

// open opens the gateway's sockets, and its interface. If there can be none, and
// otherwise allows it, it goes without.
func (n *network) open(otherwise bool) error { return n.openAt(n.ports, otherwise, true) }

// openAt is open with WireGuard at the first of the ports that is free, and without QUIC,
// if withoutQUIC allows that, where its port is taken.
func (n *network) openAt(ports []netip.AddrPort, otherwise, withoutQUIC bool) (err error) {
	n.gateway.Form = gatewayForm(n.form)
	for i, at := range ports {
		n.gateway.Listen = at
		err = n.gateway.Open()
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) || i == len(ports)-1 {
			break
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("the port %d (UDP) for WireGuard is taken by another program; choose another with --wireguard-port, or have none: --network off", n.gateway.Listen.Port())
	case err != nil && n.worse != "" && otherwise:
		n.cfg.Log.Warn("the private network has to do without the kernel, and is slower", "network", n.worse, "not", n.form, "error", err)
		n.form, n.worse, n.why = n.worse, "", err
		return n.openAt(ports, otherwise, withoutQUIC)
	case err != nil:
		return fmt.Errorf("the private network in form %s: %w; --network userspace needs nothing of the kernel, --network off has none", n.form, err)
	}
	udp, err := n.openQUIC()
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && withoutQUIC:
		n.cfg.Log.Warn("there is no QUIC: the port is taken by another program", "port", n.quicAt.Port(), "protocol", "udp")
	case err != nil:
		return errors.Join(fmt.Errorf("the private network: QUIC at %s (UDP): %w", n.quicAt, err), n.gateway.Close())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.udp, n.opened = udp, true
	n.words, n.lack = n.describeSelf()
	return nil
}

// describeSelf says in words what has been opened, and what is missing of it.
func (n *network) describeSelf() (words string, lack error) {
	words = n.form
	if n.form == networkTUN {
		words += " (interface " + tunInterface + ")"
	}
	if n.why != nil {
		why := n.why.Error()
		if e, ok := errors.AsType[*netif.Error](n.why); ok {
			why = e.Message
		}
		words += ", as " + why
	}
	words += fmt.Sprintf("; WireGuard at %d/udp", n.gateway.Port())
	if n.udp == nil {
		lack = fmt.Errorf("no QUIC: another program has %d/udp", n.quicAt.Port())
		words += ", " + lack.Error()
	} else {
		words += fmt.Sprintf(", QUIC at %d/udp", n.quicAt.Port())
	}
	return words + fmt.Sprintf(", MTU %d", api.NetworkMTU), lack
}

// standing says in words what there is of the private network in this process, and what is
// missing of it. n may be nil.
func (n *network) standing() (words string, lack error) {
	if n == nil {
		return "off (--network off)", nil
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.opened {
		return n.form + ", from when the process before this one has left it", nil
	}
	return n.words, n.lack
}

// openQUIC opens the socket of QUIC, or takes over that of the process before.
func (n *network) openQUIC() (*quic.Socket, error) {
	if e := n.cfg.Estate; e != nil {
		inherited, err := quic.Inherit(func(name string) *os.File { return e.Take(handQUIC1 + name) }, e.Text(handQUIC))
		if inherited != nil || err != nil {
			return inherited, err
		}
	}
	return quic.Listen(n.quicAt)
}

// close releases what open took. It may be called more than once, and not while run is
// under way.
func (n *network) close() error {
	n.mu.Lock()
	was := n.opened
	n.opened = false
	n.mu.Unlock()
	if !was {
		return nil
	}
	if n.udp != nil {
		n.udp.Close()
	}
	return n.gateway.Close()
}

// current returns the gateway, nil if there is none now. n may be nil.
func (n *network) current() *wireguard.Gateway {
	if n == nil {
		return nil
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.opened {
		return nil
	}
	return n.gateway
}

// summary says in which form it is, and where, "" if there is none now. n may be nil.
func (n *network) summary() string {
	g := n.current()
	if g == nil {
		return ""
	}
	return fmt.Sprintf("%s, WireGuard at UDP port %d", n.form, g.Port())
}

// own are the addresses at which this process listens for tunnels.
func (n *network) own() (own []netip.AddrPort) {
	if g := n.current(); g != nil {
		own = append(own, netip.AddrPortFrom(n.quicAt.Addr(), uint16(g.Port())), n.quicAt)
	}
	return own
}

// run serves the private network until ctx is done; once another process has taken the
// place of this one, what it has left of it.
func (n *network) run(ctx context.Context) error {
	err := n.inherit(ctx)
	for err == nil && ctx.Err() == nil {
		if err = n.serve(ctx); !errors.Is(err, errReplan) {
			continue
		}
		if n.isOver() {
			<-ctx.Done()
			break
		}
		if err = n.build(ctx); err == nil {
			err = n.open(false)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// errReplan ends the rooms of a network whose address plan is another one now. Nobody
// has an address in the old one then.
var errReplan = errors.New("the address plan has changed")

// bequeath adds the tunnels to what another process is given, until stay or leave. Where the
// gateway hands nothing over, there is nothing.
func (n *network) bequeath(files map[string]*os.File, texts map[string]string) (err error) {
	g := n.current()
	if g == nil {
		return nil
	}
	own, known, err := g.Bequeath()
	if err != nil || known == "" { // then it begins when this process has left
		return err
	}
	for name, f := range own {
		files[handTunnel+name] = f
	}
	texts[handTunnels] = known
	if n.udp == nil {
		return nil
	}
	own, texts[handQUIC], err = n.udp.Bequeath()
	for name, f := range own {
		files[handQUIC1+name] = f
	}
	return err
}

// stay says that no other process takes the tunnels.
func (n *network) stay() {
	if g := n.current(); g != nil {
		g.Stay()
	}
}

// leave ends the tunnels of this process, which are another one's. What that has taken goes
// on: with the network interface the connections behind it, and streams with the socket of
// QUIC.
func (n *network) leave(taken func(name string) bool) {
	defer close(n.over)
	g := n.current()
	if g == nil {
		return
	}
	kept := taken(handTunnel + wireguard.DeviceName)
	if kept {
		n.gate.DrainFlows(wireguard.Name)
	} else { // the kernel would keep those of an interface that is gone for minutes
		n.gate.DrainTunnel(wireguard.Name)
		<-time.After(cutTime)
	}
	g.Leave(kept)
	switch {
	case n.udp == nil:
	case taken(handQUIC1 + quic.SocketName):
		n.udp.Leave()
	default:
		n.gate.DrainTunnel(quic.Name)
	}
}

// isOver reports whether the tunnels are another process's.
func (n *network) isOver() bool {
	select {
	case <-n.over:
		return true
	default:
		return false
	}
}

// untilOver returns what does something until the tunnels are another process's, and then
// nothing until its context is done.
func (n *network) untilOver(do func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		own, stop := context.WithCancel(ctx)
		var waiting sync.WaitGroup
		waiting.Go(func() {
			select {
			case <-n.over:
				stop()
			case <-own.Done():
			}
		})
		err := do(own)
		if err == nil && n.isOver() {
			<-ctx.Done()
		}
		stop()
		waiting.Wait()
		return err
	}
}

// inherit opens what the process before this one had, when that has left it.
func (n *network) inherit(ctx context.Context) error {
	if n.cfg.Estate == nil {
		return nil
	}
	select {
	case <-n.mine:
	case <-ctx.Done():
		return ctx.Err()
	}
	if n.current() != nil { // it was handed over
		return nil
	}
	begun, said := time.Now(), false
	for {
		// Clients and firewalls know the first port: it is waited for.
		late, ports := time.Since(begun) > inheritTime, n.ports[:1]
		if late {
			ports = n.ports
		}
		err := n.openAt(ports, late, late)
		if err == nil {
			return nil
		}
		if late && !said {
			n.cfg.Log.Warn("the private network cannot be opened yet", "error", err)
			said = true
		}
		select {
		case <-time.After(reopenTime):
		case <-n.over:
			<-ctx.Done()
			return ctx.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// serve runs the rooms of the network.
func (n *network) serve(ctx context.Context) error {
	if n.loaded == nil {
		at, err := n.load(ctx)
		if err != nil {
			return errors.Join(err, n.close())
		}
		n.loaded = &at
	}
	at := *n.loaded
	n.loaded = nil
	ctx, stop := context.WithCancel(ctx)
	var rooms sync.WaitGroup
	var once sync.Once
	var first error
	start := func(run func(context.Context) error) {
		rooms.Go(func() {
			if err := run(ctx); err != nil {
				once.Do(func() { first = err })
			}
			stop()
		})
	}
	start(n.gateway.Run)
	start(n.names.Run)
	start(func(ctx context.Context) error { return n.follow(ctx, at) })
	start(n.untilOver(n.keep))
	if n.udp != nil {
		start(n.untilOver(n.serveQUIC))
	}
	rooms.Wait()
	stop()
	n.removing.Wait()
	return errors.Join(first, n.close())
}

// serveQUIC serves QUIC until ctx is done, and then closes its socket, as another process
// has it or is to have it. If that one ends, so does this one's part: it hears nothing.
func (n *network) serveQUIC(ctx context.Context) error {
	defer n.udp.Close()
	err := n.quic.Serve(ctx, n.udp)
	if errors.Is(err, quic.ErrDeaf) {
		n.cfg.Log.Warn("streams of QUIC are lost", "error", err)
		<-ctx.Done() // leave is about to say so, if it has not
		return nil
	}
	return err
}

// carry takes what carries the packets of a Session, until it is over.
func (n *network) carry(ctx context.Context, leaf *x509.Certificate, p tunnel.Pipe) {
	defer p.Close()
	uid, ok := sessionOf(leaf)
	if g := n.current(); ok && g != nil {
		g.Attach(ctx, uid, p)
	}
}

// sessionOf returns the uid of the Session whose certificate leaf is.
func sessionOf(leaf *x509.Certificate) (uid string, ok bool) {
	if leaf == nil || len(leaf.URIs) != 1 {
		return "", false
	}
	return certificate.SessionOf(leaf.URIs[0])
}
