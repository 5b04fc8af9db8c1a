//go:build !linux

package tls

import "net"

// delivered cannot be told here.
func delivered(net.Conn) bool { return false }

// hurry prefers, for a connection that carries packets, a loss to a delay.
func hurry(c net.Conn) { watch(c) }
