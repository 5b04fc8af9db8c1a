// Package identitytest is what every identity.Verifier owes to the decision, as
// a test: it believes what is proved, and nothing else.
package identitytest

import (
	"errors"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/identity"
)

// A Subject is a Verifier under test, with evidence that it must believe.
type Subject struct {
	Verifier identity.Verifier
	Good     api.Evidence
	At       time.Time // when Good is good
	Want     identity.Claim
}

// Run checks a Verifier.
func Run(t *testing.T, s Subject) {
	t.Run("it believes what is proved, each time", func(t *testing.T) {
		for range 2 {
			if got, err := s.Verifier.Verify(s.Good, s.At); err != nil || got != s.Want {
				t.Fatalf("Verify = %+v, %v; want %+v", got, err, s.Want)
			}
		}
	})
	t.Run("no evidence is nobody", func(t *testing.T) {
		if c, err := s.Verifier.Verify(api.Evidence{}, s.At); !errors.Is(err, identity.ErrNobody) || c != (identity.Claim{}) {
			t.Errorf("Verify = %+v, %v; want ErrNobody", c, err)
		}
	})
	t.Run("evidence that proves nothing is an error, and no claim", func(t *testing.T) {
		for name, ev := range map[string]api.Evidence{
			"of another kind":    {Kind: "SOMETHING-ELSE", Data: s.Good.Data},
			"of no kind":         {Data: s.Good.Data},
			"of its kind, empty": {Kind: s.Good.Kind},
		} {
			c, err := s.Verifier.Verify(ev, s.At)
			if err == nil || errors.Is(err, identity.ErrNobody) || c != (identity.Claim{}) {
				t.Errorf("%s: Verify = %+v, %v; want an error that is not ErrNobody", name, c, err)
			}
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if got, err := s.Verifier.Verify(s.Good, s.At); err != nil || got != s.Want {
					t.Errorf("Verify = %+v, %v; want %+v", got, err, s.Want)
				}
			})
		}
		wg.Wait()
	})
}
