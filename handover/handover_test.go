package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// role is set in the environment of processes that this test starts of itself.
const role = "HANDOVER_TEST_ROLE"

func TestMain(m *testing.M) {
	if r := os.Getenv(role); r != "" {
		if err := play(context.Background(), r); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// text is what an heir is to know.
const text = "an heir should know this: \x00 \n \\ é"

func texts() map[string]string { return map[string]string{"": text, "more": text} }

// errWrong says that it does not.
var errWrong = errors.New("something else came over")

// play is what the processes do that a test starts.
func play(ctx context.Context, r string) error {
	fd := os.Getenv(Variable)
	switch r {
	case "parent": // starts an heir, and is killed before it lets it serve
		os.Setenv(role, "heir")
		h, err := Start(ctx, Program{Path: os.Args[0], Args: os.Args[:1], Stdout: os.Stdout, Stderr: os.Stderr})
		if err == nil {
			err = errors.Join(h.Give(ctx, nil, nil), h.Asks(ctx), h.Give(ctx, nil, texts()), h.Ready(ctx))
		}
		fmt.Println("ready", h.PID())
		<-time.After(time.Minute)
		return err
	case "stranger": // knows nothing of this
		fmt.Fprintln(os.Stderr, "I am another program")
		os.Exit(7)
	case "hanging":
		fmt.Fprintln(os.Stderr, "I hang")
		<-time.After(time.Minute)
	case "quiet":
		return nil
	}
	e, err := Inherit(ctx, fd, "v2")
	if err != nil {
		return err
	}
	defer e.Close()
	if r == "broken" {
		return errors.New("the store cannot be read")
	}
	if err := e.Ask(ctx); err != nil {
		return err
	}
	if e.Text("") != text || e.Text("more") != text || e.Text("none") != "" {
		return errWrong
	}
	f := e.Take("door")
	if r == "late" {
		<-time.After(time.Minute)
	}
	if err := e.Ready(ctx); err != nil {
		return err
	}
	if r == "afraid" {
		return errors.New("I dare not")
	}
	l, err := ListenerOf(f)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "about to serve")
	if r == "bereaved" { // the other one is gone by now
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			return err
		}
	}
	if err := e.Serving(ctx); err != nil {
		return err
	}
	if err := e.Left(ctx); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "serving alone")
	for { // until somebody says stop
		c, err := l.Accept()
		if err != nil {
			return err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		fmt.Fprintf(c, "%d %s", os.Getpid(), line)
		c.Close()
		if err != nil || line == "stop\n" {
			return err
		}
	}
}

// heir starts a process of this test, which is to end with it.
func heir(t *testing.T, ctx context.Context, as string, stderr *os.File) (*Heir, error) {
	t.Setenv(role, as)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector waits a second at each exit
	return Start(ctx, Program{Path: os.Args[0], Args: os.Args[:1], Stderr: stderr})
}

// raise brings an heir to where it may serve.
func raise(ctx context.Context, h *Heir, files map[string]*os.File) error {
	if err := h.Give(ctx, nil, nil); err != nil {
		return err
	}
	if err := h.Asks(ctx); err != nil {
		return err
	}
	if err := h.Give(ctx, files, texts()); err != nil {
		return err
	}
	if err := h.Ready(ctx); err != nil {
		return err
	}
	return h.Go(ctx)
}

// Nobody who comes to a door is refused, or lost in its queue, while it goes from one
// process to the next.
func TestHandOver(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	h, err := heir(t, ctx, "heir", stderr)
	if err != nil {
		t.Fatal(err)
	}
	if h.Version() != "v2" {
		t.Errorf("it says that it is %q", h.Version())
	}
	door, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	waits := dial(t, l.Addr())
	files := map[string]*os.File{"door": door, StderrName: stderr}
	for i := range 3 * filesAtOnce { // more than go at once
		files[fmt.Sprint("more ", i)] = door
	}
	if err := raise(ctx, h, files); err != nil {
		t.Fatal(err)
	}
	if !h.Took("door") || h.Took("more 1") || h.Took("none") {
		t.Errorf("it says that it has taken %q", h.took)
	}
	door.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	late := dial(t, l.Addr())
	if err := h.Left(ctx); err != nil {
		t.Error(err)
	}
	h.Release()
	for _, c := range []net.Conn{waits, late, dial(t, l.Addr())} {
		fmt.Fprintln(c, "hello")
		if got, err := io.ReadAll(c); err != nil || string(got) != fmt.Sprintf("%d hello\n", h.PID()) {
			t.Errorf("answered: %q, %v", got, err)
		}
	}
	c := dial(t, l.Addr())
	fmt.Fprintln(c, "stop")
	io.ReadAll(c)
	<-h.ended
	said, err := os.ReadFile(stderr.Name())
	if want := "about to serve\nserving alone\n"; err != nil || string(said) != want {
		t.Errorf("it said %q, %v; want %q", said, err, want)
	}
}

func dial(t *testing.T, to net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// A process that does not come to serve is gone, and what it said is known.
func TestFailures(t *testing.T) {
	for _, c := range []struct{ as, want, said string }{
		{"stranger", "the new process ended: exit status 7", "I am another program\n"},
		{"quiet", "the new process ended with status 0", ""},
		{"hanging", "the new process was not ready in time", "I hang\n"},
		{"broken", "the new process ended: exit status 1", "error: the store cannot be read\n"},
		{"late", "the new process was not ready in time", ""},
		{"afraid", "the new process ended: exit status 1", "error: I dare not\n"},
	} {
		t.Run(c.as, func(t *testing.T) {
			within := time.Minute
			if strings.Contains(c.want, "in time") {
				within = 500 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			h, err := heir(t, ctx, c.as, nil)
			if err == nil {
				err = raise(ctx, h, nil)
				h.Kill()
			}
			var failed *FailedError
			if !errors.As(err, &failed) || err.Error() != c.want || failed.Said != c.said {
				t.Errorf("%v, want %s", err, c.want)
			}
			if failed != nil && failed.Said != c.said {
				t.Errorf("it said %q, want %q", failed.Said, c.said)
			}
			if h != nil {
				if err := unix.Kill(h.PID(), 0); !errors.Is(err, unix.ESRCH) {
					t.Errorf("it is still there: %v", err)
				}
			}
		})
	}
}

// A process that was never let serve ends with the one that has started it.
func TestOrphan(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), role+"=parent")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "ready") {
		t.Errorf("%q, %v", line, err)
	}
	cmd.Process.Kill()
	io.Copy(io.Discard, r) // ends when nobody has its standard output any more
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
}

// A process that was told to go on serves, also if the one that has told it is gone
// before it hears of that.
func TestBereaved(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	door, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	in, gone, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(role, "bereaved")
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	h, err := Start(ctx, Program{Path: os.Args[0], Args: os.Args[:1], Stdin: in})
	if err != nil {
		t.Fatal(err)
	}
	in.Close()
	err = errors.Join(h.Give(ctx, nil, nil), h.Asks(ctx), h.Give(ctx, map[string]*os.File{"door": door}, texts()), h.Ready(ctx), h.pair.say(message{Word: wordGo}))
	door.Close()
	h.pair.close() // as if this process had been killed
	gone.Close()
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, l.Addr())
	fmt.Fprintln(c, "stop")
	if got, err := io.ReadAll(c); err != nil || string(got) != fmt.Sprintf("%d stop\n", h.PID()) {
		t.Errorf("answered: %q, %v", got, err)
	}
	<-h.Ended()
	h.Release()
}

// What is to follow an answer does so once it was sent, and a link that the other end has
// closed says so in its own words.
func TestAnswered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	var left, right *Link
	right = NewLink(b, func(context.Context, string, json.RawMessage) (any, error) {
		return Then{Answer: "sent", Do: right.Close}, nil
	})
	left = NewLink(a, nil)
	var running sync.WaitGroup
	running.Go(func() { left.Run(t.Context()) })
	running.Go(func() { right.Run(t.Context()) })
	var got string
	if err := left.Ask(t.Context(), "what", nil, &got); err != nil || got != "sent" {
		t.Errorf("%q, %v", got, err)
	}
	running.Wait()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := NewLink(c, nil).Ask(t.Context(), "what", nil, nil); err != ErrLinkOver {
		t.Error(err)
	}
	c.Close()
}

// What no process has handed over is refused.
func TestInherit(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"", "x", "0", "2", "-3", "100000", fmt.Sprint(raw)} {
		if e, err := Inherit(t.Context(), d, "v1"); err == nil {
			t.Errorf("%q is taken", d)
			e.Close()
		}
	}
}

// Processes of one user talk at a path of any length, in place of who was there before.
func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sock")
	if _, err := Dial(t.Context(), path); err == nil {
		t.Error("somebody is there")
	}
	for range 2 { // the first one leaves its socket
		l, err := Listen(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if i, err := os.Stat(path); err != nil || i.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("%v, %v", i.Mode(), err)
		}
		c, err := Dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		if err := Trusted(s); err != nil {
			t.Error(err)
		}
		c.Close()
		s.Close()
		l.Close()
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the socket goes with its listener, which another process may have: %v", err)
		}
	}
}

// Both ends ask, and each question gets its answer, whatever the order.
func TestLink(t *testing.T) {
	a, b := net.Pipe()
	release := make(chan struct{})
	answer := func(ctx context.Context, what string, in json.RawMessage) (any, error) {
		switch what {
		case "echo":
			return in, nil
		case "slow":
			<-release
			return "at last", nil
		case "never":
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("no such question: %s", what)
	}
	left, right := NewLink(a, answer), NewLink(b, answer)
	ended := make(chan struct{}, 2)
	for _, l := range []*Link{left, right} {
		go func() {
			l.Run(t.Context())
			ended <- struct{}{}
		}()
	}
	slow := make(chan string)
	go func() {
		var got string
		if err := left.Ask(t.Context(), "slow", nil, &got); err != nil {
			t.Error(err)
		}
		slow <- got
	}()
	long := strings.Repeat("x", 1<<20)
	for _, l := range []*Link{left, right} {
		var got string
		if err := l.Ask(t.Context(), "echo", long, &got); err != nil || got != long {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		var said *AnswerError
		if err := l.Ask(t.Context(), "what", nil, nil); !errors.As(err, &said) || said.Words != "no such question: what" {
			t.Error(err)
		}
	}
	close(release)
	if got := <-slow; got != "at last" {
		t.Error(got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := left.Ask(ctx, "never", nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	waits := make(chan error)
	go func() { waits <- right.Ask(t.Context(), "never", nil, nil) }()
	left.Close()
	if err := <-waits; !errors.Is(err, ErrLinkOver) {
		t.Error(err)
	}
	<-ended
	<-ended
	<-left.Over()
	if err := right.Ask(t.Context(), "echo", nil, nil); !errors.Is(err, ErrLinkOver) {
		t.Error(err)
	}
}

// The service manager gets one datagram.
func TestNotify(t *testing.T) {
	if err := Notify(t.Context(), "", "READY=1"); err != nil {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	for _, name := range []string{path, "@cardea-handover-test-" + fmt.Sprint(os.Getpid())} {
		address := name
		if name[0] == '@' {
			address = "\x00" + name[1:]
		}
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if err := Notify(t.Context(), name, "MAINPID=4711", "READY=1"); err != nil {
			t.Error(err)
		}
		b := make([]byte, 100)
		if n, err := l.Read(b); err != nil || string(b[:n]) != "MAINPID=4711\nREADY=1" {
			t.Errorf("%q, %v", b[:n], err)
		}
		l.Close()
		if err := Notify(t.Context(), name, "READY=1"); err == nil {
			t.Error("nobody was told, and that is not said")
		}
	}
}
