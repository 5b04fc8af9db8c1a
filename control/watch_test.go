package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/store/memory"
)

// A watching is a watch under way.
type watching struct {
	t      testing.TB
	header http.Header
	status int
	stop   context.CancelFunc

	mu    sync.Mutex
	lines []string
	ended bool
}

func (s *watching) Header() http.Header { return s.header }
func (s *watching) WriteHeader(n int)   { s.status = n }
func (s *watching) Flush()              {}
func (s *watching) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, strings.TrimSpace(string(b)))
	return len(b), nil
}

// watch begins a watch; the test runs in a bubble.
func (w *world) watch(who *person, path string) *watching {
	w.t.Helper()
	ctx, stop := context.WithCancel(w.t.Context())
	s := &watching{t: w.t, header: http.Header{}, status: http.StatusOK, stop: stop}
	if !strings.HasPrefix(path, "/") {
		path = "/api/core/v1/" + path
	}
	r := w.newRequest(who, "GET", path, nil).WithContext(ctx)
	go func() {
		w.handler.ServeHTTP(s, r)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended = true
	}()
	return s
}

// heard returns what was told since it was asked last: TYPE name, and nothing of
// SYNCED.
func (s *watching) heard() (heard []string) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lines {
		var e api.WatchEvent
		var h api.Head
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			s.t.Fatalf("%q: %v", l, err)
		}
		if e.Revision == (api.Revision{}) {
			s.t.Errorf("%s has no revision", l)
		}
		if e.Type == api.WatchSynced {
			continue
		}
		if err := json.Unmarshal(e.Object, &h); err != nil {
			s.t.Fatalf("%q: %v", l, err)
		}
		heard = append(heard, string(e.Type)+" "+h.Metadata.Name)
	}
	s.lines = nil
	return heard
}

// want reports what was told otherwise.
func (s *watching) want(want ...string) {
	s.t.Helper()
	if got := s.heard(); !slices.Equal(got, want) {
		s.t.Errorf("heard %v, want %v", got, want)
	}
}

// over reports a stream that has not ended.
func (s *watching) over() {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.t.Error("the watch goes on")
	}
}

// refusal returns why a watch was refused.
func (s *watching) refusal() error {
	s.t.Helper()
	s.over()
	e := new(api.Error)
	if s.status == http.StatusOK || len(s.lines) != 1 || json.Unmarshal([]byte(s.lines[0]), e) != nil {
		s.t.Fatalf("%d: %v", s.status, s.lines)
	}
	return e
}

func group(name, labels string) string {
	return `{'kind':'Group','metadata':{'name':'` + name + `','labels':{` + labels + `}}}`
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		w.mustApply(root, group1)
		from := w.revision()
		w.mustApply(root, group("group-2", ""))
		w.must(root, "DELETE", "/api/core/v1/groups/group-1", nil, nil)

		now, before := w.watch(root, "groups?watch=true"), w.watch(root, "groups?watch=true&revision="+from.String())
		now.want()
		before.want("PUT group-2", "DELETED group-1")
		w.mustApply(root, group("group-2", `'a1':'b1'`), `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN'}}`, group("group-3", ""))
		now.want("PUT group-2", "PUT group-3")
		before.want("PUT group-2", "PUT group-3")
		for _, s := range []*watching{now, before} {
			s.stop()
			s.over()
		}

		// SYNCED comes after each commit, and every 15 seconds.
		s := w.watch(root, "groups?watch=true")
		synctest.Wait()
		w.mustApply(root, `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'WORKLOAD'}}`)
		time.Sleep(syncInterval)
		synctest.Wait()
		want := fmt.Sprintf(`{"type":"SYNCED","revision":"%s"}`, w.revision())
		if len(s.lines) != 3 || s.lines[1] != want || s.lines[2] != want {
			t.Errorf("heard %q", s.lines)
		}
		s.stop()
	})
}

// TestWatchByName is about a User who may watch some Objects, and whose rights change.
func TestWatchByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		const policy = "a.verb == ^watch^ && a.name in [^group-1^, ^group-2^]"
		w.mustApply(root, group("group-1", ""), group("group-2", ""), group("group-3", ""), onAPI("some", policy))
		bob := w.user(root, "bob", "some")
		s := w.watch(bob, "groups?watch=true")
		s.want()
		w.mustApply(root, group("group-1", `'a1':'b1'`), group("group-3", `'a1':'b1'`))
		s.want("PUT group-1")

		// A right is taken and another given.
		w.mustApply(root, onAPI("some", strings.Replace(policy, "group-2", "group-3", 1)))
		s.want("DELETED group-2", "PUT group-3")
		w.mustApply(root, group("group-2", `'a1':'b1'`), group("group-3", `'a1':'b2'`))
		s.want("PUT group-3")
		w.must(root, "DELETE", "/api/core/v1/groups/group-3", nil, nil)
		w.must(root, "DELETE", "/api/core/v1/groups/group-2", nil, nil)
		s.want("DELETED group-3")

		// What was told of group-2 when it went out of view tells nothing.
		w.mustApply(root, onAPI("some", "a.verb == ^watch^"), group("group-4", ""))
		s.want("PUT group-4")
		w.mustApply(root, onAPI("some", "a.verb == ^get^"))
		s.want("DELETED group-1", "DELETED group-4")
		s.over()
	})
}

func TestWatchOutOfViewTellsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		w.mustApply(root, group("group-1", `'team':'a'`), group("group-2", ""))
		s := w.watch(root, "groups?watch=true&label=team%3Da")
		s.want()
		w.mustApply(root, group("group-2", `'team':'a'`))
		s.want("PUT group-2")
		w.mustApply(root, group("group-1", `'team':'secret'`))
		synctest.Wait()
		for _, l := range s.lines {
			if strings.Contains(l, "secret") {
				t.Errorf("heard %s", l)
			}
		}
		s.want("DELETED group-1")
		w.mustApply(root, group("group-1", `'team':'secret-2'`), group("group-3", ""))
		s.want()
		from := w.revision()
		w.mustApply(root, group("group-2", ""))
		again := w.watch(root, "groups?watch=true&label=team%3Da&revision="+from.String())
		again.want("DELETED group-2") // it was in view at that revision
		again.stop()
		s.stop()
	})
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		w.mustApply(root, group1, onAPI("hour", "a.verb == ^watch^ && now() < timestamp(^2026-03-01T12:30:00Z^)"))
		deleted, expired := w.user(root, "deleted", "api-read-only"), w.user(root, "expired", "api-read-only")
		timed := w.user(root, "timed", "hour")
		s := []*watching{w.watch(deleted, "groups?watch=true"), w.watch(expired, "groups?watch=true"), w.watch(timed, "groups?watch=true")}
		for _, s := range s {
			s.want()
		}
		w.must(root, "DELETE", "/api/core/v1/sessions/"+deleted.session, nil, nil)
		s[0].over()
		w.clock.advance(30 * time.Minute)
		time.Sleep(lookInterval)
		s[2].want("DELETED group-1")
		s[2].over()
		s[1].want()
		w.clock.advance(24 * time.Hour)
		time.Sleep(lookInterval)
		s[1].over()
	})
}

func TestWatchRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		w.mustApply(root, group1, onAPI("users", "a.kind == ^User^"))
		nobody, users := w.user(root, "nobody"), w.user(root, "users", "users")
		for _, tc := range []struct {
			who  *person
			path string
			want api.Code
		}{
			{nil, "groups?watch=true", api.CodeUnauthenticated},
			{nobody, "groups?watch=true", api.CodePermissionDenied},
			{users, "groups?watch=true", api.CodePermissionDenied},
			{root, "groups?watch=true&revision=7.1", api.CodeConflict},
			{root, "groups?watch=true&revision=1.999", api.CodeConflict},
		} {
			if err := w.watch(tc.who, tc.path).refusal(); !api.HasCode(err, tc.want) {
				t.Errorf("%s: %v, want %s", tc.path, err, tc.want)
			}
		}

		// What was in view at a revision is not known after a change of rights.
		from := w.revision()
		w.mustApply(root, `{'kind':'Policy','metadata':{'name':'users','displayName':'U'},'spec':{}}`)
		if err := w.watch(users, "users?watch=true&revision="+from.String()).refusal(); !api.HasCode(err, api.CodeConflict) {
			t.Errorf("after a change of rights: %v", err)
		}
	})
}

// TestWatchBeyondHistory watches a store that remembers little.
func TestWatchBeyondHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, token := newWorldOn(t, memory.NewKeeping(3))
		root := w.login(token)
		from := w.revision()
		for i := range 10 {
			w.mustApply(root, group(fmt.Sprintf("group-%d", i), ""))
		}
		if err := w.watch(root, "groups?watch=true&revision="+from.String()).refusal(); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "history") {
			t.Errorf("got %v", err)
		}
	})
}
