package memory_test

import (
	"errors"
	"testing"
	"time"

	"cardea/api"
	"cardea/identity"
	"cardea/identity/memory"
)

func TestVerify(t *testing.T) {
	var v identity.Verifier = memory.Verifier{}
	if c, err := v.Verify(memory.Evidence("uid-1"), time.Now()); err != nil || c != (identity.Claim{SessionUID: "uid-1"}) {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := v.Verify(api.Evidence{}, time.Now()); !errors.Is(err, identity.ErrNobody) {
		t.Errorf("no evidence: %v, want ErrNobody", err)
	}
	for _, ev := range []api.Evidence{memory.Evidence(""), {Kind: api.EvidenceCertificate, Data: []byte("uid-1")}} {
		if c, err := v.Verify(ev, time.Now()); err == nil || errors.Is(err, identity.ErrNobody) || c != (identity.Claim{}) {
			t.Errorf("%+v: got %+v, %v", ev, c, err)
		}
	}
}
