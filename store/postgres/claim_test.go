package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/store/postgres"
	"cardea/store/postgres/pgtest"
)

// TestClaim: one process serves from a database; the next can when it has ended,
// or died, and a restart of the server takes the claim from nobody.
func TestClaim(t *testing.T) {
	server := pgtest.New(t, false)
	url := server.Create(t, "claimed")
	open := func() *postgres.Store {
		s, err := postgres.Open(t.Context(), url, postgres.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	one, two := open(), open()
	claim, err := one.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.Claim(t.Context()); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "another cardea serves from") {
		t.Fatalf("a second one: %v", err)
	}

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- claim.Run(ctx) }()
	if err := errors.Join(server.Stop(true), server.Start()); err != nil {
		t.Fatal(err)
	}
	// It comes back to the first, before or after others try.
	deadline := time.Now().Add(30 * time.Second)
	for {
		c, err := two.Claim(t.Context())
		if api.HasCode(err, api.CodeConflict) {
			break
		}
		if err == nil { // it was quicker: then the first has lost it, and says so
			if got := <-ended; !api.HasCode(got, api.CodeConflict) {
				t.Fatalf("the first one goes on beside another: %v", got)
			}
			c.Release(t.Context())
			ended <- nil
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	c, err := two.Claim(t.Context())
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	c.Release(t.Context())
}
