package memory_test

import (
	"testing"
	"time"

	"cardea/identity"
	"cardea/identity/identitytest"
	"cardea/identity/memory"
)

func TestVerifier(t *testing.T) {
	identitytest.Run(t, identitytest.Subject{
		Verifier: memory.Verifier{}, Good: memory.Evidence("uid-1"), At: time.Now(), Want: identity.Claim{SessionUID: "uid-1"},
	})
}
