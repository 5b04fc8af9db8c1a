package control

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"cardea/api"
)

// operated is a world whose Server has all that is for its operation.
func operated(t *testing.T) (w *world, root *person, looks *int) {
	w, root = newRoot(t)
	looks = new(int)
	w.Health = func(context.Context) []api.HealthCheck {
		*looks++
		return []api.HealthCheck{{Name: "store", OK: true}, {Name: "log", OK: w.journal.fail == nil, Words: "the disk is full"}}
	}
	w.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "connections 3\n") })
	w.Backup = func(_ context.Context, out io.Writer) error {
		_, err := io.WriteString(out, "{}\n")
		return err
	}
	w.Rotate = func(_ context.Context, what string) (api.RotateResponse, error) {
		return api.RotateResponse{What: what, KeyID: "k2"}, nil
	}
	w.OpenAPI = []byte(`{"openapi":"3.1.0"}`)
	w.handler = w.Handler()
	return w, root, looks
}

func TestOperationIsDecided(t *testing.T) {
	w, root, _ := operated(t)
	ordinary := w.user(root, "ordinary")
	w.mustApply(root, `{'kind':'Policy','metadata':{'name':'scraper'},'spec':{'rules':[{'effect':'ALLOW','condition':{'match':'ctx.request.api.verb == \u0022metrics\u0022'}},
		{'effect':'ALLOW','condition':{'match':'ctx.request.api.verb == \u0022rotate\u0022 && ctx.request.api.name == \u0022audit\u0022'}}]}}`)
	some := w.user(root, "some", "scraper")
	for _, tc := range []struct {
		method, path string
		body         any
		verb         string
		some         int // what the scraper gets
		answer       string
	}{
		{"GET", "/api/health", nil, verbGet, http.StatusForbidden, `"name":"store"`},
		{"GET", "/metrics", nil, verbMetrics, http.StatusOK, "connections 3\n"},
		{"GET", "/api/backup", nil, verbBackup, http.StatusForbidden, "{}\n"},
		{"POST", "/api/rotate", api.RotateRequest{What: "ca"}, verbRotate, http.StatusForbidden, `"keyID":"k2"`},
		{"POST", "/api/rotate", api.RotateRequest{What: "audit"}, verbRotate, http.StatusOK, `"what":"audit"`},
	} {
		if code := w.request(nil, tc.method, tc.path, tc.body).Code; code != http.StatusUnauthorized {
			t.Errorf("%s as nobody: %d", tc.path, code)
		}
		if code := w.request(ordinary, tc.method, tc.path, tc.body).Code; code != http.StatusForbidden {
			t.Errorf("%s as an ordinary User: %d", tc.path, code)
		}
		if r := w.journal.last(t); r.Entry.Common.Status != api.StatusDenied || r.Entry.Info.API.Verb != tc.verb {
			t.Errorf("%s: the record is %+v", tc.path, r.Entry)
		}
		if code := w.request(some, tc.method, tc.path, tc.body).Code; code != tc.some {
			t.Errorf("%s %v as one who may some: %d, want %d", tc.path, tc.body, code, tc.some)
		}
		if res := w.request(root, tc.method, tc.path, tc.body); res.Code != http.StatusOK || !strings.Contains(res.Body.String(), tc.answer) {
			t.Errorf("%s as root: %d %s", tc.path, res.Code, res.Body)
		}
	}
	if res := w.request(ordinary, "GET", "/api/openapi.json", nil); res.Code != http.StatusOK || res.Body.String() != string(w.OpenAPI) {
		t.Errorf("the OpenAPI document: %d %s", res.Code, res.Body)
	}
	if code := w.request(nil, "GET", "/api/openapi.json", nil).Code; code != http.StatusUnauthorized {
		t.Errorf("the OpenAPI document for nobody: %d", code)
	}
	if err := w.do(root, "POST", "/api/rotate", api.RotateRequest{What: "everything"}, nil); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("rotate everything: %v", err)
	}
}

func TestOperationIsAbsent(t *testing.T) {
	w, root := newRoot(t)
	for _, path := range []string{"GET /api/health", "GET /metrics", "GET /api/backup", "POST /api/rotate", "GET /api/openapi.json"} {
		method, path, _ := strings.Cut(path, " ")
		var body any
		if method == "POST" {
			body = api.RotateRequest{What: "ca"}
		}
		if err := w.do(root, method, path, body, nil); !api.HasCode(err, api.CodeNotFound) || err.Error() != "not available here" {
			t.Errorf("%s: %v", path, err)
		}
		if err := w.do(nil, method, path, body, nil); !api.HasCode(err, api.CodeUnauthenticated) {
			t.Errorf("%s as nobody: %v", path, err)
		}
	}
	if res := w.request(nil, "GET", "/readyz", nil); res.Code != http.StatusOK {
		t.Errorf("without checks: %d", res.Code)
	}
}

// TestProbes is about what strangers may ask.
func TestProbes(t *testing.T) {
	w, root, looks := operated(t)
	for _, path := range []string{"/livez", "/readyz"} {
		if res := w.request(nil, "GET", path, nil); res.Code != http.StatusOK || res.Body.String() != "ok\n" {
			t.Errorf("%s: %d %s", path, res.Code, res.Body)
		}
	}
	for range 100 {
		w.request(nil, "GET", "/readyz", nil)
	}
	if *looks != 1 {
		t.Errorf("asked 101 times within a second, the checks were made %d times", *looks)
	}
	w.journal.fail = errors.New("full")
	w.clock.advance(readyAge)
	res := w.request(nil, "GET", "/readyz", nil)
	if res.Code != http.StatusServiceUnavailable || res.Body.String() != "log\n" {
		t.Errorf("with a failing check: %d %q", res.Code, res.Body)
	}
	if code := w.request(nil, "GET", "/livez", nil).Code; code != http.StatusOK {
		t.Errorf("alive: %d", code)
	}
	w.clock.advance(-time.Hour) // a clock that was set back keeps nothing alive
	w.journal.fail = nil
	if code := w.request(nil, "GET", "/readyz", nil).Code; code != http.StatusOK {
		t.Errorf("once it is well again: %d", code)
	}
	w.clock.advance(time.Hour)
	var h api.Health
	w.must(root, "GET", "/api/health", nil, &h)
	if !h.OK || len(h.Checks) != 2 {
		t.Errorf("health is %+v", h)
	}
	w.journal.fail = errors.New("full")
	w.must(root, "GET", "/api/health", nil, &h)
	if h.OK || h.Checks[1].OK || h.Checks[1].Words == "" {
		t.Errorf("health is %+v", h)
	}
}

func TestBackupAndRotateAreRecordedFirst(t *testing.T) {
	w, root, _ := operated(t)
	began := false
	w.Backup = func(_ context.Context, out io.Writer) error {
		began = true
		if r := w.journal.last(t); r.Entry.Info.API.Verb != verbBackup || r.Entry.Common.UserRef.Name != "root" {
			t.Errorf("the record is %+v", r.Entry)
		}
		return nil
	}
	w.handler = w.Handler()
	if res := w.request(root, "GET", "/api/backup", nil); res.Code != http.StatusOK || !began {
		t.Fatalf("%d %s", res.Code, res.Body)
	}
	w.must(root, "POST", "/api/rotate", api.RotateRequest{What: "seal"}, nil)
	if r := w.journal.last(t); r.Entry.Info.API.Verb != verbRotate || r.Entry.Info.API.Name != "seal" {
		t.Errorf("the record is %+v", r.Entry)
	}
	began = false
	w.Rotate = func(context.Context, string) (api.RotateResponse, error) {
		began = true
		return api.RotateResponse{}, nil
	}
	w.handler = w.Handler()
	w.journal.fail = errors.New("the disk is full")
	if err := w.do(root, "GET", "/api/backup", nil, nil); !api.HasCode(err, api.CodeUnavailable) || began {
		t.Errorf("a backup that cannot be recorded: %v", err)
	}
	if err := w.do(root, "POST", "/api/rotate", api.RotateRequest{What: "ca"}, nil); !api.HasCode(err, api.CodeUnavailable) || began {
		t.Errorf("a rotation that cannot be recorded: %v", err)
	}
}

// TestBackupIsCut: half a backup must not look like a whole one.
func TestBackupIsCut(t *testing.T) {
	w, root, _ := operated(t)
	w.Backup = func(context.Context, io.Writer) error { return errors.New("the store is gone") }
	w.handler = w.Handler()
	if err := w.do(root, "GET", "/api/backup", nil, nil); !api.HasCode(err, api.CodeInternal) || strings.Contains(err.Error(), "store") {
		t.Errorf("before the first byte: %v", err)
	}
	w.Backup = func(_ context.Context, out io.Writer) error {
		io.WriteString(out, "{}\n")
		return errors.New("the store is gone")
	}
	w.handler = w.Handler()
	defer func() {
		if recover() != http.ErrAbortHandler {
			t.Error("the answer ended as if it were whole")
		}
	}()
	w.request(root, "GET", "/api/backup", nil)
}
