package real_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/test/cluster"
)

// A dialogue is a program that answers lines with lines.
type dialogue struct {
	stdin io.Writer
	lines chan string // closed when it ends
}

// startDialogue starts a program, which lives until the test is over.
func startDialogue(t *testing.T, cmd *exec.Cmd) *dialogue {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &dialogue{stdin, make(chan string, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(d.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			d.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		for range d.lines {
		}
		<-done
		cmd.Wait() // it was killed, if it had not ended
	})
	return d
}

// ask says a line, and returns what is answered; ok is false when the program ends.
func (d *dialogue) ask(t *testing.T, line string) (answer string, ok bool) {
	t.Helper()
	fmt.Fprintln(d.stdin, line) // a program that has ended does not answer either
	select {
	case answer, ok = <-d.lines:
		return answer, ok
	case <-time.After(30 * time.Second):
		t.Fatalf("%q is not answered", line)
		return "", false
	}
}

// Sessions of ssh and psql that are open outlive the process that carries them, twice.
// What is revoked at the process that came last is cut by the one that came first; the
// others go on, and each connection has one START and one END.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	ssh, psql := need(t, "ssh"), need(t, "psql")
	sshd, _, options := startSSHD(t)
	database := startPostgres(t, func(string) []string { return nil })
	c := up(t, cluster.UserYAML("bob", "group-1")+cluster.ServiceYAML("shell", "127.0.0.1:"+sshd)+cluster.ServiceYAML("database", "127.0.0.1:"+database))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := c.Login(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Run(context.WithoutCancel(t.Context()), "bob", nil, "disconnect") })
	alices := publish(t, c, "shell")
	bobs, err := c.Publish(ctx, "bob", "database")
	if err != nil {
		t.Fatal(err)
	}
	shell := startDialogue(t, exec.Command(ssh, append(options, "-p", alices, login(t, "127.0.0.1"), "while read line; do echo heard $line; done")...))
	sql := startDialogue(t, exec.Command(psql, "-h", "127.0.0.1", "-p", fmt.Sprint(bobs), "-U", "app", "-At", "postgres"))
	talk := func(when string) {
		t.Helper()
		if got, ok := shell.ask(t, when); !ok || got != "heard "+when {
			t.Fatalf("%s ssh answers %q, %v", when, got, ok)
		}
		if got, ok := sql.ask(t, "select '"+when+"';"); !ok || got != when {
			t.Fatalf("%s psql answers %q, %v", when, got, ok)
		}
	}
	live := func() (ids []string) {
		t.Helper()
		out, err := c.Run(ctx, "root", nil, "conns", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var conns api.Connections
		if err := json.Unmarshal([]byte(out), &conns); err != nil {
			t.Fatal(err)
		}
		for _, x := range conns.Items {
			ids = append(ids, x.ID)
		}
		return ids
	}
	talk("before")
	before := live()
	for deadline := time.Now().Add(10 * time.Second); len(before) > 2 && time.Now().Before(deadline); before = live() {
		// One with which a server was found to be there may still be ending.
	}
	if len(before) != 2 {
		t.Fatalf("live: %v", before)
	}
	for i := range 2 {
		if err := c.Upgrade(ctx, ""); err != nil {
			t.Fatal(err)
		}
		talk(fmt.Sprintf("after upgrade %d", i+1))
		if got := live(); len(got) != 2 {
			t.Errorf("after upgrade %d conns shows %v, before it %v", i+1, got, before)
		}
		again := exec.Command(ssh, append(options, "-p", alices, login(t, "127.0.0.1"), "echo", "again")...)
		if got := run(t, again); got != "again\n" {
			t.Errorf("a new connection after upgrade %d: %q", i+1, got)
		}
	}

	if _, err := c.Run(ctx, "root", nil, "delete", "session", sessionOf(t, c, "bob")); err != nil {
		t.Fatal(err)
	}
	if end := lastEnd(t, c, "database"); end.CloseReason != "REVOKED" {
		t.Errorf("the log says %s: %s", end.CloseReason, end.Error)
	}
	if got, ok := sql.ask(t, "select 'revoked';"); ok && got == "revoked" {
		t.Error("psql goes on after its Session was deleted")
	}
	if got, ok := shell.ask(t, "at last"); !ok || got != "heard at last" {
		t.Errorf("ssh answers %q, %v", got, ok)
	}

	// When the last relay ends, so does the process that carried it.
	if c.Running() < 2 {
		t.Error("there is one process, and a connection from before it")
	}
	shell.stdin.(io.Closer).Close()
	for deadline := time.Now().Add(30 * time.Second); c.Running() > 1; {
		if time.Now().After(deadline) {
			t.Fatalf("%d processes, and no connection from before the last", c.Running())
		}
		<-time.After(10 * time.Millisecond)
	}
	out, err := c.Run(ctx, "root", nil, "logs", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]int{}
	for line := range strings.Lines(out) {
		var rec api.AccessLog
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatal(err)
		}
		if tcp := rec.Entry.Info.TCP; tcp != nil {
			open[rec.Entry.Common.ConnectionID] += map[api.LogType]int{api.LogStart: 1, api.LogEnd: -1}[tcp.Type]
		}
	}
	if len(open) != 4 {
		t.Errorf("the log has %d connections", len(open))
	}
	for id, n := range open {
		if n != 0 {
			t.Errorf("connection %s: STARTs less ENDs are %d", id, n)
		}
	}
	if out, err := c.Run(ctx, "root", nil, "logs", "verify"); err != nil {
		t.Errorf("logs verify: %v\n%s", err, out)
	}
}

// sessionOf returns the name of a User's Session.
func sessionOf(t *testing.T, c *cluster.Cluster, user string) string {
	t.Helper()
	out, err := c.Run(t.Context(), "root", nil, "get", "session", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Items []api.Session }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	for _, s := range list.Items {
		if s.Status.UserRef.Name == user {
			return s.Metadata.Name
		}
	}
	t.Fatalf("%s has no Session", user)
	return ""
}
