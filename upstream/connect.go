package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"cardea/api"
)

const (
	// attemptDelay is how long one address has before the next is tried beside it
	// (RFC 8305, section 5).
	attemptDelay = 250 * time.Millisecond
	// maxAddresses is the most addresses of one name that are tried.
	maxAddresses = 16
)

// dial connects to a host, of the config of a place, by whichever of its addresses
// answers.
func (d *Dialer) dial(ctx context.Context, p *place, host string, port uint16, families []api.IPFamily) (net.Conn, error) {
	addrs, err := d.resolve(ctx, host, families)
	if err != nil {
		return nil, err
	}
	addrs = p.order(host, addrs)
	connect := d.connect
	if connect == nil {
		connect = d.connectTCP
	}
	if len(addrs) == 1 {
		return connect(ctx, netip.AddrPortFrom(addrs[0], port))
	}
	return race(ctx, addrs, func(ctx context.Context, a netip.Addr) (net.Conn, error) {
		return connect(ctx, netip.AddrPortFrom(a, port))
	})
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
				d.refuse(address, err)
				return err
			}
			return nil
		},
	}
	nd.SetMultipathTCP(false) // whatever GODEBUG says: the relay expects a plain TCP socket
	return nd.DialContext(ctx, "tcp", at.String())
}

// A turnKey is one family of the addresses of a name.
type turnKey struct {
	host string
	v4   bool
}

// maxTurns is the number of names of a config of which turns are kept: SRV records
// may lead to ever others.
const maxTurns = 64

// order returns the addresses of a name in the order in which they are tried, at most
// maxAddresses. The family of the first stays the first, and each begins with its next
// address each time.
func (p *place) order(host string, addrs []netip.Addr) []netip.Addr {
	if len(addrs) == 1 {
		return addrs
	}
	var first, second []netip.Addr
	for _, a := range addrs {
		if a.Is4() == addrs[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	p.mu.Lock()
	first, second = p.rotate(host, first), p.rotate(host, second)
	p.mu.Unlock()
	all := alternate(first, second)
	return all[:min(len(all), maxAddresses)]
}

// rotate returns the addresses of one family from that whose turn it is. mu must be
// held.
func (p *place) rotate(host string, addrs []netip.Addr) []netip.Addr {
	if len(addrs) < 2 {
		return addrs
	}
	k := turnKey{host, addrs[0].Is4()}
	at, known := p.spread[k]
	if !known {
		at = p.first
		if p.spread == nil || len(p.spread) >= maxTurns {
			p.spread = map[turnKey]int{}
		}
	}
	at %= len(addrs)
	p.spread[k] = at + 1
	return slices.Concat(addrs[at:], addrs[:at])
}

// alternate joins the addresses of two families so that these take turns (RFC 8305,
// section 4).
func alternate(first, second []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(first)+len(second))
	for i := range max(len(first), len(second)) {
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
