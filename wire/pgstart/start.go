// Package pgstart reads what a client of PostgreSQL says first: whether it wants TLS,
// by asking for it or at once; to encrypt by GSSAPI; to have a query cancelled; or to
// begin in the clear. It knows bytes and no sockets.
//
// Who answers an SSLRequest with [Yes] must have read nothing behind the request: a
// client that waits for the answer has sent nothing, and what is there was put there
// by somebody else, to be taken for something that came over TLS (CVE-2021-23214).
//
// Source: PostgreSQL documentation, chapter "Frontend/Backend Protocol", sections
// "Message Flow" and "Message Formats", up to version 3.2 of the protocol.
package pgstart

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Limits, in bytes.
const (
	// MaxPacket is the longest packet of a client, with its length. The server has the
	// same limit.
	MaxPacket = 10_000 + 4
	// MinKey and MaxKey are the length of the key of a CancelRequest; it is MinKey
	// before version 3.2.
	MinKey, MaxKey = 4, 256
)

// The answers of one byte: Yes to an SSLRequest, No to that or a GSSENCRequest.
const (
	Yes = 'S' // TLS begins
	No  = 'N' // the client may go on in the clear, or ask for something else
)

// Codes in the place of a version.
const (
	codeCancel = 1234<<16 | 5678
	codeSSL    = 1234<<16 | 5679
	codeGSSENC = 1234<<16 | 5680
)

const (
	headerLen = 8 // of a packet: its length and its code
	tlsByte   = 0x16
)

// ErrNotPostgres says that what came is not the beginning of PostgreSQL.
var ErrNotPostgres = errors.New("not PostgreSQL")

// A Kind says what a packet is.
type Kind int

// The kinds of packets.
const (
	Incomplete    Kind = iota // more bytes are needed
	TLS                       // no packet: a TLS record begins
	SSLRequest                // TLS is asked for
	GSSENCRequest             // encryption by GSSAPI is asked for
	CancelRequest             // a query is to be cancelled; the connection ends with it
	Startup                   // the session begins, in the clear
)

// String returns a word for the kind.
func (k Kind) String() string {
	switch k {
	case Incomplete:
		return "incomplete"
	case TLS:
		return "TLS"
	case SSLRequest:
		return "SSLRequest"
	case GSSENCRequest:
		return "GSSENCRequest"
	case CancelRequest:
		return "CancelRequest"
	case Startup:
		return "StartupMessage"
	}
	return fmt.Sprintf("kind %d", int(k))
}

// A Packet is what a client says first. It says the same again after the answer
// [No], and over TLS a Startup or a CancelRequest follows.
type Packet struct {
	Kind Kind
	Len  int // bytes that it has; 0 for Incomplete and TLS

	// Of a CancelRequest:

	Process uint32 // of the session, as the server numbers them
	Key     string // proves that the session is the client's; a secret

	// Of a Startup:

	Major, Minor uint16 // version of the protocol
	Parameters   []Parameter
}

// A Parameter is one of a Startup, as "user" or "database".
type Parameter struct{ Name, Value string }

// Parse reads the packet with which b begins. If b is only the beginning of one, the
// Kind is Incomplete: call it again with more; it looks at a packet only when that is
// complete. It keeps nothing of b. Errors are words for the log; [ErrNotPostgres] comes
// with the first byte that can be none of this.
func Parse(b []byte) (Packet, error) {
	switch {
	case len(b) == 0:
		return Packet{}, nil
	case b[0] == tlsByte:
		return Packet{Kind: TLS}, nil
	case b[0] != 0 || len(b) > 1 && b[1] != 0:
		return Packet{}, ErrNotPostgres
	case len(b) < headerLen:
		return Packet{}, nil
	}
	p, err := parse(b)
	if err != nil {
		return Packet{}, fmt.Errorf("malformed packet of PostgreSQL: %w", err)
	}
	return p, nil
}

// parse reads a packet of which the header is there.
func parse(b []byte) (Packet, error) {
	length := int(binary.BigEndian.Uint32(b))
	code := binary.BigEndian.Uint32(b[4:])
	p := Packet{Len: length}
	least, most := headerLen, headerLen
	switch {
	case code == codeSSL:
		p.Kind = SSLRequest
	case code == codeGSSENC:
		p.Kind = GSSENCRequest
	case code == codeCancel:
		p.Kind = CancelRequest
		least, most = headerLen+4+MinKey, headerLen+4+MaxKey
	case code>>16 == 3:
		p.Kind = Startup
		p.Major, p.Minor = 3, uint16(code)
		least, most = headerLen+1, MaxPacket
	default:
		return Packet{}, fmt.Errorf("version %d.%d of the protocol", code>>16, code&0xffff)
	}
	switch {
	case length < least || length > most:
		return Packet{}, fmt.Errorf("%v of %d bytes", p.Kind, length)
	case len(b) < length:
		return Packet{}, nil
	}
	switch body := string(b[headerLen:length]); p.Kind {
	case CancelRequest:
		p.Process, p.Key = binary.BigEndian.Uint32(b[headerLen:]), body[4:]
	case Startup:
		var ok bool
		if p.Parameters, ok = parameters(body); !ok {
			return Packet{}, errors.New("parameters that are not pairs of strings")
		}
	}
	return p, nil
}

// parameters reads names and values, each with a zero byte behind it, and the zero
// byte behind them all.
func parameters(s string) (all []Parameter, ok bool) {
	for {
		name, rest, found := strings.Cut(s, "\x00")
		if !found {
			return nil, false
		}
		if name == "" {
			return all, rest == ""
		}
		value, rest, found := strings.Cut(rest, "\x00")
		if !found {
			return nil, false
		}
		all = append(all, Parameter{name, value})
		s = rest
	}
}

// AppendSSLRequest writes an SSLRequest behind b. The server answers with one byte:
// [Yes], [No], or 'E' if it is older than the request.
func AppendSSLRequest(b []byte) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, headerLen), codeSSL)
}
