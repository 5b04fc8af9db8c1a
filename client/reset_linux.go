package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// resetConnections resets the TCP connections of this machine that have one of the
// addresses at this end, and returns how many those were: sock_diag(7), SOCK_DESTROY.
func resetConnections(own []netip.Addr) (n int, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var errs []error
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		found, err := dumpConnections(fd, family, own)
		errs = append(errs, err)
		for _, request := range found {
			switch err := diagCall(fd, request); {
			case err == nil:
				n++
			case errors.Is(err, unix.ENOENT): // it has ended
			default:
				errs = append(errs, err)
			}
		}
	}
	return n, errors.Join(errs...)
}

const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	// diagID is the size of struct inet_diag_sockid, which is at diagReqID in a request
	// and at diagMsgID in an answer.
	diagID     = 48
	diagReqID  = 8
	diagMsgID  = 4
	diagStates = 4
	// anyLive are the states of connections: all but TIME_WAIT (6), CLOSE (7) and LISTEN (10).
	anyLive = 0xffe &^ (1<<6 | 1<<7 | 1<<10)
)

// diagHead returns a request without its socket.
func diagHead(kind, flags uint16, family byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+diagRequest)
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	b[unix.SizeofNlMsghdr], b[unix.SizeofNlMsghdr+1] = family, unix.IPPROTO_TCP
	return b
}

// dumpConnections returns, for each connection that has one of the addresses, the request
// to destroy it.
func dumpConnections(fd int, family byte, own []netip.Addr) (found [][]byte, err error) {
	ask := diagHead(sockDiagByFamily, unix.NLM_F_DUMP, family)
	binary.NativeEndian.PutUint32(ask[unix.SizeofNlMsghdr+diagStates:], anyLive)
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	b := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return found, err
		}
		for rest := b[:n]; len(rest) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < unix.SizeofNlMsghdr || size > len(rest) {
				return found, errors.New("the kernel's answer is broken")
			}
			kind, msg := binary.NativeEndian.Uint16(rest[4:]), rest[unix.SizeofNlMsghdr:size]
			rest = rest[min(len(rest), (size+3)&^3):]
			switch kind {
			case unix.NLMSG_DONE:
				return found, nil
			case unix.NLMSG_ERROR:
				return found, diagError(msg)
			}
			if len(msg) < diagMsgID+diagID || !slices.Contains(own, diagLocal(msg)) {
				continue
			}
			kill := diagHead(sockDestroy, unix.NLM_F_ACK, msg[0])
			req := kill[unix.SizeofNlMsghdr:]
			binary.NativeEndian.PutUint32(req[diagStates:], ^uint32(0))
			copy(req[diagReqID:], msg[diagMsgID:diagMsgID+diagID])
			found = append(found, kill)
		}
	}
}

// diagLocal returns the local address in an answer. IPv4 within IPv6 is IPv4.
func diagLocal(msg []byte) netip.Addr {
	b := msg[diagMsgID+4:] // behind the two ports
	if msg[0] == unix.AF_INET {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16([16]byte(b[:16])).Unmap()
}

// diagCall makes a request that is answered by an acknowledgement.
func diagCall(fd int, request []byte) error {
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	b := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr || binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel's answer is broken")
	}
	return diagError(b[unix.SizeofNlMsghdr:n])
}

// diagError returns what an acknowledgement says; nil is that it was done.
func diagError(msg []byte) error {
	if len(msg) < 4 {
		return errors.New("the kernel's answer is too short")
	}
	if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(msg))); errno != 0 {
		return fmt.Errorf("sock_diag: %w", errno)
	}
	return nil
}
