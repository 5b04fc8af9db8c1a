// Package script_test runs the scripts of this folder: what a person types, and
// what he sees. Each *.txt is one script (see testscript); `cardea` in it is the
// real program, `echo-upstream`, `talk` and `hold` are the ends of a connection.
package script_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"cardea/api"
	"cardea/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"cardea":        cardea,
		"echo-upstream": echoUpstream,
		"talk":          talk,
		"hold":          hold,
		"freeport":      freePort,
		"await-file":    awaitFile,
	})
}

// cardea is cmd/cardea.
func cardea() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := cli.Program{Version: "test", In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
	os.Exit(p.Run(ctx, os.Args[1:]))
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 ".",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			root, err := filepath.Abs("../..")
			if err != nil {
				return err
			}
			e.Setenv("ROOT", root)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("DATA", filepath.Join(e.WorkDir, "data"))
			e.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector waits a second at each exit
			e.Defer(func() { disconnect(e.WorkDir) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ports":   ports,
			"ready":   ready,
			"gettok":  token,
			"expand":  expand,
			"session": session,
			"device":  device,
		},
	})
}

// disconnect ends what `connect --detach` has left in the homes below dir, as a
// script that failed half-way does.
func disconnect(dir string) {
	homes, _ := filepath.Glob(filepath.Join(dir, "*", "connect.sock"))
	for _, sock := range homes {
		cmd := exec.Command("cardea", "disconnect")
		cmd.Env = append(os.Environ(), "CARDEA_HOME="+filepath.Dir(sock))
		cmd.Run()
	}
}

// ports NAME…: sets each NAME to a port of loopback that is free.
func ports(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ts.Setenv(name, port)
		l.Close()
	}
}

// ready FILE: waits for the ready file of `up`, and sets ADDRESS, TOKEN and CA.
func ready(ts *testscript.TestScript, _ bool, args []string) {
	file := ts.MkAbs(args[0])
	waitFor(file)
	for env, field := range map[string]string{"ADDRESS": "address", "TOKEN": "token", "CA": "caSHA256"} {
		ts.Setenv(env, jsonField(ts, file, field))
	}
}

// gettok NAME FILE: sets NAME to the token in the JSON of FILE.
func token(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], jsonField(ts, ts.MkAbs(args[1]), "token"))
}

// expand FILE…: replaces $NAME in each by the environment's value.
func expand(ts *testscript.TestScript, _ bool, args []string) {
	for _, f := range args {
		f = ts.MkAbs(f)
		b, err := os.ReadFile(f)
		ts.Check(err)
		ts.Check(os.WriteFile(f, []byte(os.Expand(string(b), ts.Getenv)), 0o600))
	}
}

// session USER FILE: sets SESSION to the name of a Session of USER in the list of
// FILE.
func session(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	var list struct{ Items []api.Session }
	ts.Check(json.Unmarshal(b, &list))
	for _, s := range list.Items {
		if s.Status.UserRef.Name == args[0] {
			ts.Setenv("SESSION", s.Metadata.Name)
			return
		}
	}
	ts.Fatalf("%s has no Session in %s", args[0], args[1])
}

// device FILE: sets DEVICE to the name of the first Device in the list of FILE.
func device(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	var list struct{ Items []api.Device }
	ts.Check(json.Unmarshal(b, &list))
	if len(list.Items) == 0 {
		ts.Fatalf("there is no Device in %s", args[0])
	}
	ts.Setenv("DEVICE", list.Items[0].Metadata.Name)
}

// jsonField returns a string field of the flat JSON object in a file, "" if it is
// not there.
func jsonField(ts *testscript.TestScript, file, field string) string {
	b, err := os.ReadFile(file)
	ts.Check(err)
	_, rest, ok := strings.Cut(string(b), `"`+field+`":`)
	if !ok {
		return ""
	}
	_, rest, _ = strings.Cut(rest, `"`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// waitFor waits until a file is there.
func waitFor(file string) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
			return
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, "no", file)
			os.Exit(1)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// awaitFile FILE…: waits until each is there.
func awaitFile() {
	for _, f := range os.Args[1:] {
		waitFor(f)
	}
}

// freePort prints a free port of loopback.
func freePort() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// echoUpstream ADDRESS NAME READYFILE: answers each line with "NAME: line", and
// half-closes when its client does, until it is interrupted.
func echoUpstream() {
	l, err := net.Listen("tcp", os.Args[1])
	check(err)
	check(os.WriteFile(os.Args[3], []byte("ready"), 0o600))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					fmt.Fprintf(c, "%s: %s", os.Args[2], line)
				}
			}()
		}
	}()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	<-stop
}

// talk ADDRESS LINE…: sends each line, prints each answer, closes. It prints
// "reset" and fails if the connection is reset.
func talk() {
	c := connect(os.Args[1])
	r := bufio.NewReader(c)
	for _, line := range os.Args[2:] {
		if _, err := fmt.Fprintln(c, line); err != nil {
			ended(err)
		}
		answer, err := r.ReadString('\n')
		if err != nil {
			ended(err)
		}
		fmt.Print(answer)
	}
}

// hold ADDRESS READYFILE: has one exchange, writes READYFILE, waits for the end of
// the connection and prints "reset" or "end of file".
func hold() {
	c := connect(os.Args[1])
	r := bufio.NewReader(c)
	fmt.Fprintln(c, "hello")
	answer, err := r.ReadString('\n')
	if err != nil {
		ended(err)
	}
	fmt.Print(answer)
	check(os.WriteFile(os.Args[2], []byte("ready"), 0o600))
	_, err = r.ReadString('\n')
	if errors.Is(err, syscall.ECONNRESET) {
		fmt.Println("reset")
		return
	}
	fmt.Println("ended:", err)
}

func connect(address string) net.Conn {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		ended(err) // a refusal can be quicker than the dial
	}
	check(c.SetDeadline(time.Now().Add(time.Minute)))
	return c
}

func ended(err error) {
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		fmt.Println("reset")
	case errors.Is(err, io.EOF):
		fmt.Println("end of file")
	default:
		fmt.Println(err)
	}
	os.Exit(1)
}
