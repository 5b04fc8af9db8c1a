// Package script_test runs the scripts of this folder: what a person types, and
// what he sees. Each *.txt is one script (see testscript); `cardea` in it is the
// real program, `echo-upstream`, `talk` and `hold` are the ends of a connection.
//
// Every script runs twice: with the store in the data directory and the engine that
// is there by default, and with a store in PostgreSQL and the portable engine, of
// which only CARDEA_STORE and CARDEA_ENGINE know. The two have nothing to do with each
// other, so that two runs show what four would.
package script_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"cardea/api"
	"cardea/cli"
	"cardea/store/postgres/pgtest"
	"cardea/test/cluster"
)

func TestMain(m *testing.M) {
	if strings.HasSuffix(filepath.Base(os.Args[0]), ".test") { // and not one of the programs of scripts
		cluster.Isolate()
	}
	testscript.Main(m, map[string]func(){
		"cardea":        cardea,
		"echo-upstream": echoUpstream,
		"talk":          talk,
		"talk-tls":      talkTLS,
		"hold":          hold,
		"await-file":    awaitFile,
		"fetch":         fetch,
		"until":         until,
		"certificate":   certificate,
		"tls-secret":    tlsSecret,
		"echo-tls":      echoTLS,
		"dial":          dial,
		"counts":        counts,
		"echo-udp":      echoUDP,
		"talk-udp":      talkUDP,
		"web-upstream":  webUpstream,
	})
}

// cardea is cmd/cardea.
func cardea() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	p := cli.Program{Version: "test", In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
	os.Exit(p.Run(ctx, os.Args[1:]))
}

func TestScripts(t *testing.T) {
	scripts(t, "", func(string) (string, error) { return "", nil })
}

// TestScriptsPostgreSQL gives every cluster a database of its own, and the portable
// engine.
func TestScriptsPostgreSQL(t *testing.T) {
	db := pgtest.New(t, false)
	scripts(t, "copy", func(name string) (string, error) {
		return db.URL(name), db.Exec(context.WithoutCancel(t.Context()), "postgres", fmt.Sprintf("CREATE DATABASE %q", name))
	})
}

// scripts runs all scripts. store makes an empty store of a name, and returns its
// URL, "" for the data directory.
func scripts(t *testing.T, engine string, store func(name string) (string, error)) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 ".",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("ROOT", root)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("DATA", filepath.Join(e.WorkDir, "data"))
			e.Setenv("CARDEA_ENGINE", engine)
			e.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector waits a second at each exit
			e.Defer(func() { disconnect(e.WorkDir) })
			name := filepath.Base(e.WorkDir)
			stores := 1
			e.Values[newest{}] = func() (string, error) {
				stores++
				return store(fmt.Sprintf("%s-%d", name, stores))
			}
			url, err := store(name)
			e.Setenv("CARDEA_STORE", url)
			if url != "" {
				e.Defer(func() {
					if found, _ := filepath.Glob(filepath.Join(e.WorkDir, "*", "cardea.db")); len(found) > 0 {
						t.Errorf("%s has a store in the data directory: %s", name, found)
					}
				})
			}
			return err
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			case "ipv6":
				l, err := net.Listen("tcp", "[::1]:0")
				if err == nil {
					l.Close()
				}
				return err == nil, nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ports":     ports("127.0.0.1"),
			"ports6":    ports("::1"),
			"ready":     ready,
			"gettok":    token,
			"field":     field,
			"soon":      soon,
			"expand":    expand,
			"session":   session,
			"device":    device,
			"terminate": terminate,
			"documents": documents,
			"newstore":  newStore,
			"machine":   machine,
		},
	})
}

// newest is the key of what makes another store for a script.
type newest struct{}

// newstore: what is started from now on has another store, which is empty.
func newStore(ts *testscript.TestScript, _ bool, _ []string) {
	url, err := ts.Value(newest{}).(func() (string, error))()
	ts.Check(err)
	ts.Setenv("CARDEA_STORE", url)
}

// machine NAME OURS ITS: makes another machine, as far as the network goes, between
// which and this one there is a wire with those two addresses, and sets NAME to what
// `ip netns exec` calls it. It takes root.
func machine(ts *testscript.TestScript, _ bool, args []string) {
	name := fmt.Sprintf("cardea-%d-%s", os.Getpid(), strings.ToLower(args[0]))
	run := func(args ...string) { ts.Check(ts.Exec("ip", args...)) }
	run("netns", "add", name)
	ts.Defer(func() { exec.Command("ip", "netns", "del", name).Run() })
	run("link", "add", args[0]+"0", "type", "veth", "peer", "name", args[0]+"1", "netns", name)
	run("address", "add", args[1]+"/24", "dev", args[0]+"0")
	run("link", "set", args[0]+"0", "up")
	run("-n", name, "address", "add", args[2]+"/24", "dev", args[0]+"1")
	run("-n", name, "link", "set", args[0]+"1", "up")
	run("-n", name, "link", "set", "lo", "up")
	ts.Setenv(args[0], name)
}

// terminate: sends SIGTERM to every `up` of the script.
func terminate(ts *testscript.TestScript, _ bool, _ []string) {
	for _, c := range ts.BackgroundCmds() {
		if len(c.Args) > 1 && c.Args[1] == "up" {
			if err := c.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
				ts.Fatalf("%v", err)
			}
		}
	}
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

// ports NAME…: sets each NAME to a port of host that is free.
func ports(host string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		for _, name := range args {
			port, err := cluster.FreePortAt(host)
			ts.Check(err)
			ts.Setenv(name, strconv.Itoa(port))
		}
	}
}

// ready FILE: waits for the ready file of `up`, and sets ADDRESS, TOKEN and CA.
func ready(ts *testscript.TestScript, _ bool, args []string) {
	file := ts.MkAbs(args[0])
	ts.Check(waitFor(file))
	for env, field := range map[string]string{"ADDRESS": "address", "TOKEN": "token", "CA": "caSHA256"} {
		ts.Setenv(env, jsonField(ts, file, field))
	}
}

// gettok NAME FILE: sets NAME to the token in the JSON of FILE.
func token(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], jsonField(ts, ts.MkAbs(args[1]), "token"))
}

// field NAME FIELD FILE: sets NAME to the first text of a field in the JSON of FILE.
func field(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], jsonField(ts, ts.MkAbs(args[2]), args[1]))
}

// soon NAME DURATION: sets NAME to the time it will be then.
func soon(ts *testscript.TestScript, _ bool, args []string) {
	d, err := time.ParseDuration(args[1])
	ts.Check(err)
	ts.Setenv(args[0], time.Now().Add(d).UTC().Format(time.RFC3339Nano))
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
func waitFor(file string) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not appear", file)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// awaitFile FILE…: waits until each is there.
func awaitFile() {
	for _, f := range os.Args[1:] {
		check(waitFor(f))
	}
}

// fetch URL: prints what a GET answers, and fails unless it is 200.
func fetch() {
	c := http.Client{Timeout: 30 * time.Second}
	r, err := c.Get(os.Args[1])
	check(err)
	_, err = io.Copy(os.Stdout, r.Body)
	check(errors.Join(err, r.Body.Close()))
	if r.StatusCode != http.StatusOK {
		fmt.Fprintln(os.Stderr, r.Status)
		os.Exit(1)
	}
}

// until [!] PROGRAM ARGUMENT…: runs a program again and again until it succeeds, or
// with ! until it fails, and prints what it printed then.
func until() {
	args, want := os.Args[1:], true
	if args[0] == "!" {
		args, want = args[1:], false
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if (err == nil) == want {
			os.Stdout.Write(out)
			return
		}
		if time.Now().After(deadline) {
			os.Stderr.Write(out)
			check(fmt.Errorf("%q goes on ending with: %v", args, err))
		}
		<-time.After(20 * time.Millisecond)
	}
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
	answer(l, os.Args[3], func(net.Conn) string { return os.Args[2] })
}

// answer writes a ready file, and answers each line that comes to a listener with
// "NAME: line", until it is interrupted. name says who answers, once a line was read.
func answer(l net.Listener, readyFile string, name func(net.Conn) string) {
	check(os.WriteFile(readyFile, []byte("ready"), 0o600))
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
					fmt.Fprintf(c, "%s: %s", name(c), line)
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
func talk() { converse(connect(os.Args[1]), os.Args[2:]) }

// talk-tls ADDRESS NAME DIR LINE…: does as talk by TLS, with that server name and
// what `login --cert-out` wrote to DIR.
func talkTLS() {
	dir := os.Args[3]
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	check(err)
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	converse(tls.Client(connect(os.Args[1]), &tls.Config{ServerName: os.Args[2], RootCAs: roots, Certificates: []tls.Certificate{cert}}), os.Args[4:])
}

// converse sends each line and prints each answer.
func converse(c net.Conn, lines []string) {
	r := bufio.NewReader(c)
	for _, line := range lines {
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

// hold ADDRESS READYFILE [GOFILE]: has one exchange, writes READYFILE, waits for
// GOFILE and has another, waits for the end of the connection and prints "reset"
// or "end of file".
func hold() {
	c := connect(os.Args[1])
	r := bufio.NewReader(c)
	exchange := func(line string) {
		fmt.Fprintln(c, line)
		answer, err := r.ReadString('\n')
		if err != nil {
			ended(err)
		}
		fmt.Print(answer)
	}
	exchange("hello")
	check(os.WriteFile(os.Args[2], []byte("ready"), 0o600))
	if len(os.Args) > 3 {
		check(waitFor(os.Args[3]))
		exchange("still there")
		check(os.WriteFile(os.Args[3]+".done", []byte("ready"), 0o600))
	}
	_, err := r.ReadString('\n')
	switch {
	case errors.Is(err, syscall.ECONNRESET):
		fmt.Println("reset")
	case errors.Is(err, io.EOF):
		fmt.Println("end of file")
	default:
		fmt.Println("ended:", err)
	}
}

func connect(address string) net.Conn {
	network := "tcp"
	if filepath.IsAbs(address) {
		network = "unix"
	}
	c, err := net.DialTimeout(network, address, 10*time.Second)
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
