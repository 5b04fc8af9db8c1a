package network_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cardea/store/postgres/pgtest"
	"cardea/test/network/lab"
)

// TestPostgresStore keeps the cluster in PostgreSQL, which is started anew while clients
// are connected; then the cluster is put back from a backup. Sessions keep their addresses.
func TestPostgresStore(t *testing.T) {
	t.Parallel()
	pg := pgtest.New(t, false)
	url := pg.URL("postgres")
	w := newWorld(t, lab.Config{Clients: 2}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000"), "--store", url)
	echo(t, w.Upstream, 7000)
	alice := w.login(w.Clients[0], "alice")
	alice.connect()
	live := w.hold(alice, "echo")
	place := alice.place().Addresses
	v4, v6 := w.at("echo")

	if err := pg.Stop(true); err != nil {
		t.Fatal(err)
	}
	if err := say(live, "the store is away", patience); err != nil {
		t.Errorf("PostgreSQL is down, and a connection: %v", err)
	}
	if err := alice.tries(v4); err != nil {
		t.Errorf("PostgreSQL is down, and a new connection: %v", err)
	}
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	w.until("the cluster writes again", func() error { return w.cluster.Apply(t.Context(), "kind: Group\nmetadata: {name: later}\n") })
	if err := say(live, "the store is there again", patience); err != nil {
		t.Errorf("PostgreSQL was started anew, and a connection: %v", err)
	}
	if now := alice.place().Addresses; now != place {
		t.Errorf("the addresses were %v, and are %v", place, now)
	}

	file := filepath.Join(w.cluster.Dir, "one.backup")
	w.root("backup", file)
	w.root("delete", "service", "echo")
	bob := w.login(w.Clients[1], "bob") // whom the backup does not know
	bobs := bob.connect()
	if err := w.cluster.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	run(t, w.Gateway.Command(w.cluster.Bin, "restore", file, "--data-dir", filepath.Join(w.cluster.Dir, "data"), "--store", url))
	if err := w.cluster.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a, b := w.at("echo"); a != v4 || b != v6 {
		t.Errorf("the Service was at %v and %v, and is at %v and %v", v4, v6, a, b)
	}
	soon(t, patience, "the Service is reached again", func() error { return alice.tries(v4) })
	if now := alice.place().Addresses; now != place {
		t.Errorf("the addresses were %v, and are %v", place, now)
	}
	if code := bobs.wait(t); code != 1 || !strings.Contains(bobs.out.String(), "cardea login") {
		t.Errorf("bob's Session is not there any more, and connect ended with %d and says\n%s", code, bobs.out)
	}
}
