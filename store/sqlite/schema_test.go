package sqlite

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"cardea/store"
)

// sqlTo runs statements on a file, as another program.
func sqlTo(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
}

// A database of the first version is migrated with all that is in it.
func TestMigratesForward(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cardea.db")
	sqlTo(t, path, schema1, fmt.Sprint("PRAGMA application_id = ", applicationID), "PRAGMA user_version = 1",
		`INSERT INTO changes VALUES (1, 0, 0, 'a', '', 'User', '', 'alice', 'u1', '{}', 0, NULL)`,
		`UPDATE meta SET revision = 1`, `INSERT INTO marks VALUES ('m', x'00')`)
	for range 2 { // the second time there is nothing to do
		s, err := Open(t.Context(), path, Options{Program: "v7"})
		if err != nil {
			t.Fatal(err)
		}
		if got := names(t, s); got != "alice" {
			t.Errorf("there are %s", got)
		}
		if m, err := s.Mark(t.Context(), "m"); err != nil || len(m) != 1 {
			t.Errorf("the mark is %q, %v", m, err)
		}
		var version int
		var program string
		err = s.writer.QueryRowContext(t.Context(), "SELECT user_version, program FROM pragma_user_version, migrations WHERE version = user_version").Scan(&version, &program)
		if err != nil || version != len(schema()) || program != "v7" {
			t.Errorf("it is version %d by %q, %v", version, program, err)
		}
		s.Close()
	}
}

// One version back is readable: what a newer program only added to is used on.
func TestNewerSchema(t *testing.T) {
	newer := len(schema()) + 1
	for _, c := range []struct {
		name     string
		readable int
		want     string
	}{
		{"that adds", newer - 1, ""},
		{"that changes", newer, fmt.Sprintf("this store has schema %d, this binary knows up to %d: use cardea ≥ v9.1", newer, newer-1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cardea.db")
			s, err := Open(t.Context(), path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			sqlTo(t, path,
				"ALTER TABLE changes ADD COLUMN more TEXT NOT NULL DEFAULT ''", "ALTER TABLE marks ADD COLUMN more TEXT", "ALTER TABLE meta ADD COLUMN more TEXT",
				fmt.Sprintf("INSERT INTO migrations VALUES (%d, %d, 0, 'v9.1')", newer, c.readable),
				fmt.Sprint("PRAGMA user_version = ", newer))
			s, err = Open(t.Context(), path, Options{})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("Open: %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if r, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(object("a", 1)) }); err != nil || r.Number != 1 {
				t.Errorf("Update: %v, %v", r, err)
			}
			if err := s.SetMark(t.Context(), "m", []byte("x")); err != nil {
				t.Error(err)
			}
			if got := names(t, s); got != "a" {
				t.Errorf("there are %s", got)
			}
		})
	}
}
