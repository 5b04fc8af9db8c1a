//go:build linux

// Package lab makes a small internet for tests and measurements, of network
// namespaces:
//
//	Client(s) — NAT — Gateway — Upstream
//
// joined by virtual Ethernet, with IPv4 and IPv6. The NAT has one public address of
// each family and translates to it; the Gateway is at a public address, cannot reach
// the clients by itself, and forwards nothing to the Upstream, which only it can reach.
//
// The machine's own namespace is not touched. Names of namespaces have the pid of the
// test, and all is removed at its end: several labs may be there at once.
package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Config is what a lab is to be. The zero value is one client and links of 1,500 bytes.
type Config struct {
	Clients int // behind the NAT
	MTU     int // of the links between clients and Gateway, in bytes
}

// Lab is a small internet.
type Lab struct {
	Clients                []*Host
	NAT, Gateway, Upstream *Host

	blocks int
	tb     testing.TB
}

// Host is a machine of a lab.
type Host struct {
	Name       string     // of its namespace
	IPv4, IPv6 netip.Addr // its address towards the Gateway; of the Gateway, the public one
	// Resolv is the file that programs of the host read as /etc/resolv.conf.
	Resolv string

	tb testing.TB
}

// New makes a lab for a test or a measurement, which is skipped where it cannot be had.
func New(tb testing.TB, c Config) *Lab {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root, to make network namespaces")
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			tb.Skipf("needs %s, to make network namespaces: see test/setup", program)
		}
	}
	sweep()
	l := &Lab{tb: tb}
	prefix := fmt.Sprintf("cardea-%d-%s-", os.Getpid(), strings.ToLower(rand.Text()[:6]))
	l.NAT = l.host(prefix + "nat")
	l.Gateway = l.host(prefix + "gateway")
	l.Upstream = l.host(prefix + "upstream")
	l.link(l.NAT, "wan", l.Gateway, "eth0", "203.0.113", "2001:db8:113:", c.MTU)
	l.link(l.Gateway, "eth1", l.Upstream, "eth0", "10.3.0", "fd10:3:", 0)
	l.NAT.IPv4, l.NAT.IPv6 = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")
	l.Gateway.IPv4, l.Gateway.IPv6 = netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:113::2")
	l.Upstream.IPv4, l.Upstream.IPv6 = netip.MustParseAddr("10.3.0.2"), netip.MustParseAddr("fd10:3::2")
	for n := range max(c.Clients, 1) {
		h := l.host(prefix + "client" + strconv.Itoa(n))
		v4, v6 := fmt.Sprintf("192.168.%d", n+1), fmt.Sprintf("fd10:1:%x:", n+1)
		l.link(l.NAT, "lan"+strconv.Itoa(n), h, "eth0", v4, v6, c.MTU)
		h.IPv4, h.IPv6 = netip.MustParseAddr(v4+".2"), netip.MustParseAddr(v6+":2")
		h.Run("ip", "route", "add", "default", "via", v4+".1")
		h.Run("ip", "-6", "route", "add", "default", "via", v6+":1")
		l.Clients = append(l.Clients, h)
	}
	l.NAT.Set("net/ipv4/ip_forward", "1")
	l.NAT.Set("net/ipv6/conf/all/forwarding", "1")
	l.NAT.Set("net/ipv4/conf/all/promote_secondaries", "1") // see Move
	l.NAT.nft(`table inet lab {
		chain nat {
			type nat hook postrouting priority 100
			oifname "wan" masquerade
		}
	}`)
	return l
}

// host makes a namespace, which ends with the test and takes its processes with it.
func (l *Lab) host(name string) *Host {
	l.tb.Helper()
	h := &Host{Name: name, Resolv: filepath.Join("/etc/netns", name, "resolv.conf"), tb: l.tb}
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		l.tb.Skipf("needs to make network namespaces: %v: %s", err, out)
	}
	l.tb.Cleanup(h.remove)
	if err := errors.Join(os.MkdirAll(filepath.Dir(h.Resolv), 0o755), os.WriteFile(h.Resolv, nil, 0o644)); err != nil {
		l.tb.Fatal(err)
	}
	h.Run("ip", "link", "set", "lo", "up")
	return h
}

func (h *Host) remove() {
	if err := remove(h.Name); err != nil {
		h.tb.Errorf("remove %s: %v", h.Name, err)
	}
}

// remove ends the processes of a namespace, whoever their parents are, and the
// namespace.
func remove(name string) error {
	pids, _ := exec.Command("ip", "netns", "pids", name).Output()
	for _, f := range strings.Fields(string(pids)) {
		// This process is there if one of its threads is, which then ends by itself.
		if pid, err := strconv.Atoi(f); err == nil && pid != os.Getpid() {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	out, err := exec.Command("ip", "netns", "del", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return os.RemoveAll(filepath.Join("/etc/netns", name))
}

// sweep removes what labs have left whose process was killed.
func sweep() {
	left, _ := filepath.Glob("/run/netns/cardea-*-*-*")
	for _, path := range left {
		name := filepath.Base(path)
		pid, err := strconv.Atoi(strings.Split(name, "-")[1])
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			remove(name) // if it is not gone: another lab sweeps too
		}
	}
}

// link joins a and b, which get the addresses 1 and 2 of both networks.
func (l *Lab) link(a *Host, aName string, b *Host, bName, v4, v6 string, mtu int) {
	l.tb.Helper()
	a.Run("ip", "link", "add", aName, "type", "veth", "peer", "name", bName, "netns", b.Name)
	for n, end := range []struct {
		*Host
		name string
	}{{a, aName}, {b, bName}} {
		end.Run("ip", "addr", "add", fmt.Sprintf("%s.%d/24", v4, n+1), "dev", end.name)
		end.Run("ip", "-6", "addr", "add", fmt.Sprintf("%s:%d/64", v6, n+1), "dev", end.name, "nodad")
		if mtu > 0 {
			end.Run("ip", "link", "set", end.name, "mtu", strconv.Itoa(mtu))
		}
		end.Run("ip", "link", "set", end.name, "up")
	}
}

// Block drops what an expression of nftables selects, "meta l4proto udp" for example,
// and passes between the clients and the Gateway, in both directions, until undo is
// called.
func (l *Lab) Block(expression string) (undo func()) {
	l.tb.Helper()
	l.blocks++
	chain := fmt.Sprintf("block%d", l.blocks)
	l.NAT.nft(fmt.Sprintf(`table inet lab {
		chain %s {
			type filter hook forward priority 0
			%s drop
		}
	}`, chain, expression))
	return sync.OnceFunc(func() { l.NAT.nft("flush chain inet lab " + chain + "\ndelete chain inet lab " + chain) })
}

// BlockUDP drops all datagrams of UDP until undo is called.
func (l *Lab) BlockUDP() (undo func()) { return l.Block("meta l4proto udp") }

// Lose drops that many, from 1 to 100, in a hundred packets until undo is called.
func (l *Lab) Lose(percent int) (undo func()) {
	return l.Block(fmt.Sprintf("numgen random mod 100 >= %d", 100-percent))
}

// Move gives the NAT another public address of each family, and takes the ones that it
// has: what was translated to those is lost, as when a device moves to another network.
func (l *Lab) Move() {
	l.tb.Helper()
	for a, bits := range map[*netip.Addr]string{&l.NAT.IPv4: "/24", &l.NAT.IPv6: "/64"} {
		next := a.Next()
		for next == l.Gateway.IPv4 || next == l.Gateway.IPv6 {
			next = next.Next()
		}
		l.NAT.Run("ip", "addr", "add", next.String()+bits, "dev", "wan", "nodad")
		l.NAT.Run("ip", "addr", "del", a.String()+bits, "dev", "wan")
		*a = next
	}
}

func (h *Host) nft(rules string) {
	h.tb.Helper()
	cmd := h.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.tb.Fatalf("nft: %v: %s\n%s", err, out, rules)
	}
}

// Command returns a command that runs at the host, with its own /etc/resolv.conf, and
// is killed at the end of the test. Its process is that of the program itself.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(h.context(), "ip", append([]string{"netns", "exec", h.Name, name}, args...)...)
}

// context returns that of the test while it runs; what runs after it needs none.
func (h *Host) context() context.Context {
	if ctx := h.tb.Context(); ctx.Err() == nil {
		return ctx
	}
	return context.Background()
}

// Unprivileged is Command as nobody, without any capability.
func (h *Host) Unprivileged(name string, args ...string) *exec.Cmd {
	return h.Command("setpriv", append([]string{
		"--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--no-new-privs", name,
	}, args...)...)
}

// Run runs a command at the host, and returns what it says. One that fails ends the
// test.
func (h *Host) Run(name string, args ...string) string {
	h.tb.Helper()
	out, err := h.Command(name, args...).CombinedOutput()
	if err != nil {
		h.tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Set sets a parameter of the host's network, named by its path below /proc/sys.
func (h *Host) Set(parameter, value string) {
	h.tb.Helper()
	var err error
	h.Do(func() { err = os.WriteFile(filepath.Join("/proc/sys", parameter), []byte(value), 0) })
	if err != nil {
		h.tb.Fatal(err)
	}
}

// Do calls f on a thread of its own in the namespace of the host. Sockets, netlink
// handles and TUN devices that f opens, and processes that it starts, belong to the
// host, and may be used anywhere; goroutines that f starts are not at the host. f must
// not end the test by Fatal or Skip.
func (h *Host) Do(f func()) {
	h.tb.Helper()
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock it: the thread ends with this goroutine
		ns, err := os.Open(filepath.Join("/run/netns", h.Name))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			f()
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		h.tb.Fatalf("enter %s: %v", h.Name, err)
	}
}

// Dial connects from the host to an address of IP.
func (h *Host) Dial(ctx context.Context, network string, to netip.AddrPort) (c net.Conn, err error) {
	h.Do(func() { c, err = new(net.Dialer).DialContext(ctx, network, to.String()) })
	return c, err
}

// Listen listens at an address of IP of the host.
func (h *Host) Listen(network string, at netip.AddrPort) (l net.Listener, err error) {
	h.Do(func() { l, err = net.Listen(network, at.String()) })
	return l, err
}

// ListenPacket is Listen for datagrams.
func (h *Host) ListenPacket(network string, at netip.AddrPort) (p net.PacketConn, err error) {
	h.Do(func() { p, err = net.ListenPacket(network, at.String()) })
	return p, err
}
