// Package refusals makes access log records of attempts that were refused: each by
// itself as long as they are few, and one record with a count once they are many.
// Whoever is refused can so neither fill the log nor keep out of it.
package refusals

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit"
)

// Limits of what is kept.
const (
	perSecond  = 10   // records of one source, each for one refusal
	maxSources = 4096 // in one second; all further ones are counted as one
	maxPlaces  = 16   // of one source, in one second; likewise
	maxCounts  = 4096 // of places, of all sources; likewise
	maxWaiting = 1024 // records that wait to be written
	together   = 64   // records in one call of Append
)

// A Recorder takes refusals and appends records of them to a log.
//
// Of each source, a Session or, where there is none, a network (/24 of IPv4, /64
// of IPv6), the first ten refusals in a second become a record each. What is more,
// and what the log could not take, is counted by place, the Object that was asked for
// and the listener. Each count is recorded at the end of the second, in one record
// that tells of the last one in full; where there are too many places, in one that
// names none. A count that cannot be recorded stays for the next second.
type Recorder struct {
	log  audit.Log
	now  func() time.Time
	slog *slog.Logger
	wake chan struct{}

	mu      sync.Mutex
	waiting []entry
	sources map[source]*row
	places  int // of all sources
}

// A source is who was refused, as far as it is known.
type source struct {
	session string // the uid of a Session, or
	network netip.Prefix
}

// A row is what came from one source in this second.
type row struct {
	recorded int              // each by itself
	places   map[place]*count // beyond that
	others   count            // of places that are too many
}

// A place is what a refusal is about, as far as it is known.
type place struct{ kind, namespace, name, listener string }

// A count is how many refusals were not recorded by themselves.
type count struct {
	n    int64
	last api.Refusal
}

// An entry is a record that is to be written, and what it is of.
type entry struct {
	rec  *api.AccessLog
	last api.Refusal
}

// New returns a Recorder that appends to log. It starts nothing; what went wrong
// with log is told to l. now is time.Now if it is nil.
func New(log audit.Log, now func() time.Time, l *slog.Logger) *Recorder {
	if now == nil {
		now = time.Now
	}
	return &Recorder{log: log, now: now, slog: l, wake: make(chan struct{}, 1), sources: map[source]*row{}}
}

// Refuse takes a refusal. It never waits for the log.
func (r *Recorder) Refuse(f api.Refusal) {
	f = cut(f)
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.row(f)
	if n.recorded >= perSecond || len(r.waiting) >= maxWaiting {
		r.count(n, f, 1)
		return
	}
	n.recorded++
	r.waiting = append(r.waiting, entry{r.record(f), f})
	select {
	case r.wake <- struct{}{}:
	default: // Run knows
	}
}

// cut returns f without what a record of it would leave out, so that what waits
// here is no more than that: a stranger says how long his words are.
func cut(f api.Refusal) api.Refusal {
	f.Words = audit.Cut(f.Words)
	if t := f.Facts.TLS; t != nil {
		short := *t // it is the caller's
		short.SNI, short.ALPN = audit.Cut(t.SNI), audit.Cut(t.ALPN)
		f.Facts.TLS = &short
	}
	return f
}

// row returns the row that a refusal belongs to. The zero source is that of those
// that have none of their own.
func (r *Recorder) row(f api.Refusal) *row {
	of := source{network: neighbourhood(f.Facts.IP)}
	if f.Record != nil && f.Record.Entry.Common.SessionRef != nil {
		of = source{session: f.Record.Entry.Common.SessionRef.UID}
	}
	if r.sources[of] == nil && len(r.sources) >= maxSources {
		of = source{}
	}
	n := r.sources[of]
	if n == nil {
		n = new(row)
		r.sources[of] = n
	}
	return n
}

// neighbourhood returns the network that the refusals of an address are told together with:
// the /24 around one of IPv4, and the /64 around one of IPv6.
func neighbourhood(ip string) netip.Prefix {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 24
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// placeOf returns what a refusal is about.
func placeOf(f api.Refusal) (p place) {
	object, route := f.Object, f.Route
	if f.Record != nil {
		object, route = f.Record.Entry.Common.ServiceRef, f.Record.Entry.Common.Route
	}
	if object != nil {
		p.kind, p.namespace, p.name = object.Kind, object.Namespace, object.Name
	}
	if route != nil {
		p.listener = route.Listener
	}
	return p
}

// count counts refusals of one source that are alike.
func (r *Recorder) count(n *row, f api.Refusal, by int64) {
	at := placeOf(f)
	c := n.places[at]
	switch {
	case c != nil:
	case len(n.places) >= maxPlaces || r.places >= maxCounts:
		c = &n.others
	default:
		c = new(count)
		if n.places == nil {
			n.places = map[place]*count{}
		}
		n.places[at] = c
		r.places++
	}
	c.n += by
	c.last = f
}

// record makes the record of one refusal.
func (r *Recorder) record(f api.Refusal) *api.AccessLog {
	rec := audit.New(r.now())
	if f.Record != nil { // which is the caller's
		rec.Metadata.ActorRef, rec.Metadata.TargetRef, rec.Entry = f.Record.Metadata.ActorRef, f.Record.Metadata.TargetRef, f.Record.Entry
		reason := *f.Record.Entry.Common.Reason
		rec.Entry.Common.Reason = &reason
		return rec
	}
	rec.Entry.Common = api.AccessLogCommon{
		Status: api.StatusDenied,
		Reason: &api.LogReason{Type: cmp.Or(f.Reason, api.ReasonHandshake), Words: f.Words},
		Facts:  &f.Facts, ServiceRef: f.Object, Route: f.Route, IsPublic: f.Route != nil, IsAnonymous: f.Anonymous,
	}
	rec.Metadata.TargetRef = f.Object
	if f.Datagrams {
		rec.Entry.Info.UDP = &api.UDPInfo{TCPInfo: api.TCPInfo{Type: api.LogDenied}}
	} else {
		rec.Entry.Info.TCP = &api.TCPInfo{Type: api.LogDenied}
	}
	return rec
}

// Run appends records until ctx is done, and then what is left. The error says
// that the log did not take it.
func (r *Recorder) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	failed := false
	for {
		take := r.take
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-tick.C:
			take = r.endSecond
		}
		if ctx.Err() != nil {
			break
		}
		err := r.append(ctx, take())
		if err != nil && !failed && ctx.Err() == nil {
			r.slog.Warn("refusals are counted until the access log takes records again", "err", err)
		}
		failed = err != nil
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := r.append(last, r.take()); err != nil {
		return err
	}
	return r.append(last, r.endSecond())
}

// take takes the records that wait.
func (r *Recorder) take() []entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	es := r.waiting
	r.waiting = nil
	return es
}

// endSecond takes the counts as records, and forgets the sources.
func (r *Recorder) endSecond() []entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	var es []entry
	for of, n := range r.sources {
		from := "sources that are too many to tell apart"
		switch {
		case of.session != "":
			from = "this Session"
		case of.network.IsValid():
			from = of.network.String()
		}
		for _, c := range n.places {
			es = append(es, r.sum(c, from))
		}
		if n.others.n > 0 {
			e := r.sum(&n.others, from+" at other places")
			common := &e.rec.Entry.Common
			e.rec.Metadata.TargetRef, common.ServiceRef, common.Route = nil, nil, nil
			es = append(es, e)
		}
	}
	clear(r.sources)
	r.places = 0
	return es
}

// sum makes the record of a count.
func (r *Recorder) sum(c *count, from string) entry {
	rec := r.record(c.last)
	rec.Entry.Common.Reason.Count = c.n
	rec.Entry.Common.Reason.Words = fmt.Sprintf("%d refusals from %s; the last: %s", c.n, from, c.last.Words)
	return entry{rec, c.last}
}

// append appends records, and counts those that the log does not take.
func (r *Recorder) append(ctx context.Context, es []entry) error {
	for len(es) > 0 {
		some := es[:min(len(es), together)]
		recs := make([]*api.AccessLog, len(some))
		for i := range some {
			recs[i] = some[i].rec
		}
		if err := r.log.Append(ctx, recs...); err != nil {
			r.giveBack(es, ctx.Err() != nil)
			return err
		}
		es = es[len(some):]
	}
	return nil
}

// giveBack counts what the log did not take. If it was not asked in earnest,
// because Run is told to stop, all waits for the last try.
func (r *Recorder) giveBack(es []entry, stopping bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if stopping {
		r.waiting = slices.Concat(es, r.waiting)
		return
	}
	for _, e := range es {
		r.count(r.row(e.last), e.last, max(e.rec.Entry.Common.Reason.Count, 1))
	}
}
