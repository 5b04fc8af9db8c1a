package local

import (
	"fmt"
	"log/slog"
	"runtime"
	"testing"

	"cardea/api"
	"cardea/policy/policytest"
	"cardea/store"
	"cardea/store/memory"
)

// commitOf returns a commit that writes Objects.
func commitOf(t testing.TB, objects ...api.Object) store.Commit {
	t.Helper()
	c := store.Commit{Revision: api.Revision{Epoch: 1, Number: 1000}}
	for _, o := range objects {
		o.Default()
		rec, err := store.Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		rec.Revision = c.Revision
		c.Changes = append(c.Changes, store.Change{Record: rec})
	}
	return c
}

// A commit compiles only what it changes, and each expression once.
func TestCommitCompilesWhatItChanges(t *testing.T) {
	w := policytest.NewWorld()
	w.Session.Spec.Authorization = policytest.Inline(policytest.Allow(`ctx.user.spec.type == "HUMAN"`))
	one := policytest.Policy("one", policytest.Allow(`ctx.request.port > 1`))
	two := policytest.Policy("two", policytest.Allow(`ctx.request.port > 2`), policytest.Allow(`ctx.request.port > 1`))
	w.More = append(w.More, one, two)
	st := memory.New()
	defer st.Close()
	policytest.Put(t, st, w.Objects()...)
	c := newCompiler(slog.New(slog.DiscardHandler))
	before, err := load(t.Context(), st, c)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(c.programs); got != 3 {
		t.Errorf("%d programs for 3 expressions", got)
	}
	policyOf := func(s *snapshot, name string) *policyEntry {
		p, _ := s.policies.get(name)
		return p
	}

	login := before.next(commitOf(t, w.Session), c)
	if login.rules != before.rules {
		t.Error("a Session changed the layer of rules")
	}

	changed := api.Clone(one)
	changed.Spec.Rules[0].Condition.Match = `ctx.request.port > 3`
	after := before.next(commitOf(t, changed), c)
	if policyOf(after, "one") == policyOf(before, "one") || policyOf(after, "two") != policyOf(before, "two") {
		t.Error("a Policy was compiled again that did not change, or the one that did was not")
	}
	if got := len(c.programs); got != 4 {
		t.Errorf("%d programs for 4 expressions", got)
	}
	if policyOf(before, "one").rules.rules[0].condition.program != policyOf(before, "two").rules.rules[1].condition.program {
		t.Error("one expression has two programs")
	}
	if after.subjects != before.subjects {
		t.Error("a Policy changed the layer of subjects")
	}
}

// Programs that no policy uses any more are forgotten.
func TestProgramsAreForgotten(t *testing.T) {
	c := newCompiler(slog.New(slog.DiscardHandler))
	kept := c.program(`ctx.request.port == -1`)
	for i := range 500 {
		c.program(fmt.Sprintf(`ctx.request.port == %d`, i))
		if i%50 == 0 {
			runtime.GC()
		}
	}
	if got := len(c.programs); got > 300 {
		t.Errorf("%d programs are kept, and one is in use", got)
	}
	if c.program(`ctx.request.port == -1`) != kept {
		t.Error("one that is in use was compiled again")
	}
}

// What cannot be read denies: its rules are not known.
func TestUnreadableObjectDenies(t *testing.T) {
	t.Run(api.KindTCPMapping, func(t *testing.T) {
		w := policytest.NewWorld()
		m := w.Mapping("db")
		d := running(t, w)
		commit := commitOf(t, m)
		commit.Changes[0].JSON = []byte(`{"spec": 7}`)
		d.current.Store(d.current.Load().next(commit, d.compiler()))
		got, err := d.Decide(t.Context(), w.Request)
		if err != nil || got.Allowed() || got.Reason != api.ReasonError || got.Subject.Service.Name != "db" || got.Subject.Service.Namespace != "default" {
			t.Errorf("%s %s about %+v, %v", got.Effect, got.Reason, got.Subject.Service, err)
		}
	})
	for _, kind := range []string{api.KindService, api.KindNamespace, api.KindUser, api.KindGroup, api.KindDevice, api.KindSession, api.KindClusterConfig, api.KindPolicy} {
		t.Run(kind, func(t *testing.T) {
			w := policytest.NewWorld()
			w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""))
			w.Group.Spec.Authorization = policytest.Named("one")
			w.AddDevice()
			w.More = append(w.More, policytest.Policy("one", policytest.Allow("")))
			st := memory.New()
			defer st.Close()
			policytest.Put(t, st, w.Objects()...)
			c := newCompiler(slog.New(slog.DiscardHandler))
			s, err := load(t.Context(), st, c)
			if err != nil {
				t.Fatal(err)
			}
			d := &Decider{Identity: policytest.Verifier{}, Log: c.log}
			allowed := func() bool {
				got, err := d.Decide(t.Context(), w.Request)
				if err != nil {
					t.Fatal(err)
				}
				return got.Allowed()
			}
			if d.current.Store(s); !allowed() {
				t.Fatal("not allowed to begin with")
			}
			for _, o := range w.Objects() {
				if o.Header().Kind != kind {
					continue
				}
				commit := commitOf(t, o)
				commit.Changes[0].JSON = []byte(`{"spec": 7}`)
				d.current.Store(s.next(commit, c))
				if allowed() {
					t.Error("allowed, although it cannot be read")
				}
			}
		})
	}
}
