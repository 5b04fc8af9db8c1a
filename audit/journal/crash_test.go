package journal

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

// fileMarks keeps marks in files.
type fileMarks string

func (d fileMarks) file(name string) string {
	return filepath.Join(string(d), strings.ReplaceAll(name, "/", "_"))
}

func (d fileMarks) SetMark(_ context.Context, name string, v []byte) error {
	tmp := d.file(name) + ".new"
	if err := os.WriteFile(tmp, v, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, d.file(name))
}

func (d fileMarks) Mark(_ context.Context, name string) ([]byte, error) {
	b, err := os.ReadFile(d.file(name))
	if os.IsNotExist(err) {
		return nil, nil
	}
	return b, err
}

func childConfig(dir string) Config {
	return Config{Dir: filepath.Join(dir, "log"), Instance: "test-1", Signer: key(1), Marks: fileMarks(dir),
		SegmentSize: 50_000, Log: slog.New(slog.DiscardHandler)}
}

// child writes connections for ever and prints each id once it is acknowledged, as
// that of an END that was noted never is. Every third connection stays open.
func child(dir string) int {
	j, err := Open(context.Background(), childConfig(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var out sync.Mutex
	acknowledged := func(rec *api.AccessLog) {
		out.Lock()
		defer out.Unlock()
		fmt.Println(rec.Metadata.ID, rec.Entry.Info.TCP.Type, rec.Entry.Common.ConnectionID)
	}
	for caller := range 8 {
		go func() {
			for i := 0; ; i++ {
				start, end := audittest.Connection(time.Now())
				if caller%2 == 0 {
					m, err := j.Begin(start)
					if err != nil || j.Keep(m) != nil {
						return
					}
					acknowledged(start)
					if i%3 != 0 && j.Note(end) != nil {
						return
					}
					continue
				}
				if j.Append(context.Background(), start) != nil {
					return
				}
				acknowledged(start)
				if i%3 == 0 {
					continue
				}
				if j.Append(context.Background(), end) != nil {
					return
				}
				acknowledged(end)
			}
		}()
	}
	err = j.Run(context.Background())
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// What is acknowledged survives SIGKILL, and what was open then is ended.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[string]bool{}
	open := map[string]bool{}
	for round := range 3 {
		c := exec.Command(os.Args[0], "-test.run=^$")
		c.Env = append(os.Environ(), "JOURNAL_TEST_CHILD="+dir)
		c.Stderr = os.Stderr
		out, err := c.StdoutPipe()
		must(t, err)
		must(t, c.Start())
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if n == 300+round {
				must(t, c.Process.Kill())
			}
			f := strings.Fields(lines.Text())
			if len(f) != 3 {
				continue // killed while it printed
			}
			acknowledged[f[0]] = true
			if f[1] == "START" {
				open[f[2]] = true
			}
		}
		c.Wait()

		j, err := Open(t.Context(), childConfig(dir))
		must(t, err)
		rep, err := j.Verify(t.Context())
		must(t, err)
		whole(t, rep)
		if rep.Open != 0 {
			t.Errorf("%d connections are open and their process is dead", rep.Open)
		}
		kept := map[string]bool{}
		ends := map[string]int{}
		crashes := 0
		for _, rec := range audittest.Collect(t, j, audit.Query{}) {
			kept[rec.Metadata.ID] = true
			if rec.Entry.Info.TCP.Type == api.LogEnd {
				ends[rec.Entry.Common.ConnectionID]++
			}
			if rec.Entry.Info.TCP.CloseReason == crashed {
				crashes++
				checkCrashed(t, &rec)
			}
		}
		for id := range acknowledged {
			if !kept[id] {
				t.Errorf("record %s was acknowledged and is lost", id)
			}
		}
		for id := range open {
			if ends[id] != 1 {
				t.Errorf("connection %s has %d ENDs", id, ends[id])
			}
		}
		if crashes < 50 {
			t.Errorf("%d connections ended with CRASHED, want a third of some 200", crashes)
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		must(t, j.Run(done))
	}
}

// checkCrashed checks the END of a connection whose process died.
func checkCrashed(t *testing.T, rec *api.AccessLog) {
	t.Helper()
	c, i := rec.Entry.Common, rec.Entry.Info.TCP
	if *i.ReceivedBytes != -1 || *i.SentBytes != -1 || i.Error == "" || c.EndedAt.IsZero() ||
		c.UserRef == nil || c.UserRef.Name != "usr1" || c.DecisionID == "" || c.StartedAt.IsZero() || rec.Metadata.TargetRef == nil {
		t.Errorf("END of a crashed connection: %+v %+v", c, i)
	}
}

// write makes a journal with so many records, a head after each ten, and one
// open connection, whose process dies after the last head was kept.
func write(t *testing.T, r *rig, count int) {
	t.Helper()
	j, err := open(t.Context(), r.Config, r.disk.create)
	must(t, err)
	start, _ := audittest.Connection(time.Now())
	recs := []*api.AccessLog{start}
	for i := range count - 1 {
		recs = append(recs, audittest.Denied(fmt.Sprint(i)))
	}
	for some := range slices.Chunk(recs, 10) {
		e := new(records)
		for _, rec := range some {
			must(t, e.encode(rec))
		}
		must(t, j.tail.write(true, e))
		must(t, j.sign())
	}
	_, err = j.keeper.keep(t.Context())
	must(t, err)
	die(t, j)
}

// die lets a journal go as a crash does.
func die(t *testing.T, j *Journal) {
	t.Helper()
	must(t, j.keeper.close())
	must(t, j.lock.Close())
}

// release lets a journal go that was never run.
func release(t *testing.T, j *Journal) {
	t.Helper()
	done, cancel := context.WithCancel(context.Background())
	cancel()
	must(t, j.Run(done))
}

// reopen opens a journal, lets it mend what is to be mended, and closes it.
func reopen(t *testing.T, r *rig) {
	t.Helper()
	j, err := open(t.Context(), r.Config, r.disk.create)
	must(t, err)
	release(t, j)
}

func TestTornLastLine(t *testing.T) {
	for _, torn := range []string{`{`, `{"seq":17,"prev":"`, strings.Repeat("\x00", 5000)} {
		r := newRig(t)
		write(t, r, 10)
		f, err := os.OpenFile(path(r.Dir, 1), os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString(torn)
		must(t, err)
		must(t, f.Close())
		rep := r.verify(t)
		whole(t, rep)
		if !says(rep.Notes, "never finished") {
			t.Errorf("notes before the start: %q", rep.Notes)
		}
		reopen(t, r)
		rep = r.verify(t)
		whole(t, rep)
		if !says(rep.Notes, fmt.Sprintf("(%d bytes)", len(torn))) || rep.Records != 11 || rep.Open != 0 {
			t.Errorf("after the start: %+v", rep)
		}
	}
}

// A crash right after the file of a new segment was made.
func TestTornFirstLine(t *testing.T) {
	r := newRig(t)
	write(t, r, 10)
	must(t, os.WriteFile(path(r.Dir, 2), []byte(`{"seq":14,"pre`), 0o600))
	reopen(t, r)
	rep := r.verify(t)
	whole(t, rep)
	if rep.Segments != 1 || rep.Open != 0 {
		t.Errorf("got %+v", rep)
	}
}

// A crash while the list of open connections was being written: it is read from
// the segment before.
func TestTornOpenList(t *testing.T) {
	r := newRig(t)
	j, err := open(t.Context(), r.Config, r.disk.create)
	must(t, err)
	for range 12 {
		e := new(records)
		for range openPerLine / 10 {
			start, _ := audittest.Connection(time.Now())
			must(t, e.encode(start))
		}
		must(t, j.tail.write(true, e))
	}
	must(t, j.tail.head())
	must(t, j.tail.rotate())
	release(t, j)
	ns, err := listSegments(r.Dir)
	must(t, err)
	last := ns[len(ns)-1]
	lines := readLines(t, path(r.Dir, last))
	if len(ns) < 2 || !strings.Contains(lines[1], `"kind":"open"`) {
		t.Fatalf("%d segments, and the second line of the last is %.200s", len(ns), lines[1])
	}
	// As a crash would leave it: the mark is of before the rotation.
	m := r.mark(t)
	before := readLines(t, path(r.Dir, last-1))
	l, err := parseLine([]byte(before[len(before)-1]))
	must(t, err)
	m.Head, m.Line = *l.Head, sum(before[len(before)-1])
	must(t, writeMark(t.Context(), r.marks, m))
	must(t, os.WriteFile(path(r.Dir, last), []byte(lines[0]+"\n"+lines[1][:100]), 0o600))

	reopen(t, r)
	rep := r.verify(t)
	if rep.Open != 0 {
		t.Errorf("%d connections are still open", rep.Open)
	}
	var ends int
	eachRecord(t, r, func(rec *api.AccessLog) {
		if rec.Entry.Info.TCP.CloseReason == crashed {
			checkCrashed(t, rec)
			ends++
		}
	})
	starts := 0
	for _, n := range ns[:len(ns)-1] {
		for _, l := range readLines(t, path(r.Dir, n)) {
			if strings.Contains(l, `"type":"START"`) {
				starts++
			}
		}
	}
	if ends != starts {
		t.Errorf("%d connections ended of %d", ends, starts)
	}
}

// eachRecord reads the records of the files.
func eachRecord(t *testing.T, r *rig, f func(*api.AccessLog)) {
	t.Helper()
	ns, err := listSegments(r.Dir)
	must(t, err)
	for _, n := range ns {
		for _, text := range readLines(t, path(r.Dir, n)) {
			l, err := parseLine([]byte(text))
			must(t, err)
			if l.Kind == kindRecord {
				rec, err := l.record()
				must(t, err)
				f(rec)
			}
		}
	}
}

// A connection that outlives the segment of its START is ended all the same.
func TestCrashedWithoutStart(t *testing.T) {
	r := newRig(t)
	write(t, r, 10)
	r.SegmentSize, r.Retention.Size = 10_000, 20_000
	// Its END is written first, and then retention would take the START; so keep
	// the connection open through a rotation and remove the first segment as
	// retention does.
	j, stop := r.start(t)
	start, _ := audittest.Connection(time.Now())
	must(t, j.Append(t.Context(), start))
	for i := range 100 {
		must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
	}
	must(t, stop())
	if r.mark(t).Oldest.Segment == 1 {
		t.Fatal("retention kept the first segment")
	}
	reopen(t, r)
	rep := r.verify(t)
	whole(t, rep)
	found := false
	eachRecord(t, r, func(rec *api.AccessLog) {
		if rec.Entry.Common.ConnectionID == start.Entry.Common.ConnectionID {
			found = rec.Entry.Info.TCP.CloseReason == crashed && strings.Contains(rec.Entry.Info.TCP.Error, "START is not kept")
		}
	})
	if !found {
		t.Error("the connection has no END")
	}
}

// A flow of datagrams that was live at a crash is ended as one.
func TestCrashedFlow(t *testing.T) {
	r := newRig(t)
	j, err := open(t.Context(), r.Config, r.disk.create)
	must(t, err)
	start, _ := audittest.Connection(time.Now())
	start.Entry.Info = api.AccessLogInfo{UDP: &api.UDPInfo{TCPInfo: api.TCPInfo{Type: api.LogStart}}}
	e := new(records)
	must(t, e.encode(start))
	must(t, j.tail.write(true, e))
	must(t, j.sign())
	_, err = j.keeper.keep(t.Context())
	must(t, err)
	die(t, j)
	reopen(t, r)
	whole(t, r.verify(t))
	var last api.AccessLogInfo
	eachRecord(t, r, func(rec *api.AccessLog) { last = rec.Entry.Info })
	if u := last.UDP; u == nil || last.TCP != nil || u.Type != api.LogEnd || u.CloseReason != crashed || *u.ReceivedBytes != -1 || *u.SentPackets != -1 {
		t.Errorf("the last record says %+v", last)
	}
}

// A crash after the mark moved and before the old segments were removed.
func TestRetentionInterrupted(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 10_000
	j, stop := r.start(t)
	for i := range 100 {
		must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
	}
	must(t, stop())
	m := r.mark(t)
	s, err := readSegment(r.Dir, 3)
	must(t, err)
	// Without the key nobody has segments deleted.
	begins := m.Oldest
	m.Oldest = s.Start
	must(t, writeMark(t.Context(), r.marks, m))
	finds(t, r.verify(t), "and its signature does not")
	m.Head.Oldest = &s.Start
	must(t, writeMark(t.Context(), r.marks, m))
	finds(t, r.verify(t), "not signed by a known key")
	reopen(t, r)
	if ns, _ := listSegments(r.Dir); ns[0] != 1 || r.mark(t).Oldest != begins {
		t.Errorf("the oldest segment is %d, want 1", ns[0])
	}

	m = r.mark(t)
	m.Oldest, m.Head.Oldest = s.Start, &s.Start
	must(t, m.Head.sign(r.Instance, key(1)))
	must(t, writeMark(t.Context(), r.marks, m))
	rep := r.verify(t)
	whole(t, rep)
	if !says(rep.Notes, fmt.Sprintf("The journal begins with line %d of the chain: retention deleted what was before it.", s.Seq)) {
		t.Errorf("notes: %q", rep.Notes)
	}
	reopen(t, r)
	whole(t, r.verify(t))
	if ns, _ := listSegments(r.Dir); ns[0] != 3 {
		t.Errorf("the oldest segment is %d, want 3", ns[0])
	}
}

// The store forgot the mark: said, and not held against the files.
func TestNoMark(t *testing.T) {
	r := newRig(t)
	write(t, r, 10)
	r.marks.m = nil
	reopen(t, r)
	rep := r.verify(t)
	whole(t, rep)
	if !says(rep.Notes, "no mark of this journal is kept") {
		t.Errorf("notes: %q", rep.Notes)
	}
}

func says(all []string, words string) bool {
	return slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, words) })
}

// readLines returns the lines of a file.
func readLines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// The mark holds what the documentation says, so that it can be read elsewhere.
func TestMark(t *testing.T) {
	r := newRig(t)
	write(t, r, 10)
	b, err := r.marks.Mark(t.Context(), "journal/test-1/head")
	must(t, err)
	var m Mark
	must(t, json.Unmarshal(b, &m))
	lines := readLines(t, path(r.Dir, 1))
	if m.Instance != "test-1" || int(m.Head.Seq) != len(lines)-1 || m.Head.Hash != sum(lines[len(lines)-2]) ||
		m.Line != sum(lines[len(lines)-1]) || m.Oldest != (Start{Segment: 1, Seq: 1}) {
		t.Errorf("mark %s", b)
	}
}
