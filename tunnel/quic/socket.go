package quic

import (
	"errors"
	"net"
	"slices"
	"syscall"
)

// socket is a UDP socket on which what cannot be sent for the moment counts as lost: a
// connection outlives a network that is gone for a while.
type socket struct{ *net.UDPConn }

// passing are the errors of sending that pass.
func passing(err error) bool {
	e, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains([]syscall.Errno{
		syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.EADDRNOTAVAIL, syscall.EPERM, syscall.EACCES, syscall.ENOBUFS, syscall.ECONNREFUSED,
	}, e)
}

// WriteMsgUDP sends a packet, or several of them in one piece.
func (s socket) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (n, oobn int, err error) {
	n, oobn, err = s.UDPConn.WriteMsgUDP(b, oob, addr)
	if passing(err) {
		return len(b), len(oob), nil
	}
	return n, oobn, err
}

// WriteTo sends a packet.
func (s socket) WriteTo(b []byte, addr net.Addr) (int, error) {
	n, err := s.UDPConn.WriteTo(b, addr)
	if passing(err) {
		return len(b), nil
	}
	return n, err
}

// over returns what QUIC is to be spoken on.
func over(pc net.PacketConn) net.PacketConn {
	if udp, ok := pc.(*net.UDPConn); ok {
		return socket{udp}
	}
	return pc
}
