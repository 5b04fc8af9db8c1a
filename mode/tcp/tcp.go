// Package tcp is the mode of any protocol over TCP. It understands none of them,
// so the Gate asks once, when the connection opens, and carries the bytes
// itself.
package tcp

import (
	"cardea/api"
	"cardea/proxy"
)

// Mode returns the TCP mode. A Service of it is what package api says is valid.
func Mode() proxy.Mode {
	return proxy.Mode{Name: api.ModeTCP, Opaque: true, New: func(*api.Service) (proxy.Handler, error) { return nil, nil }}
}
