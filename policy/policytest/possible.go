package policytest

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"cardea/api"
)

// possible checks of which Services it is said that a Session could reach them.
func (s suite) possible(t *testing.T) {
	const (
		request = `ctx.request.port == 1`
		clock   = `now().getHours() == 3`
		api_    = `ctx.request.api.verb == "get"`
		alice   = `ctx.user.metadata.name == "alice"`
		bob     = `ctx.user.metadata.name == "bob"`
		absent  = `ctx.user.spec.attrs.nope == 1`
	)
	rules := func(list ...api.Rule) func(*World) {
		return func(w *World) { w.Service.Spec.Authorization = Inline(list...) }
	}
	of := func(c ...api.Condition) *api.Conditions { return &api.Conditions{Of: c} }
	match := func(e string) api.Condition { return api.Condition{Match: e} }
	allowIf := func(c api.Condition) func(*World) { return rules(api.Rule{Effect: api.Allow, Condition: c}) }
	denyIf := func(c api.Condition) func(*World) {
		return rules(api.Rule{Effect: api.Deny, Condition: c}, Allow(""))
	}
	enforced := func(e api.Enforcement, match string, list ...api.Rule) func(*World) {
		return func(w *World) {
			w.Service.Spec.Authorization = Inline(list...)
			w.Service.Spec.Authorization.InlinePolicies[0].Spec.EnforcementRules = []api.EnforcementRule{
				{Effect: e, Condition: api.Condition{Match: match}}}
		}
	}
	config := func(rules ...api.ConfigRule) func(*World) {
		return func(w *World) {
			w.Service.Spec.Authorization = Inline(Allow(""))
			there := *w.Service.Spec.Config
			there.Name = "there"
			w.Service.Spec.Config, w.Service.Spec.DynamicConfig = nil, &api.DynamicConfig{Rules: rules, Configs: []api.ServiceConfig{there}}
		}
	}
	rows := []struct {
		name   string
		change func(*World)
		want   bool
	}{
		{"no policy", func(*World) {}, false},
		{"ALLOW of any", rules(Allow("")), true},
		{"DENY of any", rules(Deny(""), Allow("")), false},
		{"ALLOW of this User", rules(Allow(alice)), true},
		{"ALLOW of another", rules(Allow(bob)), false},
		{"DENY of this User", rules(Deny(alice), Allow("")), false},
		{"DENY of another", rules(Deny(bob), Allow("")), true},

		{"ALLOW of a request", rules(Allow(request)), true},
		{"DENY of a request", rules(Deny(request), Allow("")), true},
		{"ALLOW of a time", rules(Allow(clock)), true},
		{"DENY of a time", rules(Deny(clock), Allow("")), true},
		{"ALLOW of a request of another User", rules(Allow(bob + " && " + request)), false},
		{"ALLOW of a request of this User", rules(Allow(request + " && " + alice)), true},
		{"DENY of all this User requests", rules(Deny(alice+" || "+request), Allow("")), false},
		{"ALLOW that no request refutes", rules(Allow("!(" + bob + " && " + request + ")")), true},
		{"ALLOW that no request matches", rules(Allow("!(" + alice + " || " + request + ")")), false},
		{"ALLOW of one of two", rules(Allow("ctx.request.port == 1 ? false : " + bob)), true}, // what is chosen is not looked into
		{"a weaker ALLOW", rules(Deny(request), Allow(bob), Allow(clock)), true},
		{"ALLOW before a DENY", func(w *World) {
			first := Allow(request)
			first.Priority = -1
			w.Service.Spec.Authorization = Inline(Deny(alice), first)
		}, true},
		{"DENY before an ALLOW", func(w *World) {
			last := Allow(request)
			last.Priority = 1
			w.Service.Spec.Authorization = Inline(Deny(alice), last)
		}, false},
		{"DENY of the ClusterConfig", func(w *World) {
			w.Service.Spec.Authorization = Inline(Allow(""))
			w.Cluster.Spec.Authorization = Inline(Deny(alice))
		}, false},
		{"ALLOW by the Group", func(w *World) { w.Group.Spec.Authorization = Inline(Allow(request)) }, true},

		// What is in a request, and what never is in one of this protocol.
		{"ALLOW if it has", rules(Allow("has(ctx.request.tls)")), true},
		{"ALLOW if it has not", rules(Allow("!has(ctx.request.tls)")), true},
		{"ALLOW if there is a request", rules(Allow("has(ctx.request)")), true},
		{"ALLOW by all of ctx", rules(Allow("[ctx].exists(c, c.request.port == 1)")), true},
		{"ALLOW by a list", rules(Allow("ctx.groups.exists(g, g.metadata.name == ctx.request.ip)")), true},
		{"ALLOW by a list of another", rules(Allow(`ctx.groups.exists(g, g.metadata.name == "none" && ctx.request.port == 1)`)), false},
		{"ALLOW of calls to the API", rules(Allow(api_)), false},
		{"ALLOW of what has an API", rules(Allow("has(ctx.request.api)")), false},
		{"DENY of calls to the API", rules(Deny(api_), Allow("")), true},
		{"ALLOW of calls to the API, or else", rules(Allow(api_ + " || " + request)), true},
		{"too expensive", rules(Allow("[1,2,3,4,5,6,7,8].all(a, [1,2,3,4,5,6,7,8].all(b, [1,2,3,4,5,6,7,8].all(c, [1,2,3,4,5,6,7,8].all(d, " +
			"[1,2,3,4,5,6,7,8].all(e, [1,2,3,4,5,6,7,8].all(f, [1,2,3,4,5,6,7,8].all(g, a+b+c+d+e+f+g > 0 || ctx.request.port == 1)))))))")), true},

		// What cannot be told of anything but the request.
		{"ALLOW that is unknown", rules(Allow(absent)), false},
		{"DENY that is unknown", rules(Deny(absent), Allow("")), false},
		{"ALLOW that is unknown or of a request", rules(Allow(absent + " || " + request)), true},
		{"DENY that is unknown or of a request", rules(Deny(absent+" && "+request), Allow("")), true},
		{"ALLOW that does not compile", rules(Allow("nonsense")), false},
		{"DENY that does not compile", rules(Deny("nonsense"), Allow("")), false},
		{"ALLOW without condition", allowIf(api.Condition{}), false},
		{"DENY without condition", denyIf(api.Condition{}), false},

		// Trees.
		{"ALLOW of all", allowIf(api.Condition{All: of(match(request), match(alice))}), true},
		{"ALLOW of all, one refuted", allowIf(api.Condition{All: of(match(request), match(bob))}), false},
		{"ALLOW of any", allowIf(api.Condition{Any: of(match(request), match(bob))}), true},
		{"ALLOW of none", allowIf(api.Condition{None: of(match(request), match(bob))}), true},
		{"ALLOW of none, one matched", allowIf(api.Condition{None: of(match(request), match(alice))}), false},
		{"ALLOW of not", allowIf(api.Condition{Not: request}), true},
		{"DENY of all", denyIf(api.Condition{All: of(match(request), match(alice))}), true},
		{"DENY of any", denyIf(api.Condition{Any: of(match(request), match(alice))}), false},
		{"DENY of none", denyIf(api.Condition{None: of(match(request), match(bob))}), true},
		{"DENY of none of nothing", denyIf(api.Condition{None: of(match(bob))}), false},
		{"DENY of not", denyIf(api.Condition{Not: bob}), false},

		// A DENY counts for what is unknown, but for what is so of another protocol: these
		// requests come to the one and not to the other.
		{"DENY of what some requests do not come to", denyIf(api.Condition{Any: of(match(api_), match(request+" && "+absent+" && false"))}), true},
		{"DENY of what some requests do not come to, in a tree", denyIf(api.Condition{All: of(api.Condition{Any: of(match(request), match(absent))}, match(api_))}), true},

		// Whether the policy counts.
		{"ALLOW enforced for a request", enforced(api.Enforce, request, Allow("")), true},
		{"ALLOW enforced for another User", enforced(api.Enforce, bob, Allow("")), false},
		{"ALLOW ignored for a request", enforced(api.Ignore, request, Allow("")), true},
		{"ALLOW ignored for this User", enforced(api.Ignore, alice, Allow("")), false},
		{"ALLOW enforced for what is unknown", enforced(api.Enforce, absent, Allow("")), false},
		{"ALLOW enforced for calls to the API", enforced(api.Enforce, api_, Allow("")), false},
		{"ALLOW ignored for calls to the API", enforced(api.Ignore, api_, Allow("")), true},
		{"DENY enforced for a request", func(w *World) {
			enforced(api.Enforce, request, Deny(""))(w)
			w.User.Spec.Authorization = Inline(Allow(""))
		}, true},
		{"DENY ignored for a request", func(w *World) {
			enforced(api.Ignore, request, Deny(""))(w)
			w.User.Spec.Authorization = Inline(Allow(""))
		}, true},
		{"DENY enforced for this User", func(w *World) {
			enforced(api.Enforce, alice+" || "+request, Deny(""))(w)
			w.User.Spec.Authorization = Inline(Allow(""))
		}, false},
		{"DENY ignored for what is unknown", func(w *World) {
			enforced(api.Ignore, absent, Deny(""))(w)
			w.User.Spec.Authorization = Inline(Allow(""))
		}, false},

		// What is asked for, and who asks.
		{"no Service", func(w *World) { rules(Allow(""))(w); w.Request.Service = "nope.default" }, false},
		{"a short name", func(w *World) { rules(Allow(""))(w); w.Request.Service = "nats" }, true},
		{"a disabled Service", func(w *World) { rules(Allow(""))(w); w.Service.Spec.IsDisabled = true }, false},
		{"a disabled User", func(w *World) { rules(Allow(""))(w); w.User.Spec.IsDisabled = true }, false},
		{"a User who is gone", func(w *World) { rules(Allow(""))(w); w.Session.Status.UserRef.UID = "u2" }, false},
		{"an expired Session", func(w *World) { rules(Allow(""))(w); w.Session.Spec.ExpiresAt = time.Now().Add(-time.Second) }, false},
		{"a Session that is not approved", func(w *World) { rules(Allow(""))(w); w.Session.Spec.State = api.SessionPending }, false},
		{"a Device that is not approved", func(w *World) {
			rules(Allow(""))(w)
			w.AddDevice().Spec.State = api.DevicePending
		}, false},
		{"a Service that is open to everyone", func(w *World) { w.Anonymous() }, true},
		{"a Service that is open to all but this User", func(w *World) { w.Anonymous(); rules(Deny(alice))(w) }, false},

		// The config.
		{"no config for a request", config(api.ConfigRule{Condition: match("false"), ConfigName: "there"}), false},
		{"a config for some requests", config(api.ConfigRule{Condition: match(request), ConfigName: "there"}), true},
		{"a config that is not there", config(api.ConfigRule{Condition: match(request), ConfigName: "nope"}), false},
		{"a config behind one that cannot be told", config(api.ConfigRule{Condition: match(absent), ConfigName: "there"},
			api.ConfigRule{Condition: match("true"), ConfigName: "there"}), false},
	}
	st := s.store(t)
	d := s.open(t, st, Verifier{})
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			w := lasting()
			r.change(w)
			await(t, d, Put(t, st, w.Objects()...))
			for _, when := range []string{"first", "again"} {
				if got := d.Possible(t.Context(), w.Session.Metadata.UID, w.Request.Service); got != r.want {
					t.Errorf("%s: possible: %t, want %t", when, got, r.want)
				}
			}
		})
	}
	w := lasting()
	rules(Allow(""))(w)
	await(t, d, Put(t, st, w.Objects()...))
	if d.Possible(t.Context(), "nobody", "nats.default") || d.Possible(t.Context(), "", "nats.default") {
		t.Error("who has no Session could reach it")
	}
}

// lasting returns a World whose Session lasts, by the clock of this machine.
func lasting() *World {
	w := NewWorld()
	w.Session.Spec.ExpiresAt = time.Now().Add(time.Hour)
	return w
}

// possibleIsNeverWrong checks that what a request is allowed is possible, for random
// rules; and that what is possible is allowed where no rule reads the request.
func (s suite) possibleIsNeverWrong(t *testing.T) {
	st := s.store(t)
	d := s.open(t, st, Verifier{})
	requests := func(yield func(*api.Facts) bool) {
		for _, port := range []int{50000, 50001} {
			for _, tls := range []*api.TLSFacts{nil, {SNI: "x"}, {SNI: "y"}} {
				if !yield(&api.Facts{IP: "192.0.2.7", Port: port, TLS: tls}) {
					return
				}
			}
		}
	}
	effects := rapid.SampledFrom([]api.Effect{api.Allow, api.Deny})
	rapid.Check(t, func(rt *rapid.T) {
		var list []api.Rule
		var enforcement []api.EnforcementRule
		reads := false
		draw := func(label string) api.Condition {
			f := formulas().Draw(rt, label)
			reads = reads || f.reads()
			return f.condition()
		}
		for range rapid.IntRange(1, 4).Draw(rt, "rules") {
			list = append(list, api.Rule{Effect: effects.Draw(rt, "effect"), Priority: rapid.IntRange(-1, 1).Draw(rt, "priority"), Condition: draw("condition")})
		}
		for range rapid.IntRange(0, 2).Draw(rt, "enforcement") {
			enforcement = append(enforcement, api.EnforcementRule{
				Effect:    rapid.SampledFrom([]api.Enforcement{api.Enforce, api.Ignore}).Draw(rt, "enforcement effect"),
				Condition: draw("enforced for")})
		}
		w := lasting()
		w.Service.Spec.Authorization = Inline(list...)
		w.Service.Spec.Authorization.InlinePolicies[0].Spec.EnforcementRules = enforcement
		await(t, d, Put(t, st, w.Objects()...))
		possible := d.Possible(t.Context(), w.Session.Metadata.UID, "nats.default")
		allowed := false
		for facts := range requests {
			r := w.Request
			r.Facts = facts
			allowed = allowed || decide(t, d, r).Effect == api.Allow
		}
		if allowed && !possible {
			rt.Error("a request is allowed, and said to be impossible")
		}
		if !reads && possible != allowed {
			rt.Errorf("no rule reads the request: possible %t, allowed %t", possible, allowed)
		}
	})
}

// reads reports whether a formula reads the request.
func (f formula) reads() bool {
	for _, a := range f.args {
		if a.reads() {
			return true
		}
	}
	return f.op == "absent" || f.op == "error" || f.op == "protocol"
}
