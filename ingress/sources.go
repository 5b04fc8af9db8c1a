package ingress

import (
	"container/list"
	"net"
	"net/netip"
	"time"
)

// networkOf returns the source network of a peer: its address if that is one of
// IPv4, and the /64 around it for IPv6, which is what one site is given at least
// (RFC 6177), so that any number of addresses in it costs nothing.
//
// An address of IPv4 is not widened to its /24: behind the neighbours there are
// other people, and whoever rents a whole /24 is met by the limits over all
// networks.
func networkOf(c net.Conn) netip.Prefix {
	from := addrPort(c.RemoteAddr()).Addr().WithZone("")
	bits := 64
	if from.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(from, bits).Masked()
}

// addrPort returns the address of a TCP endpoint, the zero AddrPort for another.
func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		p := tcp.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// A source is a network from which connections come.
type source struct {
	network netip.Prefix
	pending int // places that it holds
	waiting int // connections of it that wait for one

	// A token bucket: each hello takes a token, and they come back with time.
	tokens float64
	filled time.Time // when tokens was right

	proved time.Time // when a handshake last proved a Session; zero for strangers
}

// fill brings tokens up to now, of so many a second and at most.
func (s *source) fill(now time.Time, rate int) {
	s.tokens = min(s.tokens+now.Sub(s.filled).Seconds()*float64(rate), float64(rate))
	s.filled = now
}

// sources is a table of the most recent source networks.
type sources struct {
	most   int // beyond that the least recent ones are forgotten
	rate   int // hellos a second of each, and how many may come at once
	rows   map[netip.Prefix]*list.Element
	recent list.List // of *source, the most recent first
}

// get returns the row of a network, or nil.
func (t *sources) get(n netip.Prefix) *source {
	e := t.rows[n]
	if e == nil {
		return nil
	}
	t.recent.MoveToFront(e)
	return e.Value.(*source)
}

// make returns the row of a network, which may be new.
func (t *sources) make(n netip.Prefix, now time.Time) *source {
	if s := t.get(n); s != nil {
		return s
	}
	for range t.recent.Len() - t.most + 1 {
		t.forget()
	}
	if t.rows == nil {
		t.rows = map[netip.Prefix]*list.Element{}
	}
	s := &source{network: n, tokens: float64(t.rate), filled: now}
	t.rows[n] = t.recent.PushFront(s)
	return s
}

// forget drops the least recent row that nothing hangs on. Those that something
// hangs on are fewer than most, see Admission.
func (t *sources) forget() {
	for e := t.recent.Back(); e != nil; e = e.Prev() {
		if s := e.Value.(*source); s.pending == 0 && s.waiting == 0 {
			t.drop(s)
			return
		}
	}
}

func (t *sources) drop(s *source) {
	t.recent.Remove(t.rows[s.network])
	delete(t.rows, s.network)
}
