package control

import (
	"context"
	"encoding/json"
	"iter"
	"net/http"

	"cardea/api"
)

// kindOwner is the kind of the actor that [Server.Load] writes as.
const kindOwner = "Owner"

// Load applies documents as whoever owns the cluster does, before it serves: all
// of them or none, and nobody is asked whether he may. Everything else is as for
// apply, the record in the log included.
func (s *Server) Load(ctx context.Context, documents []json.RawMessage) error {
	if len(documents) == 0 {
		return nil
	}
	c := &call{Server: s, decider: owner{}, r: new(http.Request).WithContext(ctx), started: s.Now()}
	who := api.Ref{APIVersion: api.Version, Kind: kindOwner, Name: "up"}
	_, _, err := c.write(who, func() ([]json.RawMessage, error) { return documents, nil }, options{allowLockout: true})
	return err
}

// owner is the Decider of who owns the cluster's data, and needs nobody's leave.
type owner struct{}

func (owner) Decide(_ context.Context, r api.Request) (api.Decision, error) {
	return api.Decision{ID: api.NewID(), Effect: api.Allow, Reason: api.ReasonSystem, Words: "the owner of the cluster, by cardea up -f", Lease: 1}, nil
}

func (owner) Changes(context.Context, api.Revision) iter.Seq2[api.Change, error] {
	return func(func(api.Change, error) bool) {}
}
