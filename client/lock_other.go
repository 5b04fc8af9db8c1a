//go:build !unix || solaris || aix

package client

import "os"

// tryLock opens the file; this system does not keep others from opening it too.
func tryLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}
