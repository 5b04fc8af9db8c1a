package manifest

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cardea/api"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGolden holds the exact words and places of every kind of bad input, and
// that good input has none.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			_, found := Decode(name, read(t, file))
			var got strings.Builder
			for _, d := range found {
				fmt.Fprintln(&got, d)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := string(read(t, golden)); got.String() != want {
				t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
			}
		})
	}
}

// TestExamples reads the documents that users start from.
func TestExamples(t *testing.T) {
	for file, want := range map[string][]string{
		"../examples/tcp/services.yaml":        {"Service/nats.default", "Service/example-svc.default", "Service/ssh1.default"},
		"../examples/resources/resources.yaml": {"User/user-1", "Group/group-1", "Namespace/ns1"},
	} {
		docs, found := Decode(file, read(t, file))
		if len(found) > 0 {
			t.Error(found)
		}
		var got []string
		for _, d := range docs {
			got = append(got, d.Object.Header().Key().String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", file, got, want)
		}
	}
	docs, _ := Decode("services.yaml", read(t, "../examples/tcp/services.yaml"))
	ssh := docs[2].Object.(*api.Service)
	if r := ssh.Spec.DynamicConfig.Rules[1]; r.ConfigName != "host-2" || r.Condition.Match != `"dev" in ctx.user.spec.groups` {
		t.Errorf("got rule %+v", r)
	}
	if got := ssh.Config("host-2").Upstream.URL; got != "tcp://host-2:9002" {
		t.Errorf("got upstream %s", got)
	}
}

// TestJSON: what goes over the wire is what was written, without defaults, and
// the server reads the same Object from it.
func TestJSON(t *testing.T) {
	docs, found := Decode("a.yaml", []byte("kind: Service\nmetadata: {name: 7up}\nspec: {mode: TCP, config: {upstream: {url: tcp://a:1}}}\n"))
	if docs[0].JSON != nil || found.Err() == nil {
		t.Errorf("got JSON %s and error %v of a name that is not valid", docs[0].JSON, found.Err())
	}
	docs, found = Decode("a.yaml", []byte("kind: Service\nmetadata: {name: no}\nspec: {mode: TCP, config: {upstream: {url: tcp://a:1}}}\n"))
	const want = `{"kind":"Service","metadata":{"name":"no"},"spec":{"mode":"TCP","config":{"upstream":{"url":"tcp://a:1"}}}}`
	if string(docs[0].JSON) != want || found.Err() != nil {
		t.Errorf("got %s, %v\nwant %s", docs[0].JSON, found.Err(), want)
	}
	if got := docs[0].Object.Header().Metadata.Name; got != "no.default" {
		t.Errorf("got name %s", got)
	}

	docs, found = Decode("all", read(t, "testdata/all-kinds.yaml"))
	if found != nil {
		t.Fatal(found)
	}
	for _, d := range docs {
		obj, problems := DecodeJSON(0, d.JSON)
		if len(problems) > 0 || toJSON(t, obj) != toJSON(t, d.Object) {
			t.Errorf("got %s, %v\nwant %s", toJSON(t, obj), problems, toJSON(t, d.Object))
		}
	}
}

func TestDecodeJSON(t *testing.T) {
	for _, c := range []struct{ raw, want string }{
		{`{"kind":"Group","metadata":{"name":"sea"}}`, ""},
		{`{"kind":"Group","metadata":{"name":"sea","displayName":"\ud83d\ude00"},"spec":null}`, ""},
		{`{"kind":"Group","metadata":{"name":"sea","nmae":1}}`, `metadata.nmae: unknown field, found "nmae"; allowed: name, namespace, displayName, description, picURL, labels, annotations, tags, uid, resourceVersion, createdAt, updatedAt, actorRef, isSystem, applySet (did you mean name?)`},
		{`{"kind":"Group","Kind":"User","metadata":{"name":"sea"}}`, `Kind: unknown field, found "Kind"; allowed: apiVersion, kind, metadata, spec, status (did you mean kind?)`},
		{`{"kind":"Group","metadata":{"name":"sea"}} {}`, `must be JSON: invalid character '{' after top-level value`},
		{`{"kind":"Group",}`, `must be JSON: invalid character '}' looking for beginning of object key string`},
		{`kind: Group`, `must be JSON: invalid character 'k' looking for beginning of value`},
		{``, `must be JSON: unexpected end of JSON input`},
		{`null`, `must be a mapping with kind, metadata and spec, found "null"`},
		{"{\"kind\":\"\xff\"}", `must be text in UTF-8`},
		{`{"kind":"Group","metadata":{"name":"sea"},"spec":{"attrs":{"a":"\u0000"}}}`, `spec.attrs.a: must be text in UTF-8 without NUL`},
		{`{"kind":"Group","spec":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, `must be nested at most 64 deep`},
		{`{"kind":"Group","spec":[` + strings.Repeat("1,", maxNodes) + `1]}`, `must have at most 262144 values`},
		{`"` + strings.Repeat("a", maxSize) + `"`, `must be at most 16 MiB, found "16777218 bytes"`},
	} {
		_, problems := DecodeJSON(7, []byte(c.raw))
		var got []string
		for _, p := range problems {
			got = append(got, p.String())
			if p.Document != 7 {
				t.Errorf("got document %d, want 7", p.Document)
			}
		}
		if strings.Join(got, "\n") != c.want {
			t.Errorf("%.100s:\ngot  %s\nwant %s", c.raw, strings.Join(got, "\n"), c.want)
		}
	}
}

// TestManyProblems: a list is cut, and what is cut off stays an error.
func TestManyProblems(t *testing.T) {
	_, found := Decode("a.yaml", []byte(strings.Repeat("kind: Nothing\n---\n", 10_000)))
	if len(found) != maxProblems+1 || found.Err() == nil {
		t.Errorf("got %d diagnostics and error %v", len(found), found.Err() != nil)
	}
	all := make(Diagnostics, maxProblems+2)
	for i := range all {
		all[i].Warning = true
	}
	if got := cut(slices.Clone(all)); got.Err() != nil {
		t.Errorf("got %v of warnings", got.Err())
	}
	all[maxProblems+1].Warning = false
	if got := cut(all); got.Err() == nil {
		t.Error("the error was cut off")
	}
}

// TestWholeFile: what is wrong with a file as a whole has no line.
func TestWholeFile(t *testing.T) {
	for data, want := range map[string]string{
		strings.Repeat("#", maxSize+1): `a.yaml: error: must be at most 16 MiB, found "16777217 bytes"`,
		"kind: \ufffe":                 `a.yaml: error: must be YAML: control characters are not allowed (value: 65534)`,
	} {
		docs, found := Decode("a.yaml", []byte(data))
		if got := found.Error(); got != want || len(docs) != 0 {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	if docs, found := Decode("a.yaml", nil); len(docs) != 0 || found.Err() != nil {
		t.Errorf("an empty file: got %v, %v", docs, found)
	}
}

func TestLocate(t *testing.T) {
	docs, _ := Decode("a.yaml", []byte(`kind: User
metadata:
  name: alice
  labels:
    a/b~c: x
    empty: ""
spec:
  type: HUMAN
  groups:
    - sea
    - land
`))
	for pointer, want := range map[string]string{
		"":                         "1:1",
		"/kind":                    "1:7",
		"/metadata":                "2:1",
		"/metadata/uid":            "2:1",
		"/metadata/name/first":     "3:3",
		"/metadata/labels/a~1b~0c": "5:12",
		"/metadata/labels/empty":   "6:5",
		"/spec/groups":             "9:3",
		"/spec/groups/1":           "11:7",
		"/spec/groups/2":           "9:3",
		"/spec/groups/-1":          "9:3",
		"/status/port":             "1:1",
	} {
		d := Locate(docs, api.Problem{Pointer: pointer, Rule: "is wrong"})
		if got := fmt.Sprintf("%d:%d", d.Line, d.Column); got != want || d.File != "a.yaml" {
			t.Errorf("%q: got %s:%s, want %s", pointer, d.File, got, want)
		}
	}
	for _, p := range []api.Problem{{Document: 1, Rule: "is wrong"}, {Document: -1, Rule: "is wrong"}} {
		if got := Locate(docs, p).String(); got != "error: is wrong" {
			t.Errorf("got %q", got)
		}
	}
	d := Locate(docs, api.Problem{Pointer: "/kind", Rule: "is odd", Warning: true})
	if got := d.String(); got != "a.yaml:1:7: warning: kind: is odd" {
		t.Errorf("got %q", got)
	}
	if err := (Diagnostics{d}).Err(); err != nil {
		t.Errorf("got error %v of a warning", err)
	}
}

func TestCheckDuplicates(t *testing.T) {
	const text = "kind: Service\nmetadata:\n  name: nats\nspec: {mode: TCP, config: {upstream: {url: tcp://a:1}}}\n"
	one, err1 := Decode("one.yaml", []byte(text))
	two, err2 := Decode("two.yaml", []byte("---\n"+strings.ReplaceAll(text, "nats", "nats.default")))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	const want = `two.yaml:4:9: error: metadata.name: must not be there twice: the Service is on line 3 of one.yaml already, found "nats.default"`
	if got := CheckDuplicates(append(slices.Clone(one), two...)).Error(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	again, _ := Decode("one.yaml", []byte(text))
	if CheckDuplicates(append(slices.Clone(one), again...)).Err() == nil {
		t.Error("the same file twice has no duplicates")
	}
	twice, found := Decode("three.yaml", []byte(text+"---\n"+text))
	if len(found) != 1 || CheckDuplicates(twice) != nil {
		t.Errorf("got %v and %v, want the duplicate in one file once", found, CheckDuplicates(twice))
	}
}

func TestNearest(t *testing.T) {
	names := []string{"upstream", "url", "inlinePolicies", "isDisabled", "of", "port"}
	for s, want := range map[string]string{
		"upstraem": "upstream", "Upstream": "upstream", "UPSTREEM": "upstream", "inline_policies": "inlinePolicies",
		"is-disabled": "isDisabled", "prot": "port", "uri": "url", "fo": "of",
		"": "", "x": "", "host": "", "downstream": "", strings.Repeat("a", 1000): "",
	} {
		if got := api.Nearest(s, names); got != want {
			t.Errorf("%.20s: got %q, want %q", s, got, want)
		}
	}
}

// TestSecrets: whatever is wrong with a Secret, its value is not repeated.
func TestSecrets(t *testing.T) {
	for _, file := range []string{"testdata/secrets.yaml", "testdata/secret-alias.yaml", "testdata/foreign-secrets.yaml"} {
		_, found := Decode("a.yaml", read(t, file))
		all, err := json.Marshal(found)
		if err != nil {
			t.Fatal(err)
		}
		if found.Err() == nil || bytes.Contains(all, []byte("hunter2")) || strings.Contains(found.Error(), "hunter2") {
			t.Errorf("%s: got %v", file, found)
		}
	}
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func toJSON(t testing.TB, obj api.Object) string {
	t.Helper()
	b, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
