package proxyproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Append writes the header behind b. If only one of Source and Destination is an IPv4
// address, it is written as an IPv6 one; a zone is left out. Version 1 knows nothing
// but addresses of TCP: everything else is UNKNOWN there. An error says that a field
// cannot be written; b is then returned as it was.
func (h *Header) Append(b []byte) ([]byte, error) {
	switch h.Version {
	case 1:
		return h.appendV1(b), nil
	case 2:
		out, err := h.appendV2(b)
		if err != nil {
			return b, fmt.Errorf("PROXY header: %w", err)
		}
		return out, nil
	}
	return b, fmt.Errorf("PROXY header: there is no version %d", h.Version)
}

func (h *Header) appendV1(b []byte) []byte {
	source, destination := h.ends()
	switch {
	case h.Datagram || !source.IsValid():
		return append(b, "PROXY UNKNOWN\r\n"...)
	case source.Addr().Is4():
		b = append(b, "PROXY TCP4 "...)
	default:
		b = append(b, "PROXY TCP6 "...)
	}
	return fmt.Appendf(b, "%s %s %d %d\r\n", source.Addr(), destination.Addr(), source.Port(), destination.Port())
}

// ends returns both ends in one family, not valid if they have none.
func (h *Header) ends() (source, destination netip.AddrPort) {
	if h.Local || h.Unix || !h.Source.IsValid() || !h.Destination.IsValid() {
		return source, destination
	}
	s, d := h.Source.Addr().WithZone("").Unmap(), h.Destination.Addr().WithZone("").Unmap()
	if s.Is4() != d.Is4() {
		s, d = netip.AddrFrom16(s.As16()), netip.AddrFrom16(d.As16())
	}
	return netip.AddrPortFrom(s, h.Source.Port()), netip.AddrPortFrom(d, h.Destination.Port())
}

func (h *Header) appendV2(b []byte) ([]byte, error) {
	start := len(b)
	b = append(b, signature...)
	if h.Local {
		return append(b, version2|commandLocal, familyUnspec, 0, 0), nil
	}
	b = append(b, version2|commandProxy, 0, 0, 0)
	b, kind, err := h.appendAddresses(b)
	if err != nil {
		return nil, err
	}
	b[start+13] = kind
	if b, err = h.appendTLVs(b); err != nil {
		return nil, err
	}
	if len(b)-start > MaxV2 {
		return nil, fmt.Errorf("%d bytes; %d are allowed", len(b)-start, MaxV2)
	}
	binary.BigEndian.PutUint16(b[start+14:], uint16(len(b)-start-headerV2))
	if h.Checksum { // it is the last
		at := len(b) - 4
		binary.BigEndian.PutUint32(b[at:], checksum(b[start:], at-start))
	}
	return b, nil
}

// appendAddresses writes both ends, and returns their family and protocol.
func (h *Header) appendAddresses(b []byte) (out []byte, kind byte, err error) {
	protocol := byte(stream)
	if h.Datagram {
		protocol = datagram
	}
	switch source, destination := h.ends(); {
	case source.IsValid():
		kind = familyINET
		if source.Addr().Is6() {
			kind = familyINET6
		}
		b = append(b, source.Addr().AsSlice()...)
		b = append(b, destination.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, source.Port())
		return binary.BigEndian.AppendUint16(b, destination.Port()), kind | protocol, nil
	case h.Unix:
		for _, path := range []string{h.SourcePath, h.DestinationPath} {
			if len(path) > maxUnix {
				return nil, 0, fmt.Errorf("a Unix address of %d bytes", len(path))
			}
			b = append(b, path+strings.Repeat("\x00", maxUnix-len(path))...)
		}
		return b, familyUnix | protocol, nil
	}
	return b, familyUnspec, nil
}

// appendTLVs writes the fields behind the addresses.
func (h *Header) appendTLVs(b []byte) ([]byte, error) {
	if err := errors.Join(text("AUTHORITY", h.Authority, maxShort), text("NETNS", h.Namespace, maxShort)); err != nil {
		return nil, err
	}
	if len(h.UniqueID) > MaxID {
		return nil, fmt.Errorf("a UNIQUE_ID of %d bytes", len(h.UniqueID))
	}
	b = appendText(b, tlvALPN, h.ALPN)
	b = appendText(b, tlvAuthority, h.Authority)
	b = appendText(b, tlvUniqueID, h.UniqueID)
	if h.SSL != nil {
		value, err := h.SSL.append(nil)
		if err != nil {
			return nil, err
		}
		b = appendTLV(b, tlvSSL, value)
	}
	b = appendText(b, tlvNetNS, h.Namespace)
	for _, t := range h.TLVs {
		if t.Type == tlvNoop || hasField(t.Type) {
			return nil, fmt.Errorf("TLV 0x%02x has a field of its own", t.Type)
		}
		b = appendTLV(b, t.Type, t.Value)
	}
	if h.Checksum {
		b = appendTLV(b, tlvCRC32C, "\x00\x00\x00\x00")
	}
	return b, nil
}

func (s *SSL) append(b []byte) (string, error) {
	var client byte
	if s.TLS {
		client |= clientTLS
	}
	if s.CertificateNow {
		client |= clientNow
	}
	if s.CertificateSession {
		client |= clientSession
	}
	verify := uint32(1)
	if s.Verified {
		verify = 0
	}
	b = binary.BigEndian.AppendUint32(append(b, client), verify)
	for kind := byte(sslVersion); kind <= sslClientCert; kind++ {
		value := *s.field(kind)
		if kind != sslClientCert {
			if err := text("SSL", value, MaxV2); err != nil {
				return "", err
			}
		}
		b = appendText(b, kind, value)
	}
	for _, t := range s.TLVs {
		if s.hasField(t.Type) {
			return "", fmt.Errorf("TLV 0x%02x of SSL has a field of its own", t.Type)
		}
		b = appendTLV(b, t.Type, t.Value)
	}
	return string(b), nil
}

// appendText writes a TLV unless its value is empty.
func appendText(b []byte, kind byte, value string) []byte {
	if value == "" {
		return b
	}
	return appendTLV(b, kind, value)
}

func appendTLV(b []byte, kind byte, value string) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}
