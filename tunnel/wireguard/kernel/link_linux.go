package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// name is that of the interface in its namespace.
const name = "cardea-gw"

// A Link is an interface of type wireguard in its namespace.
type Link struct {
	outside, inside space
	handle          *netlink.Handle // inside
	control         *wgctrl.Client  // inside
	index           int
	port            int

	socket *os.File // packets of the interface that the kernel does not take
	loop   *os.File // packets of the loopback interface of the namespace

	counting sync.Mutex
	late     int // packets that were not read in time, as far as they were counted
}

// Open makes a Link: all of it, or nothing. It belongs to the network namespace of the
// OS thread that calls it. It needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW, and a
// kernel with WireGuard and nftables.
func Open(c Config) (*Link, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l := &Link{}
	var err error
	if l.outside, err = here(); err != nil {
		return nil, err
	}
	if err := l.open(c); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Link) open(c Config) error {
	var err error
	if l.inside, err = l.outside.another(); err != nil {
		return err
	}
	if err := l.outside.do(func() error { return add(l.inside, c.MTU) }); err != nil {
		return err
	}
	// What keeps others away comes first, and up it goes last.
	if err := l.guard(c.Services); err != nil {
		return err
	}
	return l.inside.do(func() error { return l.setUp(c) })
}

// add makes the interface, whose own packets go by the namespace of the thread.
func add(inside space, mtu int) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	err = h.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, Namespace: netlink.NsFd(inside.file.Fd())}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("this kernel has no WireGuard: %w", err)
	}
	if err != nil {
		return fmt.Errorf("make an interface of type wireguard: %w", err)
	}
	return nil
}

// setUp gives the namespace all it is to have. The thread must be inside.
func (l *Link) setUp(c Config) error {
	var err error
	if l.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	if l.control, err = wgctrl.New(); err != nil {
		return fmt.Errorf("netlink of WireGuard: %w", err)
	}
	link, err := l.handle.LinkByName(name)
	if err != nil {
		return err
	}
	lo, err := l.handle.LinkByName("lo")
	if err != nil {
		return err
	}
	l.index = link.Attrs().Index
	key := wgtypes.Key(c.Key)
	if err := l.control.ConfigureDevice(name, wgtypes.Config{PrivateKey: &key, ListenPort: &c.Port}); err != nil {
		return fmt.Errorf("set up WireGuard: %w", err)
	}
	six, err := l.parameters(link)
	if err != nil {
		return err
	}
	if err := errors.Join(l.handle.LinkSetUp(lo), l.packets(lo.Attrs().Index, c.Services)); err != nil {
		return err
	}
	if err := l.handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("WireGuard at UDP port %d: %w", c.Port, err)
	}
	device, err := l.control.Device(name)
	if err != nil {
		return err
	}
	l.port = device.ListenPort
	return l.routes(c, six)
}

// parameters sets those of the namespace, and reports whether there is IPv6. The thread must
// be inside.
func (l *Link) parameters(link netlink.Link) (six bool, err error) {
	// The beginning of a connection comes in by the loopback interface, and no answer
	// goes out there.
	for _, s := range []string{"all", "lo", name} {
		if err := set("ipv4/conf/"+s+"/rp_filter", "0"); err != nil {
			return false, err
		}
	}
	// No address of its own: nobody is to be spoken to on this link.
	const none = 1
	return set("ipv6/conf/"+name+"/disable_ipv6", "0") == nil && l.handle.LinkSetIP6AddrGenMode(link, none) == nil, nil
}

func (l *Link) routes(c Config, six bool) error {
	add := func(p netip.Prefix, r netlink.Route) error {
		if p.Addr().Is6() && !six {
			return nil
		}
		r.LinkIndex, r.Dst = l.index, &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		if err := l.handle.RouteAdd(&r); err != nil {
			return fmt.Errorf("route %s: %w", p, err)
		}
		return nil
	}
	var errs []error
	for _, p := range c.Sessions {
		errs = append(errs, add(p, netlink.Route{Scope: netlink.SCOPE_LINK}))
	}
	for _, p := range c.Services {
		errs = append(errs, add(p, netlink.Route{Scope: netlink.SCOPE_HOST, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL}))
	}
	return errors.Join(errs...)
}

// set sets a parameter of the network of the thread.
func set(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", path), []byte(value), 0)
}

// Port returns the UDP port.
func (l *Link) Port() int { return l.port }

// Listen listens for TCP at a port of all addresses of Services.
func (l *Link) Listen(ctx context.Context, c net.ListenConfig, port int) (ln net.Listener, err error) {
	err = l.inside.do(func() error {
		ln, err = c.Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
		return err
	})
	return ln, err
}

// DialSelf returns a UDP socket that speaks with WireGuard from an address of 127.0.0.0/8.
func (l *Link) DialSelf(from netip.Addr) (c *net.UDPConn, err error) {
	err = l.outside.do(func() error {
		c, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: l.port})
		return err
	})
	return c, err
}

// Put adds a peer, or changes its addresses.
func (l *Link) Put(key [32]byte, addresses []netip.Addr) error {
	p := wgtypes.PeerConfig{PublicKey: key, ReplaceAllowedIPs: true}
	for _, a := range addresses {
		p.AllowedIPs = append(p.AllowedIPs, net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())})
	}
	return l.control.ConfigureDevice(name, wgtypes.Config{Peers: []wgtypes.PeerConfig{p}})
}

// Remove removes a peer.
func (l *Link) Remove(key [32]byte) error {
	return l.control.ConfigureDevice(name, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: key, Remove: true}}})
}

// SetKey gives it another private key.
func (l *Link) SetKey(key [32]byte) error {
	k := wgtypes.Key(key)
	return l.control.ConfigureDevice(name, wgtypes.Config{PrivateKey: &k})
}

// Peers returns all peers.
func (l *Link) Peers() ([]Peer, error) {
	d, err := l.control.Device(name)
	if err != nil {
		return nil, err
	}
	peers := make([]Peer, len(d.Peers))
	for i, p := range d.Peers {
		peers[i] = Peer{Key: p.PublicKey, Handshake: p.LastHandshakeTime, Received: uint64(p.ReceiveBytes), Sent: uint64(p.TransmitBytes)}
		if p.Endpoint != nil {
			at := p.Endpoint.AddrPort()
			peers[i].Endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		}
	}
	return peers, nil
}

// Dropped returns how many packets of peers had a source address that is not their peer's,
// and how many of those that the kernel does not take were not read in time.
func (l *Link) Dropped() (spoofed, late int) {
	if link, err := l.handle.LinkByIndex(l.index); err == nil && link.Attrs().Statistics != nil {
		spoofed = int(link.Attrs().Statistics.RxFrameErrors)
	}
	l.counting.Lock()
	defer l.counting.Unlock()
	if raw, err := l.socket.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				l.late += int(s.Drops) // since the last time that it was asked
			}
		})
	}
	return spoofed, l.late
}

// Close removes it and all that is in its namespace. Who reads gets [os.ErrClosed].
func (l *Link) Close() error {
	for _, f := range []*os.File{l.socket, l.loop} {
		if f != nil {
			f.Close()
		}
	}
	var err error
	if l.handle != nil {
		// The port is free when the interface is gone, and the namespace goes later.
		if link, e := l.handle.LinkByName(name); e == nil {
			err = l.handle.LinkDel(link)
		}
		l.handle.Close()
	}
	if l.control != nil {
		l.control.Close()
	}
	l.inside.close()
	l.outside.close()
	return err
}
