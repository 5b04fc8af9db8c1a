package policytest

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cardea/api"
)

// unknowns checks what an ALLOW and a DENY make of a condition that cannot be
// told, for each reason why it cannot.
func (s suite) unknowns(t *testing.T) {
	const (
		protocol = `ctx.request.api.verb == "get"`
		absent   = `ctx.request.tls.sni == "x"`
		attrs    = `ctx.user.spec.attrs.nope == 1`
		failing  = `1 / (ctx.request.port - 50000) == 1`
	)
	match := func(e string) api.Condition { return api.Condition{Match: e} }
	not := func(e string) api.Condition { return api.Condition{Not: e} }
	of := func(c ...api.Condition) *api.Conditions { return &api.Conditions{Of: c} }
	rows := []struct {
		name        string
		condition   api.Condition
		allow, deny bool // whether the rule matches
	}{
		{"another protocol", match(protocol), false, false},
		{"another protocol, negated", match("!(" + protocol + ")"), false, false},
		{"another protocol, not", not(protocol), false, false},
		{"another protocol, none", api.Condition{None: of(match(protocol))}, false, false},
		{"another protocol, all", api.Condition{All: of(match(protocol), match("true"))}, false, false},
		{"another protocol, any", api.Condition{Any: of(match(protocol), match("false"))}, false, false},
		{"has of another protocol", match("has(ctx.request.api)"), false, false},
		{"has within another protocol", match("!has(ctx.request.api.kind)"), false, false},
		{"absent object", match(absent), false, true},
		{"absent object, unequal", match(`ctx.request.tls.sni != "x"`), false, true},
		{"absent object, negated", match("!(" + absent + ")"), false, true},
		{"absent object, not", not(absent), false, true},
		{"absent object, none", api.Condition{None: of(match(absent))}, false, true},
		{"absent object, all", api.Condition{All: of(match(absent), match("true"))}, false, true},
		{"absent object, any", api.Condition{Any: of(match("false"), match(absent))}, false, true},
		{"absent object, in a list", match(`ctx.groups.all(g, g.metadata.name == ctx.request.tls.sni)`), false, true},
		{"absent object, guarded", match("has(ctx.request.tls) && " + absent), false, false},
		{"absent object, guarded, negated", match("!has(ctx.request.tls) || " + absent), true, true},
		{"absent object, guarded from within", match("has(ctx.request.tls.clientCertificate)"), false, false},
		{"absent key of attrs", match(attrs), false, true},
		{"absent key of attrs, not", not(attrs), false, true},
		{"absent key of attrs, guarded", match("has(ctx.user.spec.attrs.nope) && " + attrs), false, false},
		{"absent key of the policy's attrs", match("attrs.nope == 1"), false, true},
		{"key of attrs", match("ctx.user.spec.attrs.level == 3"), true, true},
		{"error", match(failing), false, true},
		{"error, not", not(failing), false, true},
		{"too expensive", match("[1,2,3,4,5,6,7,8].all(a, [1,2,3,4,5,6,7,8].all(b, [1,2,3,4,5,6,7,8].all(c, [1,2,3,4,5,6,7,8].all(d, " +
			"[1,2,3,4,5,6,7,8].all(e, [1,2,3,4,5,6,7,8].all(f, [1,2,3,4,5,6,7,8].all(g, a+b+c+d+e+f+g > 0)))))))"), false, true},
		{"no boolean", match("ctx.user.spec.attrs.level"), false, true},
		{"no boolean behind another protocol", match(protocol + " && (ctx.user.spec.attrs.level || false)"), false, true},
		{"another protocol and absent", match(protocol + " && " + absent), false, true},
		{"another protocol or error", match(protocol + " || " + failing), false, true},
		{"another protocol or an absent flag", match(protocol + " || ctx.user.spec.attrs.nope"), false, true},
		{"decided in spite of another protocol", match(protocol + " || true"), true, true},
		{"decided in spite of absence", match(absent + " || true"), true, true},
		{"refuted in spite of absence", match(absent + " && false"), false, false},
		{"zero is not absent", match(`ctx.user.spec.email == ""`), true, true},
		{"does not compile", match(`ctx.user.spec.nothing == 1`), false, true},
		{"no condition", api.Condition{}, false, true},
	}
	st := s.store(t)
	d := s.open(t, st, Verifier{})
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			allow, deny := s.matches(t, func(w *World) {
				rev := Put(t, st, w.Objects()...)
				await(t, d, rev)
			}, d, r.condition)
			if allow != r.allow || deny != r.deny {
				t.Errorf("ALLOW matches %t, DENY matches %t; want %t, %t", allow, deny, r.allow, r.deny)
			}
		})
	}
}

// matches tells whether a condition matches in an ALLOW and in a DENY.
func (s suite) matches(t testing.TB, put func(*World), d Decider, c api.Condition) (allow, deny bool) {
	w := NewWorld()
	w.Service.Spec.Authorization = Inline(api.Rule{Effect: api.Allow, Condition: c})
	put(w)
	allow = decide(t, d, w.Request).Effect == api.Allow
	w.Service.Spec.Authorization = Inline(api.Rule{Effect: api.Deny, Condition: c}, Allow(""))
	put(w)
	return allow, decide(t, d, w.Request).Effect == api.Deny
}

// kleene checks random conditions against Kleene's logic.
func (s suite) kleene(t *testing.T) {
	st := s.store(t)
	d := s.open(t, st, Verifier{})
	rapid.Check(t, func(rt *rapid.T) {
		f := formulas().Draw(rt, "formula")
		var m meaning
		value := f.value(&m)
		allow, deny := s.matches(t, func(w *World) { await(t, d, Put(t, st, w.Objects()...)) }, d, f.condition())
		if want := value > 0; allow != want {
			rt.Errorf("%v: an ALLOW matches: %t, want %t", f, allow, want)
		}
		if want := value > 0 || value == 0 && m.other; deny != want {
			rt.Errorf("%v: a DENY matches: %t, want %t", f, deny, want)
		}
	})
}

// A formula is a condition with its meaning.
type formula struct {
	op   string // a leaf: true, false, protocol, absent, error, lost; in CEL: !, &&, ||; outside: not, all, any, none
	args []formula
}

// A meaning is what was met while a formula was evaluated from the left, no
// further than needed.
type meaning struct{ other bool }

// value returns -1, 0 (unknown) or 1.
func (f formula) value(m *meaning) int {
	switch f.op {
	case "true":
		return 1
	case "false":
		return -1
	case "protocol":
		return 0
	case "absent", "error", "lost":
		m.other = true
		return 0
	case "!", "not":
		return -f.args[0].value(m)
	}
	sign := 1 // of what ends the evaluation
	if f.op == "&&" || f.op == "all" {
		sign = -1
	}
	v := -sign
	for _, a := range f.args {
		if x := a.value(m); sign*x > sign*v {
			v = x
		}
		if v == sign {
			break
		}
	}
	if f.op == "none" {
		return -v
	}
	return v
}

// cel returns a formula without not, all, any, none.
func (f formula) cel() string {
	args := make([]string, len(f.args))
	for i := range f.args {
		args[i] = f.args[i].cel()
	}
	switch f.op {
	case "protocol":
		return `ctx.request.api.verb == "get"`
	case "absent":
		return `ctx.request.tls.sni == "x"`
	case "error":
		return `1 / (ctx.request.port - 50000) == 1`
	case "lost":
		return `ctx.user.spec.attrs.nope == 1`
	case "!":
		return "!(" + args[0] + ")"
	case "&&", "||":
		return "(" + strings.Join(args, " "+f.op+" ") + ")"
	}
	return f.op
}

func (f formula) condition() api.Condition {
	var of api.Conditions
	for _, a := range f.args {
		of.Of = append(of.Of, a.condition())
	}
	switch f.op {
	case "not":
		return api.Condition{Not: f.args[0].cel()}
	case "all":
		return api.Condition{All: &of}
	case "any":
		return api.Condition{Any: &of}
	case "none":
		return api.Condition{None: &of}
	}
	return api.Condition{Match: f.cel()}
}

func (f formula) String() string { return fmt.Sprintf("%s%v", f.op, f.args) }

func formulas() *rapid.Generator[formula] {
	leaf := rapid.Custom(func(t *rapid.T) formula {
		return formula{op: rapid.SampledFrom([]string{"true", "false", "protocol", "absent", "error", "lost"}).Draw(t, "leaf")}
	})
	node := func(of *rapid.Generator[formula], ops ...string) *rapid.Generator[formula] {
		return rapid.Custom(func(t *rapid.T) formula {
			f := formula{op: rapid.SampledFrom(ops).Draw(t, "op")}
			n := 1
			if f.op != "!" && f.op != "not" {
				n = rapid.IntRange(1, 3).Draw(t, "n")
			}
			for range n {
				f.args = append(f.args, of.Draw(t, "arg"))
			}
			return f
		})
	}
	cel := leaf
	for range 2 {
		cel = rapid.OneOf(cel, node(cel, "!", "&&", "||"))
	}
	tree := rapid.OneOf(cel, node(cel, "not"))
	for range 2 {
		tree = rapid.OneOf(tree, node(tree, "all", "any", "none"))
	}
	return tree
}
