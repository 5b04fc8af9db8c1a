//go:build !unix

package relaytest

import (
	"errors"
	"net"
)

// sendUrgent cannot send out of band here.
func sendUrgent(*net.TCPConn, byte) error { return errors.ErrUnsupported }
