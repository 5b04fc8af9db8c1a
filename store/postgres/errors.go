package postgres

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"cardea/api"
)

// A trouble is an error of the server, or of the way to it, as people read it.
type trouble struct {
	text  string
	cause error // nil if it says what nobody may know
	// heals says that the same may succeed soon: nothing was done, and what went
	// wrong comes from where the server is, not from what it was asked.
	heals bool
}

func (t *trouble) Error() string { return t.text }
func (t *trouble) Unwrap() error { return t.cause }

// As makes an *api.Error of a trouble that heals, for whoever called the API.
func (t *trouble) As(target any) bool {
	e, ok := target.(**api.Error)
	if !ok || !t.heals {
		return false
	}
	*e = api.Errorf(api.CodeUnavailable, "the store cannot be reached now; nothing was written")
	(*e).Hint = "try again"
	return true
}

// explain makes a trouble of an error of the driver.
func (s *Store) explain(err error) error {
	if err == nil {
		return nil
	}
	// The driver tells of each address that it tried on a line of its own.
	t := &trouble{text: strings.Join(strings.Fields(err.Error()), " "), cause: err, heals: passes(err)}
	if clean := redact(t.text, s.secrets...); clean != t.text {
		t.text, t.cause = clean, nil
	}
	hint := ""
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "53100": // disk_full
			hint = "the disk of the server is full: "
		case "55P03": // lock_not_available
			hint = fmt.Sprintf("another process has held the store for %v: ", lockTimeout)
		case "42501": // insufficient_privilege
			hint = "the role may not do this; grant it CREATE on the database, or USAGE on the schema and SELECT, INSERT, UPDATE, DELETE on its tables: "
		}
	}
	t.text = fmt.Sprintf("store: %s: %s%s", s.place, hint, t.text)
	return t
}

// passes reports whether an error of the driver is one that time heals. What is
// not an error that the server reports is one of the connection.
func passes(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return true
	}
	switch pg.Code {
	case "25006", // read_only_sql_transaction: it is a standby now
		"25P03", // idle_in_transaction_session_timeout
		"53300", // too_many_connections
		"55P03": // lock_not_available
		return true
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "08", // connection exception
		"40", // transaction rollback
		"57": // operator intervention: shutdown, crash, starting up, cancelled
		return true
	}
	return false
}

// heals reports whether err is a trouble that time heals.
func heals(err error) bool {
	var t *trouble
	return errors.As(err, &t) && t.heals
}
