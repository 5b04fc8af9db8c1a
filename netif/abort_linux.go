package netif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Sizes and offsets of sock_diag(7): struct inet_diag_req_v2 and inet_diag_msg.
const (
	diagRequest = 56
	diagID      = 8 // in a request; struct inet_diag_sockid follows
	diagFound   = 4 // the same in an answer
	sockID      = 48
	sockSource  = 4 // in inet_diag_sockid, after both ports
)

// aborted are the states of TCP in which there is a peer that can be told.
const aborted = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11

// Abort resets the TCP connections that programs of this machine have from the
// addresses of the interface: their peers are told by a reset while packets still pass,
// and they themselves by ECONNABORTED, instead of waiting for what never comes once
// the interface is gone. It returns how many there were, and [errors.ErrUnsupported]
// where the kernel cannot (CONFIG_INET_DIAG_DESTROY).
func (i *Interface) Abort() (int, error) {
	var all int
	var errs []error
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		found, err := i.diag(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, question(family, aborted, make([]byte, sockID)))
		if err != nil {
			errs = append(errs, fmt.Errorf("the connections of this machine: %w", err))
			continue
		}
		for _, m := range found {
			if len(m) < diagFound+sockID || !i.isFrom(family, m[diagFound:][sockSource:]) {
				continue
			}
			_, err := i.diag(nl.SOCK_DESTROY, unix.NLM_F_ACK, question(family, ^uint32(0), m[diagFound:diagFound+sockID]))
			switch {
			case errors.Is(err, unix.EOPNOTSUPP):
				return all, errors.ErrUnsupported
			case errors.Is(err, unix.ENOENT): // it ended by itself
			case err != nil:
				errs = append(errs, fmt.Errorf("reset a connection: %w", err))
			default:
				all++
			}
		}
	}
	return all, errors.Join(errs...)
}

// isFrom reports whether an address of inet_diag_sockid is the interface's.
func (i *Interface) isFrom(family byte, source []byte) bool {
	n := 4
	if family == unix.AF_INET6 {
		n = 16
	}
	a, _ := netip.AddrFromSlice(source[:n])
	return i.addresses[a.Unmap()]
}

// question is a struct inet_diag_req_v2 that asks for TCP.
func question(family byte, states uint32, id []byte) []byte {
	q := make([]byte, diagRequest)
	q[0], q[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(q[4:], states)
	copy(q[diagID:], id)
	return q
}

func (i *Interface) diag(command, flags int, question []byte) ([][]byte, error) {
	r := nl.NewNetlinkRequest(command, flags)
	r.AddRawData(question)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: i.sockets}
	return r.Execute(unix.NETLINK_INET_DIAG, 0)
}
