package merge_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
	"cardea/audit/memory"
	"cardea/audit/merge"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rec returns a record that was made n milliseconds after a certain time.
func rec(words string, n int) *api.AccessLog {
	r := audittest.Denied(words)
	r.Metadata.CreatedAt = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Millisecond)
	return r
}

// set is a set of parts that changes.
type set struct {
	mu    sync.Mutex
	parts []merge.Part
}

func (s *set) get() []merge.Part {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.parts)
}

func (s *set) put(parts ...merge.Part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts = parts
}

// log returns a log with records made at these times, with them as their words.
func log(t *testing.T, name string, times ...int) *memory.Log {
	l := new(memory.Log)
	for _, n := range times {
		must(t, l.Append(t.Context(), rec(fmt.Sprint(name, n), n)))
	}
	return l
}

func collect(t *testing.T, r audit.Reader, q audit.Query) string {
	t.Helper()
	var all []string
	for _, rec := range audittest.Collect(t, r, q) {
		all = append(all, rec.Entry.Common.Reason.Words)
	}
	return strings.Join(all, " ")
}

func TestRecords(t *testing.T) {
	a, b, none := log(t, "a", 1, 4, 5, 9), log(t, "b", 2, 3, 7, 6), log(t, "c")
	for _, c := range []struct {
		parts []audit.Reader
		limit int
		want  string
	}{
		{nil, 0, ""},
		{[]audit.Reader{a}, 0, "a1 a4 a5 a9"},
		{[]audit.Reader{a, b, none}, 0, "a1 b2 b3 a4 a5 b7 b6 a9"}, // what one log has keeps its order
		{[]audit.Reader{a, b, none}, 3, "b7 b6 a9"},
		{[]audit.Reader{a, b}, 100, "a1 b2 b3 a4 a5 b7 b6 a9"},
		{[]audit.Reader{none}, 2, ""},
	} {
		var s set
		for i, r := range c.parts {
			s.parts = append(s.parts, merge.Part{Name: fmt.Sprint(i), Reader: r})
		}
		if got := collect(t, merge.New(s.get), audit.Query{Limit: c.limit}); got != c.want {
			t.Errorf("%d parts, limit %d: got %q, want %q", len(c.parts), c.limit, got, c.want)
		}
	}
}

// Whatever the parts, all comes, in the order of each and, if that is in time, in time.
func TestRecordsOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var s set
		var want []int
		for i := range rapid.IntRange(0, 4).Draw(rt, "parts") {
			times := rapid.SliceOfN(rapid.IntRange(0, 30), 0, 12).Draw(rt, "times")
			slices.Sort(times)
			want = append(want, times...)
			s.parts = append(s.parts, merge.Part{Name: fmt.Sprint(i), Reader: log(t, "", times...)})
		}
		slices.Sort(want)
		limit := rapid.IntRange(0, 20).Draw(rt, "limit")
		if limit > 0 {
			want = want[max(0, len(want)-limit):]
		}
		var all []string
		for _, n := range want {
			all = append(all, fmt.Sprint(n))
		}
		if got := collect(t, merge.New(s.get), audit.Query{Limit: limit}); got != strings.Join(all, " ") {
			rt.Fatalf("got %s, want %v", got, want)
		}
	})
}

// following is somebody who follows.
type following struct {
	mu  sync.Mutex
	all []string
	end chan error
}

func follow(ctx context.Context, r audit.Reader, q audit.Query) *following {
	f := &following{end: make(chan error, 1)}
	q.Follow = true
	go func() {
		var last error
		for rec, err := range r.Records(ctx, q) {
			if last = err; err == nil {
				f.mu.Lock()
				f.all = append(f.all, rec.Entry.Common.Reason.Words)
				f.mu.Unlock()
			}
		}
		f.end <- last
	}()
	return f
}

func (f *following) got() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.all, " ")
}

func (f *following) expect(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	if got := f.got(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is there comes in time order, what comes then within half a second; parts come
// and go.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := log(t, "a", 1, 4, 5), log(t, "b", 2, 3, 7)
		pa, pb := merge.Part{Name: "a", Reader: a}, merge.Part{Name: "b", Reader: b}
		s := &set{parts: []merge.Part{pa, pb}}
		ctx, cancel := context.WithCancel(t.Context())
		f := follow(ctx, merge.New(s.get), audit.Query{})
		time.Sleep(time.Second)
		want := "a1 b2 b3 a4 a5 b7"
		f.expect(t, want)

		must(t, a.Append(ctx, rec("a10", 10))) // b has had nothing for long
		want += " a10"
		f.expect(t, want)
		must(t, b.Append(ctx, rec("b12", 12)))
		must(t, a.Append(ctx, rec("a11", 11)))
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if got := f.got(); got != want+" b12 a11" && got != want+" a11 b12" {
			t.Errorf("got %q", got)
		}
		want = f.got()

		c := log(t, "c", 13, 14)
		pc := merge.Part{Name: "c", Reader: c}
		s.put(pa, pb, pc)
		time.Sleep(time.Second)
		want += " c13 c14"
		f.expect(t, want)

		// b is read by another now, and goes on behind what was given.
		again := new(memory.Log)
		for _, r := range b.All() {
			must(t, again.Append(ctx, r))
		}
		must(t, again.Append(ctx, rec("b15", 15)))
		s.put(pa, merge.Part{Name: "b", Reader: again}, pc)
		time.Sleep(time.Second)
		want += " b15"
		f.expect(t, want)

		// What a part has that goes is given, and no more.
		must(t, c.Append(ctx, rec("c16", 16)))
		s.put(pa, merge.Part{Name: "b", Reader: again})
		time.Sleep(time.Second)
		must(t, c.Append(ctx, rec("c17", 17)))
		time.Sleep(time.Second)
		want += " c16"
		f.expect(t, want)

		must(t, a.Append(ctx, rec("a18", 18), rec("a19", 19)))
		must(t, again.Append(ctx, rec("b20", 20)))
		cancel()
		must(t, <-f.end)
		got := strings.TrimPrefix(f.got(), want+" ")
		if last := strings.Fields(got); len(last) != 3 || !slices.Contains(last, "a18") || !slices.Contains(last, "a19") || !slices.Contains(last, "b20") {
			t.Errorf("got %q after it was told to stop", got)
		}
	})
}

// The latest of what is there, and then all that comes.
func TestFollowLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a, b := log(t, "a", 1, 4, 5, 8), log(t, "b", 2, 3, 7)
		s := &set{parts: []merge.Part{{Name: "a", Reader: a}, {Name: "b", Reader: b}, {Name: "c", Reader: log(t, "c")}}}
		three := follow(ctx, merge.New(s.get), audit.Query{Limit: 3})
		hundred := follow(ctx, merge.New(s.get), audit.Query{Limit: 100})
		synctest.Wait()
		for i := range 10 { // more than that, at once
			live := audittest.Denied(fmt.Sprint("live", i))
			live.Metadata.CreatedAt = time.Now().Add(time.Duration(i+1) * time.Millisecond)
			must(t, a.Append(ctx, live))
		}
		time.Sleep(2 * time.Second)
		live := " live0 live1 live2 live3 live4 live5 live6 live7 live8 live9"
		three.expect(t, "a5 b7 a8"+live)
		hundred.expect(t, "a1 b2 b3 a4 a5 b7 a8"+live)
		cancel()
		must(t, <-three.end)
		must(t, <-hundred.end)
	})
}

// broken is a log that cannot be read any more once it is told so.
type broken struct {
	*memory.Log
	now chan struct{}
}

var errBroken = errors.New("cannot be read")

func (b *broken) Records(ctx context.Context, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return func(yield func(api.AccessLog, error) bool) {
		q.Follow = false
		for rec, err := range b.Log.Records(ctx, q) {
			if !yield(rec, err) {
				return
			}
		}
		<-b.now
		yield(api.AccessLog{}, errBroken)
	}
}

func TestFollowBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := log(t, "a", 1), &broken{log(t, "b", 2), make(chan struct{})}
		pa := merge.Part{Name: "a", Reader: a}
		s := &set{parts: []merge.Part{pa, {Name: "b", Reader: b}}}
		f := follow(t.Context(), merge.New(s.get), audit.Query{})
		time.Sleep(time.Second)
		f.expect(t, "a1 b2")
		close(b.now)
		if err := <-f.end; !errors.Is(err, errBroken) {
			t.Errorf("ended with %v", err)
		}

		// One that is no part any more may break.
		b.now = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		f = follow(ctx, merge.New(s.get), audit.Query{})
		time.Sleep(time.Second)
		s.put(pa)
		close(b.now)
		time.Sleep(time.Second)
		f.expect(t, "a1 b2")
		cancel()
		must(t, <-f.end)
	})
}

// Who wants no more is left alone, and the streams end.
func TestFollowStop(t *testing.T) {
	s := &set{parts: []merge.Part{{Name: "a", Reader: log(t, "a", 1, 3)}, {Name: "b", Reader: log(t, "b", 2, 4)}}}
	for range merge.New(s.get).Records(t.Context(), audit.Query{Follow: true}) {
		break
	}
	for _, err := range merge.New(s.get).Records(t.Context(), audit.Query{Type: "STOP"}) {
		if err == nil {
			t.Error("a query that cannot be meant gives a record")
		}
	}
}
