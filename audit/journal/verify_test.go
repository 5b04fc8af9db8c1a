package journal

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit/audittest"
)

func sum(line string) digest { return sha256.Sum256([]byte(line)) }

// finds expects a finding with these words.
func finds(t testing.TB, rep api.VerifyReport, words string) {
	t.Helper()
	if rep.OK || !says(rep.Findings, words) {
		t.Errorf("findings %q, want one that says %q", rep.Findings, words)
	}
}

// Whoever changes one bit is found out, wherever it is.
func TestBitFlip(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 5000
	write(t, r, 12)
	ns, err := listSegments(r.Dir)
	must(t, err)
	if len(ns) < 2 {
		t.Fatal("one segment is too few for this test")
	}
	whole(t, r.verify(t))
	for _, n := range ns {
		good, err := os.ReadFile(path(r.Dir, n))
		must(t, err)
		for at := 0; at < len(good); at += 61 { // not a divisor of the length of a line
			bad := bytes.Clone(good)
			bad[at] ^= 1 << (at % 8)
			must(t, os.WriteFile(path(r.Dir, n), bad, 0o600))
			if rep := r.verify(t); rep.OK {
				t.Errorf("segment %d: a bit was changed in byte %d, %q, and nothing is found", n, at, good[max(0, at-20):at+1])
			}
		}
		// The last line is fixed by the mark alone.
		last := bytes.LastIndexByte(good[:len(good)-1], '\n') + 1
		for at := last; at < len(good); at += 5 {
			bad := bytes.Clone(good)
			bad[at] ^= 1
			must(t, os.WriteFile(path(r.Dir, n), bad, 0o600))
			if rep := r.verify(t); rep.OK {
				t.Errorf("segment %d: a bit was changed in byte %d of the last line, and nothing is found", n, at-last)
			}
		}
		must(t, os.WriteFile(path(r.Dir, n), good, 0o600))
	}
	whole(t, r.verify(t))
}

// rechain makes the lines a chain again, as whoever changed one would.
func rechain(t *testing.T, lines []string) []string {
	t.Helper()
	var out []string
	for i, text := range lines {
		l, err := parseLine([]byte(text))
		must(t, err)
		if i > 0 {
			prev := sum(out[i-1])
			old, err := l.Prev.MarshalText()
			must(t, err)
			now, err := prev.MarshalText()
			must(t, err)
			text = strings.Replace(text, string(old), string(now), 1)
			text = strings.Replace(text, fmt.Sprintf(`{"seq":%d,`, l.Seq), fmt.Sprintf(`{"seq":%d,`, i+1), 1)
		}
		out = append(out, text)
	}
	return out
}

func TestVerifyFinds(t *testing.T) {
	// Lines: 1 open, 2 head, 3 START, 4 to 12 records, 13 head, 14 to 23
	// records, 24 head.
	without := func(ls []string, i int) []string { return append(ls[:i:i], ls[i+1:]...) }
	for _, c := range []struct {
		name   string
		change func(t *testing.T, ls []string) []string
		want   string
	}{
		{"a line is gone", func(t *testing.T, ls []string) []string { return without(ls, 7) },
			"0000000001.log line 8 is line 9 of the chain, and comes after line 7"},
		{"a line is gone and the numbers are mended", func(t *testing.T, ls []string) []string { return rechain(t, without(ls, 7)) },
			"signed head that is not of this place"},
		{"two lines are swapped", func(t *testing.T, ls []string) []string { ls[7], ls[8] = ls[8], ls[7]; return ls },
			"0000000001.log line 8 is line 9 of the chain"},
		{"a line is there twice", func(t *testing.T, ls []string) []string { return append(ls[:8:8], ls[7:]...) },
			"0000000001.log line 9 is line 8 of the chain, and comes after line 8"},
		{"a record is changed", func(t *testing.T, ls []string) []string {
			ls[7] = strings.Replace(ls[7], "DENIED", "denied", 1)
			return ls
		}, "0000000001.log line 9 does not follow upon the line before it"},
		{"a record is changed and the chain is made anew", func(t *testing.T, ls []string) []string {
			ls[7] = strings.Replace(ls[7], "DENIED", "denied", 1)
			return rechain(t, ls)
		}, "line 13 holds a signed head that is not of this place"},
		{"all heads are left out of a new chain", func(t *testing.T, ls []string) []string {
			return rechain(t, append(append(ls[:1:1], ls[2:12]...), ls[13:23]...))
		}, "The end was cut off"},
		{"the last signed head is cut off", func(t *testing.T, ls []string) []string { return ls[:len(ls)-1] },
			"The end was cut off: the journal ends with line 23 of the chain, and the store keeps a signed head in line 24"},
		{"the tail is cut at a signed head", func(t *testing.T, ls []string) []string { return ls[:13] },
			"The end was cut off"},
		{"the last line is torn", func(t *testing.T, ls []string) []string {
			ls[len(ls)-1] = ls[len(ls)-1][:20]
			return ls
		}, "0000000001.log line 24 is no line of a journal"},
		{"the beginning is gone", func(t *testing.T, ls []string) []string { return ls[2:] },
			"lines 1 to 2 were removed, and not by retention"},
		{"a head is signed by another key", func(t *testing.T, ls []string) []string {
			l, err := parseLine([]byte(ls[12]))
			must(t, err)
			forged := *l.Head
			must(t, forged.sign("test-1", key(2)))
			ls[12] = strings.Replace(ls[12], encoded(l.Head.Signature), encoded(forged.Signature), 1)
			return ls
		}, "0000000001.log line 13 holds a head that is not signed by a known key"},
		{"an END is added", func(t *testing.T, ls []string) []string {
			return append(ls, next(t, ls, kindRecord, endRecord("nobody")))
		}, `is an END of connection "nobody", which has no START or has ended before`},
		{"a START is there twice", func(t *testing.T, ls []string) []string {
			l, err := parseLine([]byte(ls[2]))
			must(t, err)
			return append(ls, next(t, ls, kindRecord, string(l.Record)))
		}, "is a second START of connection"},
		{"another instance", func(t *testing.T, ls []string) []string {
			ls[5] = strings.Replace(ls[5], `"instance":"test-1"`, `"instance":"test-2"`, 1)
			return ls
		}, `0000000001.log line 6 is of the journal of "test-2", not "test-1"`},
		{"no JSON", func(t *testing.T, ls []string) []string { ls[5] = "hello"; return ls },
			"0000000001.log line 6 is no line of a journal"},
		{"open connections in the middle", func(t *testing.T, ls []string) []string {
			return append(ls, next(t, ls, kindOpen, `{"format":1,"connections":[],"left":0}`))
		}, "0000000001.log line 25 lists open connections"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			write(t, r, 20)
			lines := readLines(t, path(r.Dir, 1))
			if len(lines) != 24 {
				t.Fatalf("%d lines, and the cases count on 24", len(lines))
			}
			whole(t, r.verify(t))
			lines = c.change(t, lines)
			must(t, os.WriteFile(path(r.Dir, 1), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
			finds(t, r.verify(t), c.want)
		})
	}
}

// next returns a line that follows upon ls.
func next(t *testing.T, ls []string, k kind, payload string) string {
	t.Helper()
	l, err := parseLine([]byte(ls[len(ls)-1]))
	must(t, err)
	return string(appendLine(nil, l.Seq+1, sum(ls[len(ls)-1]), l.Instance, l.At, k, []byte(payload)))
}

func endRecord(id string) string {
	return `{"entry":{"common":{"connectionID":"` + id + `"},"info":{"tcp":{"type":"END"}}}}`
}

// encoded returns b as it stands in JSON.
func encoded(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// After a start the damage is still found, also where only the mark told of it:
// starting does not wash it away.
func TestDamageSurvivesStart(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, dir string)
		want   string
	}{
		{"a cut tail", func(t *testing.T, dir string) {
			ls := readLines(t, path(dir, 1))
			must(t, os.WriteFile(path(dir, 1), []byte(strings.Join(ls[:13], "\n")+"\n"), 0o600))
		}, "says that lines 14 to 24 of the chain are missing: the end of the journal was cut off"},
		{"no segment at all", func(t *testing.T, dir string) { must(t, os.Remove(path(dir, 1))) },
			"says that lines 1 to 24 of the chain are missing: all segments are gone"},
		{"no directory", func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)) },
			"lines 1 to 24 were removed, and not by retention"},
		{"an empty file", func(t *testing.T, dir string) { must(t, os.WriteFile(path(dir, 1), nil, 0o600)) },
			"all segments are gone"},
		{"another last line", func(t *testing.T, dir string) {
			ls := readLines(t, path(dir, 1))
			ls[23] = next(t, ls[:23], kindRecord, endRecord("x"))
			must(t, os.WriteFile(path(dir, 1), []byte(strings.Join(ls, "\n")+"\n"), 0o600))
		}, "the last line that was signed and kept is another one now"},
		{"a bit in the middle", func(t *testing.T, dir string) {
			b, err := os.ReadFile(path(dir, 1))
			must(t, err)
			b[len(b)/2] ^= 1
			must(t, os.WriteFile(path(dir, 1), b, 0o600))
		}, "0000000001.log line"},
		{"no JSON at the end", func(t *testing.T, dir string) {
			ls := readLines(t, path(dir, 1))
			ls[23] = "\x00\x00\x00"
			must(t, os.WriteFile(path(dir, 1), []byte(strings.Join(ls, "\n")+"\n"), 0o600))
		}, "0000000001.log line 24 is no line of a journal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			write(t, r, 20)
			c.change(t, r.Dir)
			for range 2 {
				j, stop := r.start(t)
				must(t, j.Append(t.Context(), audittest.Denied("after")))
				rep, err := j.Verify(t.Context())
				must(t, err)
				finds(t, rep, c.want)
				must(t, stop())
				finds(t, r.verify(t), c.want)
			}
		})
	}
}

func TestVerifyMissingSegments(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 5000
	write(t, r, 50)
	must(t, os.Remove(path(r.Dir, 2)))
	finds(t, r.verify(t), "Segments 0000000002.log to 0000000002.log are missing.")
	finds(t, r.verify(t), "0000000003.log line 1 is line")
}

func TestVerifyWithoutMark(t *testing.T) {
	r := newRig(t)
	write(t, r, 20)
	keys := []ed25519.PublicKey{key(1).Public().(ed25519.PublicKey)}
	rep, err := Verify(t.Context(), r.Dir, keys, nil)
	must(t, err)
	whole(t, rep)
	if !says(rep.Notes, "No mark was given") || rep.Records != 20 || rep.Heads != 3 || rep.Segments != 1 || rep.Open != 1 {
		t.Errorf("got %+v", rep)
	}
	// Who strips all heads off has a journal that proves nothing.
	lines := readLines(t, path(r.Dir, 1))
	must(t, os.WriteFile(path(r.Dir, 1), []byte(strings.Join(rechain(t, append(lines[:1:1], lines[2:12]...)), "\n")+"\n"), 0o600))
	rep, err = Verify(t.Context(), r.Dir, keys, nil)
	must(t, err)
	finds(t, rep, "No line is signed")
}

func TestVerifyWrongKey(t *testing.T) {
	r := newRig(t)
	write(t, r, 20)
	rep, err := Verify(t.Context(), r.Dir, []ed25519.PublicKey{key(2).Public().(ed25519.PublicKey)}, r.mark(t))
	must(t, err)
	finds(t, rep, "not signed by a known key")
	finds(t, rep, "The mark that is kept outside of the journal is not signed by a known key")
}

// A new key does not make the old heads wrong, if the old one is still known.
func TestKeyChange(t *testing.T) {
	r := newRig(t)
	write(t, r, 20)
	r.Signer = key(2)
	j, stop := r.start(t)
	rep, err := j.Verify(t.Context())
	must(t, err)
	finds(t, rep, "not signed by a known key")
	must(t, stop())
	r.Keys = []ed25519.PublicKey{key(1).Public().(ed25519.PublicKey)}
	j, stop = r.start(t)
	rep, err = j.Verify(t.Context())
	must(t, err)
	whole(t, rep)
	must(t, stop())
}

// The signature of a head is over a message of its own kind.
func TestHeadMessage(t *testing.T) {
	a := Head{Seq: 1, At: time.Unix(5, 6), Segment: 2}
	seen := map[string]string{}
	for name, h := range map[string]Head{
		"as it is":          a,
		"another line":      {Seq: 2, At: a.At, Segment: 2},
		"another hash":      {Seq: 1, At: a.At, Segment: 2, Hash: digest{1}},
		"another time":      {Seq: 1, At: time.Unix(6, 5), Segment: 2},
		"another segment":   {Seq: 1, At: a.At, Segment: 3},
		"a clean end":       {Seq: 1, At: a.At, Segment: 2, Closed: true},
		"another signature": {Seq: 1, At: a.At, Segment: 2, Signature: []byte("x")},
	} {
		m := string(h.message("i"))
		if name == "another signature" {
			if m != string(a.message("i")) {
				t.Error("the signature is signed")
			}
			continue
		}
		if other, ok := seen[m]; ok {
			t.Errorf("%s and %s sign the same", name, other)
		}
		seen[m] = name
		if strings.HasPrefix(string(h.message("j")), m) {
			t.Error("another instance signs the same")
		}
	}
}

func TestVerifyStops(t *testing.T) {
	r := newRig(t)
	write(t, r, 20)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, r.Dir, nil, nil); err == nil {
		t.Error("Verify went on though it was told to stop")
	}
}
