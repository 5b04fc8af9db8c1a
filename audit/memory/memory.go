// Package memory is an access log in memory, for tests.
package memory

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"sync"

	"cardea/api"
	"cardea/audit"
)

// A Log is an [audit.Ledger], an [audit.Reader] and an [audit.Source] that keeps
// copies of records in a slice. Its zero value is empty and ready.
type Log struct {
	mu      sync.Mutex
	recs    []*api.AccessLog // never written to once it is there
	err     error
	changed chan struct{} // made by who waits, closed by who keeps a record

	waiting []waiting // in the order of the calls
	last    audit.Mark
	failed  map[audit.Mark]error // that nobody has asked for yet
}

// A waiting record was begun or noted, and is not kept yet.
type waiting struct {
	rec  *api.AccessLog
	mark audit.Mark // 0 if it was noted
}

var (
	_ audit.Ledger = (*Log)(nil)
	_ audit.Reader = (*Log)(nil)
	_ audit.Source = (*Log)(nil)
)

// Append implements [audit.Log].
func (l *Log) Append(ctx context.Context, recs ...*api.AccessLog) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var copies []*api.AccessLog
	for _, rec := range recs {
		c, err := clone(rec)
		if err != nil {
			return err
		}
		copies = append(copies, c)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.keep(); l.err != nil {
		return l.err
	}
	l.recs = append(l.recs, copies...)
	l.wake()
	return nil
}

// Begin implements [audit.Ledger].
func (l *Log) Begin(rec *api.AccessLog) (audit.Mark, error) {
	c, err := clone(rec)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	l.last++
	l.waiting = append(l.waiting, waiting{rec: c, mark: l.last})
	return l.last, nil
}

// Keep implements [audit.Ledger].
func (l *Log) Keep(m audit.Mark) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep()
	defer delete(l.failed, m)
	return l.failed[m]
}

// Note implements [audit.Ledger].
func (l *Log) Note(rec *api.AccessLog) error {
	c, err := clone(rec)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.err, audit.ErrClosed) {
		return l.err
	}
	l.waiting = append(l.waiting, waiting{rec: c})
	l.keep()
	return nil
}

// Owes implements [audit.Ledger].
func (l *Log) Owes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep()
	return len(l.waiting)
}

// Slow implements [audit.Ledger].
func (l *Log) Slow() bool { return false }

// keep keeps what waits. If that fails, only what was noted goes on waiting.
func (l *Log) keep() {
	if len(l.waiting) == 0 {
		return
	}
	if l.err == nil {
		for _, w := range l.waiting {
			l.recs = append(l.recs, w.rec)
		}
		l.waiting = nil
		l.wake()
		return
	}
	if l.failed == nil {
		l.failed = map[audit.Mark]error{}
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(w waiting) bool {
		if w.mark != 0 {
			l.failed[w.mark] = l.err
		}
		return w.mark != 0
	})
}

// wake lets those who follow look again.
func (l *Log) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// clone copies a record by way of the JSON in which it would be kept.
func clone(rec *api.AccessLog) (*api.AccessLog, error) {
	if err := audit.Check(rec); err != nil {
		return nil, err
	}
	b, err := audit.AppendRecord(nil, rec)
	if err != nil {
		return nil, err
	}
	c := new(api.AccessLog)
	return c, json.Unmarshal(b, c)
}

// Fail makes the Log unable to keep anything, because of err, until it is called with
// nil. With [audit.ErrClosed] the Log is as one that is closed.
func (l *Log) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// All returns the records that are there, in order. They are shared and must not
// be written to.
func (l *Log) All() []*api.AccessLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep()
	return slices.Clone(l.recs)
}

// Records implements [audit.Reader].
func (l *Log) Records(ctx context.Context, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return func(yield func(api.AccessLog, error) bool) {
		if err := q.Validate(); err != nil {
			yield(api.AccessLog{}, err)
			return
		}
		recs, changed := l.from(0)
		next := len(recs)
		recs = slices.DeleteFunc(recs, func(r *api.AccessLog) bool { return !q.Match(r) })
		if q.Limit > 0 {
			recs = recs[max(0, len(recs)-q.Limit):]
		}
		last := false // what was there before ctx was done is given too
		for {
			for _, rec := range recs {
				if q.Match(rec) && !yield(*rec, nil) {
					return
				}
			}
			if !q.Follow || last {
				return
			}
			select {
			case <-ctx.Done():
			case <-changed:
			}
			last = ctx.Err() != nil
			recs, changed = l.from(next)
			next += len(recs)
		}
	}
}

// Follow implements [audit.Source].
func (l *Log) Follow(ctx context.Context, at audit.Position) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		next := at.Record
		if written, _ := l.End(); next > written.Record {
			next = 0
		}
		last := false
		for {
			recs, changed := l.from(int(next))
			for _, rec := range recs {
				next++
				b, err := audit.AppendRecord(nil, rec)
				if err != nil {
					yield(audit.Entry{}, err)
					return
				}
				if !yield(audit.Entry{At: audit.Position{Line: next, Record: next}, Time: rec.Metadata.CreatedAt, JSON: b}, nil) {
					return
				}
			}
			if last {
				return
			}
			select {
			case <-ctx.Done():
			case <-changed:
			}
			last = ctx.Err() != nil
		}
	}
}

// End implements [audit.Source].
func (l *Log) End() (written, durable audit.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep()
	n := int64(len(l.recs))
	return audit.Position{Line: n, Record: n}, audit.Position{Line: n, Record: n}
}

// Sync implements [audit.Source]; this is as durable as memory is.
func (l *Log) Sync() error { return nil }

// from returns the records from the n-th on, and a channel that is closed when
// there are more.
func (l *Log) from(n int) ([]*api.AccessLog, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return slices.Clone(l.recs[n:]), l.changed
}
