package audit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"cardea/api"
	"cardea/audit"
)

// fill sets v, and all that is in it, to what next says: whether an optional
// part is there, a number, a string.
func fill(v reflect.Value, there func() bool, number func() int64, text func() string) {
	switch v.Interface().(type) {
	case time.Time:
		if there() {
			v.Set(reflect.ValueOf(time.Unix(number()%1e9, number()%1e9).In(time.FixedZone("elsewhere", 7200))))
		}
		return
	case json.RawMessage:
		if there() {
			b, err := json.Marshal(map[string]any{text(): number()})
			if err != nil {
				panic(err)
			}
			v.SetBytes(b)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), there, number, text)
		}
	case reflect.Pointer:
		if there() {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), there, number, text)
		}
	case reflect.Slice:
		for there() && v.Len() < 3 {
			e := reflect.New(v.Type().Elem()).Elem()
			fill(e, there, number, text)
			v.Set(reflect.Append(v, e))
		}
	case reflect.Map:
		for there() && v.Len() < 3 {
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
			v.SetMapIndex(reflect.ValueOf(text()), reflect.ValueOf(text()))
		}
	case reflect.String:
		if there() {
			v.SetString(text())
		}
	case reflect.Bool:
		v.SetBool(there())
	case reflect.Int, reflect.Int64:
		if there() {
			v.SetInt(number())
		}
	case reflect.Uint64:
		if there() {
			v.SetUint(uint64(number()))
		}
	default:
		panic(fmt.Sprintf("a record has a field of type %v; teach this test to fill it", v.Type()))
	}
}

// same fails unless AppendRecord says what encoding/json says.
func same(t interface {
	Helper()
	Fatalf(string, ...any)
}, rec *api.AccessLog) {
	t.Helper()
	utc := *rec
	utc.Metadata.CreatedAt = utc.Metadata.CreatedAt.UTC()
	utc.Entry.Common.StartedAt = utc.Entry.Common.StartedAt.UTC()
	utc.Entry.Common.EndedAt = utc.Entry.Common.EndedAt.UTC()
	want, err := json.Marshal(&utc)
	if err != nil {
		t.Fatalf("%v", err)
	}
	got, err := audit.AppendRecord(nil, rec)
	if err != nil {
		t.Fatalf("%v", err)
	}
	// Times are written longer than encoding/json does, so compare what they say.
	var back api.AccessLog
	d := json.NewDecoder(bytes.NewReader(got))
	d.DisallowUnknownFields()
	if err := d.Decode(&back); err != nil {
		t.Fatalf("%s: %v", got, err)
	}
	again, err := json.Marshal(&back)
	if err != nil {
		t.Fatalf("%v", err)
	}
	var g, w any
	if err := json.Unmarshal(again, &g); err != nil {
		t.Fatalf("%s: %v", again, err)
	}
	if err := json.Unmarshal(want, &w); err != nil {
		t.Fatalf("%v", err)
	}
	if !reflect.DeepEqual(g, w) {
		t.Fatalf("AppendRecord and encoding/json differ:\n%s\n%s", got, want)
	}
}

// Every field that package api gives to a record is written, under its name: who
// adds one is told here.
func TestAppendRecordWritesEveryField(t *testing.T) {
	n := int64(0)
	number := func() int64 { n++; return n }
	text := func() string { return fmt.Sprint("text ", number()) }
	var rec api.AccessLog
	fill(reflect.ValueOf(&rec).Elem(), func() bool { return true }, number, text)
	same(t, &rec)
	same(t, &api.AccessLog{})
}

func TestAppendRecordIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rec api.AccessLog
		fill(reflect.ValueOf(&rec).Elem(),
			func() bool { return rapid.Bool().Draw(t, "there") },
			func() int64 { return rapid.Int64Min(0).Draw(t, "number") },
			func() string { return rapid.String().Draw(t, "text") })
		same(t, &rec)
	})
}

func TestAppendRecordYear(t *testing.T) {
	rec := audit.New(time.Date(12025, 1, 1, 0, 0, 0, 0, time.UTC))
	if b, err := audit.AppendRecord([]byte("kept"), rec); err == nil || string(b) != "kept" {
		t.Errorf("a year that JSON cannot say gave %q, %v", b, err)
	}
}

// A stranger's text fills no log: each field of a record is cut to a kilobyte, a
// list to sixteen, and the record stays one line.
func TestAppendRecordCuts(t *testing.T) {
	long := strings.Repeat("x\n\u202eü", 10_000)
	var rec api.AccessLog
	more := 0
	fill(reflect.ValueOf(&rec).Elem(), func() bool { more++; return more%100 != 0 }, func() int64 { return 1 }, func() string { return long })
	rec.Metadata.CreatedAt, rec.Entry.Common.StartedAt, rec.Entry.Common.EndedAt = time.Now(), time.Time{}, time.Time{}
	rec.Entry.Info.API.Before, rec.Entry.Info.API.After = nil, nil // the Object of who may write it
	rec.Entry.Common.Facts.TLS.ClientCertificate.DNS = slices.Repeat([]string{long}, 1000)
	rec.Entry.Common.Facts.Proxy.TLVs = map[string]string{}
	for i := range 1000 {
		rec.Entry.Common.Facts.Proxy.TLVs[fmt.Sprintf("%x", i)] = long
	}
	b, err := audit.AppendRecord(nil, &rec)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if len(v) > 26 {
				t.Errorf("an object has %d fields", len(v))
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			if len(v) > 17 {
				t.Errorf("a list has %d texts", len(v))
			}
			for _, e := range v {
				walk(e)
			}
		case string:
			if len(v) > 1024 || len(v) > 100 && !strings.HasSuffix(v, fmt.Sprintf("… (%d bytes)", len(long))) {
				t.Errorf("a text of %d bytes is kept: %.20q … %q", len(v), v, v[len(v)-30:])
			}
		}
	}
	walk(v)
	if n := bytes.IndexFunc(b, func(r rune) bool { return !unicode.IsPrint(r) }); n >= 0 {
		t.Errorf("byte %d does not print", n)
	}
}

// Cut cuts between characters, leaves alone what is short enough, and what it has
// cut.
func TestCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := strings.Repeat(rapid.StringN(1, 5, -1).Draw(t, "text"), rapid.IntRange(1, 1500).Draw(t, "times"))
		got := audit.Cut(s)
		if len(got) > 1024 || !utf8.ValidString(got) || audit.Cut(got) != got || len(s) <= 1024 && got != s {
			t.Fatalf("%d bytes were cut to %d: %q", len(s), len(got), got)
		}
	})
}
