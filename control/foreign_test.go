package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"cardea/api"
	"cardea/store"
)

const ambassador = "/api/getambassador.io/v3alpha1/"

func mapping(namespace, name, more string) string {
	return `{'apiVersion':'getambassador.io/v2','kind':'TCPMapping','metadata':{'name':'` + name + `','namespace':'` + namespace + `'},
		'spec':{'port':5432,'service':'db:5432'` + more + `}}`
}

func tlsContext(namespace, name, secret string) string {
	return `{'apiVersion':'getambassador.io/v3alpha1','kind':'TLSContext','metadata':{'name':'` + name + `','namespace':'` + namespace + `'},
		'spec':{'hosts':['db.example.com'],'secret':'` + secret + `'}}`
}

func tlsSecret(namespace, name string) string {
	return `{'apiVersion':'v1','kind':'Secret','metadata':{'name':'` + name + `','namespace':'` + namespace + `'},'type':'kubernetes.io/tls',
		'data':{'tls.crt':'aHVudGVyMg=='},'stringData':{'tls.key':'hunter2'}}`
}

func foreign(group, kind, namespace, name string) api.Key {
	return api.Key{Group: group, Kind: kind, Namespace: namespace, Name: name}
}

// stored returns an Object as it is stored, nil if there is none.
func (w *world) stored(k api.Key) (o api.Object) {
	w.t.Helper()
	err := w.Store.View(w.t.Context(), func(r store.Reader) (err error) {
		o, err = stored(r, k)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// listed returns NAMESPACE/NAME of each Object of a list.
func listed(t testing.TB, l api.List) (names []string) {
	t.Helper()
	for _, raw := range l.Items {
		var h api.Head
		if err := json.Unmarshal(raw, &h); err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Metadata.Namespace+"/"+h.Metadata.Name)
	}
	return names
}

// TestForeign: one name in several namespaces and kinds is several Objects.
func TestForeign(t *testing.T) {
	w, root := newRoot(t)
	out := w.mustApply(root, mapping("prod", "db", ""), mapping("test", "db", ""), mapping("", "db", ""), tlsContext("prod", "db", "tls"))
	if want := (api.Result{Group: "getambassador.io", Kind: "TCPMapping", Namespace: "prod", Name: "db", Action: "created"}); fmt.Sprint(out.Results[0]) != fmt.Sprint(want) {
		t.Errorf("got %+v", out.Results[0])
	}
	before, records := w.revision(), len(w.journal.all())
	for _, r := range w.mustApply(root, mapping("prod", "db", ""), mapping("", "db", "")).Results {
		if r.Action != api.ActionUnchanged {
			t.Errorf("the same again: %+v", r)
		}
	}
	if w.revision() != before || len(w.journal.all()) != records {
		t.Error("an apply that changes nothing wrote something")
	}

	// Each version of the group has them, as they were written.
	for _, path := range []string{ambassador, "/api/getambassador.io/v2/", "/api/getambassador.io/v1/"} {
		var m api.TCPMapping
		w.must(root, "GET", path+"tcpmappings/db?namespace=prod", nil, &m)
		if m.APIVersion != "getambassador.io/v2" || m.Metadata.Namespace != "prod" || m.Metadata.UID == "" {
			t.Errorf("got %+v", m.Head)
		}
	}
	for path, want := range map[string]string{
		"/api/getambassador.io/v4/tcpmappings":        `there is no version "v4" of tcpmappings`,
		"/api/getambassador.io/v2/services":           `there is no kind "services"`,
		"/api/core/v1/tcpmappings":                    `there is no kind "tcpmappings"`,
		"/api/apps/v1/deployments":                    `there is no group "apps"`,
		ambassador + "tcpmappings/db?namespace=stage": `TCPMapping "stage/db" not found`,
		ambassador + "tlscontexts/db":                 `TLSContext "default/db" not found`,
	} {
		if err := w.do(root, "GET", path, nil, nil); !api.HasCode(err, api.CodeNotFound) || err.Error() != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := w.do(root, "GET", "/api/core/v1/users/root?namespace=prod", nil, nil); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("a namespace of a User: %v", err)
	}

	var l api.List
	w.must(root, "GET", ambassador+"tcpmappings", nil, &l)
	if got := listed(t, l); !slices.Equal(got, []string{"default/db", "prod/db", "test/db"}) {
		t.Errorf("listed %v", got)
	}
	w.must(root, "GET", ambassador+"tcpmappings?namespace=test", nil, &l)
	if got := listed(t, l); !slices.Equal(got, []string{"test/db"}) {
		t.Errorf("listed %v", got)
	}
	var pages []string
	for next := ""; ; {
		l = api.List{}
		w.must(root, "GET", ambassador+"tcpmappings?limit=1&after="+next, nil, &l)
		pages = append(pages, listed(t, l)...)
		if next = l.Next; next == "" {
			break
		}
	}
	if !slices.Equal(pages, []string{"default/db", "prod/db", "test/db"}) {
		t.Errorf("page by page: %v", pages)
	}

	w.must(root, "DELETE", ambassador+"tcpmappings/db?namespace=prod", nil, nil)
	if w.stored(foreign("getambassador.io", "TCPMapping", "prod", "db")) != nil || w.stored(foreign("getambassador.io", "TCPMapping", "test", "db")) == nil {
		t.Error("another one was deleted")
	}
	rec := w.journal.last(t)
	if f := rec.Entry.Common.Facts.API; f.Verb != "delete" || f.Kind != "TCPMapping" || f.Namespace != "prod" || f.Name != "db" || !strings.Contains(string(rec.Entry.Info.API.Before), `"namespace":"prod"`) {
		t.Errorf("the record is %+v, %s", f, rec.Entry.Info.API.Before)
	}
}

// TestForeignOne writes one Object at its path.
func TestForeignOne(t *testing.T) {
	w, root := newRoot(t)
	var out api.WriteResponse
	w.must(root, "POST", ambassador+"tcpmappings", documents(mapping("prod", "db", ""))[0], &out)
	var m api.TCPMapping
	if err := json.Unmarshal(out.Object, &m); err != nil || out.Result.Action != api.ActionCreated || out.Result.Namespace != "prod" {
		t.Fatalf("got %+v, %v", out, err)
	}
	if err := w.do(root, "POST", ambassador+"tcpmappings", documents(mapping("prod", "db", ""))[0], nil); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("created twice: %v", err)
	}
	at := ambassador + "tcpmappings/db"
	for name, tc := range map[string]struct{ path, body, want string }{
		"another namespace": {at + "?namespace=test", mapping("prod", "db", ""), `the path names the namespace "test" and the body "prod"`},
		"no namespace":      {at, mapping("prod", "db", ""), `the path names the namespace "default" and the body "prod"`},
		"another name":      {at + "?namespace=prod", mapping("prod", "pg", ""), `the path names "db" and the body "pg"`},
		"another group":     {"/api/kubernetes/v1/secrets/s1", `{'kind':'Secret','metadata':{'name':'s1'},'data':{'value':'x'}}`, `the path is that of a kind of kubernetes and the body of one of "core"`},
		"skipped in files":  {at + "?namespace=prod", `{'apiVersion':'getambassador.io/v2','kind':'Mapping','metadata':{'name':'db','namespace':'prod'}}`, `the path is that of a TCPMapping and the body is a "Mapping"`},
	} {
		if err := w.do(root, "PUT", tc.path, documents(tc.body)[0], nil); !api.HasCode(err, api.CodeInvalid) || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// What was changed since it was read is not overwritten.
	w.must(root, "PATCH", at+"?namespace=prod", `{"spec":{"weight":10,"idle_timeout_ms":"05"},"metadata":{"labels":{"any.label/of": "Theirs"}}}`, &out)
	stale := strings.Replace(mapping("prod", "db", ""), "'name':'db'", "'name':'db','resourceVersion':'"+m.Metadata.ResourceVersion+"'", 1)
	if err := w.do(root, "PUT", at+"?namespace=prod", documents(stale)[0], nil); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("a stale version: %v", err)
	}
	if err := w.do(root, "PATCH", at+"?namespace=prod", `{"metadata":{"resourceVersion":"`+m.Metadata.ResourceVersion+`"}}`, nil); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("a patch of a stale version: %v", err)
	}
	// That of Kubernetes says nothing here.
	theirs := strings.Replace(mapping("prod", "db", ""), "'name':'db'", "'name':'db','resourceVersion':'48213','generation':2", 1)
	w.must(root, "PUT", at+"?namespace=prod", documents(theirs)[0], &out)
	w.must(root, "PATCH", at+"?namespace=prod", `{"spec":{"tls":true,"weight":null}}`, &out)
	got := w.stored(foreign("getambassador.io", "TCPMapping", "prod", "db")).(*api.TCPMapping)
	if got.Spec.Weight != nil || got.Spec.TLS.Bool == nil || got.APIVersion != "getambassador.io/v2" || got.Metadata.UID != m.Metadata.UID {
		t.Errorf("stored is %+v", got)
	}
	w.must(root, "PATCH", at+"?namespace=prod", `{"metadata":null}`, &out)
	if err := w.do(root, "PATCH", at+"?namespace=prod", `{"status":{}}`, nil); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("a patch of the status: %v", err)
	}
	if err := w.do(root, "PATCH", ambassador+"tcpmappings/none?namespace=prod", `{}`, nil); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("a patch of what is not there: %v", err)
	}
}

// TestForeignSecret: the values of a Secret of Kubernetes are sealed, and nothing
// that leaves tells them.
func TestForeignSecret(t *testing.T) {
	w, root := newRoot(t)
	doc := tlsSecret("prod", "tls")
	w.mustApply(root, doc)
	at := foreign("kubernetes", "Secret", "prod", "tls")
	first := w.stored(at).(*api.KubernetesSecret)
	if len(first.Status.Sealed) == 0 || first.HasData() || !slices.Equal(first.Status.Keys, []string{"tls.crt", "tls.key"}) {
		t.Fatalf("stored is %+v", first)
	}
	if out := w.mustApply(root, doc); out.Results[0].Action != api.ActionUnchanged {
		t.Errorf("the same again: %+v", out.Results)
	}
	// As it is printed, and as a patch: without values, which stay.
	body := w.request(root, "GET", "/api/kubernetes/v1/secrets/tls?namespace=prod", nil).Body.String()
	var out api.WriteResponse
	w.must(root, "PUT", "/api/kubernetes/v1/secrets/tls?namespace=prod", body, &out)
	if out.Result.Action != api.ActionUnchanged {
		t.Errorf("written back: %+v", out.Result)
	}
	w.must(root, "PATCH", "/api/kubernetes/v1/secrets/tls?namespace=prod", `{"metadata":{"labels":{"a":"b"}}}`, &out)
	if s := w.stored(at).(*api.KubernetesSecret); s.Status.SHA256 != first.Status.SHA256 || len(s.Status.Sealed) == 0 || s.Type != "kubernetes.io/tls" {
		t.Errorf("patched: %+v", s)
	}
	if err := w.do(root, "PATCH", "/api/kubernetes/v1/secrets/tls?namespace=prod", `{"data":{"tls.crt":"aHVudGVyMg=="}}`, nil); !api.HasCode(err, api.CodeInvalid) || strings.Contains(err.Error(), "aHVudGVy") {
		t.Errorf("a patch of some values: %v", err)
	}
	var applied api.ApplyResponse
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Diff: true, Documents: documents(strings.Replace(doc, "'hunter2'", "'hunter3'", 1))}, &applied)
	if s := w.stored(at).(*api.KubernetesSecret); s.Status.SHA256 == first.Status.SHA256 || applied.Results[0].Action != api.ActionConfigured {
		t.Errorf("another value: %+v", s.Status)
	}
	left, _ := json.Marshal(applied)
	text := string(left)
	for _, path := range []string{"/api/kubernetes/v1/secrets", "/api/kubernetes/v1/secrets/tls?namespace=prod", "/api/logs"} {
		text += w.request(root, "GET", path, nil).Body.String()
	}
	for _, word := range []string{"hunter", "aHVudGVy", "sealed"} {
		if strings.Contains(text, word) {
			t.Errorf("%q is in what the API returns", word)
		}
	}
	if !strings.Contains(string(w.journal.last(t).Entry.Info.API.After), `"sha256"`) {
		t.Error("the record does not tell that the value changed")
	}

	// One without values is taken, and says so; what is immutable stays.
	applied = w.mustApply(root, `{'apiVersion':'v1','kind':'Secret','metadata':{'name':'empty'}}`, strings.Replace(tlsSecret("prod", "fixed"), "'type'", "'immutable':true,'type'", 1))
	if len(applied.Warnings) != 1 || !strings.Contains(applied.Warnings[0].String(), "has no values") {
		t.Errorf("got %v", applied.Warnings)
	}
	_, err := w.apply(root, strings.Replace(tlsSecret("prod", "fixed"), "'hunter2'", "'hunter3'", 1))
	if got := problems(err); len(got) != 1 || !strings.HasPrefix(got[0], "data: cannot be changed: the Secret is immutable") {
		t.Errorf("got %v", err)
	}
	// It is not the Secret of ours of that name.
	w.mustApply(root, `{'kind':'Secret','metadata':{'name':'tls'},'data':{'value':'ours'}}`)
	w.must(root, "DELETE", "/api/kubernetes/v1/secrets/tls?namespace=prod", nil, nil)
	if !w.exists(api.KindSecret, "tls") {
		t.Error("the other one was deleted")
	}
}

// TestForeignSet: a set has Objects of all kinds, and prunes those of each.
func TestForeignSet(t *testing.T) {
	w, root := newRoot(t)
	w.mustSet(root, "one", group1, mapping("prod", "db", ""), mapping("test", "db", ""), tlsContext("prod", "db", "tls"), tlsSecret("prod", "tls"))
	w.mustApply(root, mapping("", "db", ""))
	out := w.mustSet(root, "one", mapping("prod", "db", ""), mapping("prod", "pg", ""))
	got := actions(out)
	slices.Sort(got[2:])
	if want := []string{"unchanged db", "created pg", "deleted db", "deleted db", "deleted group-1", "deleted tls"}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	var l api.List
	w.must(root, "GET", ambassador+"tcpmappings", nil, &l)
	if got := listed(t, l); !slices.Equal(got, []string{"default/db", "prod/db", "prod/pg"}) {
		t.Errorf("left is %v", got)
	}
}

// TestForeignRefused: what is wrong with a document refuses all of them; what
// depends on others does not.
func TestForeignRefused(t *testing.T) {
	w, root := newRoot(t)
	before := w.revision()
	_, err := w.apply(root, group1, mapping("prod", "db", `,'weigt':1`), mapping("prod", "db", ""))
	want := []string{`spec.weigt: unknown field, found "weigt"`, `metadata.name: must not be there twice: document 2 of the request is this TCPMapping too, found "prod/db"`}
	if got := problems(err); !slices.EqualFunc(got, want, strings.HasPrefix) || w.revision() != before {
		t.Errorf("got %q of %v", got, err)
	}
	w.mustApply(root, mapping("prod", "db", `,'host':'db.example.com','tls':'no-such-context'`), tlsContext("prod", "other", "no-such-secret"))
}

// TestForeignTroubles: an apply tells at once what is not in force.
func TestForeignTroubles(t *testing.T) {
	w, root := newRoot(t)
	w.Live = func(o api.Object) api.Object {
		m, ok := o.(*api.TCPMapping)
		if !ok {
			return o
		}
		c := api.Clone(m)
		c.Status.Set(api.ConditionAccepted, m.Metadata.Name == "db", "CONFLICT", "TCPMapping/prod/db has the same port", w.Now())
		c.Status.Set(api.ConditionResolved, m.Metadata.Name != "db", "NO_SECRET", "Secret/prod/tls is not there", w.Now())
		c.Status.Set(api.ConditionUpstreamVerified, false, "", "self-signed", w.Now())
		return c
	}
	w.handler = w.Handler()
	out := w.mustApply(root, group1, mapping("prod", "db", ""), mapping("prod", "pg", ""))
	var got []string
	for _, p := range out.Warnings {
		got = append(got, fmt.Sprintf("%d %s", p.Document, p))
	}
	if !slices.Equal(got, []string{"1 metadata.name: is not complete: Secret/prod/tls is not there", "2 metadata.name: is not in force: TCPMapping/prod/db has the same port"}) {
		t.Errorf("got %q", got)
	}
	body := w.request(root, "GET", ambassador+"tcpmappings/pg?namespace=prod", nil).Body.String()
	if !strings.Contains(body, `"CONFLICT"`) {
		t.Errorf("got %s", body)
	}
	var back api.WriteResponse
	w.must(root, "PUT", ambassador+"tcpmappings/pg?namespace=prod", body, &back)
	if m := w.stored(foreign("getambassador.io", "TCPMapping", "prod", "pg")).(*api.TCPMapping); back.Result.Action != api.ActionUnchanged || m.Status.Conditions != nil {
		t.Errorf("the status is stored: %+v", m.Status)
	}

	// Of a thousand nobody reads more than a hundred.
	var docs []string
	for i := range 1000 {
		docs = append(docs, mapping("prod", fmt.Sprintf("m%d", i), ""))
	}
	if out = w.mustApply(root, docs...); len(out.Warnings) != maxProblems+1 {
		t.Errorf("got %d warnings", len(out.Warnings))
	}
}

// TestForeignWatch: a watch tells of one kind, with namespaces.
func TestForeignWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		w.mustApply(root, mapping("prod", "db", ""), onAPI("prod", "a.kind == ^TCPMapping^ && (a.namespace == ^prod^ && a.name != ^secret^)"))
		bob := w.user(root, "bob", "prod")
		from := w.revision()
		all, prod := w.watch(root, ambassador+"tcpmappings?watch=true&revision="+from.String()), w.watch(root, ambassador+"tcpmappings?watch=true&namespace=prod")
		bobs := w.watch(bob, ambassador+"tcpmappings?watch=true")
		synctest.Wait()
		w.mustApply(root, mapping("test", "db", ""), mapping("prod", "db", `,'weight':1`), mapping("prod", "secret", ""), tlsContext("prod", "db", "x"))
		all.want("PUT db", "PUT db", "PUT secret")
		prod.want("PUT db", "PUT secret")
		bobs.want("PUT db")
		w.must(root, "DELETE", ambassador+"tcpmappings/db?namespace=prod", nil, nil)
		all.want("DELETED db")
		prod.want("DELETED db")
		bobs.want("DELETED db")
		for _, s := range []*watching{all, prod, bobs} {
			s.stop()
			s.over()
		}
	})
}

// TestForeignRights: what it takes to write Objects of Ambassador's, and to name
// Secrets in them.
func TestForeignRights(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, tlsSecret("prod", "tls"), tlsSecret("test", "tls"), tlsSecret("default", "std"), tlsSecret("", "none"),
		`{'kind':'Secret','metadata':{'name':'own'},'data':{'value':'x'}}`,
		onAPI("tenant", "a.namespace == ^test^ || a.kind == ^KubernetesSecret^ && a.name == ^std^"),
		onAPI("writer", "a.verb in [^create^, ^update^]"))
	bob, carol := w.user(root, "bob", "tenant"), w.user(root, "carol", "writer")

	// A tenant has his namespace, and what is in it.
	w.mustApply(bob, mapping("test", "db", `,'tls':'ctx'`), tlsContext("test", "ctx", "tls"), tlsSecret("test", "more"))
	_, err := w.apply(bob, mapping("prod", "db", ""))
	if !api.HasCode(err, api.CodePermissionDenied) || !strings.Contains(err.Error(), "write TCPMapping prod/db") {
		t.Errorf("another namespace: %v", err)
	}
	_, err = w.apply(bob, tlsContext("test", "ctx", "tls.prod"))
	needs(t, err, "use KubernetesSecret prod/tls", "/spec/secret")
	_, err = w.apply(bob, tlsContext("test", "ctx", "none.prod")) // it may come
	needs(t, err, "use KubernetesSecret prod/none", "/spec/secret")
	_, err = w.apply(bob, tlsContext("test", "ctx", "own"))
	needs(t, err, "use Secret own", "/spec/secret")
	_, err = w.apply(bob, strings.Replace(tlsContext("test", "ctx", "tls"), "'hosts'", "'ca_secret':'tls.prod','hosts'", 1))
	needs(t, err, "use KubernetesSecret prod/tls", "/spec/ca_secret")
	w.mustApply(bob, tlsContext("test", "ctx", "std.default"))
	const host = `{'apiVersion':'getambassador.io/v2','kind':'Host','metadata':{'name':'web','namespace':'test'},'spec':{'tlsSecret':{'name':'tls'},'tls':{'caSecret':'tls'}}}`
	w.mustApply(bob, host)
	_, err = w.apply(bob, strings.Replace(host, "'name':'tls'", "'name':'tls','namespace':'prod'", 1))
	needs(t, err, "use KubernetesSecret prod/tls", "/spec/tlsSecret")
	_, err = w.apply(bob, strings.Replace(host, "'caSecret':'tls'", "'caSecret':'tls.prod'", 1))
	needs(t, err, "use KubernetesSecret prod/tls", "/spec/tls/ca_secret")
	// By the context of another he would show its certificate to whom he likes.
	w.mustApply(root, tlsContext("prod", "theirs", "tls"))
	_, err = w.apply(bob, mapping("test", "db", `,'tls':'theirs'`))
	needs(t, err, "use KubernetesSecret prod/tls", "/spec/tls")
	w.must(bob, "DELETE", ambassador+"tcpmappings/db?namespace=test", nil, nil)

	// Who may write all kinds may not open ports, nor say where Secrets go.
	_, err = w.apply(carol, mapping("", "db", ""))
	needs(t, err, "publish TCPMapping default/db", "/spec/port")
	_, err = w.apply(carol, tlsContext("", "ctx", "std"))
	needs(t, err, "use KubernetesSecret default/std", "/spec/secret")
	_, err = w.apply(carol, tlsContext("default", "ctx", "none"))
	needs(t, err, "use KubernetesSecret default/none", "/spec/secret")
	w.mustApply(root, mapping("", "db", ""))
	_, err = w.apply(carol, mapping("", "db", `,'weight':1`))
	needs(t, err, "publish TCPMapping default/db", "/spec/port")
	_, err = w.apply(carol, strings.Replace(mapping("", "db", ""), "'name':'db'", "'name':'db','annotations':{'cardea/tls':'passthrough'}", 1))
	needs(t, err, "publish TCPMapping default/db", "/spec/port")
	w.mustApply(carol, strings.Replace(mapping("", "db", ""), "'name':'db'", "'name':'db','labels':{'a':'b'}", 1), tlsSecret("prod", "new"))

	const public = `{'kind':'Service','metadata':{'name':'web'},'spec':{'mode':'TCP','isPublic':true,'isTLS':true,'public':{'hosts':['a.example.com'],'certificate':{'fromSecret':'own'}},
		'config':{'upstream':{'url':'tcp://a:1'}}}}`
	_, err = w.apply(carol, public)
	needs(t, err, "use Secret own", certificatePointer)
	w.mustApply(root, onAPI("user", "a.verb in [^create^, ^update^, ^use^]"))
	dave := w.user(root, "dave", "user")
	_, err = w.apply(dave, public)
	needs(t, err, "publish Service web.default", "/spec/isPublic")
	w.mustApply(root, public)
	if err := w.do(root, "DELETE", "/api/core/v1/secrets/own", nil, nil); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("the certificate of a Service: %v", err)
	}
	_, err = w.apply(root, strings.Replace(public, "'own'", "'none'", 1))
	if got := problems(err); len(got) != 1 || !strings.HasPrefix(got[0], "spec.public.certificate.fromSecret: must name a Secret that exists") {
		t.Errorf("got %v", err)
	}
}

// TestSharedPort: Services that take a part of a port share it.
func TestSharedPort(t *testing.T) {
	w, root := newRoot(t)
	public := func(name, more string) string {
		return `{'kind':'Service','metadata':{'name':'` + name + `'},'spec':{'mode':'TCP','isPublic':true,'isTLS':true,'port':443,'public':{` + more + `},'config':{'upstream':{'url':'tcp://a:1'}}}}`
	}
	raw := func(name string) string {
		return strings.Replace(public(name, ""), "'isTLS':true", "'isAnonymous':true", 1)
	}
	w.mustApply(root, raw("raw"), public("all", ""), public("every", "'hosts':['*']"), public("aa", "'hosts':['a.example.com']"), public("bb", "'hosts':['b.example.com']"), public("cc", "'sources':['10.0.0.0/8']"),
		public("other", "'address':'127.0.0.1'"))
	_, err := w.apply(root, raw("raw2"))
	if got := problems(err); len(got) != 1 || !strings.HasPrefix(got[0], `spec.port: must be a port that no other public Service has, found "443"`) {
		t.Errorf("got %v", err)
	}
}

// TestRoute: what is asked gets to the table, and nothing that is no question.
func TestRoute(t *testing.T) {
	w, root := newRoot(t)
	if err := w.do(root, "GET", "/api/route?port=1", nil, nil); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("without a table: %v", err)
	}
	var asked api.RouteQuestion
	w.Route = func(q api.RouteQuestion) api.RouteAnswer {
		asked = q
		return api.RouteAnswer{Listener: "*:5432", Open: true, Steps: []string{"one"}}
	}
	w.handler = w.Handler()
	var got api.RouteAnswer
	w.must(root, "GET", "/api/route?port=5432&address=%3A%3A1&sni=db.example.com&alpn=h2,http/1.1&from=10.0.0.1", nil, &got)
	want := api.RouteQuestion{Port: 5432, Address: "::1", SNI: "db.example.com", ALPN: []string{"h2", "http/1.1"}, From: "10.0.0.1"}
	if fmt.Sprint(asked) != fmt.Sprint(want) || !got.Open || got.Listener != "*:5432" {
		t.Errorf("asked %+v, got %+v", asked, got)
	}
	w.must(root, "GET", "/api/route?port=1&notls=true", nil, &got)
	if !asked.NoTLS {
		t.Errorf("asked %+v", asked)
	}
	for _, q := range []string{"", "?port=0", "?port=65536", "?port=x", "?port=1&from=me", "?port=1&address=1", "?port=1&notls=maybe", "?port=1&notls=true&sni=a", "?port=1&sni=" + strings.Repeat("a", 300), "?port=1&x=y"} {
		if err := w.do(root, "GET", "/api/route"+q, nil, nil); !api.HasCode(err, api.CodeInvalid) {
			t.Errorf("%s: %v", q, err)
		}
	}
	w.mustApply(root, onAPI("router", "a.verb == ^route^ && a.kind == ^TCPMapping^"))
	router, bob := w.user(root, "router", "router"), w.user(root, "bob")
	w.must(router, "GET", "/api/route?port=1", nil, nil)
	if res := w.request(bob, "GET", "/api/route?port=1", nil); res.Code != http.StatusForbidden {
		t.Errorf("without a right: %d", res.Code)
	}
	if res := w.request(nil, "GET", "/api/route?port=1", nil); res.Code != http.StatusUnauthorized {
		t.Errorf("a stranger: %d", res.Code)
	}
}

// TestForeignLoad: what the owner brings with the start is all kinds.
func TestForeignLoad(t *testing.T) {
	w, _ := newWorld(t)
	if err := w.Load(t.Context(), documents(mapping("prod", "db", `,'tls':'ctx'`), tlsContext("prod", "ctx", "tls"), tlsSecret("prod", "tls"))); err != nil {
		t.Fatal(err)
	}
	if o := w.stored(foreign("getambassador.io", "TCPMapping", "prod", "db")); o == nil || o.Header().Metadata.UID == "" {
		t.Errorf("got %v", o)
	}
	s := w.stored(foreign("kubernetes", "Secret", "prod", "tls")).(*api.KubernetesSecret)
	if s.HasData() || len(s.Status.Sealed) == 0 {
		t.Error("the Secret is not sealed")
	}
}

// TestForeignNamespace: no namespace is that of Ambassador, wherever an Object is
// written or named.
func TestForeignNamespace(t *testing.T) {
	w, token := newWorld(t)
	w.AmbassadorNamespace = "edge"
	if err := w.Load(t.Context(), documents(mapping("", "loaded", ""), tlsSecret("", "tls"))); err != nil {
		t.Fatal(err)
	}
	w.handler = w.Handler()
	root := w.login(token)
	at := func(name string) api.Key { return foreign("getambassador.io", "TCPMapping", "edge", name) }
	stands := func(name string) *api.TCPMapping {
		t.Helper()
		o := w.stored(at(name))
		if o == nil || w.stored(foreign("getambassador.io", "TCPMapping", "", name)) != nil {
			t.Fatalf("%s is not stored in the namespace edge alone", name)
		}
		return o.(*api.TCPMapping)
	}
	stands("loaded")
	if w.stored(foreign("kubernetes", "Secret", "edge", "tls")) == nil {
		t.Error("the Secret has no namespace")
	}

	// Both spellings are one Object.
	w.mustApply(root, mapping("", "db", ""))
	stands("db")
	out := w.mustApply(root, mapping("edge", "db", `,'weight':5`))
	if r := out.Results[0]; r.Action != api.ActionConfigured || r.Namespace != "edge" || *stands("db").Spec.Weight != 5 {
		t.Errorf("got %+v", r)
	}
	var m api.TCPMapping
	for _, q := range []string{"", "?namespace=edge"} {
		w.must(root, "GET", ambassador+"tcpmappings/db"+q, nil, &m)
		if m.Metadata.Namespace != "edge" {
			t.Errorf("%q: %+v", q, m.Head)
		}
	}
	w.must(root, "PUT", ambassador+"tcpmappings/db", documents(mapping("", "db", `,'weight':6`))[0], nil)
	w.must(root, "PUT", ambassador+"tcpmappings/db?namespace=edge", documents(mapping("", "db", `,'weight':7`))[0], nil)
	w.must(root, "PATCH", ambassador+"tcpmappings/db", `{"spec":{"address":"127.0.0.1"}}`, nil)
	if got := stands("db").Spec; *got.Weight != 7 || got.Address != "127.0.0.1" {
		t.Errorf("got %+v", got)
	}
	if err := w.do(root, "POST", ambassador+"tcpmappings", documents(mapping("", "db", ""))[0], nil); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), `"edge/db" exists`) {
		t.Errorf("created twice: %v", err)
	}
	if err := w.do(root, "PUT", ambassador+"tcpmappings/db?namespace=prod", documents(mapping("", "db", ""))[0], nil); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("another namespace: %v", err)
	}
	w.must(root, "DELETE", ambassador+"tcpmappings/db", nil, nil)
	if w.stored(at("db")) != nil {
		t.Error("it is not deleted")
	}

	// In one request they are told of.
	out = w.mustApply(root, mapping("", "db", ""), group1, mapping("edge", "db", ""))
	if len(out.Results) != 2 || len(out.Warnings) != 1 || out.Warnings[0].Document != 2 ||
		!strings.HasPrefix(out.Warnings[0].String(), "metadata.name: the document is skipped: it is equal to document 1 of the request") {
		t.Errorf("equal: %+v", out)
	}
	_, err := w.apply(root, mapping("", "db", ""), mapping("edge", "db", `,'weight':1`))
	if got := problems(err); len(got) != 1 || !strings.HasPrefix(got[0], "metadata.name: must not be there twice: document 1 of the request is this TCPMapping too") {
		t.Errorf("different: %v", err)
	}
}

// TestHostRights: who shows a certificate by the host of a mapping uses its Secret.
func TestHostRights(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, onAPI("writer", "a.verb in [^create^, ^update^, ^publish^] || a.verb == ^use^ && a.name == ^mine^"))
	bob := w.user(root, "bob", "writer")
	context := func(name, host, secret string) string {
		return strings.Replace(tlsContext("prod", name, secret), "db.example.com", host, 1)
	}
	host := func(spec string) string {
		return `{'apiVersion':'getambassador.io/v2','kind':'Host','metadata':{'name':'web','namespace':'prod'},'spec':{` + spec + `}}`
	}
	w.mustApply(root, tlsSecret("prod", "exact"), tlsSecret("prod", "wild"), tlsSecret("prod", "mine"),
		context("exact", "Db.Example.com.", "exact"), context("wild", "*.corp.test", "wild"), context("mine", "mine.test", "mine"),
		host(`'hostname':'*.shop.test','tlsSecret':{'name':'shop'}`))
	try := func(host string) error {
		_, err := w.apply(bob, mapping("test", "db", `,'host':'`+host+`'`))
		return err
	}
	for host, secret := range map[string]string{"db.example.com": "exact", "a.b.corp.test": "wild", "*.corp.test": "wild", "*.b.corp.test": "wild", "*.example.com": "exact", "web.shop.test": "shop"} {
		err := try(host)
		needs(t, err, "use KubernetesSecret prod/"+secret, "/spec/host")
	}
	for _, host := range []string{"mine.test", "other.example.com", "corp.test", "sub.db.example.com"} {
		if err := try(host); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	needs(t, try("*"), "use KubernetesSecret prod/exact", "/spec/host")

	// Left to the service, no certificate is shown; it is when that is taken back.
	passthrough := strings.Replace(mapping("test", "through", `,'host':'db.example.com'`), "'name'", "'annotations':{'cardea/tls':' Passthrough'},'name'", 1)
	w.mustApply(bob, passthrough)
	_, err := w.apply(bob, mapping("test", "through", `,'host':'db.example.com'`))
	needs(t, err, "use KubernetesSecret prod/exact", "/spec/host")

	// A Host for every name, and one by the TLSContext that it names.
	w.mustApply(root, host(`'tlsContext':{'name':'exact'}`))
	needs(t, try("nobody.test"), "use KubernetesSecret prod/exact", "/spec/host")
	_, err = w.apply(bob, strings.Replace(host(`'hostname':'a.test','tlsContext':{'name':'exact','namespace':'prod'}`), "'web','namespace':'prod'", "'web','namespace':'test'", 1))
	needs(t, err, "use KubernetesSecret prod/exact", "/spec/tlsContext")
	// What is as before asks nothing.
	w.mustApply(root, mapping("test", "web", `,'host':'nobody.test'`))
	w.mustApply(bob, strings.Replace(mapping("test", "web", `,'host':'nobody.test'`), "'name'", "'labels':{'a':'b'},'name'", 1))
}

// TestSecretKinds: a rule about Secrets of ours says nothing of those of Kubernetes.
func TestSecretKinds(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, tlsSecret("default", "tls"), `{'kind':'Secret','metadata':{'name':'tls'},'data':{'value':'ours'}}`,
		onAPI("ours", "a.kind == ^Secret^ || a.kind in [^TLSContext^]"), onAPI("theirs", "a.kind == ^KubernetesSecret^ || a.kind in [^TLSContext^]"))
	const our, their = "/api/core/v1/secrets", "/api/kubernetes/v1/secrets"
	ours, theirs := w.user(root, "ours", "ours"), w.user(root, "theirs", "theirs")
	for _, tc := range []struct {
		who     *person
		may     string
		mayNot  string
		another string
	}{{ours, our, their, tlsSecret("default", "more")}, {theirs, their, our, `{'kind':'Secret','metadata':{'name':'more'},'data':{'value':'x'}}`}} {
		for _, path := range []string{"", "/tls"} {
			w.must(tc.who, "GET", tc.may+path, nil, nil)
			if err := w.do(tc.who, "GET", tc.mayNot+path, nil, nil); !api.HasCode(err, api.CodePermissionDenied) {
				t.Errorf("get %s: %v", tc.mayNot+path, err)
			}
		}
		if err := w.do(tc.who, "GET", tc.mayNot+"?watch=true", nil, nil); !api.HasCode(err, api.CodePermissionDenied) {
			t.Errorf("watch %s: %v", tc.mayNot, err)
		}
		if err := w.do(tc.who, "DELETE", tc.mayNot+"/tls", nil, nil); !api.HasCode(err, api.CodePermissionDenied) {
			t.Errorf("delete %s: %v", tc.mayNot, err)
		}
		if _, err := w.apply(tc.who, tc.another); !api.HasCode(err, api.CodePermissionDenied) {
			t.Errorf("create: %v", err)
		}
	}
	// A name that can stand for both takes both.
	_, err := w.apply(ours, tlsContext("default", "ctx", "tls"))
	needs(t, err, "use KubernetesSecret default/tls", "/spec/secret")
	_, err = w.apply(theirs, tlsContext("default", "ctx", "tls"))
	needs(t, err, "use Secret tls", "/spec/secret")
}

// TestTrustedProxies: nobody is not the same as nothing said.
func TestTrustedProxies(t *testing.T) {
	w, root := newRoot(t)
	config := func(routing string) string {
		return `{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'routing':{` + routing + `}}}`
	}
	proxies := func() []string {
		return get[*api.ClusterConfig](w, api.KindClusterConfig, "default").Spec.Routing.TrustedProxies
	}
	w.mustApply(root, config(`'trustedProxies':[]`))
	if got := proxies(); got == nil || len(got) != 0 {
		t.Errorf("nobody: %#v", got)
	}
	body := w.request(root, "GET", "/api/core/v1/clusterconfigs/default", nil).Body.String()
	if !strings.Contains(body, `"trustedProxies":[]`) {
		t.Errorf("got %s", body)
	}
	var out api.WriteResponse
	if w.must(root, "PUT", "/api/core/v1/clusterconfigs/default", body, &out); out.Result.Action != api.ActionUnchanged {
		t.Errorf("written back: %+v", out.Result)
	}
	w.must(root, "PATCH", "/api/core/v1/clusterconfigs/default", `{"spec":{"attrs":{"a":1}}}`, nil)
	if proxies() == nil {
		t.Error("a patch of something else took it away")
	}
	if w.mustApply(root, config("")); proxies() != nil {
		t.Error("nothing said is not nobody")
	}
}
