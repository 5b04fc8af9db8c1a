package manifest

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"cardea/api"
)

// TestForeign: of what kubectl prints there goes over the wire what its user
// wrote.
func TestForeign(t *testing.T) {
	docs, _ := Decode("a.yaml", read(t, "testdata/foreign.yaml"))
	const want = `{"apiVersion":"getambassador.io/v2","kind":"TCPMapping","metadata":{"name":"as-kubectl-prints-it","namespace":"prod","uid":"0b5e6d0a-56a8-4f0c-a7a4-4d8c3c4a7c11"},` +
		`"spec":{"port":5432,"service":"db:5432","idle_timeout_ms":5000,"labels":{"any":[1,{"of":"them"}]}}}`
	if got := string(docs[0].JSON); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := docs[0].Object.Header().Key(), (api.Key{Group: api.GroupAmbassador, Kind: "TCPMapping", Namespace: "prod", Name: "as-kubectl-prints-it"}); got != want {
		t.Errorf("got %+v", got)
	}

	// Our own number is kept: whoever read it wants to be told of a conflict.
	o, problems := DecodeJSON(0, []byte(`{"apiVersion":"getambassador.io/v2","kind":"Host","metadata":{"name":"a","resourceVersion":"0190163d-8694-739b-aea5-966c26f8ad90"}}`))
	if problems != nil || o.Header().Metadata.ResourceVersion == "" {
		t.Errorf("got %v of %+v", problems, o)
	}
	// What may be skipped in a file is an error over the wire.
	for raw, want := range map[string]string{
		`{"apiVersion":"getambassador.io/v2","kind":"Mapping"}`: "kind: must be one that there is use for: a Mapping is about HTTP",
		`{"apiVersion":"apps/v1","kind":"Deployment"}`:          "apiVersion: must be one that there is use for: kinds of the group apps have no meaning here",
		`{"apiVersion":"v1","kind":"List","items":[]}`:          "kind: must be one that there is use for: it is a list, and each item is a document",
	} {
		o, problems := DecodeJSON(0, []byte(raw))
		if o != nil || len(problems) != 1 || problems[0].Warning || problems[0].String() != want {
			t.Errorf("%s: got %v, %v", raw, o, problems)
		}
	}
}

// TestSkipped: what is skipped has no Object, and is no error.
func TestSkipped(t *testing.T) {
	docs, found := Decode("a.yaml", read(t, "testdata/foreign-skipped.yaml"))
	if found.Err() != nil || len(docs) != len(found) {
		t.Errorf("got %v of %d documents", found, len(docs))
	}
	for i, d := range docs {
		if d.Object != nil || d.JSON != nil {
			t.Errorf("document %d is not skipped", i)
		}
	}
}

// TestList: the items of a list are documents, as YAML and as JSON.
func TestList(t *testing.T) {
	const list = `{"apiVersion": "v1", "kind": "List", "items": [
		{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "one"}, "data": {"a": "aGVsbG8="}},
		{"apiVersion": "getambassador.io/v2", "kind": "TCPMapping", "metadata": {"name": "two"}, "spec": {"port": 1, "service": "a"}}]}`
	docs, found := Decode("a.json", []byte(list))
	var got []string
	for _, d := range docs {
		got = append(got, d.Object.Header().Key().String())
	}
	if found != nil || !slices.Equal(got, []string{"Secret/one", "TCPMapping/two"}) {
		t.Errorf("got %v, %v", got, found)
	}
	if at := Locate(docs, api.Problem{Document: 1, Pointer: "/spec/port", Rule: "is wrong"}); at.Line != 3 {
		t.Errorf("got %s", at)
	}
}

// TestForeignTwice: of equal documents in two files the second is skipped, others
// are an error with both places.
func TestForeignTwice(t *testing.T) {
	const text = "apiVersion: getambassador.io/v2\nkind: TLSContext\nmetadata: {name: ctx}\nspec: {hosts: [a]}\n"
	one, err := Decode("one.yaml", []byte(text))
	two, err2 := Decode("two.yaml", []byte("# the same\n"+text))
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	all := append(one, two...)
	const want = `two.yaml:4:18: warning: metadata.name: the document is skipped: it is equal to that of this TLSContext on line 3 of one.yaml, found "ctx"`
	found := CheckDuplicates(all)
	if found.Error() != want || all[0].Object == nil || all[1].Object != nil || all[1].JSON != nil {
		t.Errorf("got %v, %+v", found, all)
	}
	two, _ = Decode("two.yaml", []byte(strings.Replace(text, "[a]", "[b]", 1)))
	found = CheckDuplicates(append(one, two...))
	if found.Err() == nil || !strings.Contains(found.Error(), "two.yaml:3:18: error: metadata.name: must not be there twice: the TLSContext is on line 3 of one.yaml already") {
		t.Errorf("got %v", found)
	}
}

// TestEncodeForeign: what is printed of a Secret, without its values, can be
// applied again, and a mapping keeps the version that it was written in.
func TestEncodeForeign(t *testing.T) {
	docs, found := Decode("a.yaml", []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: prod}\ntype: Opaque\nstringData: {a: hunter2}\n---\n"+
		"apiVersion: getambassador.io/v1\nkind: TCPMapping\nmetadata: {name: m}\nspec: {port: 1, service: a, tls: true, idle_timeout_ms: \"05\"}\n"))
	if found != nil {
		t.Fatal(found)
	}
	var out bytes.Buffer
	if err := Encode(&out, api.Redact(docs[0].Object), docs[1].Object); err != nil {
		t.Fatal(err)
	}
	const want = `apiVersion: v1
kind: Secret
metadata:
  name: s
  namespace: prod
type: Opaque
---
apiVersion: getambassador.io/v1
kind: TCPMapping
metadata:
  name: m
spec:
  port: 1
  service: a
  tls: true
  idle_timeout_ms: '05'
`
	if out.String() != want {
		t.Errorf("got:\n%s", &out)
	}
	if again, found := Decode("b.yaml", out.Bytes()); found != nil || again[0].JSON == nil {
		t.Errorf("read again: %v", found)
	}
}

// TestEmptyList: an empty list where it means something stays one, read and written.
func TestEmptyList(t *testing.T) {
	docs, found := Decode("a.yaml", []byte("kind: ClusterConfig\nmetadata: {name: default}\nspec: {routing: {trustedProxies: []}}\n"))
	if found != nil || !strings.Contains(string(docs[0].JSON), `"trustedProxies":[]`) {
		t.Fatalf("got %v, %s", found, docs[0].JSON)
	}
	var out bytes.Buffer
	if err := Encode(&out, docs[0].Object); err != nil || !strings.Contains(out.String(), "trustedProxies: []") {
		t.Errorf("got %v:\n%s", err, &out)
	}
	docs, _ = Decode("a.yaml", []byte("kind: ClusterConfig\nmetadata: {name: default}\nspec: {routing: {trustedProxies: null}}\n"))
	if docs[0].Object.(*api.ClusterConfig).Spec.Routing.TrustedProxies != nil {
		t.Error("null is a list")
	}
}
