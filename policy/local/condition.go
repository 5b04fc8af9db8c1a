package local

import (
	"errors"
	"strings"
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"

	"cardea/api"
)

// A ternary is a truth value of Kleene's strong three-valued logic (S. C. Kleene,
// Introduction to Metamathematics, § 64).
type ternary int8

// Ordered, so that "and" is the least and "or" the greatest.
const (
	no      ternary = -1
	unknown ternary = 0
	yes     ternary = 1
)

// not returns the negation: unknown stays unknown.
func (t ternary) not() ternary { return -t }

// An evaluation is the state of one decision as its expressions see it: an
// activation of CEL, and a record of what could not be told.
type evaluation struct {
	ctx   api.Context
	attrs map[string]any
	now   time.Time
	// Whether an expression that was evaluated reads the clock, or the request.
	timeBound, perRequest bool

	frame *interpreter.ExecutionFrame // see shared

	// Of the current rule: whether something was unknown because the request is
	// of another protocol, whether something was for any other reason, and the
	// first of the errors, one of another reason before one of protocol.
	ofProtocol, ofOther bool
	cause               error
}

// ResolveName implements interpreter.Activation.
func (e *evaluation) ResolveName(name string) (any, bool) {
	switch name {
	case varContext:
		return &e.ctx, true
	case varAttrs:
		return e.attrs, true
	case varNow:
		return types.Timestamp{Time: e.now}, true
	case varEvaluation:
		return e, true
	}
	return nil, false
}

// Parent implements interpreter.Activation.
func (e *evaluation) Parent() interpreter.Activation { return nil }

// shared returns what expressions without a loop are evaluated in. It is made once
// for all of a decision, as they leave nothing behind in it.
func (e *evaluation) shared() any {
	if e.frame == nil {
		f, err := interpreter.NewExecutionFrame(e)
		if err != nil {
			return e
		}
		e.frame = f
	}
	return e.frame
}

// end gives back what was made for the evaluation.
func (e *evaluation) end() {
	if e.frame != nil {
		e.frame.Close()
		e.frame = nil
	}
}

// begin forgets what was met before.
func (e *evaluation) begin(attrs map[string]any) {
	e.attrs, e.ofProtocol, e.ofOther, e.cause = attrs, false, false, nil
}

// met records why something is unknown.
func (e *evaluation) met(err error) {
	if isProtocol(err) {
		if e.cause == nil {
			e.cause = err
		}
		e.ofProtocol = true
		return
	}
	if !e.ofOther {
		e.cause = err
	}
	e.ofOther = true
}

// A condition is a compiled api.Condition.
type condition struct {
	op      operator
	program *program // of is and isNot
	of      []condition
}

type operator int8

const (
	invalid operator = iota
	always
	is
	isNot
	all
	anyOf
	none
)

func (c *compiler) condition(a *api.Condition) condition {
	switch {
	case a.MatchAny:
		return condition{op: always}
	case a.Match != "":
		return condition{op: is, program: c.program(a.Match)}
	case a.Not != "":
		return condition{op: isNot, program: c.program(a.Not)}
	case a.All != nil:
		return condition{op: all, of: c.conditions(a.All)}
	case a.Any != nil:
		return condition{op: anyOf, of: c.conditions(a.Any)}
	case a.None != nil:
		return condition{op: none, of: c.conditions(a.None)}
	}
	return condition{}
}

func (c *compiler) conditions(a *api.Conditions) []condition {
	of := make([]condition, len(a.Of))
	for i := range a.Of {
		of[i] = c.condition(&a.Of[i])
	}
	return of
}

// eval returns what the condition says of what is being evaluated.
func (c *condition) eval(e *evaluation) ternary {
	switch c.op {
	case always:
		return yes
	case is:
		return c.program.eval(e)
	case isNot:
		return c.program.eval(e).not()
	case all:
		t := yes
		for i := range c.of {
			if t = min(t, c.of[i].eval(e)); t == no {
				break
			}
		}
		return t
	case anyOf, none:
		t := no
		for i := range c.of {
			if t = max(t, c.of[i].eval(e)); t == yes {
				break
			}
		}
		if c.op == none {
			t = t.not()
		}
		return t
	}
	e.met(errNoCondition)
	return unknown
}

var errNoCondition = errors.New("the rule has no condition")

// describe returns a condition as a person reads it.
func describe(c *api.Condition) string {
	list := func(name string, of *api.Conditions) string {
		parts := make([]string, len(of.Of))
		for i := range of.Of {
			parts[i] = describe(&of.Of[i])
		}
		return name + "(" + strings.Join(parts, ", ") + ")"
	}
	switch {
	case c.MatchAny:
		return "any request"
	case c.Match != "":
		return c.Match
	case c.Not != "":
		return "not(" + c.Not + ")"
	case c.All != nil:
		return list("all", c.All)
	case c.Any != nil:
		return list("any", c.Any)
	case c.None != nil:
		return list("none", c.None)
	}
	return "none"
}

// isProtocol reports whether err comes of a request of another protocol.
func isProtocol(err error) bool {
	a, ok := errors.AsType[absent](err)
	return ok && a.protocol
}
