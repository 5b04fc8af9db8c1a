package wireguard

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"cardea/netif"
	"cardea/wire/packet"
)

// kernel is the form of a Gateway in which the kernel speaks TCP, behind a TUN interface
// to which all addresses of Services belong.
//
// Its sockets are [ports]: the plane writes the port of one into the packets that come
// in, and the Service's into those that go out. So no other socket of the machine can be
// reached: what has no such port does not get to the kernel, and does not come out of it.
type kernel struct {
	*ports
	link *netif.Interface
	tun  tun.Device
	file *os.File // of tun

	to   [1 << 16]atomic.Uint32 // the socket's port for a Service's, or 0; with open
	from [1 << 16]atomic.Uint32 // and back, without

	waking sync.Mutex
	awake  atomic.Bool // reading from tun ends at once; changed under waking
	turn   bool        // of tun, now that others have had theirs; for read only
}

func (g *Gateway) openKernel() (below, error) {
	i, err := netif.Open(netif.Config{Name: g.Kernel, Routes: g.Sessions, Local: g.Services, MTU: g.MTU})
	if err != nil {
		return nil, err
	}
	k := &kernel{link: i, tun: newSteady(i.TUN()), file: i.TUN().File()}
	k.ports = newPorts(g, i.Name(), k.opened, k.shut)
	g.plane.out.wake = k.wake
	return k, nil
}

func (k *kernel) close() {
	k.stop()
	k.tun.Close()
	k.link.Close()
}

// open is that a port has its socket. Without it connections that are open go on, but no
// new one gets through: the socket's number may be that of somebody else.
const open = 1 << 16

// admit implements below: it has the packet go to the socket for its port.
func (k *kernel) admit(p []byte, i *packet.Info) bool {
	port := k.to[i.Destination.Port()].Load()
	if port == 0 || port&open == 0 && i.Flags&packet.SYN != 0 {
		return false
	}
	packet.SetDestinationPort(p, i, uint16(port))
	return true
}

// write implements below.
func (k *kernel) write(bufs [][]byte, offset int) { k.tun.Write(bufs, offset) }

// read implements below: packets of the kernel, and of the plane's queue in turns.
func (k *kernel) read(bufs [][]byte, sizes []int, offset int) (int, error) {
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
func (k *kernel) wake() {
	if !k.awake.Load() {
		k.rouse(time.Unix(1, 0))
	}
}

// rouse has reading from the kernel end at a time, unless it is to end already.
func (k *kernel) rouse(at time.Time) {
	k.waking.Lock()
	defer k.waking.Unlock()
	if !k.awake.Load() {
		k.awake.Store(true)
		k.file.SetReadDeadline(at)
	}
}

// opened has the packets to a port of Services go to the socket that it has now.
func (k *kernel) opened(port, own int) {
	k.from[own].Store(uint32(port))
	k.to[port].Store(uint32(own) | open)
}

// shut lets no new connection get to the socket of a port any more.
func (k *kernel) shut(port int) { k.to[port].And(^uint32(open)) }
