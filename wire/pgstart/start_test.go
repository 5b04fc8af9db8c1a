package pgstart

import (
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// golden is packets and their bytes.
func golden(t testing.TB) map[string]struct {
	bytes  []byte
	packet Packet
} {
	key := strings.Repeat("k", MaxKey)
	return map[string]struct {
		bytes  []byte
		packet Packet
	}{
		"SSLRequest":      {unhex(t, "00000008 04d2162f"), Packet{Kind: SSLRequest, Len: 8}},
		"GSSENCRequest":   {unhex(t, "00000008 04d21630"), Packet{Kind: GSSENCRequest, Len: 8}},
		"CancelRequest":   {unhex(t, "00000010 04d2162e 0000002a 01020304"), Packet{Kind: CancelRequest, Len: 16, Process: 42, Key: "\x01\x02\x03\x04"}},
		"a long key":      {append(unhex(t, "0000010c 04d2162e 0000002a"), key...), Packet{Kind: CancelRequest, Len: 268, Process: 42, Key: key}},
		"Startup":         {append(unhex(t, "0000001f 00030000"), "user\x00alice\x00database\x00x\x00\x00"...), Packet{Kind: Startup, Len: 31, Major: 3, Parameters: []Parameter{{"user", "alice"}, {"database", "x"}}}},
		"an empty value":  {append(unhex(t, "0000000c 00030002"), "a\x00\x00\x00"...), Packet{Kind: Startup, Len: 12, Major: 3, Minor: 2, Parameters: []Parameter{{"a", ""}}}},
		"nothing in it":   {unhex(t, "00000009 0003270f 00"), Packet{Kind: Startup, Len: 9, Major: 3, Minor: 9999}},
		"as long as goes": {append(unhex(t, "00002714 00030000"), "a\x00"+strings.Repeat("v", MaxPacket-12)+"\x00\x00"...), Packet{Kind: Startup, Len: MaxPacket, Major: 3, Parameters: []Parameter{{"a", strings.Repeat("v", MaxPacket-12)}}}},
	}
}

func TestGolden(t *testing.T) {
	for name, g := range golden(t) {
		t.Run(name, func(t *testing.T) {
			p, err := Parse(append(g.bytes, "behind"...))
			if err != nil || !reflect.DeepEqual(p, g.packet) {
				t.Errorf("%+v, %v", p, err)
			}
			for i := range g.bytes {
				if p, err := Parse(g.bytes[:i]); err != nil || p.Kind != Incomplete || p.Len != 0 {
					t.Fatalf("%d bytes of it are %+v, %v", i, p, err)
				}
			}
			if p.Kind == SSLRequest && string(AppendSSLRequest([]byte("before"))) != "before"+string(g.bytes) {
				t.Errorf("%x", AppendSSLRequest(nil))
			}
		})
	}
	if p, err := Parse([]byte{0x16}); err != nil || p.Kind != TLS || p.Len != 0 {
		t.Errorf("TLS is %+v, %v", p, err)
	}
}

func TestRefused(t *testing.T) {
	for name, test := range map[string]struct{ in, words string }{
		"HTTP":                     {hex.EncodeToString([]byte("G")), "not PostgreSQL"},
		"a length of 64 KiB":       {"0001", "not PostgreSQL"},
		"an SSLRequest too long":   {"00000009 04d2162f", "SSLRequest of 9 bytes"},
		"a length of zero":         {"00000000 04d2162f", "SSLRequest of 0 bytes"},
		"a GSSENCRequest too long": {"00000010 04d21630", "GSSENCRequest of 16 bytes"},
		"a cancel without key":     {"0000000c 04d2162e", "CancelRequest of 12 bytes"},
		"a key too long":           {"0000010d 04d2162e", "CancelRequest of 269 bytes"},
		"a startup too short":      {"00000008 00030000", "StartupMessage of 8 bytes"},
		"a startup too long":       {"00002715 00030000", "StartupMessage of 10005 bytes"},
		"version 2":                {"00000128 00020000", "version 2.0"},
		"version 4":                {"00000009 00040000", "version 4.0"},
		"another code":             {"00000008 04d21631", "version 1234.5681"},
		"no end":                   {"0000000c 00030000 61006200", "pairs of strings"},
		"half a pair":              {"0000000a 00030000 6100", "pairs of strings"},
		"a zero too much":          {"0000000e 00030000 610062000000", "pairs of strings"},
		"no zero":                  {"0000000a 00030000 6161", "pairs of strings"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse(unhex(t, test.in))
			if err == nil || !strings.Contains(err.Error(), test.words) || !reflect.DeepEqual(p, Packet{}) {
				t.Errorf("%+v, %v", p, err)
			}
			if errors.Is(err, ErrNotPostgres) != (test.words == "not PostgreSQL") {
				t.Errorf("%v is %v", err, ErrNotPostgres)
			}
		})
	}
}

// TestPSQL reads what a real client says.
func TestPSQL(t *testing.T) {
	psql, err := exec.LookPath("psql")
	if err != nil {
		t.Skip("psql is not installed")
	}
	for mode, kinds := range map[string][]Kind{
		"disable": {Startup},
		"prefer":  {SSLRequest, Startup},
		"require": {SSLRequest},
	} {
		t.Run(mode, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			_, port, _ := net.SplitHostPort(l.Addr().String())
			cmd := exec.CommandContext(t.Context(), psql, "-w", "host=127.0.0.1 user=alice dbname=orders gssencmode=disable sslmode="+mode+" port="+port)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			for _, want := range kinds {
				var b []byte
				var p Packet
				for p.Kind == Incomplete && err == nil {
					one := make([]byte, 1)
					if _, err := io.ReadFull(c, one); err != nil {
						t.Fatalf("%v after %x", err, b)
					}
					b = append(b, one...)
					p, err = Parse(b)
				}
				if err != nil || p.Kind != want || p.Len != len(b) {
					t.Fatalf("%x is %+v, %v", b, p, err)
				}
				if p.Kind == Startup && (!slices.Contains(p.Parameters, Parameter{"user", "alice"}) || !slices.Contains(p.Parameters, Parameter{"database", "orders"})) {
					t.Errorf("%+v", p)
				}
				c.Write([]byte{No})
			}
		})
	}
}

// FuzzStart shows that packets are read the same however they come, and within
// their bounds.
func FuzzStart(f *testing.F) {
	for _, g := range golden(f) {
		f.Add(g.bytes)
	}
	f.Add([]byte{0x16})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			if !reflect.DeepEqual(p, Packet{}) {
				t.Fatalf("%+v, %v", p, err)
			}
			return
		}
		switch p.Kind {
		case Incomplete:
			if len(b) >= MaxPacket {
				t.Fatalf("%d bytes are not enough", len(b))
			}
		case TLS:
			if b[0] != 0x16 {
				t.Fatalf("%x is TLS", b)
			}
		default:
			if p.Len < 8 || p.Len > len(b) {
				t.Fatalf("%+v of %d bytes", p, len(b))
			}
			for i := range p.Len {
				if q, err := Parse(b[:i]); err != nil || q.Kind != Incomplete {
					t.Fatalf("%d of %d bytes are %+v, %v", i, p.Len, q, err)
				}
			}
			if q, err := Parse(b[:p.Len]); err != nil || !reflect.DeepEqual(p, q) {
				t.Fatalf("%+v, then %+v, %v", p, q, err)
			}
		}
	})
}
