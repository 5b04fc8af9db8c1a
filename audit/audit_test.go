package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

// paths returns the JSON paths of a document and the type of what is there.
func paths(t *testing.T, doc []byte) map[string]string {
	t.Helper()
	var v any
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, v := range v {
				walk(at+"."+k, v)
			}
		default:
			all[at] = fmt.Sprintf("%T", v)
			if s, ok := v.(string); ok {
				all[at] += form(s)
			}
		}
	}
	walk("", v)
	return all
}

// form says what kind of string s is, if it is of a kind.
func form(s string) string {
	for name, re := range map[string]string{
		" of digits":  `^[0-9]+$`,
		" UTC time":   `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,9}Z$`,
		" identifier": `^[a-z0-9]{4}-[a-z0-9]{4}-[a-z0-9]{24}-[a-z0-9]{4}-[a-z0-9]{4}$`,
	} {
		if regexp.MustCompile(re).MatchString(s) {
			return name
		}
	}
	return ""
}

// A record has the shape of the mission document: all its paths, with values of
// the same types. Ours has more beside them.
func TestMissionShape(t *testing.T) {
	doc, err := os.ReadFile("testdata/mission-tcp-end.json")
	if err != nil {
		t.Fatal(err)
	}
	start, end := audittest.Connection(time.Date(2025, 3, 21, 22, 28, 7, 494538911, time.FixedZone("elsewhere", 3600)))
	want := paths(t, doc)
	ours, err := audit.AppendRecord(nil, end)
	if err != nil {
		t.Fatal(err)
	}
	got := paths(t, ours)
	for at, typ := range want {
		if got[at] != typ {
			t.Errorf("END: at %s is %q, want %q", at, got[at], typ)
		}
	}
	if ours, err = audit.AppendRecord(nil, start); err != nil {
		t.Fatal(err)
	}
	got = paths(t, ours)
	for _, at := range []string{".entry.common.endedAt", ".entry.info.tcp.receivedBytes", ".entry.info.tcp.sentBytes"} {
		if _, ok := got[at]; ok {
			t.Errorf("START: there is a %s", at)
		}
		delete(want, at)
	}
	for at, typ := range want {
		if got[at] != typ {
			t.Errorf("START: at %s is %q, want %q", at, got[at], typ)
		}
	}
}

// The document itself is a record, and comes back with every value of it and
// nothing beside them but our status.
func TestMissionRecord(t *testing.T) {
	doc, err := os.ReadFile("testdata/mission-tcp-end.json")
	if err != nil {
		t.Fatal(err)
	}
	var rec api.AccessLog
	if err := json.Unmarshal(doc, &rec); err != nil {
		t.Fatal(err)
	}
	if err := audit.Check(&rec); err != nil {
		t.Error(err)
	}
	back, err := audit.AppendRecord(nil, &rec)
	if err != nil {
		t.Fatal(err)
	}
	var got, want map[string]any
	if err := errors.Join(json.Unmarshal(back, &got), json.Unmarshal(doc, &want)); err != nil {
		t.Fatal(err)
	}
	delete(got["entry"].(map[string]any)["common"].(map[string]any), "status")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the document comes back as\n%s", back)
	}
}

// The golden file is the record of a connection as it stands in the log, with all
// that ours has beside the document's.
func TestGoldenRecord(t *testing.T) {
	start, end := audittest.Connection(time.Date(2025, 3, 21, 22, 28, 7, 500, time.UTC))
	zero := int64(0)
	end.Entry.Info.TCP.SentBytes = &zero
	denied := audittest.Denied("no certificate")
	denied.Metadata.CreatedAt = end.Metadata.CreatedAt
	start.Entry.Common.ConnectionID = "vldv-kx0n-jz20ix83wijy7p605o61puha-zpq6-2z7k"
	end.Entry.Common.ConnectionID = start.Entry.Common.ConnectionID
	for _, rec := range []*api.AccessLog{start, end, denied} {
		rec.Metadata.ID = "q41j-e6m6-7wvk7mr90dy36kbbaxtpfmeh-ail9-8z34"
		if rec != denied {
			rec.Entry.Common.DecisionID = "0uit-qo3p-6tzzdcd04x9tcuyxp31ghv4p-53yl-9ei6"
		}
	}
	var got []byte
	for _, rec := range []*api.AccessLog{start, end, denied} {
		line, err := audit.AppendRecord(nil, rec)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := json.Indent(&b, line, "", "  "); err != nil {
			t.Fatal(err)
		}
		got = append(append(got, b.Bytes()...), '\n')
	}
	const golden = "testdata/records.golden"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the records are\n%s\nand %s says otherwise; if they are right, run with UPDATE_GOLDEN=1", got, golden)
	}
}

// FuzzAppendJSON puts a stranger's words into a record: it stays one line that a
// terminal may show, and says the same.
func FuzzAppendJSON(f *testing.F) {
	for _, s := range []string{"", "plain", "a\nb\r\t\x00\x1b[2J\x7f", "\u0080\u009b31m", "\u2028\u2029", "\u202eevil\u2066\u2069\u200f\u061c",
		"\u200b\ufeff\U000e0001\U0001f600", "grün ✓ 日本", "\xff\xfe\xc3(", "<script>&\"\\", "\ufffd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rec := audittest.Denied(s)
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		rec.Entry.Info.API = &api.APIInfo{Verb: s, Before: raw}
		b, err := audit.AppendRecord([]byte("before "), rec)
		if err != nil {
			t.Fatal(err)
		}
		line, ok := strings.CutPrefix(string(b), "before ")
		if !ok || !utf8.ValidString(line) {
			t.Fatalf("%q is no UTF-8 after what was there before", b)
		}
		for _, r := range line {
			if !unicode.IsPrint(r) {
				t.Fatalf("%q holds %U", line, r)
			}
		}
		var back api.AccessLog
		if err := json.Unmarshal([]byte(line), &back); err != nil {
			t.Fatal(err)
		}
		if want := audit.Cut(s); utf8.ValidString(s) && back.Entry.Common.Reason.Words != want {
			t.Fatalf("%q comes back as %q", s, back.Entry.Common.Reason.Words)
		}
		var before string
		if err := json.Unmarshal(back.Entry.Info.API.Before, &before); err != nil || utf8.ValidString(s) && before != s {
			t.Fatalf("raw JSON of %q comes back as %q, %v", s, before, err)
		}
	})
}

// Raw JSON is what others made: bytes that are no UTF-8 must not come through.
func TestAppendRecordRaw(t *testing.T) {
	rec := audit.New(time.Now())
	rec.Entry.Info.API = &api.APIInfo{Verb: "x", Before: json.RawMessage("{\n  \"a\": \"\xff\u0085\"\n}")}
	b, err := audit.AppendRecord(nil, rec)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"before":{"a":"\ufffd\u0085"}`; !strings.Contains(string(b), want) {
		t.Errorf("got %s, want %s in it", b, want)
	}
	rec.Entry.Info.API.Before = json.RawMessage(`{"a":`)
	if b, err := audit.AppendRecord([]byte("kept"), rec); err == nil || string(b) != "kept" {
		t.Errorf("half a document gave %q, %v", b, err)
	}
}

// The caller's record is not written to.
func TestAppendRecordTimes(t *testing.T) {
	zone := time.FixedZone("elsewhere", 3600)
	rec := audit.New(time.Now())
	rec.Entry.Common.StartedAt = time.Date(2025, 1, 1, 1, 0, 0, 1, zone)
	b, err := audit.AppendRecord(nil, rec)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"startedAt":"2025-01-01T00:00:00.000000001Z"`; !strings.Contains(string(b), want) {
		t.Errorf("got %s, want %s in it", b, want)
	}
	if rec.Entry.Common.StartedAt.Location() != zone {
		t.Error("the record of the caller was changed")
	}
}
