package wireguard_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/tunneltest"
	"cardea/tunnel/wireguard"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The plan of the tests.
var (
	services = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/12"), netip.MustParsePrefix("fd00:1:2::/64")}
	sessions = []netip.Prefix{netip.MustParsePrefix("100.80.0.0/12"), netip.MustParsePrefix("fd00:1:2:1::/64")}
	dns4     = netip.MustParseAddr("100.64.0.1")
	dns6     = netip.MustParseAddr("fd00:1:2::1")
	echo4    = netip.MustParseAddrPort("100.64.0.16:7")
	echo6    = netip.MustParseAddrPort("[fd00:1:2::10]:7")
)

// handler is a house of functions.
type handler struct{ arrive func(api.Arrival) }

func (h handler) Arrive(a api.Arrival) { h.arrive(a) }
func (h handler) Refused(api.Refusal)  {}

// bare is the conn of an arrival without its Verdict, which the client's end cannot hear.
type bare struct {
	tunnel.Conn
	tunnel.Watcher
}

// find knows one Service, echo, at two addresses, for TCP and UDP, with port 7 only.
func find(to netip.AddrPort, protocol string) (string, bool) {
	return "echo", to == echo4 || to == echo6
}

// inGuest is set in the environment of the tests when they run in a guest, where gateways
// are of form KERNEL. See TestGuest.
const inGuest = "CARDEA_TEST_IN_GUEST"

// gateway opens and runs one.
func gateway(t *testing.T, h tunnel.Handler, change ...func(*wireguard.Gateway)) *wireguard.Gateway {
	t.Helper()
	g := &wireguard.Gateway{
		Handler: h, Find: find, Ports: func() []int { return []int{7} },
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
	if err := g.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		run.Wait()
		g.Close()
	})
	return g
}

// client opens one that is Session s-N at the gateway.
func client(t *testing.T, g *wireguard.Gateway, session string, addresses []netip.Addr) *wireguard.Client {
	t.Helper()
	c := &wireguard.Client{Key: wireguard.NewKey(), Addresses: addresses, Log: slog.New(slog.DiscardHandler)}
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := g.Put(wireguard.Peer{Session: session, PublicKey: c.Key.Public(), Addresses: addresses}); err != nil {
		t.Fatal(err)
	}
	if err := c.Set([]wireguard.Remote{remote(g)}); err != nil {
		t.Fatal(err)
	}
	return c
}

// remote is a gateway on this machine.
func remote(g *wireguard.Gateway) wireguard.Remote {
	return wireguard.Remote{
		Name: "gw", PublicKey: g.Key.Public(), Allowed: services,
		Endpoint: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(g.Port())),
	}
}

type dialer struct {
	c  *wireguard.Client
	to netip.AddrPort
}

func (d dialer) Dial(ctx context.Context, service string) (net.Conn, error) {
	return d.c.DialContext(ctx, "tcp", d.to)
}

// TestRoad is the contract in form USERSPACE, over IPv4; TestKernelRoad is so in form
// KERNEL, over IPv6.
func TestRoad(t *testing.T) {
	tunneltest.Run(t, func(t *testing.T, h tunnel.Handler) tunnel.Dialer {
		g := gateway(t, handler{func(a api.Arrival) {
			a.Conn = bare{a.Conn.(tunnel.Conn), a.Conn.(tunnel.Watcher)}
			h.Arrive(a)
		}})
		return dialer{client(t, g, "s-1", addresses), echo4}
	})
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8(sha256.Sum256([]byte{byte(n)})).Read(b)
	return b
}

var addresses = []netip.Addr{netip.MustParseAddr("100.80.0.1"), netip.MustParseAddr("fd00:1:2:1::1")}

func TestFlow(t *testing.T) {
	arrivals := make(chan api.Arrival, 1)
	g := gateway(t, handler{func(a api.Arrival) { arrivals <- a }})
	c := client(t, g, "s-1", addresses)
	for _, to := range []netip.AddrPort{echo4, echo6} {
		u, err := c.DialContext(t.Context(), "udp", to)
		if err != nil {
			t.Fatal(err)
		}
		u.SetDeadline(time.Now().Add(20 * time.Second))
		u.Write([]byte("hello"))
		a := <-arrivals
		if _, ok := a.Conn.(interface{ Datagram() }); !ok || a.Service != "echo.default" || string(a.Evidence.Data) != "s-1" ||
			a.Facts.Tunnel != "wireguard" || a.Facts.Listener != to.String() || a.Facts.IP != u.LocalAddr().(*net.UDPAddr).IP.String() {
			t.Errorf("%+v", a)
		}
		// The largest datagram that there is takes a way in parts.
		for _, size := range []int{0, 1, 1200, 1233, 9000, 65507} {
			want := noise(size)
			if size > 0 {
				if _, err := u.Write(want); err != nil {
					t.Fatal(err)
				}
			} else {
				want = []byte("hello")
			}
			b := make([]byte, 70_000)
			n, err := a.Conn.Read(b)
			if err != nil || !bytes.Equal(b[:n], want) {
				t.Fatalf("up %d: %d, %v; %v", size, n, err, g.Dropped())
			}
			if _, err := a.Conn.Write(want); err != nil {
				t.Fatal(err)
			}
			n, err = u.Read(b)
			if err != nil || !bytes.Equal(b[:n], want) {
				t.Fatalf("down %d: %d, %v", size, n, err)
			}
		}
		a.Conn.Close()
		if _, err := a.Conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		u.Close()
	}
}

// TestIdleQuestioners shows that a Session's connections to the name server that ask
// nothing are bounded, and take nothing from its questions by UDP, nor from others.
func TestIdleQuestioners(t *testing.T) {
	g := gateway(t, handler{})
	c := client(t, g, "s-1", addresses)
	at := netip.AddrPortFrom(dns4, 53)
	open := 0
	for range 80 {
		s, err := c.DialContext(t.Context(), "tcp", at)
		if errors.Is(err, syscall.ECONNRESET) {
			continue // it comes as early as that
		}
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.SetDeadline(time.Now().Add(20 * time.Second))
		s.Write([]byte("\x00\x01x")) // it is answered, and stays
		if _, err := io.ReadFull(s, make([]byte, 2+len("s-1:x"))); err == nil {
			open++
		}
	}
	if open != 16 {
		t.Errorf("%d connections are open, want 16", open)
	}
	for who, c := range map[string]*wireguard.Client{"s-1": c, "s-2": client(t, g, "s-2", []netip.Addr{netip.MustParseAddr("100.80.0.2")})} {
		u, err := c.DialContext(t.Context(), "udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		u.SetDeadline(time.Now().Add(20 * time.Second))
		u.Write([]byte("question"))
		b := make([]byte, 100)
		if n, err := u.Read(b); string(b[:n]) != who+":question" {
			t.Errorf("%s asks by UDP: %q, %v", who, b[:n], err)
		}
	}
}

func TestDNS(t *testing.T) {
	g := gateway(t, handler{})
	c := client(t, g, "s-1", addresses)
	for _, at := range []netip.Addr{dns4, dns6} {
		u, err := c.DialContext(t.Context(), "udp", netip.AddrPortFrom(at, 53))
		if err != nil {
			t.Fatal(err)
		}
		u.SetDeadline(time.Now().Add(20 * time.Second))
		u.Write([]byte("question"))
		b := make([]byte, 100)
		if n, err := u.Read(b); string(b[:n]) != "s-1:question" {
			t.Errorf("%q, %v", b[:n], err)
		}
		u.Close()
		s, err := c.DialContext(t.Context(), "tcp", netip.AddrPortFrom(at, 53))
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(20 * time.Second))
		s.Write([]byte("\x00\x08question\x00\x03two"))
		want := "\x00\x0cs-1:question\x00\x07s-1:two"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(s, got); string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
		s.Close()
	}
}
