package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server for a test and returns a Client of it.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.Start()
	t.Cleanup(s.Close)
	return &Client{HTTP: s.Client(), Base: s.URL}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestDo(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var in api.WhyRequest
		if err := Read(r, &in); err != nil {
			Fail(w, err, quiet())
			return
		}
		Answer(w, api.TokenResponse{Token: r.Method + " " + r.URL.Path + " " + in.Subject})
	})
	var out api.TokenResponse
	if err := c.Do(t.Context(), "POST", "/api/x", api.WhyRequest{Subject: "alice"}, &out); err != nil {
		t.Fatal(err)
	}
	if want := "POST /api/x alice"; out.Token != want {
		t.Errorf("got %q, want %q", out.Token, want)
	}
}

// An answer that took longer to work out than the server gives to answers arrives.
func TestLateAnswer(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(-time.Second)); err != nil {
			t.Error(err)
		}
		Answer(w, api.TokenResponse{Token: "late"})
	})
	var out api.TokenResponse
	if err := c.Do(t.Context(), "POST", "/api/x", nil, &out); err != nil || out.Token != "late" {
		t.Errorf("got %q, %v", out.Token, err)
	}
}

func TestDoFails(t *testing.T) {
	want := &api.Error{Code: api.CodeConflict, Message: "it changed", Hint: "read it again",
		Problems: []api.Problem{{Document: 1, Pointer: "/spec", Rule: "is required"}}, DecisionID: "d"}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/refused":
			Fail(w, fmt.Errorf("wrapped: %w", want), quiet())
		case "/broken":
			Fail(w, errors.New("a detail that nobody may see"), quiet())
		case "/foreign":
			http.Error(w, "<html>", http.StatusBadGateway)
		case "/garbage":
			io.WriteString(w, "<html>")
		}
	})
	err := c.Do(t.Context(), "GET", "/refused", nil, nil)
	if got, ok := errors.AsType[*api.Error](err); !ok || got.Code != want.Code || got.Hint != want.Hint ||
		got.DecisionID != want.DecisionID || len(got.Problems) != 1 || got.Problems[0].Pointer != "/spec" {
		t.Errorf("refused: got %#v", err)
	}
	err = c.Do(t.Context(), "GET", "/broken", nil, nil)
	if !api.HasCode(err, api.CodeInternal) || strings.Contains(err.Error(), "detail") {
		t.Errorf("broken: got %v", err)
	}
	err = c.Do(t.Context(), "GET", "/foreign", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "does not seem to be a Cardea API") {
		t.Errorf("foreign: got %v", err)
	}
	err = c.Do(t.Context(), "GET", "/garbage", nil, new(api.Self))
	if err == nil || !strings.Contains(err.Error(), "not understood") {
		t.Errorf("garbage: got %v", err)
	}
}

// TestLargeRequest is about one that is too large: whoever sends it is told in
// words, whether or not he knows the limit.
func TestLargeRequest(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { Fail(w, Read(r, new(api.WhyRequest)), quiet()) })
	const want = "larger than 16384 KiB"
	in := api.WhyRequest{Subject: strings.Repeat("a", MaxRequest)}
	if err := c.Do(t.Context(), "POST", "/", in, nil); !api.HasCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), want) {
		t.Errorf("our client: got %v", err)
	}
	for name, length := range map[string]int64{"of a known length": 100 << 20, "of an unknown length": -1} {
		body := &counted{r: io.LimitReader(endless{}, 100<<20)}
		r := httptest.NewRequest("POST", "/", body)
		r.ContentLength = length
		r.Header.Set("Content-Type", contentJSON)
		if err := Read(r, new(api.WhyRequest)); !api.HasCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("a body %s: got %v", name, err)
		}
		if body.n > MaxRequest+1 {
			t.Errorf("a body %s: %d bytes were read", name, body.n)
		}
	}
}

// endless is white space.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

// counted counts what is read of r.
type counted struct {
	r io.Reader
	n int
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

func TestUnreachable(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	c := &Client{HTTP: &http.Client{Transport: &http.Transport{}}, Base: "http://" + addr}
	err = c.Do(t.Context(), "GET", "/", nil, nil)
	if want := "cannot reach " + addr + ": nothing listens there"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}

	s := httptest.NewUnstartedServer(nil)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.StartTLS()
	defer s.Close()
	c.Base = s.URL
	err = c.Do(t.Context(), "GET", "/", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "does not show a certificate of the expected cluster") {
		t.Errorf("got %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Do(ctx, "GET", "/", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestRead(t *testing.T) {
	const typ = "application/json; charset=utf-8"
	for _, tc := range []struct{ name, typ, body, want string }{
		{"good", typ, `{"subject":"a","service":"b"}`, ""},
		{"white space after", typ, "{}\n ", ""},
		{"form", "application/x-www-form-urlencoded", `{}`, "the body must be JSON"},
		{"no type", "", `{}`, "the body must be JSON"},
		{"empty", typ, ``, "it is empty"},
		{"cut", typ, `{"subject":"a`, "it ends too early"},
		{"syntax", typ, `{"subject":hunter2}`, "a syntax error at byte 12"},
		{"unknown field", typ, `{"subjekt":"a"}`, `unknown field "subjekt"`},
		{"wrong type", typ, `{"subject":[1]}`, `the field "subject" must not be of type array`},
		{"two values", typ, `{}{}`, "more than one value"},
		{"too large", typ, `{"subject":"` + strings.Repeat("a", MaxRequest) + `"}`, "larger than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/", strings.NewReader(tc.body))
			r.Header.Set("Content-Type", tc.typ)
			err := Read(r, new(api.WhyRequest))
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !api.HasCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("the error repeats the input")
			}
		})
	}
}

func TestReadPatch(t *testing.T) {
	for _, tc := range []struct {
		method string
		want   bool
	}{{"PATCH", true}, {"POST", false}} {
		r := httptest.NewRequest(tc.method, "/", strings.NewReader(`{"subject":"a"}`))
		r.Header.Set("Content-Type", "application/merge-patch+json")
		if err := Read(r, new(api.WhyRequest)); (err == nil) != tc.want {
			t.Errorf("a merge patch by %s: %v", tc.method, err)
		}
	}
}

func TestLines(t *testing.T) {
	heard := make(chan struct{})
	failure := errors.New("the log broke")
	seq := func(fail bool) iter.Seq2[api.Problem, error] {
		return func(yield func(api.Problem, error) bool) {
			for i := range 3 {
				if !yield(api.Problem{Document: i}, nil) {
					return
				}
				<-heard // the next line is made only once this one has been heard
			}
			if fail {
				yield(api.Problem{}, failure)
			}
		}
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		Lines(w, seq(r.URL.Path == "/cut"), quiet())
	})
	for _, path := range []string{"/whole", "/cut"} {
		n := 0
		err := c.Stream(t.Context(), "GET", path, nil, func(b json.RawMessage) error {
			var p api.Problem
			if err := json.Unmarshal(b, &p); err != nil || p.Document != n {
				t.Errorf("line %d: %s, %v", n, b, err)
			}
			n++
			heard <- struct{}{}
			return nil
		})
		if n != 3 || (err != nil) != (path == "/cut") {
			t.Errorf("%s: %d lines, error %v", path, n, err)
		}
	}
}

func TestStreamStops(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		Lines(w, func(yield func(int, error) bool) {
			yield(1, nil)
			<-r.Context().Done()
		}, quiet())
	})
	stop := errors.New("enough")
	if err := c.Stream(t.Context(), "GET", "/", nil, func(json.RawMessage) error { return stop }); err != stop {
		t.Errorf("got %v, want what the callback returned", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := c.Stream(ctx, "GET", "/", nil, func(json.RawMessage) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// FuzzRead gives Read whatever a stranger may send: it must say INVALID or
// accept, and what it accepts it accepts again.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"documents":[{"kind":"User"}],"dryRun":true}`))
	f.Add([]byte(`{"documents":[[[[`))
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func(b []byte) (v api.ApplyRequest, err error) {
			r := httptest.NewRequest("POST", "/", bytes.NewReader(b))
			r.Header.Set("Content-Type", contentJSON)
			return v, Read(r, &v)
		}
		v, err := read(b)
		if err != nil {
			if !api.HasCode(err, api.CodeInvalid) {
				t.Fatalf("%v is not INVALID", err)
			}
			return
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := read(again); err != nil {
			t.Fatalf("what was accepted is refused: %v", err)
		}
	})
}
