package identity_test

import (
	"errors"
	"testing"
	"time"

	"cardea/api"
	"cardea/identity"
)

// says is a Verifier that claims to be one Session.
type says string

func (s says) Verify(api.Evidence, time.Time) (identity.Claim, error) {
	return identity.Claim{SessionUID: string(s)}, nil
}

func TestAny(t *testing.T) {
	v := identity.Any{api.EvidenceCertificate: says("a"), api.EvidenceMemory: says("b")}
	now := time.Now()
	for kind, want := range map[api.EvidenceKind]string{api.EvidenceCertificate: "a", api.EvidenceMemory: "b"} {
		if c, err := v.Verify(api.Evidence{Kind: kind, Data: []byte("x")}, now); err != nil || c.SessionUID != want {
			t.Errorf("%s: %+v, %v; want %q", kind, c, err, want)
		}
	}
	if _, err := v.Verify(api.Evidence{}, now); !errors.Is(err, identity.ErrNobody) {
		t.Errorf("no evidence: %v, want ErrNobody", err)
	}
	for _, ev := range []api.Evidence{{Kind: "TOKEN", Data: []byte("x")}, {Data: []byte("x")}} {
		if c, err := v.Verify(ev, now); err == nil || errors.Is(err, identity.ErrNobody) || c != (identity.Claim{}) {
			t.Errorf("%+v: %+v, %v; want an error that is not ErrNobody", ev, c, err)
		}
	}
	if _, err := (identity.Any)(nil).Verify(api.Evidence{Kind: api.EvidenceMemory}, now); err == nil {
		t.Error("no verifier at all, and evidence was believed")
	}
}
