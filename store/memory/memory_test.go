package memory_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/store"
	"cardea/store/memory"
	"cardea/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return memory.New() })
}

func put(t *testing.T, s store.Store, v int) api.Revision {
	t.Helper()
	r, err := s.Update(t.Context(), "tester", func(tx store.Tx) error {
		return tx.Put(store.Record{Key: api.Key{Kind: "User", Name: "a"}, UID: "1", JSON: json.RawMessage(fmt.Sprint(v))})
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestHistoryIsBounded(t *testing.T) {
	s := memory.NewKeeping(3)
	defer s.Close()
	first := put(t, s, 1)
	for v := 2; v <= 6; v++ {
		put(t, s, v)
	}
	for _, c := range []struct {
		from uint64
		want error
	}{{0, store.ErrCompacted}, {first.Number, store.ErrCompacted}, {2, store.ErrCompacted}, {3, nil}, {5, nil}} {
		for k, err := range s.Watch(t.Context(), api.Revision{Epoch: first.Epoch, Number: c.from}) {
			if !errors.Is(err, c.want) {
				t.Errorf("Watch from %d: %v, want %v", c.from, err, c.want)
			}
			if err == nil && k.Revision.Number != c.from+1 {
				t.Errorf("the first commit after %d is %v", c.from, k.Revision)
			}
			break
		}
	}
}

// A watcher that waits is idle, so that tests may put a store into a bubble.
func TestInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		var seen []time.Time
		done := make(chan struct{})
		go func() {
			defer close(done)
			for c, err := range s.Watch(ctx, api.Revision{}) {
				if err != nil {
					t.Error(err)
				}
				seen = append(seen, c.At)
			}
		}()
		start := time.Now()
		for v := range 3 {
			time.Sleep(time.Hour)
			put(t, s, v)
		}
		synctest.Wait()
		cancel()
		<-done
		if len(seen) != 3 || !seen[2].Equal(start.Add(3*time.Hour)) {
			t.Errorf("commits at %v, which began at %v", seen, start)
		}
	})
}
