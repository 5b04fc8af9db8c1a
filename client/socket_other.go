//go:build !linux

package client

import "path/filepath"

// socketPath returns the path of the control socket of a home.
func socketPath(home string) (path string, release func(), err error) {
	return filepath.Join(home, daemonSocket), func() {}, nil
}
