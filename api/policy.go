package api

import (
	"fmt"
	"strconv"
)

// A Policy is a list of rules that Objects name in their authorization.
type Policy struct {
	Head
	Spec   PolicySpec   `json:"spec"`
	Status PolicyStatus `json:"status,omitzero"`
}

// The Policies that the first start makes.
const (
	PolicyAllowAll      = "allow-all"
	PolicyDenyAll       = "deny-all"
	PolicyAPIFullAccess = "api-full-access"
	PolicyAPIReadOnly   = "api-read-only"
)

// PolicySpec is what an administrator sets.
type PolicySpec struct {
	Rules []Rule `json:"rules,omitempty"`
	// Attrs is what the rules see as attrs.
	Attrs      Attrs `json:"attrs,omitempty"`
	IsDisabled bool  `json:"isDisabled,omitempty"` // its rules do not count
	// EnforcementRules say for which requests the rules count. Without any they
	// always do. If a rule of effect ENFORCE matches they count; else, if one of
	// effect IGNORE matches, or there is one of effect ENFORCE, they do not.
	EnforcementRules []EnforcementRule `json:"enforcementRules,omitempty"`
}

// Enforcement is the effect of an EnforcementRule.
type Enforcement string

// The values of Enforcement.
const (
	Enforce Enforcement = "ENFORCE"
	Ignore  Enforcement = "IGNORE"
)

// Values implements Enum.
func (Enforcement) Values() []string { return []string{string(Enforce), string(Ignore)} }

// An EnforcementRule says whether the rules of its Policy count for the requests
// that its condition matches.
type EnforcementRule struct {
	Effect    Enforcement `json:"effect"`
	Condition Condition   `json:"condition"`
}

// PolicyStatus is empty for now.
type PolicyStatus struct{}

// Effect is what a rule, or a decision, says.
type Effect string

// The effects. The zero Effect is read as DENY.
const (
	Allow Effect = "ALLOW"
	Deny  Effect = "DENY"
)

// Values implements Enum.
func (Effect) Values() []string { return []string{string(Allow), string(Deny)} }

// A Rule allows or denies what its condition matches. Of all rules that apply,
// the one with the lowest priority number that matches decides; DENY comes
// before ALLOW.
type Rule struct {
	Name      string    `json:"name,omitempty"`
	Effect    Effect    `json:"effect"`
	Condition Condition `json:"condition"`
	Priority  int       `json:"priority,omitempty"` // -4 (strongest) to 4
	// Message is told to a caller with a Session whom the rule refuses.
	Message string `json:"message,omitempty"`
}

// A Condition is one of its fields.
type Condition struct {
	Match    string      `json:"match,omitempty"`    // a CEL expression
	Not      string      `json:"not,omitempty"`      // a CEL expression that must be false
	MatchAny bool        `json:"matchAny,omitempty"` // always true
	All      *Conditions `json:"all,omitempty"`
	Any      *Conditions `json:"any,omitempty"`
	None     *Conditions `json:"none,omitempty"`
	OPA      NotYet      `json:"opa,omitzero"`
}

// Conditions is a list of Conditions.
type Conditions struct {
	Of []Condition `json:"of"`
}

// Authorization attaches Policies to an Object, by name or written there.
type Authorization struct {
	Policies       []string       `json:"policies,omitempty"`
	InlinePolicies []InlinePolicy `json:"inlinePolicies,omitempty"`
	// EnableAnonymous, of a Service only, decides on those who have no Session by
	// the policies of the Service, its Namespace and the ClusterConfig; without it
	// an anonymous Service is open to everyone.
	EnableAnonymous bool `json:"enableAnonymous,omitempty"`
}

// An InlinePolicy is a Policy that stands in the Object that uses it.
type InlinePolicy struct {
	Name string     `json:"name,omitempty"`
	Spec PolicySpec `json:"spec"`
}

// AuthorizationOf returns what o attaches Policies by, nil if its kind has no
// such thing.
func AuthorizationOf(o Object) *Authorization {
	switch o := o.(type) {
	case *ClusterConfig:
		return &o.Spec.Authorization
	case *Namespace:
		return &o.Spec.Authorization
	case *Service:
		return &o.Spec.Authorization
	case *User:
		return &o.Spec.Authorization
	case *Group:
		return &o.Spec.Authorization
	case *Credential:
		return &o.Spec.Authorization
	case *Session:
		return &o.Spec.Authorization
	case *Device:
		return &o.Spec.Authorization
	}
	return nil
}

// Default implements Object.
func (p *Policy) Default() { p.APIVersion, p.Kind = Version, KindPolicy }

// Validate implements Object. It does not compile expressions.
func (p *Policy) Validate(ps *Problems) {
	p.Metadata.validate(ps, 1)
	p.Spec.validate(ps, "/spec")
}

// Limits of a policy.
const (
	maxRules           = 100
	maxConditionDepth  = 16
	maxConditions      = 100
	maxExpression      = 10_000
	maxPolicies        = 100
	minPriority        = -4
	maxPriority        = 4
	maxRuleMessageSize = 256
)

func (s *PolicySpec) validate(p *Problems, at string) {
	if len(s.Rules) > maxRules {
		p.Add(at+"/rules", fmt.Sprintf("must be at most %d", maxRules), strconv.Itoa(len(s.Rules)))
	}
	for i := range s.Rules {
		r, at := &s.Rules[i], fmt.Sprintf("%s/rules/%d", at, i)
		if r.Effect == "" {
			p.Add(at+"/effect", "is required", "").Allowed = r.Effect.Values()
		}
		if r.Priority < minPriority || r.Priority > maxPriority {
			p.Add(at+"/priority", "must be from -4 (strongest) to 4", strconv.Itoa(r.Priority))
		}
		if len(r.Message) > maxRuleMessageSize {
			p.Add(at+"/message", fmt.Sprintf("must be at most %d bytes", maxRuleMessageSize), r.Message)
		}
		r.Condition.validate(p, at+"/condition", 1)
	}
	if len(s.EnforcementRules) > maxRules {
		p.Add(at+"/enforcementRules", fmt.Sprintf("must be at most %d", maxRules), strconv.Itoa(len(s.EnforcementRules)))
	}
	for i := range s.EnforcementRules {
		r, at := &s.EnforcementRules[i], fmt.Sprintf("%s/enforcementRules/%d", at, i)
		if r.Effect == "" {
			p.Add(at+"/effect", "is required", "").Allowed = r.Effect.Values()
		}
		r.Condition.validate(p, at+"/condition", 1)
	}
}

func (c *Condition) validate(p *Problems, at string, depth int) {
	if depth > maxConditionDepth {
		p.Add(at, fmt.Sprintf("must be nested at most %d deep", maxConditionDepth), "")
		return
	}
	n := 0
	for _, set := range []bool{c.Match != "", c.Not != "", c.MatchAny, c.All != nil, c.Any != nil, c.None != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		p.Add(at, "must have exactly one of match, not, matchAny: true, all, any, none", strconv.Itoa(n)+" of them")
	}
	for name, e := range map[string]string{"match": c.Match, "not": c.Not} {
		if len(e) > maxExpression {
			p.Add(at+"/"+name, fmt.Sprintf("must be at most %d bytes", maxExpression), strconv.Itoa(len(e)))
		}
	}
	for name, l := range map[string]*Conditions{"all": c.All, "any": c.Any, "none": c.None} {
		if l == nil {
			continue
		}
		if len(l.Of) == 0 || len(l.Of) > maxConditions {
			p.Add(at+"/"+name+"/of", fmt.Sprintf("must be 1 to %d conditions", maxConditions), strconv.Itoa(len(l.Of)))
		}
		for i := range l.Of {
			l.Of[i].validate(p, fmt.Sprintf("%s/%s/of/%d", at, name, i), depth+1)
		}
	}
}

// validate checks the authorization of an Object that is no Service.
func (a *Authorization) validate(p *Problems, at string) {
	if a.EnableAnonymous {
		p.Add(at+"/enableAnonymous", "must be left out: only Services have it", "true")
	}
	a.validatePolicies(p, at)
}

func (a *Authorization) validatePolicies(p *Problems, at string) {
	if len(a.Policies) > maxPolicies {
		p.Add(at+"/policies", fmt.Sprintf("must be at most %d", maxPolicies), strconv.Itoa(len(a.Policies)))
	}
	checkNames(p, at+"/policies", a.Policies)
	if len(a.InlinePolicies) > maxPolicies {
		p.Add(at+"/inlinePolicies", fmt.Sprintf("must be at most %d", maxPolicies), strconv.Itoa(len(a.InlinePolicies)))
	}
	for i := range a.InlinePolicies {
		a.InlinePolicies[i].Spec.validate(p, fmt.Sprintf("%s/inlinePolicies/%d/spec", at, i))
	}
}

func policyKind() Kind {
	return Kind{Name: KindPolicy, Plural: "policies", Short: []string{"pol"}, ByHand: true,
		New: func() Object { return new(Policy) },
		Columns: []Column{
			{Heading: "RULES", Cell: func(o Object) string { return strconv.Itoa(len(o.(*Policy).Spec.Rules)) }},
			{Heading: "DISABLED", Wide: true, Cell: func(o Object) string { return yes(o.(*Policy).Spec.IsDisabled) }},
		}}
}
