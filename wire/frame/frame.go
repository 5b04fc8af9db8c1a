package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Version is the version of the protocol that this package speaks.
const Version = 1

// HeaderLen is the length of a frame's header in bytes.
const HeaderLen = 3

// Limits of a payload, in bytes.
const (
	MaxData    = 1<<14 - HeaderLen // of DATA: with its header one full TLS record
	MaxControl = 4 << 10           // of every other frame
	maxOpen    = 512
	maxShort   = 255 // of a text with one byte of length
)

// A Type says what a frame is.
type Type byte

// The types of frames.
const (
	TypeHello   Type = 1
	TypeOpen    Type = 2
	TypeVerdict Type = 3
	TypeData    Type = 4
	TypeEOF     Type = 5
	TypeReset   Type = 6
	TypeDone    Type = 7
)

// String returns the name of the type, as the specification writes it.
func (t Type) String() string {
	switch t {
	case TypeHello:
		return "HELLO"
	case TypeOpen:
		return "OPEN"
	case TypeVerdict:
		return "VERDICT"
	case TypeData:
		return "DATA"
	case TypeEOF:
		return "EOF"
	case TypeReset:
		return "RESET"
	case TypeDone:
		return "DONE"
	}
	return fmt.Sprintf("type 0x%02x", byte(t))
}

// bounds returns the least and the greatest length of a payload.
func (t Type) bounds() (least, most int, known bool) {
	switch t {
	case TypeHello:
		return 2, 2, true
	case TypeOpen:
		return 2, maxOpen, true
	case TypeVerdict:
		return 2, MaxControl, true
	case TypeData:
		return 1, MaxData, true
	case TypeReset:
		return 0, MaxControl, true
	case TypeEOF, TypeDone:
		return 0, 0, true
	}
	return 0, 0, false
}

// ErrProtocol is wrapped by every error that says that a peer broke the rules.
var ErrProtocol = errors.New("protocol error")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// A Hello negotiates the version.
type Hello struct {
	Version uint16 // from a client the highest that it speaks, from a server the one to speak
}

// An Open asks for a stream.
type Open struct {
	Service string // SERVICE or SERVICE.NAMESPACE, at most 255 bytes
	TraceID string // of the client's own, for both logs; may be empty; at most 255 bytes
}

// A Verdict answers an Open.
type Verdict struct {
	Code       string // "OK", "DENIED", "UNAVAILABLE"; at most 255 bytes
	DecisionID string // at most 255 bytes
	Words      string // for a person
}

// CodeOK is the code of a Verdict that opens the stream.
const CodeOK = "OK"

// A Frame is what [Reader.Next] returns. Only the field that belongs to its Type
// is set.
type Frame struct {
	Type    Type
	Hello   Hello
	Open    Open
	Verdict Verdict
	Reason  string // of RESET; do not trust its content
}

// AppendHello appends a HELLO frame to b.
func AppendHello(b []byte, h Hello) []byte {
	return binary.BigEndian.AppendUint16(appendHeader(b, TypeHello, 2), h.Version)
}

// AppendOpen appends an OPEN frame to b. It fails if a field is too long or no
// UTF-8.
func AppendOpen(b []byte, o Open) ([]byte, error) {
	for _, s := range []string{o.Service, o.TraceID} {
		if len(s) > maxShort || !utf8.ValidString(s) {
			return b, malformed("%.40q must be at most %d bytes of UTF-8", s, maxShort)
		}
	}
	b = appendHeader(b, TypeOpen, 2+len(o.Service)+len(o.TraceID))
	return appendShort(appendShort(b, o.Service), o.TraceID), nil
}

// AppendVerdict appends a VERDICT frame to b. Fields that are too long are cut.
func AppendVerdict(b []byte, v Verdict) []byte {
	code, id := clip(v.Code, maxShort), clip(v.DecisionID, maxShort)
	words := clip(v.Words, MaxControl-2-len(code)-len(id))
	b = appendHeader(b, TypeVerdict, 2+len(code)+len(id)+len(words))
	return append(appendShort(appendShort(b, code), id), words...)
}

// AppendData appends a DATA frame to b. p must have 1 to [MaxData] bytes.
func AppendData(b, p []byte) []byte {
	return append(appendHeader(b, TypeData, len(p)), p...)
}

// AppendEOF appends an EOF frame to b.
func AppendEOF(b []byte) []byte { return appendHeader(b, TypeEOF, 0) }

// AppendReset appends a RESET frame to b. A reason that is too long is cut.
func AppendReset(b []byte, reason string) []byte {
	reason = clip(reason, MaxControl)
	return append(appendHeader(b, TypeReset, len(reason)), reason...)
}

// AppendDone appends a DONE frame to b.
func AppendDone(b []byte) []byte { return appendHeader(b, TypeDone, 0) }

func appendHeader(b []byte, t Type, length int) []byte {
	return append(b, byte(t), byte(length>>8), byte(length))
}

func appendShort(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// clip makes s valid UTF-8 of at most n bytes.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// parseHeader returns the type and the length of the payload of a frame.
func parseHeader(h [HeaderLen]byte) (Type, int, error) {
	t, n := Type(h[0]), int(binary.BigEndian.Uint16(h[1:]))
	least, most, known := t.bounds()
	if !known {
		return t, n, malformed("unknown %v", t)
	}
	if n < least || n > most {
		return t, n, malformed("%v of %d bytes, must be %d to %d", t, n, least, most)
	}
	return t, n, nil
}

// parse returns the frame of a type other than DATA.
func parse(t Type, payload []byte) (Frame, error) {
	f, rest, ok := Frame{Type: t}, payload, true
	switch t {
	case TypeHello:
		f.Hello.Version, rest = binary.BigEndian.Uint16(payload), payload[2:]
	case TypeOpen:
		if f.Open.Service, rest, ok = cutShort(rest); ok {
			f.Open.TraceID, rest, ok = cutShort(rest)
		}
	case TypeVerdict:
		if f.Verdict.Code, rest, ok = cutShort(rest); ok {
			f.Verdict.DecisionID, rest, ok = cutShort(rest)
		}
		f.Verdict.Words, rest, ok = string(rest), nil, ok && utf8.Valid(rest)
	case TypeReset:
		f.Reason, rest, ok = string(rest), nil, utf8.Valid(rest)
	}
	if !ok || len(rest) > 0 {
		return Frame{}, malformed("malformed %v", t)
	}
	return f, nil
}

func cutShort(b []byte) (text string, rest []byte, ok bool) {
	if len(b) == 0 {
		return "", b, false
	}
	n, b := int(b[0]), b[1:]
	if len(b) < n || !utf8.Valid(b[:n]) {
		return "", b, false
	}
	return string(b[:n]), b[n:], true
}
