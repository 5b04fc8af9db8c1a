package sqlite_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/store"
	"cardea/store/sqlite"
)

func record(kind, name, uid string, v int) store.Record {
	return store.Record{
		Key:  api.Key{Group: api.GroupCore, Kind: kind, Name: name},
		UID:  uid,
		JSON: json.RawMessage(fmt.Sprintf(`{"kind":%q,"metadata":{"name":%q,"uid":%q},"spec":{"attrs":{"v":%d}}}`, kind, name, uid, v)),
	}
}

// BenchmarkUpdate shows one small durable transaction, alone and from many
// callers that share fsyncs.
func BenchmarkUpdate(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "cardea.db"), sqlite.Options{})
			if err != nil {
				b.Fatal(err)
			}
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
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "commits/s")
		})
	}
}

// BenchmarkBulk shows one transaction of many Objects, and reading them again.
func BenchmarkBulk(b *testing.B) {
	const n = 100_000
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "cardea.db"), sqlite.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	round := 0
	b.Run("put", func(b *testing.B) {
		for b.Loop() {
			round++
			put(b, s, n, round)
		}
	})
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			err := s.View(b.Context(), func(r store.Reader) error {
				seen := 0
				for _, err := range r.List(api.GroupCore, api.KindNamespace) {
					if err != nil {
						return err
					}
					seen++
				}
				if seen != n {
					return fmt.Errorf("saw %d", seen)
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			err := s.View(b.Context(), func(r store.Reader) error {
				_, err := r.Get(api.Key{Group: api.GroupCore, Kind: api.KindNamespace, Name: "ns-7"})
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

func put(b *testing.B, s store.Store, n, v int) {
	_, err := s.Update(context.WithoutCancel(b.Context()), "bench", func(tx store.Tx) error {
		for i := range n {
			if err := tx.Put(record(api.KindNamespace, fmt.Sprint("ns-", i), "1", v)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
