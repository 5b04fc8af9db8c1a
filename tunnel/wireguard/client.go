package wireguard

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"cardea/tunnel"
)

// A Client is a device's end of WireGuard tunnels, to any number of gateways.
type Client struct {
	Key       Key          // private
	Addresses []netip.Addr // its own, in the tunnel; for a stack of its own only
	// TUN is the network interface. Without one the Client has a stack of its own, which
	// only DialContext reaches. Close closes it.
	TUN tun.Device
	MTU int // in bytes; 0 is DefaultMTU
	Log *slog.Logger

	bind    *bind
	device  *device.Device
	stack   *netstack
	buffers *buffers
	tasks   sync.WaitGroup
	done    chan struct{} // closed by Close

	mu      sync.Mutex
	closed  bool
	remotes map[string]*remote
	probes  map[nonce]chan epoch
}

// A Remote is a gateway, as a Client sees it.
type Remote struct {
	Name      string
	PublicKey Key
	Endpoint  netip.AddrPort // UDP; zero if it has none
	Allowed   []netip.Prefix // what is reached through it
}

// remote is a Remote and how it is reached.
type remote struct {
	Remote
	via   *pipe // nil is UDP
	epoch epoch // of its last answer to a probe
	// renewAt is when its keys were to be renewed; zero if that is done.
	renewAt time.Time
}

// A LinkStatus is how a gateway is connected.
type LinkStatus struct {
	Name           string
	Endpoint       netip.AddrPort // outer address of the gateway
	Carrier        string         // CarrierUDP and the like
	Handshake      time.Time      // the last one; zero if there was none
	Received, Sent uint64         // bytes, with what WireGuard adds
}

// keepalive is how often something is said when there is nothing to say, in seconds, so
// that a NAT on the way remembers.
const keepalive = "25"

// After a change of carrier the gateway is greeted again after this time, and after twice
// as much each time.
const (
	greetAgain = 50 * time.Millisecond
	greetUntil = 15 * time.Second
)

// What renews the keys looks after this time whether there was a handshake, and after twice
// as much each time, and if not begins another.
const (
	renewAgain = 500 * time.Millisecond
	renewUntil = 4 * time.Second
)

// probeAgain is how long a probe waits for its answer before it asks again.
const probeAgain = 300 * time.Millisecond

// Open makes the device.
func (c *Client) Open() error {
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	c.buffers = &buffers{size: max(2048, c.MTU+128)}
	c.done = make(chan struct{})
	c.remotes, c.probes = map[string]*remote{}, map[nonce]chan epoch{}
	c.bind = newBind(newUDP(netip.Addr{}, false, nil), c.probed)
	d := c.TUN
	if d == nil {
		out := newQueue(c.MTU)
		n, err := newNetstack(c.MTU, c.Addresses, out)
		if err != nil {
			return err
		}
		c.stack = n
		d = &own{nothing{c.MTU}, n}
	}
	c.device = device.NewDevice(newSteady(d), c.bind, logger(c.Log, func(int) {}))
	// The Client chooses how it reaches a gateway: what still comes another way changes
	// nothing.
	c.device.DisableSomeRoamingForBrokenMobileSemantics()
	if err := errors.Join(c.device.SetPrivateKey(device.NoisePrivateKey(c.Key)), c.device.Up()); err != nil {
		c.device.Close()
		return fmt.Errorf("WireGuard: %w", err)
	}
	return nil
}

// Close ends the device with all of its pipes, and its network interface or stack.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	close(c.done)
	for _, r := range c.remotes {
		if r.via != nil {
			c.bind.drop(r.via)
		}
	}
	c.mu.Unlock()
	c.tasks.Wait()
	c.device.Close()
	<-c.device.Wait()
	return nil
}

// own is the device of a Client that has a stack of its own.
type own struct {
	nothing
	stack *netstack
}

func (o *own) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return o.stack.out.read(bufs, sizes, offset)
}

func (o *own) Write(bufs [][]byte, offset int) (int, error) {
	o.stack.write(bufs, offset)
	return len(bufs), nil
}

func (o *own) Close() error {
	o.stack.close()
	return nil
}

// Set makes the gateways those that are given. One that stays keeps its state, and its
// carrier; one that has another key makes a new handshake.
func (c *Client) Set(remotes []Remote) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	for name, r := range c.remotes {
		if !slices.ContainsFunc(remotes, func(n Remote) bool { return n.Name == name && n.PublicKey == r.PublicKey }) {
			c.device.RemovePeer(device.NoisePublicKey(r.PublicKey))
		}
		if !slices.ContainsFunc(remotes, func(n Remote) bool { return n.Name == name }) {
			if r.via != nil {
				c.bind.drop(r.via)
			}
			delete(c.remotes, name)
		}
	}
	var errs []error
	for _, n := range remotes {
		errs = append(errs, c.set(n))
	}
	return errors.Join(errs...)
}

// set adds or changes one. c.mu must be held.
func (c *Client) set(n Remote) error {
	r := c.remotes[n.Name]
	isKnown := r != nil
	if !isKnown {
		r = &remote{}
	}
	isNew := r.PublicKey != n.PublicKey
	if !isNew && r.Endpoint == n.Endpoint && slices.Equal(r.Allowed, n.Allowed) {
		return nil
	}
	n.Allowed = slices.Clone(n.Allowed)
	r.Remote = n
	var s setting
	s.peer(n.PublicKey)
	s.add("endpoint", r.endpoint())
	s.add("persistent_keepalive_interval", keepalive)
	s.allow(n.Allowed)
	if err := s.apply(c.device); err != nil {
		return fmt.Errorf("gateway %s: %w", n.Name, err)
	}
	c.remotes[n.Name] = r
	if isNew && isKnown { // WireGuard repeats a handshake that was lost only after 5 s
		c.renew(r)
	}
	return nil
}

// endpoint is how the gateway is reached now, as the device wants it.
func (r *remote) endpoint() string {
	switch {
	case r.via != nil:
		return r.via.DstToString()
	case r.Endpoint.IsValid():
		return r.Endpoint.String()
	}
	return nowhere
}

// Via has the packets to a gateway and from it go by a pipe, or with nil by UDP. The pipe
// is the Client's from then on: it closes it when another takes its place, and when it is
// over nothing comes any more, until Via is called again. The gateway follows at once.
func (c *Client) Via(name string, p tunnel.Pipe) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.remotes[name]
	if r == nil || c.closed {
		if p != nil {
			p.Close()
		}
		return fmt.Errorf("gateway %s is not known", name)
	}
	old := r.via
	if r.via = nil; p != nil {
		r.via = c.bind.add(p, c.buffers)
	}
	var s setting
	s.peer(r.PublicKey)
	s.add("endpoint", r.endpoint())
	if err := s.apply(c.device); err != nil {
		return fmt.Errorf("gateway %s: %w", name, err)
	}
	if old != nil {
		c.bind.drop(old)
	}
	if via := r.via; via != nil {
		c.tasks.Go(func() { c.bind.read(via, 0) })
	}
	c.greet(r)
	return nil
}

// greet has the gateway learn how it is reached: by what is encrypted under the keys that
// it has, and by a handshake, should it have lost these. It says so more than once: a
// packet may be lost, or one that went the old way may come later. c.mu must be held.
func (c *Client) greet(r *remote) {
	via, key := r.via, r.PublicKey
	if peer := c.device.LookupPeer(device.NoisePublicKey(key)); peer != nil {
		peer.SendKeepalive()
		peer.SendHandshakeInitiation(false)
	}
	c.tasks.Go(func() {
		for again := greetAgain; again <= greetUntil; again *= 2 {
			select {
			case <-time.After(again):
			case <-c.done:
				return
			}
			c.mu.Lock()
			same := c.remotes[r.Name] == r && r.via == via && r.PublicKey == key
			c.mu.Unlock()
			if !same {
				return
			}
			if peer := c.device.LookupPeer(device.NoisePublicKey(key)); peer != nil {
				peer.SendKeepalive()
			}
		}
	})
}

// Renew makes a new handshake with a gateway at once: for who knows that it has started
// anew, or that this device has slept. A Probe does so by itself when it learns of the
// first.
func (c *Client) Renew(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.remotes[name]; r != nil && !c.closed {
		c.renew(r)
	}
}

// renew forgets the keys of a gateway and makes new ones. A gateway that has just started
// may not know its peers yet, and WireGuard would ask again only after five seconds; but
// two handshakes at once end with keys that only one side has. So there is one task that
// sees to it, however often this is called. c.mu must be held.
func (c *Client) renew(r *remote) {
	isUnderWay := !r.renewAt.IsZero()
	r.renewAt = time.Now()
	if isUnderWay {
		return
	}
	c.shake(r.PublicKey)
	c.tasks.Go(func() {
		for again := renewAgain; ; again = min(2*again, renewUntil) {
			select {
			case <-time.After(again):
			case <-c.done:
				return
			}
			if c.isRenewed(r) {
				return
			}
		}
	})
}

// isRenewed reports whether there was a handshake with a gateway since renew was called,
// and begins another if not. It is over, too, if the gateway is none any more.
func (c *Client) isRenewed(r *remote) bool {
	peers, err := peersOf(c.device)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(peers, func(p peerStatus) bool { return p.key == r.PublicKey })
	if err != nil || i < 0 || peers[i].handshake.After(r.renewAt) {
		r.renewAt = time.Time{}
		return true
	}
	c.shake(r.PublicKey)
	return false
}

// shake forgets the keys that are shared with a gateway, and begins a handshake.
func (c *Client) shake(gateway Key) {
	if peer := c.device.LookupPeer(device.NoisePublicKey(gateway)); peer != nil {
		peer.ExpireCurrentKeypairs()
		peer.SendKeepalive()
	}
}

// Probe asks whether UDP gets to a gateway and back, whatever carries its packets now, and
// returns how long that took. It asks until ctx is done.
func (c *Client) Probe(ctx context.Context, name string) (time.Duration, error) {
	var n nonce
	rand.Read(n[:])
	answer := make(chan epoch, 1)
	c.mu.Lock()
	r := c.remotes[name]
	if r == nil || c.closed {
		c.mu.Unlock()
		return 0, fmt.Errorf("gateway %s is not known", name)
	}
	key, at := r.PublicKey, r.Endpoint
	c.probes[n] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.probes, n)
		c.mu.Unlock()
	}()
	if !at.IsValid() {
		return 0, fmt.Errorf("gateway %s has no WireGuard port", name)
	}
	to, err := c.bind.Bind.ParseEndpoint(at.String())
	if err != nil {
		return 0, err
	}
	again := time.NewTicker(probeAgain)
	defer again.Stop()
	start := time.Now()
	for {
		err := c.bind.Bind.Send([][]byte{makeProbe(probeType, n, 0, key)}, to)
		select {
		case e := <-answer:
			rtt := time.Since(start)
			c.answered(name, key, e)
			return rtt, nil
		case <-again.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("no answer by UDP from gateway %s at %s: %w", name, at, errors.Join(err, ctx.Err()))
		}
	}
}

// answered notes the epoch of a gateway.
func (c *Client) answered(name string, key Key, e epoch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.remotes[name]
	if r == nil || r.PublicKey != key || c.closed {
		return
	}
	if r.epoch != 0 && r.epoch != e {
		c.renew(r)
	}
	r.epoch = e
}

// probed takes the answer to a probe.
func (c *Client) probed(b []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.remotes {
		n, e, ok := readProbe(answerType, b, r.PublicKey)
		if !ok {
			continue
		}
		select {
		case c.probes[n] <- e: // nil if nobody asked
		default:
		}
		break
	}
	return nil
}

// Links returns how the gateways are connected, in the order of their names.
func (c *Client) Links() []LinkStatus {
	peers, err := peersOf(c.device)
	if err != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []LinkStatus
	for _, p := range peers {
		for name, r := range c.remotes {
			if r.PublicKey != p.key {
				continue
			}
			l := LinkStatus{Name: name, Handshake: p.handshake, Received: p.received, Sent: p.sent, Endpoint: r.Endpoint, Carrier: CarrierUDP}
			if r.via != nil {
				l.Endpoint, l.Carrier = r.via.endpoint(), r.via.carrier()
			}
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b LinkStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// DialContext connects to an address in the tunnel, with network "tcp" or "udp", from the
// Client's own stack. The conn of a TCP connection is a [tunnel.Conn].
func (c *Client) DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	switch {
	case c.stack == nil:
		return nil, errors.New("this tunnel ends in a network interface: dial there")
	case network == "udp":
		return c.stack.dialUDP(to)
	case network != "tcp":
		return nil, net.UnknownNetworkError(network)
	}
	conn, err := c.stack.dial(ctx, to)
	if err != nil {
		return nil, err
	}
	return conn, nil
}
