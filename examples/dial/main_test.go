package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cardea/test/cluster"
)

// The example, compiled, reaches a Service of a real cluster: with the Session of
// the person who runs it, and with that of a home that CARDEA_HOME names.
func TestDial(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	bin, err := cluster.Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	example := filepath.Join(dir, "dial")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", example, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	upstream, stop, err := cluster.Echo()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster.Cluster{Bin: bin, Dir: dir, Listen: fmt.Sprintf("127.0.0.1:%d", port)}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := c.Apply(ctx, cluster.GroupYAML("group-1")+cluster.UserYAML("alice", "group-1")+cluster.UserYAML("bob")+cluster.ServiceYAML("echo", upstream)); err != nil {
		t.Fatal(err)
	}

	// alice is who uses this machine: she has a HOME and no CARDEA_HOME. bob has one.
	alices := append(without(os.Environ(), "CARDEA_HOME", "XDG_CONFIG_HOME", "HOME"), "HOME="+filepath.Join(dir, "alice"))
	login(ctx, t, c, "alice", alices)
	if err := c.Login(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
	bobs := append(slices.Clone(alices), "CARDEA_HOME="+c.Home("bob"))
	run := func(environment []string, service string) (string, error) {
		cmd := exec.CommandContext(ctx, example, service)
		cmd.Env, cmd.Stdin = environment, strings.NewReader("one\ntwo\n")
		var out, words bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &words
		err := cmd.Run()
		return out.String() + words.String(), err
	}

	if got, err := run(alices, "echo"); err != nil || got != "one\ntwo\n" {
		t.Errorf("alice got %q, %v", got, err)
	}
	if got, err := run(bobs, "echo"); err == nil || !strings.Contains(got, "error: ") || !strings.Contains(got, "may not") && !strings.Contains(got, "not allowed") {
		t.Errorf("bob, who may not, got %q, %v", got, err)
	}
	if err := c.Apply(ctx, cluster.UserYAML("bob", "group-1")); err != nil {
		t.Fatal(err)
	}
	if got, err := run(bobs, "echo.default"); err != nil || got != "one\ntwo\n" {
		t.Errorf("bob, who may now, got %q, %v", got, err)
	}
	nobody := append(without(alices, "HOME"), "HOME="+filepath.Join(dir, "nobody"))
	if got, err := run(nobody, "echo"); err == nil || !strings.Contains(got, "cardea login") && !strings.Contains(got, "not logged in") {
		t.Errorf("who has not logged in got %q, %v", got, err)
	}
}

// login logs a User in with the environment of his programs.
func login(ctx context.Context, t *testing.T, c *cluster.Cluster, user string, environment []string) {
	t.Helper()
	token, err := c.Token(ctx, user)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, c.Bin, "login", c.Listen, "--token", "-", "--ca-sha256", c.CA())
	cmd.Env, cmd.Stdin = environment, strings.NewReader(token+"\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("login: %v\n%s", err, out)
	}
}

// without returns an environment without some variables.
func without(environment []string, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(environment), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(names, name)
	})
}
