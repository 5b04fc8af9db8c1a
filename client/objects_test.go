package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"cardea/api"
	"cardea/rpc"
)

// calls is an API that remembers how it was called.
type calls struct {
	heard  []string
	answer func(*http.Request) any
}

func (c *calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.heard = append(c.heard, r.Method+" "+r.URL.RequestURI())
	json.NewEncoder(w).Encode(c.answer(r))
}

// objects returns the Objects of a kind of such an API.
func objects(t *testing.T, group, kind string) (Objects, *calls) {
	t.Helper()
	k, ok := api.KindIn(group, kind)
	if !ok {
		t.Fatalf("there is no kind %s", kind)
	}
	c := &calls{answer: func(*http.Request) any { return api.Empty{} }}
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return Objects{API: &rpc.Client{HTTP: s.Client(), Base: s.URL}, Kind: k}, c
}

// TestObjectPaths: each call goes to the path of its kind, of ours or of another
// system.
func TestObjectPaths(t *testing.T) {
	ctx := t.Context()
	for _, tc := range []struct {
		group, kind, namespace, at, query string
	}{
		{api.GroupCore, api.KindUser, "", "/api/core/v1/users", ""},
		{api.GroupAmbassador, api.KindTCPMapping, "prod", "/api/getambassador.io/v3alpha1/tcpmappings", "namespace=prod"},
		{api.GroupKubernetes, api.KindSecret, "", "/api/kubernetes/v1/secrets", ""},
	} {
		o, c := objects(t, tc.group, tc.kind)
		_, err := o.Get(ctx, tc.namespace, "a/b")
		_, err2 := o.Create(ctx, json.RawMessage(`{}`), WriteOptions{DryRun: true})
		_, err3 := o.Update(ctx, tc.namespace, "a", json.RawMessage(`{}`), WriteOptions{})
		_, err4 := o.Patch(ctx, tc.namespace, "a", map[string]any{}, WriteOptions{AllowLockout: true})
		_, err5 := o.Delete(ctx, tc.namespace, "a", WriteOptions{})
		if err := errors.Join(err, err2, err3, err4, err5); err != nil {
			t.Fatal(err)
		}
		q, and := "", ""
		if tc.query != "" {
			q, and = "?"+tc.query, "&"+tc.query
		}
		want := []string{"GET " + tc.at + "/a%2Fb" + q, "POST " + tc.at + "?dryRun=true", "PUT " + tc.at + "/a" + q,
			"PATCH " + tc.at + "/a?allowLockout=true" + and, "DELETE " + tc.at + "/a" + q}
		if !slices.Equal(c.heard, want) {
			t.Errorf("%s: called %q\nwant %q", tc.kind, c.heard, want)
		}
	}
}

// TestObjectsList: all pages are read, from the revision of the first.
func TestObjectsList(t *testing.T) {
	o, c := objects(t, api.GroupAmbassador, api.KindTCPMapping)
	c.answer = func(r *http.Request) any {
		n := len(c.heard)
		l := api.List{Items: []json.RawMessage{json.RawMessage(fmt.Sprint(n))}, Revision: api.Revision{Epoch: 1, Number: uint64(n)}}
		if n < 3 {
			l.Next = fmt.Sprintf("prod/m%d", n)
		}
		return l
	}
	all, at, err := o.List(t.Context(), Selection{Namespace: "prod", Labels: []string{"a=b", "c=d"}})
	if err != nil || fmt.Sprintf("%s", all) != "[1 2 3]" || at.Number != 1 {
		t.Errorf("got %s at %s, %v", all, at, err)
	}
	const path = "GET /api/getambassador.io/v3alpha1/tcpmappings?"
	want := []string{path + "label=a%3Db&label=c%3Dd&limit=1000&namespace=prod",
		path + "after=prod%2Fm1&label=a%3Db&label=c%3Dd&limit=1000&namespace=prod", path + "after=prod%2Fm2&label=a%3Db&label=c%3Dd&limit=1000&namespace=prod"}
	if !slices.Equal(c.heard, want) {
		t.Errorf("called %q", c.heard)
	}
}

func TestObjectsWatch(t *testing.T) {
	o, c := objects(t, api.GroupCore, api.KindService)
	c.answer = func(*http.Request) any {
		return api.WatchEvent{Type: api.WatchSynced, Revision: api.Revision{Epoch: 1, Number: 7}}
	}
	var heard []api.WatchType
	each := func(e api.WatchEvent) error { heard = append(heard, e.Type); return nil }
	if err := o.Watch(t.Context(), Selection{User: "alice"}, api.Revision{Epoch: 1, Number: 6}, each); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(heard, []api.WatchType{api.WatchSynced}) || c.heard[0] != "GET /api/core/v1/services?revision=1.6&user=alice&watch=true" {
		t.Errorf("heard %v of %q", heard, c.heard)
	}
	stop := errors.New("enough")
	if err := o.Watch(t.Context(), Selection{}, api.Revision{}, func(api.WatchEvent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	c.answer = func(*http.Request) any { return "no event" }
	if err := o.Watch(t.Context(), Selection{}, api.Revision{}, each); err == nil {
		t.Error("what is no event was taken for one")
	}
}

func TestRoute(t *testing.T) {
	o, c := objects(t, api.GroupCore, api.KindService)
	c.answer = func(*http.Request) any { return api.RouteAnswer{Listener: "*:5432"} }
	got, err := Route(t.Context(), o.API, api.RouteQuestion{Port: 5432, SNI: "db.example.com", ALPN: []string{"h2", "h3"}, From: "::1", Address: "127.0.0.1"})
	if err != nil || got.Listener != "*:5432" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := Route(t.Context(), o.API, api.RouteQuestion{Port: 1, NoTLS: true}); err != nil {
		t.Error(err)
	}
	want := []string{"GET /api/route?address=127.0.0.1&alpn=h2%2Ch3&from=%3A%3A1&port=5432&sni=db.example.com", "GET /api/route?notls=true&port=1"}
	if !slices.Equal(c.heard, want) {
		t.Errorf("called %q", c.heard)
	}
}
