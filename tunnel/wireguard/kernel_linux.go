package wireguard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"cardea/tunnel"
	"cardea/tunnel/wireguard/kernel"
	"cardea/wire/packet"
)

// ofKernel is the form KERNEL: WireGuard is the kernel's, and so is what goes on in TCP
// connections, of which this process sees no packet. The plane gets all others, the first
// of each connection among them, and gives back those that it admits.
type ofKernel struct {
	*ports
	there [1 << 16]atomic.Bool // there is a socket for the port
	link  *kernel.Link
	echo  *kernel.Echo
	tasks sync.WaitGroup

	life sync.RWMutex // for what is done with link
	over bool         // guarded by life

	mu    sync.Mutex
	ids   uint32
	pipes map[netip.AddrPort]*pipe // by where the kernel sees them
}

// openKernel returns it as the core, and puts it below the plane.
func (g *Gateway) openKernel() (core, error) {
	if a := g.Listen.Addr(); a.IsValid() && !a.IsUnspecified() {
		return nil, fmt.Errorf("the kernel's WireGuard listens at all addresses, and not at %s alone", a)
	}
	l, err := kernel.Open(kernel.Config{Services: g.Services, Sessions: g.Sessions, Port: int(g.Listen.Port()), Key: g.Key, MTU: g.MTU})
	if err != nil {
		return nil, err
	}
	k := &ofKernel{link: l, pipes: map[netip.AddrPort]*pipe{}}
	if k.echo, err = l.Echo(probeSize, probeType); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	k.ports = newPorts(g, l.Listen, func(port, _ int) { k.there[port].Store(true) }, func(port int) { k.there[port].Store(false) })
	g.plane.below = k
	k.tasks.Go(func() { k.echo.Run4(g.probed) })
	k.tasks.Go(func() { k.echo.Run6(g.probed) })
	k.tasks.Go(k.receive)
	k.tasks.Go(k.send)
	return k, nil
}

// receive gives the plane what the kernel does not take, until the Link is closed.
func (k *ofKernel) receive() {
	buffer := make([]byte, 1<<16)
	for {
		n, err := k.link.Read(buffer)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err == nil && n > 0 {
			k.g.plane.Write([][]byte{buffer[:n]}, 0)
		}
	}
}

// send sends what leaves and is not the kernel's, until the queue is closed.
func (k *ofKernel) send() {
	bufs, sizes := [][]byte{make([]byte, 1<<16)}, make([]int, 1)
	for {
		if _, err := k.g.plane.out.read(bufs, sizes, 0); err != nil {
			return
		}
		k.link.Write(bufs[0][:sizes[0]]) // may be lost, as any packet
	}
}

// admit implements below.
func (k *ofKernel) admit(p []byte, i *packet.Info) bool {
	return i.Flags&packet.SYN == 0 || k.there[i.Destination.Port()].Load()
}

// write implements below.
func (k *ofKernel) write(bufs [][]byte, offset int) {
	for _, b := range bufs {
		k.link.Take(b[offset:])
	}
}

// read implements below. Nobody asks: see send.
func (k *ofKernel) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return k.g.plane.out.read(bufs, sizes, offset)
}

// close implements core and below.
func (k *ofKernel) close() {
	k.life.Lock()
	was := k.over
	k.over = true
	k.life.Unlock()
	if was {
		return
	}
	k.stop()
	k.g.plane.out.close()
	k.echo.Close()
	if err := k.link.Close(); err != nil {
		k.g.Log.Error("the gateway's interface cannot be removed", "error", err)
	}
	k.hangUp()
	k.tasks.Wait()
}

// hangUp closes all pipes: where they went, another Gateway may listen now.
func (k *ofKernel) hangUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.pipes {
		e.pipe.Close()
	}
}

// with does something with the link, unless that is closed.
func (k *ofKernel) with(do func(l *kernel.Link) error) error {
	k.life.RLock()
	defer k.life.RUnlock()
	if k.over {
		return net.ErrClosed
	}
	return do(k.link)
}

func (k *ofKernel) port() int { return k.link.Port() }

// put implements core. Where the peer is it says itself.
func (k *ofKernel) put(key Key, at []netip.Addr, _ netip.AddrPort) error {
	return k.with(func(l *kernel.Link) error { return l.Put(key, at) })
}

// greet implements core. The kernel begins a handshake when it has something to send.
func (k *ofKernel) greet(Key, *pipe) {}

func (k *ofKernel) remove(key Key) error {
	return k.with(func(l *kernel.Link) error { return l.Remove(key) })
}

func (k *ofKernel) setKey(key Key) error {
	return k.with(func(l *kernel.Link) error { return l.SetKey(key) })
}

func (k *ofKernel) dropped() (spoofed, late int) {
	k.with(func(l *kernel.Link) error {
		spoofed, late = l.Dropped()
		return nil
	})
	return spoofed, late
}

func (k *ofKernel) peers() ([]peerStatus, error) {
	var all []kernel.Peer
	err := k.with(func(l *kernel.Link) (err error) {
		all, err = l.Peers()
		return err
	})
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	peers := make([]peerStatus, len(all))
	for i, p := range all {
		peers[i] = peerStatus{key: p.Key, at: p.Endpoint, handshake: p.Handshake, received: p.Received, sent: p.Sent}
		if via := k.pipes[p.Endpoint]; via != nil {
			peers[i].at, peers[i].carrier = via.endpoint(), via.carrier()
		} else if p.Endpoint.IsValid() {
			peers[i].carrier = CarrierUDP
		}
	}
	return peers, nil
}

// carry implements core. Each pipe is a socket of its own, at an address of the loopback
// interface that no other has: WireGuard counts handshakes by address.
func (k *ofKernel) carry(p tunnel.Pipe, _ func(*pipe)) error {
	defer p.Close()
	e := newPipe(p, nil)
	c, at, err := k.dial(e)
	if err != nil {
		return fmt.Errorf("a socket for a pipe: %w", err)
	}
	defer c.Close()
	var back sync.WaitGroup
	back.Go(func() { carryBack(c, e) })
	err = carryIn(c, e)
	c.Close()
	back.Wait()
	k.mu.Lock()
	delete(k.pipes, at)
	k.mu.Unlock()
	return e.over(err, proveWithin)
}

// dial makes the socket of a pipe, and remembers by which address it is seen.
func (k *ofKernel) dial(e *pipe) (c *net.UDPConn, at netip.AddrPort, err error) {
	err = k.with(func(l *kernel.Link) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.ids++
		c, err = l.DialSelf(netip.AddrFrom4([4]byte{127, 1 + byte(k.ids>>16)%254, byte(k.ids >> 8), byte(k.ids)}))
		if err != nil {
			return err
		}
		at = c.LocalAddr().(*net.UDPAddr).AddrPort()
		k.pipes[at] = e
		return nil
	})
	return c, at, err
}

// carryIn gives WireGuard what comes by a pipe, until that is over.
func carryIn(c *net.UDPConn, e *pipe) error {
	defer e.expect(proveWithin)()
	b := make([]byte, 1<<16)
	for {
		n, err := e.pipe.Receive(b)
		if err != nil {
			return err
		}
		e.received.Add(uint64(n))
		c.Write(b[:n])
	}
}

// carryBack sends by a pipe what WireGuard sends there, until either is over.
func carryBack(c *net.UDPConn, e *pipe) {
	b := make([]byte, 1<<16)
	for {
		n, err := c.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n > 0 && e.send(b[:n]) != nil {
			return
		}
	}
}
