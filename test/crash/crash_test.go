// Package crash_test kills a real server under load, with SIGKILL, and looks at
// what is left: every write that was acknowledged, a START and one END for every
// connection, and a log whose chain verifies. And it takes the store away from
// one that goes on.
package crash_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/store/postgres/pgtest"
	"cardea/test/cluster"
)

// start starts a cluster, with further flags of up, whose User alice has published
// an echo at a local port.
func start(ctx context.Context, t *testing.T, flags ...string) (c *cluster.Cluster, local int) {
	t.Helper()
	dir := t.TempDir()
	bin, err := cluster.Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	c = &cluster.Cluster{Bin: bin, Dir: dir, Listen: fmt.Sprintf("127.0.0.1:%d", port), Args: flags}
	upstream, stop, err := cluster.Echo()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := c.Stop(ctx, "alice"); err != nil {
			t.Error(err)
		}
	})
	if err := c.Apply(ctx, cluster.GroupYAML("group-1")+cluster.UserYAML("alice", "group-1")+cluster.ServiceYAML("echo", upstream)); err != nil {
		t.Fatal(err)
	}
	if err := c.Login(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	if local, err = c.Publish(ctx, "alice", "echo"); err != nil {
		t.Fatal(err)
	}
	return c, local
}

func TestKill(t *testing.T) {
	t.Parallel()
	rounds := 10
	if testing.Short() {
		rounds = 5
	}
	kill(t, rounds)
}

func TestKillPostgreSQL(t *testing.T) {
	t.Parallel()
	kill(t, 1, "--store", pgtest.Start(t))
}

// kill kills a cluster so many times.
func kill(t *testing.T, rounds int, flags ...string) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	c, local := start(ctx, t, flags...)
	acked := map[string]bool{}
	for round := range rounds {
		written := underLoad(ctx, t, c, local, round)
		for _, name := range written {
			acked[name] = true
		}
		if err := c.Start(ctx); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if out, err := c.Run(ctx, "root", nil, "logs", "verify"); err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, out)
		}
	}
	if len(acked) == 0 {
		t.Fatal("nothing was written under load")
	}
	out, err := c.Run(ctx, "root", nil, "get", "groups", "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for l := range strings.Lines(out) {
		name := strings.TrimSpace(l)
		there[name[strings.LastIndex(name, "/")+1:]] = true
	}
	for name := range acked {
		if !there[name] {
			t.Errorf("the write of Group %s was acknowledged and is gone", name)
		}
	}

	for { // what the clients closed is closed at the server, too
		out, err := c.Run(ctx, "root", nil, "conns", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, "decisionID") {
			break
		}
	}
	out, err = c.Run(ctx, "root", nil, "logs", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	starts, ends := map[string]int{}, map[string]int{}
	crashed := 0
	for line := range strings.Lines(out) {
		var rec api.AccessLog
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		tcp := rec.Entry.Info.TCP
		if tcp == nil {
			continue
		}
		switch tcp.Type {
		case api.LogStart:
			starts[rec.Entry.Common.ConnectionID]++
		case api.LogEnd:
			ends[rec.Entry.Common.ConnectionID]++
			if tcp.CloseReason == "CRASHED" {
				crashed++
			}
		}
	}
	for id, n := range starts {
		if n != 1 || ends[id] != 1 {
			t.Errorf("connection %s has %d START and %d END", id, n, ends[id])
		}
	}
	for id := range ends {
		if starts[id] == 0 {
			t.Errorf("connection %s has an END and no START", id)
		}
	}
	if crashed < rounds {
		t.Errorf("%d connections ended by a crash in %d crashes", crashed, rounds)
	}
	t.Logf("%d writes acknowledged, %d connections, %d of them ended by a crash", len(acked), len(starts), crashed)
}

// underLoad kills the server while connections come and go, one stays, and
// Groups are written; it returns the names of those whose write was
// acknowledged.
func underLoad(ctx context.Context, t *testing.T, c *cluster.Cluster, local, round int) (acked []string) {
	t.Helper()
	at := fmt.Sprintf("127.0.0.1:%d", local)
	stays, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	if err := exchange(stays); err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if conn, err := net.Dial("tcp", at); err == nil {
					exchange(conn)
					conn.Close()
				}
			}
		})
	}
	var mu sync.Mutex
	enough := make(chan struct{})
	wg.Go(func() {
		for i := 0; ; i++ {
			name := fmt.Sprintf("crash-%d-%d", round, i)
			if _, err := c.Run(ctx, "root", nil, "create", "group", name); err != nil {
				return // the server is gone
			}
			mu.Lock()
			acked = append(acked, name)
			mu.Unlock()
			if i == 3 {
				close(enough)
			}
		}
	})
	select {
	case <-enough:
	case <-ctx.Done():
		t.Fatal("no writes were acknowledged")
	}
	if err := c.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	close(stop)
	// The one that stayed must be told: a crash is not an end of file.
	stays.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := stays.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("round %d: a connection whose server crashed saw %v, want a reset", round, err)
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	return acked
}

func exchange(c net.Conn) error {
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	_, err := bufio.NewReader(c).ReadString('\n')
	return err
}
