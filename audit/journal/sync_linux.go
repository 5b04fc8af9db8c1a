package journal

import (
	"os"

	"golang.org/x/sys/unix"
)

// datasync makes durable what was written to f (fdatasync(2)).
func datasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
