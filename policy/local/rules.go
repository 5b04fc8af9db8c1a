package local

import (
	"errors"
	"log/slog"
	"slices"
	"sync"
	"weak"

	"cardea/api"
)

// A compiler compiles policies and keeps the programs of expressions that are in
// use, by their text. No decision waits for it.
type compiler struct {
	env environment
	log *slog.Logger
	// routeNamespace is the namespace of foreign Objects that name none.
	routeNamespace string

	mu       sync.Mutex
	programs map[string]weak.Pointer[program]
	live     int // programs in use when last counted
}

func newCompiler(log *slog.Logger) *compiler {
	return &compiler{env: newEnvironment(), log: log, routeNamespace: api.DefaultNamespace, programs: map[string]weak.Pointer[program]{}}
}

// program returns the program of an expression. One that does not compile has
// an unknown value.
func (c *compiler) program(text string) *program {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.programs[text].Value(); p != nil {
		return p
	}
	if len(c.programs) > 2*c.live+100 {
		for t, p := range c.programs {
			if p.Value() == nil {
				delete(c.programs, t)
			}
		}
		c.live = len(c.programs)
	}
	p, _, faults := c.env.compile(text)
	if len(faults) > 0 {
		p = &program{err: errors.New(faults[0].String())}
		c.log.Warn("policy: an expression does not compile; its value is unknown", "expression", text, "error", p.err)
	}
	c.programs[text] = weak.Make(p)
	return p
}

// A rank is the place of a rule in the order in which rules are tried: its
// priority, and DENY before ALLOW.
type rank uint8

const (
	priorities = 9
	ranks      = 2 * priorities
)

func rankOf(r *api.Rule) rank {
	k := 2 * rank(min(max(r.Priority, -4), 4)+4)
	if r.Effect == api.Allow {
		k++
	}
	return k
}

// A ruleSet is a compiled policy, named or inline.
type ruleSet struct {
	rules []rule         // by rank, then by index
	ends  [ranks]uint16  // rules[ends[k-1]:ends[k]] are those of rank k
	ranks uint32         // bit k is set if there are rules of rank k
	attrs map[string]any // what the rules see as attrs

	enforcement *enforcement // nil if the rules always count
}

// An enforcement says for which requests the rules of a set count: those that
// one of its conditions matches or, if ignore is set, those that none does.
type enforcement struct {
	match  condition // any of them
	ignore bool
}

// enforcement compiles rules of enforcement. Where there is one of effect
// ENFORCE, those of effect IGNORE say nothing more.
func (c *compiler) enforcement(rules []api.EnforcementRule) *enforcement {
	if len(rules) == 0 {
		return nil
	}
	e := &enforcement{match: condition{op: anyOf}}
	e.ignore = !slices.ContainsFunc(rules, func(r api.EnforcementRule) bool { return r.Effect != api.Ignore })
	for i := range rules {
		if e.ignore == (rules[i].Effect == api.Ignore) {
			e.match.of = append(e.match.of, c.condition(&rules[i].Condition))
		}
	}
	return e
}

// counts tells whether the rules count. A condition that is unknown because the
// request is of another protocol does not match, as in rules.
func (n *enforcement) counts(e *evaluation) ternary {
	t := n.match.eval(e)
	if t == unknown && !e.ofOther {
		t = no
	}
	if n.ignore {
		t = t.not()
	}
	return t
}

// words says why the rules do not count.
func (n *enforcement) words() string {
	if n.ignore {
		return "the policy does not count: one of its IGNORE rules matches"
	}
	return "the policy does not count: none of its ENFORCE rules matches"
}

// A rule is a compiled rule.
type rule struct {
	*api.Rule
	condition condition
	index     int
	words     string // which rule it is
}

// rules compiles the policy that is at from.
func (c *compiler) rules(s *api.PolicySpec, from source) *ruleSet {
	set := &ruleSet{attrs: s.Attrs, rules: make([]rule, 0, len(s.Rules)), enforcement: c.enforcement(s.EnforcementRules)}
	for k := range rank(ranks) {
		for i := range s.Rules {
			if rankOf(&s.Rules[i]) != k {
				continue
			}
			r := rule{Rule: &s.Rules[i], condition: c.condition(&s.Rules[i].Condition), index: i}
			r.words = from.ref(&r).String()
			set.rules = append(set.rules, r)
			set.ranks |= 1 << k
		}
		set.ends[k] = uint16(len(set.rules))
	}
	return set
}

// at returns the rules of a rank.
func (s *ruleSet) at(k rank) []rule {
	var from uint16
	if k > 0 {
		from = s.ends[k-1]
	}
	return s.rules[from:s.ends[k]]
}

// A source is where a set of rules comes from: what of api.RuleRef is common to
// them.
type source struct {
	policy string   // a named Policy
	owner  *api.Key // the Object that names it, or that the inline policy stands in
	inline int      // the place of the inline policy, from 1
}

// ref returns the reference to a rule of the set.
func (s source) ref(r *rule) api.RuleRef {
	effect := r.Effect
	if effect != api.Allow {
		effect = api.Deny
	}
	return api.RuleRef{Policy: s.policy, Owner: s.owner, Inline: s.inline,
		Index: r.index, Name: r.Name, Effect: effect, Priority: r.Priority}
}

// An attachment is one policy in the authorization of an Object: its rules, if
// it is inline.
type attachment struct {
	source
	rules *ruleSet
}

// attachments compiles an authorization: the named policies come first.
func (c *compiler) attachments(a *api.Authorization, owner api.Key) []attachment {
	if len(a.Policies)+len(a.InlinePolicies) == 0 {
		return nil
	}
	list := make([]attachment, 0, len(a.Policies)+len(a.InlinePolicies))
	for _, name := range a.Policies {
		list = append(list, attachment{source: source{policy: name, owner: &owner}})
	}
	for i := range a.InlinePolicies {
		if p := &a.InlinePolicies[i].Spec; !p.IsDisabled {
			from := source{owner: &owner, inline: i + 1}
			list = append(list, attachment{from, c.rules(p, from)})
		}
	}
	return list
}

// A configRule is a compiled rule of a dynamicConfig.
type configRule struct {
	condition condition
	name      string
	config    *api.ServiceConfig // nil if there is none of that name
}

// configs returns the config of the requests that no rule of the dynamicConfig
// matches, and the rules. Each config is made once, with what it takes from its
// parents.
func (c *compiler) configs(s *api.Service) (*api.ServiceConfig, []configRule) {
	made := map[string]*api.ServiceConfig{}
	config := func(name string) *api.ServiceConfig {
		e, ok := made[name]
		if !ok {
			e = s.EffectiveConfig(name)
			made[name] = e
		}
		return e
	}
	var rules []configRule
	if d := s.Spec.DynamicConfig; d != nil {
		rules = make([]configRule, len(d.Rules))
		for i := range d.Rules {
			r := &d.Rules[i]
			rules[i] = configRule{c.condition(&r.Condition), r.ConfigName, config(r.ConfigName)}
		}
	}
	return config(api.DefaultConfig), rules
}
