//go:build !linux

package ingress

import (
	"net"

	"cardea/relay"
)

// listenLoop returns nil: there is no engine here that accepts.
func listenLoop() func(*net.TCPListener) (relay.Listener, error) { return nil }
