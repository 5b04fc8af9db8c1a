//go:build unix && !solaris && !aix

package client

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tryLock takes the lock that a file is, until the file is closed or the process
// ends. errLocked says that another has it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, err
	}
	return f, nil
}
