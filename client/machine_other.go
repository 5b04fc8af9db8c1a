//go:build !linux

package client

import (
	"errors"
	"net/netip"
)

// MayInterface reports whether this process may try to make a network interface.
func MayInterface() bool { return false }

// resetConnections is not known here.
func resetConnections([]netip.Addr) (int, error) { return 0, errors.ErrUnsupported }

// IsOthers reports whether a home is that of another user of this machine.
func IsOthers(string) bool { return false }
