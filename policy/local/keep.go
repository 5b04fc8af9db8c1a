package local

import (
	"crypto/subtle"
	"sync/atomic"

	"cardea/api"
	"cardea/identity"
)

// A caller is who asks: a Session by its Claim, or somebody whom nobody asked
// who he is.
type caller struct {
	identity.Claim
	anonymous bool
}

// holds reports whether the Session is bound to the key that was proved, if one
// was.
func (c *caller) holds(s *api.Session) bool {
	return c.KeySHA256 == "" || subtle.ConstantTimeCompare([]byte(c.KeySHA256), []byte(s.Status.KeySHA256)) == 1
}

// plans are the latest plans of a Session, each in the place of its Service.
type plans [4]atomic.Pointer[plan]

// of returns the place of a Service: several share one, and the latest has it.
// The hash is FNV-1a.
func (p *plans) of(service string) *atomic.Pointer[plan] {
	h := uint32(2166136261)
	for i := range len(service) {
		h = (h ^ uint32(service[i])) * 16777619
	}
	return &p[h%uint32(len(p))]
}

// kept returns the answer to a question that was asked before, if nothing that
// it was made from has changed and no expression read the request or the clock,
// and nil otherwise. All that is left to look at is what differs from one question
// to the next: the proof of the key, and whether the Session has expired.
func (s *snapshot) kept(who *caller, r *api.Request) *api.Decision {
	name := api.ServiceName(r.Service)
	var place *atomic.Pointer[plan]
	if r.Route != nil {
		route, ok := s.find(*r.Route)
		if !ok {
			return nil
		}
		name, place = route.id, &route.anonymous
	} else if who.anonymous {
		service, ok := s.services.get(name)
		if !ok {
			return nil
		}
		place = &service.anonymous
	} else {
		session, ok := s.byUID.get(who.SessionUID)
		if !ok || !r.Now.Before(session.object.Spec.ExpiresAt) || !who.holds(session.object) {
			return nil
		}
		place = session.plans.of(name)
	}
	if p := place.Load(); p != nil && p.isOf(s, name) {
		return p.answer.Load()
	}
	return nil
}

// keep keeps the decision, if it answers every such question of the caller.
func (j *judgment) keep() {
	if j.plan == nil || j.place == nil || j.steps != nil || j.timeBound || j.perRequest {
		return
	}
	d := j.decision
	j.plan.answer.Store(&d)
}
