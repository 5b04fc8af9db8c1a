package local

import (
	"slices"
	"sync/atomic"

	"cardea/api"
)

// A plan is what a decision is made from once it is known who asks for what: the
// rules that apply. It holds as long as the basis of the snapshot and the Session
// (or, for those who have none, the Service) stay what they are. It hangs on one
// of them, and the decisions that are made from it share what they depend on.
type plan struct {
	basis     api.Revision
	service   string       // its id
	applying  []applying   // in the order in which equally strong rules are tried
	ranks     uint32       // of the rules that apply, as in ruleSet
	groups    []*api.Group // nil for those who have no Session
	dependsOn []api.Key
	err       error // some of the rules cannot be read

	answer   atomic.Pointer[api.Decision] // nil if there is none to keep
	possible atomic.Pointer[bool]         // see Decider.Possible; nil if nobody has asked
}

// isOf reports whether the plan is of that Service and still holds.
func (p *plan) isOf(s *snapshot, service string) bool {
	return p.basis == s.basis && p.service == service
}

// applying is a set of rules that applies to the request, and why it does.
type applying struct {
	*ruleSet
	source
}

// makePlan finds the rules that apply, or takes them from the latest plan in its
// place.
func (j *judgment) makePlan() {
	if j.place != nil {
		if p := j.place.Load(); p != nil && p.isOf(j.snapshot, j.service.id) {
			j.plan = p
			return
		}
	}
	switch {
	case j.user != nil:
		j.plan = j.extend(j.base(j.service))
	case j.service.isOpen() && !j.service.foreign: // no rules are asked
		j.plan = &plan{basis: j.basis, service: j.service.id, dependsOn: slices.Clone(j.dependsOn)}
	default:
		j.plan = j.base(j.service)
	}
	if j.place != nil {
		j.place.Store(j.plan)
	}
}

// base returns the plan for those who have no Session, with which all others
// begin: the rules of the Service, the Namespaces that it is in, and the
// ClusterConfig.
func (s *snapshot) base(service *serviceEntry) *plan {
	if p := service.base.Load(); p != nil && p.basis == s.basis {
		return p
	}
	p := &plan{basis: s.basis, service: service.id}
	p.dependsOn = append(p.dependsOn, service.key)
	p.attach(s, &service.attachee)
	for name := service.namespace; name != "" && p.depends(api.KindNamespace, name); {
		n, found := s.namespaces.get(name)
		if !found {
			break
		}
		p.attach(s, &n.attachee)
		name = n.object.Spec.Parent
	}
	p.depends(api.KindClusterConfig, api.ClusterConfigName)
	if s.cluster != nil {
		p.attach(s, &s.cluster.attachee)
	}
	p.dependsOn = slices.Clip(p.dependsOn) // it is given away
	service.base.Store(p)
	return p
}

// extend returns the plan that adds to another the rules of who asks: of the
// User, his Groups, the Session and the Device.
func (j *judgment) extend(base *plan) *plan {
	const more = 4
	p := &plan{basis: base.basis, service: base.service, ranks: base.ranks, err: base.err,
		applying:  append(make([]applying, 0, len(base.applying)+more), base.applying...),
		dependsOn: append(make([]api.Key, 0, len(base.dependsOn)+more), base.dependsOn...),
		groups:    make([]*api.Group, 0, len(j.user.object.Spec.Groups)),
	}
	p.depends(api.KindUser, j.user.key.Name)
	p.attach(j.snapshot, &j.user.attachee)
	for _, name := range j.user.object.Spec.Groups {
		if !p.depends(api.KindGroup, name) {
			continue
		}
		if g, found := j.groups.get(name); found {
			p.groups = append(p.groups, g.object)
			p.attach(j.snapshot, &g.attachee)
		}
	}
	if j.session != nil {
		p.depends(api.KindSession, j.session.key.Name)
		p.attach(j.snapshot, &j.session.attachee)
	}
	if j.device != nil {
		p.depends(api.KindDevice, j.device.key.Name)
		p.attach(j.snapshot, &j.device.attachee)
	}
	p.dependsOn = slices.Clip(p.dependsOn)
	return p
}

// attach adds the rules of what is attached to an Object, of each Policy once.
func (p *plan) attach(s *snapshot, a *attachee) {
	if a.err != nil {
		p.err = a.err
	}
	for i := range a.attached {
		at := &a.attached[i]
		if at.rules != nil {
			p.add(at.rules, at.source)
			continue
		}
		if !p.depends(api.KindPolicy, at.policy) {
			continue
		}
		switch named, found := s.policies.get(at.policy); {
		case !found:
		case named.err != nil:
			p.err = named.err
		case named.rules != nil:
			p.add(named.rules, at.source)
		}
	}
}

func (p *plan) add(s *ruleSet, from source) {
	if s.ranks != 0 {
		p.applying = append(p.applying, applying{s, from})
		p.ranks |= s.ranks
	}
}

// depends notes that the Object of a kind of ours and a name was read, or looked for. It
// reports false if it was before.
func (p *plan) depends(kind, name string) bool {
	for i := range p.dependsOn {
		if k := &p.dependsOn[i]; k.Name == name && k.Kind == kind && k.Group == api.GroupCore {
			return false
		}
	}
	p.dependsOn = append(p.dependsOn, keyOf(kind, name))
	return true
}

func keyOf(kind, name string) api.Key {
	return api.Key{Group: api.GroupCore, Kind: kind, Name: name}
}
