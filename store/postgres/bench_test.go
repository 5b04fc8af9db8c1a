package postgres_test

import (
	"fmt"
	"testing"

	"cardea/store"
	"cardea/store/postgres"
	"cardea/store/postgres/pgtest"
	"cardea/store/storetest"
)

// BenchmarkStore measures the store on a server whose commits wait for the disk.
func BenchmarkStore(b *testing.B) {
	durable := pgtest.New(b, true)
	n := 0
	storetest.Benchmark(b, func(b *testing.B) store.Store {
		n++
		return open(b, durable.Create(b, fmt.Sprint("b", n)), postgres.Options{})
	})
}
