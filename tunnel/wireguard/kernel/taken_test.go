package kernel

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/net/bpf"

	"cardea/wire/packet"
)

// What the filter of the packet socket says of packets; TestGuest of tunnel/wireguard shows
// that nftables says the contrary of each.
func TestTaken(t *testing.T) {
	services := []netip.Prefix{netip.MustParsePrefix("100.64.0.0/12"), netip.MustParsePrefix("fd00:1:2::/64")}
	raw, err := filter(taken(services), true)
	if err != nil {
		t.Fatal(err)
	}
	program, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("the program does not come back")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort
	me4, me6 := addr("100.80.0.1:1000"), addr("[fd00:1:2:1::1]:1000")
	to4, to6 := addr("100.64.0.16:7"), addr("[fd00:1:2::10]:7")
	// As in the tests of the gateway: of a UDP datagram of the same size.
	tcpTo := func(from, to netip.AddrPort, flags byte) []byte {
		p := packet.AppendUDP(nil, from, to, make([]byte, 12))
		at := packet.IPv6Header
		if p[6] = tcp; from.Addr().Is4() {
			p[6], p[9], at = 0, tcp, packet.IPv4Header
		}
		p[at+12], p[at+13] = 5<<4, flags
		return p
	}
	with := func(p []byte, at int, b byte) []byte {
		p = slices.Clone(p)
		p[at] = b
		return p
	}
	const ack, rst, fin = 0x10, 0x04, 0x01
	for _, x := range []struct {
		name   string
		packet []byte
		owner  bool // of the Link gets it
	}{
		{"data", tcpTo(me4, to4, ack), false},
		{"data, IPv6", tcpTo(me6, to6, ack), false},
		{"a reset", tcpTo(me4, to4, rst), false},
		{"the end", tcpTo(me6, to6, fin|ack), false},
		{"the second packet of a connection, of who should not", tcpTo(me4, to4, syn|ack), false},
		{"the last address", tcpTo(me4, addr("100.79.255.255:7"), ack), false},
		{"must not be fragmented", with(tcpTo(me4, to4, ack), 6, 0x40), false},
		{"the beginning of a connection", tcpTo(me4, to4, syn), true},
		{"the beginning, IPv6", tcpTo(me6, to6, syn), true},
		{"the beginning, with another flag", tcpTo(me6, to6, syn|fin), true},
		{"to another client", tcpTo(me4, addr("100.80.0.2:7"), ack), true},
		{"to another client, IPv6", tcpTo(me6, addr("[fd00:1:2:1::2]:7"), ack), true},
		{"to the host", tcpTo(me4, addr("127.0.0.1:7"), ack), true},
		{"UDP", packet.AppendUDP(nil, me4, to4, []byte("hello, this is UDP")), true},
		{"UDP, IPv6", packet.AppendUDP(nil, me6, to6, []byte("hello, this is UDP")), true},
		{"the first fragment", with(tcpTo(me4, to4, ack), 6, 0x20), true},
		{"another fragment", with(tcpTo(me4, to4, ack), 7, 1), true},
		{"options", with(tcpTo(me4, to4, ack), 0, 0x46), true},
		{"an extension header", with(tcpTo(me6, to6, ack), 6, 43), true},
		{"no version", with(tcpTo(me4, to4, ack), 0, 0x55), true},
		{"too short", tcpTo(me4, to4, ack)[:33], true},
		{"too short, IPv6", tcpTo(me6, to6, ack)[:53], true},
	} {
		n, err := vm.Run(x.packet)
		if err != nil || (n > 0) != x.owner {
			t.Errorf("%s: %d, %v; want %v", x.name, n, err, x.owner)
		}
	}
}
