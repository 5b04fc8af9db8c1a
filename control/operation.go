package control

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"cardea/api"
	"cardea/rpc"
)

// The verbs of calls about the cluster itself.
const (
	verbMetrics = "metrics"
	verbBackup  = "backup"
	verbRotate  = "rotate"
)

// kindHealth is what GET /api/health gets, in decisions and the log.
const kindHealth = "Health"

// absent says that a call is known and this process cannot answer it.
func absent() error { return api.Errorf(api.CodeNotFound, "not available here") }

// health answers GET /api/health.
func (c *call) health() (any, error) {
	if _, err := c.query(); err != nil {
		return nil, err
	}
	if _, err := c.may(verbGet, api.Key{Kind: kindHealth}); err != nil {
		return nil, err
	}
	if c.Health == nil {
		return nil, absent()
	}
	out := api.Health{OK: true, Checks: c.Health(c.r.Context())}
	if out.Checks == nil {
		out.Checks = []api.HealthCheck{}
	}
	out.OK = len(failing(out.Checks)) == 0
	return out, nil
}

// failing returns the names of the checks that keep the cluster from serving.
func failing(checks []api.HealthCheck) (names []string) {
	for _, h := range checks {
		if !h.OK && !h.Warning {
			names = append(names, h.Name)
		}
	}
	return names
}

// live answers GET /livez, also to strangers: whoever reads this is served.
func live(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") }

// text answers in plain text.
func text(w http.ResponseWriter, status int, s string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	io.WriteString(w, s) // an error means that the caller has gone
}

// Bounds of what a stranger can cause by asking for readiness.
const (
	readyAge     = time.Second // for so long an answer is good
	readyTimeout = 5 * time.Second
)

// A readiness answers GET /readyz, also to strangers: the names of the checks that
// fail, and no more. However many ask, the checks are made once a second.
type readiness struct {
	checks func(context.Context) []api.HealthCheck // may be nil
	now    func() time.Time

	mu      sync.Mutex
	at      time.Time
	failing []string
}

func (x *readiness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if names := x.look(r.Context()); len(names) > 0 {
		text(w, http.StatusServiceUnavailable, strings.Join(names, "\n")+"\n")
		return
	}
	text(w, http.StatusOK, "ok\n")
}

// look returns the names of the checks that fail.
func (x *readiness) look(ctx context.Context) []string {
	if x.checks == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if age := x.now().Sub(x.at); age < 0 || age >= readyAge {
		// Of others too, so not ended by the end of one call.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
		defer cancel()
		x.failing = failing(x.checks(ctx))
		x.at = x.now()
	}
	return x.failing
}

// metrics answers GET /metrics.
func (c *call) metrics() (any, error) {
	if _, err := c.may(verbMetrics, api.Key{}); err != nil {
		return nil, err
	}
	if c.Metrics == nil {
		return nil, absent()
	}
	c.Metrics.ServeHTTP(c.w, c.r)
	return nil, nil
}

// openAPI answers GET /api/openapi.json, to every Session.
func (c *call) openAPI() (any, error) {
	if _, err := c.who(); err != nil {
		return nil, err
	}
	if c.OpenAPI == nil {
		return nil, absent()
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("X-Content-Type-Options", "nosniff")
	c.w.Write(c.OpenAPI)
	return nil, nil
}

// backup answers GET /api/backup. It is in the log before the first byte is sent.
func (c *call) backup() (any, error) {
	if _, err := c.query(); err != nil {
		return nil, err
	}
	d, err := c.may(verbBackup, api.Key{})
	if err != nil {
		return nil, err
	}
	if c.Backup == nil {
		return nil, absent()
	}
	ctx := c.r.Context()
	if err := c.append(ctx, []*api.AccessLog{c.record(d, api.APIFacts{Verb: verbBackup}, nil, nil)}); err != nil {
		return nil, err
	}
	out := &stream{w: c.w, control: http.NewResponseController(c.w)}
	err = c.Backup(ctx, out)
	switch {
	case err == nil:
		return nil, nil
	case !out.began:
		return nil, err
	}
	// Cut, so that the caller cannot take what he got for the whole.
	c.Log.Error("a backup was cut", "error", err)
	panic(http.ErrAbortHandler)
}

// streamTimeout is how long a caller may take for a piece of a stream.
const streamTimeout = 30 * time.Second

// A stream is an answer that may take as long as it likes, if its caller takes
// what there is.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	began   bool
}

func (s *stream) Write(b []byte) (int, error) {
	if !s.began {
		s.began = true
		h := s.w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
	}
	s.control.SetWriteDeadline(time.Now().Add(streamTimeout))
	return s.w.Write(b)
}

// rotate answers POST /api/rotate. Policies see what it rotates as the name.
func (c *call) rotate() (any, error) {
	if _, err := c.query(); err != nil {
		return nil, err
	}
	if _, err := c.who(); err != nil { // before reading what a stranger sends
		return nil, err
	}
	var in api.RotateRequest
	if err := rpc.Read(c.r, &in); err != nil {
		return nil, err
	}
	if known := []string{"ca", "audit", "seal"}; !slices.Contains(known, in.What) {
		return nil, api.Errorf(api.CodeInvalid, "what must be one of %s", strings.Join(known, ", "))
	}
	k := api.Key{Name: in.What}
	d, err := c.may(verbRotate, k)
	if err != nil {
		return nil, err
	}
	if c.Rotate == nil {
		return nil, absent()
	}
	ctx := c.r.Context()
	if err := c.append(ctx, []*api.AccessLog{c.record(d, about(verbRotate, k), nil, nil)}); err != nil {
		return nil, err
	}
	return c.Rotate(ctx, in.What)
}
