package control

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"cardea/api"
)

func TestApply(t *testing.T) {
	w, root := newRoot(t)
	// What refers comes before what it refers to.
	out := w.mustApply(root, service, alice, group1)
	want := []api.Result{
		{Kind: "Service", Name: "nats.default", Action: api.ActionCreated},
		{Kind: "User", Name: "alice", Action: api.ActionCreated},
		{Kind: "Group", Name: "group-1", Action: api.ActionCreated},
	}
	if !reflect.DeepEqual(out.Results, want) || out.Revision != w.revision() {
		t.Errorf("got %+v", out)
	}
	s := get[*api.Service](w, api.KindService, "nats.default")
	m := s.Metadata
	if s.Status.Port != 4222 {
		t.Errorf("the port is %d", s.Status.Port)
	}
	if m.UID == "" || m.ResourceVersion == "" || !m.CreatedAt.Equal(w.Now()) || !m.UpdatedAt.Equal(w.Now()) || m.ActorRef.Name != root.session || m.IsSystem {
		t.Errorf("the metadata is %+v", m)
	}

	// The same again changes nothing, under either spelling of the name.
	before, records := w.revision(), len(w.journal.all())
	out = w.mustApply(root, strings.Replace(service, "'nats'", "'nats.default'", 1), alice, group1)
	for _, r := range out.Results {
		if r.Action != api.ActionUnchanged {
			t.Errorf("the second apply: %+v", r)
		}
	}
	if w.revision() != before || len(w.journal.all()) != records {
		t.Error("an apply that changes nothing wrote something")
	}

	w.clock.advance(time.Minute)
	out = w.mustApply(root, strings.Replace(service, ":4222", ":4333", 1))
	if out.Results[0].Action != api.ActionConfigured {
		t.Errorf("a change: %+v", out.Results)
	}
	n := get[*api.Service](w, api.KindService, "nats.default").Metadata
	if n.UID != m.UID || n.ResourceVersion <= m.ResourceVersion || !n.CreatedAt.Equal(m.CreatedAt) || !n.UpdatedAt.Equal(w.Now()) {
		t.Errorf("the metadata went from %+v to %+v", m, n)
	}
	rec := w.journal.last(t)
	i := rec.Entry.Info.API
	if i.Verb != "update" || i.Name != "nats.default" || !strings.Contains(string(i.Before), ":4222") || !strings.Contains(string(i.After), ":4333") ||
		rec.Entry.Common.DecisionID == "" || rec.Metadata.ActorRef.Name != root.session {
		t.Errorf("the record is %+v of %s", i, rec.Entry.Common.DecisionID)
	}
}

func TestApplyDryRun(t *testing.T) {
	w, root := newRoot(t)
	before, records := w.revision(), len(w.journal.all())
	var out api.ApplyResponse
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: documents(alice, group1), DryRun: true}, &out)
	if len(out.Results) != 2 || out.Results[0].Action != api.ActionCreated {
		t.Errorf("got %+v", out)
	}
	if w.revision() != before || len(w.journal.all()) != records {
		t.Error("a dry run wrote something")
	}
	err := w.do(root, "POST", "/api/apply", api.ApplyRequest{Documents: documents(alice), DryRun: true}, nil)
	if !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("a dry run does not see what a run would: %v", err)
	}
}

// TestWritesRefused is about what cannot be written, one document each.
func TestWritesRefused(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1, alice, `{'kind':'Credential','metadata':{'name':'alice'},'spec':{'user':'alice'}}`,
		`{'kind':'Namespace','metadata':{'name':'upper'}}`, `{'kind':'Namespace','metadata':{'name':'lower'},'spec':{'parent':'upper'}}`)
	const user = `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN'`
	for _, tc := range []struct{ name, doc, want string }{
		{"no object", `[]`, `must be`},
		{"no kind", `{'metadata':{'name':'a'}}`, `kind`},
		{"unknown kind", `{'kind':'Usr','metadata':{'name':'bob'}}`, `kind: `},
		{"unknown field", user + `,'grups':[]}}`, `spec.grups: `},
		{"wrong type", user + `,'isDisabled':'no'}}`, `spec.isDisabled: `},
		{"wrong value", `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'ROBOT'}}`, `spec.type: `},
		{"not yet", user + `,'authentication':{}}}`, `spec.authentication: `},
		{"bad name", `{'kind':'Group','metadata':{'name':'Über'}}`, `metadata.name: must be 2 to 40 characters`},
		{"no name", `{'kind':'Group'}`, `metadata.name: is required`},
		{"bad expression", user + `,'authorization':{'inlinePolicies':[{'spec':{'rules':[{'effect':'ALLOW','condition':{'match':'ctx.usr.x == 1'}}]}}]}}}`,
			`spec.authorization.inlinePolicies[0].spec.rules[0].condition.match: `},
		{"no such Group", user + `,'groups':['group-1','gruop-1']}}`, `spec.groups[1]: must name a Group that exists, found "gruop-1"; allowed: group-1`},
		{"no such Policy", user + `,'authorization':{'policies':['allow-al']}}}`, `spec.authorization.policies[0]: must name a Policy that exists, found "allow-al"; allowed: allow-all,`},
		{"no such Policy of a Group", `{'kind':'Group','metadata':{'name':'group-2'},'spec':{'authorization':{'policies':['nope']}}}`, `spec.authorization.policies[0]: must name a Policy that exists`},
		{"no such User", `{'kind':'Credential','metadata':{'name':'c1'},'spec':{'user':'bob'}}`, `spec.user: must name a User that exists, found "bob"`},
		{"no such Namespace", strings.Replace(service, "'nats'", "'nats.defualt'", 1), `metadata.name: must name a Namespace that exists, found "defualt"; allowed: default`},
		{"no such parent", `{'kind':'Namespace','metadata':{'name':'ns'},'spec':{'parent':'lowre'}}`, `spec.parent: must name a Namespace that exists, found "lowre"; allowed: lower`},
		{"own parent", `{'kind':'Namespace','metadata':{'name':'ns'},'spec':{'parent':'ns'}}`, `spec.parent: must not be the Namespace itself`},
		{"circle", `{'kind':'Namespace','metadata':{'name':'upper'},'spec':{'parent':'lower'}}`, `spec.parent: must not be a Namespace below this one, found "lower" (the circle is upper → lower → upper)`},
		{"Session", `{'kind':'Session','metadata':{'name':'root-aaaaaa'},'spec':{'expiresAt':'2030-01-01T00:00:00Z'}}`, `kind: must be a kind that people write: a Session is made by logging in`},
		{"another User", `{'kind':'Credential','metadata':{'name':'alice'},'spec':{'user':'root'}}`, `spec.user: cannot be changed: it is alice, found "root"`},
		{"Secret without value", `{'kind':'Secret','metadata':{'name':'s1'}}`, `data: is required`},
		{"Secret with a status", `{'kind':'Secret','metadata':{'name':'s1'},'status':{'sealed':'AAAA'}}`, `data: is required`},
		{"Policy of the system", `{'kind':'Policy','metadata':{'name':'allow-all'}}`, `metadata.name: must not name a Policy that the system made`},
		{"API Service", `{'kind':'Service','metadata':{'name':'api.cardea'},'spec':{'mode':'TCP','config':{'upstream':{'url':'tcp://a:1'}}}}`, `metadata.name: must not name a Service that the system made`},
		{"second ClusterConfig", `{'kind':'ClusterConfig','metadata':{'name':'other'}}`, `metadata.name: must be "default"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := w.revision()
			// Beside a good document, which is not written either.
			_, err := w.apply(root, `{'kind':'Group','metadata':{'name':'good'}}`, tc.doc)
			got := problems(err)
			if !api.HasCode(err, api.CodeInvalid) || !slices.ContainsFunc(got, func(s string) bool {
				return strings.HasPrefix(s, tc.want) || tc.name[:2] == "no" && strings.Contains(s, tc.want)
			}) {
				t.Errorf("got %q of %v, want %q", got, err, tc.want)
			}
			for _, p := range err.(*api.Error).Problems {
				if p.Document != 1 {
					t.Errorf("document %d: %s", p.Document, p)
				}
			}
			if w.revision() != before {
				t.Error("something was written")
			}
		})
	}
}

// TestEveryProblemAtOnce has something wrong in each document, of every kind.
func TestEveryProblemAtOnce(t *testing.T) {
	w, root := newRoot(t)
	_, err := w.apply(root,
		`{'kind':'Policy','metadata':{'name':'p1'},'spec':{'rules':[{'effect':'ALLOW','condition':{'match':'1 +'}}]}}`,      // CEL
		`{'kind':'Group','metadata':{'name':'group-1'},'spec':{'typo':1}}`,                                                  // decoding
		`{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'HUMAN','groups':['group-1','nope']}}`,                   // a reference
		`{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'HUMAN'}}`,                                               // there twice
		`{'kind':'User','metadata':{'name':'root','resourceVersion':'old'},'spec':{'type':'HUMAN'}}`,                        // a conflict
		`{'kind':'User','metadata':{'name':'bob'},'spec':{'authorization':{'policies':['p1']},'type':'HUMAN','email':'B'}}`, // validation
	)
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Code != api.CodeInvalid {
		t.Fatal(err)
	}
	var documents []int
	for _, p := range e.Problems {
		documents = append(documents, p.Document)
	}
	// group-1 and p1 are there, though they have problems of their own.
	if !slices.Equal(documents, []int{0, 1, 2, 3, 4, 5}) {
		t.Errorf("problems of the documents %v: %v", documents, problems(err))
	}
}

// TestManyProblems bounds what an answer tells, and what it costs.
func TestManyProblems(t *testing.T) {
	w, root := newRoot(t)
	var docs []string
	for i := range 300 {
		docs = append(docs, fmt.Sprintf(`{'kind':'User','metadata':{'name':'user-%d'},'spec':{'type':'HUMAN','groups':['nope']}}`, i))
	}
	_, err := w.apply(root, docs...)
	if n := len(problems(err)); !api.HasCode(err, api.CodeInvalid) || n != maxProblems && n != maxProblems+1 {
		t.Errorf("%d problems", n)
	}
	_, err = w.apply(root, `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN','groups':['a1`+manyNames(300)+`']}}`)
	if n := len(problems(err)); !api.HasCode(err, api.CodeInvalid) || n > maxProblems+1 {
		t.Errorf("%d problems of one document", n)
	}
	big := make([]string, maxDocuments+1)
	for i := range big {
		big[i] = "{}"
	}
	if _, err := w.apply(root, big...); !api.HasCode(err, api.CodeInvalid) || len(problems(err)) > 0 {
		t.Errorf("too many documents: %v", err)
	}
}

func manyNames(n int) (s string) {
	for i := range n {
		s += fmt.Sprintf("','group-%d", i)
	}
	return s
}

func TestWarnings(t *testing.T) {
	w, root := newRoot(t)
	w.Check = func(p *api.Problems, o api.Object) { p.Warn("/spec", "is odd", "") }
	w.handler = w.Handler()
	out := w.mustApply(root, group1, `{'kind':'Group','metadata':{'name':'group-2'}}`)
	// However many there are, they stand in front of no error.
	w.Check = func(p *api.Problems, o api.Object) {
		for range 3 * maxProblems {
			p.Warn("/spec", "is odd", "")
		}
	}
	w.handler = w.Handler()
	_, err := w.apply(root, `{'kind':'Group','metadata':{'name':'group-3'}}`, strings.Replace(alice, "group-1", "nope", 1))
	if got := problems(err); len(got) != 1 || !strings.Contains(got[0], "nope") {
		t.Errorf("got %v", err)
	}
	if len(out.Warnings) != 2 || out.Warnings[1].Document != 1 || len(out.Results) != 2 {
		t.Errorf("got %+v", out)
	}
}

func TestOneObject(t *testing.T) {
	w, root := newRoot(t)
	body := strings.ReplaceAll(group1, "'", `"`)
	var made api.WriteResponse
	w.must(root, "POST", "/api/core/v1/groups", body, &made)
	var g api.Group
	if err := json.Unmarshal(made.Object, &g); err != nil || made.Result.Action != api.ActionCreated || g.Metadata.UID == "" {
		t.Errorf("got %+v, %v", made, err)
	}
	if err := w.do(root, "POST", "/api/core/v1/groups", body, nil); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), `Group "group-1" exists already`) {
		t.Errorf("create again: %v", err)
	}
	if err := w.do(root, "PUT", "/api/core/v1/groups/group-2", strings.Replace(body, "-1", "-2", 1), nil); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("update of none: %v", err)
	}
	if err := w.do(root, "PUT", "/api/core/v1/groups/group-2", body, nil); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("another name in the path: %v", err)
	}
	if err := w.do(root, "POST", "/api/core/v1/users", body, nil); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("another kind in the path: %v", err)
	}

	// What the server knows is the server's.
	g.Metadata.DisplayName, g.Metadata.UID, g.Metadata.IsSystem = "One", "mine", true
	g.Metadata.CreatedAt, g.Metadata.ActorRef = time.Unix(0, 0), &api.Ref{Name: "somebody"}
	w.must(root, "PUT", "/api/core/v1/groups/group-1", &g, &made)
	var h api.Group
	if err := json.Unmarshal(made.Object, &h); err != nil {
		t.Fatal(err)
	}
	if h.Metadata.DisplayName != "One" || h.Metadata.UID == "mine" || h.Metadata.IsSystem || h.Metadata.CreatedAt.Year() == 1970 || h.Metadata.ActorRef.Name != root.session {
		t.Errorf("stored is %+v", h.Metadata)
	}

	// g was read before that write.
	g.Metadata.DisplayName = "Two"
	err := w.do(root, "PUT", "/api/core/v1/groups/group-1", &g, nil)
	if !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), h.Metadata.ResourceVersion) || !strings.Contains(err.Error(), g.Metadata.ResourceVersion) {
		t.Errorf("a stale resourceVersion: %v", err)
	}
	g.Metadata.ResourceVersion = h.Metadata.ResourceVersion
	w.must(root, "PUT", "/api/core/v1/groups/group-1", &g, nil)

	var list api.List
	w.must(root, "GET", "/api/core/v1/groups", nil, &list)
	if len(list.Items) != 1 || list.Revision != w.revision() {
		t.Errorf("listed are %s", list.Items)
	}
	w.mustApply(root, service)
	for _, name := range []string{"nats", "nats.default"} {
		var s api.Service
		w.must(root, "GET", "/api/core/v1/services/"+name, nil, &s)
		if s.Metadata.Name != "nats.default" {
			t.Errorf("%s is %s", name, s.Metadata.Name)
		}
	}
}

func TestSecret(t *testing.T) {
	w, root := newRoot(t)
	const doc = `{'kind':'Secret','metadata':{'name':'s1'},'data':{'value':'hunter2'}}`
	w.mustApply(root, doc)
	first := get[*api.Secret](w, api.KindSecret, "s1")
	if len(first.Status.Sealed) == 0 || first.Data != nil {
		t.Fatalf("stored is %+v", first)
	}
	if out := w.mustApply(root, doc); out.Results[0].Action != api.ActionUnchanged {
		t.Errorf("the same value again: %+v", out.Results)
	}
	// Without a value it keeps the one that it has; what the input says of it does not count.
	out := w.mustApply(root, `{'kind':'Secret','metadata':{'name':'s1','displayName':'One'},'status':{'sealed':'AAAA','keyID':'x'}}`)
	second := get[*api.Secret](w, api.KindSecret, "s1")
	if out.Results[0].Action != api.ActionConfigured || string(second.Status.Sealed) != string(first.Status.Sealed) || second.Status.KeyID != first.Status.KeyID {
		t.Errorf("%+v, %+v", out.Results, second.Status)
	}
	for _, data := range []string{`'hunter2'`, `{}`, `[]`, `{'value':'a','valueBytes':'AAAA'}`} {
		_, err := w.apply(root, strings.Replace(doc, `{'value':'hunter2'}`, data, 1))
		if !api.HasCode(err, api.CodeInvalid) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("the data %s: %v", data, err)
		}
	}
	out = w.mustApply(root, strings.Replace(doc, "hunter2", "hunter3", 1))
	if third := get[*api.Secret](w, api.KindSecret, "s1"); out.Results[0].Action != api.ActionConfigured || third.Status.SHA256 == first.Status.SHA256 {
		t.Errorf("another value: %+v, %+v", out.Results, third.Status)
	}

	// Nothing that leaves tells the value.
	var left strings.Builder
	for _, call := range []string{"/api/core/v1/secrets", "/api/core/v1/secrets/s1", "/api/core/v1/credentials", "/api/logs"} {
		left.WriteString(w.request(root, "GET", call, nil).Body.String())
	}
	for _, word := range []string{"hunter", "sealed", "tokenSHA256"} {
		if strings.Contains(left.String(), word) {
			t.Errorf("%q is in what the API returns", word)
		}
	}
}

func TestDelete(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1, alice, service, `{'kind':'Policy','metadata':{'name':'p1'}}`,
		`{'kind':'Namespace','metadata':{'name':'upper'}}`, `{'kind':'Namespace','metadata':{'name':'lower'},'spec':{'parent':'upper'}}`,
		`{'kind':'Credential','metadata':{'name':'c1'},'spec':{'user':'alice','authorization':{'policies':['p1']}}}`)
	p := w.login(w.token(root, "c1"))
	for _, tc := range []struct {
		path string
		code api.Code
		want string
	}{
		{"groups/group-1", api.CodeConflict, `Group "group-1" is in use by User/alice`},
		{"policies/p1", api.CodeConflict, `Policy "p1" is in use by Credential/c1, Session/` + p.session},
		{"namespaces/upper", api.CodeConflict, `Namespace "upper" is in use by Namespace/lower`},
		{"namespaces/default", api.CodeConflict, `made by the system`},
		{"policies/allow-all", api.CodeConflict, `made by the system`},
		{"users/root", api.CodeConflict, `made by the system`},
		{"services/api.cardea", api.CodeConflict, `made by the system`},
		{"clusterconfigs/default", api.CodeConflict, `made by the system`},
		{"groups/group-2", api.CodeNotFound, `Group "group-2" not found`},
	} {
		before := w.revision()
		if err := w.do(root, "DELETE", "/api/core/v1/"+tc.path, nil, nil); !api.HasCode(err, tc.code) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.path, err, tc.want)
		}
		if w.revision() != before {
			t.Errorf("%s: something was deleted", tc.path)
		}
	}

	// With a User go his Sessions and Credentials, in one commit.
	before := w.revision()
	var out api.WriteResponse
	w.must(root, "DELETE", "/api/core/v1/users/alice", nil, &out)
	if !reflect.DeepEqual(out.Result, api.Result{Kind: "User", Name: "alice", Action: api.ActionDeleted}) || out.Revision.Number != before.Number+1 {
		t.Errorf("got %+v", out)
	}
	for kind, name := range map[string]string{"User": "alice", "Credential": "c1", "Session": p.session} {
		if w.exists(kind, name) {
			t.Errorf("%s %s is still there", kind, name)
		}
	}
	if !w.exists(api.KindSession, root.session) {
		t.Error("somebody else's Session is gone")
	}
	for _, path := range []string{"groups/group-1", "policies/p1", "namespaces/lower", "namespaces/upper", "services/nats"} {
		w.must(root, "DELETE", "/api/core/v1/"+path, nil, nil)
	}
}

func TestNamespaceWithServices(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'Namespace','metadata':{'name':'prod'}}`, strings.Replace(service, "'nats'", "'nats.prod'", 1))
	if err := w.do(root, "DELETE", "/api/core/v1/namespaces/prod", nil, nil); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "Service/nats.prod") {
		t.Errorf("got %v", err)
	}
}

func TestSystemObjectsThatMayChange(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root,
		`{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'upstream':{'allow':['127.0.0.0/8']}},'status':{'domain':'evil.example'}}`,
		`{'kind':'Namespace','metadata':{'name':'default','displayName':'Default'}}`,
		`{'kind':'User','metadata':{'name':'root','displayName':'Root'},'spec':{'type':'HUMAN','authorization':{'policies':['api-full-access']}}}`)
	if cc := get[*api.ClusterConfig](w, api.KindClusterConfig, "default"); cc.Status.Domain != testDomain || !cc.Metadata.IsSystem {
		t.Errorf("the ClusterConfig is %+v", cc)
	}
}

func TestNoWriteWithoutRecord(t *testing.T) {
	w, root := newRoot(t)
	w.journal.fail = errors.New("the disk is full")
	before := w.revision()
	if _, err := w.apply(root, group1); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("got %v", err)
	}
	if w.revision() != before {
		t.Error("a write that could not be recorded happened")
	}
}

// TestCommonWrites lets many write the same Object: each is decided on what it is.
func TestCommonWrites(t *testing.T) {
	w, root := newRoot(t)
	done := make(chan error)
	for range 8 {
		go func() {
			var err error
			for range 10 {
				if _, e := w.apply(root, group1); e != nil {
					err = e
				}
				if e := w.do(root, "DELETE", "/api/core/v1/groups/group-1", nil, nil); e != nil && !api.HasCode(e, api.CodeNotFound) {
					err = e
				}
			}
			done <- err
		}()
	}
	for range 8 {
		// So many at once may make one give up, in words that say so.
		if err := <-done; err != nil && !api.HasCode(err, api.CodeUnavailable) {
			t.Error(err)
		}
	}
}

func TestLockout(t *testing.T) {
	w, root := newRoot(t)
	// The proposed state is put into a store of its own and decided there.
	w.Proposed = proposed(t, w)
	w.handler = w.Handler()
	const locked = `{'kind':'User','metadata':{'name':'root'},'spec':{'type':'HUMAN'}}`
	before := w.revision()
	if _, err := w.apply(root, locked); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "could no longer write policies") {
		t.Errorf("got %v", err)
	}
	if w.revision() != before {
		t.Error("it was written")
	}
	w.mustApply(root, group1) // does not lock out

	// Whoever could not write policies before loses nothing.
	w.mustApply(root, `{'kind':'Policy','metadata':{'name':'users'},'spec':{'rules':[{'effect':'ALLOW','condition':
		{'match':'ctx.service.metadata.name == \u0022api.cardea\u0022 && ctx.request.api.kind == \u0022User\u0022'}}]}}`)
	clerk := w.user(root, "clerk", "users")
	w.mustApply(clerk, `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN'}}`)

	second := w.user(root, "second", "api-full-access")
	if err := w.do(second, "DELETE", "/api/core/v1/users/second", nil, nil); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("delete oneself: %v", err)
	}
	w.must(second, "POST", "/api/logout", nil, nil) // is meant

	w.must(root, "POST", "/api/apply?allowLockout=true", api.ApplyRequest{Documents: documents(locked)}, nil)
	if _, err := w.apply(root, group1); !api.HasCode(err, api.CodePermissionDenied) {
		t.Errorf("root without its policy: %v", err)
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// TestErrors holds the errors that programs read.
func TestErrors(t *testing.T) {
	w, root := newRoot(t)
	bob := w.user(root, "bob")
	w.mustApply(root, group1, alice)
	random := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|[a-z0-9]{4}-[a-z0-9]{4}-[a-z0-9]{24}-[a-z0-9]{4}-[a-z0-9]{4}`)
	for _, tc := range []struct {
		name         string
		who          *person
		method, path string
		body         any
	}{
		{"stranger", nil, "GET", "/api/core/v1/users", nil},
		{"forbidden", bob, "GET", "/api/core/v1/users", nil},
		{"not-found", root, "GET", "/api/core/v1/users/carol", nil},
		{"no-kind", root, "GET", "/api/core/v1/usrs", nil},
		{"no-call", root, "GET", "/api/nothing", nil},
		{"query", root, "GET", "/api/logs?folow=true", nil},
		{"in-use", root, "DELETE", "/api/core/v1/groups/group-1", nil},
		{"missing-group", root, "POST", "/api/apply", api.ApplyRequest{Documents: documents(strings.Replace(alice, "group-1", "grp-1", 1))}},
		{"conflict", root, "POST", "/api/apply", api.ApplyRequest{Documents: documents(strings.Replace(group1, "'}", "','resourceVersion':'1'}", 1))}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res := w.request(tc.who, tc.method, tc.path, tc.body)
			var e api.Error
			if err := json.Unmarshal(res.Body.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(map[string]any{"status": res.Code, "error": e}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(random.ReplaceAll(got, []byte("RANDOM")), '\n')
			file := filepath.Join("testdata", "errors", tc.name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("got %s\nwant %s", got, want)
			}
		})
	}
}
