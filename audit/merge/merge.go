// Package merge reads several access logs as one: those of the processes that share,
// or once had, one data directory.
package merge

import (
	"context"
	"iter"
	"slices"

	"cardea/api"
	"cardea/audit"
)

// A Part is one of the logs. The Name stays the same while the Reader may be replaced
// by another of the same records: of a log that another process wrote and that this one
// has taken over.
type Part struct {
	Name   string
	Reader audit.Reader // comparable, as pointers are
}

// A Reader is an [audit.Reader] of all parts together.
type Reader struct {
	parts func() []Part
}

var _ audit.Reader = (*Reader)(nil)

// New returns a Reader of what parts returns, which is called when somebody begins to
// read, and four times a second by each who follows: parts may come, be replaced and
// go. Of what goes, what was there is given.
func New(parts func() []Part) *Reader { return &Reader{parts: parts} }

// Records implements [audit.Reader]. The records of one part come in their order, and
// those of several in the order in which they were made. What comes while it follows
// is given within half a second, and may be that much out of order. It ends without an
// error when ctx is done or all parts have ended.
func (r *Reader) Records(ctx context.Context, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return func(yield func(api.AccessLog, error) bool) {
		if err := q.Validate(); err != nil {
			yield(api.AccessLog{}, err)
			return
		}
		if q.Follow {
			f := newFollower(ctx, r.parts, q, yield)
			defer f.close()
			f.run()
			return
		}
		all := ring{most: q.Limit}
		for rec, err := range merged(ctx, r.parts(), q) {
			if err != nil || q.Limit == 0 {
				if !yield(rec, err) || err != nil {
					return
				}
				continue
			}
			all.add(rec)
		}
		all.give(yield)
	}
}

// merged gives what is there.
func merged(ctx context.Context, parts []Part, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return func(yield func(api.AccessLog, error) bool) {
		type head struct {
			rec  api.AccessLog
			next func() (api.AccessLog, error, bool)
		}
		var heads []head
		for _, p := range parts {
			next, stop := iter.Pull2(p.Reader.Records(ctx, q))
			defer stop()
			rec, err, there := next()
			if err != nil {
				yield(rec, err)
				return
			}
			if there {
				heads = append(heads, head{rec, next})
			}
		}
		for len(heads) > 0 {
			first := 0
			for i := range heads {
				if heads[i].rec.Metadata.CreatedAt.Before(heads[first].rec.Metadata.CreatedAt) {
					first = i
				}
			}
			h := &heads[first]
			if !yield(h.rec, nil) {
				return
			}
			rec, err, there := h.next()
			if err != nil {
				yield(rec, err)
				return
			}
			if h.rec = rec; !there {
				heads = slices.Delete(heads, first, first+1)
			}
		}
	}
}

// A ring keeps the latest records, so many.
type ring struct {
	most   int
	recs   []api.AccessLog
	oldest int
}

func (r *ring) add(rec api.AccessLog) {
	if len(r.recs) < r.most {
		r.recs = append(r.recs, rec)
		return
	}
	r.recs[r.oldest] = rec
	r.oldest = (r.oldest + 1) % r.most
}

// give gives them, the oldest first, and reports whether more is wanted.
func (r *ring) give(yield func(api.AccessLog, error) bool) bool {
	for i := range r.recs {
		if !yield(r.recs[(r.oldest+i)%len(r.recs)], nil) {
			return false
		}
	}
	return true
}
