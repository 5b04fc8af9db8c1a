package store

import (
	"cmp"
	"fmt"
)

// A Migration takes the schema of a database from the version before it to
// Version. Its Text runs in the transaction that notes it.
type Migration struct {
	Version int
	// Readable is the oldest version whose programs can go on using the database.
	// A migration that only adds (tables, columns that have a default) leaves the
	// programs of the version before it working: it says Version-1.
	Readable int
	Text     string
}

// A Schema is what a database says of its own; zero is an empty database.
type Schema struct {
	Version  int
	Readable int    // see Migration; 0 means that it is not known, and so Version
	Program  string // the version of Cardea that brought it to Version; may be empty
}

// Migrate returns, for implementations, what of known, which begins with version
// 1, is to be done to a database. A database that a newer program has changed
// beyond what this one can use is refused.
func Migrate(known []Migration, found Schema) ([]Migration, error) {
	newest := len(known)
	if found.Version <= newest {
		return known[found.Version:], nil
	}
	if cmp.Or(found.Readable, found.Version) <= newest {
		return nil, nil
	}
	return nil, fmt.Errorf("this store has schema %d, this binary knows up to %d: use cardea ≥ %s",
		found.Version, newest, cmp.Or(found.Program, "the version that last used it"))
}
