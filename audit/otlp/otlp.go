// Package otlp sends the access log to a collector, as it is made: an OTLP
// receiver (OpenTelemetry Protocol, https://opentelemetry.io/docs/specs/otlp/),
// over gRPC or over HTTP with protobuf.
//
// A [Sink] follows the log with a place of its own, so that neither holds up the
// other. It keeps that place durably: a collector that is away for a while, or a
// restart of either side, loses nothing. What was sent and not acknowledged before
// a restart is sent again, so a receiver may get a record twice; the attribute
// log.record.uid, the record's id, tells.
package otlp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit"
)

// Limits of what is sent at once, and of what is waited for.
const (
	maxRecords = 512
	maxBytes   = 1 << 20                // of records, unless one alone is longer
	maxWait    = 200 * time.Millisecond // for more records to send with the first
	callLimit  = 30 * time.Second       // for an answer
	grace      = 5 * time.Second        // to send what is left, when told to stop
	firstRetry = 500 * time.Millisecond
	lastRetry  = 30 * time.Second
	maxAfter   = 10 * time.Minute // for which a collector may ask us to wait
)

// Marks keeps small values under a name, durably; a store does.
type Marks interface {
	SetMark(ctx context.Context, name string, value []byte) error
	Mark(ctx context.Context, name string) ([]byte, error) // nil if there is none
}

// MarkName is the name under which the place of an instance's Sink is kept.
func MarkName(instance string) string { return "otlp/" + instance + "/cursor" }

// A Sink sends records to the collector that is configured. Version and Now may
// be left out.
//
// A collector that is new gets all that the log keeps, and then what comes. One
// that is taken away and comes back, or is replaced by another, gets what came
// since. What retention deletes before it could be sent is told to the collector
// by a record named cardea.access.gap, which says how many records are gone.
type Sink struct {
	Source    audit.Source
	Marks     Marks
	Instance  string // whose log it is: service.instance.id
	Version   string // of this binary: service.version
	Collector func() *api.Collector
	// Dial connects to the collector. It resolves the name and says no to what may
	// not be dialled.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Secret returns the value of a Secret that is to be sent to a host. It is
	// asked each time, so that a changed value is used at once.
	Secret func(ctx context.Context, name, host string) (string, error)
	Log    *slog.Logger
	Now    func() time.Time // nil is time.Now

	// Of Run alone.
	saved    audit.Position
	unkept   bool           // the last save failed
	dialled  *api.Collector // that exporter is for
	exporter exporter

	mu     sync.Mutex
	acked  audit.Position
	oldest time.Time // when the first record was written that was read and is not acknowledged
	stats  Stats
}

// Stats is what there is to measure of a Sink.
type Stats struct {
	Configured bool          // there is a collector
	Lag        int64         // records that are written and not acknowledged …
	LagTime    time.Duration // … and for how long the oldest is not
	Sent       int64         // records that were acknowledged
	Refused    int64         // records that the collector refused for good: it does not have them
	Lost       int64         // records that retention deleted before they were sent
	Failed     int64         // calls that failed and were made again
	LastError  string        // of the last call that failed, since the last that did not
}

// Stats returns what there is to measure now.
func (s *Sink) Stats() Stats {
	written, _ := s.Source.End()
	configured := s.Collector() != nil
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	if st.Configured = configured; configured {
		st.Lag = max(written.Record-s.acked.Record, 0)
		if !s.oldest.IsZero() {
			st.LagTime = max(s.now().Sub(s.oldest), 0)
		}
	}
	return st
}

func (s *Sink) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// Run sends records until ctx is done, and then what the log had taken by that
// time, for at most five seconds; what is left is sent after the next start. It
// can be called once.
func (s *Sink) Run(ctx context.Context) error {
	if err := s.load(ctx); err != nil {
		return err
	}
	// What was written must be sent although we are told to stop.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var timing sync.WaitGroup
	timing.Go(func() {
		defer cancel()
		select {
		case <-work.Done():
			return
		case <-ctx.Done():
		}
		select {
		case <-work.Done():
		case <-time.After(grace):
		}
	})
	defer timing.Wait()
	defer cancel()
	defer s.hangUp()
	for {
		if s.Collector() != nil {
			done, err := s.follow(work, ctx.Done())
			if err != nil && work.Err() == nil {
				s.Log.Error("the access log cannot be read to be sent to the collector", "err", err)
			}
			if done {
				break
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		if ctx.Err() != nil {
			break
		}
	}
	<-ctx.Done() // if the log ended before we were told to
	if err := s.Source.Sync(); err != nil {
		s.Log.Warn("the last records may be sent to the collector again", "err", err)
	}
	last, stop := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer stop()
	return s.save(last)
}

// load reads the place where the last Run ended.
func (s *Sink) load(ctx context.Context) error {
	b, err := s.Marks.Mark(ctx, MarkName(s.Instance))
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &s.saved)
	}
	if err != nil {
		return fmt.Errorf("reading the place of the collector in the access log: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = s.saved
	return nil
}

// save keeps the place up to which records were acknowledged and are on disk: a
// log that lost its end with the power gives other records the same places.
func (s *Sink) save(ctx context.Context) error {
	_, durable := s.Source.End()
	s.mu.Lock()
	at := s.acked
	s.mu.Unlock()
	if durable.Line < at.Line {
		at = durable
	}
	if at == s.saved {
		return nil
	}
	b, err := json.Marshal(at)
	if err == nil {
		err = s.Marks.SetMark(ctx, MarkName(s.Instance), b)
	}
	if err != nil {
		return fmt.Errorf("keeping the place of the collector in the access log: %w", err)
	}
	s.saved = at
	return nil
}

// follow sends what the log has behind the place of the Sink, and what comes,
// until there is no collector any more. done is set if there is nothing more to
// send: the log is closed, or all is sent that was written when stop was closed.
func (s *Sink) follow(work context.Context, stop <-chan struct{}) (done bool, err error) {
	ctx, cancel := context.WithCancel(work)
	items := make(chan item)
	var reading sync.WaitGroup
	var broken error
	s.mu.Lock()
	from := s.acked
	s.mu.Unlock()
	reading.Go(func() {
		defer close(items)
		for e, err := range s.Source.Follow(ctx, from) {
			if err != nil {
				broken = err
				return
			}
			select {
			case items <- newItem(e):
			case <-ctx.Done():
				return
			}
		}
	})
	defer reading.Wait()
	defer cancel()

	b := batcher{items: items, stop: stop, source: s.Source, at: from.Record}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		batch, more := b.next(tick.C)
		for len(batch) > 0 {
			n, err := s.deliver(ctx, batch)
			batch = batch[n:]
			if errors.Is(err, errNoCollector) {
				return false, nil
			}
			if err != nil {
				return true, nil // told to stop
			}
		}
		if !more && b.closed {
			reading.Wait()
			return broken == nil, broken
		}
		if !more {
			return true, nil
		}
		if s.Collector() == nil {
			return false, nil
		}
		if b.ticked {
			s.keep(ctx)
		}
	}
}

// keep saves, and says so once if that fails.
func (s *Sink) keep(ctx context.Context) {
	err := s.save(ctx)
	if err != nil && !s.unkept && ctx.Err() == nil {
		s.Log.Error("records may be sent to the collector again after a restart", "err", err)
	}
	s.unkept = err != nil
}

// begin says which record is the first that is not acknowledged.
func (s *Sink) begin(it *item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oldest = it.written
	if s.acked == (audit.Position{}) { // what was deleted before there was a collector is no lag
		s.acked.Record = it.at.Record - 1
	}
}

// ack says that the collector has, or will never have, records up to it.
func (s *Sink) ack(items []item, refused int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked, s.oldest = items[len(items)-1].at, time.Time{}
	records := int64(0)
	for _, it := range items {
		s.stats.Lost += it.lost
		if it.lost == 0 {
			records++
		}
	}
	refused = min(refused, records)
	s.stats.Sent += records - refused
	s.stats.Refused += refused
	s.stats.LastError = ""
}

// A batcher puts items together that are sent at once.
type batcher struct {
	items  <-chan item
	stop   <-chan struct{}
	source audit.Source

	held    *item // that did not fit into the last batch
	at      int64 // records that were read
	until   int64 // all that are to be read, once stop was closed; else 0
	stopped bool
	closed  bool // there are no more items
	ticked  bool // next returned because of a tick
}

// next returns the next batch, none if a tick came before its first item. more is
// unset with the last.
func (b *batcher) next(tick <-chan time.Time) (batch []item, more bool) {
	var full <-chan time.Time
	size := 0
	b.ticked = false
	for !b.closed && !(b.stopped && b.at >= b.until && b.held == nil) {
		var it item
		if b.held != nil {
			it, b.held = *b.held, nil
		} else {
			var ok bool
			select {
			case it, ok = <-b.items:
				if !ok {
					b.closed = true
					return batch, false
				}
			case <-b.stop:
				written, _ := b.source.End()
				b.stop, b.stopped, b.until = nil, true, written.Record
				continue
			case <-tick:
				b.ticked = true
				if len(batch) > 0 {
					continue
				}
				return nil, true
			case <-full:
				return batch, true
			}
		}
		if len(batch) > 0 && size+it.size > maxBytes {
			b.held = &it
			return batch, true
		}
		if len(batch) == 0 {
			timer := time.NewTimer(maxWait)
			defer timer.Stop()
			full = timer.C
		}
		b.at = it.at.Record
		batch, size = append(batch, it), size+it.size
		if len(batch) == maxRecords {
			return batch, true
		}
	}
	return batch, false
}

// errNoCollector says that there is no collector any more.
var errNoCollector = errors.New("no collector is configured")

// deliver sends items until the collector has them, or has refused them for good,
// and returns how many of them, from the first, that is true of. The error is that
// of ctx, or errNoCollector.
func (s *Sink) deliver(ctx context.Context, items []item) (int, error) {
	s.begin(&items[0])
	wait, failing := firstRetry, false
	for {
		c := s.Collector()
		if c == nil {
			return 0, errNoCollector
		}
		refused, err := s.export(ctx, c, items)
		if err == nil {
			if failing {
				s.Log.Info("the collector takes records again", "url", c.URL)
			}
			s.ack(items, refused)
			return len(items), nil
		}
		if err.refused {
			if len(items) > 1 { // the records that it does not want are in one half, or in both
				half := len(items) / 2
				n, e := s.deliver(ctx, items[:half])
				if e != nil {
					return n, e
				}
				m, e := s.deliver(ctx, items[half:])
				return n + m, e
			}
			// Who refuses even nothing does not speak of this record: a wrong address,
			// a proxy. That is for somebody to mend, and the record waits.
			if _, e := s.export(ctx, c, nil); e == nil {
				s.Log.Error("the collector refuses a record for good: it is left out", "url", c.URL, "record", items[0].id, "line", items[0].at.Line, "err", err)
				s.ack(items, 1)
				return 1, nil
			}
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if s.fail(err); !failing {
			failing = true
			s.Log.Warn("the collector does not take records; they wait in the access log", "url", c.URL, "err", err)
		}
		pause := min(max(err.after, wait/2+rand.N(wait/2)), maxAfter) // apart from others that it failed with us
		if !s.pause(ctx, pause, c) {
			wait = firstRetry
			continue
		}
		wait = min(2*wait, lastRetry)
	}
}

// fail notes a call that failed.
func (s *Sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Failed++
	s.stats.LastError = err.Error()
}

// pause waits, and reports whether it was for the whole time: not if ctx is done or
// another collector than c is configured.
func (s *Sink) pause(ctx context.Context, d time.Duration, c *api.Collector) bool {
	end := time.NewTimer(d)
	defer end.Stop()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-end.C:
			return true
		case <-look.C:
			s.keep(ctx)
			if !reflect.DeepEqual(s.Collector(), c) {
				return false
			}
		}
	}
}
