// Package identity turns what a caller presents into a Session. It is the only
// room that believes evidence; all others carry it, opaque.
//
// The kinds of evidence live beside it: certificate (a Session certificate whose
// key was proved) and token (what `login` takes).
package identity

import (
	"errors"
	"time"

	"cardea/api"
)

// A Claim is what evidence proves: that its bearer is the Session of that uid,
// by the key of that hash. It does not say that the Session exists or may do
// anything.
type Claim struct {
	SessionUID string
	KeySHA256  string // hex, of the SubjectPublicKeyInfo; "" if no key was proved
}

// A Verifier verifies evidence of some kinds.
type Verifier interface {
	// Verify returns what ev proves at that instant. The zero Evidence is
	// ErrNobody; evidence that proves nothing is an error whose words are for the
	// log. It takes no lock for long and does not block.
	Verify(ev api.Evidence, now time.Time) (Claim, error)
}

// ErrNobody says that no evidence was presented.
var ErrNobody = errors.New("identity: no evidence was presented")
