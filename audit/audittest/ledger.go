package audittest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
)

// kept returns the marks of the records of Denied that are kept.
func kept(t *testing.T, s Subject) string {
	t.Helper()
	var all []string
	for _, rec := range Collect(t, s.Reader, audit.Query{}) {
		all = append(all, words(&rec))
	}
	return strings.Join(all, " ")
}

func begun(t *testing.T, s Subject) {
	a := Denied("a")
	_, err := s.Log.Begin(a)
	must(t, err)
	a.Entry.Common.Reason.Words = "changed"
	must(t, s.Log.Note(Denied("b")))
	m, err := s.Log.Begin(Denied("c"))
	must(t, err)
	must(t, s.Log.Keep(m))
	if got := kept(t, s); got != "a b c" {
		t.Errorf("kept %q", got)
	}
	_, err = s.Log.Begin(Denied("d"))
	must(t, err)
	must(t, s.Log.Append(t.Context(), Denied("e")))
	if got := kept(t, s); got != "a b c d e" {
		t.Errorf("kept %q", got)
	}
}

func noted(t *testing.T, s Subject) {
	must(t, s.Log.Note(Denied("a")))
	for rec, err := range s.Reader.Records(t.Context(), audit.Query{Follow: true}) {
		must(t, err)
		if w := words(&rec); w != "a" {
			t.Errorf("got %q", w)
		}
		break
	}
	if n := s.Log.Owes(); n != 0 {
		t.Errorf("owes %d", n)
	}
}

func malformedLedger(t *testing.T, s Subject) {
	noID := Denied("b")
	noID.Metadata.ID = ""
	for _, bad := range []*api.AccessLog{nil, noID} {
		if _, err := s.Log.Begin(bad); !errors.Is(err, audit.ErrMalformed) {
			t.Errorf("Begin returned %v, want ErrMalformed", err)
		}
		if err := s.Log.Note(bad); !errors.Is(err, audit.ErrMalformed) {
			t.Errorf("Note returned %v, want ErrMalformed", err)
		}
	}
	must(t, s.Log.Append(t.Context(), Denied("a")))
	if got := kept(t, s); got != "a" {
		t.Errorf("kept %q", got)
	}
}

// A record that is begun before the log breaks may be kept or not, and Keep says
// which.
func keepFails(t *testing.T, s Subject) {
	var want []string
	try := func(w string) {
		m, err := s.Log.Begin(Denied(w))
		if err == nil {
			err = s.Log.Keep(m)
		}
		if err == nil {
			t.Errorf("Keep says that %q is kept, and it cannot be", w)
		}
	}
	for i := range 3 {
		w := fmt.Sprint("before", i)
		first, err := s.Log.Begin(Denied(w))
		must(t, err)
		second, err := s.Log.Begin(Denied(w + "!"))
		must(t, err)
		s.Break()
		ferr, serr := s.Log.Keep(first), s.Log.Keep(second)
		if ferr == nil {
			want = append(want, w)
		}
		if serr == nil {
			want = append(want, w+"!")
		}
		for range 3 {
			try("broken")
		}
		s.Mend()
		w = fmt.Sprint("after", i)
		must(t, s.Log.Append(t.Context(), Denied(w))) // finds out that the log is well
		m, err := s.Log.Begin(Denied(w + "!"))
		must(t, err)
		must(t, s.Log.Keep(m))
		want = append(want, w, w+"!")
	}
	if got := kept(t, s); got != strings.Join(want, " ") {
		t.Errorf("kept %q, want %q", got, want)
	}
}

func held(t *testing.T, s Subject) {
	must(t, s.Log.Append(t.Context(), Denied("first")))
	s.Break()
	want := []string{"first"}
	for i := range 5 {
		w := fmt.Sprint(i)
		must(t, s.Log.Note(Denied(w)))
		want = append(want, w)
		if err := s.Log.Append(t.Context(), Denied("lost")); err == nil {
			t.Error("Append says that the record is kept, and it cannot be")
		}
		if n := s.Log.Owes(); n != i+1 {
			t.Errorf("owes %d, want %d", n, i+1)
		}
	}
	if got := kept(t, s); got != "first" {
		t.Errorf("kept %q, and nothing could be", got)
	}
	s.Mend()
	must(t, s.Log.Append(t.Context(), Denied("last")))
	if n := s.Log.Owes(); n != 0 {
		t.Errorf("owes %d, and all can be written", n)
	}
	if got := kept(t, s); got != strings.Join(append(want, "last"), " ") {
		t.Errorf("kept %q, want %q and the last", got, want)
	}
}

func manyConnections(t *testing.T, s Subject) {
	const callers, each = 16, 25
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for range each {
				start, end := Connection(time.Now())
				m, err := s.Log.Begin(start)
				if err == nil {
					err = s.Log.Keep(m)
				}
				if err == nil {
					err = s.Log.Note(end)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	must(t, s.Log.Append(t.Context(), Denied("last")))
	types := map[string][]api.LogType{}
	n := 0
	for _, rec := range Collect(t, s.Reader, audit.Query{}) {
		if id := rec.Entry.Common.ConnectionID; id != "" {
			types[id] = append(types[id], rec.Entry.Info.TCP.Type)
			n++
		}
	}
	if n != 2*callers*each || len(types) != callers*each {
		t.Errorf("%d records of %d connections, want %d of %d", n, len(types), 2*callers*each, callers*each)
	}
	for id, got := range types {
		if !slices.Equal(got, []api.LogType{api.LogStart, api.LogEnd}) {
			t.Errorf("connection %s has %q", id, got)
		}
	}
}

func closed(t *testing.T, s Subject) {
	m, err := s.Log.Begin(Denied("a"))
	must(t, err)
	must(t, s.Log.Note(Denied("b")))
	s.Close()
	must(t, s.Log.Keep(m))
	if _, err := s.Log.Begin(Denied("c")); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("Begin returned %v, want ErrClosed", err)
	}
	if err := s.Log.Note(Denied("d")); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("Note returned %v, want ErrClosed", err)
	}
	if err := s.Log.Append(t.Context(), Denied("e")); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("Append returned %v, want ErrClosed", err)
	}
	if got := kept(t, s); got != "a b" {
		t.Errorf("kept %q", got)
	}
}
