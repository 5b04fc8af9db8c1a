package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"cardea/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newDialer returns a Dialer of a cluster that listens on loopback, at no port.
func newDialer() *Dialer {
	return &Dialer{
		Hosts:    func() map[string][]string { return nil },
		Allow:    func() []netip.Prefix { return nil },
		Own:      func() []netip.AddrPort { return nil },
		Loopback: true,
		Log:      slog.New(slog.DiscardHandler),
		lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		},
	}
}

func allow(prefixes ...string) func() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		out = append(out, netip.MustParsePrefix(p))
	}
	return func() []netip.Prefix { return out }
}

func own(addrs ...string) func() []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range addrs {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return func() []netip.AddrPort { return out }
}

func config(url string) *api.ServiceConfig {
	return &api.ServiceConfig{Upstream: api.Upstream{URL: url}}
}

// dialTo dials for a Service.
func dialTo(d *Dialer, ctx context.Context, service string, cfg *api.ServiceConfig) (net.Conn, error) {
	c, _, err := d.Dial(ctx, destination(service, cfg))
	return c, err
}

// destination is a Service.
func destination(service string, cfg *api.ServiceConfig) api.Destination {
	return api.Destination{Service: service, Object: api.Key{Group: api.GroupCore, Kind: api.KindService, Name: service}, Config: cfg}
}

// listen returns a listener that greets every connection, and its port.
func listen(t *testing.T, address string) (net.Listener, string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("no listener at %s: %v", address, err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { l.Close() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello")
			c.Close()
		}
	})
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return l, port
}

// greets fails unless the upstream at url is reached.
func greets(t *testing.T, d *Dialer, url string) {
	t.Helper()
	c, err := dialTo(d, t.Context(), "db.default", config(url))
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return
	}
	defer c.Close()
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("%s: a %T, and not TCP", url, c)
	}
	if b, err := io.ReadAll(c); string(b) != "hello" {
		t.Errorf("%s: read %q, %v", url, b, err)
	}
}

// refused fails unless the dial fails with that reason and words.
func refused(t *testing.T, d *Dialer, url, reason, words string) {
	t.Helper()
	c, err := dialTo(d, t.Context(), "db.default", config(url))
	if err == nil {
		c.Close()
		t.Errorf("%s: connected to %s", url, c.RemoteAddr())
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Reason != reason || e.CloseReason() != reason || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %#v (%v), want %s with %q", url, err, err, reason, words)
	}
}

func TestDial(t *testing.T) {
	_, v4 := listen(t, "127.0.0.1:0")
	_, v6 := listen(t, "[::1]:0")
	d := newDialer()
	greets(t, d, "tcp://127.0.0.1:"+v4)
	greets(t, d, "tcp://[::1]:"+v6)
	greets(t, d, "tcp://[::ffff:127.0.0.1]:"+v4)

	d.Hosts = func() map[string][]string {
		return map[string][]string{"db.corp": {"127.0.0.1"}, "DB6.Corp.": {"::1"}, "mapped": {"::ffff:127.0.0.1"}}
	}
	greets(t, d, "tcp://db.corp:"+v4)
	greets(t, d, "tcp://DB.corp.:"+v4)
	greets(t, d, "tcp://db6.corp:"+v6)
	greets(t, d, "tcp://mapped:"+v4)

	// What the resolver says counts only where Hosts says nothing.
	d.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
		if host != "other.corp" {
			t.Errorf("the resolver was asked for %s", host)
		}
		return []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")}, nil
	}
	greets(t, d, "tcp://other.corp:"+v4)
	greets(t, d, "tcp://db.corp:"+v4)
}

// With the machine's own resolver and interfaces.
func TestThisMachine(t *testing.T) {
	_, port := listen(t, "127.0.0.1:0")
	d := newDialer()
	d.lookup = nil // in /etc/hosts, or by RFC 6761
	greets(t, d, "tcp://localhost:"+port)

	d.Own = own("0.0.0.0:" + port)
	d.Allow = allow("0.0.0.0/0", "::/0")
	addrs, err := net.InterfaceAddrs()
	if err != nil || len(addrs) == 0 {
		t.Fatalf("this machine has the addresses %v (%v)", addrs, err)
	}
	for _, a := range addrs {
		ip := netip.MustParsePrefix(a.String()).Addr()
		if ip.IsLinkLocalUnicast() {
			continue // needs a zone, which a url has no room for
		}
		refused(t, d, "tcp://"+net.JoinHostPort(ip.String(), port), DialFailed, "this cluster itself listens there")
	}
}

// One address of a name that works is enough, wherever it stands.
func TestDialSecondAddress(t *testing.T) {
	_, v4 := listen(t, "127.0.0.1:0")
	d := newDialer()
	for _, addrs := range [][]string{
		{"::1", "127.0.0.1"}, {"127.0.0.2", "::1", "127.0.0.1"}, {"169.254.169.254", "127.0.0.1"}, {"0.0.0.0", "fe80::1", "127.0.0.1"},
	} {
		d.Hosts = func() map[string][]string { return map[string][]string{"db.corp": addrs} }
		greets(t, d, "tcp://db.corp:"+v4)
	}
}

func TestDialFails(t *testing.T) {
	l, port := listen(t, "127.0.0.1:0")
	l.Close() // nothing listens there now
	d := newDialer()
	refused(t, d, "tcp://127.0.0.1:"+port, DialFailed, "nothing listens there")
	refused(t, d, "tcp://no-such.corp:"+port, DialFailed, "spec.dns.hosts")
	refused(t, d, "tcp://127.0.0.1", DialFailed, "the port is missing")
	d.Hosts = func() map[string][]string { return map[string][]string{"db.corp": {"127.0.0.1", "127.0.0.2"}} }
	refused(t, d, "tcp://db.corp:"+port, DialFailed, "127.0.0.2:"+port)

	_, err := dialTo(d, t.Context(), "db.default", config("tcp://db.corp:"+port))
	if !errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "\n") {
		t.Errorf("the error is %q, and does not wrap its cause on one line", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dialTo(d, ctx, "db.default", config("tcp://127.0.0.1:"+port)); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller gave up: %v", err)
	}
}

// The address is checked by the socket's own control hook: no connection is made,
// however the address was come by.
func TestDialRefusesBeforeConnecting(t *testing.T) {
	l, port := listen(t, "127.0.0.1:0")
	d := newDialer()
	d.Loopback = false
	var log strings.Builder
	d.Log = slog.New(slog.NewTextHandler(&log, nil))
	d.Hosts = func() map[string][]string { return map[string][]string{"db.corp": {"127.0.0.1"}} }
	d.lookup = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	for _, host := range []string{"127.0.0.1", "[::ffff:127.0.0.1]", "db.corp", "rebound.corp"} {
		refused(t, d, "tcp://"+host+":"+port, DialFailed, "add 127.0.0.1/32 to spec.upstream.allow")
	}
	refused(t, d, "tcp://0.0.0.0:"+port, DialFailed, "not the address of a host")
	refused(t, d, "tcp://[::]:"+port, DialFailed, "not the address of a host")
	if !strings.Contains(log.String(), "loopback") || !strings.Contains(log.String(), "127.0.0.1:"+port) {
		t.Errorf("the log says %s", log.String())
	}
	d.Allow = allow("127.0.0.1/32")
	greets(t, d, "tcp://rebound.corp:"+port)
	d.Loopback = true
	d.Allow = allow()
	d.Own = own(l.Addr().String())
	refused(t, d, "tcp://127.0.0.1:"+port, DialFailed, "this cluster itself listens there")
}

// spellings are the ways to write an IPv4 address as one of IPv6.
func spellings(a netip.Addr) map[string]netip.Addr {
	b := a.As4()
	six := func(prefix string, at int) netip.Addr {
		out := netip.MustParseAddr(prefix).As16()
		copy(out[at:], b[:])
		return netip.AddrFrom16(out)
	}
	return map[string]netip.Addr{
		"mapped":        six("::ffff:0:0", 12),
		"compatible":    six("::", 12),
		"translated":    six("::ffff:0:0:0", 12),
		"NAT64":         six("64:ff9b::", 12),
		"local NAT64":   six("64:ff9b:1::", 12),
		"6to4":          six("2002::", 2),
		"6to4 with end": six("2002::1234:5678:9abc:def0", 2),
	}
}

func TestCheck(t *testing.T) {
	interfaces := func() ([]net.Addr, error) {
		_, n, err := net.ParseCIDR("192.0.2.7/24")
		n.IP = net.ParseIP("192.0.2.7")
		return []net.Addr{n, &net.IPNet{IP: net.ParseIP("2001:db8::7"), Mask: net.CIDRMask(64, 128)}}, err
	}
	public := func(d *Dialer) { d.Loopback = false }
	with := func(fs ...func(*Dialer)) func(*Dialer) {
		return func(d *Dialer) {
			for _, f := range fs {
				f(d)
			}
		}
	}
	allowing := func(p ...string) func(*Dialer) { return func(d *Dialer) { d.Allow = allow(p...) } }
	listening := func(a ...string) func(*Dialer) { return func(d *Dialer) { d.Own = own(a...) } }
	blind := func(d *Dialer) { d.locals = func() ([]net.Addr, error) { return nil, errors.New("no netlink") } }
	cases := []struct {
		at   string
		with func(*Dialer)
		ok   bool
	}{
		{"192.0.2.1:80", nil, true},
		{"10.0.0.1:80", nil, true},
		{"100.64.0.1:80", nil, true},
		{"[2001:db8::1]:80", nil, true},
		{"[fd00::1]:80", nil, true},
		{"[64:ff9b::192.0.2.1]:80", nil, true},
		{"[2002:c000:0201::1]:80", nil, true},

		{"127.0.0.1:80", nil, true},
		{"[::1]:80", nil, true},
		{"127.0.0.1:80", public, false},
		{"127.255.255.254:80", public, false},
		{"[::1]:80", public, false},
		{"[::1%lo]:80", public, false},
		{"127.0.0.1:80", with(public, allowing("127.0.0.0/8")), true},
		{"[::1]:80", with(public, allowing("127.0.0.0/8")), false},
		{"[::1]:80", with(public, allowing("::1/128")), true},

		{"0.0.0.0:80", nil, false},
		{"0.1.2.3:80", nil, false},
		{"[::]:80", nil, false},
		{"0.0.0.0:80", allowing("0.0.0.0/0"), false},
		{"0.0.0.0:80", allowing("0.0.0.0/32"), false},
		{"[::]:80", allowing("::/0"), false},
		{"[::]:80", allowing("::/128"), false},

		{"169.254.169.254:80", nil, false},
		{"169.254.0.1:80", nil, false},
		{"169.254.169.254:80", allowing("169.254.169.254/32"), true},
		{"169.254.169.253:80", allowing("169.254.169.254/32"), false},
		{"[fe80::1]:80", nil, false},
		{"[fe80::1%eth0]:80", nil, false},
		{"[febf::1]:80", nil, false},
		{"[fe80::1%eth0]:80", allowing("fe80::/10"), true},
		{"[fd00:ec2::254]:80", nil, false},
		{"[fd20:ce::254]:80", nil, false},
		{"100.100.100.200:80", nil, false},
		{"168.63.129.16:80", nil, false},
		{"192.0.0.192:80", nil, false},
		{"[fd00:ec2::254]:80", allowing("fd00:ec2::/32"), true},

		{"224.0.0.1:80", nil, false},
		{"239.1.1.1:80", nil, false},
		{"[ff02::1]:80", nil, false},
		{"255.255.255.255:80", nil, false},
		{"239.1.1.1:80", allowing("239.0.0.0/8"), true},

		{"192.0.2.7:8443", listening("192.0.2.7:8443"), false},
		{"192.0.2.7:8444", listening("192.0.2.7:8443"), true},
		{"192.0.2.8:8443", listening("192.0.2.7:8443"), true},
		{"127.0.0.1:8443", listening("192.0.2.7:8443"), true},
		{"127.0.0.1:8443", listening("127.0.0.1:8443"), false},
		{"127.0.0.1:8443", listening("[::ffff:127.0.0.1]:8443"), false},
		{"[fe80::1%eth0]:8443", with(allowing("fe80::/10"), listening("[fe80::1%eth0]:8443")), false},
		{"192.0.2.7:8443", listening("0.0.0.0:8443"), false},
		{"192.0.2.7:8443", listening("[::]:8443"), false},
		{"[2001:db8::7]:8443", listening("[::]:8443"), false},
		{"127.0.0.1:8443", listening("0.0.0.0:8443"), false},
		{"127.9.9.9:8443", listening("0.0.0.0:8443"), false},
		{"[::1]:8443", listening("[::]:8443"), false},
		{"192.0.2.8:8443", listening("0.0.0.0:8443"), true},
		{"192.0.2.7:80", listening("0.0.0.0:8443"), true},
		{"192.0.2.8:8443", with(blind, listening("0.0.0.0:8443")), false}, // who knows
		{"192.0.2.8:80", with(blind, listening("0.0.0.0:8443")), true},

		// A way back in has to be allowed by its one address.
		{"127.0.0.1:8443", with(listening("127.0.0.1:8443"), allowing("127.0.0.0/8")), false},
		{"127.0.0.1:8444", with(public, listening("127.0.0.1:8443"), allowing("127.0.0.0/8")), true},
		{"127.0.0.1:8443", with(listening("127.0.0.1:8443"), allowing("127.0.0.1/32")), true},
		{"127.0.0.1:8443", with(listening("0.0.0.0:8443"), allowing("127.0.0.1/32")), true},
	}
	for _, c := range cases {
		d := newDialer()
		d.locals = interfaces
		if c.with != nil {
			c.with(d)
		}
		at := netip.MustParseAddrPort(c.at)
		words := fmt.Sprintf("%s with loopback %v, allow %v, own %v", c.at, d.Loopback, d.Allow(), d.Own())
		if err := d.check(at); (err == nil) != c.ok {
			t.Errorf("%s: %v, want ok: %v", words, err, c.ok)
		}
		// And so in every spelling.
		if at.Addr().Is4() {
			for name, a := range spellings(at.Addr()) {
				if err := d.check(netip.AddrPortFrom(a, at.Port())); (err == nil) != c.ok && !a.IsUnspecified() && !a.IsLoopback() {
					t.Errorf("%s, %s: %v, want ok: %v", words, name, err, c.ok)
				}
			}
		}
	}
}

// No spelling of an address is allowed that the address itself is not.
func TestCheckSpellings(t *testing.T) {
	d := newDialer()
	d.Loopback = false
	d.Own = own("10.0.0.1:80", "[2001:db8::1]:80")
	d.Allow = allow("169.254.1.0/24")
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.SampledFrom([]byte{0, 10, 100, 127, 168, 169, 192, 224, 255}).Draw(t, "first")
		rest := rapid.SliceOfN(rapid.Byte(), 3, 3).Draw(t, "rest")
		a := netip.AddrFrom4([4]byte{first, rest[0], rest[1], rest[2]})
		err := d.check(netip.AddrPortFrom(a, 80))
		for _, name := range slices.Sorted(maps.Keys(spellings(a))) {
			s := spellings(a)[name]
			if err != nil && d.check(netip.AddrPortFrom(s, 80)) == nil {
				t.Fatalf("%s is refused (%v), and %s (%s) is not", a, err, s, name)
			}
		}
	})
}

// blackhole answers nothing.
func blackhole(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestTimeout(t *testing.T) {
	for _, c := range []struct{ set, want time.Duration }{{0, 10 * time.Second}, {3 * time.Second, 3 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			d := newDialer()
			d.Timeout = c.set
			d.connect = blackhole
			d.Hosts = func() map[string][]string { return map[string][]string{"two.corp": {"192.0.2.1", "192.0.2.2"}} }
			for _, host := range []string{"192.0.2.1", "two.corp"} {
				start := time.Now()
				refused(t, d, "tcp://"+host+":80", DialTimeout, fmt.Sprintf("within %v", c.want))
				if took := time.Since(start); took != c.want {
					t.Errorf("%s: gave up after %v, want %v", host, took, c.want)
				}
			}
			d.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
				<-ctx.Done()
				return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
			}
			refused(t, d, "tcp://slow.corp:80", DialTimeout, "the resolver does not answer")
		})
	}
}

func TestCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer()
		d.connect = blackhole
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := dialTo(d, ctx, "db.default", config("tcp://192.0.2.1:80"))
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != DialFailed || !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
	})
}

// pipeTo is a connection that knows where it goes and whether it was closed.
type pipeTo struct {
	net.Conn
	to     netip.AddrPort
	closed *sync.Map
}

func (p pipeTo) Close() error { p.closed.Store(p.to, true); return nil }

func (p pipeTo) SetDeadline(time.Time) error { return nil }

// The addresses of a name are tried in the order of RFC 8305, and whoever answers
// first is taken.
func TestRace(t *testing.T) {
	const never = time.Hour
	cases := []struct {
		name    string
		answers map[string]time.Duration // negative: fails after that
		addrs   []string
		winner  string
		after   time.Duration
		tried   []string
	}{
		{"the first answers", map[string]time.Duration{"192.0.2.1": 100 * time.Millisecond, "192.0.2.2": 0},
			[]string{"192.0.2.1", "192.0.2.2"}, "192.0.2.1", 100 * time.Millisecond, []string{"192.0.2.1"}},
		{"the first hangs", map[string]time.Duration{"192.0.2.1": never, "192.0.2.2": 10 * time.Millisecond},
			[]string{"192.0.2.1", "192.0.2.2"}, "192.0.2.2", 260 * time.Millisecond, []string{"192.0.2.1", "192.0.2.2"}},
		{"the first fails at once", map[string]time.Duration{"192.0.2.1": -time.Millisecond, "192.0.2.2": 10 * time.Millisecond},
			[]string{"192.0.2.1", "192.0.2.2"}, "192.0.2.2", 11 * time.Millisecond, []string{"192.0.2.1", "192.0.2.2"}},
		{"the first is slow and still first", map[string]time.Duration{"192.0.2.1": 300 * time.Millisecond, "192.0.2.2": never},
			[]string{"192.0.2.1", "192.0.2.2"}, "192.0.2.1", 300 * time.Millisecond, []string{"192.0.2.1", "192.0.2.2"}},
		{"families take turns", map[string]time.Duration{"2001:db8::1": -1, "2001:db8::2": -1, "2001:db8::3": 0, "192.0.2.1": -1},
			[]string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1"}, "2001:db8::3", 3,
			[]string{"2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"}},
		{"all fail", map[string]time.Duration{"192.0.2.1": -1, "192.0.2.2": -1},
			[]string{"192.0.2.1", "192.0.2.2"}, "", 2, []string{"192.0.2.1", "192.0.2.2"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDialer()
				d.Hosts = func() map[string][]string { return map[string][]string{"db.corp": c.addrs} }
				var tried []string
				var closed sync.Map
				var mu sync.Mutex
				d.connect = func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
					mu.Lock()
					tried = append(tried, at.Addr().String())
					mu.Unlock()
					wait := c.answers[at.Addr().String()]
					select {
					case <-time.After(max(wait, -wait)):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					if wait < 0 {
						return nil, syscall.ECONNREFUSED
					}
					return pipeTo{to: at, closed: &closed}, nil
				}
				start := time.Now()
				conn, err := dialTo(d, t.Context(), "db.default", config("tcp://db.corp:80"))
				if took := time.Since(start); took != c.after {
					t.Errorf("took %v, want %v", took, c.after)
				}
				winner := ""
				if err == nil {
					winner = conn.(pipeTo).to.Addr().String()
					if _, is := closed.Load(conn.(pipeTo).to); is {
						t.Error("the connection is closed")
					}
				}
				if winner != c.winner {
					t.Errorf("connected to %q (%v), want %q", winner, err, c.winner)
				}
				if !slices.Equal(tried, c.tried) {
					t.Errorf("tried %v, want %v", tried, c.tried)
				}
			})
		})
	}
}

// Who answers at the same moment and comes second is closed.
func TestRaceClosesTheLoser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer()
		d.Hosts = func() map[string][]string { return map[string][]string{"db.corp": {"192.0.2.1", "192.0.2.2"}} }
		var closed sync.Map
		d.connect = func(_ context.Context, at netip.AddrPort) (net.Conn, error) {
			if at.Addr() == netip.MustParseAddr("192.0.2.1") {
				time.Sleep(time.Second) // and deaf to its context
			}
			return pipeTo{to: at, closed: &closed}, nil
		}
		conn, err := dialTo(d, t.Context(), "db.default", config("tcp://db.corp:80"))
		if err != nil || conn.(pipeTo).to.Addr().String() != "192.0.2.2" {
			t.Fatalf("connected to %v, %v", conn, err)
		}
		if _, is := closed.Load(netip.MustParseAddrPort("192.0.2.1:80")); !is {
			t.Error("the connection that came too late was left open")
		}
		if _, is := closed.Load(conn.(pipeTo).to); is {
			t.Error("the connection that was returned is closed")
		}
	})
}

func TestManyAddresses(t *testing.T) {
	var addrs []string
	for i := range 100 {
		addrs = append(addrs, fmt.Sprintf("192.0.2.%d", i+1))
	}
	d := newDialer()
	d.Hosts = func() map[string][]string { return map[string][]string{"many.corp": addrs} }
	var mu sync.Mutex
	tried := 0
	d.connect = func(context.Context, netip.AddrPort) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		tried++
		return nil, syscall.ECONNREFUSED
	}
	refused(t, d, "tcp://many.corp:80", DialFailed, "nothing listens there")
	if tried != 16 {
		t.Errorf("tried %d addresses, want 16", tried)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("127.0.0.1:80")
	f.Add("[64:ff9b::a9fe:a9fe]:80")
	d := newDialer()
	d.Loopback = false
	d.Own = own("0.0.0.0:8443")
	f.Fuzz(func(t *testing.T, s string) {
		at, err := netip.ParseAddrPort(s)
		if err != nil {
			return
		}
		a := at.Addr().Unmap()
		bad := a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified()
		if bad && d.check(at) == nil {
			t.Fatalf("%s is allowed", s)
		}
	})
}
