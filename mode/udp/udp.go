// Package udp is the mode of any protocol over UDP. It understands none of them: the Gate
// asks once for each flow, when its first datagram comes, and carries the datagrams
// itself.
package udp

import (
	"cardea/api"
	"cardea/proxy"
)

// Mode returns the UDP mode. A Service of it is what package api says is valid.
func Mode() proxy.Mode {
	return proxy.Mode{Name: api.ModeUDP, Opaque: true, Datagrams: true, New: func(*api.Service) (proxy.Handler, error) { return nil, nil }}
}
