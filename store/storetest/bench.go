package storetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/store"
)

// Benchmark measures a Store. open returns a new, empty one; the suite closes it.
func Benchmark(b *testing.B, open func(b *testing.B) store.Store) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("update/callers=%d", callers), func(b *testing.B) { benchmarkUpdate(b, open(b), callers) })
	}
	b.Run("view", func(b *testing.B) {
		s := open(b)
		defer s.Close()
		k := record(api.KindUser, "a", "1", 1)
		put(b, s, k)
		for b.Loop() {
			if _, err := get(b, s, k.Key); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("watch", func(b *testing.B) { benchmarkWatch(b, open(b)) })
	b.Run("bulk", func(b *testing.B) { benchmarkBulk(b, open(b)) })
}

// benchmarkUpdate shows one small durable transaction, alone and from many
// callers that share fsyncs.
func benchmarkUpdate(b *testing.B, s store.Store, callers int) {
	defer s.Close()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		took []time.Duration
	)
	b.ResetTimer()
	for c := range callers {
		wg.Go(func() {
			var mine []time.Duration
			for i := range max(1, b.N/callers) {
				start := time.Now()
				_, err := s.Update(b.Context(), "bench", func(tx store.Tx) error {
					return tx.Put(record(api.KindUser, fmt.Sprint("u", c), "1", i))
				})
				if err != nil {
					b.Error(err)
					return
				}
				mine = append(mine, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	wg.Wait()
	b.StopTimer()
	quantiles(b, "", took)
	b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "commits/s")
}

// benchmarkWatch shows how long after Update began, and after it returned, a
// watcher is told.
func benchmarkWatch(b *testing.B, s store.Store) {
	defer s.Close()
	ctx, cancel := context.WithCancel(b.Context())
	seen := make(chan time.Time)
	var wg sync.WaitGroup
	from := revision(b, s)
	wg.Go(func() {
		for _, err := range s.Watch(ctx, from) {
			if err != nil {
				b.Error(err)
			}
			seen <- time.Now()
		}
	})
	var took, late []time.Duration
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		put(b, s, record(api.KindUser, "a", "1", i))
		done := time.Now()
		at := <-seen
		took, late = append(took, at.Sub(start)), append(late, max(0, at.Sub(done)))
	}
	cancel()
	wg.Wait()
	quantiles(b, "from-write-", took)
	quantiles(b, "after-ack-", late)
}

// benchmarkBulk shows one transaction of many Objects, and reading them again.
func benchmarkBulk(b *testing.B, s store.Store) {
	const n = 100_000
	defer s.Close()
	round := 0
	b.Run("put", func(b *testing.B) {
		for b.Loop() {
			round++
			update(b, s, func(tx store.Tx) error {
				for i := range n {
					if err := tx.Put(record(api.KindNamespace, fmt.Sprint("ns-", i), "1", round)); err != nil {
						return err
					}
				}
				return nil
			})
		}
	})
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			view(b, s, func(now store.Reader) error {
				rs, err := list(now, api.GroupCore, api.KindNamespace)
				if len(rs) != n {
					b.Errorf("saw %d", len(rs))
				}
				return err
			})
		}
	})
}

func quantiles(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), name+"p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), name+"p99-µs")
}
