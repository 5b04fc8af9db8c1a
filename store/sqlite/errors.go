package sqlite

import (
	"errors"
	"fmt"

	driver "modernc.org/sqlite"
	result "modernc.org/sqlite/lib"
)

// explain says to an error of SQLite which file it is about, and the way out
// where there is one.
func explain(path string, err error) error {
	if err == nil {
		return nil
	}
	var e *driver.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff { // the primary code
		case result.SQLITE_NOTADB:
			return fmt.Errorf("store: %s is not a SQLite database; name another file, or restore a backup: %w", path, err)
		case result.SQLITE_CORRUPT:
			return fmt.Errorf("store: %s is damaged; restore a backup: %w", path, err)
		case result.SQLITE_FULL:
			return fmt.Errorf("store: %s: the disk is full: %w", path, err)
		case result.SQLITE_BUSY:
			return fmt.Errorf("store: %s is locked by another process: %w", path, err)
		}
	}
	return fmt.Errorf("store: %s: %w", path, err)
}
