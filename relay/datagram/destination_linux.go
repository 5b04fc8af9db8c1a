package datagram

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// askForDestination makes the kernel say to which address of this machine a datagram came.
// A socket of IPv6 is asked for both, as it may take IPv4, too.
func askForDestination(c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) {
		v4 := unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
		v6 := unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		if v4 != nil && v6 != nil {
			err = os.NewSyscallError("setsockopt", v4)
		}
	})
	return errors.Join(e, err)
}

// destination returns to which address of this machine a datagram came, and what the
// kernel is told so that the answer comes from there.
func destination(beside []byte) (netip.Addr, []byte) {
	all, err := unix.ParseSocketControlMessage(beside)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range all {
		switch {
		// struct in_pktinfo of ip(7): the interface, the address of this machine, and that
		// of the header.
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			local := [4]byte(m.Data[4:8])
			return netip.AddrFrom4(local), unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local})
		// struct in6_pktinfo of RFC 3542, section 6.1.
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			info := unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}
			local := netip.AddrFrom16(info.Addr).Unmap()
			if local.IsLinkLocalUnicast() && local.Is6() { // of which every link may have the same
				info.Ifindex = binary.NativeEndian.Uint32(m.Data[16:20])
			}
			return local, unix.PktInfo6(&info)
		}
	}
	return netip.Addr{}, nil
}
