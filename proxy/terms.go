package proxy

import (
	"hash/maphash"
	"time"

	"cardea/api"
)

// Terms are what a connection, or a unit of work, was let in on: the question and the
// answer, but for what is of each one alone. They are shared and never change.
type terms struct {
	*ground
	session, user, device *api.Ref
	until                 time.Time
	id                    string // of the decision, if it is not one of ours
	from                  *origin
	evidence              *api.Evidence // for the next question; nil if that names the Session, or nobody
	figure                *figure
	names                 *names // that the decision depends on
}

// A ground is what a decision says, but for ID, Revision, DependsOn, Until and who asks:
// the same for many Sessions.
type ground struct{ said api.Decision }

// maxShared is how many terms of one list of names are remembered, to be shared.
const maxShared = 4

// termsOf returns what is the same for every connection that came as c did, with such
// evidence, and was answered d. ours says that the Grant keeps the id of d. r.mu is held.
func (r *registry) termsOf(c *Conn, e *api.Evidence, d *api.Decision, ours bool) *terms {
	l := r.index.list(d.DependsOn)
	known := e.Kind == api.EvidenceAnonymous || d.Subject.Session != nil
	if ours && known {
		for _, t := range l.terms {
			if t.isOf(c, d) {
				return t
			}
		}
	}
	t := &terms{
		ground: r.grounds.get(d), session: d.Subject.Session, user: d.Subject.User, device: d.Subject.Device, until: d.Until,
		from: c.from, figure: c.gate.figures.get(c.from.counted()), names: l,
	}
	if !ours {
		t.id = d.ID
	}
	if !known {
		t.evidence = new(*e)
	}
	if ours && known {
		l.terms = append(l.terms[max(0, len(l.terms)-maxShared+1):], t)
	}
	return t
}

// isOf reports whether they are those of c, which was answered d.
func (t *terms) isOf(c *Conn, d *api.Decision) bool {
	s := &d.Subject
	return t.from.isAs(c.from) && same(t.session, s.Session) && same(t.user, s.User) && same(t.device, s.Device) && t.until.Equal(d.Until) && t.says(d)
}

// says reports whether d is on this ground.
func (g *ground) says(d *api.Decision) bool {
	o := &g.said
	a, b := &d.Subject, &o.Subject
	return d.Config == o.Config && d.Limits == o.Limits && d.Effect == o.Effect && d.Reason == o.Reason && d.Words == o.Words &&
		d.Message == o.Message && same(d.Rule, o.Rule) && same(a.Service, b.Service) && same(a.Namespace, b.Namespace) &&
		same(a.Region, b.Region) && a.Mode == b.Mode && a.IsAnonymous == b.IsAnonymous && d.TimeBound == o.TimeBound && d.Lease == o.Lease
}

// decision returns the decision of that id and revision.
func (t *terms) decision(id string, r api.Revision) api.Decision {
	d := t.said
	d.ID, d.Revision, d.Until, d.DependsOn = id, r, t.until, t.names.keys
	d.Subject.Session, d.Subject.User, d.Subject.Device = t.session, t.user, t.device
	return d
}

// request is the question, without facts.
func (t *terms) request() api.Request {
	r := api.Request{Service: t.from.service}
	if t.from.isForeign() {
		r.Route = &t.from.route.Object
	}
	switch {
	case t.session != nil: // later questions are about the Session, whatever becomes of the evidence
		r.Session = t.session.UID
	case t.evidence != nil:
		r.Evidence = *t.evidence
	default:
		r.Evidence.Kind = api.EvidenceAnonymous
	}
	return r
}

// same reports whether two pointers are to the same value, or both nil.
func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// grounds are some of those that were seen.
type grounds struct {
	seed maphash.Seed
	of   [256]*ground
}

// get returns the ground of d.
func (g *grounds) get(d *api.Decision) *ground {
	place := &g.of[maphash.Comparable(g.seed, struct {
		config  *api.ServiceConfig
		service *api.Ref
		words   string
	}{d.Config, d.Subject.Service, d.Words})%uint64(len(g.of))]
	if known := *place; known != nil && known.says(d) {
		return known
	}
	x := &ground{*d}
	x.said.ID, x.said.Revision, x.said.Until, x.said.DependsOn = "", api.Revision{}, time.Time{}, nil
	x.said.Subject.Session, x.said.Subject.User, x.said.Subject.Device = nil, nil, nil
	*place = x
	return x
}
