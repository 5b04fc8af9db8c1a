package wireguard

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"cardea/tunnel"
)

// core is WireGuard itself: what authenticates the packets of peers and lets none in whose
// source address is not its peer's.
type core interface {
	port() int
	// put adds a peer, or changes its addresses. It is at an endpoint, if that is valid.
	put(key Key, addresses []netip.Addr, at netip.AddrPort) error
	// greet begins a handshake with a peer, by a pipe if it is not nil. It may do nothing.
	greet(key Key, by *pipe)
	remove(key Key) error
	setKey(key Key) error
	peers() ([]peerStatus, error)
	// dropped is how many packets it dropped, because of their source address and because
	// nobody took them in time, unless it has the plane count them.
	dropped() (spoofed, late int)
	// carry takes the packets of a pipe until that is over, which it closes. One over
	// which nobody authenticates himself in time is over; before, late may be called with it.
	carry(p tunnel.Pipe, late func(*pipe)) error
	close() // may be called more than once
}

// inProcess is WireGuard in this process.
type inProcess struct {
	*bind
	device  *device.Device
	buffers *buffers
}

func (g *Gateway) openInProcess() (core, error) {
	only := g.Listen.Addr().Unmap()
	if only.IsUnspecified() {
		only = netip.Addr{}
	}
	o := &inProcess{bind: newBind(newUDP(only, true, g.Inherit), g.probed), buffers: &buffers{size: max(2048, g.MTU+128)}}
	o.begun = g.begun
	o.device = device.NewDevice(newSteady(g.plane), o.bind, logger(g.Log, func(why int) { g.plane.drop(why) }))
	var s setting
	s.add("private_key", g.Key.hex())
	s.add("listen_port", fmt.Sprint(g.Listen.Port()))
	if err := errors.Join(s.apply(o.device), o.device.Up()); err != nil {
		o.device.Close()
		return nil, fmt.Errorf("WireGuard on UDP port %d: %w", g.Listen.Port(), err)
	}
	return o, nil
}

func (o *inProcess) put(key Key, addresses []netip.Addr, at netip.AddrPort) error {
	prefixes := make([]netip.Prefix, len(addresses))
	for i, a := range addresses {
		prefixes[i] = netip.PrefixFrom(a, a.BitLen())
	}
	var s setting
	s.peer(key)
	if at.IsValid() {
		s.add("endpoint", at.String())
	}
	s.allow(prefixes)
	return s.apply(o.device)
}

func (o *inProcess) greet(key Key, by *pipe) {
	peer := o.device.LookupPeer(device.NoisePublicKey(key))
	if peer == nil {
		return
	}
	if by != nil {
		var s setting
		s.peer(key)
		s.add("endpoint", by.DstToString())
		if s.apply(o.device) != nil {
			return
		}
		peer.ExpireCurrentKeypairs() // and it may begin at once
	}
	peer.SendHandshakeInitiation(false)
}

func (o *inProcess) remove(key Key) error {
	o.device.RemovePeer(device.NoisePublicKey(key))
	return nil
}

func (o *inProcess) setKey(key Key) error { return o.device.SetPrivateKey(device.NoisePrivateKey(key)) }

func (o *inProcess) peers() ([]peerStatus, error) {
	peers, err := peersOf(o.device)
	for i := range peers {
		peers[i].at, peers[i].carrier = o.where(peers[i].endpoint)
	}
	return peers, err
}

func (o *inProcess) dropped() (spoofed, late int) { return 0, 0 }

func (o *inProcess) carry(p tunnel.Pipe, late func(*pipe)) error {
	e := o.add(p, o.buffers)
	defer o.drop(e)
	defer time.AfterFunc(greetLate, func() { late(e) }).Stop()
	return o.read(e, proveWithin)
}

// bequeath implements heritable.
func (o *inProcess) bequeath(add func(name string, of syscall.Conn) error) error {
	if h, ok := o.Bind.(heritable); ok {
		return h.bequeath(add)
	}
	return nil
}

func (o *inProcess) close() {
	o.device.Close()
	<-o.device.Wait()
}
