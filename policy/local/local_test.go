package local_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/identity"
	"cardea/policy"
	"cardea/policy/local"
	"cardea/policy/policytest"
	"cardea/store"
	"cardea/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	policytest.Run(t, func() store.Store { return memory.New() },
		func(t testing.TB, s store.Store, v identity.Verifier) policytest.Decider { return start(t, s, v) })
}

// start runs a Decider until the test ends.
func start(t testing.TB, s store.Store, v identity.Verifier) *local.Decider {
	t.Helper()
	d := &local.Decider{Store: s, Identity: v, Log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	if err := d.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

var (
	_ = strings.Contains
	_ = time.Now
	_ policy.Decider
	_ api.Object
)
