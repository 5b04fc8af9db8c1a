//go:build !unix

package relaytest

import (
	"errors"
	"net"
)

// What engines that accept are tested with is not known here.

func noDescriptors() (restore func(), err error) { return nil, errors.ErrUnsupported }

func duplicate(uintptr) (net.Listener, error) { return nil, errors.ErrUnsupported }

func fullListener() (address string, accept func() error, done func(), err error) {
	return "", nil, nil, errors.ErrUnsupported
}
