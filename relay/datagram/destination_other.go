//go:build !linux

package datagram

import (
	"net/netip"
	"syscall"
)

// askForDestination does nothing: answers come from the address that the system chooses.
func askForDestination(syscall.RawConn) error { return nil }

// destination cannot be told here.
func destination([]byte) (netip.Addr, []byte) { return netip.Addr{}, nil }
