package netif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	clonePath = "/dev/net/tun"
	mayTry    = 100 // numbers of a name
)

// Interface is a TUN interface that is up.
type Interface struct {
	name      string
	ipv6      bool
	addresses map[netip.Addr]bool
	handle    *netlink.Handle  // of its namespace
	sockets   *nl.SocketHandle // the same, for sock_diag
	link      netlink.Link
	device    *device
	once      sync.Once
	failed    error // of Close or Leave
}

// device is the TUN device. What it is asked of itself it knows: the kernel would be
// asked in the namespace of whichever thread runs.
type device struct {
	tun.Device
	name string
	mtu  int
}

func (d *device) Name() (string, error) { return d.name, nil }
func (d *device) MTU() (int, error)     { return d.mtu, nil }

// Close is that of tun, in which what watches the interface may see the end first, and be
// told of it too late.
func (d *device) Close() error { return ignoreClosed(d.Device.Close()) }

// Open makes an interface, gives it its addresses and routes, and sets it up: all, or
// nothing. Where the machine has no IPv6, what the Config has of it is left out; see
// [Interface.IPv6]. An [*Error] tells what is in the way: that /dev/net/tun or a
// capability is missing, or that a network is another interface's, as [Check] does.
//
// The Device must be read, by a WireGuard device as a rule, before Close is called.
func Open(c Config) (*Interface, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	i, err := open(h, c)
	if err != nil {
		h.Close()
		return nil, err
	}
	if err := i.setUp(c); err != nil {
		i.Close()
		return nil, err
	}
	return i, nil
}

// open makes an interface that has nothing yet.
func open(h *netlink.Handle, c Config) (*Interface, error) {
	if err := free(h, c); err != nil {
		return nil, err
	}
	file, name, err := create(h, c.Name)
	if err != nil {
		return nil, err
	}
	return of(h, file, name, c)
}

// of returns the interface whose device a file is, which it closes if it fails.
func of(h *netlink.Handle, file *os.File, name string, c Config) (*Interface, error) {
	sockets, err := nl.Subscribe(unix.NETLINK_INET_DIAG)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	d, err := tun.CreateTUNFromFile(file, c.MTU)
	if err != nil {
		file.Close()
		sockets.Close()
		return nil, fmt.Errorf("the interface %s: %w", name, err)
	}
	i := &Interface{
		name: name, addresses: map[netip.Addr]bool{}, handle: h, sockets: &nl.SocketHandle{Socket: sockets},
		device: &device{d, name, c.MTU},
	}
	for _, a := range c.Addresses {
		i.addresses[a.Addr()] = true
	}
	return i, nil
}

// Inherit returns the interface that another process has made of the same Config, by a
// descriptor of its device, which it takes over. The interface has all
// that it is to have; it is removed by Close, or by the kernel when no process has its
// device any more.
func Inherit(c Config, file *os.File) (*Interface, error) {
	if err := c.check(); err != nil {
		file.Close()
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	i, err := of(h, file, c.Name, c)
	if err != nil {
		h.Close()
		return nil, err
	}
	if i.link, err = h.LinkByName(c.Name); err != nil {
		return nil, errors.Join(fmt.Errorf("the interface %s: %w", c.Name, err), i.Leave())
	}
	i.ipv6 = hasIPv6(c.Name)
	return i, nil
}

// create makes a TUN device of the name or, if it is taken, of the next free number.
// The device is in the namespace of the thread.
func create(h *netlink.Handle, name string) (*os.File, string, error) {
	stem := strings.TrimRight(name, "0123456789")
	first, err := strconv.ParseUint(name[len(stem):], 10, 32)
	tries := mayTry
	if err != nil { // no number
		tries = 1
	}
	for n := range tries {
		try := name
		if n > 0 {
			try = stem + strconv.FormatUint(first+uint64(n), 10)
		}
		if len(try) > 15 {
			break
		}
		if _, err := h.LinkByName(try); err == nil {
			continue
		}
		fd, err := openTUN(try)
		if errors.Is(err, unix.EBUSY) { // somebody else was faster
			continue
		}
		if err != nil {
			return nil, "", err
		}
		return os.NewFile(uintptr(fd), clonePath), try, nil
	}
	return nil, "", &Error{
		Message: fmt.Sprintf("there is an interface %s already", name),
		Hint:    "choose another name for this one, or remove that one",
		Err:     unix.EEXIST,
	}
}

// openTUN makes a TUN device of a name that is free, whose descriptor package os may
// poll.
func openTUN(name string) (int, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, missing(err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	// Without IFF_TUN_EXCL the kernel would hand out a persistent device of somebody else.
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return 0, forbidden("make the interface "+name, err)
	}
	return fd, nil
}

// Able reports why this process can make no interface of that name: /dev/net/tun or a
// capability is missing.
func Able(name string) error {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return missing(err)
	}
	unix.Close(fd)
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("the capabilities of this process: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return forbidden("make the interface "+name, unix.EPERM)
	}
	return nil
}

// missing explains why the TUN device cannot be opened.
func missing(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return &Error{
			Message: "this machine has no " + clonePath,
			Hint:    "load the kernel's module tun (modprobe tun), or start the container with --device " + clonePath + " --cap-add NET_ADMIN",
			Err:     err,
		}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &Error{
			Message: clonePath + " may not be opened",
			Hint:    "run as root, and start a container with --device " + clonePath + " --cap-add NET_ADMIN",
			Err:     err,
		}
	}
	return fmt.Errorf("%s: %w", clonePath, err)
}

// forbidden explains what the kernel did not do.
func forbidden(what string, err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return &Error{
			Message: "this process may not " + what + ": it has no CAP_NET_ADMIN",
			Hint:    "run as root, and start a container with --cap-add NET_ADMIN",
			Err:     err,
		}
	}
	return fmt.Errorf("cannot %s: %w", what, err)
}

// setUp gives the interface what the Config has for it.
func (i *Interface) setUp(c Config) error {
	link, err := i.handle.LinkByName(i.name)
	if err != nil {
		return fmt.Errorf("the interface %s: %w", i.name, err)
	}
	i.link = link
	i.ipv6 = switchOnIPv6(i.name)
	if i.ipv6 {
		// No link-local address: nobody else is on this link, and nothing is to be said on it.
		const none = 1
		if err := i.handle.LinkSetIP6AddrGenMode(link, none); err != nil {
			return forbidden("set up "+i.name, err)
		}
	}
	for _, a := range c.Addresses {
		if !i.has(a) {
			continue
		}
		address := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := i.handle.AddrAdd(link, address); err != nil {
			return forbidden(fmt.Sprintf("give %s the address %v", i.name, a), err)
		}
	}
	if err := i.handle.LinkSetUp(link); err != nil {
		return forbidden("set "+i.name+" up", err)
	}
	for _, p := range c.Routes {
		route := &netlink.Route{Dst: ipNet(p.Masked()), Scope: netlink.SCOPE_LINK, Src: source(c.Addresses, p)}
		if err := i.route(p, route); err != nil {
			return err
		}
	}
	for _, p := range c.Local {
		route := &netlink.Route{
			Dst: ipNet(p.Masked()), Scope: netlink.SCOPE_HOST, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		}
		if err := i.route(p, route); err != nil {
			return err
		}
	}
	return nil
}

func (i *Interface) route(p netip.Prefix, r *netlink.Route) error {
	if !i.has(p) {
		return nil
	}
	r.LinkIndex = i.link.Attrs().Index
	if err := i.handle.RouteAdd(r); err != nil {
		return forbidden(fmt.Sprintf("route %v through %s", p, i.name), err)
	}
	return nil
}

func (i *Interface) has(p netip.Prefix) bool { return i.ipv6 || p.Addr().Is4() }

// source returns the address that programs are to speak from that speak to p: the
// first of its family.
func source(addresses []netip.Prefix, p netip.Prefix) net.IP {
	for _, a := range addresses {
		if a.Addr().Is4() == p.Addr().Is4() {
			return a.Addr().AsSlice()
		}
	}
	return nil
}

// switchOnIPv6 lets an interface have addresses of IPv6, also where new ones have none
// (containers), and reports whether it may.
func switchOnIPv6(name string) bool {
	file := switchOfIPv6(name)
	if _, err := os.Stat(file); err != nil {
		return false
	}
	return hasIPv6(name) || os.WriteFile(file, []byte("0"), 0) == nil
}

// hasIPv6 reports whether an interface may have addresses of IPv6.
func hasIPv6(name string) bool {
	off, err := os.ReadFile(switchOfIPv6(name))
	return err == nil && strings.TrimSpace(string(off)) == "0"
}

func switchOfIPv6(name string) string {
	return filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6")
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Name returns the name of the interface.
func (i *Interface) Name() string { return i.name }

// IPv6 reports whether the interface has the Config's addresses and routes of IPv6, or
// would have them. It has not where IPv6 is switched off and cannot be switched on.
func (i *Interface) IPv6() bool { return i.ipv6 }

// TUN returns the device that packets are read from and written to, in batches and
// with the kernel's offloads.
func (i *Interface) TUN() tun.Device { return i.device }

// Close removes the interface, and returns when it is gone. Closing its TUN device
// alone removes it too, in a while.
func (i *Interface) Close() error {
	i.once.Do(func() { i.failed = i.end(true) })
	return i.failed
}

// Leave closes what this process has of the interface, which another one has too and
// keeps.
func (i *Interface) Leave() error {
	i.once.Do(func() { i.failed = i.end(false) })
	return i.failed
}

func (i *Interface) end(remove bool) error {
	var err error
	if remove && i.link != nil {
		if err = i.handle.LinkDel(i.link); errors.Is(err, unix.ENODEV) || errors.As(err, new(netlink.LinkNotFoundError)) {
			err = nil
		}
	}
	err = errors.Join(err, i.device.Close())
	for range i.device.Events() { // they end when what watches the interface has ended
	}
	i.handle.Close()
	i.sockets.Close()
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EBADF) {
		return nil
	}
	return err
}

// Check reports why there could be no such interface now, without making it: what [Able]
// and [Overlap] say.
func Check(c Config) error {
	if err := Able(c.Name); err != nil {
		return err
	}
	return Overlap(c)
}

// Overlap reports whether a network of the Config overlaps one of another interface: of
// another VPN, as a rule, which would lose what this one gains.
func Overlap(c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	return free(h, c)
}

// free is Overlap by a handle.
func free(h *netlink.Handle, c Config) error {
	var rival netlink.Route
	var theirs, ours netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) { // a kernel without IPv6
			continue
		}
		// A list that changed while it was read is still one to look at.
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("the routes of this machine: %w", err)
		}
		for _, r := range routes {
			p, ok := claimed(r)
			if !ok || theirs.IsValid() && theirs.Bits() <= p.Bits() {
				continue // the widest says the most
			}
			all := c.ranges()
			if n := slices.IndexFunc(all, p.Overlaps); n >= 0 {
				rival, theirs, ours = r, p, all[n]
			}
		}
	}
	if !theirs.IsValid() {
		return nil
	}
	owner, cause := "which is no interface's", error(unix.EEXIST)
	hint := "another VPN or network has these addresses: leave that one, or give the cluster another range (spec.network of its ClusterConfig)"
	if link, err := h.LinkByIndex(rival.LinkIndex); err == nil {
		owner = "of the interface " + link.Attrs().Name
		if link.Attrs().Name == Gateway {
			cause = errors.Join(cause, ErrGateway)
			hint = "that is the gateway of a cluster on this machine: its cardea up with --network userspace has no interface"
		}
	}
	what := "a route"
	if rival.Type == unix.RTN_LOCAL {
		what = "an address"
	}
	return &Error{
		Message: fmt.Sprintf("the private network %v overlaps %v, %s %s", ours, theirs, what, owner),
		Hint:    hint,
		Err:     cause,
	}
}

// claimed returns the network that a route takes for itself, if it takes one.
func claimed(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil || r.Type == unix.RTN_MULTICAST || r.Type == unix.RTN_BROADCAST || r.Type == unix.RTN_ANYCAST || r.Type == unix.RTN_THROW {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	if !ok {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(a.Unmap(), bits).Masked()
	return p, p.IsValid() && !tooWide(p)
}
