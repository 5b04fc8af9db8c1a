package wireguard_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cardea/api"
	"cardea/netif"
	"cardea/relay"
	"cardea/relay/loop"
	"cardea/tunnel"
	"cardea/tunnel/tunneltest"
	"cardea/tunnel/wireguard"
)

// space is a network namespace.
type space struct {
	t    *testing.T
	name string
}

// spaces makes two namespaces with a link between: 10.9.0.1 and 10.9.0.2.
func spaces(t *testing.T) (a, b space) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("there is no /dev/net/tun")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("there is no ip (iproute2)")
	}
	made := [2]space{}
	for i := range made {
		s := space{t, fmt.Sprintf("cardea-%d-%d", os.Getpid(), i)}
		run(t, "ip", "netns", "add", s.name)
		t.Cleanup(func() { run(t, "ip", "netns", "del", s.name) })
		made[i] = s
	}
	a, b = made[0], made[1]
	run(t, "ip", "-n", a.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.name)
	for i, s := range made {
		run(t, "ip", "-n", s.name, "link", "set", "lo", "up")
		run(t, "ip", "-n", s.name, "addr", "add", fmt.Sprintf("10.9.0.%d/24", i+1), "dev", "eth0")
		run(t, "ip", "-n", s.name, "link", "set", "eth0", "up")
	}
	return a, b
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// do calls f in the namespace. What f opens stays there.
func (s space) do(f func()) {
	s.t.Helper()
	var err error
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		var d *os.File
		if d, err = os.Open("/var/run/netns/" + s.name); err != nil {
			return
		}
		defer d.Close()
		if err = unix.Setns(int(d.Fd()), unix.CLONE_NEWNET); err == nil {
			f()
		}
	})
	done.Wait()
	if err != nil {
		s.t.Fatal(err)
	}
}

// dial connects from the namespace.
func (s space) dial(ctx context.Context, network string, to netip.AddrPort) (c net.Conn, err error) {
	s.do(func() {
		var d net.Dialer
		d.SetMultipathTCP(false)
		c, err = d.DialContext(ctx, network, to.String())
	})
	return c, err
}

// kernelGateway runs one in form TUN, or in a guest KERNEL, in a namespace.
func kernelGateway(t *testing.T, s space, h tunnel.Handler, change ...func(*wireguard.Gateway)) *wireguard.Gateway {
	t.Helper()
	g, run := openKernelGateway(t, s, h, change...)
	run()
	return g
}

// openKernelGateway is kernelGateway, but for Run.
func openKernelGateway(t *testing.T, s space, h tunnel.Handler, change ...func(*wireguard.Gateway)) (g *wireguard.Gateway, run func()) {
	t.Helper()
	g = &wireguard.Gateway{
		Handler: h, Find: find, Ports: func() []int { return []int{7} }, Form: wireguard.TUN, Interface: "cardea-gw",
		Answer: func(ctx context.Context, session string, query []byte, stream bool) []byte {
			return append([]byte(session+":"), query...)
		},
		Services: services, Sessions: sessions, DNS: []netip.Addr{dns4, dns6},
		Key: wireguard.NewKey(), Log: slog.New(slog.DiscardHandler),
	}
	if os.Getenv(inGuest) != "" {
		g.Form = wireguard.Kernel
	}
	for _, c := range change {
		c(g)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var err error
	s.do(func() { err = g.Open() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		g.Close()
	})
	return g, func() {
		running.Go(func() {
			s.do(func() {
				if err := g.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// tunClient is a client with a network interface in a namespace.
func tunClient(t *testing.T, s space, g *wireguard.Gateway, session string, addresses []netip.Addr) *wireguard.Client {
	t.Helper()
	c := &wireguard.Client{Key: wireguard.NewKey(), Log: slog.New(slog.DiscardHandler)}
	s.do(func() {
		own := make([]netip.Prefix, len(addresses))
		for i, a := range addresses {
			own[i] = netip.PrefixFrom(a, a.BitLen())
		}
		i, err := netif.Open(netif.Config{Name: "cardea0", Addresses: own, Routes: services})
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { i.Close() })
		c.TUN = i.TUN()
		if err := c.Open(); err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { c.Close() })
	})
	if t.Failed() {
		t.FailNow()
	}
	if err := g.Put(wireguard.Peer{Session: session, PublicKey: c.Key.Public(), Addresses: addresses}); err != nil {
		t.Fatal(err)
	}
	r := remote(g)
	r.Endpoint = netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), uint16(g.Port()))
	if err := c.Set([]wireguard.Remote{r}); err != nil {
		t.Fatal(err)
	}
	return c
}

type spaceDialer struct {
	s  space
	to netip.AddrPort
}

func (d spaceDialer) Dial(ctx context.Context, service string) (net.Conn, error) {
	// Package net would close gently what was given up.
	c, err := d.s.dial(context.WithoutCancel(ctx), "tcp", d.to)
	if err != nil {
		return nil, err
	}
	return &kernelClient{Conn: c, tcp: c.(*net.TCPConn)}, nil
}

// kernelClient is a TCP connection of the kernel as a tunnel.Conn: what an unmodified
// program has, that remembers a reset.
type kernelClient struct {
	net.Conn  // hides ReadFrom and WriteTo
	tcp       *net.TCPConn
	cut, shut atomic.Bool
}

func (c *kernelClient) NetConn() net.Conn { return c.tcp }

func (c *kernelClient) CloseWrite() error {
	c.shut.Store(true)
	return c.tcp.CloseWrite()
}

func (c *kernelClient) Read(p []byte) (int, error) {
	n, err := c.tcp.Read(p)
	if err == io.EOF && !c.shut.Load() {
		raw, _ := c.tcp.SyscallConn()
		raw.Control(func(fd uintptr) {
			// Closed by the kernel, though this end has not finished: it was reset, and
			// a Write has been told.
			if i, e := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); e == nil && i.State == 7 {
				err = syscall.ECONNRESET
			}
		})
	}
	return n, c.failure(err)
}

func (c *kernelClient) Write(p []byte) (int, error) {
	n, err := c.tcp.Write(p)
	return n, c.failure(err)
}

func (c *kernelClient) failure(err error) error {
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) && !c.shut.Load() {
		c.cut.Store(true)
	}
	if err != nil && c.cut.Load() {
		return syscall.ECONNRESET
	}
	return err
}

func (c *kernelClient) Reset(string) error {
	c.cut.Store(true)
	c.tcp.SetLinger(0)
	return c.tcp.Close()
}

// bareKernel is the conn of an arrival in these forms without its Verdict.
type bareKernel struct {
	tunnel.Conn
	layered
}

type layered interface {
	NetConn() net.Conn
	Unread() []byte
}

// byLoop has the event loop accept.
func byLoop(t *testing.T) func(*wireguard.Gateway) {
	e := loop.New(loop.Options{Loops: 2})
	t.Cleanup(e.Wait)
	return func(g *wireguard.Gateway) { g.Accept = e.Listen }
}

// whoeverAccepts runs a test of these forms with package net, and with the event loop.
func whoeverAccepts(t *testing.T, test func(t *testing.T, accept func(*testing.T) func(*wireguard.Gateway))) {
	t.Run("net", func(t *testing.T) {
		test(t, func(*testing.T) func(*wireguard.Gateway) { return func(*wireguard.Gateway) {} })
	})
	t.Run("loop", func(t *testing.T) { test(t, byLoop) })
}

// TestKernelRoad is the contract in form TUN, or in a guest KERNEL.
func TestKernelRoad(t *testing.T) {
	whoeverAccepts(t, func(t *testing.T, accept func(*testing.T) func(*wireguard.Gateway)) {
		gw, cl := spaces(t)
		tunneltest.Run(t, func(t *testing.T, h tunnel.Handler) tunnel.Dialer {
			g := kernelGateway(t, gw, handler{func(a api.Arrival) {
				a.Conn = bareKernel{a.Conn.(tunnel.Conn), a.Conn.(layered)}
				h.Arrive(a)
			}}, accept(t))
			tunClient(t, cl, g, "s-1", addresses)
			return spaceDialer{cl, echo6}
		})
	})
}

// TestPorts has ports come and go: a connection stays, and nobody else gets its place.
func TestPorts(t *testing.T) { whoeverAccepts(t, testPorts) }

func testPorts(t *testing.T, accept func(*testing.T) func(*wireguard.Gateway)) {
	gw, cl := spaces(t)
	arrivals := make(chan api.Arrival, 1)
	var mu sync.Mutex
	known := map[netip.AddrPort]bool{}
	find := func(to netip.AddrPort, protocol string) (string, bool) {
		mu.Lock()
		defer mu.Unlock()
		return "echo", known[to]
	}
	g := kernelGateway(t, gw, handler{func(a api.Arrival) { arrivals <- a }}, func(g *wireguard.Gateway) {
		g.Find = find
		g.Ports = func() (ports []int) {
			mu.Lock()
			defer mu.Unlock()
			for a := range known {
				ports = append(ports, int(a.Port()))
			}
			return ports
		}
	}, accept(t))
	tunClient(t, cl, g, "s-1", addresses)
	set := func(a netip.AddrPort, yes bool) {
		mu.Lock()
		delete(known, a)
		if yes {
			known[a] = true
		}
		mu.Unlock()
		g.Refresh()
	}
	// until is for what Run does a moment after Refresh.
	until := func(a netip.AddrPort, refused bool) net.Conn {
		t.Helper()
		for start := time.Now(); time.Since(start) < 20*time.Second; {
			c, err := cl.dial(t.Context(), "tcp", a)
			if refused == errors.Is(err, syscall.ECONNREFUSED) {
				return c
			}
			if c != nil {
				c.Close()
				(<-arrivals).Conn.Close()
			}
		}
		t.Fatalf("%s: refused is not %v", a, refused)
		return nil
	}
	other := netip.MustParseAddrPort("100.64.0.16:5432")
	until(other, true)
	set(other, true)
	c := until(other, false)
	defer c.Close()
	a := <-arrivals
	defer a.Conn.Close()
	set(other, false)
	until(other, true)
	// What was open is the business of who decides about it.
	c.Write([]byte("still"))
	b := make([]byte, 5)
	if _, err := io.ReadFull(a.Conn, b); err != nil || string(b) != "still" {
		t.Errorf("%q, %v", b, err)
	}
	set(other, true)
	until(other, false).Close()
	(<-arrivals).Conn.Close()
}

// TestKernel shows that only Services are reached, and how.
func TestKernel(t *testing.T) { whoeverAccepts(t, testKernel) }

func testKernel(t *testing.T, accept func(*testing.T) func(*wireguard.Gateway)) {
	gw, cl := spaces(t)
	arrivals := make(chan api.Arrival, 1)
	g := kernelGateway(t, gw, handler{func(a api.Arrival) { arrivals <- a }}, accept(t))
	tunClient(t, cl, g, "s-1", addresses)

	// Somebody on the gateway listens everywhere, at the Service's port too.
	for _, port := range []string{":7", ":22"} {
		gw.do(func() {
			l, err := net.Listen("tcp", port)
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					t.Errorf("a connection came to %s of the gateway itself", c.LocalAddr())
					c.Close()
				}
			}()
		})
	}
	for _, to := range []netip.AddrPort{echo4, echo6} {
		c, err := cl.dial(t.Context(), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		a := <-arrivals
		defer a.Conn.Close()
		_, byNet := a.Conn.(layered).NetConn().(*net.TCPConn)
		if _, raw := a.Conn.(layered).NetConn().(relay.Socket); byNet != (g.Accept == nil) || raw == byNet {
			t.Errorf("below it is a %T", a.Conn.(layered).NetConn())
		}
		if a.Conn.LocalAddr().String() != to.String() || a.Facts.Listener != to.String() || a.Service != "echo.default" || string(a.Evidence.Data) != "s-1" {
			t.Errorf("%s: %+v", a.Conn.LocalAddr(), a)
		}
	}
	for _, to := range []string{"100.64.0.16:22", "100.64.0.17:7", "100.64.0.1:22", "[fd00:1:2::10]:22", "[fd00:1:2::11]:7"} {
		if c, err := cl.dial(t.Context(), "tcp", netip.MustParseAddrPort(to)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, %v", to, c, err)
		}
	}
	if g.Dropped()["service"] != 5 {
		t.Error(g.Dropped())
	}
	u, err := cl.dial(t.Context(), "udp", netip.MustParseAddrPort("100.64.0.1:53"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.SetDeadline(time.Now().Add(20 * time.Second))
	u.Write([]byte("question"))
	b := make([]byte, 100)
	if n, err := u.Read(b); string(b[:n]) != "s-1:question" {
		t.Errorf("%q, %v", b[:n], err)
	}
	s, err := cl.dial(t.Context(), "tcp", netip.MustParseAddrPort("[fd00:1:2::1]:53"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(20 * time.Second))
	s.Write([]byte("\x00\x08question"))
	if n, err := io.ReadFull(s, b[:14]); string(b[:n]) != "\x00\x0cs-1:question" {
		t.Errorf("%q, %v", b[:n], err)
	}
}
