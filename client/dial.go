package client

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// A book knows the addresses of the cluster's host names as they were last. While a
// machine's names go through a tunnel, the way to mend that tunnel must not depend on
// them.
type book struct {
	mu    sync.Mutex
	known map[string][]netip.Addr
}

const (
	resolveTime = 2 * time.Second // to resolve a name of which addresses are known already
	knownTime   = 2 * time.Second // to connect to one that is known
	// The cluster's connections are looked after so that one that is dead is known to be
	// within about ten seconds.
	aliveIdle, aliveEvery, aliveCount = 5 * time.Second, 2 * time.Second, 3
)

// dialer connects as all connections to the cluster are made.
func dialer(within time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: within, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: aliveIdle, Interval: aliveEvery, Count: aliveCount,
	}}
}

// DialContext connects to HOST:PORT: at once where the host was last, else where it is
// found to be.
func (b *book) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	known := b.known[host]
	b.mu.Unlock()
	if len(known) > 0 {
		if c, err := dialer(knownTime).DialContext(ctx, network, net.JoinHostPort(known[0].String(), port)); err == nil {
			return c, nil
		}
	}
	c, err := dialer(connectTimeout).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if at, ok := c.RemoteAddr().(*net.TCPAddr); ok && !isIP(host) {
		b.learn(host, []netip.Addr{at.AddrPort().Addr().Unmap()})
	}
	return c, nil
}

// resolve returns the addresses of a host, those that it had last if it is not known
// where it is now.
func (b *book) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	b.mu.Lock()
	known := b.known[host]
	b.mu.Unlock()
	within := connectTimeout
	if len(known) > 0 {
		within = resolveTime
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		if len(known) > 0 {
			return known, nil
		}
		return nil, err
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	b.learn(host, found)
	return found, nil
}

func (b *book) learn(host string, at []netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = map[string][]netip.Addr{}
	}
	b.known[host] = at
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}
