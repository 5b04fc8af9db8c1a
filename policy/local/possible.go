package local

import (
	"context"
	"errors"
	"math/bits"
	"reflect"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"

	"cardea/api"
)

// Possible reports whether some request of a Session to a Service, SERVICE.NAMESPACE, could
// be allowed: now, or at another time of the day. What expressions read of the request and
// of the clock may be anything, each time that it is read; all else is as it is. So it
// may say yes where rules contradict each other about requests, and never no where a
// request would be allowed. It reports false while there is no snapshot.
func (d *Decider) Possible(_ context.Context, session, service string) bool {
	s := d.current.Load()
	if s == nil || session == "" {
		return false
	}
	r := api.Request{Session: session, Service: service}
	r.Now = d.instant(&r)
	who, err := d.identify(&r)
	if err == nil {
		if kept := s.kept(&who, &r); kept != nil {
			return kept.Effect == api.Allow
		}
	}
	j := d.open(s, &r)
	defer d.judgments.put(j)
	if !j.admit(who, err) {
		return false
	}
	j.makePlan()
	answer := j.plan.possible.Load()
	if answer == nil {
		yes := j.isPossible(d.compiler())
		answer = &yes
		j.plan.possible.Store(answer)
	}
	return *answer
}

// A supposition is an evaluation for any request at any time.
type supposition struct {
	*evaluation
	unknowns []*interpreter.AttributePattern
	// open is set if a condition, since begin, could come out in more than one way, or for
	// more than one reason.
	open bool
}

// begin forgets what was met before.
func (s *supposition) begin(attrs map[string]any) {
	s.evaluation.begin(attrs)
	s.open = false
}

// AsPartialActivation lets CEL leave open what hangs on the unknown.
func (s *supposition) AsPartialActivation() (interpreter.PartialActivation, bool) { return s, true }

// UnknownAttributePatterns implements interpreter.PartialActivation.
func (s *supposition) UnknownAttributePatterns() []*interpreter.AttributePattern { return s.unknowns }

// unknowns returns what is not known of requests to the API, or to other Services: for
// certain these have no object of the API's protocol.
func (u *universe) unknowns(isAPI bool) []*interpreter.AttributePattern {
	request := func() *interpreter.AttributePattern { return cel.AttributePattern(varContext).QualString("request") }
	list := []*interpreter.AttributePattern{cel.AttributePattern(varNow)}
	if isAPI {
		return append(list, request())
	}
	for name, f := range u.byGo[reflect.TypeFor[api.Facts]()].fields {
		if !f.protocol {
			list = append(list, request().QualString(name))
		}
	}
	return list
}

// A span is what a condition can be: the least and the most.
type span struct{ lo, hi ternary }

func exactly(t ternary) span { return span{t, t} }
func (s span) not() span     { return span{-s.hi, -s.lo} }

// isPossible reports whether some request could be allowed. It tries the rules in their
// order, as try does: what may allow decides, and a DENY only if it matches for certain.
func (j *judgment) isPossible(c *compiler) bool {
	if j.plan.err != nil {
		return false
	}
	j.ctx.Groups = j.plan.groups
	j.ctx.Request = &api.Facts{}
	s := &supposition{evaluation: &j.evaluation, unknowns: c.env.ofOthers}
	if j.service.object.Spec.Mode == api.ModeAPI {
		s.unknowns = c.env.ofAPI
	}
	for left := j.plan.ranks; left != 0; left &= left - 1 {
		k := rank(bits.TrailingZeros32(left))
		for i := range j.plan.applying {
			a := &j.plan.applying[i]
			rules := a.at(k)
			if len(rules) == 0 {
				continue
			}
			counts := a.span(s)
			for n := range rules {
				s.begin(a.attrs)
				matches := rules[n].condition.span(s)
				if rules[n].Effect == api.Allow {
					if counts.hi == yes && matches.hi == yes {
						return j.configIsPossible(s)
					}
					continue
				}
				// What is unknown counts for a DENY, unless the request is of another
				// protocol; that is only known if nothing was left open.
				certain := matches.lo == yes || matches == exactly(unknown) && !s.open && s.ofOther
				if counts.lo != no && certain {
					return false
				}
			}
		}
	}
	return j.service.isOpen() && j.configIsPossible(s)
}

// span returns what can be said of whether the rules of a set count, as counts does.
func (a *applying) span(s *supposition) span {
	if a.enforcement == nil {
		return exactly(yes)
	}
	s.begin(a.attrs)
	n := a.enforcement
	t := n.match.span(s)
	switch {
	case s.open:
		if t.lo == unknown { // it could be for another protocol
			t.lo = no
		}
	case t.lo == unknown && !s.ofOther:
		t = exactly(no)
	}
	if n.ignore {
		t = t.not()
	}
	return t
}

// configIsPossible reports whether some request that is allowed has a config.
func (j *judgment) configIsPossible(s *supposition) bool {
	there := func(config *api.ServiceConfig) bool {
		return config != nil || j.service.object.Spec.Mode == api.ModeAPI
	}
	for i := range j.service.configRules {
		r := &j.service.configRules[i]
		s.begin(nil)
		t := r.condition.span(s)
		if t.hi == yes && there(r.config) {
			return true
		}
		if t.lo != no {
			return false
		}
	}
	return there(j.service.config)
}

// span returns what the condition can be, as eval returns what it is.
func (c *condition) span(s *supposition) span {
	switch c.op {
	case always:
		return exactly(yes)
	case is:
		return c.program.span(s)
	case isNot:
		return c.program.span(s).not()
	case all:
		t := exactly(yes)
		for i := range c.of {
			x := c.of[i].span(s)
			if t = (span{min(t.lo, x.lo), min(t.hi, x.hi)}); t.hi == no {
				break
			}
		}
		return t
	case anyOf, none:
		t := exactly(no)
		for i := range c.of {
			x := c.of[i].span(s)
			if t = (span{max(t.lo, x.lo), max(t.hi, x.hi)}); t.lo == yes {
				break
			}
		}
		if c.op == none {
			t = t.not()
		}
		return t
	}
	return exactly(c.eval(s.evaluation))
}

// span returns what the expression can be.
func (p *program) span(s *supposition) span {
	if p.err != nil || !p.timeBound && !p.perRequest {
		return exactly(p.eval(s.evaluation))
	}
	open := span{no, yes}
	partial := p.partial()
	if partial == nil {
		s.open = true
		return open
	}
	before := s.ofOther
	v, _, err := partial.Eval(s)
	if _, cancelled := errors.AsType[interpreter.EvalCancelledError](err); cancelled || err == nil && types.IsUnknown(v) {
		s.open = true
		return open
	}
	t := s.outcome(v, err)
	// Another request might not have come to what failed.
	s.open = s.open || s.ofOther && !before
	return exactly(t)
}
