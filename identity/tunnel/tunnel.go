// Package tunnel believes what a gateway of this process says: that a packet came
// through the tunnel of a Session. The gateway binds each source address to one
// Session's WireGuard key and drops everything else, so that the address is the
// identity. Evidence of this kind never comes over a wire.
package tunnel

import (
	"errors"
	"time"

	"cardea/api"
	"cardea/identity"
)

// Evidence returns evidence of having come through the tunnel of the Session of that
// uid.
func Evidence(sessionUID string) api.Evidence {
	return api.Evidence{Kind: api.EvidenceTunnel, Data: []byte(sessionUID)}
}

// A Verifier believes what a gateway says. Its claims prove no key: the key was proved
// when the Session connected.
type Verifier struct{}

// Verify implements identity.Verifier.
func (Verifier) Verify(ev api.Evidence, _ time.Time) (identity.Claim, error) {
	switch {
	case ev.Kind == "" && len(ev.Data) == 0:
		return identity.Claim{}, identity.ErrNobody
	case ev.Kind != api.EvidenceTunnel:
		return identity.Claim{}, errors.New("tunnel: the evidence is of another kind")
	case len(ev.Data) == 0:
		return identity.Claim{}, errors.New("tunnel: the evidence names no Session")
	}
	return identity.Claim{SessionUID: string(ev.Data)}, nil
}
