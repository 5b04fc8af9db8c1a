package sqlite_test

import (
	"path/filepath"
	"testing"

	"cardea/store"
	"cardea/store/sqlite"
	"cardea/store/storetest"
)

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) store.Store {
		s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "cardea.db"), sqlite.Options{})
		if err != nil {
			b.Fatal(err)
		}
		return s
	})
}
