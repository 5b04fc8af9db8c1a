package local

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"cardea/api"
)

// Check compiles every condition in o and reports what is wrong with it, with
// the pointer of the field and the column in the expression: syntax, unknown
// names, types, a result that is no boolean, values that an enum does not have.
// It warns of what may be absent and is read without has(), and of names of the
// Service that lack its Namespace.
//
// Whoever checks more than one Object calls NewChecker once.
func Check(p *api.Problems, o api.Object) { NewChecker()(p, o) }

// NewChecker returns a function that does what Check does and makes only once
// what conditions are compiled in. It may be called by several goroutines at a
// time.
func NewChecker() func(*api.Problems, api.Object) {
	env := sync.OnceValue(newEnvironment) // most Objects have no condition
	return func(p *api.Problems, o api.Object) { checker{p, env}.object(o) }
}

// A checker reports to problems.
type checker struct {
	problems *api.Problems
	env      func() environment
}

func (c checker) object(o api.Object) {
	if p, ok := o.(*api.Policy); ok {
		c.policy(&p.Spec, "/spec", absentFor(false))
	}
	s, isService := o.(*api.Service)
	if a := api.AuthorizationOf(o); a != nil {
		absent := absentFor(isService && a.EnableAnonymous)
		for i := range a.InlinePolicies {
			c.policy(&a.InlinePolicies[i].Spec, fmt.Sprintf("/spec/authorization/inlinePolicies/%d/spec", i), absent)
		}
	}
	if isService && s.Spec.DynamicConfig != nil {
		in := setting{absent: absentFor(s.Spec.IsAnonymous), then: "the request then is denied"}
		for i := range s.Spec.DynamicConfig.Rules {
			c.condition(&s.Spec.DynamicConfig.Rules[i].Condition, in, fmt.Sprintf("/spec/dynamicConfig/rules/%d/condition", i))
		}
	}
}

// A setting is where a condition stands.
type setting struct {
	attrs  api.Attrs // what it sees as attrs
	absent []string  // the fields of ctx that may not be there
	then   string    // what becomes of a condition that reads what is not there
}

// absentFor returns the fields of ctx that may be absent, of callers who may be
// anonymous or may not. All others are there in every request that matters.
func absentFor(anonymous bool) []string {
	if anonymous {
		return []string{"device", "user", "session", "groups"}
	}
	return []string{"device"}
}

func (c checker) policy(s *api.PolicySpec, at string, absent []string) {
	in := setting{s.Attrs, absent, "an ALLOW then does not match, and a DENY does"}
	for i := range s.Rules {
		c.condition(&s.Rules[i].Condition, in, fmt.Sprintf("%s/rules/%d/condition", at, i))
	}
	in.then = "no ALLOW of the policy then counts, and every DENY does"
	for i := range s.EnforcementRules {
		c.condition(&s.EnforcementRules[i].Condition, in, fmt.Sprintf("%s/enforcementRules/%d/condition", at, i))
	}
}

// condition checks all expressions of a condition, and then warns: what one of
// them guards is guarded in the others too.
func (c checker) condition(cond *api.Condition, in setting, at string) {
	type expression struct {
		at, text string
		*ast.AST
	}
	var good []expression
	var walk func(*api.Condition, string)
	check := func(text, at string) {
		if text == "" {
			return
		}
		_, checked, faults := c.env().compile(text)
		for _, f := range faults {
			f.report(c.problems, at)
		}
		if len(faults) == 0 {
			good = append(good, expression{at, text, checked})
		}
	}
	walk = func(cond *api.Condition, at string) {
		check(cond.Match, at+"/match")
		check(cond.Not, at+"/not")
		for name, l := range map[string]*api.Conditions{"all": cond.All, "any": cond.Any, "none": cond.None} {
			if l == nil {
				continue
			}
			for i := range l.Of {
				walk(&l.Of[i], fmt.Sprintf("%s/%s/of/%d", at, name, i))
			}
		}
	}
	walk(cond, at)
	var guards []string
	for k := range in.attrs {
		guards = append(guards, varAttrs+"."+k)
	}
	for _, e := range good {
		guards = append(guards, guardsOf(e.AST)...)
	}
	for _, e := range good {
		for _, f := range append(shortNames(e.AST), c.env().unguarded(e.AST, in, guards)...) {
			f.warning = true
			f.report(c.problems, e.at)
		}
	}
}

// A fault is something wrong in an expression.
type fault struct {
	line, column int // from 1
	rule         string
	found        string
	allowed      []string
	hint         string
	warning      bool
}

func (f fault) place() string {
	if f.line > 1 {
		return fmt.Sprintf("line %d, column %d: ", f.line, f.column)
	}
	return fmt.Sprintf("column %d: ", f.column)
}

func (f fault) report(p *api.Problems, at string) {
	q := p.Add(at, f.place()+f.rule, f.found)
	q.Allowed, q.Hint, q.Warning = f.allowed, f.hint, f.warning
}

func (f fault) String() string {
	return api.Problem{Rule: f.place() + f.rule, Found: f.found, Allowed: f.allowed, Hint: f.hint}.String()
}

// didYouMean sets the hint to the nearest of the names, if one is near.
func (f fault) didYouMean(prefix, name string, names []string) fault {
	if n := api.Nearest(name, names); n != "" {
		f.hint = "did you mean " + prefix + n + "?"
	}
	return f
}

// check parses and checks an expression.
func (e environment) check(text string) (*ast.AST, []fault) {
	parsed, issues := e.Parse(text)
	if issues.Err() != nil {
		first := issues.Errors()[0] // the others mostly follow from it
		words, _, _ := strings.Cut(strings.TrimPrefix(first.Message, "Syntax error: "), " expecting ")
		f := at(first.Location, "syntax error: "+strings.ReplaceAll(words, "'<EOF>'", "the end"))
		f.hint = syntaxHint(words)
		return nil, []fault{f}
	}
	checked, issues := e.Check(parsed)
	if issues.Err() != nil {
		var faults []fault
		for _, err := range issues.Errors() {
			faults = append(faults, e.explain(parsed.NativeRep(), err))
		}
		return nil, faults
	}
	a := checked.NativeRep()
	faults := append(functionFaults(a), e.enumFaults(a)...)
	if t := checked.OutputType(); !t.IsExactType(types.BoolType) && !t.IsExactType(types.DynType) {
		f := fault{line: 1, column: 1, rule: "the result must be a boolean"}
		f.found, f.hint = cel.FormatCELType(t), "compare it with something"
		if _, ok := literalString(a.Expr()); ok {
			f.hint = "all of it is one text: leave out the quotes around it"
		}
		faults = append(faults, f)
	}
	return a, faults
}

// syntaxHint returns what was probably meant where the parser says those words.
func syntaxHint(words string) string {
	if at, ok := quoted(words, "mismatched input '"); ok {
		switch at {
		case "and":
			return "did you mean &&?"
		case "or":
			return "did you mean ||?"
		}
	}
	_, at, _ := strings.Cut(words, "token recognition error at: '")
	switch {
	case at == "":
	case at[0] == '=':
		return "did you mean ==?"
	case at[0] == '&':
		return "did you mean &&?"
	case at[0] == '|':
		return "did you mean ||?"
	case (at[0] == '"' || at[0] == '\'') && strings.Contains(at, `\`):
		return `write a backslash twice, or the text as r"…"; in YAML, ` + quoting
	case at[0] == '"' || at[0] == '\'':
		return "a text begins here and does not end: YAML may have taken a quote, or all after #, for itself; " + quoting
	case strings.HasPrefix(at, "“") || strings.HasPrefix(at, "”") || strings.HasPrefix(at, "‘") || strings.HasPrefix(at, "’"):
		return "write straight quotes"
	}
	return ""
}

// quoting says how an expression is written so that YAML leaves it as it is.
const quoting = "write the expression on a line of its own below match: |"

func at(l common.Location, rule string) fault {
	return fault{line: l.Line(), column: l.Column() + 1, rule: rule}
}

// explain turns an error of CEL's type checker into a fault.
func (e environment) explain(a *ast.AST, err *cel.Error) fault {
	f := at(err.Location, err.Message)
	if name, ok := quoted(err.Message, "undefined field '"); ok {
		return e.undefinedField(a, err.ExprID, name, f)
	}
	if name, ok := quoted(err.Message, "undeclared reference to '"); ok {
		f.rule, f.found = "there is no such variable or function", name
		if name = strings.TrimPrefix(name, "."); e.universe.byName["cardea.Context"].fields[name] != nil {
			f.hint = "did you mean ctx." + name + "?"
			return f
		}
		f = f.didYouMean("", name, append(allowedFunctions(), varContext, varAttrs, fnNow, "has"))
		if f.hint == "" && isVariable(a, err.ExprID) {
			f.hint = fmt.Sprintf("if a text is meant, write %q; in YAML, %s", name, quoting)
		}
		return f
	}
	if op, ok := quoted(err.Message, "found no matching overload for '"); ok {
		_, args, _ := strings.Cut(err.Message, "applied to '")
		args = strings.ReplaceAll(strings.TrimSuffix(args, "'"), "cardea.", "")
		if display, ok := operators.FindReverse(op); ok && display != "" {
			op = display
		}
		f.rule, f.found = op+" does not take these types", args
		return f
	}
	f.rule = strings.ReplaceAll(f.rule, "cardea.", "")
	return f
}

// isVariable reports whether the part of that id is a variable.
func isVariable(a *ast.AST, id int64) (is bool) {
	each(a, func(x ast.Expr) { is = is || x.ID() == id && x.Kind() == ast.IdentKind })
	return is
}

// quoted returns what stands between prefix and the next apostrophe.
func quoted(s, prefix string) (string, bool) {
	_, s, ok := strings.Cut(s, prefix)
	s, _, end := strings.Cut(s, "'")
	return s, ok && end
}

func (e environment) undefinedField(a *ast.AST, id int64, name string, f fault) fault {
	f.rule, f.found = "there is no such field", name
	f.column++ // the error is at the dot
	e.universe.walk(a.Expr(), e.universe.root(), func(x ast.Expr, s scope) {
		if x.ID() != id || x.Kind() != ast.SelectKind {
			return
		}
		operand := x.AsSelect().Operand()
		if path := chain(operand); path != "" {
			f.rule = path + " has no such field"
		}
		if t := e.universe.structOf(e.universe.typeOf(operand, s)); t != nil {
			if slices.Contains(t.notYet, name) {
				f.rule = "is not yet available"
				return
			}
			if f = f.didYouMean("", name, t.names()); f.hint == "" {
				f.allowed = t.inOrder()
			}
		}
	})
	return f
}

// inOrder returns the names of the fields as they stand in the struct.
func (s *structType) inOrder() []string {
	return slices.SortedFunc(maps.Keys(s.fields), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.fields[a].offset, s.fields[b].offset), strings.Compare(a, b))
	})
}

// A scope holds the types of the variables at a place of an expression that
// could not be checked.
type scope map[string]*types.Type

func (u *universe) root() scope {
	return scope{varContext: u.byName["cardea.Context"].Type}
}

func (u *universe) structOf(t *types.Type) *structType {
	if t == nil {
		return nil
	}
	return u.byName[t.TypeName()]
}

// typeOf returns the type of an expression as far as it is made of fields and
// elements, and nil otherwise.
func (u *universe) typeOf(e ast.Expr, s scope) *types.Type {
	switch e.Kind() {
	case ast.IdentKind:
		return s[e.AsIdent()]
	case ast.SelectKind:
		if t := u.structOf(u.typeOf(e.AsSelect().Operand(), s)); t != nil {
			if f := t.fields[e.AsSelect().FieldName()]; f != nil {
				return f.Type
			}
		}
	case ast.CallKind:
		if c := e.AsCall(); c.FunctionName() == operators.Index {
			return element(u.typeOf(c.Args()[0], s))
		}
	}
	return nil
}

func element(t *types.Type) *types.Type {
	if t == nil || t.Kind() != types.ListKind {
		return nil
	}
	return t.Parameters()[0]
}

// walk calls f for e and everything in it, with the variables there.
func (u *universe) walk(e ast.Expr, s scope, f func(ast.Expr, scope)) {
	f(e, s)
	switch e.Kind() {
	case ast.SelectKind:
		u.walk(e.AsSelect().Operand(), s, f)
	case ast.CallKind:
		if c := e.AsCall(); c.IsMemberFunction() {
			u.walk(c.Target(), s, f)
		}
		for _, a := range e.AsCall().Args() {
			u.walk(a, s, f)
		}
	case ast.ListKind:
		for _, x := range e.AsList().Elements() {
			u.walk(x, s, f)
		}
	case ast.MapKind:
		for _, x := range e.AsMap().Entries() {
			u.walk(x.AsMapEntry().Key(), s, f)
			u.walk(x.AsMapEntry().Value(), s, f)
		}
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		u.walk(c.IterRange(), s, f)
		inner := scope{c.IterVar(): element(u.typeOf(c.IterRange(), s))}
		for k, v := range s {
			if _, hidden := inner[k]; !hidden {
				inner[k] = v
			}
		}
		u.walk(c.LoopCondition(), inner, f)
		u.walk(c.LoopStep(), inner, f)
		u.walk(c.Result(), inner, f)
	}
}

// functionFaults reports what conditions may not do although CEL can: call some
// functions, make objects.
func functionFaults(a *ast.AST) (faults []fault) {
	allowed := allowedFunctions()
	each(a, func(x ast.Expr) {
		if x.Kind() == ast.StructKind {
			faults = append(faults, at(a.SourceInfo().GetStartLocation(x.ID()), "a condition cannot make an object"))
		}
		if x.Kind() != ast.CallKind {
			return
		}
		name := x.AsCall().FunctionName()
		if _, isOperator := operators.FindReverse(name); isOperator || strings.HasPrefix(name, "@") || slices.Contains(allowed, name) {
			return
		}
		f := at(a.SourceInfo().GetStartLocation(x.ID()), "is not available in conditions: its result may be of any size")
		f.found = name
		faults = append(faults, f)
	})
	return faults
}

// enumFaults reports comparisons of an enum with what it never is.
func (e environment) enumFaults(a *ast.AST) (faults []fault) {
	comparisons(a, func(x, literal ast.Expr, value string) {
		field := e.fieldOf(a, x)
		if field == nil || field.enum == nil || slices.Contains(field.enum.values, value) {
			return
		}
		f := at(a.SourceInfo().GetStartLocation(literal.ID()), chain(x)+" never has this value")
		f.found, f.allowed = value, field.enum.values
		if slices.Contains(field.enum.later, value) {
			f.hint = "it is not yet available"
		} else {
			f = f.didYouMean("", value, field.enum.values)
		}
		faults = append(faults, f)
	})
	return faults
}

// shortNames reports comparisons of the Service's name with one that leaves out
// its Namespace: people may write it so everywhere else.
func shortNames(a *ast.AST) (faults []fault) {
	comparisons(a, func(x, literal ast.Expr, value string) {
		full := api.ServiceName(value)
		if chain(x) != varContext+".service.metadata.name" || full == value {
			return
		}
		f := at(a.SourceInfo().GetStartLocation(literal.ID()), chain(x)+" is always SERVICE.NAMESPACE and never equals this")
		f.found, f.hint = value, fmt.Sprintf("write %q", full)
		faults = append(faults, f)
	})
	return faults
}

// comparisons calls f for each comparison (==, !=, in) of something with a
// literal string, and for each literal of a list.
func comparisons(a *ast.AST, f func(x, literal ast.Expr, value string)) {
	compare := func(x, literal ast.Expr) {
		if value, ok := literalString(literal); ok {
			f(x, literal, value)
		}
	}
	each(a, func(x ast.Expr) {
		if x.Kind() != ast.CallKind {
			return
		}
		args := x.AsCall().Args()
		switch x.AsCall().FunctionName() {
		case operators.Equals, operators.NotEquals:
			compare(args[0], args[1])
			compare(args[1], args[0])
		case operators.In:
			if args[1].Kind() == ast.ListKind {
				for _, l := range args[1].AsList().Elements() {
					compare(args[0], l)
				}
			}
		}
	})
}

// fieldOf returns the field that a checked expression selects from a struct, and
// nil if it does not.
func (e environment) fieldOf(a *ast.AST, x ast.Expr) *field {
	if x.Kind() != ast.SelectKind || x.AsSelect().IsTestOnly() {
		return nil
	}
	if s := e.universe.structOf(a.GetType(x.AsSelect().Operand().ID())); s != nil {
		return s.fields[x.AsSelect().FieldName()]
	}
	return nil
}

func literalString(x ast.Expr) (string, bool) {
	if x.Kind() != ast.LiteralKind {
		return "", false
	}
	s, ok := x.AsLiteral().(types.String)
	return string(s), ok
}

// guardsOf returns the paths whose presence an expression tests.
func guardsOf(a *ast.AST) (paths []string) {
	each(a, func(x ast.Expr) {
		switch x.Kind() {
		case ast.SelectKind:
			if s := x.AsSelect(); s.IsTestOnly() {
				paths = append(paths, chain(s.Operand())+"."+s.FieldName())
			}
		case ast.CallKind:
			if c := x.AsCall(); c.FunctionName() == operators.In {
				if key, ok := literalString(c.Args()[0]); ok {
					paths = append(paths, chain(c.Args()[1])+"."+key)
				}
			}
		}
	})
	return paths
}

// unguarded reports what an expression reads that may be absent and that no
// guard covers. What belongs to a protocol needs none: without it, the rule does
// not apply.
func (e environment) unguarded(a *ast.AST, in setting, guards []string) (faults []fault) {
	var seen []string
	need := func(path, guard string, x ast.Expr) {
		covers := func(g string) bool { return g == path || strings.HasPrefix(g, path+".") }
		if path == "" || slices.ContainsFunc(guards, covers) || slices.ContainsFunc(seen, covers) {
			return
		}
		seen = append(seen, path)
		f := at(a.SourceInfo().GetStartLocation(x.ID()), "may be absent: "+in.then)
		f.found, f.hint = path, "guard it with "+guard
		faults = append(faults, f)
	}
	each(a, func(x ast.Expr) {
		switch x.Kind() {
		case ast.SelectKind:
			operand := x.AsSelect().Operand()
			if x.AsSelect().IsTestOnly() {
				return
			}
			if f := e.fieldOf(a, x); f != nil && f.in.path == varContext && slices.Contains(in.absent, f.name) {
				need(chain(x), "has("+chain(x)+")", x)
			}
			if f := e.fieldOf(a, operand); f != nil && f.optional && !f.protocol && f.in.path != varContext {
				need(chain(operand), "has("+chain(operand)+")", operand)
			}
			if a.GetType(operand.ID()).Kind() == types.MapKind {
				need(chain(x), "has("+chain(x)+")", x)
			}
		case ast.CallKind:
			c := x.AsCall()
			if c.FunctionName() != operators.Index || a.GetType(c.Args()[0].ID()).Kind() != types.MapKind {
				return
			}
			if key, ok := literalString(c.Args()[1]); ok && chain(c.Args()[0]) != "" {
				m := chain(c.Args()[0])
				need(m+"."+key, fmt.Sprintf("%q in %s", key, m), x)
			}
		}
	})
	return faults
}

// chain returns a.b.c for an expression that is just that, and "" otherwise.
func chain(x ast.Expr) string {
	switch x.Kind() {
	case ast.IdentKind:
		return x.AsIdent()
	case ast.SelectKind:
		if p := chain(x.AsSelect().Operand()); p != "" {
			return p + "." + x.AsSelect().FieldName()
		}
	}
	return ""
}

// each calls f for every part of an expression, in the order of the text as far
// as possible.
func each(a *ast.AST, f func(ast.Expr)) {
	ast.PreOrderVisit(a.Expr(), ast.NewExprVisitor(f))
}
