package upstream

import (
	"net"
	"strings"
)

// withoutService returns a name without the labels before it that begin with "_":
// the domain of which SRV records tell.
func withoutService(name string) string {
	for strings.HasPrefix(name, "_") {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			break
		}
		name = rest
	}
	return name
}

// A service is an SRV record (RFC 2782).
type service struct {
	target           string // with its final dot
	port             uint16
	priority, weight uint16
}

func servicesOf(list []*net.SRV) (out []service) {
	for _, s := range list {
		out = append(out, service{strings.ToLower(s.Target), s.Port, s.Priority, s.Weight})
	}
	return out
}
