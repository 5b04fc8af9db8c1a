package wireguard

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"cardea/netif"
	"cardea/tunnel"
	"cardea/wire/packet"
)

// kernel is the form of a Gateway in which the kernel speaks TCP, behind a TUN interface
// to which all addresses of Services belong.
//
// For each port that a Service has there is one listening socket, on any free port and
// bound to the interface; the plane writes that port into the packets that come in, and
// the Service's into those that go out. So no port of the machine that is in use is in
// the way, and no other socket of the machine can be reached: what has no such port does
// not get to the kernel, and does not come out of it.
type kernel struct {
	g    *Gateway
	link *netif.Interface
	tun  tun.Device
	file *os.File // of tun

	to   [1 << 16]atomic.Uint32 // the socket's port for a Service's, or 0; with open
	from [1 << 16]atomic.Uint32 // and back, without

	mu        sync.Mutex
	listeners map[int]net.Listener // by the Service's port
	stopped   bool

	waking sync.Mutex
	awake  atomic.Bool // reading from tun ends at once; changed under waking
	turn   bool        // of tun, now that others have had theirs; for read only
}

func (g *Gateway) openKernel() (below, error) {
	i, err := netif.Open(netif.Config{Name: g.Kernel, Routes: g.Sessions, Local: g.Services, MTU: g.MTU})
	if err != nil {
		return nil, err
	}
	k := &kernel{g: g, link: i, tun: newSteady(i.TUN()), file: i.TUN().File(), listeners: map[int]net.Listener{}}
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

// refresh implements listener: it opens and closes sockets, so that there is one for
// each port.
func (k *kernel) refresh() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return
	}
	want := map[int]bool{dnsPort: true}
	for _, p := range k.g.Ports() {
		want[p] = true
	}
	for port, l := range k.listeners {
		if !want[port] {
			k.shut(port, l)
		}
	}
	for port := range want {
		if k.listeners[port] != nil || port < 1 || port > 65535 {
			continue
		}
		if err := k.listen(port); err != nil {
			k.g.Log.Error("the gateway cannot listen for Services on a port", "port", port, "error", err)
		}
	}
}

// listen opens the socket for a port. k.mu must be held.
func (k *kernel) listen(port int) error {
	c := net.ListenConfig{
		Control: func(network, address string, c syscall.RawConn) error {
			var err error
			return errors.Join(c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), k.link.Name()) }), err)
		},
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount},
	}
	c.SetMultipathTCP(false)
	l, err := c.Listen(k.g.ctx, "tcp", ":0")
	if err != nil {
		return err
	}
	own := l.Addr().(*net.TCPAddr).Port
	if !k.g.start(func() { k.accept(l, port) }) {
		l.Close()
		return net.ErrClosed
	}
	k.listeners[port] = l
	k.from[own].Store(uint32(port))
	k.to[port].Store(uint32(own) | open)
	return nil
}

// accept takes the connections to a port of Services.
func (k *kernel) accept(l net.Listener, port int) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too few descriptors, and the like: it passes
			k.g.Log.Error("the gateway cannot accept", "port", port, "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-k.g.ctx.Done():
			}
			continue
		}
		tcp := c.(*net.TCPConn)
		from := tcp.RemoteAddr().(*net.TCPAddr).AddrPort()
		to := tcp.LocalAddr().(*net.TCPAddr).AddrPort()
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		to = netip.AddrPortFrom(to.Addr().Unmap(), uint16(port))
		k.g.accepted(&kernelConn{TCPConn: tcp, local: net.TCPAddrFromAddrPort(to)}, from, to, asTransparent)
	}
}

// stop implements listener.
func (k *kernel) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	for port, l := range k.listeners {
		k.shut(port, l)
	}
}

// shut closes the socket for a port. k.mu must be held.
func (k *kernel) shut(port int, l net.Listener) {
	k.to[port].And(^uint32(open))
	l.Close()
	delete(k.listeners, port)
}

// kernelConn is a TCP connection of the kernel, which tells a reset once: this remembers.
type kernelConn struct {
	*net.TCPConn
	local    net.Addr    // with the Service's port
	finished atomic.Bool // our end of file is on its way
	cut      atomic.Pointer[tunnel.ResetError]
}

// LocalAddr implements net.Conn.
func (c *kernelConn) LocalAddr() net.Addr { return c.local }

// Read implements net.Conn.
func (c *kernelConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if err == io.EOF && !c.finished.Load() && isClosed(c.TCPConn) {
		err = syscall.ECONNRESET // and a Write has been told
	}
	return n, c.failure(err)
}

// Write implements net.Conn.
func (c *kernelConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	return n, c.failure(err)
}

// CloseWrite implements tunnel.Conn.
func (c *kernelConn) CloseWrite() error {
	c.finished.Store(true)
	return c.failure(c.TCPConn.CloseWrite())
}

// failure says what an error of the kernel means.
func (c *kernelConn) failure(err error) error {
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ENOTCONN),
		errors.Is(err, syscall.EPIPE) && !c.finished.Load():
		c.cut.CompareAndSwap(nil, &tunnel.ResetError{Reason: "by the peer"})
	case errors.Is(err, syscall.ETIMEDOUT):
		c.cut.CompareAndSwap(nil, &tunnel.ResetError{Reason: "the peer does not answer"})
	}
	if cut := c.cut.Load(); cut != nil {
		return cut
	}
	return err
}

// Reset implements tunnel.Conn.
func (c *kernelConn) Reset(reason string) error {
	c.cut.CompareAndSwap(nil, &tunnel.ResetError{Reason: reason})
	c.SetLinger(0)
	if err := c.TCPConn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// isClosed reports whether the kernel has closed a connection, which it does before both
// ends have finished only when it was reset or lost.
func isClosed(c *net.TCPConn) (yes bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		const closed = 7 // TCP_CLOSE
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		yes = err == nil && info.State == closed
	})
	return yes
}

// transparent is registered over a TCP connection of the kernel: an engine that has what
// it takes reads and writes that.
type transparent struct{ *registered }

var (
	_ tunnel.Conn   = transparent{}
	_ tunnel.Teller = transparent{}
)

// NetConn returns the *net.TCPConn.
func (t transparent) NetConn() net.Conn { return t.Conn.(*kernelConn).TCPConn }

// Unread returns nothing: nothing was read.
func (transparent) Unread() []byte { return nil }

// SyscallConn implements syscall.Conn.
func (t transparent) SyscallConn() (syscall.RawConn, error) {
	return t.Conn.(*kernelConn).TCPConn.SyscallConn()
}

func asTransparent(r *registered) net.Conn { return transparent{r} }
