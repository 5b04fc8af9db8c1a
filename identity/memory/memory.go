// Package memory believes evidence that says of itself whose it is. It is for
// tests and for callers inside one process: whoever puts it into a process that
// strangers can send such evidence to has no authentication.
package memory

import (
	"errors"
	"time"

	"cardea/api"
	"cardea/identity"
)

// Evidence returns evidence of being the Session of that uid.
func Evidence(sessionUID string) api.Evidence {
	return api.Evidence{Kind: api.EvidenceMemory, Data: []byte(sessionUID)}
}

// A Verifier believes what [Evidence] makes. Its claims prove no key.
type Verifier struct{}

// Verify implements identity.Verifier.
func (Verifier) Verify(ev api.Evidence, _ time.Time) (identity.Claim, error) {
	switch {
	case ev.Kind == "" && len(ev.Data) == 0:
		return identity.Claim{}, identity.ErrNobody
	case ev.Kind != api.EvidenceMemory:
		return identity.Claim{}, errors.New("memory: the evidence is of another kind")
	case len(ev.Data) == 0:
		return identity.Claim{}, errors.New("memory: the evidence names no Session")
	}
	return identity.Claim{SessionUID: string(ev.Data)}, nil
}
