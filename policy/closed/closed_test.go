package closed_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/policy/closed"
)

func TestDeniesEveryone(t *testing.T) {
	got, err := closed.Decider{}.Decide(t.Context(), api.Request{Service: "nats.default", Session: "x", Now: time.Now()})
	if err != nil || got.Allowed() || got.Effect != api.Deny || got.ID == "" || got.Words == "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second+time.Millisecond)
		defer cancel()
		beats := 0
		for c, err := range (closed.Decider{}).Changes(ctx, api.Revision{}) {
			if err != nil || c.All || len(c.Keys) > 0 {
				t.Errorf("%+v, %v", c, err)
			}
			beats++
		}
		if beats != 3 {
			t.Errorf("%d heartbeats in 3 seconds", beats)
		}
	})
}
