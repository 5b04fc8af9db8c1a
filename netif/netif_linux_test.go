package netif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// alone puts the test into a network namespace of its own, which ends with it: the
// thread is never unlocked, so it dies with the goroutine of the test.
func alone(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	if _, err := os.Stat(clonePath); err != nil {
		t.Skip("needs " + clonePath)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs to make a network namespace: %v", err)
	}
	ip(t, "link set lo up")
}

// ip runs the command ip in the namespace of the test.
func ip(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
	return string(out)
}

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func mustOpen(t *testing.T, c Config) *Interface {
	t.Helper()
	i, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return i
}

// next returns the next packet that the machine sends through the interface and that
// want holds for.
func next(t *testing.T, i *Interface, want func(p []byte) bool) []byte {
	t.Helper()
	d := i.TUN()
	bufs, sizes := make([][]byte, d.BatchSize()), make([]int, d.BatchSize())
	for b := range bufs {
		bufs[b] = make([]byte, 65535)
	}
	for range 100 {
		n, err := d.Read(bufs, sizes, 0)
		if err != nil {
			t.Fatal(err)
		}
		for b := range n {
			if p := bufs[b][:sizes[b]]; want(p) {
				return p
			}
		}
	}
	t.Fatal("100 packets, and none that was meant")
	return nil
}

func isUDP(p []byte) bool {
	return p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP || p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP
}

var client = Config{
	Name:      "cardea0",
	Addresses: prefixes("100.80.0.7/32", "fd00:1:2:1::7/128"),
	Routes:    prefixes("100.64.0.0/12", "fd00:1:2::/64"),
	MTU:       1280,
}

func TestPacketsOfProgramsComeOut(t *testing.T) {
	alone(t)
	i := mustOpen(t, client)
	if i.Name() != "cardea0" || !i.IPv6() {
		t.Errorf("Name %q, IPv6 %v", i.Name(), i.IPv6())
	}
	if n, err := net.InterfaceByName("cardea0"); err != nil || n.MTU != 1280 {
		t.Errorf("the interface is %+v (%v)", n, err)
	}
	if n := i.TUN().BatchSize(); n == 1 {
		t.Error("the device has no offloads: it gives one packet at a time")
	}
	for _, to := range []string{"100.64.3.4:5000", "[fd00:1:2::9]:5000"} {
		c, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		p := next(t, i, isUDP)
		from, dst := p[12:16], p[16:20]
		if p[0]>>4 == 6 {
			from, dst = p[8:24], p[24:40]
		}
		src, _ := netip.AddrFromSlice(from)
		got, _ := netip.AddrFromSlice(dst)
		if want := netip.MustParseAddrPort(to).Addr(); got != want || src != client.Addresses[0].Addr() && src != client.Addresses[1].Addr() {
			t.Errorf("a packet from %v to %v, want one from the interface's address to %v", src, got, want)
		}
		if !strings.HasSuffix(string(p), "hello") {
			t.Errorf("a packet without what was sent: %x", p)
		}
	}
}

func TestNothingElseIsRouted(t *testing.T) {
	alone(t)
	mustOpen(t, client)
	for _, to := range []string{"192.0.2.1:1", "100.80.0.8:1", "[2001:db8::1]:1", "[fd00:1:2:1::8]:1"} {
		if c, err := net.Dial("udp", to); err == nil {
			c.Close()
			t.Errorf("%s is routed", to)
		}
	}
}

func TestAnyAddressOfALocalNetworkIsOurs(t *testing.T) {
	alone(t)
	i := mustOpen(t, Config{
		Name: "cardea-gw", Local: prefixes("100.64.0.0/12", "fd00:1:2::/64"),
		Routes: prefixes("100.80.0.0/12", "fd00:1:2:1::/64"), MTU: 1280,
	})
	conn, err := net.ListenPacket("udp", ":5000")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for from, to := range map[string]string{"100.80.0.7": "100.66.7.8", "fd00:1:2:1::7": "fd00:1:2::99"} {
		const room = 16 // what the device puts before a packet
		if _, err := i.TUN().Write([][]byte{append(make([]byte, room), udp(from, to, 5000, "hello")...)}, room); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, source, err := conn.ReadFrom(buf)
		if err != nil || string(buf[:n]) != "hello" || source.String() != net.JoinHostPort(from, "4000") {
			t.Errorf("read %q from %v (%v)", buf[:n], source, err)
		}
		if _, err := conn.WriteTo([]byte("answer"), source); err != nil {
			t.Fatal(err)
		}
		if p := next(t, i, isUDP); !strings.HasSuffix(string(p), "answer") {
			t.Errorf("%x came out", p)
		}
	}
}

// udp returns a packet from port 4000 with its checksums.
func udp(from, to string, port int, text string) []byte {
	a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
	u := binary.BigEndian.AppendUint16(nil, 4000)
	u = binary.BigEndian.AppendUint16(u, uint16(port))
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(text)))
	u = append(append(u, 0, 0), text...)
	pseudo := slices.Concat(a.AsSlice(), b.AsSlice(), []byte{0, unix.IPPROTO_UDP}, u[4:6], u)
	binary.BigEndian.PutUint16(u[6:], checksum(pseudo))
	if a.Is6() {
		h := append([]byte{0x60, 0, 0, 0}, u[4], u[5], unix.IPPROTO_UDP, 64)
		return slices.Concat(h, a.AsSlice(), b.AsSlice(), u)
	}
	h := slices.Concat([]byte{0x45, 0, 0, byte(20 + len(u)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, a.AsSlice(), b.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, u...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for n, v := range b {
		sum += uint32(v) << (8 * (1 - n%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestTheNextFreeNumber(t *testing.T) {
	alone(t)
	ip(t, "link add cardea0 type veth peer name other0")
	ip(t, "tuntap add dev cardea1 mode tun") // persistent, and nobody's
	i := mustOpen(t, Config{Name: "cardea0", Addresses: prefixes("100.80.0.7/32")})
	if i.Name() != "cardea2" {
		t.Errorf("the interface is %s, want cardea2", i.Name())
	}
	ip(t, "link add vpn type veth peer name other1")
	if i, err := Open(Config{Name: "vpn"}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a name without a number that is taken: %v %v", i, err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	alone(t)
	before := everything(t)
	i, err := Open(client)
	if err != nil {
		t.Fatal(err)
	}
	if everything(t) == before {
		t.Error("Open changed nothing")
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	if after := everything(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if err := i.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func TestCloseAfterItsDevice(t *testing.T) {
	alone(t)
	i := mustOpen(t, client)
	if err := i.TUN().Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCloseOnAnotherThread(t *testing.T) {
	alone(t)
	i := mustOpen(t, client)
	done := make(chan error)
	go func() { // not locked: in the namespace of the machine
		if mtu, err := i.TUN().MTU(); mtu != 1280 || err != nil {
			t.Errorf("the MTU is %d (%v)", mtu, err)
		}
		done <- i.Close()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("ip", "link", "show", "cardea0").CombinedOutput(); err == nil {
		t.Errorf("after Close there is\n%s", out)
	}
}

// An interface goes from one owner to the next with all that it has.
func TestInherit(t *testing.T) {
	alone(t)
	none := everything(t)
	before, err := Open(client)
	if err != nil {
		t.Fatal(err)
	}
	open := everything(t)
	fd := -1
	raw, err := before.TUN().File().SyscallConn()
	if err == nil {
		raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) })
	}
	if err != nil {
		t.Fatal(err)
	}
	after, err := Inherit(client, os.NewFile(uintptr(fd), clonePath))
	if err != nil {
		t.Fatal(err)
	}
	if err := before.Leave(); err != nil {
		t.Error(err)
	}
	if now := everything(t); now != open || !after.IPv6() {
		t.Errorf("before:\n%s\nafter:\n%s", open, now)
	}
	c, err := net.Dial("udp", "100.64.3.4:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	next(t, after, isUDP)
	if err := after.Close(); err != nil {
		t.Error(err)
	}
	if now := everything(t); now != none {
		t.Errorf("Close leaves\n%s", now)
	}
}

// everything returns the interfaces, addresses and routes of the namespace.
func everything(t *testing.T) string {
	return ip(t, "-br link") + ip(t, "-br addr") + ip(t, "-4 route show table all") + ip(t, "-6 route show table all")
}

// TestAbort joins two interfaces by their devices, as two ends of a tunnel are.
func TestAbort(t *testing.T) {
	alone(t)
	near := mustOpen(t, client)
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	alone(t)
	far := mustOpen(t, Config{
		Name: "cardea-gw", Local: prefixes("100.64.0.0/12", "fd00:1:2::/64"),
		Routes: prefixes("100.80.0.0/12", "fd00:1:2:1::/64"),
	})
	l, err := net.Listen("tcp", ":80") // at the far end
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var cables sync.WaitGroup
	cables.Go(func() { cable(near.TUN(), far.TUN()) })
	cables.Go(func() { cable(far.TUN(), near.TUN()) })
	defer func() {
		near.Close()
		far.Close()
		cables.Wait()
	}()
	if err := unix.Setns(int(here.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"100.64.3.4:80", "[fd00:1:2::9]:80"} {
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		if n, err := near.Abort(); n != 1 || err != nil {
			t.Errorf("%s: Abort: %d %v", to, n, err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("%s: the program reads %v", to, err)
		}
		if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: its peer reads %v", to, err)
		}
	}
	if n, err := near.Abort(); n != 0 || err != nil {
		t.Errorf("Abort of nothing: %d %v", n, err)
	}
}

// cable carries what comes out of one device into another, until one is closed.
func cable(to, from tun.Device) {
	const room = 16 // what a device puts before a packet
	bufs, sizes := make([][]byte, from.BatchSize()), make([]int, from.BatchSize())
	for b := range bufs {
		bufs[b] = make([]byte, room+65535)
	}
	for {
		n, err := from.Read(bufs, sizes, room)
		if err != nil {
			return
		}
		var packets [][]byte
		for b := range n {
			packets = append(packets, bufs[b][:room+sizes[b]])
		}
		to.Write(packets, room)
	}
}

func TestAllOrNothing(t *testing.T) {
	alone(t)
	before := everything(t)
	c := client
	c.Routes = prefixes("100.64.0.0/12", "100.64.0.0/12") // the second is there already
	if i, err := Open(c); err == nil || !strings.Contains(err.Error(), "100.64.0.0/12") {
		t.Errorf("Open of a route twice: %v %v", i, err)
	}
	if after := everything(t); after != before {
		t.Errorf("left behind:\n%s", after)
	}
}

func TestSomebodyElsesNetwork(t *testing.T) {
	for _, c := range []struct {
		name  string
		setup []string
		want  []string // in the message; none: free
	}{
		{"nothing", nil, nil},
		{"a default route", []string{"addr add 192.0.2.2/24 dev vpn0", "route add default via 192.0.2.1"}, nil},
		{"the halves of a default route", []string{"route add 0.0.0.0/1 dev vpn0", "route add 128.0.0.0/1 dev vpn0"}, nil},
		{"a network elsewhere", []string{"route add 100.96.0.0/11 dev vpn0"}, nil},
		{"the same network", []string{"route add 100.64.0.0/12 dev vpn0"}, []string{"100.64.0.0/12", "a route of the interface vpn0"}},
		{"a wider one", []string{"route add 100.64.0.0/10 dev vpn0"}, []string{"overlaps 100.64.0.0/10", "vpn0"}},
		{"an address in it", []string{"addr add 100.70.1.1/32 dev vpn0"}, []string{"100.70.1.1/32", "an address of the interface vpn0"}},
		{"our address", []string{"addr add 100.80.0.7/32 dev vpn0"}, []string{"100.80.0.7/32", "vpn0"}},
		{"a table of its own", []string{"route add 100.100.100.100/32 dev vpn0 table 52", "route add 100.71.0.0/16 dev vpn0 table 52"}, []string{"100.71.0.0/16", "vpn0"}},
		{"a hole", []string{"route add unreachable 100.64.0.0/12"}, []string{"100.64.0.0/12", "no interface"}},
		{"IPv6", []string{"route add fd00:1::/32 dev vpn0"}, []string{"fd00:1:2::/64", "fd00:1::/32", "vpn0"}},
		{"IPv6 elsewhere", []string{"route add fd00:1:3::/48 dev vpn0"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			alone(t)
			ip(t, "link add vpn0 type veth peer name vpn1")
			ip(t, "link set vpn0 up")
			for _, s := range c.setup {
				ip(t, s)
			}
			err := Check(client)
			if len(c.want) == 0 {
				if err != nil {
					t.Errorf("%v", err)
				}
				return
			}
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("%v is no *Error", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if i, err := Open(client); err == nil {
				t.Errorf("Open gave %v", i)
			}
		})
	}
}

// TestGatewayOnThisMachine finds the interface of a gateway where the client's would be: no
// other VPN, and told apart from one.
func TestGatewayOnThisMachine(t *testing.T) {
	alone(t)
	ip(t, "link add vpn0 type veth peer name vpn1")
	ip(t, "link set vpn0 up")
	ip(t, "addr add 100.70.1.1/32 dev vpn0")
	if err := Check(client); err == nil || errors.Is(err, ErrGateway) {
		t.Errorf("another VPN: %v", err)
	}
	ip(t, "link del vpn0")
	mustOpen(t, Config{Name: Gateway, Local: prefixes("100.64.0.0/12", "fd00:1:2::/64")})
	err := Check(client)
	if !errors.Is(err, ErrGateway) || !strings.Contains(err.Error(), "cardea up with --network userspace") || strings.Contains(err.Error(), "VPN") {
		t.Errorf("a gateway: %v", err)
	}
}

func TestWithoutTheDevice(t *testing.T) {
	alone(t)
	hide(t, "/dev/net")
	_, err := Open(client)
	if err == nil || !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "--device /dev/net/tun --cap-add NET_ADMIN") {
		t.Errorf("%v", err)
	}
}

// hide lays an empty directory over path, for this thread alone.
func hide(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", path, "tmpfs", 0, ""),
	); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
}

func TestWithoutTheCapability(t *testing.T) {
	alone(t)
	drop(t, unix.CAP_NET_ADMIN)
	_, err := Open(client)
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%v", err)
	}
}

// drop takes a capability from this thread.
func drop(t *testing.T, capability int) {
	t.Helper()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		t.Fatal(err)
	}
	d[capability/32].Effective &^= 1 << (capability % 32)
	d[capability/32].Permitted &^= 1 << (capability % 32)
	if err := unix.Capset(&h, &d[0]); err != nil {
		t.Fatal(err)
	}
}

func TestMachinesWithoutIPv6(t *testing.T) {
	t.Run("off for new interfaces", func(t *testing.T) {
		alone(t)
		write(t, "/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
		if i := mustOpen(t, client); !i.IPv6() {
			t.Error("IPv6 was not switched on")
		}
	})
	t.Run("off for good", func(t *testing.T) {
		alone(t)
		write(t, "/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
		if err := errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
			unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
		); err != nil {
			t.Skipf("needs to mount: %v", err)
		}
		i := mustOpen(t, client)
		if i.IPv6() {
			t.Error("IPv6 is said to be on")
		}
		if _, err := net.Dial("udp", "100.64.3.4:5000"); err != nil {
			t.Errorf("IPv4: %v", err)
		}
	})
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Clean(file), []byte(text), 0); err != nil {
		t.Skipf("needs to write %s: %v", file, err)
	}
}

func TestConfigsThatCannotBe(t *testing.T) {
	for _, c := range []Config{
		{Name: ""},
		{Name: "an/interface"},
		{Name: "a-name-of-16-byte"},
		{Name: "cardea0", MTU: 1279},
		{Name: "cardea0", MTU: 65536},
		{Name: "cardea0", Routes: []netip.Prefix{{}}},
		{Name: "cardea0", Routes: prefixes("0.0.0.0/0")},
		{Name: "cardea0", Local: prefixes("::/0")},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			if i, err := Open(c); err == nil {
				i.Close()
				t.Error("it is there")
			}
		})
	}
}
