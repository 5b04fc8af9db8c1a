//go:build !linux

package ingress

import "net"

// listenLoop returns nil: there is no engine here that accepts.
func listenLoop() func(*net.TCPListener) (RawListener, error) { return nil }
