// Package packet reads and writes the headers of IP packets: IPv4 (RFC 791), IPv6
// (RFC 8200), TCP (RFC 9293), UDP (RFC 768) and ICMP errors (RFC 792, RFC 4443).
//
// It is for who lets strangers' packets in: Parse takes only what is plainly right, and
// names the reason for everything else. It neither allocates nor copies. Checksums of
// what comes in are the business of who takes the data.
package packet

import (
	"encoding/binary"
	"net/netip"
)

// Protocol numbers of IP (IANA, "Assigned Internet Protocol Numbers").
const (
	TCP = 6
	UDP = 17

	icmp4        = 1
	fragmentNext = 44 // the fragment header of IPv6
	icmp6        = 58
)

// Flags of TCP.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// Sizes of headers in bytes, without options.
const (
	IPv4Header     = 20
	IPv6Header     = 40
	TCPHeader      = 20
	UDPHeader      = 8
	fragmentHeader = 8
)

// MaxUDP is the size in bytes of the data of the largest UDP datagram over IPv4; that
// over IPv6 is 20 bytes larger, which nobody relies on.
const MaxUDP = 65535 - IPv4Header - UDPHeader

// A Fault is the reason for which a packet is not taken.
type Fault uint8

// The faults of a packet.
const (
	OK        Fault = iota
	Malformed       // a length that is not that of the packet, or a field that cannot be
	Options         // options of IPv4, or extension headers of IPv6
	Fragment        // a part of a packet; its Info is filled for a [Reassembler]
	Protocol        // neither TCP nor UDP
)

// String names the fault as counters do.
func (f Fault) String() string {
	switch f {
	case OK:
		return "ok"
	case Options:
		return "options"
	case Fragment:
		return "fragment"
	case Protocol:
		return "protocol"
	default:
		return "malformed"
	}
}

// Info is what the headers of a packet say.
type Info struct {
	Source, Destination netip.AddrPort // without ports in a fragment
	Protocol            uint8          // TCP or UDP
	Flags               uint8          // of TCP
	Transport           int            // where the header of TCP or UDP begins
	Data                int            // where the data begins

	part part // of a fragment
}

// part is where a fragment belongs.
type part struct {
	id     uint32
	offset int
	more   bool
}

// Parse reads the headers of a packet, of which b is the whole and nothing else. Without
// a fault all of Info is set; with Fragment the addresses, Protocol and Transport are.
func Parse(b []byte, i *Info) Fault {
	if len(b) < IPv4Header {
		return Malformed
	}
	var from, to netip.Addr
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&0x0f) * 4
		if header < IPv4Header || int(binary.BigEndian.Uint16(b[2:])) != len(b) || header > len(b) {
			return Malformed
		}
		if header > IPv4Header {
			return Options
		}
		from, to = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		i.Protocol, i.Transport = b[9], header
		flags := binary.BigEndian.Uint16(b[6:])
		if flags&0x8000 != 0 { // the reserved bit
			return Malformed
		}
		if flags&0x3fff != 0 {
			i.Source, i.Destination = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)
			i.part = part{id: uint32(binary.BigEndian.Uint16(b[4:])), offset: int(flags&0x1fff) * 8, more: flags&0x2000 != 0}
			return fragment(b, i)
		}
	case 6:
		if len(b) < IPv6Header || IPv6Header+int(binary.BigEndian.Uint16(b[4:])) != len(b) {
			return Malformed
		}
		from, to = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		if from.Is4In6() || to.Is4In6() {
			return Malformed // never on the wire (RFC 4291, 2.5.5.2); it would read as another family's
		}
		i.Protocol, i.Transport = b[6], IPv6Header
		switch i.Protocol {
		case fragmentNext:
			if len(b) < IPv6Header+fragmentHeader {
				return Malformed
			}
			h := b[IPv6Header:]
			flags := binary.BigEndian.Uint16(h[2:])
			i.Source, i.Destination = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)
			i.Protocol, i.Transport = h[0], IPv6Header+fragmentHeader
			i.part = part{id: binary.BigEndian.Uint32(h[4:]), offset: int(flags &^ 7), more: flags&1 != 0}
			return fragment(b, i)
		case 0, 43, 51, 60, 135, 139, 140: // hop by hop, routing, AH, destination, mobility, HIP, shim6
			return Options
		}
	default:
		return Malformed
	}
	h := b[i.Transport:]
	switch i.Protocol {
	case TCP:
		if len(h) < TCPHeader {
			return Malformed
		}
		size := int(h[12]>>4) * 4
		if size < TCPHeader || size > len(h) {
			return Malformed
		}
		i.Flags, i.Data = h[13], i.Transport+size
	case UDP:
		if len(h) < UDPHeader || int(binary.BigEndian.Uint16(h[4:])) != len(h) {
			return Malformed
		}
		i.Flags, i.Data = 0, i.Transport+UDPHeader
	default:
		return Protocol
	}
	i.Source = netip.AddrPortFrom(from, binary.BigEndian.Uint16(h))
	i.Destination = netip.AddrPortFrom(to, binary.BigEndian.Uint16(h[2:]))
	return OK
}

// fragment checks what must hold for every fragment. A packet of one part only is right
// (RFC 6946) and of no use.
func fragment(b []byte, i *Info) Fault {
	size := len(b) - i.Transport
	switch {
	case size == 0, i.part.more && size%8 != 0, i.part.offset+size > 65535:
		return Malformed
	case i.Protocol != TCP && i.Protocol != UDP:
		return Protocol
	}
	return Fragment
}

// SetSourcePort writes another port into the header of TCP or UDP that begins at
// transport, and keeps the checksum as right or wrong as it was (RFC 1624).
func SetSourcePort(b []byte, i *Info, port uint16) { setPort(b, i, i.Transport, port) }

// SetDestinationPort is as SetSourcePort.
func SetDestinationPort(b []byte, i *Info, port uint16) { setPort(b, i, i.Transport+2, port) }

func setPort(b []byte, i *Info, at int, port uint16) {
	sum := i.Transport + 16
	if i.Protocol == UDP {
		sum = i.Transport + 6
	}
	old := binary.BigEndian.Uint16(b[at:])
	binary.BigEndian.PutUint16(b[at:], port)
	was := binary.BigEndian.Uint16(b[sum:])
	if i.Protocol == UDP && was == 0 { // there is none
		return
	}
	// RFC 1624, equation 3: HC' = ~(~HC + ~m + m')
	n := uint32(^was) + uint32(^old) + uint32(port)
	n = n>>16 + n&0xffff
	n = n>>16 + n&0xffff
	binary.BigEndian.PutUint16(b[sum:], ^uint16(n))
}

// HasChecksum reports whether the checksum of TCP or UDP is right. That of UDP over IPv4
// may be left out.
func HasChecksum(b []byte, i *Info) bool {
	h := b[i.Transport:]
	if i.Protocol == UDP && binary.BigEndian.Uint16(h[6:]) == 0 {
		return i.Source.Addr().Is4()
	}
	return fold(add(pseudo(i.Source.Addr(), i.Destination.Addr(), i.Protocol, len(h)), h)) == 0xffff
}

// add adds bytes to a sum of 16-bit words (RFC 1071).
func add(sum uint64, b []byte) uint64 {
	for len(b) >= 4 {
		sum += uint64(binary.BigEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

// fold ends a sum.
func fold(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// pseudo is the sum of the pseudo header.
func pseudo(from, to netip.Addr, protocol uint8, size int) uint64 {
	sum := uint64(protocol) + uint64(size)
	if from.Is4() {
		f, t := from.As4(), to.As4()
		return add(add(sum, f[:]), t[:])
	}
	f, t := from.As16(), to.As16()
	return add(add(sum, f[:]), t[:])
}
