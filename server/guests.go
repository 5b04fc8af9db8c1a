package server

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// oneShare is the part of all guests that may be of one address.
const oneShare = 4

// guests are the connections of an http.Server: at most so many, and of one
// address a part of those.
type guests struct {
	most int

	mu   sync.Mutex
	open map[net.Conn]netip.Addr
	from map[netip.Addr]int // how many of open
}

func newGuests(most int) *guests {
	return &guests{most: max(most, 1), open: map[net.Conn]netip.Addr{}, from: map[netip.Addr]int{}}
}

// enter counts a connection in, unless there are too many of its address or of
// all.
func (g *guests) enter(c net.Conn) bool {
	var from netip.Addr
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		from = a.AddrPort().Addr().Unmap()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.open) >= g.most || g.from[from] >= max(g.most/oneShare, 1) {
		return false
	}
	g.open[c] = from
	g.from[from]++
	return true
}

// leave counts a connection out.
func (g *guests) leave(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	from, ok := g.open[c]
	if !ok {
		return
	}
	delete(g.open, c)
	if g.from[from]--; g.from[from] == 0 {
		delete(g.from, from)
	}
}

// count returns how many there are.
func (g *guests) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.open)
}

// follow counts out the connections that an http.Server has done with: its
// ConnState.
func (g *guests) follow(c net.Conn, s http.ConnState) {
	if s == http.StateClosed || s == http.StateHijacked {
		g.leave(c)
	}
}

// A bounded is a listener whose connections are guests: more are closed at once.
type bounded struct {
	net.Listener
	guests *guests
}

// Accept implements net.Listener.
func (b bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil || b.guests.enter(c) {
			return c, err
		}
		c.Close()
	}
}
