package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/client"
	"cardea/manifest"
)

var update = flag.Bool("update", false, "write the golden files")

// asProgram makes the test binary cardea itself, as connect --detach starts it.
const asProgram = "CARDEA_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		p := Program{Version: "test", In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
		status := p.Run(ctx, os.Args[1:])
		stop()
		os.Exit(status)
	}
	goleak.VerifyTestMain(m)
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// A person runs commands in a home.
type person struct {
	t    *testing.T
	home string
	env  map[string]string
}

func newPerson(t *testing.T) *person {
	return &person{t: t, home: filepath.Join(t.TempDir(), "home"), env: map[string]string{}}
}

// try runs a command and returns its exit status and what it printed.
func (p *person) try(in string, args ...string) (status int, out, err string) {
	var stdout, stderr bytes.Buffer
	status = p.program(strings.NewReader(in), &stdout, &stderr).Run(p.t.Context(), args)
	return status, stdout.String(), stderr.String()
}

func (p *person) program(in io.Reader, out, err io.Writer) *Program {
	return &Program{Version: "test", In: in, Out: out, Err: err, Getenv: func(name string) string {
		if name == "CARDEA_HOME" {
			return p.home
		}
		return p.env[name]
	}}
}

// run runs a command that must succeed.
func (p *person) run(args ...string) string {
	p.t.Helper()
	return p.pipe("", args...)
}

// pipe runs a command that reads in and must succeed.
func (p *person) pipe(in string, args ...string) string {
	p.t.Helper()
	status, out, err := p.try(in, args...)
	if status != ExitDone {
		p.t.Fatalf("cardea %s: exit %d\n%s%s", strings.Join(args, " "), status, out, err)
	}
	return out
}

// words runs a command and returns all that it printed.
func (p *person) words(args ...string) string {
	p.t.Helper()
	_, out, err := p.try("", args...)
	return out + err
}

func TestExitStatus(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.yaml", "kind: Group\nmetadata: {name: ops}\n")
	bad := write("bad.yaml", "kind: Group\nmetadata: {nam: ops}\n")
	const pin = "fee57b3679c14aecbdef5370a5cf332ad268a28b577e18cdea88b95cf5dfeec6"
	for _, tc := range []struct {
		args   string
		status int
		says   string // part of what it says where it should
	}{
		{"", ExitDone, "cardea demo"},
		{"--help", ExitDone, "To reach Services:"},
		{"version", ExitDone, "cardea test go"},
		{"--version", ExitDone, "cardea test"},
		{"connect --help", ExitDone, "until Ctrl-C"},
		{"completion bash", ExitDone, "bash completion"},
		{"check -f " + good, ExitDone, "1 document: valid"},

		{"logn", ExitUsage, "did you mean login or logs?"},
		{"get", ExitUsage, "get needs a kind"},
		{"get widget", ExitUsage, `there is no kind "widget"`},
		{"get users --bogus", ExitUsage, "cardea get has no flag --bogus"},
		{"get users --lable a=b", ExitUsage, "hint: did you mean --label?"},
		{"get users -o xml", ExitUsage, `--output: must be one of table, wide, json, yaml, name, found "xml"`},
		{"get users --output", ExitUsage, "--output needs a value"},
		{"logs -n many", ExitUsage, `--limit: must be a whole number, found "many"`},
		{"up --grace soon", ExitUsage, `--grace: must be a duration such as 30s or 5m, found "soon"`},
		{"get usrs", ExitUsage, "hint: did you mean users?"},
		{"create tcpmaping x", ExitUsage, "hint: did you mean tcpmapping?"},
		{"create tcpmapping x --port 1", ExitUsage, "cardea create tcpmapping x --port PORT --service HOST:PORT"},
		{"create tcpmapping x --port 1 --service y -n prod", ExitFailed, "not logged in"},
		{"create secret.v1 x", ExitUsage, "--cert with --cert-key, or --file KEY=FILE"},
		{"create secret.v1 x --file y", ExitUsage, `"y" is not KEY=FILE`},
		{"route", ExitUsage, "takes 1 argument, found 0"},
		{"route 0", ExitUsage, `"0" is not a port: 1 to 65535`},
		{"route ssh", ExitUsage, `"ssh" is not a port: 1 to 65535`},
		{"route 22 --from here", ExitUsage, `--from: "here" is not an IP address`},
		{"route 22 --no-tls --sni a.example", ExitUsage, "cannot both be"},
		{"route 22", ExitFailed, "not logged in"},
		{"check", ExitFailed, "not logged in"},
		{"why alice tcpmapping/default/ssh", ExitUsage, "hint: cardea route PORT"},
		{"explain tcpmapping.spec.hots", ExitFailed, "hint: did you mean spec.host?"},
		{"explain service.spec.limits.conections", ExitFailed, "hint: did you mean spec.limits.connections?"},
		{"get identityproviders", ExitFailed, "error: the kind IdentityProvider is not yet available"},
		{"get tcproutes", ExitFailed, "error: the kind TCPRoute is not yet available"},
		{"get all x", ExitUsage, "takes no name"},
		{"delete session", ExitUsage, "usage: cardea delete KIND NAME…"},
		{"create", ExitUsage, "create needs a kind"},
		{"create policy x", ExitUsage, "not created by flags"},
		{"create credential x", ExitUsage, "needs --user"},
		{"create credential x --user x --expire-in soon", ExitUsage, `"soon" is not a duration`},
		{"create credential x --user x --one-time --max-authn 3", ExitUsage, "--one-time is --max-authn 1, not 3"},
		{"create secret x", ExitUsage, "one of --value, --file, and --cert with --cert-key"},
		{"connect", ExitFailed, "not logged in"},
		{"connect --tunnel carrier-pigeon", ExitUsage, "want auto, wireguard, quic or tls"},
		{"connect --socks5 x:y", ExitUsage, "no address of a proxy"},
		{"connect --share", ExitUsage, "give -p or --socks5"},
		{"connect --serve-any-url", ExitUsage, "give --serve or --serve-all"},
		{"connect -p nats:0 --no-dns", ExitUsage, "give --interface too"},
		{"connect -p nats", ExitUsage, "want SERVICE:[HOST:]PORT"},
		{"conns kill", ExitUsage, "needs at least 1 argument"},
		{"conns bogus", ExitUsage, `there is no verb "bogus" in "cardea conns"`},
		{"logs verify x", ExitUsage, `cardea logs verify takes no argument, found "x"`},
		{"logs --type BOGUS", ExitUsage, "must be one of START, END, DENIED, API, HEALTH, found \"BOGUS\""},
		{"connect -p /x:1", ExitUsage, `the Service "/x" must be`},
		{"create service nats", ExitUsage, "cardea create service nats --upstream tcp://HOST:PORT"},
		{"create credential x --rotate --expire-in 2h", ExitUsage, "--expire-in has to be applied"},
		{"login 127.0.0.1", ExitUsage, "needs --token or --token-file, and --ca-sha256"},
		{"logs --since yesterday", ExitUsage, "neither a time such as"},
		{"why alice nats --at noon", ExitUsage, "is not a time such as"},
		{"why alice", ExitUsage, "takes 2 arguments, found 1"},
		{"apply", ExitUsage, "name a file, a directory, or -"},

		{"get tcpmappings", ExitFailed, "not logged in"},
		{"who-can nats --bogus", ExitFailed, `error: the verb "who-can" is not yet available`},
		{"upgrade --data-dir nowhere", ExitFailed, "error: no cardea serves from"},
		{"up --drain -1s", ExitUsage, "must be 0 or more"},
		{"upgrade --timeout 0s", ExitUsage, "must be more than 0"},
		{"delete -f x.yaml -n prod", ExitUsage, "-f and -n cannot both be"},
		{"delete -f " + bad, ExitFailed, "nothing was deleted: 1 problem"},
		{"edit user/alice user/bob", ExitUsage, "edit takes one resource, found 2"},
		{"describe user", ExitUsage, "name the User that is meant"},
		{"get user/alice -w", ExitUsage, "-w watches a kind"},
		{"route 10.9.0.1:22 --address 10.9.0.2", ExitUsage, "--address 10.9.0.2 is not that of 10.9.0.1:22"},
		{"access-diff --help", ExitFailed, `error: the verb "access-diff" is not yet available`},
		{"auth login", ExitUsage, `there is no verb "login"`},
		{"up -f no-such-file.yaml", ExitFailed, "no-such-file.yaml"},
		{"up --store mysql://root:hunter2@db/x", ExitFailed, `--store: "mysql" is no store that is known`},
		{"apply --prune x.yaml", ExitUsage, "--prune needs --set"},
		{"explain service.spec.prot", ExitFailed, `Service.spec has no field "prot"`},
		{"explain nothing", ExitUsage, `there is no kind "nothing"`},
		{"update user alice", ExitUsage, "a User is not updated by flags"},
		{"update session s --approve --reject", ExitUsage, "cannot both be"},
		{"rotate everything", ExitUsage, "everything"},
		{"aply -f x.yaml", ExitUsage, `there is no verb "aply"`},
		{"restore x.backup", ExitUsage, "restore needs --data-dir"},
		{"backup cli_test.go", ExitFailed, "is there already"},
		{"edit region default", ExitFailed, "cannot be changed"},
		{"restore no-such-file --data-dir d", ExitFailed, "no-such-file"},
		{"logout --local", ExitDone, "holds no Session any more"},
		{"up --domain Bad_Domain --listen 127.0.0.1:0 --data-dir " + filepath.Join(dir, "bad"), ExitFailed, "error: the domain"},
		{"get users", ExitFailed, "not logged in"},
		{"status", ExitFailed, "cardea login ADDRESS"},
		{"logout", ExitFailed, "not logged in"},
		{"disconnect", ExitFailed, "nothing is connected"},
		{"connect -p nats:0", ExitFailed, "not logged in"},
		{"apply -f " + filepath.Join(dir, "none"), ExitFailed, "no such file"},
		{"apply " + bad, ExitFailed, "nothing was changed: 1 problem"},
		{"check " + bad, ExitFailed, "the documents are not valid: 1 problem"},
		{"login 127.0.0.1:1 --token x --ca-sha256 " + pin, ExitFailed, "hint: is the cluster running, and is that its address?"},
		{"login 127.0.0.1:1 --token x --ca-sha256 ff", ExitFailed, "64 hexadecimal digits"},
		{"recover --data-dir " + filepath.Join(dir, "none"), ExitFailed, "there is no cluster"},
		{"up --listen 127.0.0.1:0 --ready-file " + filepath.Join(dir, "none", "ready") + " --data-dir " + filepath.Join(dir, "data"), ExitFailed, "write the ready file"},
		{"up --listen nowhere:x --data-dir " + filepath.Join(dir, "data"), ExitFailed, "--listen"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			status, out, err := newPerson(t).try("", strings.Fields(tc.args)...)
			said, silent := err, out
			if tc.status == ExitDone {
				said, silent = out, err
			}
			if status != tc.status || !strings.Contains(said, tc.says) || silent != "" {
				t.Errorf("exit %d, want %d, and to say %q; standard output:\n%s\nstandard error:\n%s", status, tc.status, tc.says, out, err)
			}
			if status != ExitDone && !strings.Contains(err, "error: ") {
				t.Errorf("no line begins with error:\n%s", err)
			}
		})
	}
}

// TestHelp holds every verb to a few words and an example.
func TestHelp(t *testing.T) {
	r := &run{Program: newPerson(t).program(nil, io.Discard, io.Discard)}
	for _, c := range r.root().Commands() {
		if !c.IsAvailableCommand() || c.Name() == "completion" || c.Name() == "help" {
			continue
		}
		if c.Short == "" || c.Example == "" || !strings.Contains(c.Example, "cardea "+c.Name()) {
			t.Errorf("%s: short %q, example %q", c.Name(), c.Short, c.Example)
		}
		if n := strings.Count(c.Long, "\n"); n > 5 {
			t.Errorf("%s: its help has %d lines", c.Name(), n+1)
		}
		for line := range strings.Lines(c.Long) {
			if len([]rune(line)) > 100 {
				t.Errorf("%s: a line of its help is too long: %s", c.Name(), line)
			}
		}
	}
}

// TestCheck shows problems of several files with their places.
func TestCheck(t *testing.T) {
	status, out, err := newPerson(t).try("", "check", "testdata/documents")
	if status != ExitFailed || out != "" {
		t.Errorf("exit %d, %s", status, out)
	}
	golden(t, "check.txt", err)
}

// TestLocated shows problems that the cluster found, at their places in the files.
func TestLocated(t *testing.T) {
	a, _ := manifest.Decode("a.yaml", []byte("kind: Group\nmetadata:\n  name: ops\n---\nkind: User\nmetadata:\n  name: alice\nspec:\n  type: HUMAN\n  groups:\n    - ops\n    - dev\n"))
	b, _ := manifest.Decode("b.yaml", []byte("kind: User\nmetadata:\n  name: bob\nspec:\n  type: HUMAN\n"))
	failure := &api.Error{Code: api.CodeInvalid, Message: "nothing was written", Problems: []api.Problem{
		{Document: 1, Pointer: "/spec/groups/1", Rule: "must name a Group", Found: "dev", Hint: "did you mean ops?"},
		{Document: 2, Pointer: "/metadata/name", Rule: "may be more", Found: "b\x1b[2Job", Warning: true},
		{Document: 2, Pointer: "/spec", Rule: "must be kind\nto all"},
		{Document: 9, Pointer: "/spec", Rule: "is of no document"},
	}}
	var said bytes.Buffer
	r := &run{Program: newPerson(t).program(nil, io.Discard, &said)}
	tell(&said, r.unchanged(located(append(a, b...), failure)))
	golden(t, "located.txt", said.String())
}

func TestTell(t *testing.T) {
	var said bytes.Buffer
	tell(&said, errors.Join(
		&api.Error{Code: api.CodePermissionDenied, Message: "not allowed: list User", DecisionID: "aaaa-bbbb", Hint: "ask somebody"},
		fmt.Errorf("renew: %w", &api.Error{Code: api.CodeUnavailable, Message: "try later", Hint: "wait"}),
		hinted(errors.New("a line\nand another"), "read it\x07"),
		fmt.Errorf("cannot reach it: %w", syscall.ECONNREFUSED),
		errors.Join(usageError{hint: "usage: x", words: "what?"}),
	))
	golden(t, "tell.txt", said.String())
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]string{
		"90s": "1m30s", "30m": "30m0s", "2h": "2h0m0s", "2hours": "2h0m0s", "1hour": "1h0m0s", "7d": "168h0m0s", "1week": "168h0m0s",
		"1h30m": "1h30m0s", "": "", "0": "", "0h": "", "-2h": "", "2": "", "h": "", "2moons": "", "2 hours": "2h0m0s",
	} {
		d, err := parseDuration(in)
		got := d.String()
		if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"plain text": "plain text", "": "", "größe": "größe", "a\nb": `"a\nb"`, "\x1b[31m": `"\x1b[31m"`, "a\u202eb": `"a\u202eb"`, "\xff": `"\xff"`,
	} {
		if got := plain(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

// echo runs an upstream that sends back what it gets.
func echo(t *testing.T) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { io.Copy(c, c); c.Close() })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}

// up runs cardea up until the test ends and returns what it wrote for programs.
func up(t *testing.T, data string) (ready readyFile, stop func()) {
	t.Helper()
	p, file := newPerson(t), filepath.Join(t.TempDir(), "ready.json")
	ctx, cancel := context.WithCancel(context.Background())
	said, out := io.Pipe()
	var words bytes.Buffer
	ended := make(chan int, 1)
	go func() {
		status := p.program(nil, out, &words).Run(ctx, []string{"up", "--data-dir", data, "--listen", "127.0.0.1:0", "--ready-file", file})
		out.Close()
		ended <- status
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			go io.Copy(io.Discard, said)
			if status := <-ended; status != ExitDone {
				t.Errorf("up: exit %d\n%s", status, words.String())
			}
		})
	}
	t.Cleanup(stop)
	if _, err := said.Read(make([]byte, 1)); err != nil { // it speaks once it serves
		t.Fatal("up did not start")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(file); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("the ready file: %v, %v", i.Mode(), err)
	}
	if err := json.Unmarshal(text, &ready); err != nil {
		t.Fatal(err)
	}
	return ready, stop
}

func (p *person) login(r readyFile, token string) {
	p.t.Helper()
	p.run("login", r.Address, "--token", token, "--ca-sha256", r.CASHA256)
}

const service = `kind: Service
metadata:
  name: nats
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

// TestAcceptance is the shortest real use, with the test binary as the process in
// the background.
func TestAcceptance(t *testing.T) {
	t.Setenv(asProgram, "1")
	data := filepath.Join(t.TempDir(), "data")
	ready, stop := up(t, data)
	root, alice := newPerson(t), newPerson(t)
	root.login(ready, ready.Token)
	doc := fmt.Sprintf(service, echo(t))
	if out := root.pipe(doc, "apply", "-f", "-", "--dry-run"); out != "service/nats.default created (dry run)\n" {
		t.Errorf("dry run: %s", out)
	}
	if out := root.pipe(doc, "apply", "-"); out != "service/nats.default created\n" {
		t.Errorf("apply: %s", out)
	}
	if out := root.pipe(doc, "apply", "-"); out != "service/nats.default unchanged\n" {
		t.Errorf("apply again: %s", out)
	}
	root.run("create", "group", "group-1")
	root.run("create", "user", "alice", "--type", "HUMAN", "--group", "group-1")
	var made tokenAnswer
	if err := json.Unmarshal([]byte(root.run("create", "credential", "alice", "--user", "alice", "--type", "auth-token", "--expire-in", "2h", "-o", "json")), &made); err != nil {
		t.Fatal(err)
	}
	alice.login(ready, made.Token)

	// Two calls, one process.
	var addresses []string
	for range 2 {
		got, out, words := alice.try("", "connect", "-p", "nats:0", "--detach")
		if log := client.LogFile(alice.home); got != ExitDone || !strings.Contains(words, log) {
			t.Fatalf("connect --detach: exit %d, and does not tell of %s: %s", got, log, words)
		}
		line := strings.TrimSpace(out)
		_, address, ok := strings.Cut(line, "nats.default is at ")
		if !ok {
			t.Fatalf("connect says %q", line)
		}
		addresses = append(addresses, address)
	}
	t.Cleanup(func() { alice.try("", "disconnect") })
	var status homeStatus
	if err := json.Unmarshal([]byte(alice.run("status", "-o", "json")), &status); err != nil {
		t.Fatal(err)
	}
	if status.User != "alice" || status.Connect == nil || len(status.Connect.Ports) != 2 || status.ExpiresAt.IsZero() || status.Connect.PID == os.Getpid() {
		t.Errorf("status: %+v", status)
	}
	if text := alice.run("status"); !strings.Contains(text, addresses[1]) || !strings.Contains(text, status.Session.Session) {
		t.Errorf("status: %s", text)
	}
	c := say(t, addresses[0])
	say(t, addresses[1])

	var conns api.Connections
	if err := json.Unmarshal([]byte(root.run("conns", "-o", "json")), &conns); err != nil {
		t.Fatal(err)
	}
	if len(conns.Items) != 2 || conns.Items[0].User != "alice" || conns.Items[0].Session != status.Session.Session || conns.Items[0].Service != "nats.default" {
		t.Errorf("conns: %+v", conns.Items)
	}
	if out := root.run("why", "alice", "nats"); !strings.HasPrefix(out, "alice may reach nats.default.\n") {
		t.Errorf("why: %s", out)
	}
	root.run("conns", "kill", conns.Items[1].ID)
	root.run("delete", "session", status.Session.Session)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after delete session, alice's connection says %v", err)
	}
	// The log is in order: once the last END is there, all is.
	types := logTypes(t, root, 2)
	if text := alice.words("status"); !strings.Contains(text, client.LogFile(alice.home)) || !strings.Contains(text, "a connection to nats.default was cut: ") {
		t.Errorf("status after a cut: %s", text)
	}
	if slices.Compare(types, []string{"END", "END", "START", "START"}) != 0 {
		t.Errorf("the log has %v", types)
	}
	root.run("logs", "verify")

	if got, _, words := alice.try("", "status"); got != ExitFailed || !strings.Contains(words, "valid Session") {
		t.Errorf("status after the Session was deleted: exit %d, %s", got, words)
	}
	if got, _, words := alice.try("", "logout"); got != ExitDone {
		t.Errorf("logout from a Session that has ended: exit %d, %s", got, words)
	}
	if _, err := client.Running(t.Context(), alice.home); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("logout leaves connect in the background: %v", err)
	}

	// What people wrote can be applied as it is printed.
	all := root.run("get", "all", "-o", "yaml")
	if out := root.pipe(all, "apply", "-"); strings.Count(out, " unchanged\n") != 4 || strings.Count(out, "\n") != 4 {
		t.Errorf("apply of get all -o yaml:\n%s", out)
	}

	stop()
	if got, _, words := root.try("", "get", "users"); got != ExitFailed || !strings.Contains(words, "is the cluster running") {
		t.Errorf("without a cluster: exit %d, %s", got, words)
	}
	token := strings.TrimSpace(root.run("recover", "--data-dir", data))
	again, _ := up(t, data)
	if again.Token != "" || again.CASHA256 != ready.CASHA256 {
		t.Errorf("after a restart it is %+v", again)
	}
	lost := newPerson(t)
	lost.login(again, token)
	lost.run("get", "users")
}

// say opens a connection that is answered, and leaves it open.
func say(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	b := []byte("hello")
	c.Write(b)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Fatalf("got %q, %v", b, err)
	}
	return c
}

// logTypes returns the types of the records of nats, sorted, once there are so
// many of type END.
func logTypes(t *testing.T, p *person, ends int) (types []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines, out := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- p.program(nil, out, io.Discard).Run(ctx, []string{"logs", "-f", "--service", "nats", "-o", "json"})
		out.Close()
	}()
	for d := json.NewDecoder(lines); ends > 0; {
		var rec api.AccessLog
		if err := d.Decode(&rec); err != nil {
			t.Fatal(err)
		}
		types = append(types, string(rec.Entry.Info.TCP.Type))
		if rec.Entry.Info.TCP.Type == api.LogEnd {
			ends--
		}
	}
	cancel()
	if status := <-done; status != ExitDone {
		t.Errorf("logs -f: exit %d after it was interrupted", status)
	}
	slices.Sort(types)
	return types
}

// TestResources goes through the verbs that write and read.
func TestResources(t *testing.T) {
	ready, _ := up(t, filepath.Join(t.TempDir(), "data"))
	root := newPerson(t)
	root.env["CARDEA_TOKEN"], root.env["CARDEA_CA_SHA256"] = ready.Token, ready.CASHA256
	root.run("login", ready.Address)

	root.run("create", "ns", "prod")
	root.run("create", "grp", "ops", "--policy", "api-read-only")
	root.run("create", "usr", "carol", "-t", "workload", "--group", "ops", "--email", "carol@example.com")
	root.run("create", "svc", "web.prod", "--upstream", "tcp://127.0.0.1:1234")
	root.pipe("s3cret", "create", "sec", "password", "--value", "-")
	line := strings.TrimSpace(root.run("create", "cred", "carol", "--user", "carol", "--one-time"))
	typed := strings.Fields(line) // to hand over as it is
	if len(typed) != 7 || !slices.Equal(typed[:3], []string{"cardea", "login", ready.Address}) || typed[6] != ready.CASHA256 {
		t.Fatalf("create credential prints %q", line)
	}
	token := typed[4]

	carol := newPerson(t)
	carol.run(typed[1:]...)
	if status, _, words := carol.try("", "delete", "svc", "web.prod"); status != ExitFailed || !strings.Contains(words, "not allowed: delete Service web.prod (decision ") {
		t.Errorf("carol deletes: exit %d, %s", status, words)
	}
	again := newPerson(t)
	if status, _, words := again.try("", "login", ready.Address, "--token", token, "--ca-sha256", ready.CASHA256); status != ExitFailed || !strings.Contains(words, "the token is not valid") {
		t.Errorf("a token that can be used once: exit %d, %s", status, words)
	}

	var transcript strings.Builder
	for _, args := range [][]string{
		{"get", "svc", "-n", "prod", "-o", "name"},
		{"get", "users"},
		{"get", "user", "carol"},
		{"get", "user", "carol", "root", "-o", "name"},
		{"get", "secrets"},
		{"get", "all"},
		{"get", "all", "-o", "yaml"},
		{"get", "all", "-o", "name"},
		{"delete", "user", "carol", "nobody"},
		{"get", "credentials", "--user", "carol"},
		{"get", "svc", "web.prodd"},
		{"create", "user", "x_y", "--type", "ROBOT"},
		{"create", "group", "ops"},
		{"create", "credential", "rot", "--user", "root", "--rotate"},
		{"why", "rot", "web.prod"},
		{"why", "nobody", "web.prod"},
	} {
		status, out, words := root.try("", args...)
		fmt.Fprintf(&transcript, "$ cardea %s\n%s%sexit status %d\n\n", strings.Join(args, " "), out, words, status)
	}
	golden(t, "resources.txt", transcript.String())

	var one api.User
	if err := json.Unmarshal([]byte(root.run("get", "user", "root", "-o", "json")), &one); err != nil || one.Metadata.Name != "root" {
		t.Errorf("get user root -o json: %+v, %v", one, err)
	}
	var list struct{ Items []api.Namespace }
	if err := json.Unmarshal([]byte(root.run("get", "ns", "-o", "json")), &list); err != nil || len(list.Items) != 3 {
		t.Errorf("get ns -o json: %+v, %v", list, err)
	}
	if out := root.run("describe", "service", "web.prod"); !strings.Contains(out, "Service        web.prod\n") || !strings.Contains(out, "url: tcp://127.0.0.1:1234\n") {
		t.Errorf("describe: %s", out)
	}
	if out := root.run("get", "sessions", "-o", "json") + root.run("get", "secrets", "-o", "yaml"); strings.Contains(out, "s3cret") {
		t.Errorf("a secret is told: %s", out)
	}
	if status, _, words := root.try("", "up", "--listen", ready.Address, "--data-dir", t.TempDir()); status != ExitFailed ||
		!strings.Contains(words, "is taken by another program") || !strings.Contains(words, "--listen") {
		t.Errorf("a port that is taken: exit %d, %s", status, words)
	}
}

// TestLoginReplaces logs in where a Session is.
func TestLoginReplaces(t *testing.T) {
	ready, stop := up(t, filepath.Join(t.TempDir(), "data"))
	root := newPerson(t)
	root.login(ready, ready.Token)
	var first homeStatus
	if err := json.Unmarshal([]byte(root.run("status", "-o", "json")), &first); err != nil {
		t.Fatal(err)
	}
	root.run("create", "user", "alice")
	token := func(name, user string) string {
		var made tokenAnswer
		if err := json.Unmarshal([]byte(root.run("create", "credential", name, "--user", user, "--one-time", "-o", "json")), &made); err != nil {
			t.Fatal(err)
		}
		return made.Token
	}
	alices, roots := token("alice", "alice"), token("root-2", "root")
	try := func(token string, flags ...string) (int, string) {
		status, _, words := root.try("", append([]string{"login", ready.Address, "--token", token, "--ca-sha256", ready.CASHA256}, flags...)...)
		return status, words
	}
	want := "error: this home is logged in as root (Session " + first.Session.Session + "), and the token is another User's\nhint: "
	if status, words := try(alices); status != ExitFailed || !strings.HasPrefix(words, want) || !strings.Contains(words, "--force") {
		t.Errorf("the token of another: exit %d, %s", status, words)
	}
	if out := root.run("status"); !strings.Contains(out, first.Session.Session) {
		t.Errorf("after a login that was refused: %s", out)
	}
	if status, words := try(roots); status != ExitDone || !strings.Contains(words, "cardea delete session "+first.Session.Session+" ends it") {
		t.Errorf("another token of the same User: exit %d, %s", status, words)
	}
	root.run("delete", "session", first.Session.Session)
	again := token("root-3", "root")
	if status, words := try(alices, "--force"); status != ExitDone || !strings.Contains(words, "stays until it expires") {
		t.Errorf("by force: exit %d, %s", status, words)
	}
	if out := root.run("status"); !strings.Contains(out, "alice") {
		t.Errorf("by force: %s", out)
	}
	root.run("logout", "--local")
	if status, words := try(again); status != ExitDone || words != "" {
		t.Errorf("where nobody is: exit %d, %s", status, words)
	}

	stop()
	if status, _, words := root.try("", "logout"); status != ExitFailed || !strings.Contains(words, "hint: cardea logout --local") {
		t.Errorf("logout without a cluster: exit %d, %s", status, words)
	}
	// A cluster that cannot be reached does not stand in the way of another.
	other, _ := up(t, filepath.Join(t.TempDir(), "other"))
	if status, _, words := root.try("", "login", other.Address, "--token", other.Token, "--ca-sha256", other.CASHA256); status != ExitDone || words != "" {
		t.Errorf("in place of a Session that nobody vouches for: exit %d, %s", status, words)
	}
}

// A heard says when something is written.
type heard struct {
	once sync.Once
	ch   chan struct{}
}

func (h *heard) Write(p []byte) (int, error) {
	h.once.Do(func() { close(h.ch) })
	return len(p), nil
}

// TestLogsEnd follows the log of a cluster that stops.
func TestLogsEnd(t *testing.T) {
	ready, stop := up(t, filepath.Join(t.TempDir(), "data"))
	root := newPerson(t)
	root.login(ready, ready.Token)
	said, words := &heard{ch: make(chan struct{})}, new(bytes.Buffer)
	done := make(chan int, 1)
	go func() { done <- root.program(nil, said, words).Run(t.Context(), []string{"logs", "-f"}) }()
	<-said.ch // the login is on record
	stop()
	if status := <-done; status != ExitFailed || !strings.Contains(words.String(), "error: ") {
		t.Errorf("exit %d, %s", status, words.String())
	}
	if status, out, _ := root.try("", "logs"); status != ExitFailed || out != "" {
		t.Errorf("without a cluster: exit %d, and prints %q", status, out)
	}
}

// TestCredentialHints says how to get to a token.
func TestCredentialHints(t *testing.T) {
	ready, _ := up(t, filepath.Join(t.TempDir(), "data"))
	root := newPerson(t)
	root.login(ready, ready.Token)
	doc := "kind: User\nmetadata: {name: alice}\nspec: {type: HUMAN}\n---\nkind: Credential\nmetadata: {name: alice}\nspec: {type: AUTH_TOKEN, user: alice}\n"
	const hint = "hint: cardea create credential alice --rotate "
	if status, _, words := root.try(doc, "apply", "-"); status != ExitDone || words != hint+"prints a token for it\n" {
		t.Errorf("apply: exit %d, %s", status, words)
	}
	if status, _, words := root.try(doc, "apply", "-"); status != ExitDone || words != "" {
		t.Errorf("apply again: exit %d, %s", status, words)
	}
	if status, _, words := root.try("", "create", "credential", "alice", "--user", "alice"); status != ExitFailed || !strings.Contains(words, hint+"makes a new token\n") {
		t.Errorf("create: exit %d, %s", status, words)
	}
	newPerson(t).run(strings.Fields(root.run("create", "credential", "alice", "--rotate"))[1:]...)
}

func TestReachable(t *testing.T) {
	for in, want := range map[string]string{
		"0.0.0.0:8443": "192.0.2.7:8443", "[::]:8443": "192.0.2.7:8443", "127.0.0.1:8443": "127.0.0.1:8443", "[2001:db8::1]:1": "[2001:db8::1]:1", "name:1": "name:1",
	} {
		both := func(network string) (netip.Addr, bool) {
			return map[string]netip.Addr{"udp4": netip.MustParseAddr("192.0.2.7"), "udp6": netip.MustParseAddr("2001:db8::7")}[network], true
		}
		if got := reachable(in, both); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{"[::]:8443": "[2001:db8::7]:8443", "0.0.0.0:8443": net.JoinHostPort(host, "8443")} {
		six := func(network string) (netip.Addr, bool) { return netip.MustParseAddr("2001:db8::7"), network == "udp6" }
		if got := reachable(in, six); got != want {
			t.Errorf("with IPv6 alone, %s: got %s, want %s", in, got, want)
		}
	}
}

// TestDemo runs the demo to its end.
func TestDemo(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var out, words bytes.Buffer
	p := newPerson(t).program(nil, &out, &words)
	if status := p.Run(t.Context(), []string{"demo"}); status != ExitDone {
		t.Fatalf("exit %d\n%s%s", status, out.String(), words.String())
	}
	for _, part := range []string{"hello through the cluster", "bob may NOT reach echo.default", "revoked: ", "END     alice", "DENIED  bob", "The log is whole"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("it does not say %q:\n%s", part, out.String())
		}
	}
	empty(t, tmp)
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

// An interrupter cancels once it is written a word.
type interrupter struct {
	at     string
	cancel func()
}

func (i interrupter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), i.at) {
		i.cancel()
	}
	return len(p), nil
}

// TestDemoInterrupted ends the demo at several places: it must fail, and leave
// nothing.
func TestDemoInterrupted(t *testing.T) {
	for _, at := range []string{"cardea up", "cardea login", "create user", "connect -p", "nc 127", "why bob", "cat alice.yaml", "logs verify"} {
		t.Run(at, func(t *testing.T) {
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var words bytes.Buffer
			p := newPerson(t).program(nil, interrupter{at, cancel}, &words)
			if status := p.Run(ctx, []string{"demo"}); status != ExitFailed {
				t.Errorf("exit %d, %s", status, words.String())
			}
			empty(t, tmp)
		})
	}
}

func TestDemoPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	status, _, words := newPerson(t).try("", "demo", "--listen", l.Addr().String())
	if status != ExitFailed || !strings.Contains(words, "is taken by another program") || !strings.Contains(words, "--listen") {
		t.Errorf("exit %d, %s", status, words)
	}
}
