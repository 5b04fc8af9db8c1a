package client

import (
	"net/netip"

	"cardea/tunnel/quic"
)

// newQUIC returns the QUIC of a gateway at an address, for a login.
func newQUIC(at netip.AddrPort, l *login) quicDialer {
	return &quic.Dialer{Address: at.String(), Domain: l.Domain, Roots: l.roots, Certificate: l.fresh}
}
