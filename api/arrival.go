package api

import "net"

// An Arrival is a connection that came in, with all that is known of it: the
// one type in which every road ends, made once by the room that accepted.
//
// Beside net.Conn, Conn may have these methods, found by type assertion:
//
//	CloseWrite() error            half-close: the peer reads to the end of what was sent
//	Reset(reason string) error    abort: the peer sees a reset and never an end of file
//	Verdict(Verdict) error        tell the peer what became of its request, once, before any byte
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
	// Service is the one that was asked for, SERVICE.NAMESPACE, if that is known:
	// the port tells it.
	Service string
	Words   string // detail for the log
	// Record is the record of the refusal, if more is known than the rest says. It
	// may stand for several refusals of the same kind.
	Record *AccessLog
}
