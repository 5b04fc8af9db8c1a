// Package kernel is WireGuard by the kernel: a network interface of type wireguard that
// does not belong to the machine, but to a network namespace of its own, in which there
// is nothing else.
//
// So whatever comes out of a tunnel is nowhere near the machine: there is no address, no
// route, no firewall and no program of it. Within the namespace the addresses of Services
// are its own, and the kernel's TCP answers at the ports that are listened at. WireGuard's
// own packets go by the machine's network, where the interface was made.
//
// What comes in is sorted by one list of tests ([taken]), of which both a table of nftables
// and a filter of packet sockets are made: what goes on in a TCP connection is the
// kernel's, and everything else is the owner's of the [Link]. He may give the beginning of
// a connection back, and so decides which there are.
//
// All of it is the process's: when that ends, in whatever way, the namespace is gone.
package kernel

import (
	"net/netip"
	"time"
)

// A Config is a Link as it is to be.
type Config struct {
	// Services are the prefixes whose addresses are those of the namespace, and Sessions
	// those of peers.
	Services, Sessions []netip.Prefix
	Port               int // UDP, at all addresses of the machine; 0 is any
	Key                [32]byte
	MTU                int // in bytes
}

// A Peer is what WireGuard knows of a peer.
type Peer struct {
	Key            [32]byte
	Endpoint       netip.AddrPort // zero if nothing has come
	Handshake      time.Time      // the last one; zero if there was none
	Received, Sent uint64         // bytes
}
