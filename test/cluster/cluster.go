// Package cluster runs a real cluster of real processes for tests and
// measurements: the program as it is built, its data in a directory of the
// test's, its ports on loopback.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Cluster is one `cardea up` and the people who use it.
type Cluster struct {
	Bin    string    // the program
	Dir    string    // everything is below it
	Listen string    // HOST:PORT
	Log    io.Writer // what the server says; nil is nowhere
	Args   []string  // further flags of up
	Prefix []string  // what runs the server: taskset, say
	People []string  // what runs the program of people: ip netns exec, say

	Took time.Duration // the last Up, until it served

	up    *exec.Cmd
	done  chan error // gives what Wait returned, once
	heirs []int      // the processes that Upgrade has put in its place, the last one last
	token string     // of root, if it has never logged in
	ca    string
}

// Build builds the program into dir, or takes the one that CARDEA_BIN names.
func Build(ctx context.Context, dir string) (string, error) {
	if b := os.Getenv("CARDEA_BIN"); b != "" {
		_, err := os.Stat(b) // go test runs again, instead of telling what it told of another program
		return b, err
	}
	bin := filepath.Join(dir, "cardea")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "cardea/cmd/cardea")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return bin, nil
}

// Engines returns the values of --engine of `up` that the program knows here, one ""
// if it has no such flag.
func Engines(ctx context.Context, bin string) ([]string, error) {
	out, err := exec.CommandContext(ctx, bin, "up", "--help").CombinedOutput()
	switch {
	case err != nil:
		return nil, fmt.Errorf("up --help: %w\n%s", err, out)
	case !bytes.Contains(out, []byte("--engine")):
		return []string{""}, nil
	case runtime.GOOS != "linux":
		return []string{"copy"}, nil
	}
	return []string{"loop", "copy"}, nil
}

// FreePort returns a port of loopback that nobody listens to now.
func FreePort() (int, error) { return FreePortAt("127.0.0.1") }

// FreePortAt returns a port of a host of this machine that nobody listens to now.
// It is below those that systems give to outgoing connections (32768 and more on
// Linux, 49152 elsewhere), so that it stays free until it is used; on Linux no other
// process that asks gets it before this one has ended.
func FreePortAt(host string) (int, error) {
	const first, last, tries = 10000, 32767, 100
	var failed error
	for range tries {
		port := first + rand.IntN(last-first+1)
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			l.Close()
			err = reserve(port)
		}
		if err == nil {
			return port, nil
		}
		failed = err
	}
	return 0, failed
}

// reserve fails if a port has been reserved, by this process or by another that runs. What
// says so is a name of Unix sockets that is in no file system, which Linux frees with the
// process: the socket is left open.
func reserve(port int) error {
	if runtime.GOOS != "linux" {
		return nil
	}
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: fmt.Sprintf("@cardea-test-port-%d", port)}); err != nil {
		syscall.Close(fd)
		return os.NewSyscallError("bind", err)
	}
	return nil
}

// Start is Up, and the first time logs root in, in the home "root".
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.Up(ctx); err != nil || c.token == "" {
		return err
	}
	_, err := c.Run(ctx, "root", nil, "login", c.Listen, "--token", c.token, "--ca-sha256", c.ca)
	return err
}

// Up starts the server and waits until it serves.
func (c *Cluster) Up(ctx context.Context) error {
	ready := filepath.Join(c.Dir, "ready.json")
	os.Remove(ready)
	begin := time.Now()
	argv := slices.Concat(c.Prefix, []string{c.Bin, "up", "--data-dir", c.data(), "--listen", c.Listen, "--ready-file", ready}, c.Args)
	c.up = exec.Command(argv[0], argv[1:]...)
	var stderr bytes.Buffer
	c.up.Stderr = &stderr
	if c.Log != nil {
		c.up.Stderr = io.MultiWriter(&stderr, c.Log)
	}
	if err := c.up.Start(); err != nil {
		return err
	}
	c.heirs = nil
	c.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(c.up, c.done)
	var r struct{ Address, CASHA256, Token string }
	for {
		b, err := os.ReadFile(ready)
		if err == nil && json.Unmarshal(b, &r) == nil && r.Address != "" {
			break
		}
		select {
		case err := <-c.done:
			return fmt.Errorf("the server ended: %v\n%s", err, stderr.Bytes())
		case <-ctx.Done():
			c.up.Process.Kill()
			return fmt.Errorf("the server is not ready: %w\n%s", ctx.Err(), stderr.Bytes())
		case <-time.After(time.Millisecond):
		}
	}
	c.Took, c.ca, c.token = time.Since(begin), r.CASHA256, r.Token
	return nil
}

// PID is the server's: after Upgrade, that of the process that came last.
func (c *Cluster) PID() int {
	if n := len(c.heirs); n > 0 {
		return c.heirs[n-1]
	}
	return c.up.Process.Pid
}

// Upgrade replaces the server as `cardea upgrade` does, by the program of a file, or
// if it is "" by its own. The process before ends by itself.
func (c *Cluster) Upgrade(ctx context.Context, bin string) error {
	before := c.processes()
	args := []string{"upgrade", "--data-dir", c.data()}
	if bin != "" {
		args = append(args, "--binary", bin)
	}
	if _, err := c.Run(ctx, "root", nil, args...); err != nil {
		return err
	}
	for _, pid := range c.processes() {
		if !slices.Contains(before, pid) {
			c.heirs = append(c.heirs, pid)
			return nil
		}
	}
	return errors.New("cardea upgrade succeeded, and there is no new process")
}

func (c *Cluster) data() string { return filepath.Join(c.Dir, "data") }

// processes returns those that run this server, as /proc tells: after an upgrade
// that is more than this process has started.
func (c *Cluster) processes() (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		b, err := os.ReadFile(f)
		args := strings.Split(string(b), "\x00")
		if i := slices.Index(args, "--data-dir"); err == nil && slices.Contains(args, "up") && i > 0 && args[i+1] == c.data() {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// Running returns how many processes the server is: more than one while one that was
// replaced has connections.
func (c *Cluster) Running() int { return len(c.processes()) }

// Signal sends a signal to the server and waits until it is gone, with all that it
// has replaced.
func (c *Cluster) Signal(s os.Signal) error {
	for _, pid := range c.heirs {
		if p, err := os.FindProcess(pid); err == nil {
			p.Signal(s) // it may be gone
		}
	}
	if err := c.up.Process.Signal(s); err != nil && !(errors.Is(err, os.ErrProcessDone) && len(c.heirs) > 0) {
		return err
	}
	err := <-c.done
	for deadline := time.Now().Add(time.Minute); len(c.heirs) > 0 && c.Running() > 0; {
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("processes %v do not end", c.processes()))
		}
		<-time.After(5 * time.Millisecond)
	}
	var exit *exec.ExitError
	if s == syscall.SIGKILL && errors.As(err, &exit) {
		return nil
	}
	return err
}

// CA is the SHA-256 of the cluster's CA, in hex: what clients pin.
func (c *Cluster) CA() string { return c.ca }

// Home is where a person's Session is kept.
func (c *Cluster) Home(who string) string { return filepath.Join(c.Dir, "home-"+who) }

// Run runs the program as somebody, and returns its standard output.
func (c *Cluster) Run(ctx context.Context, who string, stdin io.Reader, args ...string) (string, error) {
	argv := slices.Concat(c.People, []string{c.Bin}, args)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "CARDEA_HOME="+c.Home(who))
	cmd.Stdin = stdin
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("cardea %v: %w\n%s", args, err, stderr.Bytes())
	}
	return out.String(), nil
}

// Token makes a Credential for a User who exists, and returns its token.
func (c *Cluster) Token(ctx context.Context, user string) (string, error) {
	out, err := c.Run(ctx, "root", nil, "create", "credential", user, "--user", user, "--type", "auth-token", "-o", "json")
	if err != nil {
		return "", err
	}
	var t struct{ Token string }
	return t.Token, json.Unmarshal([]byte(out), &t)
}

// Apply applies documents as root.
func (c *Cluster) Apply(ctx context.Context, yaml string) error {
	_, err := c.Run(ctx, "root", bytes.NewBufferString(yaml), "apply", "-f", "-")
	return err
}

// Login makes a Credential for a User who exists, and logs him in, with further
// flags of login.
func (c *Cluster) Login(ctx context.Context, user string, flags ...string) error {
	token, err := c.Token(ctx, user)
	if err != nil {
		return err
	}
	_, err = c.Run(ctx, user, nil, append([]string{"login", c.Listen, "--token", token, "--ca-sha256", c.ca}, flags...)...)
	return err
}

// Publish connects a User's local port, which it returns, to a Service.
func (c *Cluster) Publish(ctx context.Context, user, service string) (int, error) {
	port, err := FreePort()
	if err != nil {
		return 0, err
	}
	_, err = c.Run(ctx, user, nil, "connect", "-p", fmt.Sprintf("%s:%d", service, port), "--detach")
	return port, err
}

// Stop ends what Publish started, and the server.
func (c *Cluster) Stop(ctx context.Context, users ...string) error {
	var errs []error
	for _, u := range users {
		_, err := c.Run(ctx, u, nil, "disconnect")
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.Signal(os.Interrupt))...)
}

// ServiceYAML is a Service of TCP mode whose members of group-1 may reach an
// address.
func ServiceYAML(name, address string) string {
	return fmt.Sprintf(`---
kind: Service
metadata:
  name: %s
spec:
  mode: TCP
  config:
    upstream:
      url: tcp://%s
  authorization:
    inlinePolicies:
      - spec:
          rules:
            - effect: ALLOW
              condition:
                match: '"group-1" in ctx.user.spec.groups'
`, name, address)
}

// UserYAML is a User in groups.
func UserYAML(name string, groups ...string) string {
	b, _ := json.Marshal(groups)
	return fmt.Sprintf("---\nkind: User\nmetadata:\n  name: %s\nspec:\n  type: HUMAN\n  groups: %s\n", name, b)
}

// GroupYAML is a Group.
func GroupYAML(name string) string {
	return fmt.Sprintf("---\nkind: Group\nmetadata:\n  name: %s\nspec: {}\n", name)
}
