// Package hello reads the first message of a TLS client, the ClientHello, as its
// bytes come in, and says what it asks for. It knows bytes and neither sockets nor
// keys: it decides nothing and answers nobody, so that the same bytes can go on to
// whoever ends the TLS.
//
// A hello may come in any number of records of any size and be cut anywhere
// between packets; whatever the fragmentation, the result is the same. What cannot
// be read completely is [Malformed] or [TooLarge] and never half a hello: a router
// must not take it for one without a server name. The parser is stricter than most
// TLS stacks, so that no two readers of the same hello see two names in it.
//
// Sources: RFC 8446, sections 4.1.2, 4.2 and 5.1; RFC 5246, sections 6.2.1 and
// 7.4.1.2; RFC 6066, section 3; RFC 7301, section 3.1.
package hello

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Limits of what is read, in bytes.
const (
	// MaxHello is the longest ClientHello, without the header of its message. It is
	// that of crypto/tls; hellos with post-quantum keys have some 2 KiB.
	MaxHello = 64 << 10
	// MaxWire is what all records up to the end of the hello may have with their
	// headers. Records of one byte cost six.
	MaxWire = 128 << 10
	// MaxRecord is what one record may hold.
	MaxRecord = 16 << 10
)

const (
	recordHeader  = 5
	messageHeader = 4

	typeHandshake   = 22 // of a record
	typeClientHello = 1  // of a message
)

// A State is what a [Parser] knows of what it was fed.
type State int

// The states. All but NeedMore are final.
const (
	NeedMore  State = iota // the beginning of a hello
	Done                   // a whole hello
	NotTLS                 // the first byte is not that of TLS (nor is that of SSLv2)
	Malformed              // TLS that breaks the rules
	TooLarge               // more than the limits allow
)

// String returns a word for the state.
func (s State) String() string {
	switch s {
	case NeedMore:
		return "need more"
	case Done:
		return "done"
	case NotTLS:
		return "not TLS"
	case Malformed:
		return "malformed"
	case TooLarge:
		return "too large"
	}
	return fmt.Sprintf("state %d", int(s))
}

// A Hello is what a ClientHello asks for. A client can write into it what it likes.
type Hello struct {
	// SNI is the server name in lower case, "" if there is none. Its labels have 1 to
	// 63 letters, digits, '-' and '_', and it has at most 253 bytes. (An IPv4 address,
	// which the standard forbids, looks like a name and is let through.)
	SNI string
	// ALPN lists the protocols that are offered, in the client's order. They may hold
	// any bytes.
	ALPN []string
	// Versions lists the versions that are offered, as numbers of the protocol
	// (0x0304 is TLS 1.3), in the client's order; unknown ones among them. Without the
	// extension supported_versions they are those from TLS 1.0 to the legacy version.
	Versions []uint16
	// PSK is set if the client wants to resume a session of TLS 1.3, EarlyData if it
	// sends bytes at once.
	PSK, EarlyData bool
	// ECH is set if there is an encrypted hello, or what looks like one; SNI and ALPN
	// are then those of the outer one. (draft-ietf-tls-esni)
	ECH bool
}

// A Parser reads one ClientHello. Its zero value is ready. It holds what the hello
// has, not what its records have on the wire, and looks at each byte once.
type Parser struct {
	state State
	err   error
	hello Hello

	wire    int                // bytes of records so far
	header  [recordHeader]byte // of the record
	headed  int                // bytes of header
	left    int                // bytes that the record still brings
	message []byte             // with its header
	length  int                // of message, once its header is there
}

// Feed takes the next bytes from the client and says what is known after them.
// Once the state is final, more bytes change nothing; what came behind the last
// record of the hello is ignored. The error is set if the state is NotTLS, Malformed
// or TooLarge, and is words for the log.
func (p *Parser) Feed(b []byte) (State, error) {
	for len(b) > 0 && p.state == NeedMore {
		if p.left == 0 {
			b = p.readHeader(b)
		} else {
			b = p.readBody(b)
		}
	}
	return p.state, p.err
}

// Hello returns what the hello says, once the state is [Done].
func (p *Parser) Hello() Hello { return p.hello }

func (p *Parser) end(s State, err error) {
	p.state, p.err = s, err
	p.message = nil
}

func (p *Parser) malformed(format string, a ...any) {
	p.end(Malformed, fmt.Errorf("malformed ClientHello: "+format, a...))
}

// readHeader takes from b what belongs to the header of a record.
func (p *Parser) readHeader(b []byte) []byte {
	n := copy(p.header[p.headed:], b)
	p.headed += n
	switch h := p.header; {
	case h[0] != typeHandshake && p.wire == 0:
		p.end(NotTLS, errors.New("not TLS"))
	case h[0] != typeHandshake:
		p.malformed("a record of type %d within it", h[0])
	case p.headed > 1 && h[1] != 3:
		p.malformed("a record of version %d", h[1])
	case p.headed == recordHeader:
		p.startRecord(int(binary.BigEndian.Uint16(h[3:])))
	}
	return b[n:]
}

func (p *Parser) startRecord(length int) {
	p.headed, p.left = 0, length
	p.wire += recordHeader + length
	switch {
	case length == 0:
		p.malformed("an empty record")
	case length > MaxRecord:
		p.malformed("a record of %d bytes", length)
	case p.wire > MaxWire:
		p.end(TooLarge, fmt.Errorf("the records of the ClientHello have more than %d bytes", MaxWire))
	default:
		p.checkEnd()
	}
}

// readBody takes from b what belongs to the record, up to the end of the message's
// header or that of the message.
func (p *Parser) readBody(b []byte) []byte {
	want := messageHeader
	if p.length > 0 {
		want = p.length
	}
	n := min(len(b), p.left, want-len(p.message))
	p.message = append(p.message, b[:n]...)
	p.left -= n
	switch {
	case p.message[0] != typeClientHello:
		p.malformed("a message of type %d", p.message[0])
	case len(p.message) < want:
	case p.length == 0:
		p.startMessage()
	default:
		p.read()
	}
	return b[n:]
}

func (p *Parser) startMessage() {
	p.length = messageHeader + int(binary.BigEndian.Uint32(p.message)&0xffffff)
	switch {
	case p.length > messageHeader+MaxHello:
		p.end(TooLarge, fmt.Errorf("the ClientHello has more than %d bytes", MaxHello))
	case p.length == messageHeader:
		p.malformed("it is empty")
	default:
		p.checkEnd()
	}
}

// checkEnd sees that the record ends no later than the message: whatever else were
// in it could only be read by somebody who is less strict.
func (p *Parser) checkEnd() {
	if p.length > 0 && p.left > p.length-len(p.message) {
		p.malformed("bytes behind it in its record")
	}
}

// read reads the message.
func (p *Parser) read() {
	h, err := parse(p.message[messageHeader:])
	if err != nil {
		p.malformed("%w", err)
		return
	}
	p.hello = h
	p.end(Done, nil)
}

// Extensions that are read. The others are only looked for twice.
const (
	extServerName        = 0
	extALPN              = 16
	extPreSharedKey      = 41
	extEarlyData         = 42
	extSupportedVersions = 43
	extECH               = 0xfe0d
)

// parse reads the body of the message.
func parse(b []byte) (h Hello, err error) {
	c := cursor{rest: b}
	legacy := c.uint16()
	c.bytes(32) // random
	session := c.vector8()
	suites := c.vector16()
	compression := c.vector8()
	if c.short || len(session) > 32 || len(suites) == 0 || len(suites)%2 != 0 || len(compression) == 0 {
		return h, errors.New("its fixed part")
	}
	if len(c.rest) > 0 {
		extensions := cursor{rest: c.vector16()}
		if c.short || len(c.rest) > 0 {
			return h, errors.New("the length of its extensions")
		}
		if err := h.readExtensions(&extensions); err != nil {
			return h, err
		}
	}
	if h.Versions == nil {
		for v := uint16(0x0301); v <= min(legacy, 0x0303); v++ {
			h.Versions = append([]uint16{v}, h.Versions...)
		}
	}
	return h, nil
}

func (h *Hello) readExtensions(c *cursor) error {
	seen := map[uint16]bool{}
	for len(c.rest) > 0 {
		kind := c.uint16()
		data := cursor{rest: c.vector16()}
		if c.short {
			return errors.New("the length of an extension")
		}
		if seen[kind] {
			return fmt.Errorf("extension %s is there twice", extensionName(kind))
		}
		seen[kind] = true
		ok := true
		switch kind {
		case extServerName:
			h.SNI, ok = data.serverName()
		case extALPN:
			h.ALPN, ok = data.protocols()
		case extSupportedVersions:
			h.Versions, ok = data.versions()
		case extEarlyData:
			h.EarlyData = true
		case extECH:
			h.ECH = true
		case extPreSharedKey:
			h.PSK = true
			ok = len(c.rest) == 0 // it must be the last
		}
		if !ok {
			return fmt.Errorf("extension %s", extensionName(kind))
		}
	}
	return nil
}

// extensionName returns what the standards call one of those that are read.
func extensionName(kind uint16) string {
	switch kind {
	case extServerName:
		return "server_name"
	case extALPN:
		return "application_layer_protocol_negotiation"
	case extPreSharedKey:
		return "pre_shared_key"
	case extSupportedVersions:
		return "supported_versions"
	}
	return fmt.Sprint(kind)
}

// serverName reads the one name that a list may have.
func (c *cursor) serverName() (string, bool) {
	list := cursor{rest: c.vector16()}
	kind := list.uint8()
	name := string(list.vector16())
	if !c.whole() || !list.whole() || kind != 0 || !isName(name) {
		return "", false
	}
	return strings.ToLower(name), true
}

func (c *cursor) protocols() (names []string, ok bool) {
	list := cursor{rest: c.vector16()}
	for len(list.rest) > 0 {
		name := list.vector8()
		if len(name) == 0 {
			return nil, false
		}
		names = append(names, string(name))
	}
	return names, c.whole() && list.whole() && len(names) > 0
}

func (c *cursor) versions() (vs []uint16, ok bool) {
	list := cursor{rest: c.vector8()}
	for len(list.rest) > 0 {
		vs = append(vs, list.uint16())
	}
	return vs, c.whole() && list.whole() && len(vs) > 0
}

// isName tells whether s is a name as DNS has them, without a dot at its end.
func isName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, r := range []byte(label) {
			switch {
			case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_':
			default:
				return false
			}
		}
	}
	return true
}

// A cursor reads numbers and vectors. After something that was not all there it is
// short, and reads zeros.
type cursor struct {
	rest  []byte
	short bool
}

func (c *cursor) bytes(n int) []byte {
	if n > len(c.rest) {
		c.rest, c.short = nil, true
		return nil
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) uint8() int {
	if b := c.bytes(1); b != nil {
		return int(b[0])
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// vector8 and vector16 read bytes behind their number.
func (c *cursor) vector8() []byte  { return c.bytes(c.uint8()) }
func (c *cursor) vector16() []byte { return c.bytes(int(c.uint16())) }

// whole tells whether everything was read, and was there.
func (c *cursor) whole() bool { return !c.short && len(c.rest) == 0 }
