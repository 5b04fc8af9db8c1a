package proxyproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ErrNoHeader says that what came is not the beginning of a PROXY header.
var ErrNoHeader = errors.New("no PROXY header")

// Parse reads the header with which b begins, and returns how many bytes it has. If
// b is the beginning of a header, and there is no telling yet, it returns nil, 0 and
// no error: call it again with more, which it looks at only when a line or a header
// is complete. It keeps nothing of b. Errors are words for the log;
// [ErrNoHeader] comes with the first byte that no header has there.
func Parse(b []byte) (h *Header, n int, err error) {
	switch {
	case begins(b, "PROXY "):
		h, n, err = parseV1(b)
	case begins(b, signature):
		h, n, err = parseV2(b)
	default:
		return nil, 0, ErrNoHeader
	}
	if err != nil {
		return nil, 0, fmt.Errorf("malformed PROXY header: %w", err)
	}
	return h, n, nil
}

// begins tells whether b begins with s, as far as it goes.
func begins(b []byte, s string) bool {
	n := min(len(b), len(s))
	return string(b[:n]) == s[:n]
}

func parseV1(b []byte) (*Header, int, error) {
	line := string(b[:min(len(b), MaxV1)])
	end := strings.IndexByte(line, '\n')
	if end < 0 {
		if len(b) >= MaxV1 {
			return nil, 0, fmt.Errorf("no end of line within %d bytes", MaxV1)
		}
		return nil, 0, nil
	}
	n := end + 1
	line, ok := strings.CutSuffix(line[:end], "\r")
	if !ok {
		return nil, 0, errors.New("its line ends without CR")
	}
	h := &Header{Version: 1}
	fields := strings.Split(line, " ")
	switch {
	case fields[1] == "UNKNOWN":
		return h, n, nil // whatever follows is to be ignored
	case fields[1] != "TCP4" && fields[1] != "TCP6":
		return nil, 0, errors.New("neither TCP4 nor TCP6 nor UNKNOWN")
	case len(fields) != 6:
		return nil, 0, fmt.Errorf("%d fields instead of 6", len(fields))
	}
	var err error
	if h.Source, err = addrPortV1(fields[2], fields[4]); err != nil {
		return nil, 0, err
	}
	if h.Destination, err = addrPortV1(fields[3], fields[5]); err != nil {
		return nil, 0, err
	}
	// The family is that of the source only: nginx that was told the source by another
	// proxy writes its own address behind it, of whatever family that is.
	if isIPv4 := !strings.Contains(fields[2], ":"); isIPv4 != (fields[1] == "TCP4") {
		return nil, 0, fmt.Errorf("a source address that is not of %s", fields[1])
	}
	return h, n, nil
}

func addrPortV1(address, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Zone() != "" {
		return netip.AddrPort{}, errors.New("an address that is none")
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || port != strconv.FormatUint(p, 10) { // no sign, no leading zero
		return netip.AddrPort{}, errors.New("a port that is no number from 0 to 65535")
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

func parseV2(b []byte) (*Header, int, error) {
	if len(b) <= len(signature) {
		return nil, 0, nil
	}
	command := b[12] & 0x0f
	if b[12]&0xf0 != version2 || command > commandProxy {
		return nil, 0, fmt.Errorf("version and command 0x%02x", b[12])
	}
	if len(b) < headerV2 {
		return nil, 0, nil
	}
	n := headerV2 + int(binary.BigEndian.Uint16(b[14:]))
	if n > MaxV2 {
		return nil, 0, fmt.Errorf("%d bytes; %d are allowed", n, MaxV2)
	}
	h := &Header{Version: 2}
	if command == commandLocal {
		if len(b) < n {
			return nil, 0, nil
		}
		h.Local = true // the rest is to be ignored, whatever it is
		return h, n, nil
	}
	kind, addresses := b[13], 0
	switch kind {
	case familyUnspec:
	case familyINET | stream, familyINET | datagram:
		addresses = lenINET
	case familyINET6 | stream, familyINET6 | datagram:
		addresses = lenINET6
	case familyUnix | stream, familyUnix | datagram:
		addresses = lenUnix
	default:
		return nil, 0, fmt.Errorf("address family and protocol 0x%02x", kind)
	}
	if n < headerV2+addresses {
		return nil, 0, fmt.Errorf("a length of %d, too little for its addresses", n-headerV2)
	}
	if len(b) < n {
		return nil, 0, nil
	}
	h.Datagram = kind&0x0f == datagram
	h.readAddresses(kind, b[headerV2:headerV2+addresses])
	if err := h.readTLVs(b[:n], headerV2+addresses); err != nil {
		return nil, 0, err
	}
	return h, n, nil
}

func (h *Header) readAddresses(kind byte, b []byte) {
	half := len(b) / 2
	switch kind & 0xf0 {
	case familyINET, familyINET6:
		half = (len(b) - 4) / 2
		source, _ := netip.AddrFromSlice(b[:half])
		destination, _ := netip.AddrFromSlice(b[half : 2*half])
		h.Source = netip.AddrPortFrom(source.Unmap(), binary.BigEndian.Uint16(b[2*half:]))
		h.Destination = netip.AddrPortFrom(destination.Unmap(), binary.BigEndian.Uint16(b[2*half+2:]))
	case familyUnix:
		h.Unix = true
		h.SourcePath = strings.TrimRight(string(b[:half]), "\x00")
		h.DestinationPath = strings.TrimRight(string(b[half:]), "\x00")
	}
}

// readTLVs reads the fields of a whole header from offset at to its end.
func (h *Header) readTLVs(header []byte, at int) error {
	return eachTLV(header, at, hasField, func(kind byte, from, to int) error {
		value := string(header[from:to])
		switch kind {
		case tlvALPN:
			h.ALPN = value
		case tlvAuthority:
			h.Authority = value
			return text("AUTHORITY", value, maxShort)
		case tlvCRC32C:
			h.Checksum = true
			return verify(header, from, to)
		case tlvNoop:
		case tlvUniqueID:
			h.UniqueID = value
			if len(value) > MaxID {
				return fmt.Errorf("a UNIQUE_ID of %d bytes", len(value))
			}
		case tlvSSL:
			return h.readSSL(header[from:to])
		case tlvNetNS:
			h.Namespace = value
			return text("NETNS", value, maxShort)
		default:
			h.TLVs = append(h.TLVs, TLV{kind, value})
		}
		return nil
	})
}

// hasField tells whether a type of TLV has a field of a [Header].
func hasField(kind byte) bool {
	switch kind {
	case tlvALPN, tlvAuthority, tlvCRC32C, tlvUniqueID, tlvSSL, tlvNetNS:
		return true
	}
	return false
}

// eachTLV calls f for each field in b from offset at to the end. Those that once
// tells may be there one time only.
func eachTLV(b []byte, at int, once func(kind byte) bool, f func(kind byte, from, to int) error) error {
	var seen [256]bool
	for at < len(b) {
		if at+3 > len(b) {
			return errors.New("a TLV that is cut short")
		}
		kind, from := b[at], at+3
		to := from + int(binary.BigEndian.Uint16(b[at+1:]))
		if to > len(b) {
			return fmt.Errorf("TLV 0x%02x is longer than what holds it", kind)
		}
		if seen[kind] && once(kind) {
			return fmt.Errorf("TLV 0x%02x is there twice", kind)
		}
		seen[kind] = true
		if err := f(kind, from, to); err != nil {
			return err
		}
		at = to
	}
	return nil
}

// verify compares the checksum at from:to with that of the header.
func verify(header []byte, from, to int) error {
	if to-from != 4 {
		return fmt.Errorf("a CRC32C of %d bytes", to-from)
	}
	if binary.BigEndian.Uint32(header[from:]) != checksum(header, from) {
		return errors.New("its CRC32C is wrong")
	}
	return nil
}

// checksum returns that of a header, in which the four bytes at offset at count as
// zero (RFC 3720, appendix B.4).
func checksum(header []byte, at int) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, header[:at])
	sum = crc32.Update(sum, table, make([]byte, 4))
	return crc32.Update(sum, table, header[at+4:])
}

func (h *Header) readSSL(b []byte) error {
	if len(b) < 5 {
		return fmt.Errorf("an SSL of %d bytes", len(b))
	}
	s := &SSL{
		TLS:                b[0]&clientTLS != 0,
		CertificateNow:     b[0]&clientNow != 0,
		CertificateSession: b[0]&clientSession != 0,
	}
	s.Verified = (s.CertificateNow || s.CertificateSession) && binary.BigEndian.Uint32(b[1:]) == 0
	h.SSL = s
	return eachTLV(b, 5, s.hasField, func(kind byte, from, to int) error {
		value := string(b[from:to])
		if field := s.field(kind); field != nil {
			*field = value
			if kind != sslClientCert {
				return text("SSL", value, MaxV2)
			}
			return nil
		}
		s.TLVs = append(s.TLVs, TLV{kind, value})
		return nil
	})
}

// field returns where the value of a type is, nil if it is another type.
func (s *SSL) field(kind byte) *string {
	switch kind {
	case sslVersion:
		return &s.Version
	case sslCN:
		return &s.CommonName
	case sslCipher:
		return &s.Cipher
	case sslSigAlg:
		return &s.SigAlg
	case sslKeyAlg:
		return &s.KeyAlg
	case sslGroup:
		return &s.Group
	case sslSigScheme:
		return &s.SigScheme
	case sslClientCert:
		return &s.ClientCert
	}
	return nil
}

func (s *SSL) hasField(kind byte) bool { return s.field(kind) != nil }

// text checks a value that is text.
func text(name, value string, limit int) error {
	if len(value) > limit || !utf8.ValidString(value) {
		return fmt.Errorf("%s is not UTF-8 of at most %d bytes", name, limit)
	}
	return nil
}
