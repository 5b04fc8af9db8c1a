package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/server"
)

// demoTime bounds the whole demo, which takes a second.
const demoTime = time.Minute

func (r *run) demo() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use:   "demo",
		Short: "See it work, in a second, and leave nothing behind",
		Long: "Runs a throw-away cluster in this process: one User is let in, another is not, and a live\n" +
			"connection is cut when its right goes. It uses loopback only and needs no privilege.",
		Example: "  cardea demo",
		Args:    noArgs,
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "HOST:PORT of the cluster; any free port if left out")
	c.RunE = func(c *cobra.Command, _ []string) (err error) {
		dir, err := os.MkdirTemp("", "cardea-demo-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		ctx, stop := context.WithTimeout(c.Context(), demoTime)
		d := &demo{out: r.Out, version: r.Version, dir: dir}
		defer d.running.Wait()
		defer stop()
		return d.play(ctx, listen)
	}
	return c
}

// A demo is the first minute with Cardea: a play in which every command is run as
// a person would type it, by the same code.
type demo struct {
	out     io.Writer
	version string
	dir     string // of the cluster's data and everybody's home
	running sync.WaitGroup
	cluster server.Ready
}

// demoService is what is protected: the upstream's address goes into it.
const demoService = `kind: Service
metadata:
  name: echo
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
`

// demoUser is alice without her group.
const demoUser = `kind: User
metadata:
  name: alice
spec:
  type: HUMAN
`

func (d *demo) play(ctx context.Context, listen string) error {
	upstream, err := d.echo(ctx)
	if err != nil {
		return err
	}
	if err := d.up(ctx, listen); err != nil {
		return err
	}
	d.say("Everybody below has a home of their own: alice$ stands for CARDEA_HOME=alice.\n\n" +
		"root logs in with the token that the first start printed, and puts a Service in front of\nan upstream that echoes lines. Whoever is in group-1 may reach it, and nobody else.")
	if err := d.login(ctx, "root", d.cluster.Token); err != nil {
		return err
	}
	service := fmt.Sprintf(demoService, upstream)
	fmt.Fprintf(d.out, "  root$ cat service.yaml\n%s\n", within(service, "    "))
	if err := os.WriteFile(filepath.Join(d.dir, "service.yaml"), []byte(service), 0o600); err != nil {
		return err
	}
	if err := d.commands(ctx, "root",
		[]string{"apply", "-f", "service.yaml"},
		[]string{"create", "group", "group-1"},
		[]string{"create", "user", "alice", "--type", "HUMAN", "--group", "group-1"},
		[]string{"create", "user", "bob", "--type", "HUMAN"},
	); err != nil {
		return err
	}

	d.say("root gives each of them a token; they log in.")
	for _, user := range []string{"alice", "bob"} {
		token, err := d.credential(ctx, user)
		if err != nil {
			return err
		}
		if err := d.login(ctx, user, token); err != nil {
			return err
		}
	}

	d.say("alice makes the Service appear at a local port (0 is any that is free), and talks to it.")
	alice, err := d.connect(ctx, "alice")
	if err != nil {
		return err
	}
	live, err := d.talk(ctx, alice.address)
	if err != nil {
		return err
	}
	defer live.Close()

	if err := d.refused(ctx); err != nil {
		return err
	}

	d.say("alice's connection is still open. root takes her out of group-1.")
	if err := d.revoke(ctx, live); err != nil {
		return err
	}

	d.say("All of it is in the access log, which is a signed chain.")
	if err := d.recorded(ctx); err != nil {
		return err
	}
	if err := d.commands(ctx, "root", []string{"logs", "--service", "echo"}, []string{"logs", "verify"}); err != nil {
		return err
	}
	d.say("That was all of it: this process now stops the cluster and removes its directory.\nYour own cluster: cardea up")
	return nil
}

// say tells what comes next.
func (d *demo) say(words string) { fmt.Fprintf(d.out, "\n%s\n\n", words) }

// up starts a cluster.
func (d *demo) up(ctx context.Context, listen string) error {
	data := filepath.Join(d.dir, "data")
	fmt.Fprintf(d.out, "A cluster is one process:\n\n  $ cardea up --data-dir %s --listen %s\n", data, listen)
	ready := make(chan server.Ready, 1)
	failed := make(chan error, 1)
	d.running.Go(func() {
		failed <- server.Up(ctx, server.Config{DataDir: data, Domain: server.DefaultDomain, Listen: listen, Log: slog.New(slog.DiscardHandler)},
			func(s server.Ready) { ready <- s })
	})
	select {
	case d.cluster = <-ready:
	case err := <-failed:
		if err == nil {
			err = ctx.Err()
		}
		return err
	}
	fmt.Fprintf(d.out, "    Cardea serves %s at %s\n", d.cluster.Domain, d.cluster.Address)
	return nil
}

// program returns cardea as a person of the demo runs it.
func (d *demo) program(who string, in io.Reader, out, err io.Writer) *Program {
	return &Program{Version: d.version, In: in, Out: out, Err: err, Getenv: func(name string) string {
		if name == variables("home")[0] {
			return filepath.Join(d.dir, who)
		}
		return ""
	}}
}

// cardea runs a command that is shown as line, and returns what it printed to
// standard output.
func (d *demo) cardea(ctx context.Context, who, line, in string, args ...string) (string, error) {
	fmt.Fprintf(d.out, "  %s$ %s\n", who, line)
	var out, words bytes.Buffer
	if status := d.program(who, strings.NewReader(in), &out, &words).Run(ctx, args); status != ExitDone {
		return "", fmt.Errorf("%s: %s", line, strings.TrimPrefix(strings.TrimSpace(words.String()), "error: "))
	}
	return out.String(), nil
}

func (d *demo) show(text string) { fmt.Fprintln(d.out, within(text, "    ")) }

// commands runs commands and shows what they print.
func (d *demo) commands(ctx context.Context, who string, commands ...[]string) error {
	for _, args := range commands {
		typed := "cardea " + strings.Join(args, " ")
		if i := len(args) - 1; args[i] == "service.yaml" {
			args[i] = filepath.Join(d.dir, args[i])
		}
		out, err := d.cardea(ctx, who, typed, "", args...)
		if err != nil {
			return err
		}
		d.show(out)
	}
	return nil
}

func (d *demo) login(ctx context.Context, who, token string) error {
	out, err := d.cardea(ctx, who, "cardea login "+d.cluster.Address+" --token … --ca-sha256 "+d.cluster.CASHA256[:8]+"…", "",
		"login", d.cluster.Address, "--token", token, "--ca-sha256", d.cluster.CASHA256)
	if err == nil {
		d.show(out)
	}
	return err
}

// credential makes a token for a User.
func (d *demo) credential(ctx context.Context, user string) (string, error) {
	args := []string{"create", "credential", user, "--user", user, "--one-time"}
	line, err := d.cardea(ctx, "root", "cardea "+strings.Join(args, " "), "", args...)
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(line, "--token ")
	token, _, ok := strings.Cut(rest, " ")
	if !ok {
		return "", fmt.Errorf("create credential printed no token: %s", line)
	}
	d.show(loginLine(d.cluster.Address, token[:16]+"…", d.cluster.CASHA256[:8]+"…"))
	return token, nil
}

// A connected is a connect that runs.
type connected struct {
	address string
	words   <-chan string // what it says on standard error, line by line
}

// connect runs connect until ctx is done.
func (d *demo) connect(ctx context.Context, who string) (connected, error) {
	fmt.Fprintf(d.out, "  %s$ cardea connect -p echo:0 &\n", who)
	said, out := io.Pipe()
	complaints, errs := io.Pipe()
	d.running.Go(func() {
		d.program(who, strings.NewReader(""), out, errs).Run(ctx, []string{"connect", "-p", "echo:0"})
		out.Close()
		errs.Close()
	})
	words := make(chan string, 16)
	d.running.Go(func() {
		defer close(words)
		for lines := bufio.NewScanner(complaints); lines.Scan(); {
			select {
			case words <- lines.Text():
			default: // nobody listens any more
			}
		}
	})
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		return connected{}, fmt.Errorf("connect: %s", <-words)
	}
	d.show(line)
	_, address, _ := strings.Cut(strings.TrimSpace(line), " is at ")
	return connected{address, words}, nil
}

// talk opens a connection, sends a line and shows the answer.
func (d *demo) talk(ctx context.Context, address string) (net.Conn, error) {
	const line = "hello through the cluster\n"
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	fmt.Fprintf(d.out, "  alice$ nc %s\n", strings.Replace(address, ":", " ", 1))
	_, err = io.WriteString(c, line)
	answer := make([]byte, len(line))
	if err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err == nil && string(answer) != line {
		err = fmt.Errorf("sent %q and got %q", line, answer)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("alice's connection: %w", err)
	}
	d.show(line + string(answer))
	return c, nil
}

// awaitReset returns once the peer of c has reset it.
func awaitReset(ctx context.Context, c net.Conn) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	if err == nil {
		err = errors.New("it was closed and not reset")
	}
	return errors.Join(err, ctx.Err())
}

// refused shows what bob sees, who is not in the group.
func (d *demo) refused(ctx context.Context) error {
	d.say("bob does the same. He is not in group-1.")
	bob, err := d.connect(ctx, "bob")
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "  bob$ nc %s\n", strings.Replace(bob.address, ":", " ", 1))
	c, err := new(net.Dialer).DialContext(ctx, "tcp", bob.address)
	if err == nil {
		defer c.Close()
		err = awaitReset(ctx, c)
	}
	if err != nil && !errors.Is(err, syscall.ECONNRESET) { // a quick reset is seen by connect already
		return fmt.Errorf("bob should have been refused: %w", err)
	}
	d.show("connection reset by peer")
	d.say("His connect says why, as far as he may know:")
	select {
	case line := <-bob.words:
		d.show(line)
	case <-ctx.Done():
		return ctx.Err()
	}
	d.say("root may know more:")
	return d.commands(ctx, "root", []string{"why", "bob", "echo"})
}

// revoke takes alice's right away and waits for her connection to be cut.
func (d *demo) revoke(ctx context.Context, live net.Conn) error {
	type cut struct {
		at  time.Time
		err error
	}
	cuts := make(chan cut, 1)
	d.running.Go(func() {
		err := awaitReset(ctx, live)
		cuts <- cut{time.Now(), err}
	})
	fmt.Fprintf(d.out, "  root$ cat alice.yaml\n%s\n", within(demoUser, "    "))
	sent := time.Now()
	out, err := d.cardea(ctx, "root", "cardea apply - < alice.yaml", demoUser, "apply", "-")
	if err != nil {
		return err
	}
	d.show(out)
	end := <-cuts
	if end.err != nil {
		return fmt.Errorf("alice's connection should have been cut: %w", end.err)
	}
	fmt.Fprintf(d.out, "\n  alice's nc: connection reset by peer\n  revoked: %.1f ms from the write to the reset, TLS handshake included\n",
		float64(end.at.Sub(sent).Microseconds())/1000)
	return nil
}

// recorded waits for the records of what was shown, and fails if they say
// something else.
func (d *demo) recorded(ctx context.Context) error {
	r := &run{Program: d.program("root", nil, nil, nil), home: filepath.Join(d.dir, "root")}
	defer r.close()
	call, err := r.api(ctx)
	if err != nil {
		return err
	}
	missing := map[string]bool{"START alice": true, "DENIED bob": true, "END alice REVOKED": true}
	all := errors.New("all are there")
	err = call.Stream(ctx, http.MethodGet, "/api/logs?follow=true&service=echo", nil, func(line json.RawMessage) error {
		var rec api.AccessLog
		if err := json.Unmarshal(line, &rec); err != nil {
			return err
		}
		if tcp, user := rec.Entry.Info.TCP, rec.Entry.Common.UserRef; tcp != nil && user != nil {
			delete(missing, strings.TrimSpace(fmt.Sprintf("%s %s %s", tcp.Type, user.Name, tcp.CloseReason)))
		}
		if len(missing) == 0 {
			return all
		}
		return nil
	})
	if errors.Is(err, all) {
		return nil
	}
	return fmt.Errorf("the access log does not hold what happened: %w", err)
}

// echo runs an upstream that sends back what it gets, until ctx is done.
func (d *demo) echo(ctx context.Context) (address string, err error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	d.running.Go(func() {
		stop := context.AfterFunc(ctx, func() { l.Close() })
		defer stop()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.running.Go(func() {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	return l.Addr().String(), nil
}
