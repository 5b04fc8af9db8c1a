package proxy

import (
	"net"
	"net/netip"
	"sync"
)

// An endpoint is where an upstream is: the connections to it share one. nil is none.
type endpoint struct{ text string }

func newEndpoint(at netip.AddrPort) *endpoint { return &endpoint{at.String()} }

// String returns the address as text, "" for none.
func (e *endpoint) String() string {
	if e == nil {
		return ""
	}
	return e.text
}

// is reports whether it is at that address.
func (e *endpoint) is(at string) bool { return e != nil && e.text == at }

// maxEndpoints bounds how many are shared; they are kept until the process ends.
const maxEndpoints = 10_000

// endpoints are those that are shared.
type endpoints struct {
	mu sync.Mutex
	of map[netip.AddrPort]*endpoint
}

// at returns the endpoint at an address.
func (e *endpoints) at(a netip.AddrPort) *endpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.of[a]
	switch {
	case x != nil:
	case len(e.of) >= maxEndpoints:
		x = newEndpoint(a)
	case e.of == nil:
		e.of = map[netip.AddrPort]*endpoint{}
		fallthrough
	default:
		x = newEndpoint(a)
		e.of[a] = x
	}
	return x
}

// to returns the endpoint of an address of package net, nil for none.
func (e *endpoints) to(a net.Addr) *endpoint {
	var at netip.AddrPort
	switch a := a.(type) {
	case nil:
		return nil
	case *net.TCPAddr:
		at = a.AddrPort()
	case *net.UDPAddr:
		at = a.AddrPort()
	}
	if !at.IsValid() {
		return &endpoint{text: a.String()}
	}
	return e.at(netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
}
