package postgres

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pauseAfterFailure is for how long nobody tries to connect after somebody
// failed: those who stand in line do not each wait for a server that is away.
const pauseAfterFailure = 200 * time.Millisecond

// A writing is the connection that writes. But for pid it is used by whoever has
// the turn.
type writing struct {
	config *pgx.ConnConfig
	conn   *pgx.Conn // nil if there is none
	origin string    // the server at the other end, see origin
	pid    atomic.Uint32

	failed time.Time
	err    error // what failed then
}

// get returns the connection, new if it is lost, and the server's origin.
func (w *writing) get(ctx context.Context, s *Store) (*pgx.Conn, string, error) {
	if w.conn != nil && !w.conn.IsClosed() {
		return w.conn, w.origin, nil
	}
	if time.Since(w.failed) < pauseAfterFailure {
		return nil, "", w.err
	}
	c, o, err := w.connect(ctx)
	if ctx.Err() != nil {
		if err == nil {
			hangUp(ctx, c)
		}
		return nil, "", ctx.Err()
	}
	if err != nil {
		w.failed, w.err = time.Now(), s.explain(err)
		return nil, "", w.err
	}
	w.conn, w.origin = c, o
	w.pid.Store(c.PgConn().PID())
	return c, w.origin, nil
}

// connect returns a new connection and the server's origin.
func (w *writing) connect(ctx context.Context) (*pgx.Conn, string, error) {
	c, err := pgx.ConnectConfig(ctx, w.config) // which has a time-out of its own
	if err != nil {
		return nil, "", err
	}
	timed, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	o, err := origin(timed, c)
	if err != nil {
		hangUp(ctx, c)
		return nil, "", err
	}
	return c, o, nil
}

// rollback ends the transaction that is under way. If that fails, so does the
// connection, and with it the transaction.
func (w *writing) rollback(ctx context.Context) {
	if w.conn == nil || w.conn.IsClosed() || w.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	if _, err := w.conn.Exec(ctx, "ROLLBACK"); err != nil {
		_ = w.conn.Close(ctx) // the first error counts
	}
}

// origin returns what tells a server from its copies: its system identifier and
// timeline, which is another after a standby was promoted or a backup restored.
// It is empty if the server does not say.
func origin(ctx context.Context, c *pgx.Conn) (string, error) {
	var o string
	err := c.QueryRow(ctx, `SELECT (SELECT system_identifier FROM pg_control_system()) || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`).Scan(&o)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && !passes(err) { // a role, or a server, that may not say
		return "", nil
	}
	return o, err
}

// hangUp closes a connection, whatever became of ctx. Its last words are of no
// importance.
func hangUp(ctx context.Context, c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
	defer cancel()
	_ = c.Close(ctx)
}
