package identity

import (
	"fmt"
	"time"
)

// An ExpiredError is evidence that was good until NotAfter, which was more than
// the tolerated difference of clocks before At, when it was verified. It proves
// nothing any more, except to whoever renews evidence: the Claim still says whose
// it was and by which key.
type ExpiredError struct {
	Claim        Claim
	NotAfter, At time.Time
}

// Error implements error.
func (e *ExpiredError) Error() string {
	return fmt.Sprintf("the evidence of Session %s expired at %s, and it is %s here: it was not renewed, or the clocks differ",
		e.Claim.SessionUID, e.NotAfter.UTC().Format(time.RFC3339), e.At.UTC().Format(time.RFC3339))
}
