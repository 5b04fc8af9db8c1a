package control

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"cardea/api"
)

// set applies documents as a set, and prunes it.
func (w *world) set(who *person, name string, docs ...string) (api.ApplyResponse, error) {
	w.t.Helper()
	var out api.ApplyResponse
	return out, w.do(who, "POST", "/api/apply", api.ApplyRequest{Documents: documents(docs...), Set: name, Prune: true}, &out)
}

func (w *world) mustSet(who *person, name string, docs ...string) api.ApplyResponse {
	w.t.Helper()
	var out api.ApplyResponse
	w.must(who, "POST", "/api/apply", api.ApplyRequest{Documents: documents(docs...), Set: name, Prune: true}, &out)
	return out
}

func actions(r api.ApplyResponse) (list []string) {
	for _, x := range r.Results {
		list = append(list, string(x.Action)+" "+x.Name)
	}
	return list
}

func TestPrune(t *testing.T) {
	w, root := newRoot(t)
	const spare = `{'kind':'Credential','metadata':{'name':'alice'},'spec':{'user':'alice'}}`
	w.mustApply(root, group("by-hand", ""), group("adopted", ""))
	out := w.mustSet(root, "one", group1, alice, spare, service, group("adopted", ""))
	if got := actions(out); !reflect.DeepEqual(got, []string{"created group-1", "created alice", "created alice", "created nats.default", "configured adopted"}) {
		t.Errorf("got %v", got)
	}
	w.mustSet(root, "two", group("group-2", ""))
	p := w.login(w.token(root, "alice"))

	// Its own again, without stamps of somebody else's, and once more.
	for range 2 {
		for _, r := range w.mustSet(root, "one", group1, alice, spare, service, group("adopted", "")).Results {
			if r.Action != api.ActionUnchanged {
				t.Errorf("again: %+v", r)
			}
		}
	}
	if _, err := w.set(root, "one", group1, group("group-2", "")); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), `metadata.applySet: must be two: another set made it, found "one"`) {
		t.Errorf("what another set made: %v", err)
	}
	// Who applies without a set leaves the stamp.
	w.mustApply(root, strings.Replace(group1, "'group-1'", "'group-1','displayName':'One'", 1))
	if s := get[*api.Group](w, api.KindGroup, "group-1").Metadata.ApplySet; s != "one" {
		t.Errorf("the stamp became %q", s)
	}

	// What is to be pruned and referred to by what stays.
	before := w.revision()
	w.mustApply(root, `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN','groups':['group-1']}}`)
	for _, docs := range [][]string{{service}, {alice, spare}} {
		if _, err := w.set(root, "one", docs...); err == nil {
			t.Errorf("%v left something dangling", docs)
		}
	}
	if _, err := w.set(root, "one", service); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), `Group "group-1" is in use by User/bob`) {
		t.Errorf("got %v", err)
	}
	w.must(root, "DELETE", "/api/core/v1/users/bob", nil, nil)
	if w.revision().Number != before.Number+2 {
		t.Error("something was pruned")
	}

	// A dry run shows the list and deletes nothing.
	var dry api.ApplyResponse
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: documents(service), Set: "one", Prune: true, DryRun: true, Diff: true}, &dry)
	want := []string{"unchanged nats.default", "deleted adopted", "deleted group-1", "deleted alice", "deleted alice"}
	if got := actions(dry); !sameSet(got, want) || got[0] != want[0] {
		t.Errorf("a dry run: %v", got)
	}
	for _, r := range dry.Results[1:] {
		if len(r.Before) == 0 || len(r.After) != 0 || strings.Contains(string(r.Before), "tokenSHA256") {
			t.Errorf("the diff of what is deleted: %s %s", r.Before, r.After)
		}
	}
	if !w.exists(api.KindUser, "alice") {
		t.Error("a dry run deleted alice")
	}

	// In one commit, with what alice owned, whatever refers to what.
	records, before := len(w.journal.all()), w.revision()
	out = w.mustSet(root, "one", service)
	if got := actions(out); !sameSet(got, want) || out.Revision.Number != before.Number+1 {
		t.Errorf("got %v at %s after %s", got, out.Revision, before)
	}
	for kind, names := range map[string][]string{"User": {"alice"}, "Group": {"group-1", "adopted"}, "Credential": {"alice"}, "Session": {p.session}} {
		for _, n := range names {
			if w.exists(kind, n) {
				t.Errorf("%s %s is still there", kind, n)
			}
		}
	}
	if !w.exists(api.KindGroup, "by-hand") || !w.exists(api.KindGroup, "group-2") || !w.exists(api.KindService, "nats.default") {
		t.Error("too much was pruned")
	}
	recs := w.journal.all()[records:]
	if len(recs) != 5 {
		t.Errorf("%d records", len(recs))
	}
	for _, r := range recs {
		if i := r.Entry.Info.API; i.Verb != verbDelete || i.Before == nil || i.After != nil {
			t.Errorf("the record is %+v", i)
		}
	}
	w.mustSet(root, "one") // no documents: all of it
	if w.exists(api.KindService, "nats.default") {
		t.Error("nats is still there")
	}
}

func sameSet(a, b []string) bool {
	n := map[string]int{}
	for _, s := range a {
		n[s]++
	}
	for _, s := range b {
		n[s]--
	}
	for _, x := range n {
		if x != 0 {
			return false
		}
	}
	return true
}

func TestPruneKeepsWhatPeopleMade(t *testing.T) {
	w, root := newRoot(t)
	w.mustSet(root, "one", group1, alice)
	w.mustApply(root, `{'kind':'Credential','metadata':{'name':'by-hand'},'spec':{'user':'alice'}}`)
	_, err := w.set(root, "one", group1)
	if !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), `User "alice" is in use by Credential/by-hand`) || !w.exists(api.KindUser, "alice") {
		t.Errorf("got %v", err)
	}
	// What the system made is never of a set.
	w.mustSet(root, "one", group1, alice, `{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'upstream':{'allow':['127.0.0.0/8']}}}`)
	if s := get[*api.ClusterConfig](w, api.KindClusterConfig, "default").Metadata.ApplySet; s != "" {
		t.Errorf("the ClusterConfig is of the set %q", s)
	}
	w.mustSet(root, "one", group1, alice)
}

func TestPruneIsDecided(t *testing.T) {
	w, root := newRoot(t)
	w.Proposed = proposed(t, w)
	w.handler = w.Handler()
	w.mustApply(root, onAPI("groups", "a.kind == ^Group^ && a.name != ^group-1^ || a.kind == ^Group^ && a.verb != ^delete^"))
	bob := w.user(root, "bob", "groups")
	w.mustSet(bob, "bobs", group("group-1", ""), group("group-2", ""))
	before := w.revision()
	if _, err := w.set(bob, "bobs", group("group-2", "")); !api.HasCode(err, api.CodePermissionDenied) || !strings.Contains(err.Error(), "delete Group group-1") || w.revision() != before {
		t.Errorf("got %v", err)
	}
	w.mustSet(bob, "bobs", group("group-1", ""))

	// Not his own right either.
	w.mustSet(root, "admins", `{'kind':'Policy','metadata':{'name':'admin'},'spec':{'rules':[{'effect':'ALLOW','condition':{'matchAny':true}}]}}`,
		`{'kind':'User','metadata':{'name':'second'},'spec':{'type':'HUMAN','authorization':{'policies':['admin']}}}`,
		`{'kind':'Credential','metadata':{'name':'second'},'spec':{'user':'second'}}`)
	second := w.login(w.token(root, "second"))
	before = w.revision()
	if _, err := w.set(second, "admins"); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "could no longer write policies") || w.revision() != before {
		t.Errorf("got %v", err)
	}
}

func TestApplyRequests(t *testing.T) {
	w, root := newRoot(t)
	big := make([]string, 20_000)
	for i := range big {
		big[i] = "{}"
	}
	for name, tc := range map[string]struct {
		in   any
		want string
	}{
		"prune without set":  {api.ApplyRequest{Prune: true}, "prune needs a set"},
		"bad set":            {api.ApplyRequest{Set: "A B"}, "the name of a set must be"},
		"20,000 documents":   {api.ApplyRequest{Documents: documents(big...)}, "there are 20000 documents; one apply may have 10000"},
		"100 MB":             {`{"documents":["` + strings.Repeat("a", 100<<20) + `"]}`, "larger than 16384 KiB"},
		"binary junk":        {"\x00\x01\xff\xfe\x7fELF", "a syntax error at byte 1"},
		"junk in a document": {api.ApplyRequest{Documents: []json.RawMessage{json.RawMessage(`"\u0000\ufffd"`)}}, "must be a mapping"},
	} {
		before := w.revision()
		if err := w.do(root, "POST", "/api/apply", tc.in, nil); !api.HasCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %.200v", name, err)
		}
		if w.revision() != before {
			t.Errorf("%s: something was written", name)
		}
	}
}

func TestDiff(t *testing.T) {
	w, root := newRoot(t)
	const secret = `{'kind':'Secret','metadata':{'name':'s1'},'data':{'value':'hunter2'}}`
	w.mustApply(root, group1, secret)
	var out api.ApplyResponse
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Diff: true, DryRun: true, Documents: documents(
		group1, group("group-2", ""), strings.Replace(secret, "hunter2", "hunter3", 1))}, &out)
	has := func(i int) [2]bool { return [2]bool{len(out.Results[i].Before) > 0, len(out.Results[i].After) > 0} }
	if has(0) != [2]bool{} || has(1) != [2]bool{false, true} || has(2) != [2]bool{true, true} {
		t.Errorf("got %+v", out.Results)
	}
	if text := fmt.Sprintf("%s%s", out.Results[2].Before, out.Results[2].After); strings.Contains(text, "hunter") || strings.Contains(text, "sealed") || !strings.Contains(text, "sha256") {
		t.Errorf("the Secret is %s", text)
	}
	if string(out.Results[2].Before) == string(out.Results[2].After) {
		t.Error("the diff does not tell that the value changes")
	}
}

// TestReadBack writes what was read, of every kind: it changes nothing.
func TestReadBack(t *testing.T) {
	w, root := newRoot(t)
	w.mustSet(root, "one", group1, alice, service, `{'kind':'Namespace','metadata':{'name':'prod','labels':{'a1':'b'}}}`,
		`{'kind':'Secret','metadata':{'name':'s1'},'data':{'value':'hunter2'}}`, `{'kind':'Credential','metadata':{'name':'c1'},'spec':{'user':'alice'}}`,
		`{'kind':'Policy','metadata':{'name':'p1'},'spec':{'rules':[{'effect':'ALLOW','condition':{'matchAny':true}}]}}`)
	w.mustApply(root, `{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'session':{'human':{'clientDuration':{'hours':4}}},'gateway':{}}}`,
		mapping("prod", "db", ""), mapping("", "db", `,'tls':true,'idle_timeout_ms':'5000'`), tlsContext("prod", "db", "tls"), tlsSecret("prod", "tls"),
		`{'apiVersion':'getambassador.io/v1','kind':'ConsulResolver','metadata':{'name':'consul'},'spec':{'ambassador_id':'one'}}`)
	before := w.revision()
	n := 0
	for _, k := range api.Kinds() {
		var l api.List
		w.must(root, "GET", k.Path(""), nil, &l)
		for _, item := range l.Items {
			var h api.Head
			if err := json.Unmarshal(item, &h); err != nil {
				t.Fatal(err)
			}
			if k.ByHand && !(k.Name == api.KindService && h.Metadata.Name == api.APIService) {
				n++
				var out api.ApplyResponse
				w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: []json.RawMessage{item}}, &out)
				if out.Results[0].Action != api.ActionUnchanged {
					t.Errorf("apply of %s %s: %s", k.Name, h.Metadata.Name, out.Results[0].Action)
				}
			}
			if k.Updatable {
				n++
				var out api.WriteResponse
				w.must(root, "PUT", "/api/core/v1/"+k.Plural+"/"+h.Metadata.Name, string(item), &out)
				if out.Result.Action != api.ActionUnchanged {
					t.Errorf("put of %s %s: %s", k.Name, h.Metadata.Name, out.Result.Action)
				}
			}
			// Another uid is that of an Object of another cluster, or of before: what
			// the server knows is the server's.
			if k.Name == api.KindGroup {
				h.Metadata.UID = newUID()
				w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: []json.RawMessage{must(json.Marshal(h))}}, nil)
			}
		}
	}
	if n < 20 || w.revision() != before {
		t.Errorf("%d were written back, and the store went from %s to %s", n, before, w.revision())
	}
}

// TestKindsOfTheSystem is about what people change and do not make, and what they
// do neither.
func TestKindsOfTheSystem(t *testing.T) {
	w, root := newRoot(t)
	item := w.request(root, "GET", "/api/core/v1/sessions/"+root.session, nil).Body.String()
	for name, err := range map[string]error{
		"POST":  w.do(root, "POST", "/api/core/v1/sessions", item, nil),
		"apply": w.do(root, "POST", "/api/apply", api.ApplyRequest{Documents: []json.RawMessage{json.RawMessage(item)}}, nil),
	} {
		if got := problems(err); !api.HasCode(err, api.CodeInvalid) || len(got) != 1 || !strings.HasPrefix(got[0], "kind: must be a kind that people write: a Session is made by logging in") {
			t.Errorf("%s of a Session: %v", name, err)
		}
	}
	longer := strings.Replace(item, `"expiresAt":"2026-03-02T09:00:00Z"`, `"expiresAt":"2026-03-03T00:00:00Z"`, 1)
	if longer == item {
		t.Fatal(item)
	}
	w.must(root, "PUT", "/api/core/v1/sessions/"+root.session, strings.Replace(longer, `"name":"root"`, `"name":"alice"`, 1), nil)
	if s := get[*api.Session](w, api.KindSession, root.session); s.Spec.ExpiresAt.Day() != 3 || s.Status.UserRef.Name != api.RootUser || s.Status.KeySHA256 == "" {
		t.Errorf("the Session is %+v", s)
	}
	if err := w.do(root, "PUT", "/api/core/v1/sessions/root-zzzzzz", strings.Replace(item, root.session, "root-zzzzzz", 1), nil); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("a Session that is not there: %v", err)
	}
	for _, doc := range []string{`{"kind":"Region","metadata":{"name":"default"}}`, `{"kind":"Gateway","metadata":{"name":"gw-1"}}`} {
		kind := map[bool]string{true: "regions/default", false: "gateways/gw-1"}[strings.Contains(doc, "Region")]
		if err := w.do(root, "PUT", "/api/core/v1/"+kind, doc, nil); !api.HasCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), "made by the cluster") {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
