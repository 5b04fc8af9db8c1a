package emissary

import (
	"fmt"
	"slices"
	"strings"

	"cardea/api"
)

// stackOf returns what a protocol stands for, nil if it is not known.
func stackOf(protocol string) []string {
	switch protocol {
	case "HTTP":
		return []string{"HTTP", "TCP"}
	case "HTTPS":
		return []string{"TLS", "HTTP", "TCP"}
	case "HTTPPROXY":
		return []string{"PROXY", "HTTP", "TCP"}
	case "HTTPSPROXY":
		return []string{"PROXY", "TLS", "HTTP", "TCP"}
	case "TCP":
		return []string{"TCP"}
	case "TLS":
		return []string{"TLS", "TCP"}
	}
	return nil
}

// readListeners says of which listeners the connections begin with a PROXY header.
func (c *compiler) readListeners() {
	taken := map[int]*object{}
	take(c, c.Listeners, func(l *api.Listener) *api.Installations { return &l.Spec.Installations }, func(l *api.Listener, o *object) {
		stack, words := checkListener(&l.Spec)
		if words != "" {
			o.reject(problem{ReasonInvalid, words})
			return
		}
		if !slices.Contains(stack, "TCP") && slices.Contains(stack, "UDP") {
			o.note("UDP is not yet available: it has no effect")
			return
		}
		n := *l.Spec.Port
		if before := taken[n]; before != nil {
			o.reject(problemf(ReasonConflict, "%s comes first and has port %d, too: delete one of them", before.key, n))
			return
		}
		taken[n] = o
		c.useListener(l, o, stack)
	})
	slices.SortFunc(c.out.Proxied, func(a, b api.Bind) int {
		if a.Port != b.Port {
			return a.Port - b.Port
		}
		return strings.Compare(a.Address, b.Address)
	})
}

// checkListener returns the protocols of a Listener, or what is wrong with it.
func checkListener(s *api.ListenerSpec) (stack []string, words string) {
	if s.Port == nil || *s.Port < 1 || *s.Port > 65535 {
		return nil, "port must be from 1 to 65535"
	}
	if len(s.ProtocolStack) == 0 {
		switch stack = stackOf(s.Protocol); {
		case s.Protocol == "":
			return nil, "it needs protocol or protocolStack"
		case stack == nil:
			return nil, fmt.Sprintf("protocol %q is not known%s", short(s.Protocol), didYouMean(s.Protocol, []string{"HTTP", "HTTPS", "HTTPPROXY", "HTTPSPROXY", "TCP", "TLS"}))
		}
		return stack, ""
	}
	layers := []string{"HTTP", "PROXY", "TLS", "TCP", "UDP"}
	for _, p := range s.ProtocolStack {
		if !slices.Contains(layers, p) {
			return nil, fmt.Sprintf("protocolStack: %q is not known%s", short(p), didYouMean(p, layers))
		}
	}
	proxy, tls := slices.Index(s.ProtocolStack, "PROXY"), slices.Index(s.ProtocolStack, "TLS")
	if proxy >= 0 && tls >= 0 && tls < proxy {
		return nil, "protocolStack: PROXY must come before TLS, because its header comes before the TLS of a connection: [PROXY, TLS, TCP]"
	}
	return s.ProtocolStack, ""
}

// useListener applies a Listener to the rows of its port.
func (c *compiler) useListener(l *api.Listener, o *object, stack []string) {
	if len(l.Spec.ProtocolStack) > 0 && l.Spec.Protocol != "" {
		o.note("protocolStack counts, and protocol does not")
	}
	if l.Spec.StatsPrefix != "" {
		o.note("statsPrefix has no effect: figures bear the address of the listener")
	}
	port := c.ports[*l.Spec.Port]
	if port == nil {
		o.note("no TCPMapping has port %d", *l.Spec.Port)
		return
	}
	if slices.Contains(stack, "HTTP") {
		o.note("HTTP is not served: port %d has %s and what else is TCP", *l.Spec.Port, port.first)
	}
	if slices.Contains(stack, "PROXY") {
		c.out.Proxied = append(c.out.Proxied, port.binds...)
	}
}
