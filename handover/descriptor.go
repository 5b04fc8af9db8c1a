package handover

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Duplicate returns another descriptor of an open file or socket, to be handed over under a
// name. The one that there is stays as it is, and whoever has it goes on with it.
func Duplicate(of any, name string) (f *os.File, err error) {
	c, ok := of.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	failed := raw.Control(func(fd uintptr) {
		var n int
		if n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			f = os.NewFile(uintptr(n), name)
		}
	})
	return f, errors.Join(failed, os.NewSyscallError("fcntl", err))
}
