package kernel

import (
	"encoding/binary"
	"math"
	"net/netip"

	"golang.org/x/net/bpf"
)

// A test is of some bytes of a packet, from its beginning: those under the mask are the
// value, or with differs are not.
type test struct {
	at, size    int // 1, 2 or 4 bytes
	mask, value uint32
	differs     bool
}

// Offsets and values of RFC 791, RFC 8200 and RFC 9293.
const (
	tcp       = 6
	synAck    = 0x12
	syn       = 0x02
	flags4    = 20 + 13
	flags6    = 40 + 13
	fragments = 0x3fff // more fragments, and the offset
)

// taken are the packets that the kernel takes from peers: those of a TCP connection to an
// address of the prefixes, but not the first one, and without options, extension headers,
// or fragments. One of the lists must pass whole.
func taken(prefixes []netip.Prefix) (all [][]test) {
	for _, p := range prefixes {
		if p.Addr().Is4() {
			all = append(all, append([]test{
				{at: 0, size: 1, mask: 0xff, value: 0x45},
				{at: 6, size: 2, mask: fragments},
				{at: 9, size: 1, mask: 0xff, value: tcp},
				{at: flags4, size: 1, mask: synAck, value: syn, differs: true},
			}, within(p, 16)...))
			continue
		}
		all = append(all, append([]test{
			{at: 0, size: 1, mask: 0xf0, value: 0x60},
			{at: 6, size: 1, mask: 0xff, value: tcp},
			{at: flags6, size: 1, mask: synAck, value: syn, differs: true},
		}, within(p, 24)...))
	}
	return all
}

// within tests whether the address at an offset is in a prefix.
func within(p netip.Prefix, at int) (tests []test) {
	address := p.Masked().Addr().AsSlice()
	for i := 0; i < p.Bits(); i += 32 {
		mask := uint32(math.MaxUint32)
		if rest := p.Bits() - i; rest < 32 {
			mask <<= 32 - rest
		}
		tests = append(tests, test{at: at + i/8, size: 4, mask: mask, value: binary.BigEndian.Uint32(address[i/8:])})
	}
	return tests
}

// filter returns what a socket has to have so that it gets the packets of one of the lists
// and, with others, so that it gets all but these. A packet that is shorter than a test
// asks for passes none.
func filter(lists [][]test, others bool) ([]bpf.RawInstruction, error) {
	match, rest := bpf.RetConstant{Val: math.MaxUint32}, bpf.RetConstant{}
	if others {
		match, rest = rest, match
	}
	var program []bpf.Instruction
	for _, tests := range lists {
		size := 0
		for _, t := range tests {
			size = max(size, t.at+t.size)
		}
		steps := 3*len(tests) + 1 // to the end of this list, from behind the first jump
		program = append(program, bpf.LoadExtension{Num: bpf.ExtLen},
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(size), SkipTrue: uint8(steps)})
		for _, t := range tests {
			steps -= 3
			jump := bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: t.value, SkipTrue: uint8(steps)}
			if t.differs {
				jump.Cond = bpf.JumpEqual
			}
			program = append(program, bpf.LoadAbsolute{Off: uint32(t.at), Size: t.size}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: t.mask}, jump)
		}
		program = append(program, match)
	}
	return bpf.Assemble(append(program, rest))
}
