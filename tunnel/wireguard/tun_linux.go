package wireguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"cardea/netif"
	"cardea/wire/packet"
)

// behindTUN is the form TUN: the kernel speaks TCP, behind a TUN interface to which all
// addresses of Services belong.
//
// Its sockets are [ports], each at a free port of its own and bound to the interface, so
// that no port of the machine that is in use is in the way, and nobody comes to them but
// through a tunnel. The plane writes the port of one into the packets that come in, and
// the Service's into those that go out. So no other socket of the machine can be reached:
// what has no such port does not get to the kernel, and does not come out of it.
type behindTUN struct {
	*ports
	link *netif.Interface
	tun  tun.Device
	file *os.File // of tun

	to   [1 << 16]atomic.Uint32 // the socket's port for a Service's, or 0; with open
	from [1 << 16]atomic.Uint32 // and back, without
	heir bool                   // the interface is of the process before

	waking sync.Mutex
	awake  atomic.Bool // reading from tun ends at once; changed under waking
	turn   bool        // of tun, now that others have had theirs; for read only
}

func (g *Gateway) openTUN() (below, error) {
	config := netif.Config{Name: g.Interface, Routes: g.Sessions, Local: g.Services, MTU: g.MTU}
	k := &behindTUN{}
	k.ports = newPorts(g, k.listen, k.opened, k.shut)
	var err error
	if f := inherit(g.Inherit).take(DeviceName); f == nil {
		k.link, err = netif.Open(config)
	} else if k.link, err = netif.Inherit(config, f); err == nil {
		err = k.inherit()
	}
	if err != nil {
		return nil, err
	}
	k.tun, k.file = newSteady(k.link.TUN()), k.link.TUN().File()
	g.plane.out.wake = k.wake
	return k, nil
}

// inherit takes over the sockets of the process before, and what it has done with their
// ports: its connections go on by these.
func (k *behindTUN) inherit() error {
	k.heir = true
	for port, own := range k.g.known.Ports {
		if !isPort(port) || !isPort(own) {
			continue
		}
		k.from[own].Store(uint32(port))
		k.to[port].Store(uint32(own))
		// Without a socket it was closed, and there are connections still.
		there, err := k.adopt(port, inherit(k.g.Inherit).take(portName(port)))
		if err != nil {
			k.stop()
			return errors.Join(fmt.Errorf("the socket for port %d: %w", port, err), k.link.Leave())
		}
		if there {
			k.to[port].Or(open)
		}
	}
	return nil
}

// bequeath implements heritable.
func (k *behindTUN) bequeath(add func(name string, of syscall.Conn) error) error {
	return errors.Join(add(DeviceName, k.file), k.give(add))
}

// hold implements heirloom.
func (k *behindTUN) hold() map[int]int {
	k.ports.hold(true)
	ports := map[int]int{}
	for port := range k.to {
		if own := k.to[port].Load() &^ open; own != 0 {
			ports[port] = int(own)
		}
	}
	return ports
}

// release implements heirloom.
func (k *behindTUN) release() { k.ports.hold(false) }

// leave implements heirloom. The interface stays, and its connections. It is left before
// anything is closed: WireGuard's device closes itself, and with it what is below, as soon
// as it can read no more.
func (k *behindTUN) leave() {
	k.stop()
	k.link.Leave()
	k.tun.Close()
}

func (k *behindTUN) close() {
	if k.heir && !k.g.hasBegun() { // it is the other one's still
		k.leave()
		return
	}
	k.stop()
	k.tun.Close()
	k.link.Close()
}

// listen opens a socket that is bound to the interface.
func (k *behindTUN) listen(ctx context.Context, c net.ListenConfig, _ int) (net.Listener, error) {
	before := c.Control
	c.Control = func(network, address string, raw syscall.RawConn) error {
		if err := before(network, address, raw); err != nil {
			return err
		}
		return control(raw, func(fd int) error { return unix.BindToDevice(fd, k.link.Name()) })
	}
	return c.Listen(ctx, "tcp", ":0")
}

// open is that a port has its socket. Without it connections that are open go on, but no
// new one gets through: the socket's number may be that of somebody else.
const open = 1 << 16

// admit implements below: it has the packet go to the socket for its port.
func (k *behindTUN) admit(p []byte, i *packet.Info) bool {
	port := k.to[i.Destination.Port()].Load()
	if port == 0 || port&open == 0 && i.Flags&packet.SYN != 0 {
		return false
	}
	packet.SetDestinationPort(p, i, uint16(port))
	return true
}

// write implements below.
func (k *behindTUN) write(bufs [][]byte, offset int) { k.tun.Write(bufs, offset) }

// read implements below: packets of the kernel, and of the plane's queue in turns.
func (k *behindTUN) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		if k.turn {
			// Others wait too, perhaps: have only a look.
			k.rouse(time.Now().Add(glance))
		} else if n := k.g.plane.out.ready(bufs, sizes, offset); n > 0 {
			k.turn = true
			return n, nil
		}
		k.turn = false
		n, err := k.tun.Read(bufs, sizes, offset)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			k.waking.Lock()
			k.awake.Store(false)
			k.file.SetReadDeadline(time.Time{})
			k.waking.Unlock()
			continue
		}
		var i packet.Info
		for j := range n {
			p := bufs[j][offset : offset+sizes[j]]
			if packet.Parse(p, &i) != packet.OK || i.Protocol != packet.TCP {
				sizes[j] = 0 // nothing but TCP comes from our sockets
				continue
			}
			port := k.from[i.Source.Port()].Load()
			if port == 0 {
				sizes[j] = 0
				continue
			}
			packet.SetSourcePort(p, &i, uint16(port))
		}
		return n, err
	}
}

// glance is how long a reader that has other things to do waits for the kernel.
const glance = 20 * time.Microsecond

// wake ends a read that waits for the kernel: the queue has something.
func (k *behindTUN) wake() {
	if !k.awake.Load() {
		k.rouse(time.Unix(1, 0))
	}
}

// rouse has reading from the kernel end at a time, unless it is to end already.
func (k *behindTUN) rouse(at time.Time) {
	k.waking.Lock()
	defer k.waking.Unlock()
	if !k.awake.Load() {
		k.awake.Store(true)
		k.file.SetReadDeadline(at)
	}
}

// opened has the packets to a port of Services go to the socket that it has now.
func (k *behindTUN) opened(port, own int) {
	k.from[own].Store(uint32(port))
	k.to[port].Store(uint32(own) | open)
}

// shut lets no new connection get to the socket of a port any more.
func (k *behindTUN) shut(port int) { k.to[port].And(^uint32(open)) }
