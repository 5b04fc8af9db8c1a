package identity

import (
	"fmt"
	"time"

	"cardea/api"
)

// Any verifies each kind of evidence by the Verifier of that kind. It must not
// be written to once it is in use.
type Any map[api.EvidenceKind]Verifier

// Verify implements Verifier. Evidence of a kind that is not in the map proves
// nothing.
func (a Any) Verify(ev api.Evidence, now time.Time) (Claim, error) {
	if ev.Kind == "" && len(ev.Data) == 0 {
		return Claim{}, ErrNobody
	}
	v, ok := a[ev.Kind]
	if !ok {
		return Claim{}, fmt.Errorf("identity: evidence of kind %.40q is not accepted here", ev.Kind)
	}
	return v.Verify(ev, now)
}
