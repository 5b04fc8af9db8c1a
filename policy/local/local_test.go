package local

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/identity"
	"cardea/policy/policytest"
	"cardea/store"
	"cardea/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	policytest.Run(t, func() store.Store { return memory.New() },
		func(t testing.TB, s store.Store, v identity.Verifier) policytest.Decider { return open(t, s, v) })
}

// open returns a Decider over a store, running until the test ends.
func open(t testing.TB, s store.Store, v identity.Verifier) *Decider {
	t.Helper()
	d := &Decider{Store: s, Identity: v, Log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	if err := d.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

// running returns a Decider over a World, running until the test ends.
func running(t testing.TB, w *policytest.World) *Decider {
	t.Helper()
	st := memory.New()
	t.Cleanup(func() { st.Close() })
	policytest.Put(t, st, w.Objects()...)
	return open(t, st, policytest.Verifier{})
}

// Without a snapshot there are no answers: before Run, and after it.
func TestNoAnswerWithoutRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policytest.NewWorld()
		w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""))
		st := memory.New()
		defer st.Close()
		policytest.Put(t, st, w.Objects()...)
		d := &Decider{Store: st, Identity: policytest.Verifier{}, Log: slog.New(slog.DiscardHandler)}
		ask := func(when string) {
			if got, err := d.Decide(t.Context(), w.Request); err == nil || got.Allowed() {
				t.Errorf("%s: %s, %v", when, got.Effect, err)
			}
			if _, err := d.Explain(t.Context(), w.Request, ""); err == nil {
				t.Errorf("%s: an explanation", when)
			}
		}
		ask("before Run")
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Ready(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ready before Run: %v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- d.Run(ctx) }()
		if err := d.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		var last error
		followed := make(chan struct{})
		go func() {
			defer close(followed)
			for _, err := range d.Changes(t.Context(), api.Revision{Epoch: 1, Number: 1}) {
				last = err
			}
		}()
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		ask("after Run")
		if <-followed; !errors.Is(last, errStopped) {
			t.Errorf("a follower ended with %v", last)
		}
		if err := d.Ready(t.Context()); !errors.Is(err, errStopped) {
			t.Errorf("Ready after Run: %v", err)
		}
	})
}

// A forgetful is a store whose watch ends when it is told so: something is
// written, and the history is gone.
type forgetful struct {
	store.Store
	forget chan func()
}

func (f *forgetful) Watch(ctx context.Context, from api.Revision) iter.Seq2[store.Commit, error] {
	return func(yield func(store.Commit, error) bool) {
		watching, cancel := context.WithCancel(ctx)
		defer cancel()
		var write func()
		var wait sync.WaitGroup
		wait.Go(func() {
			select {
			case write = <-f.forget:
				cancel()
			case <-watching.Done():
			}
		})
		for c, err := range f.Store.Watch(watching, from) {
			if !yield(c, err) {
				return
			}
		}
		if wait.Wait(); write != nil {
			write()
			yield(store.Commit{}, store.ErrCompacted)
		}
	}
}

// When the store's history is gone everything is loaded again, and who followed
// asks everything again.
func TestCompactedStoreIsLoadedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policytest.NewWorld()
		w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""))
		st := &forgetful{memory.New(), make(chan func())}
		t.Cleanup(func() { st.Close() }) // after the Decider
		from := policytest.Put(t, st, w.Objects()...)
		d := open(t, st, policytest.Verifier{})
		next, stop := iter.Pull2(d.Changes(t.Context(), from))
		defer stop()
		w.User.Spec.IsDisabled = true
		rev := policytest.Put(t, st, w.User)
		if c, _, _ := next(); c.Revision != rev || c.All {
			t.Fatalf("%+v", c)
		}
		st.forget <- func() {
			w.User.Spec.IsDisabled = false
			w.Session.Spec.State = api.SessionRejected
			rev = policytest.Put(t, st, w.User, w.Session)
		}
		if c, err, _ := next(); err != nil || !c.All || c.Revision != rev {
			t.Errorf("All=%t at %v, %v; want all at %v", c.All, c.Revision, err, rev)
		}
		if got, err := d.Decide(t.Context(), w.Request); err != nil || got.Reason != api.ReasonSessionNotActive {
			t.Errorf("%s, %v", got.Reason, err)
		}
	})
}

// What is deleted while the history is gone has connections all the same.
func TestDeletedWhileNobodyLooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policytest.NewWorld()
		m := w.Mapping("db")
		st := &forgetful{memory.New(), make(chan func())}
		t.Cleanup(func() { st.Close() }) // after the Decider
		from := policytest.Put(t, st, w.Objects()...)
		d := open(t, st, policytest.Verifier{})
		w.Request.Now = time.Time{} // the clock of the bubble
		deleted := time.Now().Add(time.Minute)
		for _, o := range []api.Object{m, w.Group} { // the second time it is deleted already
			next, stop := iter.Pull2(d.Changes(t.Context(), from))
			st.forget <- func() {
				rev, err := st.Update(t.Context(), "test", func(tx store.Tx) error { return tx.Delete(o.Header().Key()) })
				if err != nil {
					t.Error(err)
				}
				from = rev
				time.Sleep(time.Minute)
			}
			for c, err, ok := next(); !c.All; c, err, ok = next() {
				if err != nil || !ok {
					t.Fatal(err)
				}
			}
			stop()
			got, err := d.Decide(t.Context(), w.Request)
			if err != nil || !got.Allowed() || !got.Until.Equal(deleted.Add(10*time.Minute)) {
				t.Errorf("%s %s until %v, %v", got.Effect, got.Reason, got.Until, err)
			}
		}
		policytest.Put(t, st, m)
		synctest.Wait()
		if got, err := d.Decide(t.Context(), w.Request); err != nil || !got.Allowed() || !got.Until.IsZero() {
			t.Errorf("made again: %s until %v, %v", got.Reason, got.Until, err)
		}
	})
}

// Who follows slowly is told to ask everything again, once, and costs nothing.
func TestSlowFollower(t *testing.T) {
	w := policytest.NewWorld()
	st := memory.New()
	t.Cleanup(func() { st.Close() })
	from := policytest.Put(t, st, w.Objects()...)
	d := open(t, st, policytest.Verifier{})
	next, stop := iter.Pull2(d.Changes(t.Context(), from))
	defer stop()
	one := func() api.Change {
		for {
			c, err, ok := next()
			if err != nil || !ok {
				t.Fatal(err)
			}
			if c.All || len(c.Keys) > 0 {
				return c
			}
		}
	}
	var rev api.Revision
	for i := range 5 {
		var many []api.Object
		for k := range historySize / 4 {
			many = append(many, &api.Group{Head: api.Head{Metadata: api.Metadata{Name: fmt.Sprintf("group-%d-%d", i, k), UID: "x"}}})
		}
		rev = policytest.Put(t, st, many...)
	}
	if err := d.Await(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if d.keys > historySize {
		t.Errorf("%d keys are remembered", d.keys)
	}
	if c := one(); !c.All || c.Revision != rev {
		t.Errorf("a slow follower got All=%t at %v, want all at %v", c.All, c.Revision, rev)
	}
	w.Group.Metadata.Description = "changed"
	rev = policytest.Put(t, st, w.Group)
	if c := one(); c.All || c.Revision != rev {
		t.Errorf("after that All=%t at %v, want the change of %v", c.All, c.Revision, rev)
	}
}

// A decision that reads the clock says so, and the clock is that of the request.
func TestNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := policytest.NewWorld()
		w.Service.Spec.Authorization = policytest.Inline(
			policytest.Allow(`now() < timestamp("2026-03-02T10:30:00Z") && now() == now()`))
		w.Session.Spec.ExpiresAt = time.Now().Add(100 * 365 * 24 * time.Hour)
		d := running(t, w)
		for _, c := range []struct {
			now  time.Time
			want api.Effect
		}{
			{policytest.Now(), api.Allow},
			{policytest.Now().Add(30 * time.Minute), api.Deny},
			{time.Time{}, api.Allow}, // the clock of the bubble: 2000
		} {
			w.Request.Now = c.now
			got, err := d.Decide(t.Context(), w.Request)
			if err != nil || got.Effect != c.want || !got.TimeBound {
				t.Errorf("at %v: %s, time-bound %t, %v", c.now, got.Effect, got.TimeBound, err)
			}
		}
		w.Request.Now = policytest.Now()
		w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""))
		rev := policytest.Put(t, d.Store, w.Service)
		if err := d.Await(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Decide(t.Context(), w.Request); err != nil || got.TimeBound {
			t.Errorf("time-bound %t without a clock, %v", got.TimeBound, err)
		}
	})
}

// Decisions and writes at the same time: no race, and every answer is one of the
// two that are right.
func TestDecideWhileWriting(t *testing.T) {
	w := policytest.NewWorld()
	w.Group.Spec.Authorization = policytest.Named("one")
	p := policytest.Policy("one", policytest.Allow(`ctx.groups.exists(g, g.metadata.name == "friends")`))
	w.More = append(w.More, p)
	d := running(t, w)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				got, err := d.Decide(ctx, w.Request)
				if err != nil || got.Allowed() != (got.Reason == api.ReasonPolicyMatch) {
					t.Errorf("%s %s, %v", got.Effect, got.Reason, err)
					return
				}
				if _, err := d.Explain(ctx, w.Request, "alice"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 200 {
		q := api.Clone(p)
		q.Spec.IsDisabled = i%2 == 0
		s := api.Clone(w.Session)
		s.Spec.ExpiresAt = s.Spec.ExpiresAt.Add(time.Duration(i) * time.Second)
		policytest.Put(t, d.Store, q, s)
	}
	stop()
	all.Wait()
}

// What conditions see of the structs: names, types, zero values, what is hidden.
func TestTypes(t *testing.T) {
	w := policytest.NewWorld()
	w.Session.Metadata.CreatedAt = policytest.Now()
	w.Session.Status.CredentialRef = &api.Ref{Name: "cred"}
	w.User.Metadata.Labels = map[string]string{"team": "red", "a-b": "c"}
	w.User.Spec.Attrs["list"] = []any{"x", 2}
	w.User.Spec.Attrs["deep"] = map[string]any{"er": true}
	w.User.Spec.Info = &api.UserInfo{Country: "PT"}
	w.User.Spec.Authorization = policytest.Inline(policytest.Deny("false"))
	w.Request.Facts.TLS = &api.TLSFacts{SNI: "nats", ClientCertificate: &api.ClientCertificate{URIs: []string{"spiffe://x"}}}
	d := running(t, w)
	for _, e := range []string{
		`ctx.user.metadata.name == "alice" && ctx.user.kind == "User" && ctx.user.apiVersion == "core/v1"`,
		`ctx.user.spec.type == "HUMAN" && ctx.user.spec.type in ["HUMAN", "WORKLOAD"]`,
		`ctx.user.metadata.labels.team == "red" && ctx.user.metadata.labels["a-b"] == "c"`,
		`ctx.user.metadata.labels.exists(k, k == "team")`,
		`ctx.user.spec.attrs.level == 3 && ctx.user.spec.attrs.level >= 2 && ctx.user.spec.attrs["level"] < 3.5`,
		`ctx.user.spec.attrs.list[0] == "x" && 2 in ctx.user.spec.attrs.list && ctx.user.spec.attrs.deep.er`,
		`ctx.user.spec.info.country == "PT" && ctx.user.spec.info.phone == ""`,
		`ctx.user.spec.isDisabled == false && !has(ctx.user.spec.email)`,
		`ctx.user.spec.authorization.inlinePolicies[0].spec.rules[0].effect == "DENY"`,
		`ctx.user.spec.authorization.inlinePolicies.all(p, p.spec.rules.size() == 1)`,
		`ctx.session.metadata.createdAt == timestamp("2026-03-02T10:00:00Z")`,
		`ctx.session.spec.expiresAt - ctx.session.metadata.createdAt == duration("1h")`,
		`ctx.session.spec.state == "ACTIVE" && ctx.session.status.credentialRef.name == "cred"`,
		`ctx.session.status.userRef.name == ctx.user.metadata.name`,
		`ctx.groups.size() == 1 && ctx.groups[0].metadata.name == "friends"`,
		`ctx.groups.map(g, g.metadata.name) == ["friends"]`,
		`ctx.groups.exists(g, g.metadata.name.matches("^fr"))`,
		`ctx.service.spec.mode == "TCP" && ctx.service.metadata.name == "nats.default"`,
		`ctx.service.spec.config.upstream.url.startsWith("tcp://")`,
		`ctx.namespace.metadata.name == "default"`,
		`ctx.request.port == 50000 && type(ctx.request.port) == int`,
		`net.isIPInRange(ctx.request.ip, "192.0.2.0/24") && !net.isIPInRange(ctx.request.ip, "10.0.0.0/8")`,
		`ctx.request.tls.sni == "nats" && "spiffe://x" in ctx.request.tls.clientCertificate.uris`,
		`[ctx.user, ctx.user].all(u, u == ctx.user) && dyn(ctx.user).metadata.name == "alice"`,
		`dyn(ctx.user) != dyn(ctx.session) && has(dyn(ctx.user).spec)`,
		`(ctx.request.port > 1 ? ctx.user : ctx.user).metadata.name == "alice"`,
		`"nobody" in ctx.user.spec.groups || "friends" in ctx.user.spec.groups`,
	} {
		w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(e))
		rev := policytest.Put(t, d.Store, w.Service)
		if err := d.Await(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		x, err := d.Explain(t.Context(), w.Request, "")
		if err != nil || !x.Decision.Allowed() {
			t.Errorf("%s\n\t%s %s, %+v, %v", e, x.Decision.Effect, x.Decision.Words, x.Steps, err)
		}
	}
	for _, e := range []string{ // what conditions must not see, or do
		`ctx.service.spec.isPublic == 1`, `ctx.user.data == ""`, `ctx.cluster == 1`, `ctx.user.status.x == 1`,
		`cardea.User{} == ctx.user`, `@now == now()`, `__evaluation == 1`,
	} {
		var p api.Problems
		if Check(&p, policytest.Policy("x", policytest.Allow(e))); p.Err() == nil {
			t.Errorf("%s is accepted", e)
		}
	}
}

// The pointers of problems, for each place that a condition may stand in.
func TestCheckPointers(t *testing.T) {
	bad := policytest.Inline(policytest.Allow("true"), policytest.Allow("nonsense"))
	const inline = "/spec/authorization/inlinePolicies/0/spec/rules/1/condition/match"
	nested := api.Rule{Condition: api.Condition{All: &api.Conditions{Of: []api.Condition{
		{MatchAny: true}, {None: &api.Conditions{Of: []api.Condition{{Not: "nonsense"}}}}}}}}
	for _, c := range []struct {
		o    api.Object
		want string
	}{
		{&api.User{Spec: api.UserSpec{Authorization: bad}}, inline},
		{&api.Group{Spec: api.GroupSpec{Authorization: bad}}, inline},
		{&api.Namespace{Spec: api.NamespaceSpec{Authorization: bad}}, inline},
		{&api.Session{Spec: api.SessionSpec{Authorization: bad}}, inline},
		{&api.Credential{Spec: api.CredentialSpec{Authorization: bad}}, inline},
		{&api.ClusterConfig{Spec: api.ClusterConfigSpec{Authorization: bad}}, inline},
		{&api.Service{Spec: api.ServiceSpec{Authorization: bad}}, inline},
		{&api.Service{Spec: api.ServiceSpec{DynamicConfig: &api.DynamicConfig{Rules: []api.ConfigRule{
			{Condition: api.Condition{Match: "nonsense"}}}}}}, "/spec/dynamicConfig/rules/0/condition/match"},
		{&api.Device{Spec: api.DeviceSpec{Authorization: bad}}, inline},
		{&api.Policy{Spec: api.PolicySpec{EnforcementRules: []api.EnforcementRule{{Effect: api.Ignore, Condition: api.Condition{Not: "nonsense"}}}}},
			"/spec/enforcementRules/0/condition/not"},
		{&api.User{Spec: api.UserSpec{Authorization: api.Authorization{InlinePolicies: []api.InlinePolicy{{Spec: api.PolicySpec{
			EnforcementRules: []api.EnforcementRule{{Effect: api.Enforce, Condition: api.Condition{Match: "nonsense"}}}}}}}}},
			"/spec/authorization/inlinePolicies/0/spec/enforcementRules/0/condition/match"},
		{policytest.Policy("x", nested), "/spec/rules/0/condition/all/of/1/none/of/0/not"},
		{&api.Secret{}, ""},
	} {
		c.o.Default()
		var p api.Problems
		Check(&p, c.o)
		var got string
		if len(p.List) == 1 && p.Err() != nil {
			got = p.List[0].Pointer
		}
		if got != c.want {
			t.Errorf("%T: %v, want one at %s", c.o, p.List, c.want)
		}
	}
}

// An explanation as a person reads it.
func TestExplain(t *testing.T) {
	named := func(r api.Rule, name string, priority int) api.Rule {
		r.Name, r.Priority = name, priority
		return r
	}
	rows := []struct {
		name   string
		user   string
		change func(*policytest.World)
	}{
		{"no policy applies", "", func(w *policytest.World) {}},
		{"nothing matches", "", func(w *policytest.World) {
			w.User.Spec.Authorization = policytest.Named("friendz")
			w.Group.Spec.Authorization = policytest.Named("friends", "closed")
			w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(`ctx.request.tls.sni == "x"`), policytest.Deny(`ctx.request.api.verb == "get"`))
			closed := policytest.Policy("closed", policytest.Allow(""))
			closed.Spec.IsDisabled = true
			w.More = append(w.More, closed, policytest.Policy("friends", policytest.Allow("false")))
		}},
		{"the second rule allows", "", func(w *policytest.World) {
			w.Service.Spec.Authorization = policytest.Inline(named(policytest.Allow(""), "weak", 2), named(policytest.Allow(`ctx.user.spec.type == "HUMAN"`), "people", 0))
			w.Cluster.Spec.Authorization = policytest.Inline(named(policytest.Deny(`ctx.user.spec.email == "x"`), "", -4))
		}},
		{"a DENY that cannot be told", "", func(w *policytest.World) {
			w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""), policytest.Deny(`ctx.request.tls.clientCertificate.sha256 == "x"`))
		}},
		{"a User without a Session", "alice", func(w *policytest.World) {
			w.Session = nil
			w.User.Spec.Authorization = policytest.Inline(policytest.Allow(`ctx.session.spec.state == "ACTIVE" && ctx.session.spec.expiresAt > now()`))
		}},
		{"a User who does not exist", "alise", func(w *policytest.World) {}},
		{"a Service that does not exist", "alice", func(w *policytest.World) { w.Request.Service = "natz" }},
		{"an expired Session", "", func(w *policytest.World) { w.Session.Spec.ExpiresAt = policytest.Now() }},
		{"a Device that waits for approval", "", func(w *policytest.World) { w.AddDevice().Spec.State = api.DevicePending }},
		{"a Device that is gone", "", func(w *policytest.World) { w.AddDevice(); w.More = nil }},
		{"no Device, and rules about it", "", func(w *policytest.World) {
			w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(`ctx.device.spec.state == "ACTIVE"`))
		}},
		{"policies that do not count", "", func(w *policytest.World) {
			enforced := func(name string, e api.Enforcement, match string) *api.Policy {
				p := policytest.Policy(name, policytest.Allow(""), policytest.Deny("false"))
				p.Spec.EnforcementRules = []api.EnforcementRule{{Effect: e, Condition: api.Condition{Match: match}}}
				return p
			}
			w.Service.Spec.Authorization = policytest.Named("one", "two", "three")
			w.More = append(w.More,
				enforced("one", api.Enforce, `ctx.request.port == 1`),
				enforced("two", api.Ignore, `ctx.request.port > 1`),
				enforced("three", api.Ignore, `ctx.request.tls.sni == "x"`))
		}},
		{"a DENY of a policy that may count", "", func(w *policytest.World) {
			w.Service.Spec.Authorization = policytest.Inline(policytest.Deny(""))
			w.Service.Spec.Authorization.InlinePolicies[0].Spec.EnforcementRules = []api.EnforcementRule{
				{Effect: api.Enforce, Condition: api.Condition{Match: `ctx.request.tls.sni == "x"`}}}
		}},
		{"an upstream that is not verified", "", func(w *policytest.World) {
			w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""))
			w.Service.Spec.Config.TLS = &api.UpstreamTLS{InsecureSkipVerify: true}
		}},
		{"no config", "", func(w *policytest.World) {
			w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(""))
			w.Service.Spec.DynamicConfig = &api.DynamicConfig{Configs: []api.ServiceConfig{*w.Service.Spec.Config},
				Rules: []api.ConfigRule{{Condition: api.Condition{Match: "false"}, ConfigName: "one"}}}
			w.Service.Spec.DynamicConfig.Configs[0].Name = "one"
			w.Service.Spec.Config = nil
		}},
		{"anonymous at a Service that is open", "", func(w *policytest.World) { w.Anonymous() }},
		{"anonymous at a Service that is private", "", func(w *policytest.World) { w.Anonymous(); w.Service.Spec.IsPublic = false }},
		{"anonymous at a Service that is disabled", "", func(w *policytest.World) { w.Anonymous(); w.Service.Spec.IsDisabled = true }},
		{"anonymous at a Service that does not exist", "", func(w *policytest.World) { w.Anonymous(); w.Request.Service = "natz" }},
		{"anonymous, and no policy", "", func(w *policytest.World) {
			w.Anonymous()
			w.Service.Spec.Authorization.EnableAnonymous = true
		}},
		{"anonymous, and rules about Users", "", func(w *policytest.World) {
			w.Anonymous()
			w.Service.Spec.Authorization = policytest.Inline(policytest.Allow(`ctx.user.spec.type == "HUMAN"`), policytest.Allow(`ctx.groups.size() == 0`))
			w.Service.Spec.Authorization.EnableAnonymous = true
		}},
		{"a TCPMapping", "alice", func(w *policytest.World) { w.Mapping("db") }},
		{"a TCPMapping that does not exist", "", func(w *policytest.World) { w.Mapping("db"); w.Request.Route.Name = "dd" }},
		{"a TCPMapping, and a DENY about Users", "", func(w *policytest.World) {
			w.Mapping("db")
			w.Cluster.Spec.Authorization = policytest.Inline(policytest.Deny(`ctx.user.spec.type == "HUMAN"`))
		}},
	}
	var b strings.Builder
	for _, r := range rows {
		w := policytest.NewWorld()
		r.change(w)
		d := running(t, w)
		got, err := d.Decide(t.Context(), w.Request)
		if err != nil {
			t.Fatal(err)
		}
		x, err := d.Explain(t.Context(), w.Request, r.user)
		if err != nil {
			t.Fatal(err)
		}
		if r.user == "" {
			if got.Effect != x.Decision.Effect || got.Reason != x.Decision.Reason || got.Words != x.Decision.Words || got.Message != x.Decision.Message {
				t.Errorf("%s: Decide says %s %s %q and Explain %s %s %q", r.name, got.Effect, got.Reason, got.Words, x.Decision.Effect, x.Decision.Reason, x.Decision.Words)
			}
		}
		fmt.Fprintf(&b, "== %s\n%s %s: %s", r.name, x.Decision.Effect, x.Decision.Reason, x.Decision.Words)
		if x.Hypothetical {
			b.WriteString(" (hypothetical)")
		}
		b.WriteByte('\n')
		for _, s := range x.Steps {
			fmt.Fprintf(&b, "    %-8s %s %s [%s] %s\n", s.Outcome, s.Rule.Effect, s.Rule, s.Condition, s.Words)
		}
		for _, h := range x.Hints {
			fmt.Fprintf(&b, "    hint: %s\n", h)
		}
	}
	golden(t, "explain.txt", b.String())
}
