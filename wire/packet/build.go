package packet

import (
	"encoding/binary"
	"net/netip"
)

// hops is how many routers a packet may pass.
const hops = 64

// AppendUDP appends a UDP datagram as one IP packet, however large it is: see
// [Fragments]. Both addresses must be of one family, and data of a size that fits
// ([MaxUDP]).
func AppendUDP(b []byte, from, to netip.AddrPort, data []byte) []byte {
	size := UDPHeader + len(data)
	b = appendIP(b, from.Addr(), to.Addr(), UDP, size)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, 0, 0)
	b = append(b, data...)
	sum := ^fold(add(pseudo(from.Addr(), to.Addr(), UDP, size), b[at:]))
	if sum == 0 {
		sum = 0xffff // 0 says that there is none
	}
	binary.BigEndian.PutUint16(b[at+6:], sum)
	return b
}

// AppendReset appends the packet that says of a TCP packet that there is nobody at its
// destination (RFC 9293, 3.10.7.1). i is what Parse says of packet p. A reset is not
// answered: then nothing is appended.
func AppendReset(b, p []byte, i *Info) []byte {
	if i.Flags&RST != 0 {
		return b
	}
	h := p[i.Transport:]
	var seq, ack uint32
	flags := byte(RST)
	if i.Flags&ACK != 0 {
		seq = binary.BigEndian.Uint32(h[8:])
	} else {
		flags |= ACK
		ack = binary.BigEndian.Uint32(h[4:]) + uint32(len(p)-i.Data)
		if i.Flags&SYN != 0 {
			ack++
		}
		if i.Flags&FIN != 0 {
			ack++
		}
	}
	from, to := i.Destination, i.Source
	b = appendIP(b, from.Addr(), to.Addr(), TCP, TCPHeader)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, TCPHeader/4<<4, flags, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(b[at+16:], ^fold(add(pseudo(from.Addr(), to.Addr(), TCP, TCPHeader), b[at:])))
	return b
}

// AppendUnreachable appends the ICMP error that nobody is at the port to which the UDP
// datagram in p was sent. i is what Parse says of p.
func AppendUnreachable(b, p []byte, i *Info) []byte {
	from, to := i.Destination.Addr(), i.Source.Addr()
	quote := p[:min(len(p), i.Transport+UDPHeader)]
	protocol, kind, code := uint8(icmp4), byte(3), byte(3) // destination unreachable: port (RFC 792)
	if from.Is6() {
		protocol, kind, code = icmp6, 1, 4 // the same in RFC 4443
	}
	size := 8 + len(quote)
	b = appendIP(b, from, to, protocol, size)
	at := len(b)
	b = append(b, kind, code, 0, 0, 0, 0, 0, 0)
	b = append(b, quote...)
	sum := uint64(0)
	if from.Is6() {
		sum = pseudo(from, to, icmp6, size)
	}
	binary.BigEndian.PutUint16(b[at+2:], ^fold(add(sum, b[at:])))
	return b
}

// appendIP appends the header of an IP packet with so many bytes after it.
func appendIP(b []byte, from, to netip.Addr, protocol uint8, size int) []byte {
	at := len(b)
	if from.Is4() {
		b = append(b, 4<<4|IPv4Header/4, 0, 0, 0, 0, 0, 0, 0, hops, protocol, 0, 0)
		binary.BigEndian.PutUint16(b[at+2:], uint16(IPv4Header+size))
		f, t := from.As4(), to.As4()
		b = append(append(b, f[:]...), t[:]...)
		sum4(b[at:])
		return b
	}
	b = append(b, 6<<4, 0, 0, 0, 0, 0, protocol, hops)
	binary.BigEndian.PutUint16(b[at+4:], uint16(size))
	f, t := from.As16(), to.As16()
	return append(append(b, f[:]...), t[:]...)
}

// sum4 sets the checksum of an IPv4 header.
func sum4(b []byte) {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^fold(add(0, b[:IPv4Header])))
}

// Fragments calls yield with each of the packets, none larger than mtu, that together are
// the packet p: p itself if it is small enough. The id is what holds them together; it
// must not come again while the others may be under way. What yield gets is good until
// it returns.
func Fragments(p []byte, mtu int, id uint32, yield func([]byte)) {
	if len(p) <= mtu {
		yield(p)
		return
	}
	header, extra := IPv4Header, 0
	if p[0]>>4 == 6 {
		header, extra = IPv6Header, fragmentHeader
	}
	step := (mtu - header - extra) &^ 7
	out := make([]byte, 0, mtu)
	data := p[header:]
	for at := 0; at < len(data); at += step {
		piece := data[at:min(at+step, len(data))]
		more := at+step < len(data)
		out = append(out[:0], p[:header]...)
		if extra == 0 {
			flags := uint16(at / 8)
			if more {
				flags |= 0x2000
			}
			binary.BigEndian.PutUint16(out[2:], uint16(header+len(piece)))
			binary.BigEndian.PutUint16(out[4:], uint16(id))
			binary.BigEndian.PutUint16(out[6:], flags)
			sum4(out)
		} else {
			flags := uint16(at)
			if more {
				flags |= 1
			}
			binary.BigEndian.PutUint16(out[4:], uint16(extra+len(piece)))
			out = append(out, out[6], 0, byte(flags>>8), byte(flags))
			out = binary.BigEndian.AppendUint32(out, id)
			out[6] = fragmentNext
		}
		yield(append(out, piece...))
	}
}
