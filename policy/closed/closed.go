// Package closed is the Decider that denies everyone: what stands in where
// nothing is configured.
package closed

import (
	"context"
	"iter"
	"time"

	"cardea/api"
	"cardea/policy"
)

// A Decider denies everything, for ever. Its zero value is ready to use.
type Decider struct{}

var _ policy.Decider = Decider{}

// Decide denies. Its decision depends on nothing and is not made on any data.
func (Decider) Decide(context.Context, api.Request) (api.Decision, error) {
	return api.Decision{
		ID:     policy.NewID(),
		Effect: api.Deny,
		Reason: api.ReasonNoPolicyMatch,
		Words:  "no policies are configured: everything is denied",
		Lease:  30 * time.Second,
	}, nil
}

// Changes yields a heartbeat each second: nothing ever changes.
func (Decider) Changes(ctx context.Context, from api.Revision) iter.Seq2[api.Change, error] {
	return func(yield func(api.Change, error) bool) {
		beat := time.NewTicker(time.Second)
		defer beat.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-beat.C:
				if !yield(api.Change{Revision: from}, nil) {
					return
				}
			}
		}
	}
}
