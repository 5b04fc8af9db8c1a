//go:build !linux

package ingress

import (
	"net"
	"syscall"
)

// unread would report whether bytes of the peer have arrived that nobody has read.
// It is not asked here: who has not been read is taken for silent.
func unread(any) bool { return false }

// acceptNow would return a connection that waits at a listener. Here those that wait
// when a listener is closed are reset.
func acceptNow(net.Listener) net.Conn { return nil }

// sharePort would let others have the port of a socket. Here a port is open at one
// address or at all.
func sharePort(syscall.RawConn) error { return nil }

// bequeath would make the connections of a listener be as those that package net
// accepts. Here nobody accepts raw.
func bequeath(*net.TCPListener) error { return nil }

// takeNoMore would make the kernel drop what else comes to a listener.
func takeNoMore(net.Listener) {}
