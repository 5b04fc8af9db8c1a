package journal

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

func (r *rig) reader(t testing.TB) *Reader {
	t.Helper()
	rd, err := OpenReader(ReaderConfig{Dir: r.Dir, Log: r.Log})
	must(t, err)
	t.Cleanup(func() { rd.Close() })
	return rd
}

// A Reader gives what another process takes, in its order, each once, over rotation
// and starts, and ends with all that is there when it is closed.
func TestReader(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 5_000
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		must(t, j.Append(t.Context(), audittest.Denied("0")))
		rd := r.reader(t)
		var got []string
		var reading sync.WaitGroup
		reading.Go(func() {
			for rec, err := range rd.Records(t.Context(), audit.Query{Follow: true}) {
				must(t, err)
				got = append(got, rec.Entry.Common.Reason.Words)
			}
		})
		for i := range 100 {
			must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i+1))))
			if i%7 == 0 {
				time.Sleep(100 * time.Millisecond)
			}
			if i == 50 {
				must(t, stop())
				j, stop = r.start(t)
			}
		}
		time.Sleep(250 * time.Millisecond)
		synctest.Wait()
		if len(got) != 101 {
			t.Errorf("%d records after a quarter of a second, want 101", len(got))
		}
		must(t, j.Append(t.Context(), audittest.Denied("101")))
		must(t, rd.Close())
		reading.Wait()
		for i, w := range got {
			if w != fmt.Sprint(i) {
				t.Fatalf("record %d is %q", i, w)
			}
		}
		if len(got) != 102 {
			t.Errorf("%d records, want 102", len(got))
		}
		if all := audittest.Collect(t, rd, audit.Query{Limit: 3}); len(all) != 3 || all[2].Entry.Common.Reason.Words != "101" {
			t.Errorf("the last are %+v", all)
		}
		s, err := rd.Stats()
		must(t, err)
		if w := j.Stats(); s.Segments != w.Segments || s.Bytes != w.Bytes {
			t.Errorf("%+v, and the journal says %+v", s, w)
		}
		must(t, stop())
	})
}

// A line that is not finished is not given until it is; what is cut off and written
// anew is given as it is then.
func TestReaderTorn(t *testing.T) {
	r := newRig(t)
	write(t, r, 4)
	name := path(r.Dir, 1)
	whole, err := os.ReadFile(name)
	must(t, err)
	rd := r.reader(t)
	if got := audittest.Collect(t, rd, audit.Query{}); len(got) != 4 {
		t.Fatalf("%d records", len(got))
	}
	lines := readLines(t, name)
	var ends []int // of records
	end := 0
	for _, l := range lines {
		end += len(l) + 1
		if strings.Contains(l, `"kind":"record"`) {
			ends = append(ends, end)
		}
	}
	for cut := range len(whole) {
		if cut%97 != 0 {
			continue
		}
		must(t, os.WriteFile(name, whole[:cut], 0o600))
		want := 0
		for _, e := range ends {
			if e <= cut {
				want++
			}
		}
		if got := audittest.Collect(t, rd, audit.Query{}); len(got) != want {
			t.Fatalf("%d records of %d bytes, want %d", len(got), cut, want)
		}
	}
	must(t, os.WriteFile(name, whole, 0o600))
	synctest.Test(t, func(t *testing.T) {
		rd := r.reader(t)
		var got []string
		var reading sync.WaitGroup
		reading.Go(func() {
			for rec, err := range rd.Records(t.Context(), audit.Query{Follow: true}) {
				must(t, err)
				got = append(got, rec.Metadata.ID)
			}
		})
		time.Sleep(time.Second)
		must(t, os.Truncate(name, int64(ends[2]+10)))
		time.Sleep(time.Second)
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt(whole[ends[2]:], int64(ends[2]))
		must(t, err)
		must(t, f.Close())
		time.Sleep(time.Second)
		must(t, rd.Close())
		reading.Wait()
		if len(got) != 5 || got[3] != got[4] {
			t.Errorf("got %q, want four and the last again", got)
		}
	})
}

// Retention may be faster than a Reader, and then it is told.
func TestReaderOvertaken(t *testing.T) {
	r := newRig(t)
	r.SegmentSize, r.Retention.Size = 5_000, 15_000
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		must(t, j.Append(t.Context(), audittest.Denied("0")))
		rd := r.reader(t)
		n := 0
		for rec, err := range rd.Records(t.Context(), audit.Query{Follow: true}) {
			if n++; n == 1 {
				if err != nil || rec.Entry.Common.Reason.Words != "0" {
					t.Fatalf("%+v %v", rec, err)
				}
				for i := range 200 {
					must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i+1))))
					time.Sleep(100 * time.Millisecond)
				}
				continue
			}
			if _, ok := err.(*OvertakenError); !ok {
				t.Errorf("got %v, want an OvertakenError", err)
			}
		}
		if got := audittest.Collect(t, rd, audit.Query{}); len(got) == 0 || got[len(got)-1].Entry.Common.Reason.Words != "200" {
			t.Errorf("%d records are there", len(got))
		}
		must(t, stop())
	})
}

func TestReaderRefuses(t *testing.T) {
	if _, err := OpenReader(ReaderConfig{Dir: filepath.Join(t.TempDir(), "none"), Log: newRig(t).Log}); err == nil {
		t.Error("a directory that is not there is read")
	}
	if _, err := OpenReader(ReaderConfig{}); err == nil {
		t.Error("no directory is read")
	}
}

func TestBusy(t *testing.T) {
	r := newRig(t)
	busy := func() bool {
		t.Helper()
		b, err := Busy(r.Dir)
		must(t, err)
		return b
	}
	if busy() {
		t.Error("what is not there is busy")
	}
	_, stop := r.start(t)
	if !busy() {
		t.Error("what is open is not busy")
	}
	if _, err := Open(t.Context(), r.Config); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("opened twice: %v", err)
	}
	must(t, stop())
	if busy() {
		t.Error("what is closed is busy")
	}
}

// A journal that another process writes, and deletes from, is verified without a
// finding that is none, and what is wrong is found.
func TestVerifyLive(t *testing.T) {
	r := newRig(t)
	r.SegmentSize, r.Retention.Size = 5_000, 20_000
	keys := []ed25519.PublicKey{key(1).Public().(ed25519.PublicKey)}
	live := func() api.VerifyReport {
		t.Helper()
		rep, err := VerifyLive(t.Context(), r.Dir, r.Instance, keys, r.marks)
		must(t, err)
		return rep
	}
	j, stop := r.start(t)
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range 3000 {
			must(t, j.Note(audittest.Denied(fmt.Sprint(i))))
			if i%10 == 0 {
				must(t, j.Append(t.Context(), audittest.Denied("x")))
			}
		}
	})
	for range 20 {
		whole(t, live())
	}
	writing.Wait()
	rep := live()
	whole(t, rep)
	all := Join(map[string]api.VerifyReport{"a": rep, "b": rep})
	if !all.OK || all.Records != 2*rep.Records || all.Segments != 2*rep.Segments || all.Heads != 2*rep.Heads {
		t.Errorf("joined %+v of %+v", all, rep)
	}
	must(t, stop())
	ns, err := listSegments(r.Dir)
	must(t, err)
	must(t, os.Remove(path(r.Dir, ns[len(ns)-1])))
	bad := live()
	all = Join(map[string]api.VerifyReport{"a": rep, "b": bad})
	if bad.OK || all.OK || len(all.Findings) != len(bad.Findings) || !strings.HasPrefix(all.Findings[0], "b: ") {
		t.Errorf("joined %+v", all)
	}
	r.marks.m = nil
	finds(t, live(), "No mark of this journal is kept")
}

// While one process writes, another reads; once the first is dead, the other takes
// the journal over and ends what was open.
func TestReadAnother(t *testing.T) {
	dir := t.TempDir()
	c := exec.Command(os.Args[0], "-test.run=^$")
	c.Env = append(os.Environ(), "JOURNAL_TEST_CHILD="+dir)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	must(t, err)
	must(t, c.Start())
	lines := bufio.NewScanner(out)
	lines.Scan() // it writes
	cfg := childConfig(dir)
	if b, err := Busy(cfg.Dir); err != nil || !b {
		t.Errorf("the journal of the other process is busy: %v, %v", b, err)
	}
	if _, err := Open(t.Context(), cfg); err == nil {
		t.Fatal("the journal of the other process can be opened")
	}
	rd, err := OpenReader(ReaderConfig{Dir: cfg.Dir, Log: cfg.Log})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	given := map[string]bool{}
	n := make(chan int, 1000)
	var reading sync.WaitGroup
	reading.Go(func() {
		for rec, err := range rd.Records(ctx, audit.Query{Follow: true}) {
			must(t, err)
			if given[rec.Metadata.ID] {
				t.Errorf("record %s is given twice", rec.Metadata.ID)
			}
			given[rec.Metadata.ID] = true
			select {
			case n <- len(given):
			default:
			}
		}
	})
	var acknowledged []string
	killed := false
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) == 3 {
			acknowledged = append(acknowledged, f[0])
		}
		if !killed && len(acknowledged) > 500 && <-n > 100 {
			must(t, c.Process.Kill())
			killed = true
		}
	}
	c.Wait()
	if b, err := Busy(cfg.Dir); err != nil || b {
		t.Errorf("the journal of a dead process is busy: %v, %v", b, err)
	}
	j, err := Open(t.Context(), cfg)
	must(t, err)
	done, stop := context.WithCancel(t.Context())
	stop()
	must(t, j.Run(done))
	rep, err := j.Verify(t.Context())
	must(t, err)
	whole(t, rep)
	cancel() // what is there by now is given
	reading.Wait()
	for _, id := range acknowledged {
		if !given[id] {
			t.Errorf("record %s was acknowledged and not given", id)
		}
	}
	all := audittest.Collect(t, rd, audit.Query{})
	if len(all) != len(given) || rep.Open != 0 {
		t.Errorf("%d records are there and %d were given; %d connections are open", len(all), len(given), rep.Open)
	}
	if last := all[len(all)-1].Entry.Info.TCP; last.Type != api.LogEnd || last.CloseReason != crashed {
		t.Errorf("the last record is %+v", last)
	}
}
