package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// applicationID marks the file as ours (PRAGMA application_id): "CRDA".
const applicationID = 0x43524441

// schemaVersion is the version of the schema below (PRAGMA user_version). A
// newer program upgrades an older file; an older program refuses a newer one.
const schemaVersion = 1

// schema makes an empty database. Times are microseconds since 1970, UTC.
//
// The state is the rows of changes that have not ended: there is no second copy
// that could disagree with the history. A row ends when its Object is written
// again or deleted; the row that tells of a deletion ends as it is written.
const schema = `
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

// migrate makes the schema in an empty database, and refuses one that is not
// ours or that a newer program wrote, before anything in it is changed. Several
// processes may do so at once.
func migrate(ctx context.Context, c *sql.Conn) (err error) {
	if _, err := isEmpty(ctx, c); err != nil {
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
	empty, err := isEmpty(ctx, c)
	if err != nil {
		return err
	}
	if empty {
		_, err := c.ExecContext(ctx, fmt.Sprintf("%s PRAGMA application_id = %d; PRAGMA user_version = %d;", schema, applicationID, schemaVersion))
		if err != nil {
			return err
		}
	}
	_, err = c.ExecContext(ctx, "COMMIT")
	return err
}

// isEmpty reports whether the database is a new one; the error says why it
// cannot be used.
func isEmpty(ctx context.Context, c *sql.Conn) (bool, error) {
	var app, version, tables int
	err := c.QueryRowContext(ctx, `SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id, pragma_user_version`).Scan(&app, &version, &tables)
	switch {
	case err != nil:
		return false, err
	case app == 0 && version == 0 && tables == 0:
		return true, nil
	case app != applicationID:
		return false, errors.New("it is a SQLite database of another program; name another file")
	case version > schemaVersion:
		return false, fmt.Errorf("it was written by a newer version of Cardea (schema %d, this one knows %d); use that version", version, schemaVersion)
	case version != schemaVersion:
		return false, fmt.Errorf("its schema version is %d, which no version of Cardea writes; restore a backup", version)
	}
	return false, nil
}
