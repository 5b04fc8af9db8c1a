package control

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTurns(2)
		take := func(ctx context.Context, name string) func() {
			done, err := x.take(ctx, name)
			if err != nil {
				t.Error(err)
				return func() {}
			}
			return done
		}
		first, second, other := take(t.Context(), "a"), take(t.Context(), "a"), take(t.Context(), "b")
		came := make(chan func(), 1)
		go func() { came <- take(t.Context(), "a") }()
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() { _, err := x.take(ctx, "a"); gone <- err }()
		synctest.Wait()
		if len(came) > 0 || len(gone) > 0 {
			t.Error("a third did not wait")
		}
		cancel()
		synctest.Wait()
		if len(came) > 0 || !errors.Is(<-gone, context.Canceled) {
			t.Error("who has gone was not let go, or another was let in for him")
		}
		first()
		third := <-came
		second()
		third()
		other()
		if len(x.of) > 0 {
			t.Errorf("%d names are left", len(x.of))
		}
	})
}
