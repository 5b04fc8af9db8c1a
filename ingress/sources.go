package ingress

import (
	"container/list"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"cardea/api"
)

// addrPort returns the address of a TCP or UDP endpoint, the zero AddrPort for another.
func addrPort(a net.Addr) netip.AddrPort {
	var p netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		p = a.AddrPort()
	case *net.UDPAddr:
		p = a.AddrPort()
	default:
		return p
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// A source is a network from which connections come.
type source struct {
	network netip.Prefix
	pending int // places that it holds
	waiting int // connections of it that wait for one

	// A token bucket: a hello, or a connection, takes a token, and they come back
	// with time.
	tokens float64
	filled time.Time // when tokens was right

	proved time.Time // when a handshake last proved a Session; zero for strangers
}

// sources is a table of the most recent source networks.
type sources struct {
	most   int // beyond that the least recent ones are forgotten
	rate   int // tokens a second of each
	burst  int // tokens of each at most
	rows   map[netip.Prefix]*list.Element
	recent list.List // of *source, the most recent first
}

// fill brings the tokens of a row up to now, and reports whether there is one.
func (t *sources) fill(s *source, now time.Time) bool {
	s.tokens = min(s.tokens+now.Sub(s.filled).Seconds()*float64(t.rate), float64(t.burst))
	s.filled = now
	return s.tokens >= 1
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
	s := &source{network: n, tokens: float64(t.burst), filled: now}
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

// A meter lets so many connections of each source network in.
type meter struct {
	mu   sync.Mutex
	says string // where the rate is written
	sources
	whole int    // the rate of all networks together; 0 is any
	all   source // these
}

// set makes the rate so many connections a second, of which twice as many may
// come at once, and notes where that is written.
func (m *meter) set(rate int, says string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.says = says
	m.most, m.rate, m.burst = mostSources, rate, 2*rate
}

// bound makes the rate of all networks together so many connections a second.
func (m *meter) bound(rate int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.whole = rate
}

// together returns what bounds all networks together.
func (m *meter) together() *sources { return &sources{rate: m.whole, burst: 2 * m.whole} }

// admit takes a token for a connection from an address. An error is that of a limit
// of its Object. m may be nil.
func (m *meter) admit(ip netip.Addr) error {
	if m == nil {
		return nil
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.make(api.SourceNetwork(ip), now)
	if !m.fill(from, now) {
		return limited(fmt.Sprintf("more than %d connections a second from %v (%s)", m.rate, from.network, m.says))
	}
	if m.whole > 0 && !m.together().fill(&m.all, now) {
		return limited(fmt.Sprintf("more than %d flows a second from all sources together (%s, times %d)", m.whole, m.says, sourcesAtOnce))
	}
	m.all.tokens--
	from.tokens--
	return nil
}

// sourcesAtOnce is how many source networks can open as many flows of datagrams as one of
// them may. More cannot, as whoever sends those can say that they come from anywhere.
const sourcesAtOnce = 5

// limited is the error of a connection that a limit of its Object refused.
type limited string

// Error implements error.
func (e limited) Error() string { return string(e) }

// Reason returns what a Refusal says.
func (e limited) Reason() api.ReasonType { return api.ReasonLimit }
