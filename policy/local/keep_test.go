package local

import (
	"testing"

	"cardea/api"
	"cardea/identity"
	"cardea/policy/policytest"
)

// Which answers are kept: those that no expression made depend on the request or
// the clock.
func TestWhatIsKept(t *testing.T) {
	for _, c := range []struct {
		match string
		kept  bool
	}{
		{`true`, true},
		{`"friends" in ctx.user.spec.groups`, true},
		{`has(ctx.device) || ctx.service.metadata.name == "nats.default"`, true},
		{`ctx.groups.exists(g, g.metadata.name == "friends")`, true},
		{`[1].exists(ctx, ctx == 1)`, false}, // not told apart from ctx itself
		{`ctx.request.port > 1`, false},
		{`.ctx.request.port > 1`, false},
		{`has(ctx.request)`, false},
		{`has(ctx.request.tls) || true`, false},
		{`!has(ctx.request.api)`, false},
		{`dyn(ctx).request.port > 1`, false},
		{`[ctx].exists(c, c.request.port > 1)`, false},
		{`(true ? ctx : ctx).request.port > 1`, false},
		{`ctx.session.spec.expiresAt > now()`, false},
	} {
		for _, where := range []string{"rule", "enforcement", "dynamicConfig"} {
			w := policytest.NewWorld()
			w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""))
			condition := api.Condition{Match: c.match}
			switch where {
			case "rule":
				w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(c.match))
			case "enforcement":
				w.Service.Spec.Authorization.InlinePolicies[0].Spec.EnforcementRules = []api.EnforcementRule{{Effect: api.Ignore, Condition: condition}}
			case "dynamicConfig":
				w.Service.Spec.DynamicConfig = &api.DynamicConfig{Rules: []api.ConfigRule{{Condition: condition, ConfigName: "default"}}}
			}
			d := running(t, w)
			if _, err := d.Decide(t.Context(), w.Request); err != nil {
				t.Fatal(err)
			}
			who := &caller{Claim: identity.Claim{SessionUID: w.Session.Metadata.UID}}
			if kept := d.current.Load().kept(who, &w.Request) != nil; kept != c.kept {
				t.Errorf("%s in a %s: kept %t, want %t", c.match, where, kept, c.kept)
			}
		}
	}
}

// What is kept of a decision costs one allocation: the new id.
func TestKeptAnswerAllocates(t *testing.T) {
	w := policytest.NewWorld()
	w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(`ctx.user.spec.type == "HUMAN"`))
	d := running(t, w)
	w.Request.Session = w.Session.Metadata.UID
	n := testing.AllocsPerRun(100, func() {
		if got, err := d.Decide(t.Context(), w.Request); err != nil || !got.Allowed() {
			t.Fatal(got, err)
		}
	})
	if n > 1 {
		t.Errorf("%v allocations", n)
	}
}

// So does that about a TCPMapping.
func TestKeptAnswerAboutRouteAllocates(t *testing.T) {
	w := policytest.NewWorld()
	w.Mapping("db")
	w.Cluster.Spec.Authorization = policytest.Inline(policytest.Deny(`ctx.service.metadata.name == "other.default"`))
	d := running(t, w)
	n := testing.AllocsPerRun(100, func() {
		if got, err := d.Decide(t.Context(), w.Request); err != nil || !got.Allowed() {
			t.Fatal(got, err)
		}
	})
	if n > 1 {
		t.Errorf("%v allocations", n)
	}
}

// The Services of a Session share places, and each gets its own answer.
func TestPlansSharePlaces(t *testing.T) {
	w := policytest.NewWorld()
	w.Service.Default()
	names := []string{"aa.default", "bb.default", "cc.default", "dd.default", "ee.default", "ff.default"}
	for _, name := range names {
		s := api.Clone(w.Service)
		s.Metadata.Name, s.Metadata.UID = name, name
		s.Spec.Authorization = policytest.Inline(policytest.Allow(`ctx.service.metadata.name == "` + name + `"`))
		w.More = append(w.More, s)
	}
	d := running(t, w)
	for range 3 {
		for _, name := range names {
			w.Request.Service = name
			if got, err := d.Decide(t.Context(), w.Request); err != nil || !got.Allowed() || got.Subject.Service.Name != name {
				t.Errorf("%s: %s for %+v, %v", name, got.Effect, got.Subject.Service, err)
			}
		}
	}
}

// Each config is made once for a version of its Service, with what it takes from
// its parents.
func TestConfigIsMadeOnce(t *testing.T) {
	w := policytest.NewWorld()
	w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""))
	w.Service.Spec.Config.TLS = &api.UpstreamTLS{ServerName: "db.example.com"}
	w.Service.Spec.DynamicConfig = &api.DynamicConfig{
		Configs: []api.ServiceConfig{{Name: "child", Parent: "default", Upstream: api.Upstream{URL: "tcp://127.0.0.1:5"}}},
		Rules: []api.ConfigRule{
			{Condition: api.Condition{Match: `ctx.request.port == 1`}, ConfigName: "child"},
			{Condition: api.Condition{Match: `ctx.request.port == 2`}, ConfigName: "child"},
		},
	}
	d := running(t, w)
	config := func(port int) *api.ServiceConfig {
		w.Request.Facts = &api.Facts{Port: port}
		got, err := d.Decide(t.Context(), w.Request)
		if err != nil || got.Config == nil {
			t.Fatal(got, err)
		}
		return got.Config
	}
	c := config(1)
	if c.Name != "child" || c.TLS == nil || c.TLS.ServerName != "db.example.com" || c.Upstream.URL != "tcp://127.0.0.1:5" {
		t.Errorf("%+v", c)
	}
	if config(2) != c || config(1) != c || config(3) != config(4) || config(3) == c {
		t.Error("a config was made more than once")
	}
	w.User.Metadata.Description = "changed"
	if err := d.Await(t.Context(), policytest.Put(t, d.Store, w.User)); err != nil {
		t.Fatal(err)
	}
	if config(1) != c {
		t.Error("a config was made again, and its Service had not changed")
	}
}
