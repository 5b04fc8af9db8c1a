package tunnel_test

import (
	"testing"
	"time"

	"cardea/identity"
	"cardea/identity/identitytest"
	"cardea/identity/tunnel"
)

func TestVerifier(t *testing.T) {
	identitytest.Run(t, identitytest.Subject{
		Verifier: tunnel.Verifier{}, Good: tunnel.Evidence("uid-1"), At: time.Now(), Want: identity.Claim{SessionUID: "uid-1"},
	})
}
