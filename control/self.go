package control

import (
	"cmp"
	"slices"

	"cardea/api"
	"cardea/store"
)

// maxDenied is how many Services are told that the caller may not connect to.
const maxDenied = 100

// self answers GET /api/self.
func (c *call) self() (any, error) {
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	k := coreKey(api.KindSession, who.Name)
	if _, err := c.may(verbGet, k); err != nil {
		return nil, err
	}
	out := api.Self{Domain: c.Domain, Now: c.Now().UTC()}
	if c.Older != nil {
		out.OlderProcesses = c.Older()
	}
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		out.Revision = r.Revision()
		if out.Session, err = store.Get[*api.Session](r, k); err != nil {
			return err
		}
		out.User, err = store.Get[*api.User](r, coreKey(api.KindUser, out.Session.Status.UserRef.Name))
		return err
	})
	return out, err
}

// reachable answers GET /api/self/services: every Service is decided as if the
// caller connected to it now, from where he is.
func (c *call) reachable() (any, error) {
	q, err := c.query("denied")
	if err != nil {
		return nil, err
	}
	wantDenied, err := boolean(q, "denied")
	if err != nil {
		return nil, err
	}
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	if _, err := c.may(verbGet, coreKey(api.KindSession, who.Name)); err != nil {
		return nil, err
	}
	done, err := c.readers.take(c.r.Context(), who.UID)
	if err != nil {
		return nil, err
	}
	defer done()
	all, err := c.services()
	if err != nil {
		return nil, err
	}
	out := api.Reachable{Items: []api.ReachableService{}, Domain: c.Domain}
	var denied []refusal
	for _, s := range all {
		request := api.Request{Service: s.Metadata.Name, Session: who.UID, Facts: &c.facts, Now: c.Now()}
		d, err := c.Decider.Decide(c.r.Context(), request)
		switch {
		case err != nil:
			return nil, err
		case d.Allowed():
			out.Items = append(out.Items, api.ReachableService{Name: s.Metadata.Name, Mode: s.Spec.Mode, Port: s.Status.Port, Addresses: s.Status.Addresses, Description: s.Metadata.Description})
		case wantDenied:
			shown, err := c.sees(verbGet, s.Key())
			if err != nil {
				return nil, err
			}
			if shown.Allowed() {
				denied = append(denied, refusal{s, d, c.lacks(request, &d)})
			}
		}
	}
	slices.SortStableFunc(denied, func(a, b refusal) int { return cmp.Compare(a.lacks, b.lacks) })
	for _, x := range denied[:min(len(denied), maxDenied)] {
		out.Denied = append(out.Denied, api.DeniedService{Name: x.service.Metadata.Name, Mode: x.service.Spec.Mode,
			Description: x.service.Metadata.Description, Reason: x.decision.Reason, Message: x.decision.Message})
	}
	return out, nil
}

// services returns the Services that are connected to: all but the API.
func (c *call) services() (all []*api.Service, err error) {
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		for s, err := range store.All[*api.Service](r, api.KindService) {
			if err != nil {
				return err
			}
			if s.Spec.Mode != api.ModeAPI {
				all = append(all, s)
			}
		}
		return nil
	})
	return all, err
}

// A refusal is a Service that the caller may see and not connect to.
type refusal struct {
	service  *api.Service
	decision api.Decision
	lacks    int // how much the caller lacks
}

// lacks ranks why a request is denied by what the caller lacks: 0 is that nothing
// of his stands in the way, and the last that no policy has to do with him.
func (c *call) lacks(r api.Request, d *api.Decision) int {
	switch d.Reason {
	case api.ReasonServiceDisabled, api.ReasonLimit, api.ReasonConfig:
		return 0
	case api.ReasonDeviceNotActive:
		return 1
	case api.ReasonNoPolicyMatch:
		// Where the Service itself allows somebody, the caller could be one of them.
		x, err := c.Explainer.Explain(c.r.Context(), r, "")
		if err == nil && slices.ContainsFunc(x.Steps, isOfService) {
			return 2
		}
		return 4
	}
	return 3 // somebody said no
}

// isOfService reports whether a step is an ALLOW that stands in the Service, or its
// Namespace.
func isOfService(s api.Step) bool {
	o := s.Rule.Owner
	return s.Rule.Effect == api.Allow && o != nil && (o.Kind == api.KindService || o.Kind == api.KindNamespace)
}

// logout answers POST /api/logout: the Session ends itself.
func (c *call) logout() (any, error) {
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	_, _, err = c.remove(who, coreKey(api.KindSession, who.Name), options{allowLockout: true}) // he knows what he does
	return api.Empty{}, err
}

// latestSession returns the Session of a User that was made last, and nil if there
// is none.
func (c *call) latestSession(user string) (latest *api.Session, err error) {
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		for s, err := range store.All[*api.Session](r, api.KindSession) {
			if err != nil {
				return err
			}
			if s.Status.UserRef.Name == user && (latest == nil || s.Metadata.CreatedAt.After(latest.Metadata.CreatedAt)) {
				latest = s
			}
		}
		return nil
	})
	return latest, err
}
