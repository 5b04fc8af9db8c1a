// Package upstream reaches the upstreams of Services. It is the only room that
// dials them.
//
// Whoever may write a Service chooses where the cluster connects to. So that
// nobody makes of this a way around the cluster's own policies, some addresses
// are refused (see [Dialer]). What is checked is the address that is about to be
// connected to, each time, after names were resolved: a name that changes its
// address between a check and its use gains nothing.
package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardea/api"
)

const (
	// DefaultTimeout is how long a dial may take if Dialer.Timeout is zero.
	DefaultTimeout = 10 * time.Second
	// attemptDelay is how long one address has before the next is tried beside it
	// (RFC 8305, section 5).
	attemptDelay = 250 * time.Millisecond
	// maxAddresses is the most addresses of one name that are tried.
	maxAddresses = 16
)

// A Dialer connects to upstreams. Its fields must not change once it is in use;
// what the functions return may. It may be used from any number of goroutines.
//
// It refuses, whatever the name and the spelling (IPv4 within IPv6 included):
// unspecified, broadcast and multicast addresses, link-local and metadata
// addresses, loopback unless Loopback is set, and the cluster's own listeners.
// Allow lifts this for what it lists, with two limits: an own listener has to be
// listed by its one address, so that allowing loopback as a whole opens no way
// back in; and nothing lifts it for unspecified addresses, which every system
// reads as it likes.
type Dialer struct {
	// Hosts returns ClusterConfig.spec.dns.hosts: addresses of names, which
	// precede those of DNS.
	Hosts func() map[string][]string
	// Allow returns ClusterConfig.spec.upstream.allow.
	Allow func() []netip.Prefix
	// Loopback allows 127.0.0.0/8 and ::1: for clusters that listen nowhere else.
	Loopback bool
	// Own returns the addresses that this cluster listens on. An unspecified
	// address is every address of this machine.
	Own func() []netip.AddrPort
	// Timeout bounds a dial, resolution included; 0 is DefaultTimeout.
	Timeout time.Duration
	// Log hears of addresses that were refused.
	Log *slog.Logger

	// What tests replace.
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	connect func(ctx context.Context, at netip.AddrPort) (net.Conn, error)
	locals  func() ([]net.Addr, error)
}

// Dial connects to the upstream of cfg. A failure is an [*Error]. The connection
// is a *net.TCPConn with keep-alive.
func (d *Dialer) Dial(ctx context.Context, cfg *api.ServiceConfig) (net.Conn, error) {
	ends, err := cfg.Upstream.Endpoints()
	if err != nil {
		return nil, &Error{Reason: DialFailed, Words: "spec.config.upstream.url " + err.Error(), Err: err}
	}
	host, port := ends[0].Host, ends[0].Port
	timeout := d.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	dialling, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := d.dial(dialling, host, uint16(port))
	if err != nil {
		return nil, explain(ctx, net.JoinHostPort(host, strconv.Itoa(port)), timeout, err)
	}
	return conn, nil
}

func (d *Dialer) dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	addrs, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	if len(addrs) > maxAddresses {
		addrs = addrs[:maxAddresses]
	}
	connect := d.connect
	if connect == nil {
		connect = d.connectTCP
	}
	if len(addrs) == 1 {
		return connect(ctx, netip.AddrPortFrom(addrs[0], port))
	}
	return race(ctx, alternate(addrs), func(ctx context.Context, a netip.Addr) (net.Conn, error) {
		return connect(ctx, netip.AddrPortFrom(a, port))
	})
}

// resolve returns the addresses of host, one at least.
func (d *Dialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	var addrs []netip.Addr
	for _, s := range d.host(host) {
		if a, err := netip.ParseAddr(s); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	if len(addrs) > 0 {
		return addrs, nil
	}
	lookup := d.lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	addrs, err := lookup(ctx, host)
	if err == nil && len(addrs) == 0 {
		err = &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// host returns what Hosts has for a name, whatever its case and final dot.
func (d *Dialer) host(name string) []string {
	hosts := d.Hosts()
	if addrs, ok := hosts[name]; ok {
		return addrs
	}
	for h, addrs := range hosts {
		if strings.EqualFold(strings.TrimSuffix(h, "."), strings.TrimSuffix(name, ".")) {
			return addrs
		}
	}
	return nil
}

// connectTCP connects to one address, if that is allowed.
func (d *Dialer) connectTCP(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	nd := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3},
		// The last moment before connect(2), with the address that it gets.
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("cannot check the address %q", address)
			}
			if err := d.check(to); err != nil {
				d.Log.Warn("an upstream's address was refused", "address", address, "error", err)
				return err
			}
			return nil
		},
	}
	nd.SetMultipathTCP(false) // whatever GODEBUG says: the relay expects a plain TCP socket
	return nd.DialContext(ctx, "tcp", at.String())
}

// alternate orders addresses so that the families take turns (RFC 8305, section
// 4): the first stays the first.
func alternate(addrs []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, a := range addrs {
		if a.Is4() == addrs[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	out := make([]netip.Addr, 0, len(addrs))
	for i := range addrs {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(second) {
			out = append(out, second[i])
		}
	}
	return out
}

// race connects to several addresses in order, each a moment after the one
// before or as soon as that fails, and returns the first connection. All attempts
// have ended when it returns.
func race(ctx context.Context, addrs []netip.Addr, connect func(context.Context, netip.Addr) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, len(addrs)) // nobody waits to put his
	var all sync.WaitGroup
	defer func() {
		cancel()
		all.Wait()
		close(results)
		for r := range results { // those that came too late
			if r.conn != nil {
				r.conn.Close()
			}
		}
	}()

	var failed attempts
	for next := 0; len(failed) < len(addrs); {
		var later <-chan time.Time
		if next < len(addrs) {
			a := addrs[next]
			next++
			all.Go(func() {
				c, err := connect(ctx, a)
				results <- result{c, err}
			})
			if next < len(addrs) {
				later = time.After(attemptDelay)
			}
		}
		select {
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			failed = append(failed, r.err)
		case <-later:
		}
	}
	return nil, failed
}
