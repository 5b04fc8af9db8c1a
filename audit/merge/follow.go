package merge

import (
	"context"
	"slices"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit"
)

// The patience of who follows.
const (
	poll = 250 * time.Millisecond // from one look at the parts to the next
	// patience is how long a part is waited for that has nothing to give: longer than it
	// takes to see what another process wrote.
	patience = 400 * time.Millisecond
	// slack is how far the records of a part may be from the order in which they were
	// made.
	slack = 2 * time.Minute
)

// A follower gives what is there, and then what comes.
type follower struct {
	parts func() []Part
	q     audit.Query
	yield func(api.AccessLog, error) bool
	ctx   context.Context // ends the waiting; what is there then is given
	live  context.Context // of the streams
	stop  context.CancelFunc
	quit  chan struct{} // nobody takes anything any more

	began    time.Time
	streams  []*stream
	past     map[string]past // by name
	arrivals chan arrival
	all      sync.WaitGroup // the goroutines of the streams

	there   *ring         // collects what is there, if that is limited, until it is given
	wait    time.Duration // until a stream has been waited for long enough
	stopped bool          // ctx is done
	err     error         // of a stream
}

// A past is the last record that was given of a part.
type past struct {
	id string
	at time.Time
}

// A stream is a part that is being followed. One goroutine reads it, and goes on when
// it is asked for more.
type stream struct {
	part   Part
	cancel context.CancelFunc
	more   chan struct{}
	asked  time.Time // for the next record, if there is no head
	head   *api.AccessLog
	given  int
	ended  bool
	left   bool // it is no longer one of the parts
}

// An arrival is what a stream gives: a record, an error, or neither at its end.
type arrival struct {
	from *stream
	rec  *api.AccessLog
	err  error
}

func newFollower(ctx context.Context, parts func() []Part, q audit.Query, yield func(api.AccessLog, error) bool) *follower {
	f := &follower{parts: parts, q: q, yield: yield, ctx: ctx, began: time.Now(),
		past: map[string]past{}, arrivals: make(chan arrival), quit: make(chan struct{})}
	f.live, f.stop = context.WithCancel(context.WithoutCancel(ctx))
	f.look()
	if q.Limit > 0 && len(f.streams) > 1 {
		f.there = &ring{most: q.Limit}
	}
	f.q.Limit = 0 // for parts that come
	return f
}

// close ends all streams and waits for them.
func (f *follower) close() {
	f.stop()
	close(f.quit)
	f.all.Wait()
}

// run gives records until there will be no more, or no more are wanted.
func (f *follower) run() {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	patient := time.NewTimer(patience)
	defer patient.Stop()
	done := f.ctx.Done()
	for f.give() {
		if f.over() {
			f.look() // in place of the last ones others may have come
			if f.over() {
				return
			}
		}
		patient.Reset(f.wait)
		select {
		case a := <-f.arrivals:
			f.take(a)
		case <-patient.C:
		case <-tick.C:
			f.look()
		case <-done:
			f.stopped, done = true, nil
			f.stop()
		}
	}
}

// over reports whether nothing is there and nothing will come.
func (f *follower) over() bool {
	return !slices.ContainsFunc(f.streams, func(s *stream) bool { return !s.ended || s.head != nil })
}

// take takes what a stream gives.
func (f *follower) take(a arrival) {
	if a.rec != nil {
		a.from.head = a.rec
		return
	}
	a.from.ended = true
	if a.err != nil {
		f.look()
		if !a.from.left { // else it was taken away, and that may be why
			f.err = a.err
		}
	}
}

// takeAll takes what has arrived already: a slow caller must not make others look as if
// they had nothing.
func (f *follower) takeAll() {
	for {
		select {
		case a := <-f.arrivals:
			f.take(a)
		default:
			return
		}
	}
}

// give gives what is the oldest for certain, and reports whether more is wanted.
func (f *follower) give() bool {
	for {
		f.takeAll()
		if f.err != nil {
			f.yield(api.AccessLog{}, f.err)
			return false
		}
		s := f.first()
		switch {
		case s != nil && f.there != nil:
			f.there.add(f.next(s))
		case s != nil:
			if !f.yield(f.next(s), nil) {
				return false
			}
		case f.there != nil && f.wait == 0:
			if !f.there.give(f.yield) {
				return false
			}
			f.there = nil
		default:
			return true
		}
	}
}

// next returns the record that a stream has, and asks it for another.
func (f *follower) next(s *stream) api.AccessLog {
	rec := *s.head
	s.head, s.asked = nil, time.Now()
	s.given++
	f.past[s.part.Name] = past{rec.Metadata.ID, rec.Metadata.CreatedAt}
	s.more <- struct{}{}
	return rec
}

// first returns the stream whose record is the next; nil if it cannot be told before
// another stream has been waited for, or if there is none. It sets wait.
func (f *follower) first() (first *stream) {
	f.wait = 0
	now := time.Now()
	for _, s := range f.streams {
		switch {
		case f.there != nil && f.exhausted(s, now):
		case s.head != nil:
			if first == nil || s.head.Metadata.CreatedAt.Before(first.head.Metadata.CreatedAt) {
				first = s
			}
		case s.ended:
		case f.stopped:
			f.wait = patience // it ends soon
		default:
			f.wait = max(f.wait, patience-now.Sub(s.asked))
		}
	}
	switch {
	case f.wait > 0:
		return nil
	case first == nil && f.there == nil:
		f.wait = patience
	}
	return first
}

// exhausted reports whether a stream has given what was there in the beginning, of what
// may be among the latest.
func (f *follower) exhausted(s *stream, now time.Time) bool {
	if s.given == f.there.most {
		return true
	}
	if s.head != nil {
		return s.head.Metadata.CreatedAt.After(f.began)
	}
	return s.ended || now.Sub(s.asked) >= patience
}

// look looks which parts there are, lets go of those that have gone, and begins to
// follow those that have come once what they replace has ended.
func (f *follower) look() {
	if f.stopped {
		return
	}
	parts := f.parts()
	for _, s := range f.streams {
		if !s.left && !slices.Contains(parts, s.part) {
			s.left = true
			s.cancel()
		}
	}
	f.streams = slices.DeleteFunc(f.streams, func(s *stream) bool { return s.left && s.ended && s.head == nil })
	for _, p := range parts {
		if !slices.ContainsFunc(f.streams, func(s *stream) bool { return s.part.Name == p.Name }) {
			f.start(p)
		}
	}
}

// start begins to follow a part.
func (f *follower) start(p Part) {
	ctx, cancel := context.WithCancel(f.live)
	s := &stream{part: p, cancel: cancel, more: make(chan struct{}, 1), asked: time.Now()}
	f.streams = append(f.streams, s)
	q, before := f.q, f.past[p.Name]
	f.all.Go(func() {
		defer cancel()
		err := f.read(ctx, s, q, before)
		f.send(arrival{from: s, err: err})
	})
}

// send hands an arrival to who takes them; false if nobody does any more.
func (f *follower) send(a arrival) bool {
	select {
	case f.arrivals <- a:
		return true
	case <-f.quit:
		return false
	}
}

// read hands on what a part gives behind what was given of it before.
func (f *follower) read(ctx context.Context, s *stream, q audit.Query, before past) error {
	skip := false
	if before.id != "" {
		if since := before.at.Add(-slack); since.After(q.Since) {
			q.Since = since
		}
		look := q
		look.Follow = false
		for rec, err := range s.part.Reader.Records(ctx, look) {
			if err != nil {
				return err
			}
			if skip = rec.Metadata.ID == before.id; skip {
				break
			}
		}
	}
	for rec, err := range s.part.Reader.Records(ctx, q) {
		if err != nil {
			return err
		}
		if skip && rec.Metadata.CreatedAt.Before(before.at.Add(slack)) {
			skip = rec.Metadata.ID != before.id
			continue
		}
		skip = false
		if !f.send(arrival{from: s, rec: &rec}) {
			return nil
		}
		select {
		case <-s.more:
		case <-f.quit:
			return nil
		}
	}
	return nil
}
