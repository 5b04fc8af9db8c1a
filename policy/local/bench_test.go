package local

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/cel"

	"cardea/api"
	"cardea/policy/policytest"
	"cardea/store/memory"
)

// expressions are those of the ten rules of the benchmarks: the first nine do
// not match.
func expressions() []string {
	var list []string
	for i := range 3 {
		list = append(list,
			fmt.Sprintf(`ctx.user.spec.email == "user-%d@example.com"`, i),
			fmt.Sprintf(`"group-%d" in ctx.user.spec.groups && ctx.request.port > 1024`, i),
			fmt.Sprintf(`ctx.session.metadata.name.startsWith("bob-%d") || ctx.request.ip == "192.0.2.%d"`, i, i))
	}
	return append(list, `ctx.user.spec.type == "HUMAN" && ctx.user.spec.attrs.level > 2`)
}

// lasting are ten expressions like those, none of which reads the request.
func lasting() []string {
	list := expressions()
	for i, e := range list {
		e = strings.ReplaceAll(e, "ctx.request.port > 1024", `ctx.service.spec.mode == "TCP"`)
		list[i] = strings.ReplaceAll(e, "ctx.request.ip", "ctx.user.metadata.name")
	}
	return list
}

// benchmarkWorld is a World whose decision takes ten rules, among as many
// policies that do not apply.
func benchmarkWorld(policies int, expressions []string) *policytest.World {
	w := policytest.NewWorld()
	for i, e := range expressions {
		name := fmt.Sprintf("rule-%d", i)
		w.More = append(w.More, policytest.Policy(name, policytest.Allow(e)))
		w.Service.Spec.Authorization.Policies = append(w.Service.Spec.Authorization.Policies, name)
	}
	for i := range policies - len(expressions) {
		w.More = append(w.More, policytest.Policy(fmt.Sprintf("other-%d", i),
			policytest.Deny(fmt.Sprintf(`ctx.user.metadata.name == "user-%d"`, i))))
	}
	return w
}

// BenchmarkFirst is a decision of a Session that has asked nothing yet, and
// BenchmarkDecide one of rules that read the request, for the second time: both
// evaluate ten rules.
func BenchmarkFirst(b *testing.B) {
	ask(b, expressions(), func(s *sessionEntry) { s.plans = plans{} })
}

func BenchmarkDecide(b *testing.B) { ask(b, expressions(), func(*sessionEntry) {}) }

// BenchmarkRepeated is a decision of rules that read neither the request nor the
// clock, for the second time.
func BenchmarkRepeated(b *testing.B) { ask(b, lasting(), func(*sessionEntry) {}) }

// ask asks the same question again and again, with different numbers of policies
// of which ten apply, and reports the median beside the mean.
func ask(b *testing.B, expressions []string, before func(*sessionEntry)) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("policies=%d", n), func(b *testing.B) {
			w := benchmarkWorld(n, expressions)
			d := running(b, w)
			r := w.Request
			r.Session, r.Evidence = w.Session.Metadata.UID, api.Evidence{}
			session, _ := d.current.Load().byUID.get(r.Session)
			const batch = 100 // hides what it costs to read the clock
			var times []time.Duration
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				for range batch {
					before(session)
					if got, err := d.Decide(b.Context(), r); err != nil || got.Effect != api.Allow {
						b.Fatal(got, err)
					}
				}
				times = append(times, time.Since(start)/batch)
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Nanoseconds()), "p50-ns/decision")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(batch*b.N), "ns/decision")
		})
	}
}

// BenchmarkAnonymous is a decision about who comes to a Service that is open to
// everyone.
func BenchmarkAnonymous(b *testing.B) {
	w := policytest.NewWorld()
	w.Anonymous()
	d := running(b, w)
	b.ReportAllocs()
	for b.Loop() {
		if got, err := d.Decide(b.Context(), w.Request); err != nil || got.Effect != api.Allow {
			b.Fatal(got, err)
		}
	}
}

// BenchmarkRoute is a decision about one of many TCPMappings.
func BenchmarkRoute(b *testing.B) {
	w := policytest.NewWorld()
	for i := range 10_000 {
		w.Mapping(fmt.Sprintf("mapping-%d", i))
	}
	d := running(b, w)
	b.ReportAllocs()
	for b.Loop() {
		if got, err := d.Decide(b.Context(), w.Request); err != nil || got.Effect != api.Allow {
			b.Fatal(got, err)
		}
	}
}

// BenchmarkRules is the part of it that BenchmarkBareCEL is to be compared with.
func BenchmarkRules(b *testing.B) {
	w := benchmarkWorld(1000, expressions())
	d := running(b, w)
	r := w.Request
	r.Session = w.Session.Metadata.UID
	j := d.open(d.current.Load(), &r)
	if !j.admit(d.identify(&r)) {
		b.Fatal("not admitted")
	}
	j.makePlan()
	j.ctx.Groups = j.plan.groups
	b.ReportAllocs()
	for b.Loop() {
		if j.try(); j.decision.Effect != api.Allow {
			b.Fatal(j.decision)
		}
	}
}

// BenchmarkDecideParallel is the same on all cores: what is shared shows.
func BenchmarkDecideParallel(b *testing.B) {
	w := benchmarkWorld(1000, expressions())
	d := running(b, w)
	r := w.Request
	r.Session, r.Evidence = w.Session.Metadata.UID, api.Evidence{}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if got, err := d.Decide(b.Context(), r); err != nil || got.Effect != api.Allow {
				b.Error(got, err)
			}
		}
	})
}

// BenchmarkBareCEL is what cel-go takes for the same ten expressions, over maps,
// without types and limits, as it is commonly used.
func BenchmarkBareCEL(b *testing.B) {
	env, err := cel.NewEnv(cel.Variable("ctx", cel.DynType), cel.CrossTypeNumericComparisons(true))
	if err != nil {
		b.Fatal(err)
	}
	var programs []cel.Program
	for _, e := range expressions() {
		a, issues := env.Compile(e)
		if issues.Err() != nil {
			b.Fatal(issues.Err())
		}
		p, err := env.Program(a, cel.EvalOptions(cel.OptOptimize))
		if err != nil {
			b.Fatal(err)
		}
		programs = append(programs, p)
	}
	w := policytest.NewWorld()
	vars := map[string]any{"ctx": map[string]any{
		"user": map[string]any{"spec": map[string]any{
			"type": "HUMAN", "email": "", "groups": w.User.Spec.Groups, "attrs": map[string]any{"level": 3.0}}},
		"session": map[string]any{"metadata": map[string]any{"name": w.Session.Metadata.Name}},
		"request": map[string]any{"ip": w.Request.Facts.IP, "port": w.Request.Facts.Port},
	}}
	b.ReportAllocs()
	for b.Loop() {
		for i, p := range programs {
			if v, _, err := p.Eval(vars); err != nil || v.Value() != (i == len(programs)-1) {
				b.Fatal(v, err)
			}
		}
	}
}

// BenchmarkNext is a login: one Session is written where there are ten thousand.
func BenchmarkNext(b *testing.B) {
	w := policytest.NewWorld()
	st := memory.New()
	defer st.Close()
	w.Session.Default()
	for i := range 10_000 {
		s := api.Clone(w.Session)
		s.Metadata.Name, s.Metadata.UID = fmt.Sprintf("alice-%06d", i), fmt.Sprintf("uid-%d", i)
		w.More = append(w.More, s)
	}
	policytest.Put(b, st, w.Objects()...)
	c := newCompiler(slog.New(slog.DiscardHandler))
	s, err := load(b.Context(), st, c)
	if err != nil {
		b.Fatal(err)
	}
	commit := commitOf(b, w.Session)
	b.ReportAllocs()
	for b.Loop() {
		s = s.next(commit, c)
	}
}

// BenchmarkPossible is the question whether a Session could reach a Service at all, of
// ten rules some of which read the request: the first time, and again.
func BenchmarkPossible(b *testing.B) {
	for _, again := range []bool{false, true} {
		b.Run(fmt.Sprintf("again=%t", again), func(b *testing.B) {
			w := benchmarkWorld(1000, expressions())
			w.Session.Spec.ExpiresAt = time.Now().Add(time.Hour)
			d := running(b, w)
			session, _ := d.current.Load().byUID.get(w.Session.Metadata.UID)
			b.ReportAllocs()
			for b.Loop() {
				if !again {
					session.plans = plans{}
				}
				if !d.Possible(b.Context(), w.Session.Metadata.UID, "nats.default") {
					b.Fatal("impossible")
				}
			}
		})
	}
}
