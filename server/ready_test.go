package server

import (
	"context"
	"errors"
	"testing"
)

// A part that fails while others are waited for ends the start, and does not hang it.
func TestAllReady(t *testing.T) {
	now := func(context.Context) error { return nil }
	never := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	broken := errors.New("broken")
	fails := func(context.Context) error { return broken }
	failed := make(chan error, 1)
	if err := allReady(t.Context(), failed, now, now); err != nil {
		t.Errorf("all are ready, and it says %v", err)
	}
	if err := allReady(t.Context(), failed, now, fails, never); err != broken {
		t.Errorf("one is never ready, and it says %v", err)
	}
	failed <- broken
	if err := allReady(t.Context(), failed, never, now); err != broken {
		t.Errorf("a part has failed, and it says %v", err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := allReady(over, failed, never); err != context.Canceled {
		t.Errorf("it was given up, and it says %v", err)
	}
}
