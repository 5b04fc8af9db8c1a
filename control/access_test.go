package control

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cardea/api"
	"cardea/policy"
)

// calls is one call of each kind, with what it takes.
func calls() []struct {
	method, path, body string
	verb               string
} {
	return []struct{ method, path, body, verb string }{
		{"GET", "/api/core/v1/users", "", verbList},
		{"GET", "/api/core/v1/users/root", "", verbGet},
		{"POST", "/api/core/v1/groups", `{"kind":"Group","metadata":{"name":"group-2"}}`, verbCreate},
		{"PUT", "/api/core/v1/groups/group-1", `{"kind":"Group","metadata":{"name":"group-1","displayName":"One"}}`, verbUpdate},
		{"POST", "/api/apply", `{"documents":[{"kind":"Group","metadata":{"name":"group-1"}},{"kind":"Group","metadata":{"name":"group-3"}}]}`, verbUpdate},
		{"PATCH", "/api/core/v1/groups/group-1", `{"metadata":{"description":"The first."}}`, verbUpdate},
		{"DELETE", "/api/core/v1/groups/group-3", "", verbDelete},
		{"POST", "/api/core/v1/credentials/spare/token", "", verbUpdate},
		{"POST", "/api/why", `{"subject":"root","service":"nats"}`, verbWhy},
		{"GET", "/api/conns", "", verbConns},
		{"DELETE", "/api/conns/c1", "", verbKill},
		{"GET", "/api/logs", "", verbLogs},
		{"POST", "/api/logs/verify", "", verbLogs},
	}
}

// TestEachCallIsDecided makes every call as everybody.
func TestEachCallIsDecided(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1, `{'kind':'Credential','metadata':{'name':'spare'},'spec':{'user':'root'}}`)
	w.conns.list = []api.Connection{{ID: "c1"}, {ID: "c2"}}
	ordinary := w.user(root, "ordinary")
	reader := w.user(root, "reader", "api-read-only")
	admin := w.user(root, "admin", "api-full-access")
	denied := w.user(root, "denied", "api-full-access", "deny-all")
	stranger := newPerson(t)
	stranger.leaf = must(selfSigned(stranger, get[*api.Session](w, api.KindSession, root.session).Metadata.UID))
	reads := map[string]bool{verbGet: true, verbList: true}

	for _, tc := range calls() {
		var body any
		if tc.body != "" {
			body = tc.body
		}
		for _, who := range []struct {
			name string
			*person
			want int
		}{
			{"nobody", nil, http.StatusUnauthorized},
			{"stranger", stranger, http.StatusUnauthorized},
			{"ordinary", ordinary, http.StatusForbidden},
			{"denied", denied, http.StatusForbidden},
			{"reader", reader, map[bool]int{true: http.StatusOK, false: http.StatusForbidden}[reads[tc.verb]]},
			{"admin", admin, http.StatusOK},
		} {
			before, records := w.revision(), len(w.journal.all())
			res := w.request(who.person, tc.method, tc.path, body)
			if res.Code != who.want {
				t.Errorf("%s %s as %s: %d, want %d: %s", tc.method, tc.path, who.name, res.Code, who.want, res.Body)
			}
			if res.Code == http.StatusOK {
				continue
			}
			if w.revision() != before {
				t.Errorf("%s %s as %s wrote something", tc.method, tc.path, who.name)
			}
			var e api.Error
			if err := json.Unmarshal(res.Body.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			recs := w.journal.all()
			if len(recs) != records+1 {
				t.Errorf("%s %s as %s: %d records", tc.method, tc.path, who.name, len(recs)-records)
				continue
			}
			c := recs[records].Entry.Common
			known := who.want == http.StatusForbidden
			if c.Status != api.StatusDenied || c.IsAuthenticated != known || c.ServiceRef.Name != api.APIService || c.Facts.IP == "" {
				t.Errorf("%s %s as %s: the record is %+v", tc.method, tc.path, who.name, c)
			}
			if known && (e.DecisionID == "" || e.DecisionID != c.DecisionID || c.Facts.API.Verb != tc.verb) || !known && e.DecisionID != "" {
				t.Errorf("%s %s as %s: the error is %+v, the record of %s by %s", tc.method, tc.path, who.name, e, c.Facts.API.Verb, c.DecisionID)
			}
		}
	}
}

// TestDecisionsByName is about a User who may do something with some Objects.
func TestDecisionsByName(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'Namespace','metadata':{'name':'prod'}}`, `{'kind':'Policy','metadata':{'name':'team'},'spec':{'rules':[
		{'effect':'ALLOW','condition':{'match':'ctx.request.api.kind == \u0022Service\u0022 && ctx.request.api.namespace == \u0022default\u0022'}},
		{'effect':'DENY','priority':-1,'message':'nats is frozen','condition':{'match':'ctx.request.api.name == \u0022nats.default\u0022 && ctx.request.api.verb == \u0022update\u0022'}}]}}`)
	bob := w.user(root, "bob", "team")
	w.mustApply(bob, service) // is created
	_, err := w.apply(bob, strings.Replace(service, "'nats'", "'redis'", 1), service)
	if !api.HasCode(err, api.CodePermissionDenied) || !strings.Contains(err.Error(), "nats is frozen") || w.exists(api.KindService, "redis.default") {
		t.Errorf("an apply with one document that is not allowed: %v", err)
	}
	if _, err := w.apply(bob, strings.Replace(service, "'nats'", "'nats.prod'", 1)); !api.HasCode(err, api.CodePermissionDenied) {
		t.Errorf("in another Namespace: %v", err)
	}
	// A refusal tells nothing of what is stored.
	_, err = w.apply(bob, `{'kind':'User','metadata':{'name':'carol'},'spec':{'type':'HUMAN','groups':['nope']}}`)
	if !api.HasCode(err, api.CodePermissionDenied) || len(problems(err)) > 0 {
		t.Errorf("got %v", err)
	}
}

// TestAnsweredOnceDecided changes a policy and asks at once, many times.
func TestAnsweredOnceDecided(t *testing.T) {
	w, root := newRoot(t)
	bob := w.user(root, "bob")
	for i := range 30 {
		policies, want := "[]", http.StatusForbidden
		if i%2 == 0 {
			policies, want = "['api-read-only']", http.StatusOK
		}
		w.mustApply(root, `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN','authorization':{'policies':`+policies+`}}}`)
		if got := w.request(bob, "GET", "/api/core/v1/users", nil).Code; got != want {
			t.Fatalf("after write %d: %d, want %d", i, got, want)
		}
	}
}

func TestStrangersDoNotFillTheLog(t *testing.T) {
	w, root := newRoot(t)
	bob := w.user(root, "bob")
	var refused []api.Refusal
	w.Refuse = func(r api.Refusal) { refused = append(refused, r) }
	w.handler = w.Handler()
	records := len(w.journal.all())
	w.request(nil, "GET", "/api/core/v1/users", nil)
	w.request(nil, "POST", "/api/login", api.LoginRequest{Token: "x", CSR: bob.csr(t)})
	if len(refused) != 2 || len(w.journal.all()) != records {
		t.Fatalf("refused are %+v", refused)
	}
	for _, r := range refused {
		if r.Reason != api.ReasonUnauthenticated || r.Words == "" || r.Facts.IP == "" || r.Facts.API == nil {
			t.Errorf("got %+v", r)
		}
	}
	w.request(bob, "GET", "/api/core/v1/users", nil)
	if len(refused) != 3 || refused[2].Record == nil || refused[2].Record.Entry.Common.SessionRef == nil {
		t.Errorf("the refused call of a known Session is not recorded with all that is known: %+v", refused)
	}

	// What gets into the log is bounded.
	for _, path := range []string{"/api/core/v1/users/", "/api/conns/"} {
		if err := w.do(bob, "DELETE", path+strings.Repeat("x", 10_000), nil, nil); !api.HasCode(err, api.CodeNotFound) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if len(refused) != 3 || len(w.journal.all()) != records {
		t.Error("an endless name is in the log")
	}
}

// broken is a Decider that has no answer.
type broken struct{ allow bool }

func (b broken) Decide(context.Context, api.Request) (api.Decision, error) {
	d := api.Decision{}
	if b.allow {
		d = api.Decision{Effect: api.Allow, Lease: 1, Subject: api.Subject{Session: &api.Ref{Name: "s", UID: "u"}}}
	}
	return d, errors.New("the snapshot is gone")
}

func (broken) Changes(context.Context, api.Revision) iter.Seq2[api.Change, error] {
	panic("not called")
}

func TestNoDecisionDenies(t *testing.T) {
	w, root := newRoot(t)
	for _, d := range []policy.Decider{broken{}, broken{allow: true}} {
		w.Decider = d
		w.handler = w.Handler()
		for _, tc := range calls() {
			err := w.do(root, tc.method, tc.path, tc.body, nil)
			if !api.HasCode(err, api.CodeUnavailable) || strings.Contains(err.Error(), "snapshot") {
				t.Errorf("%s %s: %v", tc.method, tc.path, err)
			}
		}
	}
}

func TestGuard(t *testing.T) {
	w, root := newRoot(t)
	w.Names = []string{"gate.example"}
	w.handler = w.Handler()
	for host, want := range map[string]int{
		"api.cardea.internal":      http.StatusUnauthorized,
		"API.Cardea.Internal:8443": http.StatusUnauthorized,
		"cardea.internal":          http.StatusUnauthorized,
		"localhost:8443":           http.StatusUnauthorized,
		"127.0.0.1:8443":           http.StatusUnauthorized,
		"[::1]:8443":               http.StatusUnauthorized,
		"gate.example":             http.StatusUnauthorized,
		"evil.example":             http.StatusNotFound,
		"cardea.internal.evil.com": http.StatusNotFound,
		"":                         http.StatusNotFound,
	} {
		r := httptest.NewRequest("GET", "https://x/api/self", nil)
		r.Host = host
		res := httptest.NewRecorder()
		w.handler.ServeHTTP(res, r)
		if res.Code != want {
			t.Errorf("Host %q: %d, want %d", host, res.Code, want)
		}
	}

	// A web page that makes a browser send what it may.
	r := httptest.NewRequest("POST", "https://api.cardea.internal/api/logout", nil)
	r.Header.Set("Origin", "https://evil.example")
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	res := httptest.NewRecorder()
	w.handler.ServeHTTP(res, r)
	if res.Code != http.StatusForbidden || !w.exists(api.KindSession, root.session) {
		t.Errorf("a request across origins: %d", res.Code)
	}
}

func TestQuestions(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1, alice, service)
	var why api.Explanation
	w.must(root, "POST", "/api/why", api.WhyRequest{Subject: "alice", Service: "nats"}, &why)
	if !why.Decision.Allowed() || !why.Hypothetical || len(why.Steps) == 0 {
		t.Errorf("alice without a Session: %+v", why)
	}
	w.must(root, "POST", "/api/why", api.WhyRequest{Subject: "root", Service: "nats.default"}, &why)
	if why.Decision.Allowed() || why.Decision.Subject.Session.Name != root.session {
		t.Errorf("root: %+v", why)
	}
	w.must(root, "POST", "/api/why", api.WhyRequest{Subject: "session/" + root.session, Service: "nats", At: w.Now().AddDate(1, 0, 0)}, &why)
	if why.Decision.Reason != api.ReasonSessionExpired {
		t.Errorf("root in a year: %+v", why)
	}
	for subject, code := range map[string]api.Code{"bob": api.CodeNotFound, "session/bob-aaaaaa": api.CodeNotFound, "": api.CodeInvalid} {
		if err := w.do(root, "POST", "/api/why", api.WhyRequest{Subject: subject, Service: "nats"}, nil); !api.HasCode(err, code) {
			t.Errorf("%q: %v, want %s", subject, err, code)
		}
	}

	w.conns.list = []api.Connection{{ID: "c1"}, {ID: "c2"}}
	w.must(root, "DELETE", "/api/conns/c1", nil, nil)
	if i := w.journal.last(t).Entry.Info.API; i == nil || i.Verb != "kill" || i.Kind != "Connection" || i.Name != "c1" {
		t.Errorf("the record is %+v", i)
	}
	if err := w.do(root, "DELETE", "/api/conns/c1", nil, nil); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("killed twice: %v", err)
	}
	var conns api.Connections
	w.must(root, "GET", "/api/conns", nil, &conns)
	if len(conns.Items) != 1 || conns.Items[0].ID != "c2" {
		t.Errorf("live are %+v", conns)
	}

	lines := strings.Split(strings.TrimSpace(w.request(root, "GET", "/api/logs?user=root&type=API", nil).Body.String()), "\n")
	for _, l := range lines {
		var rec api.AccessLog
		if err := json.Unmarshal([]byte(l), &rec); err != nil || rec.Entry.Common.UserRef.Name != "root" || rec.Entry.Info.API == nil {
			t.Errorf("the line %q: %v", l, err)
		}
	}
	if len(lines) < 4 {
		t.Errorf("the log has %d lines", len(lines))
	}
	last := w.journal.last(t)
	body := strings.TrimSpace(w.request(root, "GET", "/api/logs?decision="+last.Entry.Common.DecisionID, nil).Body.String())
	if !strings.Contains(body, last.Metadata.ID) || strings.Contains(body, "\n") {
		t.Errorf("by the decision %s: %s", last.Entry.Common.DecisionID, body)
	}
	if body := w.request(root, "GET", "/api/logs?until="+w.Now().Format("2006-01-02T15:04:05Z"), nil).Body.String(); body != "" {
		t.Errorf("before anything happened: %s", body)
	}
	for _, q := range []string{"limit=0", "until=tomorrow", "type=END&typo=1", "type=NONE", "since=yesterday", "follow=perhaps", "user=a&user=b"} {
		if err := w.do(root, "GET", "/api/logs?"+q, nil, nil); !api.HasCode(err, api.CodeInvalid) {
			t.Errorf("%s: %v", q, err)
		}
	}
	var report api.VerifyReport
	w.must(root, "POST", "/api/logs/verify", nil, &report)
	if !report.OK {
		t.Errorf("got %+v", report)
	}
}

// FuzzApply gives apply whatever a User may send: it answers with a list of what
// became of it or says what is wrong, and never with an internal error.
func FuzzApply(f *testing.F) {
	for _, doc := range []string{group1, alice, service,
		`{'kind':'Secret','metadata':{'name':'s1'},'data':{'valueBytes':'AAAA'}}`,
		`{'kind':'Namespace','metadata':{'name':'upper'},'spec':{'parent':'default'}}`,
		`{'kind':'Session','metadata':{'name':'s1'},'status':{'userRef':{'name':'root'}}}`,
		`{'kind':'Credential','metadata':{'name':'root-login'},'spec':{'user':'root'}}`} {
		f.Add(`{"documents":[` + strings.ReplaceAll(doc, "'", `"`) + `]}`)
	}
	w, root := newRoot(f)
	f.Fuzz(func(t *testing.T, body string) {
		w.t = t
		res := w.request(root, "POST", "/api/apply?allowLockout=true", body)
		switch res.Code {
		case http.StatusOK, http.StatusBadRequest, http.StatusConflict:
		case http.StatusForbidden, http.StatusUnauthorized: // it took root's own right
			token := must(w.Recover(t.Context(), false)).Token
			if err := w.Await(t.Context(), w.revision()); err != nil {
				t.Fatal(err)
			}
			root = w.login(token)
		default:
			t.Fatalf("%d: %s", res.Code, res.Body)
		}
	})
}
