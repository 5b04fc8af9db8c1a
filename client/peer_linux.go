package client

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KnowsPeers says whether this system tells whose a local connection is.
const KnowsPeers = true

// errNoPeer says that no socket of this machine is at the other end, or one that
// its process has closed: then nobody can tell any more whose it was.
var errNoPeer = errors.New("no open socket of this machine is at its other end")

// peerUID returns the uid of the process at the other end of a local connection.
func peerUID(c net.Conn) (uint32, error) {
	if u, ok := c.(*net.UnixConn); ok {
		return unixPeer(u)
	}
	ours, err := netip.ParseAddrPort(c.LocalAddr().String())
	theirs, err2 := netip.ParseAddrPort(c.RemoteAddr().String())
	if err = errors.Join(err, err2); err != nil {
		return 0, err
	}
	return ownerOf(unix.IPPROTO_TCP, unmap(theirs), unmap(ours))
}

// senderUID returns the uid of the process of this machine that has sent a datagram from
// an address to a socket of ours.
func senderUID(from, to netip.AddrPort) (uint32, error) {
	from, to = unmap(from), unmap(to)
	if to.Addr().IsUnspecified() { // it was sent to an address of its own machine: to the one that it has, say
		to = netip.AddrPortFrom(from.Addr(), to.Port())
	}
	return ownerOf(unix.IPPROTO_UDP, from, to)
}

// ownerOf returns the uid of the process that has the socket which is bound to local and
// connected to remote. A UDP socket may also be connected to nothing.
func ownerOf(protocol uint8, local, remote netip.AddrPort) (uint32, error) {
	uid, err := diagnose(protocol, local, remote)
	if err != nil && !errors.Is(err, errNoPeer) { // a kernel, or a sandbox, without sock_diag
		return search(protocol, local, remote)
	}
	return uid, err
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

func unixPeer(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var err2 error
	err = raw.Control(func(fd uintptr) { cred, err2 = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, err2); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// Sizes and offsets of sock_diag(7): struct inet_diag_req_v2 and inet_diag_msg.
const (
	diagRequest = 56
	diagUID     = 64
	diagInode   = 68
)

// diagnose asks the kernel for the socket of this machine that is bound to
// local and connected to remote, by netlink: see sock_diag(7).
func diagnose(protocol uint8, local, remote netip.AddrPort) (uint32, error) {
	if protocol == unix.IPPROTO_UDP {
		local, remote = remote, local // udp_diag takes them the other way round
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	ask := make([]byte, unix.SizeofNlMsghdr+diagRequest)
	native := binary.NativeEndian
	native.PutUint32(ask[0:], uint32(len(ask)))
	native.PutUint16(ask[4:], 20) // SOCK_DIAG_BY_FAMILY
	native.PutUint16(ask[6:], unix.NLM_F_REQUEST)
	req := ask[unix.SizeofNlMsghdr:]
	req[0], req[1] = unix.AF_INET, protocol
	if local.Addr().Is6() {
		req[0] = unix.AF_INET6
	}
	native.PutUint32(req[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(req[8:], local.Port())
	binary.BigEndian.PutUint16(req[10:], remote.Port())
	copy(req[12:], local.Addr().AsSlice())
	copy(req[28:], remote.Addr().AsSlice())
	native.PutUint64(req[48:], ^uint64(0)) // no cookie
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return 0, err
	}
	if n < unix.SizeofNlMsghdr {
		return 0, errors.New("the kernel's answer is too short")
	}
	kind, msg := native.Uint16(answer[4:]), answer[unix.SizeofNlMsghdr:n]
	if kind == unix.NLMSG_ERROR && len(msg) >= 4 {
		if errno := unix.Errno(-int32(native.Uint32(msg))); errno != unix.ENOENT {
			return 0, errno
		}
		return 0, errNoPeer
	}
	if len(msg) < diagInode+4 {
		return 0, fmt.Errorf("the kernel's answer is of %d bytes", len(msg))
	}
	return owner(native.Uint32(msg[diagUID:]), native.Uint32(msg[diagInode:]))
}

// owner returns the uid of a socket. One without an inode has been closed by its
// process, and the kernel then calls it root's.
func owner(uid, inode uint32) (uint32, error) {
	if inode == 0 {
		return 0, errNoPeer
	}
	return uid, nil
}

// search looks for the same socket in /proc/net, which takes the kernel longer.
func search(protocol uint8, local, remote netip.AddrPort) (uint32, error) {
	name := "/proc/net/tcp"
	locals, remotes := []string{procAddr(local)}, []string{procAddr(remote)}
	if protocol == unix.IPPROTO_UDP {
		name = "/proc/net/udp"
		for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			locals = append(locals, procAddr(netip.AddrPortFrom(any, local.Port())))
			remotes = append(remotes, procAddr(netip.AddrPortFrom(any, 0)))
		}
	}
	var errs []error
	for _, file := range []string{name, name + "6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
			f := strings.Fields(lines.Text())
			if len(f) < 10 || !slices.Contains(locals, f[1]) || !slices.Contains(remotes, f[2]) {
				continue
			}
			uid, err := strconv.ParseUint(f[7], 10, 32)
			inode, err2 := strconv.ParseUint(f[9], 10, 32)
			if err = errors.Join(err, err2); err != nil {
				return 0, err
			}
			return owner(uint32(uid), uint32(inode))
		}
	}
	return 0, errors.Join(append(errs, errNoPeer)...)
}

// procAddr returns an address as /proc/net/tcp has it: words of four bytes, each
// in the order of this machine, in hex.
func procAddr(a netip.AddrPort) string {
	b := a.Addr().AsSlice()
	for i := 0; i+4 <= len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	return fmt.Sprintf("%s:%04X", strings.ToUpper(hex.EncodeToString(b)), a.Port())
}
