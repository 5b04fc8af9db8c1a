package upstream

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Strangers choose how often a Service is dialled. What is said of its address is
// one line a second, with a count.
func TestRefusalsAreToldOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer()
		var log strings.Builder
		d.Log = slog.New(slog.NewTextHandler(&log, nil))
		said := func(about string) []string {
			var lines []string
			for l := range strings.Lines(log.String()) {
				if strings.Contains(l, "upstream="+about+" ") {
					lines = append(lines, l)
				}
			}
			return lines
		}
		for range 1000 {
			refused(t, d, "tcp://169.254.169.254:80", DialFailed, "metadata")
		}
		refused(t, d, "tcp://metadata.google.internal:80", DialFailed, "metadata")
		if l := said("169.254.169.254:80"); len(l) != 1 || !strings.Contains(l[0], "times=1\n") {
			t.Errorf("in the first second: %q", l)
		}
		if l := said("metadata.google.internal"); len(l) != 1 {
			t.Errorf("of another: %q", l)
		}
		time.Sleep(warnEvery)
		refused(t, d, "tcp://169.254.169.254:80", DialFailed, "metadata")
		if l := said("169.254.169.254:80"); len(l) != 2 || !strings.Contains(l[1], "times=1000\n") {
			t.Errorf("in the next second: %q", l)
		}
	})
}

// However many addresses are refused, little is remembered, and nothing is said
// more often than it should be.
func TestWarningsAreBounded(t *testing.T) {
	var w warnings
	now := time.Now()
	told, counted := 0, int64(0)
	for i := range 10 * maxWarned {
		n := w.due(fmt.Sprint(i), now)
		counted += n
		if n > 0 {
			told++
		}
	}
	if told != maxWarned+1 || len(w.rows) > maxWarned+1 {
		t.Errorf("told %d times, %d are remembered", told, len(w.rows))
	}
	now = now.Add(warnEvery)
	if n := w.due("new", now); n != 1 {
		t.Errorf("a second later %d are told of another", n)
	}
	counted++
	if rest := w.rows[""]; counted+rest.count != 10*maxWarned+1 {
		t.Errorf("%d were told of, %d are to be", counted, rest.count)
	}
}
