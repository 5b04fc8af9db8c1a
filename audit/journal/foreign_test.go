package journal

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

// ended makes a journal with three records that ended cleanly.
func ended(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	j, stop := r.start(t)
	for _, words := range []string{"1", "2", "3"} {
		must(t, j.Append(t.Context(), audittest.Denied(words)))
	}
	must(t, stop())
	rep := r.verify(t)
	whole(t, rep)
	if len(rep.Notes) > 0 || !r.mark(t).Head.Closed {
		t.Fatalf("after a clean end: %+v, %+v", rep, r.mark(t))
	}
	return r
}

// forge returns the line that would come next, with a record of words.
func forge(t *testing.T, lines []string, words string) string {
	t.Helper()
	rec, err := audit.AppendRecord(nil, audittest.Denied(words))
	must(t, err)
	return next(t, lines, kindRecord, string(rec))
}

// forgeSegment returns a segment that follows upon lines.
func forgeSegment(t *testing.T, lines []string) []string {
	t.Helper()
	out := append(slices.Clone(lines), next(t, lines, kindOpen, `{"format":1,"connections":[],"left":0}`))
	out = append(out, forge(t, out, "forged"))
	return out[len(lines):]
}

func writeLines(t *testing.T, path string, lines ...string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
}

// Whoever adds lines while nothing runs is found, before the next start and ever
// after, and the lines are not taken for records.
func TestForeign(t *testing.T) {
	for _, c := range []struct {
		name string
		add  func(t *testing.T, r *rig, lines []string)
		want string // before the start
		says string // after it
	}{
		{"a record", func(t *testing.T, r *rig, ls []string) {
			writeLines(t, path(r.Dir, 1), append(ls, forge(t, ls, "forged"))...)
		}, "line 7 stands behind a clean end", "says that 1 lines were added behind a clean end"},
		{"a record and the beginning of another", func(t *testing.T, r *rig, ls []string) {
			writeLines(t, path(r.Dir, 1), append(ls, forge(t, ls, "forged"), `{"seq":8`)...)
			b, err := os.ReadFile(path(r.Dir, 1))
			must(t, err)
			must(t, os.WriteFile(path(r.Dir, 1), b[:len(b)-1], 0o600))
		}, "line 7 stands behind a clean end", "says that 1 lines were added behind a clean end"},
		{"a head of another key and a record", func(t *testing.T, r *rig, ls []string) {
			l, err := parseLine([]byte(ls[len(ls)-1]))
			must(t, err)
			h := Head{Seq: l.Seq, Hash: sum(ls[len(ls)-1]), At: l.At, Segment: 1}
			must(t, h.sign("test-1", key(2)))
			b, err := h.Hash.MarshalText()
			must(t, err)
			ls = append(ls, next(t, ls, kindHead, `{"seq":6,"hash":"`+string(b)+`","at":"`+h.At.Format(time.RFC3339Nano)+
				`","segment":1,"signature":"`+encoded(h.Signature)+`"}`))
			writeLines(t, path(r.Dir, 1), append(ls, forge(t, ls, "forged"))...)
		}, "line 7 holds a head that is not signed by a known key", "says that 2 lines were added"},
		{"an old head and a record", func(t *testing.T, r *rig, ls []string) {
			ls = append(ls, ls[1])
			writeLines(t, path(r.Dir, 1), append(ls, forge(t, ls, "forged"))...)
		}, "line 7 is line 2 of the chain", "says that 2 lines were added"},
		{"the clean end again and a record", func(t *testing.T, r *rig, ls []string) {
			ls = append(ls, ls[5])
			writeLines(t, path(r.Dir, 1), append(ls, forge(t, ls, "forged"))...)
		}, "line 7 stands behind a clean end", "says that 2 lines were added"},
		{"no line of a journal", func(t *testing.T, r *rig, ls []string) {
			writeLines(t, path(r.Dir, 1), append(ls, "forged")...)
		}, "line 7 is no line of a journal", "says that 1 lines were added"},
		{"a segment", func(t *testing.T, r *rig, ls []string) {
			writeLines(t, path(r.Dir, 2), forgeSegment(t, ls)...)
		}, "0000000002.log line 1 stands behind a clean end", "says that 2 lines were added"},
		{"a record and a segment", func(t *testing.T, r *rig, ls []string) {
			ls = append(ls, forge(t, ls, "forged"))
			writeLines(t, path(r.Dir, 1), ls...)
			writeLines(t, path(r.Dir, 2), forgeSegment(t, ls)...)
		}, "0000000001.log line 7 stands behind a clean end", "says that 3 lines were added"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := ended(t)
			lines := readLines(t, path(r.Dir, 1))
			if len(lines) != 6 {
				t.Fatalf("%d lines, and the cases count on 6", len(lines))
			}
			c.add(t, r, lines)
			finds(t, r.verify(t), c.want)
			for i := range 2 {
				j, stop := r.start(t)
				must(t, j.Append(t.Context(), audittest.Denied("after")))
				rep, err := j.Verify(t.Context())
				must(t, err)
				finds(t, rep, c.says)
				var words []string
				for _, rec := range audittest.Collect(t, j, audit.Query{}) {
					words = append(words, rec.Entry.Common.Reason.Words)
				}
				if got, want := strings.Join(words, " "), "1 2 3"+strings.Repeat(" after", i+1); got != want {
					t.Errorf("records %q, want %q", got, want)
				}
				must(t, stop())
				finds(t, r.verify(t), c.says)
				if n := len(r.verify(t).Findings); n != 1 {
					t.Errorf("%d findings, want the one", n)
				}
			}
			all, err := filepath.Glob(filepath.Join(r.Dir, "*.foreign"))
			must(t, err)
			var evidence []byte
			for _, name := range all {
				b, err := os.ReadFile(name)
				must(t, err)
				evidence = append(evidence, b...)
			}
			if !bytes.Contains(evidence, []byte("forged")) {
				t.Errorf("what was added is in none of %q", all)
			}
		})
	}
}

// A crash while lines are set aside does not hide them.
func TestForeignInterrupted(t *testing.T) {
	r := ended(t)
	lines := readLines(t, path(r.Dir, 1))
	good, closed := lines, r.mark(t)
	writeLines(t, path(r.Dir, 1), append(slices.Clone(lines), forge(t, lines, "forged"))...)
	j, err := open(t.Context(), r.Config, r.disk.create)
	must(t, err)
	die(t, j)
	finds(t, r.verify(t), "says that 1 lines were added")

	// The mark was kept, the lines were cut off, and no more.
	writeLines(t, path(r.Dir, 1), good...)
	closed.Foreign = &Foreign{Lines: 1, Files: []string{"0000000001.log.6.foreign"}}
	must(t, writeMark(t.Context(), r.marks, closed))
	reopen(t, r)
	finds(t, r.verify(t), "says that 1 lines were added")
	if r.mark(t).Foreign != nil {
		t.Error("the mark still says what the chain says now")
	}
}

// Clean ends and starts leave nothing to say, also if nothing happens between.
func TestCleanEnds(t *testing.T) {
	r := ended(t)
	for range 10 {
		j, stop := r.start(t)
		if r.mark(t).Head.Closed {
			t.Error("the journal runs, and its mark says that it has ended")
		}
		rep, err := j.Verify(t.Context())
		must(t, err)
		whole(t, rep)
		must(t, stop())
		rep = r.verify(t)
		whole(t, rep)
		if len(rep.Notes) > 0 || rep.Records != 3 || !r.mark(t).Head.Closed {
			t.Errorf("got %+v and %+v", rep, r.mark(t))
		}
	}
}

// A clean end that is cut off is missed.
func TestCleanEndCut(t *testing.T) {
	r := ended(t)
	lines := readLines(t, path(r.Dir, 1))
	for n := 2; n < len(lines); n++ {
		r := &rig{Config: r.Config, marks: &marks{m: map[string][]byte{}}, disk: r.disk}
		must(t, writeMark(t.Context(), r.marks, (&rig{Config: r.Config, marks: r.Marks.(*marks)}).mark(t)))
		r.Marks, r.Dir = r.marks, filepath.Join(t.TempDir(), "log")
		must(t, os.Mkdir(r.Dir, 0o700))
		writeLines(t, path(r.Dir, 1), lines[:n]...)
		finds(t, r.verify(t), "The end was cut off")
		reopen(t, r)
		finds(t, r.verify(t), "the end of the journal was cut off")
	}
}

// Who writes the end anew from an older head on, and hides it behind a segment
// that says all that a start needs, is found too.
func TestEndWrittenAnew(t *testing.T) {
	for _, clean := range []bool{true, false} {
		r := ended(t)
		if !clean {
			r = newRig(t)
			write(t, r, 20)
		}
		lines := readLines(t, path(r.Dir, 1))
		marked := len(lines)
		for lines = lines[:2]; len(lines) < marked; {
			lines = append(lines, forge(t, lines, "forged"))
		}
		writeLines(t, path(r.Dir, 1), lines...)
		writeLines(t, path(r.Dir, 2), forgeSegment(t, lines)...)
		reopen(t, r)
		finds(t, r.verify(t), "the last line that was signed and kept is another one now")
		reopen(t, r)
		finds(t, r.verify(t), "the last line that was signed and kept is another one now")
	}
}

// What is taken over after a crash is counted.
func TestTakenOver(t *testing.T) {
	r := ended(t)
	j, err := open(t.Context(), r.Config, r.disk.create)
	must(t, err)
	e := new(records)
	for range 7 {
		must(t, e.encode(audittest.Denied("x")))
	}
	must(t, j.tail.write(true, e))
	die(t, j)
	for range 2 {
		reopen(t, r)
		rep := r.verify(t)
		whole(t, rep)
		if len(rep.Notes) != 1 || !says(rep.Notes, "taken over after a crash (7 lines)") || rep.Records != 10 {
			t.Errorf("got %+v", rep)
		}
	}
}

// A process may die after any byte that it writes: in a start after a clean end,
// while it runs, and while it ends. Nothing of that is a finding.
func TestDieAnywhere(t *testing.T) {
	r := ended(t)
	// First a crash that leaves a start much to do.
	j, err := open(t.Context(), r.Config, r.disk.create)
	must(t, err)
	start, _ := audittest.Connection(time.Now())
	e := new(records)
	must(t, e.encode(start))
	must(t, j.tail.write(true, e))
	must(t, j.tail.sign(true))
	_, err = j.keeper.keep(t.Context())
	must(t, err)
	die(t, j)

	type state struct {
		size int
		mark []byte
	}
	var states []state
	var content []byte
	look := func() {
		var err error
		content, err = os.ReadFile(path(r.Dir, 1))
		must(t, err)
		mark, err := r.marks.Mark(t.Context(), MarkName(r.Instance))
		must(t, err)
		states = append(states, state{len(content), mark})
	}
	look()
	j, err = open(t.Context(), r.Config, r.disk.create)
	must(t, err)
	look()
	e = new(records)
	must(t, e.encode(audittest.Denied("x")))
	must(t, j.tail.write(true, e))
	release(t, j)
	look()
	for i, s := range states[:len(states)-1] {
		dies := func(size int) {
			again := newRig(t)
			must(t, os.Mkdir(again.Dir, 0o700))
			must(t, os.WriteFile(path(again.Dir, 1), content[:size], 0o600))
			must(t, again.marks.SetMark(t.Context(), MarkName(r.Instance), s.mark))
			whole(t, again.verify(t))
			for range 2 {
				j, err := open(t.Context(), again.Config, again.disk.create)
				must(t, err)
				if again.mark(t).Head.Closed {
					t.Error("the journal runs, and its mark says that it has ended")
				}
				die(t, j)
				rep := again.verify(t)
				whole(t, rep)
				if rep.Open != 0 {
					t.Errorf("%d connections are open and their process is dead", rep.Open)
				}
			}
			if t.Failed() {
				t.Fatalf("with mark %d, after %d of %d bytes, %q", i, size-s.size, states[i+1].size-s.size, content[max(0, size-50):size])
			}
		}
		for size := s.size; size <= states[i+1].size; size++ {
			if size%101 == 0 || size == states[i+1].size || slices.Contains(content[max(0, size-2):min(len(content), size+1)], '\n') {
				dies(size)
			}
		}
	}
}

// SIGKILL at a start after a clean end, and right after it.
func TestKillAtStart(t *testing.T) {
	dir := t.TempDir()
	for round := range 12 {
		j, err := Open(t.Context(), childConfig(dir))
		must(t, err)
		rep, err := j.Verify(t.Context())
		must(t, err)
		whole(t, rep)
		release(t, j)

		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		c.Env = append(os.Environ(), "JOURNAL_TEST_CHILD="+dir)
		out, err := c.StdoutPipe()
		must(t, err)
		must(t, c.Start())
		if round%3 == 0 {
			// As soon as the start has written anything.
			name := lastSegment(t, childConfig(dir).Dir)
			before, err := os.Stat(name)
			must(t, err)
			for now := before; now.Size() == before.Size(); {
				now, err = os.Stat(name)
				must(t, err)
			}
		} else {
			bufio.NewScanner(out).Scan() // the first record
		}
		must(t, c.Process.Kill())
		c.Wait()
	}
	j, err := Open(context.Background(), childConfig(dir))
	must(t, err)
	var rep api.VerifyReport
	rep, err = j.Verify(t.Context())
	must(t, err)
	whole(t, rep)
	release(t, j)
}

func lastSegment(t *testing.T, dir string) string {
	t.Helper()
	ns, err := listSegments(dir)
	must(t, err)
	return path(dir, ns[len(ns)-1])
}
