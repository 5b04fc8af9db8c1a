package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"cardea/api"
	"cardea/policy"
)

// namesIn returns the names of what a list has.
func namesIn(t testing.TB, l api.List) (names []string) {
	t.Helper()
	for _, b := range l.Items {
		var h api.Head
		if err := json.Unmarshal(b, &h); err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Metadata.Name)
	}
	return names
}

// list makes a call that lists, and returns the names.
func (w *world) list(who *person, path string) []string {
	w.t.Helper()
	var l api.List
	w.must(who, "GET", "/api/core/v1/"+path, nil, &l)
	return namesIn(w.t, l)
}

func tcpService(name, labels string) string {
	return `{'kind':'Service','metadata':{'name':'` + name + `','labels':{` + labels + `}},'spec':{'mode':'TCP','config':{'upstream':{'url':'tcp://127.0.0.1:9'}}}}`
}

func TestList(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1, alice, `{'kind':'Namespace','metadata':{'name':'prod'}}`,
		tcpService("s1", `'team':'a'`), tcpService("s2", `'team':'b','tier':'web'`), tcpService("s3.prod", `'team':'a','tier':'web'`),
		`{'kind':'Credential','metadata':{'name':'c1'},'spec':{'user':'alice'}}`, `{'kind':'Credential','metadata':{'name':'c2'},'spec':{'user':'root'}}`)
	p := w.login(w.token(root, "c1"))
	for _, tc := range []struct {
		path string
		want []string
	}{
		{"services", []string{"api.cardea", "s1.default", "s2.default", "s3.prod"}},
		{"services?namespace=default", []string{"s1.default", "s2.default"}},
		{"services?namespace=none", nil},
		{"services?label=team%3Da", []string{"s1.default", "s3.prod"}},
		{"services?label=team%3Da&label=tier%3Dweb", []string{"s3.prod"}},
		{"services?limit=2", []string{"api.cardea", "s1.default"}},
		{"services?after=s1", []string{"s2.default", "s3.prod"}}, // short for s1.default
		{"credentials?user=alice", []string{"c1"}},
		{"sessions?user=alice", []string{p.session}},
		{"sessions?user=nobody", nil},
		{"devices", nil},
		{"regions", []string{"default"}},
	} {
		if got := w.list(root, tc.path); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.path, got, tc.want)
		}
	}
	for _, query := range []string{"limit=0", "limit=-1", "limit=many", "label=team", "user=alice", "label==a", "offset=1", "revision=1.1", "watch=perhaps",
		"watch=true&limit=1", "watch=true&revision=now", "namespace=a&namespace=b"} {
		if err := w.do(root, "GET", "/api/core/v1/services?"+query, nil, nil); !api.HasCode(err, api.CodeInvalid) {
			t.Errorf("%s: %v", query, err)
		}
	}
	if err := w.do(root, "GET", "/api/core/v1/users?namespace=default", nil, nil); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("Users by Namespace: %v", err)
	}
}

// TestPages reads a list page by page: every Object once, no empty page.
func TestPages(t *testing.T) {
	w, root := newRoot(t)
	var docs, want []string
	for i := range 25 {
		name := fmt.Sprintf("group-%02d", i)
		docs = append(docs, `{'kind':'Group','metadata':{'name':'`+name+`','labels':{'odd':'`+fmt.Sprint(i%2 == 1)+`'}}}`)
		want = append(want, name)
	}
	w.mustApply(root, docs...)
	for _, limit := range []int{1, 7, 25, 30} {
		var got []string
		for after, pages := "", 0; ; pages++ {
			var l api.List
			w.must(root, "GET", fmt.Sprintf("/api/core/v1/groups?limit=%d&after=%s", limit, url.QueryEscape(after)), nil, &l)
			if len(l.Items) == 0 || len(l.Items) > limit || pages > 25 {
				t.Fatalf("limit %d: page %d has %d", limit, pages, len(l.Items))
			}
			got = append(got, namesIn(t, l)...)
			if after = l.Next; after == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: got %v", limit, got)
		}
	}
	var l api.List
	w.must(root, "GET", "/api/core/v1/groups?limit=12&label=odd%3Dtrue", nil, &l)
	if len(l.Items) != 12 || l.Next != "" {
		t.Errorf("%d odd ones and next %q", len(l.Items), l.Next)
	}
}

// TestListByName is about Users who may list some Objects and not others.
func TestListByName(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'Namespace','metadata':{'name':'prod'}}`, tcpService("s1", ""), tcpService("s2", ""), tcpService("s3.prod", ""),
		onAPI("one", "a.kind == ^Service^ && a.name == ^s1.default^"),
		onAPI("prod", "a.namespace == ^prod^"),
		`{'kind':'Policy','metadata':{'name':'but-s2'},'spec':{'rules':[{'effect':'DENY','condition':{'match':'ctx.request.api.name == \u0022s2.default\u0022'}}]}}`)
	one, prod := w.user(root, "one", "one"), w.user(root, "prod", "prod")
	all, none := w.user(root, "all", "api-read-only", "but-s2"), w.user(root, "none")
	for name, tc := range map[string]struct {
		who  *person
		want []string
	}{
		"one by name":          {one, []string{"s1.default"}},
		"those of a Namespace": {prod, []string{"s3.prod"}},
		"all but one":          {all, []string{"api.cardea", "s1.default", "s3.prod"}},
	} {
		if got := w.list(tc.who, "services"); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
	if got := w.list(one, "services?label=x%3Dy"); got != nil {
		t.Errorf("what was asked for is not there: %v", got)
	}
	var l api.List
	w.must(all, "GET", "/api/core/v1/services?limit=2", nil, &l)
	if got := namesIn(t, l); !slices.Equal(got, []string{"api.cardea", "s1.default"}) || l.Next != "s1.default" {
		t.Errorf("a page: %v, next %q", got, l.Next)
	}
	for _, who := range []*person{none, one} {
		records := len(w.journal.all())
		if err := w.do(who, "GET", "/api/core/v1/secrets", nil, nil); !api.HasCode(err, api.CodePermissionDenied) || err.Error() != "not allowed: list Secret" {
			t.Errorf("got %v", err)
		}
		if n := len(w.journal.all()) - records; n != 1 {
			t.Errorf("%d records of one refusal", n)
		}
	}
	// What one may not list is not suggested either.
	w.mustApply(root, onAPI("writers", "a.kind == ^User^ || a.verb == ^list^ && a.name == ^group-2^ || a.verb == ^join^"), group1, `{'kind':'Group','metadata':{'name':'group-2'}}`)
	writer := w.user(root, "writer", "writers")
	_, err := w.apply(writer, strings.Replace(alice, "group-1", "group-3", 1))
	if got := problems(err); len(got) != 1 || !strings.HasSuffix(got[0], `found "group-3"; allowed: group-2`) {
		t.Errorf("got %v", err)
	}
}

func TestLive(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, service)
	w.Live = func(o api.Object) api.Object {
		s, ok := o.(*api.Service)
		if !ok {
			return o
		}
		c := *s
		c.Status.Conditions = []api.StatusCondition{{Type: "Listening", Status: "False", Message: "no"}}
		return &c
	}
	w.handler = w.Handler()
	for _, path := range []string{"services", "services/nats"} {
		if body := w.request(root, "GET", "/api/core/v1/"+path, nil).Body.String(); !strings.Contains(body, "Listening") {
			t.Errorf("%s: %s", path, body)
		}
	}
	// It is not stored, also if it is written back.
	body := w.request(root, "GET", "/api/core/v1/services/nats", nil).Body.String()
	var out api.WriteResponse
	w.must(root, "PUT", "/api/core/v1/services/nats", body, &out)
	if out.Result.Action != api.ActionUnchanged || get[*api.Service](w, api.KindService, "nats.default").Status.Conditions != nil {
		t.Errorf("got %+v", out.Result)
	}
}

func BenchmarkList(b *testing.B) {
	w, root := newRoot(b)
	var docs []string
	for i := range maxDocuments {
		docs = append(docs, fmt.Sprintf(`{'kind':'Group','metadata':{'name':'group-%d'}}`, i))
	}
	w.mustApply(root, docs...)
	for b.Loop() {
		if res := w.request(root, "GET", "/api/core/v1/groups", nil); res.Code != http.StatusOK {
			b.Fatal(res.Body)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*maxDocuments), "ns/object")
}

// BenchmarkSees is the part of the above that is deciding.
func BenchmarkSees(b *testing.B) {
	w, root := newRoot(b)
	r := w.newRequest(root, "GET", "/api/core/v1/groups", nil)
	c := w.call(nil, r)
	k := coreKey(api.KindGroup, "group-1")
	for b.Loop() {
		if d, err := c.sees(verbList, k); err != nil || !d.Allowed() {
			b.Fatal(d, err)
		}
	}
}

// meeting is a Decider where decisions on what is listed wait for one of another
// call, and which counts how many calls are there at once.
type meeting struct {
	policy.Decider
	mu           sync.Mutex
	here, most   int
	twoHaveBeen  chan struct{}
	isTwoReached bool
}

func (m *meeting) Decide(ctx context.Context, r api.Request) (api.Decision, error) {
	if r.Facts.API.Verb != verbList || r.Facts.API.Name == "" {
		return m.Decider.Decide(ctx, r)
	}
	m.mu.Lock()
	m.here++
	m.most = max(m.most, m.here)
	if m.here == 2 && !m.isTwoReached {
		m.isTwoReached = true
		close(m.twoHaveBeen)
	}
	m.mu.Unlock()
	<-m.twoHaveBeen
	d, err := m.Decider.Decide(ctx, r)
	m.mu.Lock()
	m.here--
	m.mu.Unlock()
	return d, err
}

// TestListsOfOneSession: one Session does not go through everything as often at
// once as it likes.
func TestListsOfOneSession(t *testing.T) {
	w, root := newRoot(t)
	m := &meeting{Decider: w.Decider, twoHaveBeen: make(chan struct{})}
	w.Decider = m
	w.handler = w.Handler()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			var out api.List
			if err := w.do(root, "GET", "/api/core/v1/policies", nil, &out); err != nil || len(out.Items) == 0 {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
	all.Wait()
	if m.most != maxReaders {
		t.Errorf("%d lists at once, want %d", m.most, maxReaders)
	}
}
