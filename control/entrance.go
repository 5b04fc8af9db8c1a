package control

import (
	"time"

	"cardea/api"
)

// An entrance is what the calls to log in share.
type entrance struct {
	limiter     *limiter
	credentials *index
	sessions    *index
	// turns lets the logins of one User in one after the other: what one finds of
	// his Sessions, before its transaction, is still so in it, unless some have ended.
	turns *turns
}

func newEntrance(now func() time.Time) *entrance {
	return &entrance{
		limiter:     newLimiter(now),
		credentials: newIndex(api.KindCredential),
		sessions:    newIndex(api.KindSession),
		turns:       newTurns(1),
	}
}
