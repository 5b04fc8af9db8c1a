package journal

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("JOURNAL_TEST_CHILD"); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m)
}

// marks keeps marks in memory.
type marks struct {
	mu  sync.Mutex
	m   map[string][]byte
	err error
}

func (m *marks) SetMark(_ context.Context, name string, v []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if m.m == nil {
		m.m = map[string][]byte{}
	}
	m.m[name] = v
	return nil
}

func (m *marks) Mark(_ context.Context, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m[name], nil
}

func (m *marks) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// key returns the key number n.
func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string([]byte{n}), ed25519.SeedSize)))
}

// disk makes files that can be told to fail.
type disk struct {
	writes, syncs, truncates atomic.Pointer[error]
	partial                  atomic.Int64 // bytes that a failing write still writes
}

type faulty struct {
	file
	d *disk
}

func (d *disk) create(path string) (file, error) {
	f, err := createFile(path)
	return faulty{f, d}, err
}

func (f faulty) WriteAt(b []byte, at int64) (int, error) {
	if err := f.d.writes.Load(); err != nil {
		n := min(int(f.d.partial.Load()), len(b))
		f.file.WriteAt(b[:n], at)
		return n, *err
	}
	return f.file.WriteAt(b, at)
}

func (f faulty) Sync() error {
	if err := f.d.syncs.Load(); err != nil {
		return *err
	}
	return f.file.Sync()
}

func (f faulty) Truncate(n int64) error {
	if err := f.d.truncates.Load(); err != nil {
		return *err
	}
	return f.file.Truncate(n)
}

// rig is a directory, a store and a key that outlive journals.
type rig struct {
	Config
	marks *marks
	disk  *disk
}

func newRig(t testing.TB) *rig {
	m := new(marks)
	return &rig{Config: Config{
		Dir: filepath.Join(t.TempDir(), "log"), Instance: "test-1", Signer: key(1), Marks: m,
		Log: slog.New(slog.DiscardHandler),
	}, marks: m, disk: new(disk)}
}

// start opens a journal and runs it; stop ends it. It is stopped at the end of
// the test anyway.
func (r *rig) start(t testing.TB) (j *Journal, stop func() error) {
	t.Helper()
	j, err := open(t.Context(), r.Config, r.disk.create)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { stop() })
	return j, stop
}

func (r *rig) mark(t testing.TB) *Mark {
	t.Helper()
	m, err := ReadMark(context.Background(), r.marks, r.Instance)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// verify verifies the files with the mark.
func (r *rig) verify(t testing.TB) api.VerifyReport {
	t.Helper()
	rep, err := Verify(context.Background(), r.Dir, []ed25519.PublicKey{key(1).Public().(ed25519.PublicKey)}, r.mark(t))
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// whole expects a report without findings.
func whole(t testing.TB, rep api.VerifyReport) {
	t.Helper()
	if !rep.OK || len(rep.Findings) > 0 {
		t.Errorf("the journal is not whole: %q", rep.Findings)
	}
}

func path(dir string, n int64) string { return filepath.Join(dir, segmentName(n)) }

func TestLog(t *testing.T) {
	for _, d := range []api.Durability{api.DurabilityProcess, api.DurabilityDisk} {
		t.Run(string(d), func(t *testing.T) {
			audittest.Run(t, func(t *testing.T) audittest.Subject {
				r := newRig(t)
				r.Durability = d
				r.SegmentSize = 20_000 // so that there are several
				j, stop := r.start(t)
				t.Cleanup(func() {
					must(t, stop())
					whole(t, r.verify(t))
				})
				failure := errors.New("no space left")
				return audittest.Subject{Log: j, Reader: j, Source: j,
					Break: func() { r.disk.partial.Store(100); r.disk.writes.Store(&failure) },
					Mend:  func() { r.disk.writes.Store(nil) },
					Close: func() { must(t, stop()) },
				}
			})
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no directory":       func(c *Config) { c.Dir = "" },
		"no signer":          func(c *Config) { c.Signer = nil },
		"a hostile instance": func(c *Config) { c.Instance = `a","seq":1` },
		"a durability":       func(c *Config) { c.Durability = "MAYBE" },
	} {
		r := newRig(t)
		change(&r.Config)
		if _, err := Open(t.Context(), r.Config); err == nil {
			t.Errorf("%s: Open has no error", name)
		}
	}
	r := newRig(t)
	_, stop := r.start(t)
	if _, err := Open(t.Context(), r.Config); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second Open returned %v, want that the journal is in use", err)
	}
	must(t, stop())
	r.Instance = "test-2"
	if _, err := Open(t.Context(), r.Config); err == nil || !strings.Contains(err.Error(), "test-2") {
		t.Errorf("Open of the journal of another instance returned %v", err)
	}
}

func TestPermissions(t *testing.T) {
	r := newRig(t)
	_, stop := r.start(t)
	must(t, stop())
	dir, err := os.Stat(r.Dir)
	must(t, err)
	f, err := os.Stat(path(r.Dir, 1))
	must(t, err)
	if dir.Mode().Perm() != 0o700 || f.Mode().Perm() != 0o600 {
		t.Errorf("directory %v, file %v; want 0700 and 0600", dir.Mode().Perm(), f.Mode().Perm())
	}
}

func TestAppendAfterRun(t *testing.T) {
	r := newRig(t)
	j, stop := r.start(t)
	must(t, j.Append(t.Context(), audittest.Denied("1")))
	must(t, stop())
	if err := j.Append(t.Context(), audittest.Denied("2")); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("Append returned %v, want ErrClosed", err)
	}
	if got := audittest.Collect(t, j, audit.Query{Follow: true}); len(got) != 1 {
		t.Errorf("%d records, want the one that was kept", len(got))
	}
}

// A caller that gives up before its records are being written leaves nothing.
func TestAppendWithdrawn(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		j, err := Open(t.Context(), r.Config)
		must(t, err)
		j.hold() // somebody writes
		waiting, cancel := context.WithCancel(t.Context())
		given := make(chan error)
		go func() { given <- j.Append(waiting, audittest.Denied("withdrawn")) }()
		go func() { given <- j.Append(t.Context(), audittest.Denied("kept")) }()
		synctest.Wait()
		cancel()
		if err := <-given; !errors.Is(err, context.Canceled) {
			t.Errorf("Append returned %v", err)
		}
		j.mu.Lock()
		j.pass()
		j.mu.Unlock()
		must(t, <-given)
		stopped, stop := context.WithCancel(t.Context())
		stop()
		must(t, j.Run(stopped))
		got := audittest.Collect(t, j, audit.Query{})
		if len(got) != 1 || got[0].Entry.Common.Reason.Words != "kept" {
			t.Errorf("kept %+v", got)
		}
	})
	whole(t, r.verify(t))
}

func TestTooLong(t *testing.T) {
	r := newRig(t)
	j, _ := r.start(t)
	long := func(n int) *api.AccessLog {
		rec := audit.New(time.Now())
		rec.Entry.Info.API = &api.APIInfo{Verb: "update", After: []byte(`"` + strings.Repeat("x", n) + `"`)}
		return rec
	}
	if err := j.Append(t.Context(), long(maxRecord)); !errors.Is(err, audit.ErrMalformed) {
		t.Errorf("Append of a record that no reader would read returned %v, want ErrMalformed", err)
	}
	must(t, j.Append(t.Context(), long(maxRecord-1000)))
	if got := audittest.Collect(t, j, audit.Query{}); len(got) != 1 {
		t.Errorf("%d records, want 1", len(got))
	}
}

// The head is signed within a second of the first new line, and no more while
// there is nothing new.
func TestHeadEachSecond(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		before := r.mark(t).Head.Seq
		heads := func() int64 {
			rep, err := j.Verify(t.Context())
			must(t, err)
			whole(t, rep)
			return rep.Heads
		}
		first := heads()
		time.Sleep(10 * time.Second)
		if n := heads(); n != first {
			t.Errorf("%d heads were signed of nothing", n-first)
		}
		for range 3 {
			must(t, j.Append(t.Context(), audittest.Denied("x")))
			must(t, j.Append(t.Context(), audittest.Denied("y")))
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if n := heads(); n != first+3 {
			t.Errorf("%d heads in three seconds, want 3", n-first)
		}
		// 2 records and 1 head a second; a head signs what is before it.
		if n := r.mark(t).Head.Seq; n != before+9 {
			t.Errorf("the mark signs line %d, want %d", n, before+9)
		}
		must(t, stop())
	})
}

// While the store cannot keep the mark, records are still taken; the mark follows.
func TestMarkFollows(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		r.marks.fail(errors.New("store is away"))
		before := r.mark(t).Head.Seq
		must(t, j.Append(t.Context(), audittest.Denied("x")))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := r.mark(t).Head.Seq; n != before {
			t.Fatalf("the mark moved to %d", n)
		}
		r.marks.fail(nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.mark(t).Head.Seq; n <= before {
			t.Error("the mark did not follow when the store was back")
		}
		must(t, stop())
	})
}

func TestRotation(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 10_000
	j, stop := r.start(t)
	start, end := audittest.Connection(time.Now())
	must(t, j.Append(t.Context(), start))
	for i := range 100 {
		must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
	}
	must(t, j.Append(t.Context(), end))
	rep, err := j.Verify(t.Context())
	must(t, err)
	whole(t, rep)
	if rep.Records != 102 || rep.Segments < 4 || rep.Heads < int64(rep.Segments)-1 {
		t.Errorf("got %+v; want 102 records in several segments, each with a signed end", rep)
	}
	must(t, stop())
	whole(t, r.verify(t))
	ns, err := listSegments(r.Dir)
	must(t, err)
	for _, n := range ns {
		info, err := os.Stat(path(r.Dir, n))
		must(t, err)
		if info.Size() > 12_000 {
			t.Errorf("segment %d has %d bytes", n, info.Size())
		}
	}
	if got := audittest.Collect(t, j, audit.Query{}); len(got) != 102 {
		t.Errorf("%d records come back, want 102", len(got))
	}
}

// A journal of many starts is one chain.
func TestReopen(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		j, stop := r.start(t)
		start, end := audittest.Connection(time.Now())
		must(t, j.Append(t.Context(), start, end))
		must(t, stop())
		rep := r.verify(t)
		whole(t, rep)
		if rep.Records != int64(i+1)*2 || len(rep.Notes) > 0 {
			t.Errorf("start %d: %+v", i, rep)
		}
	}
}

func TestRetentionBySize(t *testing.T) {
	r := newRig(t)
	r.SegmentSize, r.Retention.Size = 10_000, 40_000
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		start, end := audittest.Connection(time.Now())
		must(t, j.Append(t.Context(), start)) // its segment will go
		for i := range 300 {
			must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		must(t, j.Append(t.Context(), end))
		rep, err := j.Verify(t.Context())
		must(t, err)
		whole(t, rep)
		got := audittest.Collect(t, j, audit.Query{})
		if len(got) == 0 || len(got) > 100 || got[len(got)-1].Metadata.ID != end.Metadata.ID {
			t.Errorf("%d records are left", len(got))
		}
		must(t, stop())
		deleteOneMore(t, r)
	})
}

// deleteOneMore deletes a segment that retention kept, and expects to be found
// out, also after the next start.
func deleteOneMore(t *testing.T, r *rig) {
	t.Helper()
	rep := r.verify(t)
	whole(t, rep)
	if rep.Segments > 5 || r.mark(t).Oldest.Segment == 1 {
		t.Errorf("%d segments are left, want about 4: %+v", rep.Segments, r.mark(t).Oldest)
	}
	must(t, os.Remove(path(r.Dir, r.mark(t).Oldest.Segment)))
	finds(t, r.verify(t), "not by retention")
	_, stop := r.start(t)
	must(t, stop())
	finds(t, r.verify(t), "not by retention")
}

func TestRetentionByAge(t *testing.T) {
	r := newRig(t)
	r.SegmentSize, r.Retention.Age = 10_000, time.Hour
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		for i := range 50 {
			must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
		}
		time.Sleep(30 * time.Minute)
		must(t, j.Append(t.Context(), audittest.Denied("young")))
		time.Sleep(29 * time.Minute)
		if got := audittest.Collect(t, j, audit.Query{}); len(got) != 51 {
			t.Errorf("%d records are left before their time", 51-len(got))
		}
		time.Sleep(9 * time.Minute) // an hour and an eighth after they were made
		synctest.Wait()
		rep, err := j.Verify(t.Context())
		must(t, err)
		whole(t, rep)
		got := audittest.Collect(t, j, audit.Query{})
		if len(got) != 1 || got[0].Entry.Common.Reason.Words != "young" {
			t.Errorf("%d records are left, want the young one", len(got))
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if s := j.Stats(); s.Segments > 2 {
			t.Errorf("where nothing happens there are %d segments", s.Segments)
		}
		must(t, stop())
		whole(t, r.verify(t))
	})
}

// A reader that is slower than retention is told so, and one that only begins is
// not.
func TestOvertaken(t *testing.T) {
	r := newRig(t)
	r.SegmentSize, r.Retention.Size = 10_000, 20_000
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		must(t, j.Append(t.Context(), audittest.Denied("first")))
		var last error
		n := 0
		for rec, err := range j.Records(t.Context(), audit.Query{Follow: true}) {
			last = err
			if n++; rec.Metadata.ID == "" {
				break
			}
			for i := range 100 {
				must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		if over, ok := errors.AsType[*OvertakenError](last); !ok || over.From != 4 || over.To < 50 {
			t.Errorf("after %d records the reader got %v, want that it was overtaken from line 4 on", n, last)
		}
		if got := audittest.Collect(t, j, audit.Query{}); len(got) == 0 {
			t.Error("a new reader gets nothing")
		}
		must(t, stop())
	})
}

// Since skips segments; what it skips must not match.
func TestSince(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 5_000
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		var at []time.Time
		for range 40 {
			rec := audittest.Denied("x")
			at = append(at, rec.Metadata.CreatedAt)
			must(t, j.Append(t.Context(), rec))
			time.Sleep(time.Minute)
		}
		for i := range at {
			if got := audittest.Collect(t, j, audit.Query{Since: at[i]}); len(got) != 40-i {
				t.Errorf("since the %d-th: %d records, want %d", i, len(got), 40-i)
			}
			if got := audittest.Collect(t, j, audit.Query{Until: at[i]}); len(got) != i {
				t.Errorf("until the %d-th: %d records, want %d", i, len(got), i)
			}
		}
		must(t, stop())
	})
}

// A follower gets every record once, in order, over rotations, while others
// write.
func TestFollowThroughRotation(t *testing.T) {
	r := newRig(t)
	r.SegmentSize = 10_000
	j, stop := r.start(t)
	const n = 500
	var wg sync.WaitGroup
	wg.Go(func() {
		i := 0
		for rec, err := range j.Records(context.Background(), audit.Query{Follow: true}) {
			if err != nil {
				t.Error(err)
			}
			if got := rec.Entry.Common.Reason.Words; got != fmt.Sprint(i) {
				t.Errorf("got record %s, want %d", got, i)
			}
			i++
		}
		if i != n {
			t.Errorf("followed %d records, want %d", i, n)
		}
	})
	for i := range n {
		must(t, j.Append(t.Context(), audittest.Denied(fmt.Sprint(i))))
	}
	must(t, stop()) // ends the follower too, once it has all
	wg.Wait()
}

func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			r := newRig(b)
			r.Retention.Size = 256 << 20
			j, _ := r.start(b)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					start, _ := audittest.Connection(time.Now())
					for left.Add(-1) >= 0 {
						rec := *start
						rec.Metadata.ID, rec.Entry.Common.ConnectionID = api.NewID(), "c"
						if err := j.Append(b.Context(), &rec); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
