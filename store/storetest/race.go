//go:build race

package storetest

// underRace is whether the race detector is on. It makes a store that is
// computing, as SQLite in Go is, some thirty times slower, so sizes are smaller.
const underRace = true
