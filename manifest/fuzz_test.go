package manifest

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzDecode: whatever a file holds, there are few diagnostics, each fit for a
// terminal; and what has no error means the same to the server, and when printed
// and read again.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, file := range append(files, "../examples/tcp/services.yaml", "../examples/resources/resources.yaml") {
		f.Add(read(f, file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, found := Decode("a.yaml", data)
		if len(found) > maxProblems+1 {
			t.Fatalf("%d diagnostics", len(found))
		}
		for _, d := range found {
			if s := d.String(); len(s) > 1<<16 || printable(s) != s {
				t.Fatalf("not fit for a terminal: %q", s)
			}
		}
		if found.Err() != nil {
			return
		}
		for i, doc := range docs {
			if doc.JSON == nil {
				continue // skipped
			}
			want := toJSON(t, doc.Object)
			obj, problems := DecodeJSON(i, doc.JSON)
			if len(problems) > 0 || toJSON(t, obj) != want {
				t.Fatalf("the server reads %s, %v\nwant %s", toJSON(t, obj), problems, want)
			}
			var text bytes.Buffer
			if err := Encode(&text, doc.Object); err != nil {
				t.Fatal(err)
			}
			again, found := Decode("again.yaml", text.Bytes())
			if found.Err() != nil || len(again) != 1 || toJSON(t, again[0].Object) != want {
				t.Fatalf("printed as:\n%s\n%v\nwant %s", &text, found, want)
			}
		}
	})
}

// FuzzDecodeJSON: whatever comes over the wire, there are few problems, and what
// has none is an Object.
func FuzzDecodeJSON(f *testing.F) {
	docs, _ := Decode("all", read(f, "testdata/all-kinds.yaml"))
	for _, d := range docs {
		f.Add([]byte(d.JSON))
	}
	f.Add(read(f, "testdata/json.yaml"))
	f.Add(read(f, "testdata/json-deep.yaml"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		obj, problems := DecodeJSON(1, raw)
		if len(problems) > maxProblems+1 {
			t.Fatalf("%d problems", len(problems))
		}
		if len(problems) == 0 {
			toJSON(t, obj)
		}
	})
}

// many returns 1000 Services in one stream.
func many() []byte {
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, `---
kind: Service
metadata:
  name: service-%d
spec:
  mode: TCP
  config:
    upstream:
      url: tcp://host-%d:8080
  authorization:
    inlinePolicies:
      - spec:
          rules:
            - effect: ALLOW
              condition:
                match: '"group-1" in ctx.user.spec.groups'
`, i, i)
	}
	return []byte(b.String())
}

func BenchmarkDecode1000(b *testing.B) {
	data := many()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if docs, found := Decode("many.yaml", data); len(docs) != 1000 || found != nil {
			b.Fatal(found)
		}
	}
}

func BenchmarkDecodeJSON1000(b *testing.B) {
	docs, _ := Decode("many.yaml", many())
	for b.Loop() {
		for i, d := range docs {
			if _, problems := DecodeJSON(i, d.JSON); problems != nil {
				b.Fatal(problems)
			}
		}
	}
}
