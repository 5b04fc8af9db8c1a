package local

import (
	"crypto/subtle"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"time"

	"cardea/api"
	"cardea/identity"
)

// A judgment is the making of one decision on one snapshot.
type judgment struct {
	*snapshot
	evaluation // what expressions see
	request    api.Request
	decision   api.Decision

	// Who asks for what, as far as it was found. session is nil for a User who has
	// none, and service if there is no such Service.
	session *sessionEntry
	user    *entry[*api.User]
	service *serviceEntry

	dependsOn []api.Key // what was read so far; replaced by that of the plan
	plan      *plan     // nil if something decided before rules were looked for

	steps *[]api.Step // what was considered is added here, if it is not nil
}

// A plan is what a decision is made from once it is known who asks for what: the
// rules that apply. It holds as long as its basis does, so the latest of a
// Session is kept, and its decisions share what they depend on.
type plan struct {
	basis     basis
	applying  []applying
	ranks     uint32 // of the rules that apply, as in ruleSet
	groups    []*api.Group
	dependsOn []api.Key
	err       error // some of the rules cannot be read
}

// A basis is what a plan is made from, beside the Session.
type basis struct {
	rules   rules
	groups  tree[*entry[*api.Group]]
	user    *entry[*api.User]
	service *serviceEntry
}

// applying is a set of rules that applies to the request, and why it does.
type applying struct {
	*ruleSet
	source
}

// judgments keeps those that are done, for their buffers.
type judgments struct{ sync.Pool }

// get returns one for a request that is decided on s.
func (p *judgments) get(s *snapshot, r api.Request) *judgment {
	j, ok := p.Get().(*judgment)
	if !ok {
		j = new(judgment)
	}
	j.snapshot, j.request = s, r
	j.ctx.Request = r.Facts
	j.decision = api.Decision{ID: api.NewID(), Revision: s.revision, Effect: api.Deny}
	return j
}

func (p *judgments) put(j *judgment) {
	clear(j.dependsOn)
	*j = judgment{dependsOn: j.dependsOn[:0]}
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
	return j.decision
}

// deny makes the decision a DENY. It returns false, so that a check can return
// what it returns.
func (j *judgment) deny(reason api.ReasonType, words string) bool {
	j.decision.Effect, j.decision.Reason, j.decision.Words = api.Deny, reason, words
	return false
}

// depends notes that the Object of a kind and name was read, or looked for. It
// reports false if it was before.
func (j *judgment) depends(kind, name string) bool {
	for i := range j.dependsOn {
		if k := &j.dependsOn[i]; k.Name == name && k.Kind == kind {
			return false
		}
	}
	j.dependsOn = append(j.dependsOn, api.Key{Group: api.GroupCore, Kind: kind, Name: name})
	return true
}

// judge makes the decision for a User, with a Session or without, and a Service.
func (j *judgment) judge() {
	j.makePlan()
	if j.plan.err != nil {
		j.deny(api.ReasonError, j.plan.err.Error())
		return
	}
	j.ctx.Groups = j.plan.groups
	if j.try(); j.decision.Effect == api.Allow {
		j.chooseConfig()
	}
}

// locate looks up what is asked for. It decides nothing: that the Service does
// not exist is said to those only who may know.
func (j *judgment) locate() {
	name := api.ServiceName(j.request.Service)
	j.depends(api.KindService, name)
	if s, ok := j.services.get(name); ok {
		j.service = s
		j.ctx.Service = s.object
		j.decision.Subject.Service, j.decision.Subject.Mode = &s.ref, s.object.Spec.Mode
		j.depends(api.KindNamespace, api.NamespaceOf(name))
		if n, ok := j.namespaces.get(api.NamespaceOf(name)); ok {
			j.ctx.Namespace = n.object
			j.decision.Subject.Namespace = &n.ref
		}
	}
	if j.depends(api.KindClusterConfig, api.ClusterConfigName); j.cluster != nil {
		j.decision.Subject.Region = &j.cluster.region
	}
}

// identify finds the Session that asks. It reports false if the decision is made.
func (j *judgment) identify(v identity.Verifier) bool {
	var claim identity.Claim
	if claim.SessionUID = j.request.Session; claim.SessionUID == "" {
		var err error
		if claim, err = v.Verify(j.request.Evidence, j.now); err != nil {
			return j.deny(api.ReasonUnauthenticated, err.Error())
		}
	}
	s, ok := j.byUID.get(claim.SessionUID)
	if !ok {
		return j.deny(api.ReasonNoSession, "the Session does not exist, or does not any more")
	}
	j.session = s
	j.ctx.Session = s.object
	j.decision.Subject.Session = &s.ref
	j.depends(api.KindSession, s.key.Name)
	if claim.KeySHA256 != "" && subtle.ConstantTimeCompare([]byte(claim.KeySHA256), []byte(s.object.Status.KeySHA256)) != 1 {
		return j.deny(api.ReasonKeyMismatch, "the Session is bound to another key")
	}
	return true
}

// admitSession checks the Session and its User. It reports false if the decision
// is made.
func (j *judgment) admitSession() bool {
	spec := &j.session.object.Spec
	if spec.State != api.SessionActive {
		return j.deny(api.ReasonSessionNotActive, "the Session is "+string(spec.State))
	}
	if !j.now.Before(spec.ExpiresAt) {
		return j.deny(api.ReasonSessionExpired, "the Session expired at "+spec.ExpiresAt.UTC().Format(time.RFC3339))
	}
	j.decision.Until = spec.ExpiresAt
	u := &j.session.object.Status.UserRef
	return j.admitUser(u.Name, u.UID)
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

// makePlan finds the rules that apply, or takes them from the Session's latest
// decision.
func (j *judgment) makePlan() {
	b := basis{j.snapshot.rules, j.snapshot.groups, j.user, j.service}
	if j.session != nil {
		if p := j.session.plan.Load(); p != nil && p.basis == b {
			j.plan = p
			return
		}
	}
	j.plan = &plan{basis: b}
	j.collect()
	j.plan.dependsOn = slices.Clone(j.dependsOn)
	if j.session != nil {
		j.session.plan.Store(j.plan)
	}
}

// collect gathers the rules that apply, in a fixed order.
func (j *judgment) collect() {
	j.attach(&j.service.attachee)
	for name, seen := api.NamespaceOf(j.service.key.Name), 0; name != ""; seen++ {
		if !j.depends(api.KindNamespace, name) && seen > 0 {
			break // a cycle
		}
		n, found := j.namespaces.get(name)
		if !found {
			break
		}
		j.attach(&n.attachee)
		name = n.object.Spec.Parent
	}
	j.attach(&j.user.attachee)
	for _, name := range j.user.object.Spec.Groups {
		if !j.depends(api.KindGroup, name) {
			continue
		}
		if g, found := j.groups.get(name); found {
			j.plan.groups = append(j.plan.groups, g.object)
			j.attach(&g.attachee)
		}
	}
	if j.session != nil {
		j.attach(&j.session.attachee)
	}
	if j.cluster != nil {
		j.attach(&j.cluster.attachee)
	}
}

// attach gathers the rules of what is attached to an Object, of each Policy once.
func (j *judgment) attach(a *attachee) {
	if a.err != nil {
		j.plan.err = a.err
	}
	for i := range a.attached {
		at := &a.attached[i]
		if at.rules != nil {
			j.plan.add(at.rules, at.source)
			continue
		}
		if !j.depends(api.KindPolicy, at.policy) {
			continue
		}
		switch p, found := j.policies.get(at.policy); {
		case !found:
		case p.err != nil:
			j.plan.err = p.err
		case p.rules != nil:
			j.plan.add(p.rules, at.source)
		}
	}
}

func (p *plan) add(s *ruleSet, from source) {
	if s.ranks != 0 {
		p.applying = append(p.applying, applying{s, from})
		p.ranks |= s.ranks
	}
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
					j.note(a, r, api.OutcomeSkipped)
				case j.matches(a, r):
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

// matches reports whether a rule matches, and makes the decision if it does.
//
// What is unknown neither allows nor passes: an ALLOW then does not match, and a
// DENY does, unless all that is unknown is so because the request is of another
// protocol than the rule.
func (j *judgment) matches(a *applying, r *rule) bool {
	j.begin(a.attrs)
	switch t := r.condition.eval(&j.evaluation); {
	case t == no, t == unknown && !j.ofOther:
		j.note(a, r, api.OutcomeNoMatch)
		return false
	case t == unknown:
		if j.note(a, r, api.OutcomeUnknown); r.Effect == api.Allow {
			return false
		}
		j.deny(api.ReasonPolicyMatch, r.words+" could not be told, and a DENY then counts: "+j.cause.Error())
	default:
		j.note(a, r, api.OutcomeMatch)
		j.decision.Effect, j.decision.Reason, j.decision.Words = r.Effect, api.ReasonPolicyMatch, r.words
	}
	ref := a.ref(r)
	j.decision.Rule = &ref
	if r.Effect != api.Allow {
		j.decision.Effect, j.decision.Message = api.Deny, r.Message
	}
	return true
}

// chooseConfig chooses the config of a request that is allowed.
func (j *judgment) chooseConfig() {
	name := api.DefaultConfig
	for i := range j.service.configRules {
		r := &j.service.configRules[i]
		j.begin(nil)
		t := r.condition.eval(&j.evaluation)
		if t == unknown {
			j.denyConfig(fmt.Sprintf("rule %d of dynamicConfig could not be told: %v", i, j.cause))
			return
		}
		if t == yes {
			name = r.name
			break
		}
	}
	j.decision.Config = j.service.object.Config(name)
	if j.decision.Config == nil && j.service.object.Spec.Mode != api.ModeAPI {
		j.denyConfig("the Service has no config " + name)
	}
}

func (j *judgment) denyConfig(words string) {
	j.deny(api.ReasonConfig, words)
	j.decision.Rule = nil
}

// note adds a step to the explanation, if one is wanted.
func (j *judgment) note(a *applying, r *rule, o api.Outcome) {
	if j.steps == nil {
		return
	}
	s := api.Step{Rule: a.ref(r), Condition: describe(&r.Condition), Outcome: o}
	switch {
	case o == api.OutcomeNoMatch && j.ofProtocol, o == api.OutcomeUnknown:
		s.Words = j.cause.Error()
	case o == api.OutcomeSkipped:
		s.Words = "a stronger rule decided"
	}
	*j.steps = append(*j.steps, s)
}
