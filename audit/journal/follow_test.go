package journal

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

// follow returns what Follow yields until the record with the last words.
func follow(t *testing.T, j *Journal, from audit.Position, last string) (all []string, end audit.Position) {
	t.Helper()
	for e, err := range j.Follow(t.Context(), from) {
		must(t, err)
		end = e.At
		if e.Lost > 0 {
			all = append(all, fmt.Sprint("lost ", e.Lost))
			continue
		}
		rec, err := (&line{Record: e.JSON}).record()
		must(t, err)
		w := rec.Entry.Common.Reason.Words
		if all = append(all, w); w == last {
			break
		}
	}
	return all, end
}

// A place stays good over rotation and starts, from wherever it is.
func TestFollowFrom(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 5000
	j, stop := r.start(t)
	var places []audit.Position
	for i := range 60 {
		must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
		written, _ := j.End()
		places = append(places, written)
		if i%20 == 10 {
			must(t, stop())
			j, stop = r.start(t)
		}
	}
	if s := j.Stats(); s.Segments < 5 || s.Records != 60 {
		t.Fatalf("%+v", s)
	}
	for i, from := range places[:59] {
		if from.Record != int64(i+1) {
			t.Errorf("record %d is counted as %d", i, from.Record)
		}
		all, end := follow(t, j, from, "59")
		if len(all) != 59-i || all[0] != fmt.Sprint(i+1) || end.Record != 60 {
			t.Errorf("from %+v come %d records, from %q on, up to %+v", from, len(all), all[0], end)
		}
	}
	must(t, stop())
	n := 0
	for _, err := range j.Follow(t.Context(), places[29]) { // ends, as the journal has
		must(t, err)
		n++
	}
	if n != 30 {
		t.Errorf("%d records after the end, want 30", n)
	}
}

// A place behind a part that is missing is found though the lines there have other
// numbers than their count says.
func TestFollowBehindGap(t *testing.T) {
	r := newRig(t)
	write(t, r, 20)
	lines := readLines(t, path(r.Dir, 1))
	must(t, os.WriteFile(path(r.Dir, 1), []byte(strings.Join(lines[:13], "\n")+"\n"), 0o600))
	j, _ := r.start(t)
	must(t, j.Append(t.Context(), audittest.Denied("a")))
	at, _ := j.End()
	must(t, j.Append(t.Context(), audittest.Denied("b")))
	if all, end := follow(t, j, at, "b"); len(all) != 1 || end.Line != at.Line+1 || end.Record != at.Record+1 {
		t.Errorf("behind %+v comes %q at %+v", at, all, end)
	}
}

// What retention deleted before it was given is counted to the record.
func TestFollowOvertaken(t *testing.T) {
	r := newRig(t)
	r.SegmentSize, r.Retention.Size = 5_000, 15_000
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		must(t, j.Append(t.Context(), audittest.Denied("0")))
		at, _ := j.End()
		for i := range 200 {
			must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i+1))))
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		all, _ := follow(t, j, at, "200")
		lost := 0
		if _, err := fmt.Sscanf(all[0], "lost %d", &lost); err != nil || lost < 100 || lost+len(all)-1 != 200 || all[1] != fmt.Sprint(lost+1) {
			t.Errorf("%q", all[:2])
		}
		if all, _ := follow(t, j, audit.Position{}, "200"); len(all) != 200-lost {
			t.Errorf("who begins gets %d records, want the %d that are there", len(all), 200-lost)
		}
		must(t, stop())
	})
}

// Once the head that lets it go is signed, the beginning can be told to have been
// let go with the files alone; what else is cut off there is found.
func TestRetentionWithoutMark(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 5_000
	j, stop := r.start(t)
	for i := range 100 {
		must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
	}
	j.keeper.retain(Retention{Size: 20_000})
	must(t, stop())
	begins := r.mark(t).Oldest
	keys := []ed25519.PublicKey{key(1).Public().(ed25519.PublicKey)}
	rep, err := Verify(t.Context(), r.Dir, keys, nil)
	must(t, err)
	whole(t, rep)
	if begins.Segment == 1 || !says(rep.Notes, fmt.Sprintf("begins with line %d of the chain: retention deleted", begins.Seq)) {
		t.Errorf("the journal begins at %+v; notes %q", begins, rep.Notes)
	}
	must(t, os.Remove(path(r.Dir, begins.Segment)))
	rep, err = Verify(t.Context(), r.Dir, keys, nil)
	must(t, err)
	finds(t, rep, "not by retention")
}

// The configuration is followed while the journal runs.
func TestConfigure(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 300_000
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		eio := errors.New("input/output error")
		must(t, j.Append(t.Context(), audittest.Denied("1")))
		if s := j.Stats(); s.Unsynced != 1 {
			t.Errorf("%+v", s)
		}
		j.Configure(api.ClusterAudit{Durability: api.DurabilityDisk})
		must(t, j.Append(t.Context(), audittest.Denied("2")))
		if s := j.Stats(); s.Unsynced != 0 || s.Lag != 0 || s.Records != 2 || s.LastSync != time.Now() {
			t.Errorf("%+v", s)
		}
		r.disk.syncs.Store(&eio)
		if err := j.Append(t.Context(), audittest.Denied("lost")); !errors.Is(err, eio) {
			t.Errorf("Append returned %v before it was on disk", err)
		}
		r.disk.syncs.Store(nil)
		j.Configure(api.ClusterAudit{})
		must(t, j.Append(t.Context(), audittest.Denied("3")))
		time.Sleep(500 * time.Millisecond)
		if s := j.Stats(); s.Unsynced != 1 || s.Lag != 500*time.Millisecond {
			t.Errorf("%+v", s)
		}
		for i := range 1000 { // more than a megabyte
			must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i, strings.Repeat(" x", 400)))))
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if s := j.Stats(); s.Bytes < 1<<20 || s.Segments < 4 {
			t.Fatalf("%+v", s)
		}
		one := 1
		j.Configure(api.ClusterAudit{Retention: &api.AuditRetention{MaxSizeMegabytes: 1}})
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if s := j.Stats(); s.Bytes > 1<<20 || s.Bytes < 1<<19 {
			t.Errorf("%+v", s)
		}
		j.Configure(api.ClusterAudit{Retention: &api.AuditRetention{MaxAge: &api.Duration{Hours: &one}}})
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := audittest.Collect(t, j, audit.Query{}); len(got) != 0 {
			t.Errorf("%d records are older than they may be", len(got))
		}
		must(t, stop())
	})
	whole(t, r.verify(t))
}

// The key changes while the journal runs; from then on the old one is of no use.
func TestSetSigner(t *testing.T) {
	r := newRig(t)
	public := func(n byte) ed25519.PublicKey { return key(n).Public().(ed25519.PublicKey) }
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		must(t, j.Append(t.Context(), audittest.Denied("1")))
		time.Sleep(time.Second)
		synctest.Wait()
		must(t, j.SetSigner(key(2)))
		must(t, j.Append(t.Context(), audittest.Denied("2")))
		time.Sleep(time.Second)
		synctest.Wait()
		if m := r.mark(t); m.Head.Key != KeyID(public(2)) || !m.Head.signedBy(r.Instance, []ed25519.PublicKey{public(2)}) {
			t.Errorf("the head is signed by %s", m.Head.Key)
		}
		rep, err := j.Verify(t.Context())
		must(t, err)
		whole(t, rep)
		must(t, stop())
	})
	both := []ed25519.PublicKey{public(1), public(2)}
	rep, err := Verify(t.Context(), r.Dir, both, r.mark(t))
	must(t, err)
	whole(t, rep)
	finds(t, r.verify(t), "not signed by a known key") // which knows the first

	// The next start has the new one, and knows the old one.
	r.Signer, r.Keys = key(2), both[:1]
	j, stop := r.start(t)
	must(t, j.Append(t.Context(), audittest.Denied("3")))
	must(t, stop())
	rep, err = Verify(t.Context(), r.Dir, both, r.mark(t))
	must(t, err)
	whole(t, rep)

	// Whoever has the old one still cannot sign for the new one.
	r.Signer, r.Keys = key(1), both[1:]
	j, stop = r.start(t)
	must(t, j.Append(t.Context(), audittest.Denied("4")))
	must(t, stop())
	rep, err = Verify(t.Context(), r.Dir, both, r.mark(t))
	must(t, err)
	finds(t, rep, "holds a head of the key "+KeyID(public(1))+", which had been replaced by another")

	if err := j.SetSigner(nil); err == nil {
		t.Error("no signer is a signer")
	}
}
