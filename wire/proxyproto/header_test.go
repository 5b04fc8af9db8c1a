package proxyproto

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const sigHex = "0d0a0d0a000d0a515549540a "

// golden is headers and their bytes.
func golden(t testing.TB) map[string]struct {
	header Header
	bytes  []byte
} {
	ap := netip.MustParseAddrPort
	return map[string]struct {
		header Header
		bytes  []byte
	}{
		"v1 TCP4": {Header{Version: 1, Source: ap("192.0.2.1:56324"), Destination: ap("198.51.100.7:443")},
			[]byte("PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n")},
		"v1 TCP6": {Header{Version: 1, Source: ap("[2001:db8::1]:1"), Destination: ap("[2001:db8::2]:65535")},
			[]byte("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n")},
		"v1 mixed": {Header{Version: 1, Source: ap("192.0.2.1:1"), Destination: ap("[2001:db8::2]:2")},
			[]byte("PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n")},
		"v1 unknown": {Header{Version: 1}, []byte("PROXY UNKNOWN\r\n")},
		"v2 local":   {Header{Version: 2, Local: true}, unhex(t, sigHex+"20 00 0000")},
		"v2 unspec":  {Header{Version: 2}, unhex(t, sigHex+"21 00 0000")},
		"v2 TCP4": {Header{Version: 2, Source: ap("192.0.2.1:56324"), Destination: ap("198.51.100.7:443")},
			unhex(t, sigHex+"21 11 000c c0000201 c6336407 dc04 01bb")},
		"v2 UDP6": {Header{Version: 2, Datagram: true, Source: ap("[2001:db8::1]:1"), Destination: ap("[2001:db8::2]:2")},
			unhex(t, sigHex+"21 22 0024 20010db8000000000000000000000001 20010db8000000000000000000000002 0001 0002")},
		"v2 Unix": {Header{Version: 2, Unix: true, SourcePath: "\x00abstract", DestinationPath: "/run/x"},
			unhex(t, sigHex+"21 31 00d8 006162737472616374"+strings.Repeat("00", 99)+"2f72756e2f78"+strings.Repeat("00", 102))},
		"v2 TLVs": {Header{
			Version: 2, Source: ap("192.0.2.1:1"), Destination: ap("192.0.2.2:2"),
			ALPN: "h2", Authority: "a.example", UniqueID: "\x00\xff", Namespace: "ns", Checksum: true,
			SSL:  &SSL{TLS: true, CertificateNow: true, Verified: true, Version: "TLSv1.3", CommonName: "alice", TLVs: []TLV{{0x2f, "?"}}},
			TLVs: []TLV{{0xe0, "mine"}, {0xe0, ""}},
		}, unhex(t, sigHex+"21 11 0056 c0000201 c0000202 0001 0002"+
			"01 0002 6832  02 0009 612e6578616d706c65  05 0002 00ff"+
			"20 001b 03 00000000 21 0007 544c5376312e33 22 0005 616c696365 2f 0001 3f"+
			"30 0002 6e73  e0 0004 6d696e65  e0 0000  03 0004 9a7e7c9d")},
	}
}

func TestGolden(t *testing.T) {
	for name, g := range golden(t) {
		t.Run(name, func(t *testing.T) {
			b, err := g.header.Append([]byte("before"))
			if want := "before" + string(g.bytes); err != nil || string(b) != want {
				t.Errorf("%v\n%x, want\n%x", err, b, want)
			}
			h, n, err := Parse(append(g.bytes, "behind"...))
			if err != nil || n != len(g.bytes) || !reflect.DeepEqual(*h, g.header) {
				t.Fatalf("%d, %v, %+v", n, err, h)
			}
			for i := range g.bytes {
				if h, n, err := Parse(g.bytes[:i]); h != nil || n != 0 || err != nil {
					t.Fatalf("%d of %d bytes are %+v, %d, %v", i, len(g.bytes), h, n, err)
				}
			}
		})
	}
}

func TestTaken(t *testing.T) {
	for name, test := range map[string]struct {
		in   []byte
		want Header
	}{
		"v1 unknown with a rest": {[]byte("PROXY UNKNOWN ffff::1 what ever\r\n"), Header{Version: 1}},
		"v1 mapped": {[]byte("PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 2\r\n"), Header{Version: 1,
			Source: netip.MustParseAddrPort("192.0.2.1:1"), Destination: netip.MustParseAddrPort("192.0.2.2:2")}},
		"v1 of 107 bytes": {[]byte("PROXY UNKNOWN" + strings.Repeat(" ", 92) + "\r\n"), Header{Version: 1}},
		"v1 of nginx, which heard of the source": {[]byte("PROXY TCP6 2001:db8::1 127.0.0.1 1 2\r\n"), Header{Version: 1,
			Source: netip.MustParseAddrPort("[2001:db8::1]:1"), Destination: netip.MustParseAddrPort("127.0.0.1:2")}},
		"local with a rest":    {unhex(t, sigHex+"20 77 0003 ffffff"), Header{Version: 2, Local: true}},
		"padding":              {unhex(t, sigHex+"21 00 0008 04 0002 0000 04 0000"), Header{Version: 2}},
		"TLS, not verified":    {unhex(t, sigHex+"21 00 0008 20 0005 03 00000007"), Header{Version: 2, SSL: &SSL{TLS: true, CertificateNow: true}}},
		"no certificate":       {unhex(t, sigHex+"21 00 0008 20 0005 01 00000000"), Header{Version: 2, SSL: &SSL{TLS: true}}},
		"certificate of old":   {unhex(t, sigHex+"21 00 0008 20 0005 05 00000000"), Header{Version: 2, SSL: &SSL{TLS: true, CertificateSession: true, Verified: true}}},
		"others may be twice":  {unhex(t, sigHex+"21 00 0006 21 0000 21 0000"), Header{Version: 2, TLVs: []TLV{{0x21, ""}, {0x21, ""}}}},
		"as long as may be":    {unhex(t, sigHex+"21 00 0ff0 ee 0fed "+strings.Repeat("00", 0xfed)), Header{Version: 2, TLVs: []TLV{{0xee, strings.Repeat("\x00", 0xfed)}}}},
		"an empty SSL version": {unhex(t, sigHex+"21 00 000b 20 0008 01 00000000 21 0000"), Header{Version: 2, SSL: &SSL{TLS: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			h, n, err := Parse(test.in)
			if err != nil || n != len(test.in) || !reflect.DeepEqual(*h, test.want) {
				t.Errorf("%d, %v, %+v", n, err, h)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	v2 := func(s string) string { return string(unhex(t, sigHex+s)) }
	for name, test := range map[string]struct{ in, words string }{
		"HTTP":                       {"GET / HTTP/1.1\r\n", "no PROXY header"},
		"an HTTP method beside it":   {"PROPFIND", "no PROXY header"},
		"TLS":                        {"\x16\x03\x01", "no PROXY header"},
		"a blank line":               {"\r\n\r\n\x00\r\nQUIT\r", "no PROXY header"},
		"v1 in small letters":        {"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "no PROXY header"},
		"v1 without end":             {"PROXY TCP4" + strings.Repeat(" ", 97), "107"},
		"v1 without end, but later":  {"PROXY UNKNOWN" + strings.Repeat(" ", 93) + "\r\n", "107"},
		"v1 without CR":              {"PROXY UNKNOWN\n", "without CR"},
		"v1 of UDP":                  {"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n", "neither TCP4"},
		"v1 without family":          {"PROXY \r\n", "neither TCP4"},
		"v1 with a field too little": {"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "fields"},
		"v1 with a field too many":   {"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", "fields"},
		"v1 with two spaces":         {"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", "fields"},
		"v1 of the wrong family":     {"PROXY TCP4 ::1 ::1 1 2\r\n", "address"},
		"v1 of the other family":     {"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "address"},
		"v1 with leading zeros":      {"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n", "address"},
		"v1 with a zone":             {"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "address"},
		"v1 with a name":             {"PROXY TCP4 localhost 1.2.3.4 1 2\r\n", "address"},
		"v1 with a port too high":    {"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", "port"},
		"v1 with a sign":             {"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", "port"},
		"v1 with a port 01":          {"PROXY TCP4 1.2.3.4 1.2.3.4 1 01\r\n", "port"},
		"v3":                         {v2("31"), "version and command 0x31"},
		"another command":            {v2("22"), "version and command 0x22"},
		"another family":             {v2("21 41 0000"), "family and protocol 0x41"},
		"a family without protocol":  {v2("21 10 0000"), "family and protocol 0x10"},
		"a protocol without family":  {v2("21 01 0000"), "family and protocol 0x01"},
		"too long":                   {v2("21 11 0ff1"), "4097 bytes"},
		"too long, local":            {v2("20 00 ffff"), "65551 bytes"},
		"too short for IPv4":         {v2("21 11 000b"), "length of 11"},
		"too short for IPv6":         {v2("21 21 0023"), "length of 35"},
		"too short for Unix":         {v2("21 31 00d7"), "length of 215"},
		"a TLV cut short":            {v2("21 00 0002 e0 00"), "cut short"},
		"a TLV that is too long":     {v2("21 00 0004 e0 0002 00"), "longer"},
		"two authorities":            {v2("21 00 0008 02 0001 61 02 0001 62"), "twice"},
		"two empty ALPNs":            {v2("21 00 0006 01 0000 01 0000"), "twice"},
		"a wrong checksum":           {v2("21 00 0007 03 0004 00000000"), "CRC32C is wrong"},
		"half a checksum":            {v2("21 00 0005 03 0002 0000"), "CRC32C of 2"},
		"an id too long":             {v2("21 00 0084 05 0081 " + strings.Repeat("00", 129)), "UNIQUE_ID of 129"},
		"an authority in Latin 1":    {v2("21 00 0004 02 0001 e9"), "AUTHORITY"},
		"an authority too long":      {v2("21 00 0103 02 0100 " + strings.Repeat("61", 256)), "AUTHORITY"},
		"half an SSL":                {v2("21 00 0007 20 0004 01000000"), "SSL of 4"},
		"SSL longer than it is":      {v2("21 00 000b 20 0008 01 00000000 21 0001"), "longer"},
		"two common names":           {v2("21 00 000e 20 000b 01 00000000 22 0000 22 0000"), "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			h, n, err := Parse([]byte(test.in))
			if h != nil || n != 0 || err == nil || !strings.Contains(err.Error(), test.words) {
				t.Errorf("%+v, %d, %v", h, n, err)
			}
			if errors.Is(err, ErrNoHeader) != (test.words == "no PROXY header") {
				t.Errorf("%v is %v", err, ErrNoHeader)
			}
		})
	}
}

func TestCannotBeWritten(t *testing.T) {
	for name, h := range map[string]Header{
		"version 3":           {Version: 3},
		"too long":            {Version: 2, TLVs: []TLV{{0xe0, strings.Repeat("x", MaxV2)}}},
		"a TLV of 64 KiB":     {Version: 2, TLVs: []TLV{{0xe0, strings.Repeat("x", 1<<16)}}},
		"a TLV with a field":  {Version: 2, TLVs: []TLV{{0x02, "x"}}},
		"padding":             {Version: 2, TLVs: []TLV{{0x04, "x"}}},
		"an SSL with a field": {Version: 2, SSL: &SSL{TLVs: []TLV{{0x22, "x"}}}},
		"an id too long":      {Version: 2, UniqueID: strings.Repeat("x", 129)},
		"an authority":        {Version: 2, Authority: "\xff"},
		"a common name":       {Version: 2, SSL: &SSL{CommonName: "\xff"}},
		"a path":              {Version: 2, Unix: true, SourcePath: strings.Repeat("x", 109)},
	} {
		if b, err := h.Append([]byte("before")); err == nil || string(b) != "before" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// headers draws Headers that can be written, in the form in which they are read.
func headers() *rapid.Generator[Header] {
	text := rapid.StringN(0, 20, 80)
	bytes := rapid.Custom(func(t *rapid.T) string { return string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes")) })
	address := rapid.Custom(func(t *rapid.T) netip.Addr {
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")
		if rapid.Bool().Draw(t, "IPv4") {
			b = b[:4]
		}
		a, _ := netip.AddrFromSlice(b)
		return a.Unmap()
	})
	tlvs := func(t *rapid.T, fixed func(byte) bool) (all []TLV) {
		for range rapid.IntRange(0, 3).Draw(t, "TLVs") {
			all = append(all, TLV{rapid.Byte().Filter(func(k byte) bool { return !fixed(k) }).Draw(t, "type"), bytes.Draw(t, "value")})
		}
		return all
	}
	return rapid.Custom(func(t *rapid.T) Header {
		h := Header{Version: rapid.IntRange(1, 2).Draw(t, "version")}
		if h.Version == 2 && rapid.IntRange(0, 9).Draw(t, "local") == 0 {
			h.Local = true
			return h
		}
		kind := rapid.IntRange(0, 2).Draw(t, "family")
		if kind == 1 {
			h.Source = netip.AddrPortFrom(address.Draw(t, "source"), rapid.Uint16().Draw(t, "port"))
			h.Destination = netip.AddrPortFrom(address.Draw(t, "destination"), rapid.Uint16().Draw(t, "port"))
		}
		if h.Version == 1 {
			return h
		}
		if kind == 2 {
			h.Unix = true
			h.SourcePath = strings.TrimRight(bytes.Draw(t, "source path"), "\x00")
			h.DestinationPath = strings.TrimRight(bytes.Draw(t, "destination path"), "\x00")
		}
		h.Datagram = kind > 0 && rapid.Bool().Draw(t, "datagram")
		h.ALPN, h.Authority, h.Namespace = bytes.Draw(t, "ALPN"), text.Draw(t, "authority"), text.Draw(t, "namespace")
		h.UniqueID, h.Checksum = bytes.Draw(t, "id"), rapid.Bool().Draw(t, "checksum")
		h.TLVs = tlvs(t, func(k byte) bool { return k == tlvNoop || hasField(k) })
		if rapid.Bool().Draw(t, "SSL") {
			s := &SSL{TLS: rapid.Bool().Draw(t, "TLS"), CertificateNow: rapid.Bool().Draw(t, "now"), CertificateSession: rapid.Bool().Draw(t, "session")}
			s.Verified = (s.CertificateNow || s.CertificateSession) && rapid.Bool().Draw(t, "verified")
			for kind := byte(sslVersion); kind < sslClientCert; kind++ {
				*s.field(kind) = text.Draw(t, "text")
			}
			s.ClientCert, s.TLVs = bytes.Draw(t, "certificate"), tlvs(t, s.hasField)
			h.SSL = s
		}
		return h
	})
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := headers().Draw(t, "header")
		b, err := h.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, n, err := Parse(append(b, rapid.SliceOf(rapid.Byte()).Draw(t, "behind")...))
		if err != nil || n != len(b) || !reflect.DeepEqual(*got, h) {
			t.Fatalf("%d of %d, %v\n%+v\n%+v", n, len(b), err, got, h)
		}
	})
}

// TestChecksum shows that it covers every byte of the header.
func TestChecksum(t *testing.T) {
	good := golden(t)["v2 TLVs"].bytes
	for i := range good {
		b := append([]byte(nil), good...)
		b[i] ^= 0x10
		if h, _, err := Parse(b); err == nil && h != nil && !h.Local && h.Checksum {
			t.Errorf("byte %d is another, and nobody sees it: %+v", i, h)
		}
	}
}

// FuzzProxy shows that a header is read the same however it comes, within its
// bounds, and that what was read can be written and read again.
func FuzzProxy(f *testing.F) {
	for _, g := range golden(f) {
		f.Add(g.bytes)
	}
	f.Add([]byte("PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		switch {
		case err != nil && (h != nil || n != 0), h == nil && n != 0, n > len(b), n > MaxV2:
			t.Fatalf("%+v, %d, %v", h, n, err)
		case h == nil && err == nil && len(b) >= MaxV2:
			t.Fatalf("%d bytes are not enough", len(b))
		case err == nil:
			for i := range n {
				if h, _, err := Parse(b[:i]); h != nil || err != nil {
					t.Fatalf("%d of %d bytes are %+v, %v", i, n, h, err)
				}
			}
		}
		if h == nil {
			return
		}
		if !utf8.ValidString(h.Authority) || len(h.UniqueID) > MaxID || h.Source.IsValid() != h.Destination.IsValid() {
			t.Fatalf("%+v", h)
		}
		again, err := h.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if h2, n, err := Parse(again); err != nil || n != len(again) || !reflect.DeepEqual(h, h2) {
			t.Fatalf("%v: %+v becomes %+v", err, h, h2)
		}
	})
}
