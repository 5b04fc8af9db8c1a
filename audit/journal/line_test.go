package journal

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"cardea/audit"
	"cardea/audit/audittest"
)

// FuzzReadLine reads whatever stands in a segment: nothing is lost, nothing is
// longer than a line may be, and only the last line may be torn.
func FuzzReadLine(f *testing.F) {
	start, _ := audittest.Connection(time.Unix(1, 2))
	rec, err := audit.AppendRecord(nil, start)
	must(f, err)
	good := string(appendLine(nil, 1, digest{}, "i", time.Unix(3, 4).UTC(), kindRecord, rec)) + "\n"
	for _, s := range []string{"", "\n", "\n\n", good, good + good[:40], `{"seq":1,"kind":"head","head":{}}`,
		`{"seq":1,"kind":"open","open":{"format":2}}`, `{"seq":-1,"kind":"gap","gap":{"from":9e99}}`,
		`{"seq":1,"kind":"record","record":null}`, "\x00\x00\x00", strings.Repeat("[", 100_000)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newLineReader(bytes.NewReader(data))
		var back []byte
		torn := false
		for {
			raw, err := r.next()
			if err == io.EOF {
				break
			}
			must(t, err)
			if torn {
				t.Fatal("a line after a torn one")
			}
			torn = raw.torn
			if bytes.IndexByte(raw.text, '\n') >= 0 || len(raw.text) > maxLine {
				t.Fatalf("%.100q is no line", raw.text)
			}
			if !raw.long && int64(len(raw.text)) != raw.size-map[bool]int64{false: 1}[torn] {
				t.Fatalf("a line of %d bytes says %d", len(raw.text), raw.size)
			}
			back = append(back, raw.text...)
			if !torn {
				back = append(back, '\n')
			}
			l, err := parseLine(raw.text)
			if err != nil {
				continue
			}
			if n := seqOf(raw.text); n != 0 && n != l.Seq && bytes.Count(raw.text, []byte("seq")) == 1 {
				t.Fatalf("line %d says at a glance that it is %d", l.Seq, n)
			}
			if l.Kind == kindRecord {
				m, err := l.move()
				rec, rerr := l.record()
				if err == nil && rerr == nil && m != moveOf(rec) {
					t.Fatalf("a record does %+v, and is read as %+v", moveOf(rec), m)
				}
			}
		}
		if len(data) <= maxLine && !bytes.Equal(back, data) {
			t.Fatalf("read %q of %q", back, data)
		}
	})
}

func TestLongLine(t *testing.T) {
	for _, n := range []int{64 << 10, maxLine - 1, maxLine, maxLine + 1, 3 * maxLine} {
		text := strings.Repeat("x", n)
		r := newLineReader(iotest.HalfReader(strings.NewReader(text + "\nnext\n")))
		raw, err := r.next()
		must(t, err)
		if raw.size != int64(n)+1 || raw.long != (n > maxLine) || len(raw.text) != min(n, maxLine) || raw.torn {
			t.Errorf("a line of %d bytes: %d bytes of text, size %d, long %t, torn %t", n, len(raw.text), raw.size, raw.long, raw.torn)
		}
		if raw, err = r.next(); err != nil || string(raw.text) != "next" || raw.long {
			t.Errorf("after a line of %d bytes: %+v, %v", n, raw, err)
		}
	}
}

func TestReadError(t *testing.T) {
	bad := errors.New("bad sector")
	r := newLineReader(io.MultiReader(strings.NewReader("one\ntw"), iotest.ErrReader(bad)))
	if raw, err := r.next(); err != nil || string(raw.text) != "one" {
		t.Errorf("first line %q, %v", raw.text, err)
	}
	if _, err := r.next(); !errors.Is(err, bad) {
		t.Errorf("got %v, want the error of the disk and not the end", err)
	}
}
