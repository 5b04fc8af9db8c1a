// Package mode lists the protocols that this house speaks. To add one, write its
// file in api, its package beside this file, and its line here.
package mode

import (
	"cardea/mode/tcp"
	"cardea/mode/udp"
	"cardea/proxy"
)

// All returns every mode.
func All() []proxy.Mode {
	return []proxy.Mode{
		tcp.Mode(),
		udp.Mode(),
	}
}
