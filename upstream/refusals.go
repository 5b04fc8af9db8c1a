package upstream

import (
	"sync"
	"time"
)

const (
	// warnEvery is the least time between two words about one address or name.
	warnEvery = time.Second
	// maxWarned is the number of addresses and names of which it is remembered when
	// they were last told of. Further ones count as one.
	maxWarned = 256
)

// warnings says when a warning about an address or name is due: whoever may
// connect decides how often one is refused.
type warnings struct {
	mu   sync.Mutex
	rows map[string]*warned // by address or name; "" is of those beyond maxWarned
}

// warned is what is remembered of an address or name.
type warned struct {
	at    time.Time // of the last warning
	count int64     // refusals that nothing was said of since
}

// due counts a refusal, and returns how many to tell of, this one included; 0 if
// it is too soon.
func (w *warnings) due(about string, now time.Time) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	row := w.rows[about]
	if row == nil {
		row = w.row(about, now)
	}
	row.count++
	if now.Sub(row.at) < warnEvery {
		return 0
	}
	n := row.count
	row.at, row.count = now, 0
	return n
}

// row makes a row, in place of those that have nothing left to say if there are
// too many. mu must be held.
func (w *warnings) row(about string, now time.Time) *warned {
	if w.rows == nil {
		w.rows = map[string]*warned{}
	}
	if len(w.rows) >= maxWarned {
		for other, row := range w.rows {
			if row.count == 0 && now.Sub(row.at) >= warnEvery {
				delete(w.rows, other)
			}
		}
	}
	if len(w.rows) >= maxWarned {
		about = ""
	}
	if w.rows[about] == nil {
		w.rows[about] = new(warned)
	}
	return w.rows[about]
}

// refuse logs that an address or name was refused, with a count if that was told
// of just now.
func (d *Dialer) refuse(about string, why error) {
	if n := d.warnings.due(about, time.Now()); n > 0 {
		d.Log.Warn("an upstream was refused", "upstream", about, "error", why, "times", n)
	}
}
