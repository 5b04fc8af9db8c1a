package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"pgregory.net/rapid"

	"cardea/api"
)

// TestEncode: what is printed can be read again, means the same, and is printed
// the same.
func TestEncode(t *testing.T) {
	docs, found := Decode("all", read(t, "testdata/all-kinds.yaml"))
	if found != nil {
		t.Fatal(found)
	}
	var objs []api.Object
	kinds := map[string]bool{}
	for _, d := range docs {
		objs = append(objs, d.Object)
		kinds[d.Object.Header().Key().Group+d.Object.Header().Kind] = true
	}
	for _, k := range api.Kinds() {
		if !kinds[k.APIGroup()+k.Name] && !k.Later {
			t.Errorf("testdata/all-kinds.yaml has no %s", k.Name)
		}
	}
	var once, twice bytes.Buffer
	if err := Encode(&once, objs...); err != nil {
		t.Fatal(err)
	}
	docs, found = Decode("again", once.Bytes())
	if found != nil {
		t.Fatal(found)
	}
	var raw []json.RawMessage
	for i, d := range docs {
		if got, want := toJSON(t, d.Object), toJSON(t, objs[i]); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		raw = append(raw, json.RawMessage(toJSON(t, d.Object)))
	}
	if err := Encode(&twice, raw...); err != nil {
		t.Fatal(err)
	}
	if once.String() != twice.String() {
		t.Errorf("printed first:\n%s\nand then:\n%s", &once, &twice)
	}
}

func TestEncodeText(t *testing.T) {
	u := &api.User{}
	u.Default()
	u.Metadata.Name = "no"
	u.Metadata.Description = "one\ntwo\n"
	u.Spec.Type = api.UserHuman
	u.Spec.Groups = []string{"sea", "land"}
	u.Spec.Authorization.InlinePolicies = []api.InlinePolicy{{Spec: api.PolicySpec{Rules: []api.Rule{{Effect: api.Allow,
		Condition: api.Condition{Match: `"group-1" in ctx.user.spec.groups && ` + strings.Repeat("true && ", 20) + "true"}}}}}}
	g := &api.Group{}
	g.Default()
	g.Metadata.Name = "sea"
	want := `apiVersion: core/v1
kind: User
metadata:
  name: 'no'
  description: |
    one
    two
spec:
  type: HUMAN
  groups:
    - sea
    - land
  authorization:
    inlinePolicies:
      - spec:
          rules:
            - effect: ALLOW
              condition:
                match: '"group-1" in ctx.user.spec.groups && ` + strings.Repeat("true && ", 20) + `true'
---
apiVersion: core/v1
kind: Group
metadata:
  name: sea
spec: {}
`
	var got bytes.Buffer
	if err := Encode[api.Object](&got, u, g); err != nil {
		t.Fatal(err)
	}
	if got.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &got, want)
	}
	if err := Encode(&got, json.RawMessage("{")); err == nil {
		t.Error("half an object has no error")
	}
}

// TestRoundTrip prints Objects with any values at all, of every kind, and reads
// them again. Most are not valid; they have to be the same.
func TestRoundTrip(t *testing.T) {
	for _, kind := range api.Kinds() {
		t.Run(kind.APIGroup()+"/"+kind.Name, rapid.MakeCheck(func(t *rapid.T) { roundTrip(t, kind) }))
	}
}

func roundTrip(t *rapid.T, kind api.Kind) {
	want := kind.New()
	draw(t, reflect.ValueOf(want).Elem(), 4)
	if *want.Header() = (api.Head{Metadata: want.Header().Metadata}); kind.IsForeign() {
		want.Header().Kind = kind.Name // of Resolvers there are several
		reflect.ValueOf(want).Elem().FieldByName("Status").SetZero()
		want.Header().Metadata.ResourceVersion = "0190163d-8694-739b-aea5-966c26f8ad90"
	}
	want.Default()
	want = api.Clone(want) // an empty list is none
	var text bytes.Buffer
	if err := Encode(&text, want); err != nil {
		t.Fatal(err)
	}
	roots, bad := parse(text.Bytes())
	if bad != nil || len(roots) != 1 {
		t.Fatalf("%d documents, %+v:\n%s", len(roots), bad, &text)
	}
	w := walker{root: roots[0], structs: structs{}, kind: kind}
	got := kind.New()
	w.value(roots[0], "", reflect.ValueOf(got).Elem())
	if len(w.found) > 0 {
		t.Fatalf("%v\n%s", w.found, &text)
	}
	g, _ := json.Marshal(got)
	if b, _ := json.Marshal(want); string(g) != string(b) {
		t.Fatalf("got  %s\nwant %s\n%s", g, b, &text)
	}
}

// hard is text that a careless writer or reader of YAML makes something else of.
var hard = []string{"", "no", "on", "~", "null", "true", "7", "010", "0x1F", "1_000", "1e3", ".inf", "-", "- a", "a: b", "a:", "#", "a #b",
	"*a", "&a", "!a", "|", ">", "%a", "@a", "`a", "<<", "=", "{", "[", "'", `"`, "\\", ",", "?", "? a", "---", "...", " a", "a ", "a\n", "\na", "a\n\nb", " \n a\n",
	"\n", "\t", "\ta", "a\tb\n", "\r", "a\r\nb", "\u0085", "\u2028", "\ufeff", "\ufeffa\n", "\x1b[31m", "\x7f", "é", "😀", "\ufffe", "2026-01-02", "2026-01-02T15:04:05Z", "12:30:45", strings.Repeat("long words ", 30)}

var texts = rapid.OneOf(rapid.SampledFrom(hard), rapid.String().Filter(func(s string) bool { return !strings.ContainsRune(s, 0) }))

var keys = texts.Filter(func(s string) bool {
	return s != "" && len(s) <= maxKey && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
})

// draw fills v with any value of its type. It knows the types that the walker
// knows, so that an Object cannot get a field that cannot be written.
func draw(t *rapid.T, v reflect.Value, depth int) {
	switch p := v.Addr().Interface().(type) {
	case *api.NotYet:
		return
	case api.Loose:
		drawLoose(t, p)
		return
	case *time.Time:
		*p = time.Unix(rapid.Int64Range(-62135596800, 253402300799).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC()
		return
	case *[]byte:
		*p = rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
		return
	case *api.Attrs:
		*p = rapid.MapOfN(keys, rapid.Custom(func(t *rapid.T) any { return drawFree(t, 3) }), 0, 3).Draw(t, "attrs")
		return
	case api.Enum:
		v.SetString(rapid.SampledFrom(append(slices.Clone(p.Values()), "")).Draw(t, "enum"))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("cardea") != "internal" {
				draw(t, v.Field(i), depth)
			}
		}
	case reflect.Pointer:
		if depth > 0 && rapid.Bool().Draw(t, "present") {
			v.Set(reflect.New(v.Type().Elem()))
			draw(t, v.Elem(), depth-1)
		}
	case reflect.Slice:
		if depth > 0 {
			n := rapid.IntRange(0, 2).Draw(t, "len")
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				draw(t, v.Index(i), depth-1)
			}
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range rapid.IntRange(0, 2).Draw(t, "len") {
			e := reflect.New(v.Type().Elem()).Elem()
			draw(t, e, depth-1)
			v.SetMapIndex(reflect.ValueOf(keys.Draw(t, "key")), e)
		}
	case reflect.String:
		v.SetString(texts.Draw(t, "text"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int:
		v.SetInt(rapid.Int64().Draw(t, "int"))
	default:
		panic(fmt.Sprintf("an Object has a field of type %s: teach it to the walker first", v.Type()))
	}
}

// drawLoose fills l with a value in any of the forms that it takes.
func drawLoose(t *rapid.T, l api.Loose) {
	var v any
	switch l.(type) {
	case *api.AmbassadorIDs:
		ids := []any{}
		for _, s := range rapid.SliceOfN(texts, 1, 3).Draw(t, "ids") {
			ids = append(ids, s)
		}
		v = ids
	case *api.NameOrBool:
		if v = texts.Draw(t, "name"); rapid.Bool().Draw(t, "isBool") {
			v = rapid.Bool().Draw(t, "bool")
		}
	case *api.Digits:
		text := strconv.FormatInt(rapid.Int64Range(0, 1<<53).Draw(t, "digits"), 10)
		if v = text; rapid.Bool().Draw(t, "isNumber") {
			v = json.Number(text)
		}
	case *api.Ported:
		v = rapid.Custom(func(t *rapid.T) any { return drawFree(t, 3) }).Draw(t, "ported")
	default:
		panic(fmt.Sprintf("an Object has a field of type %T: teach it to this test", l))
	}
	if err := l.SetLoose(v); err != nil {
		panic(err)
	}
}

func drawFree(t *rapid.T, depth int) any {
	of := 4
	if depth > 0 {
		of = 6
	}
	switch rapid.IntRange(0, of-1).Draw(t, "type") {
	case 0:
		return nil
	case 1:
		return rapid.Bool().Draw(t, "bool")
	case 2:
		return rapid.OneOf(rapid.Float64(), rapid.Map(rapid.Int32(), func(i int32) float64 { return float64(i) })).Draw(t, "number")
	case 3:
		return texts.Draw(t, "text")
	case 4:
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) any { return drawFree(t, depth-1) }), 0, 3).Draw(t, "list")
	}
	return rapid.MapOfN(keys, rapid.Custom(func(t *rapid.T) any { return drawFree(t, depth-1) }), 0, 3).Draw(t, "mapping")
}
