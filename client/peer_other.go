//go:build !linux

package client

import (
	"errors"
	"net"
	"net/netip"
)

// KnowsPeers says whether this system tells whose a local connection is.
const KnowsPeers = false

// peerUID is not known here.
func peerUID(net.Conn) (uint32, error) { return 0, errors.ErrUnsupported }

// senderUID is not known here.
func senderUID(netip.AddrPort, netip.AddrPort) (uint32, error) { return 0, errors.ErrUnsupported }
