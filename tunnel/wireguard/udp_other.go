//go:build !linux

package wireguard

import (
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
)

// newUDP returns the library's bind, which listens at all addresses.
func newUDP(netip.Addr, bool, inherit) conn.Bind { return conn.NewStdNetBind() }
