package journal

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

// kept returns the words of the records that the journal has.
func kept(t *testing.T, j audit.Reader) string {
	t.Helper()
	var all []string
	for _, rec := range audittest.Collect(t, j, audit.Query{}) {
		all = append(all, rec.Entry.Common.Reason.Words)
	}
	return strings.Join(all, " ")
}

// What nobody waits for is written within five milliseconds, and once nothing is written
// any more nothing wakes the journal.
func TestLull(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		for range 3 {
			time.Sleep(time.Minute)
			synctest.Wait()
			j.mu.Lock()
			if j.soon || j.busy {
				t.Errorf("the journal is idle and will be woken: soon %v, busy %v", j.soon, j.busy)
			}
			j.mu.Unlock()
			before := j.Stats().Records
			must(t, j.Note(audittest.Denied("noted")))
			m, err := j.Begin(audittest.Denied("begun"))
			must(t, err)
			time.Sleep(lull)
			synctest.Wait()
			if n := j.Stats().Records - before; n != 2 {
				t.Errorf("%d records are written after %v, want both", n, lull)
			}
			must(t, j.Keep(m))
			time.Sleep(second)
			synctest.Wait()
			if s := j.Stats(); s.Unsynced != 0 {
				t.Errorf("%+v a second later", s)
			}
		}
		must(t, stop())
	})
	whole(t, r.verify(t))
}

// What is owed is written by the journal itself, once it can be.
func TestOwed(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		if j.Slow() {
			t.Error("the journal is slow, and need not wait for the disk")
		}
		full := errors.New("no space left on device")
		r.disk.writes.Store(&full)
		for _, w := range []string{"1", "2", "3"} {
			must(t, j.Note(audittest.Denied(w)))
			time.Sleep(lull)
			synctest.Wait()
		}
		if n := j.Owes(); n != 3 || !j.Slow() {
			t.Errorf("owes %d, want 3; slow: %v", n, j.Slow())
		}
		if _, err := j.Begin(audittest.Denied("lost")); !errors.Is(err, full) {
			t.Errorf("Begin returned %v", err)
		}
		r.disk.writes.Store(nil)
		time.Sleep(second)
		synctest.Wait()
		if n := j.Owes(); n != 0 || j.Slow() {
			t.Errorf("owes %d a second later; slow: %v", n, j.Slow())
		}
		if got := kept(t, j); got != "1 2 3" {
			t.Errorf("kept %q", got)
		}
		must(t, stop())
	})
	rep := r.verify(t)
	whole(t, rep)
	if !says(rep.Notes, "no space left on device (1 records were refused)") {
		t.Errorf("notes: %q", rep.Notes)
	}
}

// What is owed when the journal is closed is lost, and it says so.
func TestOwedLost(t *testing.T) {
	r := newRig(t)
	var words bytes.Buffer
	r.Log = slog.New(slog.NewTextHandler(&words, nil))
	j, stop := r.start(t)
	must(t, j.Append(t.Context(), audittest.Denied("1")))
	full := errors.New("no space left on device")
	r.disk.writes.Store(&full)
	must(t, j.Note(audittest.Denied("2")))
	if err := j.Append(t.Context(), audittest.Denied("3")); !errors.Is(err, full) {
		t.Errorf("Append returned %v", err)
	}
	if err := stop(); !errors.Is(err, full) {
		t.Errorf("Run returned %v", err)
	}
	if !strings.Contains(words.String(), "records of what has happened are lost") || !strings.Contains(words.String(), "records=1") {
		t.Errorf("the log says\n%s", &words)
	}
	if got := kept(t, j); got != "1" {
		t.Errorf("kept %q", got)
	}
}

// With the durability DISK a record is on disk when Keep returns, and the journal says
// that this takes a while.
func TestKeepOnDisk(t *testing.T) {
	r := newRig(t)
	r.Durability = api.DurabilityDisk
	j, stop := r.start(t)
	if !j.Slow() {
		t.Error("the journal is not slow, and waits for the disk")
	}
	m, err := j.Begin(audittest.Denied("1"))
	must(t, err)
	must(t, j.Keep(m))
	if s := j.Stats(); s.Records != 1 || s.Unsynced != 0 {
		t.Errorf("%+v", s)
	}
	must(t, stop())
}

// A segment lists the connections that are open, however many they are and whatever they
// are called.
func TestManyOpen(t *testing.T) {
	r := newRig(t)
	j, stop := r.start(t)
	const n = 2*openPerLine + 1
	for i := range n {
		start, _ := audittest.Connection(time.Now())
		if i%100 == 0 {
			start.Entry.Common.ConnectionID += "\"\\\n\x1b ü"
		}
		must(t, j.Note(start))
	}
	must(t, j.Append(t.Context(), audittest.Denied("x")))
	j.hold()
	must(t, j.tail.rotate())
	j.mu.Lock()
	j.pass()
	j.mu.Unlock()
	must(t, stop())
	rep := r.verify(t)
	whole(t, rep)
	if rep.Open != n || rep.Segments != 2 {
		t.Errorf("%+v", rep)
	}
	reopen(t, r)
	if rep = r.verify(t); rep.Open != 0 || rep.Records != 2*n+1 {
		t.Errorf("%+v", rep)
	}
}
