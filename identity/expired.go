package identity

import (
	"fmt"
	"time"
)

// An ExpiredError is evidence that was good until NotAfter. It proves nothing any
// more, except to whoever renews evidence: the Claim still says whose it was and
// by which key.
type ExpiredError struct {
	Claim    Claim
	NotAfter time.Time
}

// Error implements error.
func (e *ExpiredError) Error() string {
	return fmt.Sprintf("the evidence of Session %s expired at %s", e.Claim.SessionUID, e.NotAfter.UTC().Format(time.RFC3339))
}
