// Package memory is an access log in memory, for tests.
package memory

import (
	"context"
	"encoding/json"
	"iter"
	"slices"
	"sync"

	"cardea/api"
	"cardea/audit"
)

// A Log is an [audit.Log], an [audit.Reader] and an [audit.Source] that keeps
// copies of records in a slice. Its zero value is empty and ready.
type Log struct {
	mu      sync.Mutex
	recs    []*api.AccessLog // never written to once it is there
	err     error
	changed chan struct{} // made by who waits, closed by Append
}

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
	if l.err != nil {
		return l.err
	}
	l.recs = append(l.recs, copies...)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return nil
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

// Fail makes every Append fail with err, until it is called with nil.
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
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return slices.Clone(l.recs[n:]), l.changed
}
