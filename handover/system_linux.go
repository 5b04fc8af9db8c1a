package handover

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// peer returns the user of the process at the other end, as it was when it
// connected: SO_PEERCRED of unix(7).
func peer(c *net.UnixConn) (uid int, known bool, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, inner); err != nil {
		return 0, false, err
	}
	return int(cred.Uid), true, nil
}

// replace makes a descriptor another name of an open file.
func replace(of, name int) error { return unix.Dup3(of, name, 0) }
