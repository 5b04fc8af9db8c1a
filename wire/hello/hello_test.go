package hello

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// tape is a connection that plays bytes and keeps what is written.
type tape struct {
	net.Conn
	play    io.Reader
	written bytes.Buffer
}

func (t *tape) Read(p []byte) (int, error)       { return t.play.Read(p) }
func (t *tape) Write(p []byte) (int, error)      { return t.written.Write(p) }
func (t *tape) Close() error                     { return nil }
func (t *tape) SetDeadline(time.Time) error      { return nil }
func (t *tape) SetReadDeadline(time.Time) error  { return nil }
func (t *tape) SetWriteDeadline(time.Time) error { return nil }
func (t *tape) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (t *tape) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// captured returns the records of the hello that crypto/tls sends.
func captured(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	conn := &tape{play: strings.NewReader("")}
	if c.ServerName == "" {
		c.InsecureSkipVerify = true
	}
	if err := tls.Client(conn, c).Handshake(); err == nil {
		t.Fatal("a handshake with nobody")
	}
	return conn.written.Bytes()
}

// seenByTLS returns what crypto/tls reads in the same bytes.
func seenByTLS(b []byte) (h Hello, ok bool) {
	stop := errors.New("seen")
	tls.Server(&tape{play: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		h.SNI, h.ALPN, h.Versions, ok = strings.ToLower(info.ServerName), info.SupportedProtos, info.SupportedVersions, true
		return nil, stop
	}}).HandshakeContext(context.Background())
	return h, ok
}

// fed returns what a Parser says that is fed in pieces of n bytes.
func fed(b []byte, n int) (State, Hello, error) {
	var p Parser
	for piece := range slices.Chunk(b, n) {
		if s, err := p.Feed(piece); s != NeedMore {
			return s, p.Hello(), err
		}
	}
	return p.state, Hello{}, p.err
}

// message returns what is in the records.
func message(t testing.TB, records []byte) []byte {
	var m []byte
	for len(records) > 0 {
		n := int(binary.BigEndian.Uint16(records[3:]))
		m = append(m, records[5:5+n]...)
		records = records[5+n:]
	}
	return m
}

// inRecords puts a message into records of those sizes, the last of which repeats.
func inRecords(m []byte, sizes ...int) []byte {
	var b []byte
	for len(m) > 0 {
		n := min(sizes[0], len(m))
		if len(sizes) > 1 {
			sizes = sizes[1:]
		}
		b = append(b, 22, 3, 1, byte(n>>8), byte(n))
		b = append(b, m[:n]...)
		m = m[n:]
	}
	return b
}

// clients are configurations whose hellos differ.
func clients() map[string]*tls.Config {
	return map[string]*tls.Config{
		"post-quantum": {ServerName: "Secure.Example.com", NextProtos: []string{"h2", "http/1.1"}},
		"classic":      {ServerName: "secure.example.com", CurvePreferences: []tls.CurveID{tls.X25519}},
		"TLS 1.2":      {ServerName: "a_b.example", MaxVersion: tls.VersionTLS12},
		"no name":      {NextProtos: []string{"postgresql"}},
	}
}

func TestHellosOfCryptoTLS(t *testing.T) {
	for name, c := range clients() {
		t.Run(name, func(t *testing.T) {
			b := captured(t, c)
			if name == "post-quantum" && len(b) < 1200 {
				t.Errorf("a hello of %d bytes has no post-quantum key", len(b))
			}
			want, ok := seenByTLS(b)
			if !ok || want.SNI != strings.ToLower(c.ServerName) {
				t.Fatalf("crypto/tls sees %+v", want)
			}
			m := message(t, b)
			for _, records := range [][]int{{MaxRecord}, {1}, {2}, {3, 1, 200}, {100}, {127, 5000}, {500, 7}} {
				for _, n := range []int{1, 2, 5, 7, 100, len(b) * 7} {
					s, h, err := fed(inRecords(m, records...), n)
					if s != Done || err != nil || !reflect.DeepEqual(h, want) {
						t.Errorf("in records %v and pieces of %d: %v, %v, %+v; want %+v", records, n, s, err, h, want)
					}
				}
			}
		})
	}
}

// TestFragmentation shows that neither records nor packets change the result.
func TestFragmentation(t *testing.T) {
	var messages [][]byte
	var want []Hello
	for _, c := range clients() {
		b := captured(t, c)
		h, _ := seenByTLS(b)
		messages, want = append(messages, message(t, b)), append(want, h)
	}
	rapid.Check(t, func(t *rapid.T) {
		i := rapid.IntRange(0, len(messages)-1).Draw(t, "hello")
		sizes := rapid.SliceOfN(rapid.IntRange(1, 600), 1, 40).Draw(t, "records")
		b := inRecords(messages[i], sizes...)
		whole := len(b)
		b = append(b, rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "behind")...)
		var p Parser
		for at := 0; at < len(b); {
			n := rapid.IntRange(1, 300).Draw(t, "piece")
			end := min(at+n, len(b))
			s, err := p.Feed(b[at:end])
			at = end
			if err != nil || (s == Done) != (at >= whole) {
				t.Fatalf("%v, %v after %d of %d bytes", s, err, at, whole)
			}
		}
		if !reflect.DeepEqual(p.Hello(), want[i]) {
			t.Fatalf("%+v, want %+v", p.Hello(), want[i])
		}
	})
}

func TestHellosOfOpenSSL(t *testing.T) {
	b := openSSLHello(t, "-tls1_3", "-servername", "db.example", "-alpn", "postgresql,x")
	s, h, err := fed(b, len(b))
	if s != Done || h.SNI != "db.example" || !slices.Equal(h.ALPN, []string{"postgresql", "x"}) || !slices.Equal(h.Versions, []uint16{0x0304}) {
		t.Errorf("%v, %v, %+v", s, err, h)
	}
	b = openSSLHello(t, "-tls1_2", "-noservername")
	s, h, err = fed(b, 3)
	if s != Done || h.SNI != "" || h.ALPN != nil || !slices.Equal(h.Versions, []uint16{0x0303, 0x0302, 0x0301}) {
		t.Errorf("%v, %v, %+v", s, err, h)
	}
}

// openSSLHello returns the first bytes of openssl s_client.
func openSSLHello(t *testing.T, args ...string) []byte {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("there is no openssl here")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.CommandContext(t.Context(), openssl, append([]string{"s_client", "-connect", l.Addr().String()}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	head := make([]byte, 5)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	b := append(head, make([]byte, binary.BigEndian.Uint16(head[3:]))...)
	if _, err := io.ReadFull(c, b[5:]); err != nil {
		t.Fatal(err)
	}
	return b
}

// made returns the message of a hello with these extensions.
func made(extensions ...[]byte) []byte {
	b := append([]byte{3, 3}, make([]byte, 32)...)
	b = append(b, 0, 0, 2, 0x13, 0x01, 1, 0)
	all := bytes.Join(extensions, nil)
	b = append(b, byte(len(all)>>8), byte(len(all)))
	b = append(b, all...)
	return append([]byte{1, 0, byte(len(b) >> 8), byte(len(b))}, b...)
}

func ext(kind uint16, data ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

func sni(name string) []byte {
	n := len(name)
	return ext(0, append([]byte{byte((n + 3) >> 8), byte(n + 3), 0, byte(n >> 8), byte(n)}, name...)...)
}

func TestFlags(t *testing.T) {
	m := made(sni("x.example"), ext(0xfe0d, 0), ext(42), ext(41, 0, 0))
	if s, h, err := fed(inRecords(m, MaxRecord), 9); s != Done || !h.PSK || !h.EarlyData || !h.ECH {
		t.Errorf("%v, %v, %+v", s, err, h)
	}
	none := made()
	none = none[:len(none)-2] // no extensions at all
	none[3] -= 2
	if s, h, err := fed(inRecords(none, MaxRecord), 9); s != Done || h.PSK || h.EarlyData || h.ECH || len(h.Versions) != 3 {
		t.Errorf("%v, %v, %+v", s, err, h)
	}
}

func TestRefused(t *testing.T) {
	long := func(n int) []byte { return append([]byte{1, byte(n >> 16), byte(n >> 8), byte(n)}, make([]byte, n)...) }
	one := func(m []byte) []byte { return inRecords(m, MaxRecord) }
	good := one(made(sni("a.example")))
	for name, test := range map[string]struct {
		in    []byte
		state State
		words string
	}{
		"HTTP":                   {[]byte("GET"), NotTLS, "not TLS"},
		"SSLv2":                  {[]byte{0x80, 0x2e, 1, 3, 1}, NotTLS, "not TLS"},
		"an alert":               {[]byte{21, 3, 1}, NotTLS, "not TLS"},
		"another major version":  {[]byte{22, 2}, Malformed, "version 2"},
		"an empty record":        {append([]byte{22, 3, 1, 0, 0}, good...), Malformed, "empty record"},
		"a record too long":      {[]byte{22, 3, 1, 0x40, 1}, Malformed, "16385"},
		"another message":        {one([]byte{2, 0, 0, 0}), Malformed, "message of type 2"},
		"an empty message":       {one([]byte{1, 0, 0, 0}), Malformed, "empty"},
		"an alert within":        {append(one(made(sni("a.example"))[:20]), 21, 3, 1, 0, 2, 1, 0), Malformed, "type 21"},
		"bytes behind it":        {one(append(made(sni("a.example")), 0)), Malformed, "behind"},
		"a message behind it":    {one(append(made(sni("a.example")), made()...)), Malformed, "behind"},
		"a message too long":     {one(long(MaxHello + 1)[:100]), TooLarge, "65536"},
		"too many small records": {inRecords(long(MaxHello), 1), TooLarge, "131072"},
		"zeros":                  {one(long(100)), Malformed, "fixed part"},
		"two names":              {one(made(sni("a.example"), sni("b.example"))), Malformed, "server_name is there twice"},
		"two of an unknown one":  {one(made(ext(7777), ext(7777))), Malformed, "7777 is there twice"},
		"a list of two names": {one(made(ext(0, 0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b'))), Malformed,
			"server_name"},
		"a name of another type": {one(made(ext(0, 0, 4, 1, 0, 1, 'a'))), Malformed, "server_name"},
		"an empty list of names": {one(made(ext(0, 0, 0))), Malformed, "server_name"},
		"an empty name":          {one(made(sni(""))), Malformed, "server_name"},
		"a dot at the end":       {one(made(sni("a.example."))), Malformed, "server_name"},
		"a name with a zero":     {one(made(sni("a.example\x00.evil"))), Malformed, "server_name"},
		"a name with a space":    {one(made(sni("a example"))), Malformed, "server_name"},
		"an IPv6 address":        {one(made(sni("::1"))), Malformed, "server_name"},
		"a star":                 {one(made(sni("*.example"))), Malformed, "server_name"},
		"a long label":           {one(made(sni(strings.Repeat("a", 64) + ".example"))), Malformed, "server_name"},
		"a long name":            {one(made(sni(strings.Repeat("a.", 126) + "aa"))), Malformed, "server_name"},
		"bytes behind the name":  {one(made(ext(0, 0, 4, 0, 0, 1, 'a', 0))), Malformed, "server_name"},
		"a name cut short":       {one(made(ext(0, 0, 4, 0, 0, 9, 'a'))), Malformed, "server_name"},
		"ALPN without protocols": {one(made(ext(16, 0, 0))), Malformed, "application_layer"},
		"an empty protocol":      {one(made(ext(16, 0, 1, 0))), Malformed, "application_layer"},
		"a PSK that is not last": {one(made(ext(41, 0, 0), sni("a.example"))), Malformed, "pre_shared_key"},
		"half a version":         {one(made(ext(43, 3, 3, 4, 3))), Malformed, "supported_versions"},
		"no version":             {one(made(ext(43, 0))), Malformed, "supported_versions"},
		"extension cut short":    {one(made([]byte{0, 0, 0, 9, 1})), Malformed, "length of an extension"},
		"bytes behind extensions": {one(func() []byte { m := append(made(), 0); m[3]++; return m }()), Malformed,
			"length of its extensions"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{1, len(test.in)} {
				s, h, err := fed(test.in, n)
				if s != test.state || err == nil || !strings.Contains(err.Error(), test.words) {
					t.Errorf("in pieces of %d: %v, %v", n, s, err)
				}
				if !reflect.DeepEqual(h, Hello{}) {
					t.Errorf("half a hello: %+v", h)
				}
			}
		})
	}
	if s, _, err := fed(one(made(sni(strings.Repeat("a.", 125)+"abc"))), 1); s != Done {
		t.Errorf("a name of 253 bytes: %v, %v", s, err)
	}
	if s, _, err := fed(inRecords(made(ext(21, make([]byte, MaxHello-60)...)), 100), 999); s != Done {
		t.Errorf("a hello of nearly %d bytes: %v, %v", MaxHello, s, err)
	}
}

func TestFinal(t *testing.T) {
	var p Parser
	p.Feed([]byte{22, 3, 1, 0, 0})
	first := p.err
	if s, err := p.Feed(inRecords(made(sni("a.example")), MaxRecord)); s != Malformed || err != first {
		t.Errorf("%v, %v: what was malformed becomes good", s, err)
	}
}

// FuzzHello shows that no fragmentation changes the result, and that crypto/tls
// sees the same in what both accept.
func FuzzHello(f *testing.F) {
	for _, c := range clients() {
		f.Add(captured(f, c), 1)
		f.Add(inRecords(message(f, captured(f, c)), 100), 7)
	}
	f.Add(inRecords(made(sni("a.example"), sni("b.example")), 9), 3)
	f.Add(inRecords(made(ext(0, 0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b')), 9), 3)
	f.Add(inRecords(made(ext(0, 0, 8, 1, 0, 1, 'a', 0, 0, 1, 'b'), ext(16, 0, 2, 1, 'x'), ext(43, 2, 3, 4)), 9), 3)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		s, h, err := fed(b, max(len(b), 1))
		s2, h2, err2 := fed(b, max(n, 1))
		if s != s2 || !reflect.DeepEqual(h, h2) || (err == nil) != (err2 == nil) {
			t.Fatalf("whole: %v, %v, %+v; in pieces of %d: %v, %v, %+v", s, err, h, n, s2, err2, h2)
		}
		if (err != nil) != (s != NeedMore && s != Done) {
			t.Fatalf("%v with error %v", s, err)
		}
		if s != Done {
			return
		}
		theirs, ok := seenByTLS(b)
		// crypto/tls takes a legacy version of 1.3 for 1.3, which RFC 8446 (4.2.1) forbids.
		older := func(vs []uint16) []uint16 { return slices.DeleteFunc(vs, func(v uint16) bool { return v == 0x0304 }) }
		if ok && (theirs.SNI != h.SNI || !slices.Equal(theirs.ALPN, h.ALPN) || !slices.Equal(older(theirs.Versions), older(h.Versions))) {
			t.Fatalf("we see %+v and crypto/tls %+v", h, theirs)
		}
	})
}
