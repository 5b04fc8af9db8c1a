package frame

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func mustOpen(t testing.TB, o Open) []byte {
	t.Helper()
	b, err := AppendOpen(nil, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// golden is the wire format, byte by byte. It must never change for version 1.
func golden(t testing.TB) []struct {
	name  string
	bytes []byte
	hex   string
	frame Frame
} {
	return []struct {
		name  string
		bytes []byte
		hex   string
		frame Frame
	}{
		{"HELLO", AppendHello(nil, Hello{Version: 1}), "01 0002 0001",
			Frame{Type: TypeHello, Hello: Hello{Version: 1}}},
		{"OPEN", mustOpen(t, Open{Service: "nats.default", TraceID: "t1"}),
			"02 0010 0c 6e6174732e64656661756c74 02 7431",
			Frame{Type: TypeOpen, Open: Open{Service: "nats.default", TraceID: "t1"}}},
		{"VERDICT", AppendVerdict(nil, Verdict{Code: "DENIED", DecisionID: "d7", Words: "ask ops"}),
			"03 0011 06 44454e494544 02 6437 61736b206f7073",
			Frame{Type: TypeVerdict, Verdict: Verdict{Code: "DENIED", DecisionID: "d7", Words: "ask ops"}}},
		{"VERDICT OK", AppendVerdict(nil, Verdict{Code: CodeOK}), "03 0004 02 4f4b 00",
			Frame{Type: TypeVerdict, Verdict: Verdict{Code: CodeOK}}},
		{"DATA", AppendData(nil, []byte("hi")), "04 0002 6869", Frame{Type: TypeData}},
		{"EOF", AppendEOF(nil), "05 0000", Frame{Type: TypeEOF}},
		{"RESET", AppendReset(nil, "REVOKED"), "06 0007 5245564f4b4544",
			Frame{Type: TypeReset, Reason: "REVOKED"}},
		{"DONE", AppendDone(nil), "07 0000", Frame{Type: TypeDone}},
	}
}

func TestGolden(t *testing.T) {
	for _, g := range golden(t) {
		t.Run(g.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(g.hex, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(g.bytes, want) {
				t.Fatalf("bytes are %x, want %x", g.bytes, want)
			}
			f, err := NewReader(bytes.NewReader(want)).Next()
			if err != nil || f != g.frame {
				t.Fatalf("read %+v, %v; want %+v", f, err, g.frame)
			}
		})
	}
}

func TestRefusesMalformed(t *testing.T) {
	for name, in := range map[string]string{
		"type 0":                     "\x00\x00\x00",
		"type 8":                     "\x08\x00\x00",
		"HTTP":                       "GET / HTTP/1.1\r\n",
		"short HELLO":                "\x01\x00\x01\x01",
		"long HELLO":                 "\x01\x00\x03\x00\x01\x00",
		"OPEN without trace":         "\x02\x00\x02\x01a",
		"OPEN with text cut short":   "\x02\x00\x03\x05ab",
		"OPEN with bytes left over":  "\x02\x00\x03\x00\x00x",
		"OPEN with bad UTF-8":        "\x02\x00\x03\x01\xff\x00",
		"OPEN too long":              "\x02\x02\x01",
		"VERDICT with bad UTF-8":     "\x03\x00\x03\x00\x00\xff",
		"VERDICT with text too long": "\x03\x00\x02\x05\x00",
		"empty DATA":                 "\x04\x00\x00",
		"DATA too long":              "\x04\x3f\xfe",
		"EOF with payload":           "\x05\x00\x01x",
		"RESET with bad UTF-8":       "\x06\x00\x01\xff",
		"RESET too long":             "\x06\x10\x01",
		"DONE with payload":          "\x07\x00\x01x",
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(strings.NewReader(in + "\x05\x00\x00"))
			for range 2 { // nothing is read after it
				if f, err := r.Next(); !errors.Is(err, ErrProtocol) {
					t.Fatalf("read %+v, %v; want a protocol error", f, err)
				}
			}
		})
	}
}

func TestEndOfStream(t *testing.T) {
	for _, g := range golden(t) {
		for cut := range g.bytes {
			r := NewReader(bytes.NewReader(g.bytes[:cut]))
			f, err := r.Next()
			if err == nil && f.Type == TypeData {
				_, err = io.ReadFull(readerFunc(r.Data), make([]byte, r.Left()))
			}
			want := io.ErrUnexpectedEOF
			if cut == 0 {
				want = io.EOF
			}
			if err != want {
				t.Fatalf("%s cut after %d bytes: %v, want %v", g.name, cut, err, want)
			}
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// stutter fails once before each byte.
type stutter struct {
	src   io.Reader
	ready bool
}

var errLater = errors.New("later")

func (s *stutter) Read(p []byte) (int, error) {
	if s.ready = !s.ready; s.ready {
		return 0, errLater
	}
	return s.src.Read(p[:1])
}

func TestErrorsThatPassLoseNothing(t *testing.T) {
	var in []byte
	for _, g := range golden(t) {
		in = append(in, g.bytes...)
	}
	r := NewReader(&stutter{src: bytes.NewReader(in)})
	retry := func(f func() error) {
		for range len(in) * 2 {
			if err := f(); !errors.Is(err, errLater) {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
		}
		t.Fatal("no progress")
	}
	for _, g := range golden(t) {
		var f Frame
		retry(func() (err error) { f, err = r.Next(); return err })
		if f != g.frame {
			t.Fatalf("read %+v, want %+v", f, g.frame)
		}
	}
}

func TestDataIsReadInPieces(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), MaxData/16)
	in := AppendEOF(AppendData(nil, payload))
	for name, src := range map[string]io.Reader{
		"whole":    bytes.NewReader(in),
		"bytewise": iotest.OneByteReader(bytes.NewReader(in)),
		"data+err": iotest.DataErrReader(bytes.NewReader(in)),
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(src)
			if f, err := r.Next(); err != nil || f.Type != TypeData || r.Left() != len(payload) {
				t.Fatalf("%+v, %v, %d left", f, err, r.Left())
			}
			var got []byte
			for r.Left() > 0 {
				b := make([]byte, 1000)
				n, err := r.Data(b)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, b[:n]...)
			}
			if !bytes.Equal(got, payload) {
				t.Fatal("the payload came out changed")
			}
			if f, err := r.Next(); err != nil || f.Type != TypeEOF {
				t.Fatalf("%+v, %v; want EOF", f, err)
			}
		})
	}
}

func TestNextSkipsUnreadData(t *testing.T) {
	r := NewReader(bytes.NewReader(AppendDone(AppendData(nil, make([]byte, MaxData)))))
	for _, want := range []Type{TypeData, TypeDone} {
		if f, err := r.Next(); err != nil || f.Type != want {
			t.Fatalf("%+v, %v; want %v", f, err, want)
		}
	}
}

func TestLongFields(t *testing.T) {
	long := strings.Repeat("ä", MaxControl)
	if _, err := AppendOpen(nil, Open{Service: long}); !errors.Is(err, ErrProtocol) {
		t.Errorf("OPEN with a long service: %v", err)
	}
	if _, err := AppendOpen(nil, Open{TraceID: "\xff"}); !errors.Is(err, ErrProtocol) {
		t.Errorf("OPEN with bad UTF-8: %v", err)
	}
	for name, b := range map[string][]byte{
		"VERDICT":           AppendVerdict(nil, Verdict{Code: "x" + long, DecisionID: long, Words: long}),
		"VERDICT bad UTF-8": AppendVerdict(nil, Verdict{Code: "OK", Words: "a\xffb"}),
		"RESET":             AppendReset(nil, "x"+long),
		"RESET bad UTF-8":   AppendReset(nil, "\xff\xfe"),
	} {
		if f, err := NewReader(bytes.NewReader(b)).Next(); err != nil {
			t.Errorf("%s: %+v, %v; a field that is too long must be cut to fit", name, f.Type, err)
		}
	}
}

// FuzzRead reads arbitrary bytes as frames: no panic, no frame beyond its limits,
// and each frame that is accepted encodes to the bytes that it was read from.
func FuzzRead(f *testing.F) {
	var all []byte
	for _, g := range golden(f) {
		f.Add(g.bytes)
		all = append(all, g.bytes...)
	}
	f.Add(all)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, again := NewReader(bytes.NewReader(in)), []byte(nil)
		for {
			fr, err := r.Next()
			if err != nil {
				break
			}
			switch fr.Type {
			case TypeHello:
				again = AppendHello(again, fr.Hello)
			case TypeOpen:
				again = append(again, mustOpen(t, fr.Open)...)
			case TypeVerdict:
				again = AppendVerdict(again, fr.Verdict)
			case TypeData:
				p := make([]byte, r.Left())
				if len(p) == 0 || len(p) > MaxData {
					t.Fatalf("DATA of %d bytes", len(p))
				}
				if _, err := io.ReadFull(readerFunc(r.Data), p); err != nil {
					return
				}
				again = AppendData(again, p)
			case TypeEOF:
				again = AppendEOF(again)
			case TypeReset:
				if len(fr.Reason) > MaxControl || !utf8.ValidString(fr.Reason) {
					t.Fatalf("reason %q", fr.Reason)
				}
				again = AppendReset(again, fr.Reason)
			case TypeDone:
				again = AppendDone(again)
			default:
				t.Fatalf("unknown type %v", fr.Type)
			}
			if !bytes.HasPrefix(in, again) {
				t.Fatalf("read %x, encodes to %x", in, again)
			}
		}
	})
}
