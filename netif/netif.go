// Package netif makes the network interface of a private network: a TUN device
// with its addresses and routes. It works on Linux, by netlink, and needs
// CAP_NET_ADMIN; elsewhere everything is [errors.ErrUnsupported].
//
// An [Interface] belongs to the network namespace of the OS thread that calls
// [Open]: netlink sockets and /dev/net/tun belong to the namespace of the thread
// that opens them. Whoever wants another one locks the thread, enters it, and calls
// Open there; what was opened stays in its namespace, and its methods may be called
// from any goroutine.
//
// Nothing of it is persistent: when the process ends, in whatever way, the kernel
// removes the interface, its addresses and its routes.
package netif

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// MinMTU is the smallest MTU that IPv6 works with (RFC 8200, section 5), and what an
// interface gets that asks for none.
const MinMTU = 1280

// Config is an interface as it is to be.
type Config struct {
	// Name is that of the interface, of 1 to 15 bytes. If it ends in a number and is
	// taken, the next free number is.
	Name string
	// Addresses are its own addresses, each with the length of the network that is to
	// be reached through it: 32 and 128 for none but itself.
	Addresses []netip.Prefix
	// Routes are the networks that are to be reached through it.
	Routes []netip.Prefix
	// Local are networks all of whose addresses are to be this machine's own, when a
	// packet comes from this interface (AnyIP: a route of type local).
	Local []netip.Prefix
	// MTU is the largest packet, in bytes; 0 is [MinMTU].
	MTU int
}

// Gateway is the name of a gateway's interface.
const Gateway = "cardea-gw"

// ErrGateway says that what is in the way is the gateway of a cluster on this machine.
var ErrGateway = errors.New("a gateway is on this machine")

// Error says why there is no interface, in words for a person.
type Error struct {
	Message string // what is in the way
	Hint    string // the way out
	Err     error  // what the system said; may be nil
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// Unwrap returns what the system said.
func (e *Error) Unwrap() error { return e.Err }

// check reports what is wrong with the Config itself, and fills in what is not said.
func (c *Config) check() error {
	if n := len(c.Name); n == 0 || n > 15 || c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/:% \t\n\v\f\r") {
		return fmt.Errorf("%.40q is not the name of an interface: want 1 to 15 bytes without '/', ':', '%%' and space", c.Name)
	}
	if c.MTU == 0 {
		c.MTU = MinMTU
	}
	if c.MTU < MinMTU || c.MTU > 65535 {
		return fmt.Errorf("an MTU of %d bytes is not from %d to 65535", c.MTU, MinMTU)
	}
	for _, p := range c.ranges() {
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("%v is not an IP network", p)
		}
		if tooWide(p) {
			return fmt.Errorf("%v is too wide for a private network", p)
		}
	}
	return nil
}

// ranges returns all that the interface claims.
func (c *Config) ranges() []netip.Prefix {
	var all []netip.Prefix
	for _, ps := range [][]netip.Prefix{c.Routes, c.Local, c.Addresses} {
		for _, p := range ps {
			all = append(all, p.Masked())
		}
	}
	return all
}

// tooWide tells a default route, and the halves and quarters that others take in the
// place of one, from the route of a network. Nobody claims what these hold: longer
// routes are meant to win over them.
func tooWide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8
	}
	return p.Bits() < 16
}
