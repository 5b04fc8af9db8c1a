package crash_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"cardea/store/postgres/pgtest"
	"cardea/test/cluster"
)

// While PostgreSQL is away nobody is cut, and whoever was allowed to comes in;
// writes fail and say so. When it is back, writes are, and a change cuts.
func TestPostgreSQLRestarts(t *testing.T) {
	t.Parallel()
	for name, atOnce := range map[string]bool{"in order": false, "crash": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			db := pgtest.New(t, false)
			c, local := start(ctx, t, "--store", db.URL("postgres"))
			at := fmt.Sprintf("127.0.0.1:%d", local)
			dial := func() net.Conn {
				t.Helper()
				conn, err := net.Dial("tcp", at)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				if err := exchange(conn); err != nil {
					t.Fatal(err)
				}
				return conn
			}
			stays := dial()

			if err := db.Stop(atOnce); err != nil {
				t.Fatal(err)
			}
			if out, err := c.Run(ctx, "root", nil, "create", "group", "too-early"); err == nil {
				t.Errorf("a write without a store was acknowledged: %s", out)
			} else {
				t.Log(err)
			}
			if err := exchange(stays); err != nil {
				t.Errorf("a live connection, while the store is away: %v", err)
			}
			comes := dial()

			if err := db.Start(); err != nil {
				t.Fatal(err)
			}
			for { // until writes are back
				if _, err := c.Run(ctx, "root", nil, "create", "group", "again"); err == nil {
					break
				}
				if ctx.Err() != nil {
					t.Fatal("writes do not come back")
				}
			}
			for _, conn := range []net.Conn{stays, comes} {
				if err := exchange(conn); err != nil {
					t.Errorf("a live connection, when the store is back: %v", err)
				}
			}
			if err := c.Apply(ctx, cluster.UserYAML("alice")); err != nil {
				t.Fatal(err)
			}
			for _, conn := range []net.Conn{stays, comes} {
				conn.SetReadDeadline(time.Now().Add(30 * time.Second))
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("who lost the right saw %v, want a reset", err)
				}
			}
			if out, err := c.Run(ctx, "root", nil, "logs", "verify"); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
