package upstream

import (
	"context"
	"net/netip"
	"time"

	"cardea/api"
	"cardea/upstream/balance"
)

// A Plan is a dial that somebody else makes: an engine that connects by itself. It says
// where to, and is told what became of it. Its methods never wait. They are called by
// one goroutine at a time.
//
// From the start a Plan holds a place at an endpoint. So whoever was given one calls
// Connected once, or Failure, whatever happens.
type Plan struct {
	journey
	target *balance.Target // that is being tried; nil if none is
	header []byte
	within time.Duration
	begun  bool
	failed *Error
}

// Plan is Dial for who connects by himself, over plain TCP. It is nil where more has to
// be done, and Dial must be used: TLS is spoken, or UDP, a Session serves, a name has to
// be resolved, one of its addresses may not answer so that several have to be tried at
// once, or an endpoint that may be needed has no place now, so that a connection may have
// to wait. It never waits.
func (d *Dialer) Plan(to api.Destination) *Plan {
	if to.Config == nil {
		return nil
	}
	place := d.place(&to)
	s, err := d.configure(place, to.Config)
	if err != nil || s.tls || s.udp || s.served {
		return nil
	}
	p := new(Plan)
	p.begin(d, to, place, s)
	if v := to.Config.Upstream.ProxyProtocol; v != "" {
		if p.header, err = proxyHeader(v, to.Facts, to.ConnectionID).Append(nil); err != nil {
			return nil // Dial says why
		}
	}
	p.q.Sure = true
	t, what := place.set.Take(p.now, &p.q)
	switch what {
	case balance.Taken:
	case balance.Unhealthy:
		p.fail("", what)
		return p
	default:
		return nil
	}
	p.q.Sure, p.q.Stale = false, true
	p.took(t)
	return p
}

// took makes t the target that is being tried.
func (p *Plan) took(t *balance.Target) {
	p.target = t
	p.q.Tried = append(p.q.Tried, t)
}

// Next returns an address to connect to, and how long that may take. It is called first
// with nil, and again with the error when that failed. ok is false when there is
// nowhere else: then Failure says what happened.
func (p *Plan) Next(failed error) (to netip.AddrPort, within time.Duration, ok bool) {
	if p.begun && p.target != nil {
		p.fails(failed)
	}
	p.begun = true
	for {
		if p.target == nil && !p.another() {
			return to, 0, false
		}
		at := p.target.Addr
		err := p.d.check(at)
		if err == nil {
			_, targets := p.place.set.Left(p.q.Tried)
			p.within = p.part(targets + 1)
			return at, p.within, true
		}
		p.d.refuse(at.String(), err)
		p.fails(err)
	}
}

// fails ends the try of the target.
func (p *Plan) fails(err error) {
	t := p.target
	p.target = nil
	p.journey.failed(t, err, p.within)
}

// another chooses the next target, if there is one.
func (p *Plan) another() bool {
	if p.failed != nil {
		return false
	}
	words, over := p.isOver()
	what := balance.None
	if !over {
		var t *balance.Target
		if t, what = p.place.set.Take(p.d.names.time(), &p.q); what == balance.Taken && t.Addr.IsValid() {
			p.took(t)
			return true
		}
		if what == balance.Taken {
			t.Drop()
			what = balance.None
		}
	}
	p.fail(words, what)
	return false
}

// fail notes that nothing comes of it.
func (p *Plan) fail(words string, what balance.Outcome) {
	if what == balance.Full {
		words = p.place.full(p.q.Tried)
	}
	p.failed = p.end(words, what)
	p.d.unreached(p.Object, p.failed)
}

// NeedsLocal tells whether Connected wants to know the local address: it does not, as a
// PROXY header tells of the client's connection.
func (p *Plan) NeedsLocal() bool { return false }

// Connected says that the connection is there. It returns what is to be sent first, and
// the report of the dial, whose Hold is to be released when the connection is over.
func (p *Plan) Connected(netip.AddrPort) (preface []byte, report api.DialReport) {
	t := p.target
	p.target = nil
	t.Connected()
	p.place.count(p.d, p.Object, t.Host, len(p.failures) > 0, nil)
	p.place.reached(p.d, p.Object)
	return p.header, api.DialReport{Retries: len(p.failures), Hold: t}
}

// Failure ends a Plan of which nothing came. The error is an [*Error], as that of Dial:
// what happened if Next has said that there is nowhere else, and else that it was given
// up.
func (p *Plan) Failure() (api.DialReport, error) {
	if p.target != nil {
		p.target.Drop()
		p.target = nil
	}
	if p.failed == nil {
		p.failed = givenUp(context.Canceled, p.place.endpoints())
	}
	return api.DialReport{Retries: max(len(p.failures)-1, 0)}, p.failed
}
