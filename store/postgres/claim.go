package postgres

import (
	"context"
	"crypto/rand"
	"errors"

	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"

	"cardea/api"
)

// A Claim is the right of one process to serve from a database alone: a lock that
// the server takes away with the connection that holds it.
type Claim struct {
	store  *Store
	config *pgx.ConnConfig
	name   string // of the connection, which tells our own from another's
	conn   *pgx.Conn
}

const (
	claimEvery   = 2 * time.Second // between two looks whether the lock is still there
	claimTimeout = 10 * time.Second
)

// Claim takes the right to serve from the database, which no other process must
// have: then the error says who has it. Keep it with [Claim.Run].
func (s *Store) Claim(ctx context.Context) (*Claim, error) {
	c := &Claim{store: s, config: s.writing.config.Copy(), name: "cardea-" + rand.Text()[:12]}
	c.config.RuntimeParams["application_name"] = c.name
	// A host that has gone must not hold the lock for hours.
	for name, value := range map[string]string{"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"} {
		c.config.RuntimeParams[name] = value
	}
	if err := c.take(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Run keeps the claim until ctx is done. While the server is away it waits; if
// another process has it afterwards, the error says so.
func (c *Claim) Run(ctx context.Context) error {
	defer c.Release(ctx)
	for {
		if err := c.store.pause(ctx, claimEvery); err != nil {
			return nil
		}
		if c.conn != nil && c.ping(ctx) == nil {
			continue
		}
		c.Release(ctx)
		if err := c.take(ctx); err != nil && ctx.Err() == nil && !heals(err) {
			return err
		}
	}
}

// Release gives the claim up.
func (c *Claim) Release(ctx context.Context) {
	if c.conn != nil {
		hangUp(ctx, c.conn)
		c.conn = nil
	}
}

func (c *Claim) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	return c.conn.Ping(ctx)
}

// A claim is a lock of this key; keys are those of a database.
const claimKey = "hashtextextended('cardea claim ' || $1, 0)"

// take connects and takes the lock.
func (c *Claim) take(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, c.config)
	if err != nil {
		return c.store.explain(err)
	}
	taken := false
	for range 2 {
		if err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock("+claimKey+")", c.store.schema).Scan(&taken); err != nil || taken {
			break
		}
		var other holder
		if other, err = c.holder(ctx, conn); err != nil || other.pid == 0 { // it has just gone
			continue
		}
		if other.name != c.name {
			hangUp(ctx, conn)
			return other.inTheWay(c.store.place)
		}
		// A connection of ours that the server does not know to be dead.
		if _, err = conn.Exec(ctx, "SELECT pg_terminate_backend($1, 2000)", other.pid); err != nil {
			break
		}
	}
	if err == nil && !taken {
		err = errors.New("the right to serve from the database could not be had")
	}
	if err != nil {
		hangUp(ctx, conn)
		return c.store.explain(err)
	}
	c.conn = conn
	return nil
}

// A holder is who has the claim.
type holder struct {
	pid   int32
	name  string
	at    *netip.Addr
	since time.Time
}

// holder returns who has the claim; one without a pid is nobody.
func (c *Claim) holder(ctx context.Context, conn *pgx.Conn) (h holder, err error) {
	err = conn.QueryRow(ctx, `SELECT a.pid, a.application_name, a.client_addr, a.backend_start
		FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
		WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
		AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND (l.classid::int8 << 32 | l.objid::int8) = `+claimKey, c.store.schema).Scan(&h.pid, &h.name, &h.at, &h.since)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return h, err
}

// inTheWay says that another process serves.
func (h holder) inTheWay(place string) error {
	where := "on its own machine"
	if h.at != nil {
		where = "from " + h.at.String()
	}
	e := api.Errorf(api.CodeConflict, "another cardea serves from %s: %s, since %s", place, where, h.since.UTC().Format(time.RFC3339))
	e.Hint = "stop it first; one whose machine has gone is forgotten within half a minute"
	return e
}
