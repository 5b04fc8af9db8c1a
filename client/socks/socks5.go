package socks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
)

// The numbers of RFC 1928.
const (
	version = 5

	noAuthentication = 0
	noMethod         = 0xff

	commandConnect   = 1
	commandAssociate = 3

	typeIPv4 = 1
	typeName = 3
	typeIPv6 = 4

	replyOK          = 0
	replyFailed      = 1
	replyNotAllowed  = 2
	replyNetwork     = 3
	replyHost        = 4
	replyRefused     = 5
	replyExpired     = 6
	replyCommand     = 7
	replyAddressType = 8
)

var (
	errAddressType = errors.New("an address of a type that SOCKS5 does not know")
	errName        = errors.New("a name that no host can have")
)

// socks5 is the dialect of RFC 1928, without authentication: whose a client is, is
// told by the kernel.
type socks5 struct{}

func (socks5) request(c net.Conn, _ byte) (target, error) {
	methods, err := readCounted(c)
	if err != nil {
		return target{}, err
	}
	method := byte(noMethod)
	for _, m := range methods {
		if m == noAuthentication {
			method = noAuthentication
		}
	}
	if _, err := c.Write([]byte{version, method}); err != nil {
		return target{}, err
	}
	if method == noMethod {
		return target{}, errors.New("SOCKS5: it wants to authenticate itself, and there is nothing to do that with: no user name, no password")
	}
	var head [3]byte // VER, CMD, RSV
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return target{}, err
	}
	if head[0] != version {
		reply(c, replyFailed, nil)
		return target{}, fmt.Errorf("a request of SOCKS version %d in a connection of version 5", head[0])
	}
	host, port, err := readAddress(c)
	switch {
	case errors.Is(err, errAddressType):
		reply(c, replyAddressType, nil)
		return target{}, err
	case errors.Is(err, errName):
		reply(c, replyHost, nil)
		return target{}, err
	case err != nil:
		return target{}, err
	}
	switch {
	case head[1] == commandAssociate:
		return target{packets: true}, nil
	case head[1] != commandConnect:
		reply(c, replyCommand, nil)
		return target{}, fmt.Errorf("SOCKS5 command %d, which is neither CONNECT nor UDP ASSOCIATE", head[1])
	case port == 0:
		reply(c, replyFailed, nil)
		return target{}, errors.New("a request to connect to port 0")
	}
	return target{host: host, port: port}, nil
}

func (socks5) accept(c, upstream net.Conn) error { return reply(c, replyOK, upstream.LocalAddr()) }

func (socks5) refuse(c net.Conn, why error) {
	code := map[failure]byte{
		failed: replyFailed, notAllowed: replyNotAllowed, networkUnreachable: replyNetwork,
		hostUnreachable: replyHost, refused: replyRefused, timedOut: replyExpired,
	}
	reply(c, code[classify(why)], nil)
}

// reply writes a reply. An address that is not one of IP is 0.0.0.0:0.
func reply(c net.Conn, code byte, bound net.Addr) error {
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if a, ok := bound.(interface{ AddrPort() netip.AddrPort }); ok && a.AddrPort().IsValid() {
		at = a.AddrPort()
	}
	_, err := c.Write(appendAddress([]byte{version, code, 0}, at.Addr().Unmap().WithZone("").String(), int(at.Port())))
	return err
}

// readCounted reads as many bytes as the first one says.
func readCounted(r io.Reader) ([]byte, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, n[0])
	_, err := io.ReadFull(r, b)
	return b, err
}

// readAddress reads ATYP, an address and a port. A whole address that cannot be is
// errName; after errAddressType the end of the address is unknown.
func readAddress(r io.Reader) (host string, port int, err error) {
	var kind [1]byte
	if _, err := io.ReadFull(r, kind[:]); err != nil {
		return "", 0, err
	}
	var b []byte
	switch kind[0] {
	case typeIPv4, typeIPv6:
		b = make([]byte, 4)
		if kind[0] == typeIPv6 {
			b = make([]byte, 16)
		}
		_, err = io.ReadFull(r, b)
		a, _ := netip.AddrFromSlice(b)
		host = a.Unmap().String()
	case typeName:
		b, err = readCounted(r)
		host = string(b)
		if a, err := netip.ParseAddr(host); err == nil { // an address, as text: spelt as the others are
			host = a.Unmap().WithZone("").String()
		}
	default:
		return "", 0, errAddressType
	}
	if err != nil {
		return "", 0, err
	}
	var p [2]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		return "", 0, err
	}
	if !isHost(host) {
		return "", 0, errName
	}
	return host, int(binary.BigEndian.Uint16(p[:])), nil
}

// appendAddress writes what readAddress reads. A name has at most 255 bytes.
func appendAddress(b []byte, host string, port int) []byte {
	if a, err := netip.ParseAddr(host); err != nil {
		b = append(b, typeName, byte(len(host)))
		b = append(b, host...)
	} else if a.Is4() {
		b = append(append(b, typeIPv4), a.AsSlice()...)
	} else {
		b = append(append(b, typeIPv6), a.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, uint16(port))
}
