// Package tmpdeps holds modules in go.mod until they are used.
package tmpdeps

import (
	_ "github.com/quic-go/quic-go"
	_ "github.com/vishvananda/netlink"
	_ "golang.org/x/net/proxy"
	_ "golang.zx2c4.com/wireguard/device"
	_ "golang.zx2c4.com/wireguard/tun/netstack"
	_ "gvisor.dev/gvisor/pkg/tcpip/stack"
)
