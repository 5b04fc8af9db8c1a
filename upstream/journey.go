package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"cardea/api"
	"cardea/upstream/balance"
)

// A journey is the way to the upstream for one connection, by Dial or by a Plan: which
// targets were tried, and what became of that.
type journey struct {
	api.Destination
	d        *Dialer
	place    *place
	shape    *shape
	q        balance.Query
	now      time.Time // of the start
	deadline time.Time
	timeout  time.Duration // from the start to the deadline
	spent    bool          // some of it is over
	tries    int           // targets that were tried, and names that could not be resolved
	failures []failure
	gone     func() error // why whoever asked has gone, if it has; nil if that cannot be told
	space    [3]*balance.Target
}

// A failure is what went wrong with a target.
type failure struct {
	host   string
	err    error // of connecting or resolving
	within time.Duration
	words  *Error // of what came after that; err is nil then
}

// journey begins one.
func (d *Dialer) journey(to api.Destination, p *place, s *shape) *journey {
	j := new(journey)
	j.begin(d, to, p, s)
	return j
}

func (j *journey) begin(d *Dialer, to api.Destination, p *place, s *shape) {
	j.Destination, j.d, j.place, j.shape = to, d, p, s
	j.timeout = to.Config.Upstream.ConnectTimeout.Or(cmp.Or(d.Timeout, DefaultTimeout))
	now := time.Now()
	if j.now = now; d.names.now != nil {
		j.now = d.names.now()
	}
	p.used.Store(now.Unix())
	j.deadline = now.Add(j.timeout)
	j.q.Tried = j.space[:0]
	if s.rules.Balance == api.BalanceSourceHash && to.Facts != nil {
		j.q.Client, _ = netip.ParseAddr(to.Facts.IP)
	}
}

// isForeign tells whether the destination is one of a foreign Object: words name other
// fields then.
func (j *journey) isForeign() bool { return j.Object.Group == api.GroupAmbassador }

// fields returns those that words name.
func (j *journey) fields() fields { return fieldsOf(j.isForeign()) }

// why returns why whoever asked has gone, nil if it has not.
func (j *journey) why() error {
	if j.gone == nil {
		return nil
	}
	return j.gone()
}

// left returns the time until the deadline of ctx.
func left(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	return time.Until(deadline)
}

// part returns the part of the time that is left which one of so many has.
func (j *journey) part(of int) time.Duration {
	if j.shape.retries >= 0 {
		of = min(of, j.shape.retries+1-j.tries)
	}
	if len(j.failures) == 0 && of <= 1 {
		return j.timeout // as long as there is; words say it as it was set
	}
	rest := j.timeout
	if j.spent {
		rest = time.Until(j.deadline)
	}
	if of <= 1 {
		return rest.Round(time.Millisecond)
	}
	return min(rest, max(rest/time.Duration(of), min(fairPart, j.timeout/4))).Round(time.Millisecond)
}

// isOver tells whether nothing more may be tried, and why.
func (j *journey) isOver() (words string, over bool) {
	switch {
	case j.shape.retries >= 0 && j.tries > j.shape.retries:
		return "loadbalance.retries leaves no try", true
	case time.Until(j.deadline) < time.Millisecond:
		return "there was no time: see spec.config.upstream.connectTimeout", true
	}
	return "", false
}

// dial does the work of Dial.
func (j *journey) dial(ctx context.Context) (net.Conn, api.DialReport, *Error) {
	dialling, cancel := context.WithDeadline(ctx, j.deadline)
	defer cancel()
	j.gone = ctx.Err
	var report api.DialReport
	for {
		t, hosts, failure := j.next(dialling)
		if failure != nil {
			report.Retries = max(len(j.failures)-1, 0)
			return nil, report, failure
		}
		within := j.part(hosts)
		part, done := context.WithTimeout(dialling, within)
		conn, t := j.try(part, t, within, &report)
		done()
		if conn != nil {
			t.Connected()
			j.place.count(j.d, j.Object, t.Host, len(j.failures) > 0, nil)
			report.Retries, report.Hold = len(j.failures), t
			return conn, report, nil
		}
	}
}

// next returns the target that is to be tried now, which then has one connection more,
// and how many Hosts there are that could be tried, its own included.
func (j *journey) next(ctx context.Context) (t *balance.Target, hosts int, failure *Error) {
	var words string
	j.place.follow()
	for {
		if err := j.why(); errors.Is(err, context.Canceled) {
			return nil, 0, j.end("", balance.None)
		}
		if words, over := j.isOver(); over && j.tries > 0 {
			return nil, 0, j.end(words, balance.None)
		}
		hosts, _ = j.place.set.Left(j.q.Tried)
		t, what := j.place.set.Take(j.d.names.time(), &j.q)
		if what == balance.Full {
			q := j.q
			q.Stale, j.spent = true, true
			if t, what = j.place.set.Wait(ctx, &q); what == balance.Full {
				what, words = j.full(ctx)
			}
		}
		switch {
		case what == balance.Taken && t.IsKnown():
			j.q.Tried = append(j.q.Tried, t)
			return t, hosts, nil
		case what == balance.Taken:
			t.Drop()
			j.find(ctx, t, hosts)
		case what == balance.Stale:
			j.find(ctx, t, hosts)
		case what == balance.Unhealthy && j.shape.served && j.place.await(ctx):
		default:
			return nil, 0, j.end(words, what)
		}
	}
}

// full says why who waited for a place has none.
func (j *journey) full(ctx context.Context) (what balance.Outcome, words string) {
	switch words = j.place.full(j.q.Tried); {
	case ctx.Err() == nil:
		return balance.Full, words + "; too many connections wait for a place"
	case j.why() != nil:
		return balance.None, ""
	}
	return balance.Full, fmt.Sprintf("%s; no place came free within %v", words, j.timeout)
}

// find resolves the name of a target, or notes that it cannot be.
func (j *journey) find(ctx context.Context, t *balance.Target, hosts int) {
	s, _ := j.place.source(t.Host)
	if s == nil || slices.Contains(j.q.Known, t.Host) {
		j.q.Tried = append(j.q.Tried, t) // it has gone meanwhile
		return
	}
	within := j.part(hosts)
	part, done := context.WithTimeout(ctx, within)
	defer done()
	j.q.Known, j.spent = append(j.q.Known, t.Host), true
	if err := j.d.resolveSource(part, j.place, s, 0); err != nil {
		j.tries++
		j.note(failure{host: t.Host, err: err, within: within})
		j.exclude(t.Host)
	}
}

// exclude sees that no target of a Host is tried any more.
func (j *journey) exclude(host string) {
	for _, t := range j.place.set.OfHost(host) {
		if !slices.Contains(j.q.Tried, t) {
			j.q.Tried = append(j.q.Tried, t)
		}
	}
}

// beside returns another target of a Host that may be tried beside those that are
// being tried, nil if there is none.
func (j *journey) beside(host string) *balance.Target {
	if _, over := j.isOver(); over || j.shape.retries >= 0 && len(j.q.Tried) > j.shape.retries {
		return nil
	}
	q := j.q
	q.Host, q.Stale = host, true
	t, what := j.place.set.Take(j.d.names.time(), &q)
	if what != balance.Taken {
		return nil
	}
	if !t.IsKnown() {
		t.Drop()
		return nil
	}
	j.q.Tried = append(j.q.Tried, t)
	return t
}

// failed ends the try of a target that could not be connected to.
func (j *journey) failed(t *balance.Target, err error, within time.Duration) {
	j.tries++
	e := j.note(failure{host: t.Host, err: err, within: within})
	if j.why() != nil || isOurs(err) {
		t.Drop()
	} else {
		t.Failed(e.short())
	}
}

// isOurs tells whether a connection could not be made for a reason that says nothing of
// the target.
func isOurs(err error) bool {
	if _, refused := errors.AsType[*refusal](err); refused {
		return true
	}
	return slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOMEM, syscall.ENOBUFS, context.Canceled},
		func(e error) bool { return errors.Is(err, e) })
}

// note notes a failure, and counts it.
func (j *journey) note(f failure) *Error {
	j.failures, j.spent = append(j.failures, f), true
	e := f.words
	if e == nil {
		e = explain(j.why(), f.host, j.fields(), f.within, f.err)
	}
	if j.why() == nil { // that the client has gone says nothing of an endpoint
		j.place.count(j.d, j.Object, f.host, len(j.failures) > 1, e)
	}
	return e
}

// end makes an Error of all that went wrong. words say why no more was tried, or which
// endpoints are Full.
func (j *journey) end(words string, what balance.Outcome) *Error {
	if len(j.failures) == 0 {
		switch err := j.why(); {
		case err != nil:
			return givenUp(err, j.place.endpoints())
		case what == balance.Full:
			return &Error{Reason: Limit, Words: words}
		}
		return &Error{Reason: Unhealthy, Words: j.place.unhealthy()}
	}
	var failed []*Error
	for i, f := range j.failures {
		if f.words != nil {
			failed = append(failed, f.words)
			continue
		}
		if slices.ContainsFunc(j.failures[:i], func(o failure) bool { return o.words == nil && o.host == f.host }) {
			continue
		}
		all := attempts{f.err}
		within := f.within
		for _, o := range j.failures[i+1:] {
			if o.words == nil && o.host == f.host {
				all, within = append(all, o.err), max(within, o.within)
			}
		}
		if len(all) == 1 {
			failed = append(failed, explain(j.why(), f.host, j.fields(), within, f.err))
		} else {
			failed = append(failed, explain(j.why(), f.host, j.fields(), within, all))
		}
	}
	switch {
	case what == balance.Full:
		return together(append([]*Error{{Reason: Limit, Words: words}}, failed...), 0, "")
	case words == "":
		words = "there was no try, as they do not serve: see the health of the endpoints"
	}
	return together(failed, j.place.set.Hosts()-len(failed), words)
}

// try connects to a target, or another of its Host. ctx ends after within.
func (j *journey) try(ctx context.Context, t *balance.Target, within time.Duration, report *api.DialReport) (net.Conn, *balance.Target) {
	host := t.Host
	var s *session
	if j.shape.tls {
		from, _ := j.place.source(host)
		if from == nil { // it has gone meanwhile
			t.Drop()
			return nil, nil
		}
		if from.end.TLS || j.Config.TLS != nil || j.Config.ClientCertificate != nil {
			var err error
			if s, err = j.d.session(ctx, j.Destination, j.place, from); err != nil {
				t.Drop()
				j.useless(host, errorAt(host, UpstreamTLS, err.Error(), err))
				return nil, nil
			}
		}
	}
	conn, t := j.race(ctx, t, within)
	if conn == nil {
		return nil, nil
	}
	if s != nil && t.Session != "" {
		s.address += ": " + t.At()
	}
	if err := preface(ctx, conn, j.Destination); err != nil {
		conn.Close()
		j.refused(t, explainPreface(j.why(), nameOf(t.Host, t.At()), within, err))
		return nil, nil
	}
	if s == nil {
		return conn, t
	}
	secure, err := s.handshake(ctx, conn)
	if s.verdict != nil {
		j.d.verified.set(j.Object, api.ConditionUpstreamVerified, s.verdict.verified, s.verdict.reason(), s.words())
	}
	if err != nil {
		j.refused(t, s.explain(j.why(), within, err))
		return nil, nil
	}
	report.Verified, report.Words = &s.verdict.verified, s.words()
	return secure, t
}

// useless notes that no target of a Host can be used.
func (j *journey) useless(host string, e *Error) {
	j.tries++
	j.note(failure{host: host, words: e})
	j.exclude(host)
}

// refused ends the try of a target that was connected to, and then nothing came of it:
// as little as would of the others of its Host, but that each Session sees one of its own.
func (j *journey) refused(t *balance.Target, e *Error) {
	j.tries++
	j.note(failure{host: t.Host, words: e})
	if t.Session == "" {
		j.exclude(t.Host)
	}
	if j.why() != nil {
		t.Drop()
	} else {
		t.Failed(e.short())
	}
}
