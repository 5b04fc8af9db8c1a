package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"cardea/wire/packet"
)

// An Echo answers datagrams that come to the port of WireGuard and are none of its: the
// kernel, whose port that is, drops them, but a raw socket has got them too.
type Echo struct {
	port uint16
	four *ipv4.PacketConn
	six  *ipv6.PacketConn // nil where there is no IPv6
}

// udpHeader is the size of the header of UDP.
const udpHeader = 8

// Echo returns what answers datagrams of a size that begin with kind (little endian).
func (l *Link) Echo(size int, kind uint32) (e *Echo, err error) {
	e = &Echo{port: uint16(l.port)}
	err = l.outside.do(func() error { return e.open(size, kind) })
	if err != nil {
		e.Close()
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	return e, nil
}

func (e *Echo) open(size int, kind uint32) error {
	wanted := func(at int, first ...test) ([]bpf.RawInstruction, error) {
		return filter([][]test{append(first,
			test{at: at + 2, size: 2, mask: 0xffff, value: uint32(e.port)},
			test{at: at + 4, size: 2, mask: 0xffff, value: uint32(udpHeader + size)},
			test{at: at + udpHeader, size: 4, mask: 0xffffffff, value: binary.BigEndian.Uint32(binary.LittleEndian.AppendUint32(nil, kind))},
		)}, false)
	}
	program, err := wanted(packet.IPv4Header, test{at: 0, size: 1, mask: 0xff, value: 0x45})
	if err != nil {
		return err
	}
	c, err := net.ListenPacket("ip4:udp", "0.0.0.0")
	if err != nil {
		return err
	}
	e.four = ipv4.NewPacketConn(c)
	if err := errors.Join(e.four.SetBPF(program), e.four.SetControlMessage(ipv4.FlagDst, true)); err != nil {
		return err
	}
	if program, err = wanted(0); err != nil {
		return err
	}
	if c, err = net.ListenPacket("ip6:udp", "::"); err != nil {
		return nil // no IPv6 here
	}
	e.six = ipv6.NewPacketConn(c)
	return errors.Join(e.six.SetBPF(program), e.six.SetControlMessage(ipv6.FlagDst, true))
}

// Run4 answers what comes by IPv4, until Close.
func (e *Echo) Run4(answer func([]byte) []byte) {
	b := make([]byte, 2048)
	for {
		n, c, from, err := e.four.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || c == nil {
			continue
		}
		if d := e.answer(b[:n], c.Dst, from, answer); d != nil {
			e.four.WriteTo(d[packet.IPv4Header:], &ipv4.ControlMessage{Src: c.Dst}, from)
		}
	}
}

// Run6 answers what comes by IPv6, until Close.
func (e *Echo) Run6(answer func([]byte) []byte) {
	if e.six == nil {
		return
	}
	b := make([]byte, 2048)
	for {
		n, c, from, err := e.six.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || c == nil {
			continue
		}
		if d := e.answer(b[:n], c.Dst, from, answer); d != nil {
			e.six.WriteTo(d[packet.IPv6Header:], &ipv6.ControlMessage{Src: c.Dst}, from)
		}
	}
}

// answer returns the packet that answers a datagram, nil if there is none.
func (e *Echo) answer(datagram []byte, at net.IP, from net.Addr, answer func([]byte) []byte) []byte {
	if len(datagram) < udpHeader {
		return nil
	}
	ip, ok := from.(*net.IPAddr)
	if !ok {
		return nil
	}
	client, ok := netip.AddrFromSlice(ip.IP)
	own, ok2 := netip.AddrFromSlice(at)
	a := answer(datagram[udpHeader:])
	if !ok || !ok2 || a == nil {
		return nil
	}
	return packet.AppendUDP(nil, netip.AddrPortFrom(own.Unmap(), e.port), netip.AddrPortFrom(client.Unmap(), binary.BigEndian.Uint16(datagram)), a)
}

// Close ends it.
func (e *Echo) Close() {
	if e.four != nil {
		e.four.Close()
	}
	if e.six != nil {
		e.six.Close()
	}
}
