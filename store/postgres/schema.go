package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"cardea/store"
)

// oldest is the first version of PostgreSQL that will do, as server_version_num.
const oldest = 12_00_00

// schema returns how a database comes to the latest version of the schema.
func schema() []store.Migration {
	return []store.Migration{{Version: 1, Readable: 1, Text: schema1}}
}

// schema1 makes the tables.
//
// The state is the rows of changes that have not ended: there is no second copy
// that could disagree with the history. A row ends when its Object is written
// again or deleted; the row that tells of a deletion ends as it is written. Text
// is compared byte by byte, whatever the database does. JSON is text, to be given
// back as it came.
const schema1 = `
CREATE TABLE migrations (
	version  integer PRIMARY KEY,
	readable integer NOT NULL,
	at       timestamptz NOT NULL,
	program  text NOT NULL
);

CREATE TABLE changes (
	revision  bigint NOT NULL,
	seq       integer NOT NULL,
	at        timestamptz NOT NULL,
	actor     text NOT NULL,
	grp       text COLLATE "C" NOT NULL,
	kind      text COLLATE "C" NOT NULL,
	namespace text COLLATE "C" NOT NULL,
	name      text COLLATE "C" NOT NULL,
	uid       text COLLATE "C" NOT NULL,
	json      text NOT NULL,
	deleted   boolean NOT NULL,
	ended     timestamptz,
	PRIMARY KEY (revision, seq)
);
CREATE UNIQUE INDEX changes_now ON changes (grp, kind, namespace, name) WHERE ended IS NULL;
CREATE INDEX changes_ended ON changes (ended) WHERE ended IS NOT NULL;

CREATE VIEW objects AS
	SELECT grp, kind, namespace, name, uid, revision, at, actor, json FROM changes WHERE ended IS NULL;

CREATE TABLE marks (
	name  text COLLATE "C" PRIMARY KEY,
	value bytea NOT NULL
);

-- revision is that of the latest commit; compacted is the greatest revision
-- after which a watch cannot begin; origin is the server that wrote last. Who
-- writes holds the lock of this row from the first act of its transaction to the
-- last, which writes it.
CREATE TABLE meta (
	id        integer PRIMARY KEY CHECK (id = 1),
	epoch     bigint NOT NULL,
	revision  bigint NOT NULL,
	compacted bigint NOT NULL,
	origin    text NOT NULL
) WITH (fillfactor = 20);
INSERT INTO meta VALUES (1, 1, 0, 0, '');
`

// fit reports what is wrong with the server.
func fit(ctx context.Context, c *pgx.Conn) error {
	var version int
	var encoding string
	err := c.QueryRow(ctx, `SELECT current_setting('server_version_num')::integer, current_setting('server_encoding')`).Scan(&version, &encoding)
	switch {
	case err != nil:
		return err
	case version < oldest:
		return fmt.Errorf("the server is PostgreSQL %d; it must be %d or later", version/10000, oldest/10000)
	case encoding != "UTF8":
		return fmt.Errorf("the encoding of the database is %s; create it with ENCODING 'UTF8'", encoding)
	}
	return nil
}

// migrate brings the schema of that name to its latest version, and refuses one
// that is not ours or that a newer program made unfit, before anything in it is
// changed. Several processes may do so at once.
func migrate(ctx context.Context, c *pgx.Conn, name, program string) error {
	return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('cardea'), hashtext($1))`, name); err != nil {
			return err
		}
		var there bool
		var tables, ours int
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1),
			(SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident($1))),
			(SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident($1)) AND relname IN ('migrations', 'changes', 'meta'))`,
			name).Scan(&there, &tables, &ours)
		if err != nil {
			return err
		}
		var found store.Schema
		switch {
		case ours == 3:
			// By its full name, or a role that may not use the schema is told that there is no table.
			err := tx.QueryRow(ctx, "SELECT version, readable, program FROM "+pgx.Identifier{name, "migrations"}.Sanitize()+" ORDER BY version DESC LIMIT 1").
				Scan(&found.Version, &found.Readable, &found.Program)
			if err != nil {
				return err
			}
		case tables > 0:
			return errors.New("there are tables of another program; name another schema by search_path in the URL")
		case !there:
			if _, err := tx.Exec(ctx, "CREATE SCHEMA "+pgx.Identifier{name}.Sanitize()); err != nil {
				return err
			}
		}
		steps, err := store.Migrate(schema(), found)
		if err != nil {
			return err
		}
		for _, m := range steps {
			if _, err := tx.Exec(ctx, m.Text); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO migrations (version, readable, at, program) VALUES ($1, $2, now(), $3)`, m.Version, m.Readable, program)
			if err != nil {
				return err
			}
		}
		return nil
	})
}
