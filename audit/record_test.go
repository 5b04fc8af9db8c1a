package audit_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"

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
	var g, w any
	if err := json.Unmarshal(got, &g); err != nil {
		t.Fatalf("%s: %v", got, err)
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
