package control

import (
	"net/netip"
	"sync"
	"time"
)

// Limits of logging in, for each source network.
const (
	loginRate  = 20 // a second
	loginBurst = 40 // at once
	// maxNetworks bounds the memory that strangers can take.
	maxNetworks = 10_000
)

// A limiter bounds how often each network does something: a token bucket each.
type limiter struct {
	now func() time.Time

	mu      sync.Mutex
	buckets map[netip.Prefix]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, buckets: map[netip.Prefix]bucket{}}
}

// allow reports whether the network of that address may go on now. Callers whose
// address is not known share one bucket.
func (l *limiter) allow(ip string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, net := l.now(), network(ip)
	b, ok := l.buckets[net]
	if !ok {
		if len(l.buckets) >= maxNetworks {
			l.forget(now)
		}
		if len(l.buckets) >= maxNetworks {
			return false
		}
		b = bucket{loginBurst, now}
	}
	b = bucket{b.after(now), now}
	allowed := b.tokens >= 1
	if allowed {
		b.tokens--
	}
	l.buckets[net] = b
	return allowed
}

// forget drops the buckets that are full again.
func (l *limiter) forget(now time.Time) {
	for net, b := range l.buckets {
		if b.after(now) == loginBurst {
			delete(l.buckets, net)
		}
	}
}

// after returns how many tokens the bucket has at now; a clock that went back
// adds none.
func (b bucket) after(now time.Time) float64 {
	return min(loginBurst, b.tokens+loginRate*max(0, now.Sub(b.at).Seconds()))
}

// network returns what one party is likely to have: an IPv4 address, or an IPv6
// network of 64 bits.
func network(ip string) netip.Prefix {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Prefix{}
	}
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // cannot fail: the address has at least so many bits
	return p
}
