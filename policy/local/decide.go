package local

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
)

// A judgment is the making of one decision on one snapshot.
type judgment struct {
	*snapshot
	evaluation // what expressions see
	request    api.Request
	decision   api.Decision

	// Who asks for what, as far as it was found. session is nil for a User who has
	// none, both are nil for who is anonymous, device is nil if the Session has
	// none, and service if there is no such Service.
	session *sessionEntry
	user    *entry[*api.User]
	device  *entry[*api.Device]
	service *serviceEntry

	dependsOn []api.Key             // what was read so far; the plan, when there is one, knows all
	place     *atomic.Pointer[plan] // where the plan is kept; nil if it is not
	plan      *plan                 // nil if something decided before rules were looked for
	counting  []counting            // by place in the plan, of sets of rules that do not always count

	steps *[]api.Step // what was considered is added here, if it is not nil
}

// A counting is whether the rules of a set count for the request.
type counting struct {
	known bool // it was found out
	ternary
	cause error // why that is unknown
}

// judgments keeps those that are done, for their buffers.
type judgments struct{ sync.Pool }

// get returns one for a request that is decided on s.
func (p *judgments) get(s *snapshot, r *api.Request) *judgment {
	j, ok := p.Get().(*judgment)
	if !ok {
		j = new(judgment)
	}
	j.snapshot, j.request = s, *r
	j.ctx.Request, j.now = r.Facts, r.Now
	j.decision = api.Decision{ID: api.NewID(), Revision: s.revision, Effect: api.Deny}
	return j
}

func (p *judgments) put(j *judgment) {
	j.end()
	clear(j.dependsOn)
	clear(j.counting)
	*j = judgment{dependsOn: j.dependsOn[:0], counting: j.counting[:0]}
	p.Put(j)
}

// finish returns the decision, which is then the caller's.
func (j *judgment) finish() api.Decision {
	if j.plan != nil {
		j.decision.DependsOn = j.plan.dependsOn
	} else {
		j.decision.DependsOn = slices.Clone(j.dependsOn)
	}
	j.decision.TimeBound = j.timeBound
	j.keep()
	return j.decision
}

// deny makes the decision a DENY. It returns false, so that a check can return
// what it returns.
func (j *judgment) deny(reason api.ReasonType, words string) bool {
	j.decision.Effect, j.decision.Reason, j.decision.Words = api.Deny, reason, words
	return false
}

// depends notes that the Object of a kind and name was read, or looked for.
func (j *judgment) depends(kind, name string) {
	j.dependsOn = append(j.dependsOn, keyOf(kind, name))
}

// judge makes the decision for whom the Service knows: a User, with a Session or
// without, or somebody who is anonymous.
func (j *judgment) judge() {
	j.makePlan()
	if j.plan.err != nil {
		j.deny(api.ReasonError, j.plan.err.Error())
		return
	}
	j.ctx.Groups = j.plan.groups
	j.try()
	if d := &j.decision; d.Reason == api.ReasonNoPolicyMatch && j.service.isOpen() {
		d.Effect, d.Reason, d.Words = api.Allow, api.ReasonAnonymous, "the "+j.service.key.Kind+" is open to everyone"
	}
	if j.decision.Effect == api.Allow && !j.service.foreign {
		j.chooseConfig()
	}
}

// locate looks up what is asked for. It decides nothing: that the Service does
// not exist is said to those only who may know.
func (j *judgment) locate() {
	if j.request.Route != nil {
		j.locateRoute()
	} else {
		name := api.ServiceName(j.request.Service)
		j.depends(api.KindService, name)
		if s, ok := j.services.get(name); ok {
			j.use(s)
		}
	}
	j.depends(api.KindClusterConfig, api.ClusterConfigName)
	if j.cluster != nil {
		j.decision.Subject.Region = &j.cluster.region
	}
}

// use takes s for what is asked for.
func (j *judgment) use(s *serviceEntry) {
	j.service = s
	j.ctx.Service = s.object
	j.decision.Subject.Service, j.decision.Subject.Mode = &s.ref, s.object.Spec.Mode
	j.depends(api.KindNamespace, s.namespace)
	if n, ok := j.namespaces.get(s.namespace); ok {
		j.ctx.Namespace = n.object
		j.decision.Subject.Namespace = &n.ref
	}
}

// admit finds out who asks and checks whether he, and the Service, may be used at
// all. It reports false if the decision is made.
func (j *judgment) admit(who caller, err error) bool {
	switch {
	case j.request.Route != nil:
		return j.admitRoute()
	case err != nil:
		return j.deny(api.ReasonUnauthenticated, err.Error())
	case who.anonymous:
		return j.admitAnonymous()
	}
	return j.findSession(who) && j.admitSession() && j.admitService()
}

// admitAnonymous checks that the Service is there for who has no Session. Whether
// it exists otherwise is not said.
func (j *judgment) admitAnonymous() bool {
	j.decision.Subject.IsAnonymous = true
	if j.service == nil || j.service.object.Spec.IsDisabled || !j.service.isAnonymous() {
		return j.deny(api.ReasonUnauthenticated, "there is no Service "+api.ServiceName(j.request.Service)+" that is public, anonymous and not disabled")
	}
	j.place = &j.service.anonymous
	return true
}

// findSession finds the Session that asks.
func (j *judgment) findSession(who caller) bool {
	s, ok := j.byUID.get(who.SessionUID)
	if !ok {
		return j.deny(api.ReasonNoSession, "the Session does not exist, or does not any more")
	}
	j.session = s
	j.ctx.Session = s.object
	j.decision.Subject.Session = &s.ref
	j.depends(api.KindSession, s.key.Name)
	if !who.holds(s.object) {
		return j.deny(api.ReasonKeyMismatch, "the Session is bound to another key")
	}
	j.place = s.plans.of(api.ServiceName(j.request.Service))
	return true
}

// admitSession checks the Session, its User and its Device.
func (j *judgment) admitSession() bool {
	spec := &j.session.object.Spec
	if spec.State != api.SessionActive {
		return j.deny(api.ReasonSessionNotActive, "the Session is "+string(spec.State))
	}
	if !j.now.Before(spec.ExpiresAt) {
		return j.deny(api.ReasonSessionExpired, "the Session expired at "+spec.ExpiresAt.UTC().Format(time.RFC3339))
	}
	j.decision.Until = spec.ExpiresAt
	status := &j.session.object.Status
	return j.admitUser(status.UserRef.Name, status.UserRef.UID) && j.admitDevice(status.DeviceRef)
}

// admitDevice checks the Device that the Session is bound to, if it is to one.
func (j *judgment) admitDevice(ref *api.Ref) bool {
	if ref == nil {
		return true
	}
	j.depends(api.KindDevice, ref.Name)
	d, ok := j.devices.get(ref.Name)
	if !ok || d.ref.UID != ref.UID {
		return j.deny(api.ReasonDeviceNotActive, "the Device "+ref.Name+" does not exist, or does not any more")
	}
	j.device = d
	j.ctx.Device = d.object
	j.decision.Subject.Device = &d.ref
	if state := d.object.Spec.State; state != api.DeviceActive {
		return j.deny(api.ReasonDeviceNotActive, "the Device "+ref.Name+" is "+string(state))
	}
	return true
}

// admitUser checks the User of that name and, unless it is "", uid: one who was
// made again under the name is somebody else.
func (j *judgment) admitUser(name, uid string) bool {
	j.depends(api.KindUser, name)
	u, ok := j.users.get(name)
	if !ok || uid != "" && uid != u.ref.UID {
		return j.deny(api.ReasonNoUser, "the User "+name+" does not exist, or does not any more")
	}
	j.user = u
	j.ctx.User = u.object
	j.decision.Subject.User = &u.ref
	if u.object.Spec.IsDisabled {
		return j.deny(api.ReasonUserDisabled, "the User "+name+" is disabled")
	}
	return true
}

// admitService checks the Service.
func (j *judgment) admitService() bool {
	switch {
	case j.service == nil:
		return j.deny(api.ReasonNoService, "there is no Service "+api.ServiceName(j.request.Service))
	case j.service.object.Spec.IsDisabled:
		return j.deny(api.ReasonServiceDisabled, "the Service is disabled")
	}
	return true
}

// try tries the rules that apply, the strongest first; the first that matches
// decides.
func (j *judgment) try() {
	decided := false
	for left := j.plan.ranks; left != 0; left &= left - 1 {
		k := rank(bits.TrailingZeros32(left))
		for i := range j.plan.applying {
			a := &j.plan.applying[i]
			rules := a.at(k)
			for n := range rules {
				r := &rules[n]
				switch {
				case decided:
					j.note(a, r, api.OutcomeSkipped, "a stronger rule decided")
				case j.matches(i, a, r):
					if decided = true; j.steps == nil {
						return
					}
				}
			}
		}
	}
	switch {
	case decided:
	case len(j.plan.applying) == 0:
		j.deny(api.ReasonNoPolicyMatch, "no policy applies")
	default:
		j.deny(api.ReasonNoPolicyMatch, "no rule matches")
	}
}

// matches reports whether a rule of the i-th set of the plan matches, and makes
// the decision if it does.
//
// What is unknown neither allows nor passes: an ALLOW then does not match, and a
// DENY does, unless all that is unknown is so because the request is of another
// protocol than the rule. Where it is unknown whether the rules count, those that
// DENY do, and those that ALLOW do not.
func (j *judgment) matches(i int, a *applying, r *rule) bool {
	doubt := "" // what is unknown of whether the rule counts
	if a.enforcement != nil {
		switch c := j.counts(i, a); {
		case c.ternary == no:
			j.note(a, r, api.OutcomeNoMatch, a.enforcement.words())
			return false
		case c.ternary == unknown:
			if doubt = uncounted + ": " + c.cause.Error(); r.Effect == api.Allow {
				j.note(a, r, api.OutcomeUnknown, doubt)
				return false
			}
		}
	}
	j.begin(a.attrs)
	switch t := r.condition.eval(&j.evaluation); {
	case t == no, t == unknown && !j.ofOther:
		words := ""
		if j.ofProtocol {
			words = j.cause.Error()
		}
		j.note(a, r, api.OutcomeNoMatch, words)
		return false
	case t == unknown:
		if j.note(a, r, api.OutcomeUnknown, j.cause.Error()); r.Effect == api.Allow {
			return false
		}
		j.deny(api.ReasonPolicyMatch, r.words+" could not be told, and a DENY then counts: "+j.cause.Error())
	default:
		j.note(a, r, api.OutcomeMatch, doubt)
		j.decision.Effect, j.decision.Reason, j.decision.Words = r.Effect, api.ReasonPolicyMatch, r.words
		if doubt != "" {
			j.decision.Words += "; " + doubt
		}
	}
	ref := a.ref(r)
	j.decision.Rule = &ref
	if r.Effect != api.Allow {
		j.decision.Effect, j.decision.Message = api.Deny, r.Message
	}
	return true
}

// uncounted says that an enforcement is unknown.
const uncounted = "whether the policy counts could not be told"

// counts returns whether the rules of the i-th set of the plan count, which is
// found out once.
func (j *judgment) counts(i int, a *applying) counting {
	if n := len(j.plan.applying); len(j.counting) < n {
		j.counting = slices.Grow(j.counting[:0], n)[:n]
		clear(j.counting)
	}
	c := &j.counting[i]
	if !c.known {
		j.begin(a.attrs)
		c.known, c.ternary, c.cause = true, a.enforcement.counts(&j.evaluation), j.cause
	}
	return *c
}

// chooseConfig chooses the config of a request that is allowed.
func (j *judgment) chooseConfig() {
	config, name := j.service.config, api.DefaultConfig
	for i := range j.service.configRules {
		r := &j.service.configRules[i]
		j.begin(nil)
		t := r.condition.eval(&j.evaluation)
		if t == unknown {
			j.denyConfig(fmt.Sprintf("rule %d of dynamicConfig could not be told: %v", i+1, j.cause))
			return
		}
		if t == yes {
			config, name = r.config, r.name
			break
		}
	}
	switch {
	case config != nil || j.service.object.Spec.Mode == api.ModeAPI:
		j.decision.Config, j.decision.Limits = config, j.service.limits
	case name != api.DefaultConfig:
		j.denyConfig("a rule of dynamicConfig names the config " + name + ", and the Service has none of that name")
	default:
		j.denyConfig("no rule of dynamicConfig matches, and the Service has no spec.config for that")
	}
}

func (j *judgment) denyConfig(words string) {
	j.deny(api.ReasonConfig, words)
	j.decision.Rule = nil
}

// note adds a step to the explanation, if one is wanted.
func (j *judgment) note(a *applying, r *rule, o api.Outcome, words string) {
	if j.steps != nil {
		*j.steps = append(*j.steps, api.Step{Rule: a.ref(r), Condition: describe(&r.Condition), Outcome: o, Words: words})
	}
}
