// Package world_test runs a whole cluster in this process, over loopback and a
// real store, and looks at what its users, strangers and administrators get.
package world_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/client"
	"cardea/manifest"
	"cardea/server"
	"cardea/test/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a cluster, root, and who else logged in.
type world struct {
	t     *testing.T
	dir   string
	ready server.Ready
	root  *client.Client
	stop  func()
}

// start runs a cluster until the test is over.
func start(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	w.up()
	w.root = w.login(api.RootUser, w.ready.Token)
	return w
}

// up starts the server; stop ends it.
func (w *world) up() {
	w.t.Helper()
	listen := "127.0.0.1:0"
	if w.ready.Address != "" {
		listen = w.ready.Address
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ready, done := make(chan server.Ready, 1), make(chan error, 1)
	go func() {
		done <- server.Up(ctx, server.Config{DataDir: filepath.Join(w.dir, "data"), Listen: listen, Log: slog.New(slog.DiscardHandler)}, func(r server.Ready) { ready <- r })
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the server ended with: %v", err)
		}
	})
	w.t.Cleanup(w.stop)
	select {
	case w.ready = <-ready:
	case err := <-done:
		w.t.Fatalf("the server did not start: %v", err)
	}
}

// login logs a User in with a token, in a home of his own.
func (w *world) login(user, token string) *client.Client {
	w.t.Helper()
	home := filepath.Join(w.dir, "home-"+user)
	if _, err := client.Login(w.t.Context(), home, w.ready.Address, token, w.ready.CASHA256); err != nil {
		w.t.Fatal(err)
	}
	c := &client.Client{Home: home}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// do calls the API as root.
func (w *world) do(method, path string, in, out any) {
	w.t.Helper()
	if err := w.try(method, path, in, out); err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
}

func (w *world) try(method, path string, in, out any) error {
	a, err := w.root.API(w.t.Context())
	if err != nil {
		return err
	}
	return a.Do(w.t.Context(), method, path, in, out)
}

// apply applies YAML as root.
func (w *world) apply(yaml string) {
	w.t.Helper()
	docs, found := manifest.Decode("test", []byte(yaml))
	if err := found.Err(); err != nil {
		w.t.Fatal(err)
	}
	var req api.ApplyRequest
	for _, d := range docs {
		req.Documents = append(req.Documents, d.JSON)
	}
	w.do(http.MethodPost, "/api/apply", req, new(api.ApplyResponse))
}

// user makes a User with a Credential, and logs him in.
func (w *world) user(name string, groups ...string) *client.Client {
	w.t.Helper()
	g, _ := json.Marshal(groups)
	w.apply(fmt.Sprintf("kind: User\nmetadata: {name: %s}\nspec: {type: HUMAN, groups: %s}\n---\nkind: Credential\nmetadata: {name: %s}\nspec: {type: AUTH_TOKEN, user: %s}\n", name, g, name, name))
	var tok api.TokenResponse
	w.do(http.MethodPost, "/api/core/v1/credentials/"+name+"/token", nil, &tok)
	return w.login(name, tok.Token)
}

// logs returns the records of the log.
func (w *world) logs() []api.AccessLog {
	w.t.Helper()
	a, err := w.root.API(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var recs []api.AccessLog
	err = a.Stream(w.t.Context(), http.MethodGet, "/api/logs", nil, func(b json.RawMessage) error {
		var rec api.AccessLog
		if err := json.Unmarshal(b, &rec); err != nil {
			return err
		}
		recs = append(recs, rec)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return recs
}

// echo is an upstream that answers each line with itself.
func echo(t *testing.T) string {
	t.Helper()
	address, stop, err := cluster.Echo()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return address
}

const groupOne = "kind: Group\nmetadata: {name: group-1}\nspec: {}\n"

// service is a Service that the members of group-1 may reach.
func service(name, upstream string) string {
	return fmt.Sprintf(`---
kind: Service
metadata: {name: %s}
spec:
  mode: TCP
  config: {upstream: {url: "tcp://%s"}}
  authorization:
    inlinePolicies:
      - spec:
          rules:
            - effect: ALLOW
              condition: {match: '"group-1" in ctx.user.spec.groups'}
            - effect: DENY
              message: ask the owner
              condition: {not: '"group-1" in ctx.user.spec.groups'}
`, name, upstream)
}

// say has one exchange with an echo.
func say(c net.Conn, line string) error {
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return err
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && got != line+"\n" {
		err = fmt.Errorf("read %q", got)
	}
	return err
}

// Who may gets through; who may not is told as much as he may know; who is cut
// is told why.
func TestAccess(t *testing.T) {
	w := start(t)
	w.apply(groupOne + service("echo", echo(t)))
	alice, bob := w.user("alice", "group-1"), w.user("bob")

	c, err := alice.Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := say(c, "hello"); err != nil {
		t.Fatal(err)
	}

	var denied *api.Error
	if _, err := bob.Dial(t.Context(), "echo"); !errors.As(err, &denied) || denied.Code != api.CodePermissionDenied || denied.DecisionID == "" || !strings.Contains(denied.Error(), "ask the owner") {
		t.Errorf("bob was told %v", err)
	}
	_, unknown := bob.Dial(t.Context(), "no-such-service")
	var e *api.Error
	if !errors.As(unknown, &e) || e.Code != api.CodePermissionDenied {
		t.Errorf("of a Service that does not exist bob was told %v", unknown)
	}

	w.apply("kind: User\nmetadata: {name: alice}\nspec: {type: HUMAN}\n")
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "REVOKED") {
		t.Errorf("alice's connection ended with %v, want a reset that says REVOKED", err)
	}
	var conns api.Connections
	w.do(http.MethodGet, "/api/conns", nil, &conns)
	if len(conns.Items) != 0 {
		t.Errorf("still live: %+v", conns.Items)
	}
}

// A disabled User, a deleted Service, a deleted Session: each cuts what hangs on
// it, and nothing else.
func TestCuts(t *testing.T) {
	w := start(t)
	upstream := echo(t)
	w.apply(groupOne + service("one", upstream) + service("two", upstream))
	alice, bob := w.user("alice", "group-1"), w.user("bob", "group-1")
	open := func(c *client.Client, service string) net.Conn {
		t.Helper()
		conn, err := c.Dial(t.Context(), service)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := say(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	cut := func(c net.Conn) {
		t.Helper()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "REVOKED") {
			t.Errorf("ended with %v, want a reset", err)
		}
	}
	alive := func(c net.Conn) {
		t.Helper()
		if err := say(c, "still there"); err != nil {
			t.Errorf("a connection that nothing was done to: %v", err)
		}
	}

	stays := open(bob, "two")
	for name, do := range map[string]func(){
		"User disabled": func() {
			w.apply("kind: User\nmetadata: {name: alice}\nspec: {type: HUMAN, groups: [group-1], isDisabled: true}\n")
		},
		"Policy on Group": func() {
			w.apply("kind: User\nmetadata: {name: alice}\nspec: {type: HUMAN, groups: [group-1], authorization: {policies: [deny-all]}}\n")
		},
		"Service disabled": func() {
			w.apply(strings.Replace(service("one", upstream), "spec:\n", "spec:\n  isDisabled: true\n", 1))
		},
		"Service deleted": func() { w.do(http.MethodDelete, "/api/core/v1/services/one", nil, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			w.apply("kind: User\nmetadata: {name: alice}\nspec: {type: HUMAN, groups: [group-1]}\n" + service("one", upstream))
			c := open(alice, "one")
			do()
			cut(c)
			alive(stays)
		})
	}
	w.apply("kind: User\nmetadata: {name: alice}\nspec: {type: HUMAN, groups: [group-1]}\n")
	c := open(alice, "two")
	s, err := alice.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.do(http.MethodDelete, "/api/core/v1/sessions/"+s.Session, nil, nil)
	cut(c)
	alive(stays)
	if _, err := alice.Dial(t.Context(), "two"); err == nil {
		t.Error("a deleted Session got a connection")
	}
}

// A restart forgets nobody: the Session, the Objects and the log are there.
func TestRestart(t *testing.T) {
	w := start(t)
	w.apply(groupOne + service("echo", echo(t)))
	alice := w.user("alice", "group-1")
	before := w.logs()
	w.stop()
	w.up()
	if w.ready.Token != "" {
		t.Error("a cluster whose root has logged in gave out a token")
	}
	c, err := alice.Dial(t.Context(), "echo")
	if err != nil {
		words, _ := json.Marshal(w.logs())
		t.Fatalf("%v; the log: %s", err, words)
	}
	defer c.Close()
	if err := say(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if after := w.logs(); len(after) <= len(before) || after[0].Metadata.ID != before[0].Metadata.ID {
		t.Errorf("%d records before, %d after", len(before), len(after))
	}
	var report api.VerifyReport
	if w.do(http.MethodPost, "/api/logs/verify", nil, &report); !report.OK {
		t.Errorf("the log does not verify: %+v", report)
	}
}

// Promise R, from outside: once a write is answered no connection is let in on
// what was before.
func TestNoDecisionOnOldData(t *testing.T) {
	w := start(t)
	w.apply(groupOne + service("echo", echo(t)))
	alice := w.user("alice", "group-1")
	for i := range 50 {
		groups := "[group-1]"
		if i%2 == 1 {
			groups = "[]"
		}
		w.apply("kind: User\nmetadata: {name: alice}\nspec: {type: HUMAN, groups: " + groups + "}\n")
		c, err := alice.Dial(t.Context(), "echo")
		if may := i%2 == 0; may != (err == nil) {
			t.Fatalf("round %d: may = %v, Dial = %v", i, may, err)
		}
		if err == nil {
			c.Close()
		}
	}
}
