package api

import (
	"net"
	"net/netip"
)

// An Arrival is a connection, or a flow of datagrams, that came in, with all that is known of it: the
// one type in which every road ends, made once by the room that accepted.
//
// Beside net.Conn, Conn may have these methods, found by type assertion:
//
//	CloseWrite() error            half-close: the peer reads to the end of what was sent
//	Reset(reason string) error    abort: the peer sees a reset and never an end of file
//	Verdict(Verdict) error        tell the peer what became of its request, once, before any byte
//	Datagram()                    it is a flow: each Read and Write is one datagram, as those of a *net.UDPConn
type Arrival struct {
	Conn    net.Conn
	Service string // SERVICE.NAMESPACE that is asked for; may not exist; "" for a foreign Object
	// Route is where the routing table sent the connection; nil if it came another way
	// than through a public port. With a Service it has no Config and no Limits, which
	// the decision brings; without one its Object is the foreign one that is asked for.
	// It is shared and must not be written to.
	Route    *Routed
	Evidence Evidence
	Facts    Facts
}

// A Refusal is an attempt that was not let in.
type Refusal struct {
	Facts  Facts
	Reason ReasonType
	// Object is what the connection was to, as far as that is known, and Route where it
	// came in. They are shared and must not be written to.
	Object *Ref
	Route  *LogRoute
	// Anonymous says that nobody who comes to Object is asked who he is.
	Anonymous bool
	Datagrams bool   // it came in datagrams
	Words     string // detail for the log
	// Record is the record of the refusal, if more is known than the rest says. It
	// may stand for several refusals of the same kind.
	Record *AccessLog
}

// Ref returns a reference to the Object of a key, of which no more is known. Foreign
// kinds are named in their first version.
func (k Key) Ref() *Ref {
	r := &Ref{APIVersion: k.Group, Kind: k.Kind, Namespace: k.Namespace, Name: k.Name}
	switch kind, known := KindIn(k.Group, k.Kind); {
	case k.Group == GroupCore, k.Group == "":
		r.APIVersion = Version
	case known && kind.IsForeign():
		r.APIVersion += "/" + kind.Versions[0]
	}
	return r
}

// SourceNetwork returns what those who come from an address are counted by before it is
// known who they are: the address if it is one of IPv4, and the /64 around it for IPv6,
// which is what one site is given at least (RFC 6177), so that any number of addresses in
// it costs nothing. Of no address it is the zero Prefix.
//
// An address of IPv4 is not widened to its /24: behind the neighbours there are other
// people, and whoever rents a whole /24 is met by the limits over all networks.
func SourceNetwork(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap()
	p, _ := ip.Prefix(min(ip.BitLen(), 64)) // cannot fail: it has as many bits
	return p
}
