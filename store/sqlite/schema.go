package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"cardea/store"
)

// applicationID marks the file as ours (PRAGMA application_id): "CRDA".
const applicationID = 0x43524441

// schema returns how a database comes to the latest version of the schema. A file
// has its version as PRAGMA user_version.
func schema() []store.Migration {
	return []store.Migration{
		{Version: 1, Readable: 1, Text: schema1},
		{Version: 2, Readable: 1, Text: schema2},
	}
}

// schema1 makes an empty database. Times are microseconds since 1970, UTC.
//
// The state is the rows of changes that have not ended: there is no second copy
// that could disagree with the history. A row ends when its Object is written
// again or deleted; the row that tells of a deletion ends as it is written.
const schema1 = `
CREATE TABLE changes (
	revision  INTEGER NOT NULL,
	seq       INTEGER NOT NULL,
	at        INTEGER NOT NULL,
	actor     TEXT    NOT NULL,
	grp       TEXT    NOT NULL,
	kind      TEXT    NOT NULL,
	namespace TEXT    NOT NULL,
	name      TEXT    NOT NULL,
	uid       TEXT    NOT NULL,
	json      TEXT    NOT NULL,
	deleted   INTEGER NOT NULL,
	ended     INTEGER,
	PRIMARY KEY (revision, seq)
) STRICT;
CREATE UNIQUE INDEX changes_now ON changes (grp, kind, namespace, name) WHERE ended IS NULL;
CREATE INDEX changes_ended ON changes (ended) WHERE ended IS NOT NULL;

CREATE VIEW objects AS
	SELECT grp, kind, namespace, name, uid, revision, at, actor, json FROM changes WHERE ended IS NULL;

CREATE TABLE marks (
	name  TEXT PRIMARY KEY,
	value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- revision is that of the latest commit, written as the last act of each
-- transaction; compacted is the greatest revision of which a row was pruned.
CREATE TABLE meta (
	id        INTEGER PRIMARY KEY CHECK (id = 1),
	epoch     INTEGER NOT NULL,
	revision  INTEGER NOT NULL,
	compacted INTEGER NOT NULL
) STRICT;
INSERT INTO meta VALUES (1, 1, 0, 0);
`

// schema2 keeps how the schema came to be, so that an older program can tell
// whether it may use it, and if not, which one does.
const schema2 = `
CREATE TABLE migrations (
	version  INTEGER PRIMARY KEY,
	readable INTEGER NOT NULL,
	at       INTEGER NOT NULL,
	program  TEXT    NOT NULL
) STRICT;
`

// migrate brings a database to the latest version of the schema, and refuses one
// that is not ours or that a newer program made unfit, before anything in it is
// changed. Several processes may do so at once.
func migrate(ctx context.Context, c *sql.Conn, program string) (err error) {
	if _, err := todo(ctx, c); err != nil {
		return err
	}
	if _, err := c.ExecContext(ctx, "PRAGMA journal_mode = WAL"); err != nil {
		return err
	}
	if _, err := c.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_, _ = c.ExecContext(ctx, "ROLLBACK") // the first error counts
		}
	}()
	steps, err := todo(ctx, c) // again: another process may have been faster
	if err != nil {
		return err
	}
	for _, m := range steps {
		if _, err := c.ExecContext(ctx, fmt.Sprintf("%s PRAGMA application_id = %d; PRAGMA user_version = %d;", m.Text, applicationID, m.Version)); err != nil {
			return err
		}
		if m.Version < 2 {
			continue // there is no table yet
		}
		_, err := c.ExecContext(ctx, "INSERT INTO migrations (version, readable, at, program) VALUES (?, ?, ?, ?)",
			m.Version, m.Readable, time.Now().UnixMicro(), program)
		if err != nil {
			return err
		}
	}
	_, err = c.ExecContext(ctx, "COMMIT")
	return err
}

// todo returns what is to be done to a database; the error says why it cannot be
// used.
func todo(ctx context.Context, c *sql.Conn) ([]store.Migration, error) {
	var app, tables, history int
	var found store.Schema
	err := c.QueryRowContext(ctx, `SELECT application_id, user_version,
		(SELECT count(*) FROM sqlite_schema), (SELECT count(*) FROM sqlite_schema WHERE name = 'migrations')
		FROM pragma_application_id, pragma_user_version`).Scan(&app, &found.Version, &tables, &history)
	switch {
	case err != nil:
		return nil, err
	case app == 0 && found.Version == 0 && tables == 0:
		return schema(), nil
	case app != applicationID:
		return nil, errors.New("it is a SQLite database of another program; name another file")
	case found.Version < 1:
		return nil, fmt.Errorf("its schema version is %d, which no version of Cardea writes; restore a backup", found.Version)
	}
	if history > 0 {
		err := c.QueryRowContext(ctx, "SELECT readable, program FROM migrations WHERE version = ?", found.Version).Scan(&found.Readable, &found.Program)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
	}
	return store.Migrate(schema(), found)
}
