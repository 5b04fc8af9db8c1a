package journal

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

// While nothing can be written, Append fails and Healthy says why; once it can,
// the journal goes on by itself and says how many records it refused.
func TestTrouble(t *testing.T) {
	full := errors.New("no space left on device")
	for _, c := range []struct {
		name       string
		break_     func(*disk)
		durability api.Durability
	}{
		{"nothing is written", func(d *disk) { d.writes.Store(&full) }, api.DurabilityProcess},
		{"half a line is written", func(d *disk) { d.partial.Store(300); d.writes.Store(&full) }, api.DurabilityProcess},
		{"half a line is written and cannot be cut off", func(d *disk) {
			d.partial.Store(300)
			d.writes.Store(&full)
			d.truncates.Store(&full)
		}, api.DurabilityProcess},
		{"what is written cannot be synced", func(d *disk) { d.syncs.Store(&full) }, api.DurabilityDisk},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.Durability = c.durability
			synctest.Test(t, func(t *testing.T) {
				j, stop := r.start(t)
				must(t, j.Append(t.Context(), audittest.Denied("before")))
				must(t, j.Healthy())
				c.break_(r.disk)
				for range 3 {
					if err := j.Append(t.Context(), audittest.Denied("lost")); !errors.Is(err, full) {
						t.Errorf("Append returned %v, want why it cannot be written", err)
					}
					if err := j.Healthy(); !errors.Is(err, full) {
						t.Errorf("Healthy returned %v, want why it cannot be written", err)
					}
				}
				r.disk.writes.Store(nil)
				r.disk.truncates.Store(nil)
				r.disk.syncs.Store(nil)
				time.Sleep(time.Second) // nobody calls Append: nobody is let in
				synctest.Wait()
				must(t, j.Healthy())
				must(t, j.Append(t.Context(), audittest.Denied("after")))
				must(t, stop())
				var got []string
				for _, rec := range audittest.Collect(t, j, audit.Query{}) {
					got = append(got, rec.Entry.Common.Reason.Words)
				}
				if strings.Join(got, " ") != "before after" {
					t.Errorf("kept %q", got)
				}
			})
			rep := r.verify(t)
			whole(t, rep)
			if !says(rep.Notes, "no space left on device (3 records were refused)") {
				t.Errorf("notes %q do not say what was refused", rep.Notes)
			}
		})
	}
}

// What was acknowledged and may not have reached the disk is trouble too: nobody
// is let in until it has.
func TestSyncFails(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		eio := errors.New("input/output error")
		r.disk.syncs.Store(&eio)
		must(t, j.Append(t.Context(), audittest.Denied("1")))
		before := r.mark(t).Head.Seq
		time.Sleep(time.Second)
		synctest.Wait()
		if err := j.Healthy(); !errors.Is(err, eio) {
			t.Errorf("Healthy returned %v", err)
		}
		if err := j.Append(t.Context(), audittest.Denied("2")); !errors.Is(err, eio) {
			t.Errorf("Append returned %v", err)
		}
		if r.mark(t).Head.Seq != before {
			t.Error("the mark says that lines are on disk that are not")
		}
		r.disk.syncs.Store(nil)
		must(t, j.Append(t.Context(), audittest.Denied("3")))
		must(t, j.Healthy())
		must(t, stop())
	})
	rep := r.verify(t)
	whole(t, rep)
	if !says(rep.Notes, "may not have reached the disk: input/output error (1 records were refused)") {
		t.Errorf("notes: %q", rep.Notes)
	}
}

// Records that go to a file which nobody can find are not kept. The journal goes
// on once the directory is back, and what is gone is found.
func TestDirectoryRemoved(t *testing.T) {
	r := newRig(t)
	var clock atomic.Int64 // the journal looks for its file each five milliseconds
	r.Now = func() time.Time { return time.Now().Add(time.Duration(clock.Add(1)) * lull) }
	j, stop := r.start(t)
	start, end := audittest.Connection(time.Now())
	must(t, j.Append(t.Context(), start))
	must(t, os.Rename(r.Dir, r.Dir+".away"))
	if err := j.Append(t.Context(), audittest.Denied("lost")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Append returned %v, want that the file is not there", err)
	}
	if err := j.Healthy(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Healthy returned %v, want that the file is not there", err)
	}

	// It comes back as it was: nothing is lost.
	must(t, os.Rename(r.Dir+".away", r.Dir))
	must(t, j.Append(t.Context(), audittest.Denied("back")))
	must(t, j.Healthy())
	rep, err := j.Verify(t.Context())
	must(t, err)
	whole(t, rep)

	// It comes back empty: new records are kept, and the old ones are missed.
	must(t, os.RemoveAll(r.Dir))
	must(t, os.Mkdir(r.Dir, 0o700))
	if err := j.Append(t.Context(), audittest.Denied("lost")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Append returned %v, want that the file is not there", err)
	}
	must(t, j.Append(t.Context(), end))
	must(t, j.Healthy())
	if _, err := os.Stat(filepath.Join(r.Dir, segmentName(2))); err != nil {
		t.Errorf("where is the record? %v", err)
	}
	rep, err = j.Verify(t.Context())
	must(t, err)
	finds(t, rep, "Segment 0000000001.log is missing.")
	must(t, stop())
	finds(t, r.verify(t), "were removed, and not by retention")
}

// A signer that fails does not stop the log; the heads come when it is back.
func TestSignerFails(t *testing.T) {
	r := newRig(t)
	s := &signer{PrivateKey: key(1)}
	r.Signer = s
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		s.err.Store(true)
		must(t, j.Append(t.Context(), audittest.Denied("1")))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		must(t, j.Append(t.Context(), audittest.Denied("2")))
		rep, err := j.Verify(t.Context())
		must(t, err)
		if !says(rep.Notes, "2 lines are not signed yet") {
			t.Errorf("notes: %q", rep.Notes)
		}
		s.err.Store(false)
		must(t, stop())
	})
	rep := r.verify(t)
	whole(t, rep)
	if rep.Heads != 2 || len(rep.Notes) > 0 {
		t.Errorf("got %+v, want that the last head signs all", rep)
	}
}

// A signer can be told to fail.
type signer struct {
	ed25519.PrivateKey
	err atomic.Bool
}

func (s *signer) Sign(rand io.Reader, m []byte, o crypto.SignerOpts) ([]byte, error) {
	if s.err.Load() {
		return nil, errors.New("the key is away")
	}
	return s.PrivateKey.Sign(rand, m, o)
}
