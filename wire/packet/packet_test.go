package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	a4 = netip.MustParseAddrPort("100.80.0.1:4711")
	b4 = netip.MustParseAddrPort("100.64.0.16:53")
	a6 = netip.MustParseAddrPort("[fd00:1:2:1::1]:4711")
	b6 = netip.MustParseAddrPort("[fd00:1:2::10]:53")
)

// syn returns the first packet of a TCP connection, with data.
func syn(from, to netip.AddrPort, data string) []byte {
	b := appendIP(nil, from.Addr(), to.Addr(), TCP, TCPHeader+len(data))
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = append(b, 0, 0, 0x10, 0, 0, 0, 0, 0, 5<<4, SYN, 1, 0, 0, 0, 0, 0)
	b = append(b, data...)
	binary.BigEndian.PutUint16(b[at+16:], ^fold(add(pseudo(from.Addr(), to.Addr(), TCP, len(b)-at), b[at:])))
	return b
}

func TestParse(t *testing.T) {
	for _, x := range [][2]netip.AddrPort{{a4, b4}, {a6, b6}} {
		for protocol, p := range map[uint8][]byte{UDP: AppendUDP(nil, x[0], x[1], []byte("data")), TCP: syn(x[0], x[1], "data")} {
			var i Info
			if f := Parse(p, &i); f != OK || i.Source != x[0] || i.Destination != x[1] || i.Protocol != protocol || string(p[i.Data:]) != "data" {
				t.Errorf("%v, %+v", f, i)
			}
			if !HasChecksum(p, &i) {
				t.Errorf("the checksum of %x is wrong", p)
			}
			p[len(p)-1]++
			if HasChecksum(p, &i) {
				t.Errorf("the checksum of %x is right", p)
			}
		}
	}
}

func TestFaults(t *testing.T) {
	u4, u6, t4 := AppendUDP(nil, a4, b4, []byte("data")), AppendUDP(nil, a6, b6, []byte("data")), syn(a4, b4, "")
	with := func(p []byte, at int, values ...byte) []byte {
		p = slices.Clone(p)
		copy(p[at:], values)
		return p
	}
	options := func() []byte { // an IPv4 header of 24 bytes
		p := with(u4, 0, 4<<4|6)
		p = slices.Insert(p, 20, 1, 1, 1, 1)
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		return p
	}()
	for name, x := range map[string]struct {
		p    []byte
		want Fault
	}{
		"empty":                           {nil, Malformed},
		"a header that ends":              {u4[:19], Malformed},
		"an IPv6 header that ends":        {u6[:39], Malformed},
		"no version":                      {with(u4, 0, 5<<4|5), Malformed},
		"shorter than it says":            {u4[:len(u4)-1], Malformed},
		"longer than it says":             {append(slices.Clone(u4), 0), Malformed},
		"IPv6 shorter than it says":       {u6[:len(u6)-1], Malformed},
		"a header of 16 bytes":            {with(u4, 0, 4<<4|4), Malformed},
		"the reserved bit":                {with(u4, 6, 0x80), Malformed},
		"IPv4 within IPv6":                {with(u6, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff), Malformed},
		"options":                         {options, Options},
		"hop by hop":                      {with(u6, 6, 0), Options},
		"routing":                         {with(u6, 6, 43), Options},
		"destination options":             {with(u6, 6, 60), Options},
		"authentication header":           {with(u6, 6, 51), Options},
		"ICMP":                            {with(u4, 9, 1), Protocol},
		"ICMPv6":                          {with(u6, 6, 58), Protocol},
		"IP in IP":                        {with(u4, 9, 4), Protocol},
		"ESP":                             {with(u6, 6, 50), Protocol},
		"no next header":                  {with(u6, 6, 59), Protocol},
		"more fragments":                  {with(u4, 6, 0x20), Malformed}, // of 12 bytes, which is no multiple of 8
		"a later fragment":                {with(u4, 7, 1), Fragment},
		"a fragment beyond the end":       {with(u4, 6, 0x1f, 0xff), Malformed},
		"UDP that is longer than it says": {with(u4, 24, 0, 11), Malformed},
		"a TCP header of 16 bytes":        {with(t4, 32, 4<<4), Malformed},
		"a TCP header that does not fit":  {with(t4, 32, 6<<4), Malformed},
		"TCP in UDP's size":               {with(u4, 9, TCP), Malformed},
	} {
		var i Info
		if got := Parse(x.p, &i); got != x.want {
			t.Errorf("%s: %v, want %v", name, got, x.want)
		}
	}
}

func TestPorts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := [][2]netip.AddrPort{{a4, b4}, {a6, b6}}[rapid.IntRange(0, 1).Draw(t, "family")]
		data := rapid.StringN(-1, -1, 50).Draw(t, "data")
		p := syn(x[0], x[1], data)
		if rapid.Bool().Draw(t, "UDP") {
			p = AppendUDP(nil, x[0], x[1], []byte(data))
		}
		var i Info
		Parse(p, &i)
		from, to := rapid.Uint16().Draw(t, "from"), rapid.Uint16().Draw(t, "to")
		SetSourcePort(p, &i, from)
		SetDestinationPort(p, &i, to)
		if f := Parse(p, &i); f != OK || i.Source.Port() != from || i.Destination.Port() != to || string(p[i.Data:]) != data {
			t.Fatalf("%v, %+v", f, i)
		}
		if !HasChecksum(p, &i) {
			t.Fatal("the checksum is wrong")
		}
	})
}

func TestAppendReset(t *testing.T) {
	for _, x := range [][2]netip.AddrPort{{a4, b4}, {a6, b6}} {
		p := syn(x[0], x[1], "xy")
		var i, r Info
		Parse(p, &i)
		b := AppendReset(nil, p, &i)
		if f := Parse(b, &r); f != OK || r.Source != x[1] || r.Destination != x[0] || r.Flags != RST|ACK || !HasChecksum(b, &r) {
			t.Errorf("%v, %+v", f, r)
		}
		if ack := binary.BigEndian.Uint32(b[r.Transport+8:]); ack != 0x1003 {
			t.Errorf("acknowledges %x", ack)
		}
		if again := AppendReset(nil, b, &r); again != nil {
			t.Errorf("a reset is answered with %x", again)
		}
	}
}

func TestAppendUnreachable(t *testing.T) {
	for _, x := range [][2]netip.AddrPort{{a4, b4}, {a6, b6}} {
		p := AppendUDP(nil, x[0], x[1], bytes.Repeat([]byte("x"), 2000))
		var i, r Info
		Parse(p, &i)
		b := AppendUnreachable(nil, p, &i)
		if f := Parse(b, &r); f != Protocol || !bytes.HasSuffix(b, p[:i.Data]) || len(b) > 100 {
			t.Errorf("%v: %x", f, b)
		}
	}
}

// TestFragments takes datagrams apart, and puts the parts together in any order, with
// those of others in between.
func TestFragments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pieces, want [][]byte
		for id := range rapid.IntRange(1, 3).Draw(t, "datagrams") {
			x := [][2]netip.AddrPort{{a4, b4}, {a6, b6}}[rapid.IntRange(0, 1).Draw(t, "family")]
			data := make([]byte, rapid.IntRange(0, 9000).Draw(t, "size"))
			rand.NewChaCha8([32]byte{byte(id)}).Read(data)
			p := AppendUDP(nil, x[0], x[1], data)
			mtu := rapid.IntRange(1280, 1500).Draw(t, "mtu")
			var i Info
			if Parse(p, &i); len(p) > mtu {
				want = append(want, data)
			}
			Fragments(p, mtu, uint32(id), func(part []byte) {
				switch f := Parse(part, &i); {
				case len(part) > mtu:
					t.Fatalf("a part has %d bytes", len(part))
				case len(p) <= mtu && f == OK && bytes.Equal(part, p):
				case len(p) > mtu && f == Fragment:
					pieces = append(pieces, slices.Clone(part))
				default:
					t.Fatalf("a part is %v", f)
				}
			})
		}
		order := rapid.Permutation(pieces).Draw(t, "order")
		r := Reassembler{Most: 1 << 20, Within: time.Second}
		var got [][]byte
		for _, p := range order {
			var i Info
			Parse(p, &i)
			if whole := r.Add(p, &i, time.Unix(0, 0)); whole != nil {
				if f := Parse(whole, &i); f != OK || !HasChecksum(whole, &i) {
					t.Fatalf("the whole is %v", f)
				}
				got = append(got, slices.Clone(whole[i.Data:]))
			}
		}
		slices.SortFunc(got, bytes.Compare)
		slices.SortFunc(want, bytes.Compare)
		if !slices.EqualFunc(got, want, bytes.Equal) || r.bytes != 0 || len(r.held) != 0 || r.Dropped() != 0 {
			t.Fatalf("%d of %d; %d bytes are left", len(got), len(want), r.bytes)
		}
	})
}

// parts returns the fragments of a datagram.
func partsOf(id uint32, size int) (all [][]byte) {
	Fragments(AppendUDP(nil, a4, b4, make([]byte, size)), 1280, id, func(p []byte) { all = append(all, slices.Clone(p)) })
	return all
}

func TestReassemblerBounds(t *testing.T) {
	now := time.Unix(0, 0)
	r := Reassembler{Most: 100_000, Within: time.Second}
	put := func(p []byte) []byte {
		var i Info
		if f := Parse(p, &i); f != Fragment {
			t.Fatal(f)
		}
		return r.Add(p, &i, now)
	}
	// Memory.
	for id := range uint32(10_000) {
		put(partsOf(id, 3000)[1])
		if r.bytes > r.Most {
			t.Fatalf("%d bytes are held", r.bytes)
		}
	}
	if r.Dropped() == 0 || len(r.held) == 0 {
		t.Error("nothing gave way")
	}
	// Time.
	now = now.Add(time.Second)
	last := partsOf(1, 2000)
	put(last[0])
	if len(r.held) != 1 {
		t.Errorf("%d are held", len(r.held))
	}
	now = now.Add(time.Second)
	if put(last[1]) != nil {
		t.Error("put together from parts that came too late")
	}
	// Time, when nothing comes any more.
	put(partsOf(2, 2000)[0])
	r.Dropped()
	r.Expire(now.Add(time.Second))
	if r.Dropped() == 0 || len(r.held) != 0 || r.bytes != 0 {
		t.Errorf("%d are held, of %d bytes", len(r.held), r.bytes)
	}
	// Overlap: the datagram is given up, and stays so.
	now = now.Add(time.Second)
	all := partsOf(7, 5000)
	put(all[0])
	r.Dropped()
	overlap := slices.Clone(all[1])
	binary.BigEndian.PutUint16(overlap[6:], binary.BigEndian.Uint16(overlap[6:])-1)
	put(overlap)
	for _, p := range all {
		if put(p) != nil {
			t.Error("put together from parts that overlap")
		}
	}
	if r.Dropped() != 1 {
		t.Error("not counted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(AppendUDP(nil, a4, b4, []byte("data")))
	f.Add(AppendUDP(nil, a6, b6, []byte("data")))
	f.Add(syn(a4, b4, "data"))
	f.Add(partsOf(1, 2000)[1])
	Fragments(AppendUDP(nil, a6, b6, make([]byte, 2000)), 1280, 1, func(p []byte) { f.Add(slices.Clone(p)) })
	f.Fuzz(func(t *testing.T, p []byte) {
		var i Info
		switch Parse(p, &i) {
		case OK:
			if i.Data > len(p) || i.Transport >= i.Data {
				t.Fatalf("%+v of %d bytes", i, len(p))
			}
			good := HasChecksum(p, &i)
			was := slices.Clone(p)
			if i.Protocol == TCP {
				AppendReset(nil, p, &i)
				SetDestinationPort(p, &i, 80)
			} else {
				AppendUnreachable(nil, p, &i)
			}
			if good && !HasChecksum(p, &i) {
				t.Fatalf("%x was right and %x is not", was, p)
			}
		case Fragment:
			r := Reassembler{Most: 1 << 20, Within: time.Second}
			for range 3 {
				if w := r.Add(p, &i, time.Unix(0, 0)); w != nil {
					var whole Info
					Parse(w, &whole)
				}
			}
		}
	})
}

// FuzzReassembler gives it parts with any offsets, and looks at the bounds.
func FuzzReassembler(f *testing.F) {
	f.Add([]byte{0, 0, 8, 1, 0, 1, 8, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		r := Reassembler{Most: 4096, Within: time.Second}
		for len(script) >= 4 {
			more, size := script[0]&1 != 0, int(script[2])
			offset := int(script[1]) * 8
			if more {
				size &^= 7
			}
			i := Info{Source: netip.AddrPortFrom(a4.Addr(), 0), Destination: netip.AddrPortFrom(b4.Addr(), 0), Protocol: UDP, Transport: 20,
				part: part{id: uint32(script[3] & 3), offset: offset, more: more}}
			p := make([]byte, 20+max(size, 1))
			if w := r.Add(p, &i, time.Unix(int64(script[0]>>4), 0)); w != nil {
				Parse(w, &i)
			}
			if r.bytes < 0 || r.bytes > r.Most {
				t.Fatalf("%d bytes are held", r.bytes)
			}
			script = script[4:]
		}
	})
}

func BenchmarkParse(b *testing.B) {
	p := syn(a4, b4, "data")
	var i Info
	for b.Loop() {
		Parse(p, &i)
		SetDestinationPort(p, &i, 80)
	}
}
