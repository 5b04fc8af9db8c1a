package policytest

import (
	"testing"

	"cardea/api"
)

// enforcement checks for which requests the rules of a policy count.
func (s suite) enforcement(t *testing.T) {
	const (
		absent   = `ctx.request.tls.sni == "x"`
		failing  = `1 / (ctx.request.port - 50000) == 1`
		protocol = `ctx.request.api.verb == "get"`
	)
	enforce := func(match string) api.EnforcementRule {
		return api.EnforcementRule{Effect: api.Enforce, Condition: api.Condition{Match: match}}
	}
	ignore := func(match string) api.EnforcementRule {
		return api.EnforcementRule{Effect: api.Ignore, Condition: api.Condition{Match: match}}
	}
	rows := []struct {
		name        string
		rules       []api.EnforcementRule
		allow, deny bool // whether such a rule counts
	}{
		{"none", nil, true, true},
		{"ENFORCE matches", []api.EnforcementRule{enforce("true")}, true, true},
		{"ENFORCE does not match", []api.EnforcementRule{enforce("false")}, false, false},
		{"one ENFORCE of two matches", []api.EnforcementRule{enforce("false"), enforce("true")}, true, true},
		{"IGNORE matches", []api.EnforcementRule{ignore("true")}, false, false},
		{"IGNORE does not match", []api.EnforcementRule{ignore("false")}, true, true},
		{"one IGNORE of two matches", []api.EnforcementRule{ignore("false"), ignore("true")}, false, false},
		{"both match", []api.EnforcementRule{ignore("true"), enforce("true")}, true, true},
		{"none of both matches", []api.EnforcementRule{enforce("false"), ignore("false")}, false, false},
		{"ENFORCE is unknown", []api.EnforcementRule{enforce(absent)}, false, true},
		{"ENFORCE fails", []api.EnforcementRule{enforce(failing)}, false, true},
		{"ENFORCE does not compile", []api.EnforcementRule{enforce("nonsense")}, false, true},
		{"ENFORCE is unknown, another matches", []api.EnforcementRule{enforce(absent), enforce("true")}, true, true},
		{"ENFORCE is unknown, IGNORE matches", []api.EnforcementRule{enforce(absent), ignore("true")}, false, true},
		{"ENFORCE does not match, IGNORE is unknown", []api.EnforcementRule{enforce("false"), ignore(absent)}, false, false},
		{"IGNORE is unknown", []api.EnforcementRule{ignore(absent)}, false, true},
		{"IGNORE is unknown, another matches", []api.EnforcementRule{ignore(absent), ignore("true")}, false, false},
		{"ENFORCE is of another protocol", []api.EnforcementRule{enforce(protocol)}, false, false},
		{"ENFORCE is of another protocol, another is unknown", []api.EnforcementRule{enforce(protocol), enforce(absent)}, false, true},
		{"IGNORE is of another protocol", []api.EnforcementRule{ignore(protocol)}, true, true},
		{"attrs of the policy", []api.EnforcementRule{enforce("attrs.on")}, true, true},
	}
	st := s.store(t)
	d := s.open(t, st, Verifier{})
	for _, r := range rows {
		for _, inline := range []bool{true, false} {
			name := r.name + ", named"
			if inline {
				name = r.name + ", inline"
			}
			t.Run(name, func(t *testing.T) {
				ask := func(effect api.Effect) api.Effect {
					w := NewWorld()
					p := Policy("one", rule(effect, ""))
					p.Spec.EnforcementRules, p.Spec.Attrs = r.rules, api.Attrs{"on": true}
					if inline {
						w.Service.Spec.Authorization.InlinePolicies = []api.InlinePolicy{{Spec: p.Spec}}
					} else {
						w.Service.Spec.Authorization = Named("one")
						w.More = append(w.More, p)
					}
					if effect == api.Deny {
						w.User.Spec.Authorization = Inline(Allow(""))
					}
					await(t, d, Put(t, st, w.Objects()...))
					return decide(t, d, w.Request).Effect
				}
				if got := ask(api.Allow) == api.Allow; got != r.allow {
					t.Errorf("an ALLOW counts: %t, want %t", got, r.allow)
				}
				if got := ask(api.Deny) == api.Deny; got != r.deny {
					t.Errorf("a DENY counts: %t, want %t", got, r.deny)
				}
			})
		}
	}
}
