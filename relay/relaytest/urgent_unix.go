//go:build unix

package relaytest

import (
	"net"

	"golang.org/x/sys/unix"
)

// sendUrgent sends one byte out of band.
func sendUrgent(c *net.TCPConn, b byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		_, failed = unix.SendmsgN(int(fd), []byte{b}, nil, nil, unix.MSG_OOB)
		return failed != unix.EAGAIN
	})
	if err != nil {
		return err
	}
	return failed
}
