package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/client"
	"cardea/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a cluster with a Service echo, which group-1 may reach, and the
// Users alice, who is in group-1, and bob, who is not.
type world struct {
	t       *testing.T
	data    string
	cluster server.Ready
	stop    func() // stops the cluster; may be called again
	root    *client.Client
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, data: filepath.Join(t.TempDir(), "data")}
	w.up("127.0.0.1:0")
	t.Cleanup(func() { w.stop() })
	w.root = w.login("root", w.cluster.Token)
	w.apply(
		`{"kind":"Group","metadata":{"name":"group-1"},"spec":{}}`,
		fmt.Sprintf(`{"kind":"Service","metadata":{"name":"echo"},"spec":{"mode":"TCP","config":{"upstream":{"url":"tcp://%s"}},
			"authorization":{"inlinePolicies":[{"spec":{"rules":[{"effect":"ALLOW","condition":{"match":"\"group-1\" in ctx.user.spec.groups"}}]}}]}}}`, echo(t)),
		`{"kind":"User","metadata":{"name":"alice"},"spec":{"type":"HUMAN","groups":["group-1"]}}`,
		`{"kind":"User","metadata":{"name":"bob"},"spec":{"type":"HUMAN"}}`,
	)
	return w
}

// up starts the cluster at an address.
func (w *world) up(listen string) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan server.Ready, 1), make(chan error, 1)
	go func() {
		ended <- server.Up(ctx, server.Config{DataDir: w.data, Domain: server.DefaultDomain, Listen: listen, Log: slog.New(slog.DiscardHandler)},
			func(r server.Ready) { ready <- r })
	}()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				w.t.Error(err)
			}
		})
	}
	select {
	case w.cluster = <-ready:
	case err := <-ended:
		cancel()
		w.t.Fatal("the cluster did not start:", err)
	}
}

// echo runs an upstream that sends back what it gets, and then the end.
func echo(t *testing.T) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

// login logs a User in and returns its Client.
func (w *world) login(user, token string) *client.Client {
	w.t.Helper()
	home := filepath.Join(w.t.TempDir(), user)
	if _, err := client.Login(w.t.Context(), home, w.cluster.Address, token, w.cluster.CASHA256); err != nil {
		w.t.Fatal(err)
	}
	c := &client.Client{Home: home}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// user makes a token for a User and logs in by it.
func (w *world) user(name string) *client.Client {
	w.t.Helper()
	return w.login(name, w.token(name))
}

func (w *world) token(user string) string {
	w.t.Helper()
	w.apply(fmt.Sprintf(`{"kind":"Credential","metadata":{"name":%q},"spec":{"type":"AUTH_TOKEN","user":%q}}`, user, user))
	var out api.TokenResponse
	w.do(http.MethodPost, "/api/core/v1/credentials/"+user+"/token", nil, &out)
	return out.Token
}

func (w *world) apply(docs ...string) {
	w.t.Helper()
	var in api.ApplyRequest
	for _, d := range docs {
		in.Documents = append(in.Documents, json.RawMessage(d))
	}
	w.do(http.MethodPost, "/api/apply", in, nil)
}

// do makes a call as root.
func (w *world) do(method, path string, in, out any) {
	w.t.Helper()
	call, err := w.root.API(w.t.Context())
	if err == nil {
		err = call.Do(w.t.Context(), method, path, in, out)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// session returns the name of the Session of a Client.
func (w *world) session(c *client.Client) string {
	w.t.Helper()
	s, err := c.Session(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return s.Session
}

// exchange sends words, closes the sending direction, and expects them back and
// then the end.
func exchange(t *testing.T, c net.Conn) {
	t.Helper()
	const words = "what is said is heard"
	if _, err := io.WriteString(c, words); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != words {
		t.Fatalf("got %q, %v", got, err)
	}
	c.Close()
}

// hello sends a word on c and expects it back.
func hello(t *testing.T, c net.Conn) {
	t.Helper()
	b := []byte("hello")
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Fatalf("got %q, %v", b, err)
	}
}

func code(err error) api.Code {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Code
	}
	return ""
}
