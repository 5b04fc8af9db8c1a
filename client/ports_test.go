package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"cardea/api"
	"cardea/client"
	"cardea/tunnel"
)

// A words collects log lines and lets a test wait for one.
type words struct {
	mu   sync.Mutex
	text bytes.Buffer
	grew chan struct{}
}

func newWords() *words { return &words{grew: make(chan struct{}, 1)} }

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.grew <- struct{}{}:
	default:
	}
	return w.text.Write(p)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// await returns the first line that holds part.
func (w *words) await(t *testing.T, part string) string {
	t.Helper()
	for {
		for line := range strings.Lines(w.String()) {
			if strings.Contains(line, part) {
				return line
			}
		}
		select {
		case <-w.grew:
		case <-t.Context().Done():
			t.Fatalf("never said: %q", part)
		}
	}
}

func (w *words) log() *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// publish publishes a Service until the test ends.
func publish(t *testing.T, d tunnel.Dialer, w *words, port string) client.Port {
	t.Helper()
	p, err := client.ParsePort(port)
	if err != nil {
		t.Fatal(err)
	}
	ports := &client.Ports{Dialer: d, Log: w.log()}
	ctx, cancel := context.WithCancel(context.Background())
	open, err := ports.Publish(ctx, p)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		ports.Wait()
	})
	return open[0]
}

func dial(t *testing.T, p client.Port) net.Conn {
	t.Helper()
	c, err := net.Dial(p.Network, p.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// wantReset expects that c was reset, and not closed.
func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// wantRefused expects that a connection to p is reset, at the latest when it is
// read: a quick reset is seen by connect already.
func wantRefused(t *testing.T, p client.Port) {
	t.Helper()
	c, err := net.Dial(p.Network, p.Address)
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestPorts(t *testing.T) {
	w := newWorld(t)
	alice := w.user("alice")
	for _, port := range []string{"echo:0", "echo:[::1]:0", "echo:0.0.0.0:0", "echo.default:localhost:0", "echo:unix:" + filepath.Join(t.TempDir(), "s")} {
		t.Run(port, func(t *testing.T) {
			p := publish(t, alice, newWords(), port)
			if strings.HasPrefix(port, "echo:0.0.0.0:") && !strings.HasPrefix(p.Address, "0.0.0.0:") {
				t.Errorf("it listens at %s: 0.0.0.0 is of IPv4", p.Address)
			}
			for range 3 {
				exchange(t, dial(t, p))
			}
		})
	}
}

func TestPortRefused(t *testing.T) {
	w := newWorld(t)
	said := newWords()
	p := publish(t, w.user("bob"), said, "echo:0")
	wantRefused(t, p)
	line := said.await(t, "no connection")
	for _, part := range []string{"access to Service echo.default is denied", "service=echo.default", "code=PERMISSION_DENIED", "decision="} {
		if !strings.Contains(line, part) {
			t.Errorf("%q does not say %q", line, part)
		}
	}
}

func TestPortRevoked(t *testing.T) {
	w := newWorld(t)
	said := newWords()
	p := publish(t, w.user("alice"), said, "echo:0")
	c := dial(t, p)
	hello(t, c)
	w.apply(`{"kind":"User","metadata":{"name":"alice"},"spec":{"type":"HUMAN"}}`)
	wantReset(t, c)
	if line := said.await(t, "was cut"); !strings.Contains(line, "REVOKED") {
		t.Errorf("%q does not say why", line)
	}
}

// TestPortSurvivesRestart shows that there is nothing to reconnect by hand.
func TestPortSurvivesRestart(t *testing.T) {
	w := newWorld(t)
	said := newWords()
	p := publish(t, w.user("alice"), said, "echo:0")
	c := dial(t, p)
	hello(t, c)

	w.stop()
	wantReset(t, c)
	for range 3 {
		wantRefused(t, p)
	}
	said.await(t, "cannot be reached")
	if n := strings.Count(said.String(), "cannot be reached"); n != 1 {
		t.Errorf("said %d times that the cluster cannot be reached:\n%s", n, said)
	}

	w.up(w.cluster.Address)
	exchange(t, dial(t, p))
	said.await(t, "can be reached again")
}

// TestPortEndsWithContext shows that what is open is cut when publishing ends.
func TestPortEndsWithContext(t *testing.T) {
	w := newWorld(t)
	ports := &client.Ports{Dialer: w.user("alice"), Log: newWords().log()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open, err := ports.Publish(ctx, client.Port{Service: "echo.default", Network: "tcp", Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, open[0])
	hello(t, c)
	cancel()
	wantReset(t, c)
	ports.Wait()
	if left := ports.List(); len(left) != 0 {
		t.Errorf("still published: %v", left)
	}
	if _, err := net.Dial("tcp", open[0].Address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("somebody still listens: %v", err)
	}
}

// noDialer reaches nothing.
type noDialer struct{}

func (noDialer) Dial(context.Context, string) (net.Conn, error) { return nil, io.ErrUnexpectedEOF }

// TestPublishAllOrNone shows that a port that is taken keeps none of the others,
// and that what is published already is left as it is.
func TestPublishAllOrNone(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	ports := &client.Ports{Dialer: noDialer{}, Log: newWords().log()}
	ctx, cancel := context.WithCancel(t.Context())
	defer ports.Wait()
	defer cancel()
	free := client.Port{Service: "aa.default", Network: "tcp", Address: "127.0.0.1:0"}
	_, err = ports.Publish(ctx, free, client.Port{Service: "bb.default", Network: "tcp", Address: taken.Addr().String()})
	if e, ok := errors.AsType[*api.Error](err); !ok || !strings.Contains(e.Message, taken.Addr().String()+": address already in use") || e.Hint == "" {
		t.Errorf("got %v", err)
	}
	if open := ports.List(); len(open) != 0 {
		t.Errorf("published %v", open)
	}
	one, err := ports.Publish(ctx, free)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := ports.Publish(ctx, one...); err != nil || two[0] != one[0] || len(ports.List()) != 1 {
		t.Errorf("published again: %v, %v", two, err)
	}
}

// TestStaleSocket shows that the socket of one who was killed is replaced, and
// that of one who lives is not.
func TestStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	ports := &client.Ports{Dialer: noDialer{}, Log: newWords().log()}
	ctx, cancel := context.WithCancel(t.Context())
	defer ports.Wait()
	defer cancel()
	p := client.Port{Service: "aa.default", Network: "unix", Address: path}
	if _, err := ports.Publish(ctx, p); err == nil {
		t.Error("the socket of one who listens was replaced")
	}
	old.Close()
	if _, err := ports.Publish(ctx, p); err != nil {
		t.Error(err)
	}
}

func TestParsePort(t *testing.T) {
	for in, want := range map[string]string{
		"nats:14222":            "nats.default tcp 127.0.0.1:14222",
		"nats.prod:0":           "nats.prod tcp 127.0.0.1:0",
		"nats:0.0.0.0:1":        "nats.default tcp 0.0.0.0:1",
		"nats:localhost:1":      "nats.default tcp localhost:1",
		"nats:[::1]:014222":     "nats.default tcp [::1]:14222",
		"nats:/run/nats.sock":   "nats.default unix /run/nats.sock",
		"nats:unix:/run/a:b":    "nats.default unix /run/a:b",
		"nats":                  "",
		"nats:":                 "",
		":1":                    "",
		"/x:1":                  "",
		"x:1":                   "", // a name has two characters
		"Nats:1":                "",
		"nats.a1.b2:1":          "",
		"nats:port":             "",
		"nats:65536":            "",
		"nats:-1":               "",
		"nats::1":               "", // a host that is empty is not every host
		"nats:::1:80":           "",
		"nats:127.0.0.1":        "",
		"nats:unix:":            "",
		"nats:127.0.0.1:1:more": "",
		"nats:8080:80":          "", // the Service's port is its own
		"8080:nats":             "",
	} {
		p, err := client.ParsePort(in)
		got := p.Service + " " + p.Network + " " + p.Address
		if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("%s: got %q (%v), want %q", in, got, err, want)
		}
		if err == nil {
			if again, err := client.ParsePort(p.String()); err != nil || again != p {
				t.Errorf("%s: %q is read as %v, %v", in, p, again, err)
			}
		}
	}
}

// FuzzParsePort looks for what is read as something else than it says.
func FuzzParsePort(f *testing.F) {
	f.Add("nats:[::1]:14222")
	f.Add("nats:unix:relative/path")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := client.ParsePort(s)
		if err != nil {
			return
		}
		if again, err := client.ParsePort(p.String()); err != nil || again != p {
			t.Errorf("%q is %+v, and %q is %+v, %v", s, p, p, again, err)
		}
	})
}

// TestPortLogsOnce shows words for each refusal, which is about one Service, and
// one for the loss of the cluster, which is about all.
func TestPortLogsOnce(t *testing.T) {
	said := newWords()
	p := publish(t, noDialer{}, said, "echo:0")
	for range 5 {
		wantRefused(t, p)
	}
	said.await(t, "cannot be reached")
	if n := strings.Count(said.String(), "\n"); n != 1 {
		t.Errorf("said %d lines:\n%s", n, said)
	}
}

func TestDeleteSessionEndsPort(t *testing.T) {
	w := newWorld(t)
	alice := w.user("alice")
	said := newWords()
	p := publish(t, alice, said, "echo:0")
	c := dial(t, p)
	hello(t, c)
	w.do(http.MethodDelete, "/api/core/v1/sessions/"+w.session(alice), nil, nil)
	wantReset(t, c)
	wantRefused(t, p)
	said.await(t, "no connection")
}
