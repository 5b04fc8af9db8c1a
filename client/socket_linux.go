package client

import (
	"fmt"
	"os"
	"path/filepath"
)

// maxSocketPath is the longest path that a Unix socket address has room for.
const maxSocketPath = 107

// socketPath returns a path of the control socket of a home that an address has
// room for; it is good until release.
func socketPath(home string) (path string, release func(), err error) {
	if path = filepath.Join(home, daemonSocket); len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(home)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), daemonSocket), func() { dir.Close() }, nil
}
