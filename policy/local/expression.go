package local

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
	"cel.dev/cel-go/interpreter"
)

// The variables of an expression. Those with @ cannot be written: now() stands
// for the one, and the evaluation is found by the other.
const (
	varContext    = "ctx"
	varAttrs      = "attrs"
	varNow        = "@now"
	varEvaluation = "@evaluation"
)

// costLimit bounds an expression that has a loop: some 50 ms. Without a loop the
// cost is bounded by the length of the expression and the size of what it reads.
const costLimit = 1_000_000

// allowedFunctions returns those that a condition may call beside operators and
// macros. Not among them is what makes a string that is longer than all its arguments
// (replace, join, format, strings.quote): chained, they would exhaust the memory
// before any limit is looked at.
func allowedFunctions() []string {
	return []string{
		"size", "contains", "startsWith", "endsWith", "matches",
		"int", "uint", "double", "string", "bool", "bytes", "dyn", "type", "timestamp", "duration",
		"getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours",
		"getMilliseconds", "getMinutes", "getMonth", "getSeconds",
		"charAt", "indexOf", "lastIndexOf", "lowerAscii", "upperAscii", "split", "substring", "trim", "reverse",
		fnIPInRange,
	}
}

const (
	fnNow       = "now"
	fnIPInRange = "net.isIPInRange"
)

// An environment is what expressions are compiled in; it does not change. To make
// one takes about as long as to compile a few expressions.
type environment struct {
	*cel.Env
	universe *universe
	// What a supposition does not know of a request to the API, and to other Services.
	ofAPI, ofOthers []*interpreter.AttributePattern
}

func newEnvironment() environment {
	u := newUniverse()
	env, err := cel.NewEnv(
		cel.CustomTypeProvider(u),
		cel.CustomTypeAdapter(u),
		cel.Variable(varContext, cel.ObjectType("cardea.Context")),
		cel.Variable(varAttrs, cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable(varNow, cel.TimestampType),
		cel.Macros(cel.GlobalMacro(fnNow, 0, func(f cel.MacroExprFactory, _ ast.Expr, _ []ast.Expr) (ast.Expr, *cel.Error) {
			return f.NewIdent(varNow), nil
		})),
		cel.CrossTypeNumericComparisons(true),
		ext.Strings(ext.StringsVersion(3)),
		cel.Function(fnIPInRange, cel.Overload("net_is_ip_in_range_string_string",
			[]*cel.Type{cel.StringType, cel.StringType}, cel.BoolType, cel.BinaryBinding(isIPInRange))),
	)
	if err != nil {
		panic("policy: the environment of expressions is inconsistent: " + err.Error())
	}
	return environment{env, u, u.unknowns(true), u.unknowns(false)}
}

// isIPInRange tells whether an address is in a CIDR; one that is no address, or
// no CIDR, is an error.
func isIPInRange(ip, cidr ref.Val) ref.Val {
	i, _ := ip.(types.String)
	c, _ := cidr.(types.String)
	addr, err := netip.ParseAddr(string(i))
	if err != nil {
		return types.NewErr("%q is not an IP address", string(i))
	}
	prefix, err := netip.ParsePrefix(string(c))
	if err != nil {
		return types.NewErr("%q is not a CIDR", string(c))
	}
	return types.Bool(prefix.Contains(addr.Unmap()))
}

// A program is a compiled expression.
type program struct {
	cel        cel.Program
	timeBound  bool  // it reads the clock
	perRequest bool  // it reads ctx.request, or may
	loops      bool  // it has a loop, and a limit of cost
	err        error // it does not compile: its value is unknown

	// partial returns the program for suppositions, which is made when it is needed
	// first; nil if it cannot be made.
	partial func() cel.Program
}

// compile returns the program of an expression and its checked form, or what is
// wrong with it.
func (e environment) compile(text string) (*program, *ast.AST, []fault) {
	checked, faults := e.check(text)
	if len(faults) > 0 {
		return nil, nil, faults
	}
	var (
		p     program
		has   []int64
		whole int // how often ctx is read otherwise than by a field that is not request
	)
	each(checked, func(x ast.Expr) {
		switch x.Kind() {
		case ast.ComprehensionKind:
			p.loops = true
		case ast.IdentKind:
			p.timeBound = p.timeBound || x.AsIdent() == varNow
			if x.AsIdent() == varContext {
				whole++
			}
		case ast.SelectKind:
			s := x.AsSelect()
			if s.IsTestOnly() {
				has = append(has, x.ID())
			}
			if chain(s.Operand()) == varContext && s.FieldName() != "request" {
				whole--
			}
		}
	})
	p.perRequest = whole > 0
	plan := func(checked *ast.AST, how cel.EvalOption) (cel.Program, error) {
		options := []cel.ProgramOption{cel.EvalOptions(how), cel.CustomDecoratorV2(witnesses(has))}
		if p.loops {
			options = append(options, cel.CostLimit(costLimit))
		}
		return e.PlanProgram(checked, options...)
	}
	var err error
	if p.cel, err = plan(checked, cel.OptOptimize); err != nil { // a constant that cannot be converted
		return nil, nil, []fault{{line: 1, column: 1, rule: err.Error()}}
	}
	p.partial = sync.OnceValue(func() cel.Program {
		checked, faults := e.check(text) // again, as to keep it would take more memory than all else
		if len(faults) > 0 {
			return nil
		}
		partial, err := plan(checked, cel.OptPartialEval)
		if err != nil {
			return nil
		}
		return partial
	})
	return &p, checked, nil
}

// witnesses returns a decorator that puts a witness around every step that may
// fail. CEL drops all errors but one where it joins several; what became of a
// rule depends on the kinds of all of them.
func witnesses(has []int64) interpreter.InterpretableDecoratorV2 {
	return func(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
		switch i := i.(type) {
		case attributeWitness, hasWitness, interpreter.InterpretableConst, interpreter.InterpretableConstructor:
			return i, nil
		case interpreter.InterpretableAttribute:
			if slices.Contains(has, i.ID()) {
				return hasWitness{i}, nil
			}
			return attributeWitness{i}, nil
		case interpreter.InterpretableCall:
			return callWitness{i}, nil // still a call to the optimizers that come after
		}
		return witness{i}, nil
	}
}

type (
	witness          struct{ interpreter.InterpretableV2 }
	callWitness      struct{ interpreter.InterpretableCall }
	attributeWitness struct {
		interpreter.InterpretableAttribute
	}
	hasWitness struct {
		interpreter.InterpretableAttribute
	}
)

func (w witness) Exec(f *interpreter.ExecutionFrame) ref.Val {
	return testify(f, w.InterpretableV2.Exec(f))
}

func (w callWitness) Exec(f *interpreter.ExecutionFrame) ref.Val {
	return testify(f, w.InterpretableCall.Exec(f))
}

func (w attributeWitness) Exec(f *interpreter.ExecutionFrame) ref.Val {
	return testify(f, w.InterpretableAttribute.Exec(f))
}

// Exec makes has(a.b.c) false where a.b is absent: what is not there has nothing.
func (w hasWitness) Exec(f *interpreter.ExecutionFrame) ref.Val {
	v := w.InterpretableAttribute.Exec(f)
	if err, ok := v.(*types.Err); ok {
		if a, ok := errors.AsType[absent](err); ok && !a.protocol {
			return types.False
		}
	}
	return testify(f, v)
}

func (w witness) Eval(a interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(a, w.Exec)
}
func (w callWitness) Eval(a interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(a, w.Exec)
}
func (w attributeWitness) Eval(a interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(a, w.Exec)
}
func (w hasWitness) Eval(a interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(a, w.Exec)
}

func testify(f *interpreter.ExecutionFrame, v ref.Val) ref.Val {
	if err, ok := v.(*types.Err); ok {
		if e, ok := f.ResolveName(varEvaluation); ok {
			e.(*evaluation).met(err)
		}
	}
	return v
}

// eval returns what the expression says of what is being evaluated.
func (p *program) eval(e *evaluation) ternary {
	if p.err != nil {
		e.met(p.err)
		return unknown
	}
	e.timeBound = e.timeBound || p.timeBound
	e.perRequest = e.perRequest || p.perRequest
	var in any = e
	if !p.loops {
		in = e.shared()
	}
	v, _, err := p.cel.Eval(in)
	return e.outcome(v, err)
}

// outcome returns what the result of an expression says.
func (e *evaluation) outcome(v ref.Val, err error) ternary {
	switch {
	case err != nil:
		e.met(err)
		return unknown
	case v == types.True:
		return yes
	case v == types.False:
		return no
	}
	e.met(fmt.Errorf("the result is %v and not a boolean", v.Type().TypeName()))
	return unknown
}
