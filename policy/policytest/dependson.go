package policytest

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cardea/api"
	"cardea/policy"
	"cardea/store"
)

// dependsOn checks that DependsOn is complete: in a random small world, a random
// write that touches nothing that a decision names does not change the decision.
// And it checks that no decision is made of what was true before a write, or of
// what is true of another request: every question is asked twice, among others
// that differ in instant and facts, and an Explainer must say the same.
func (s suite) dependsOn(t *testing.T) {
	st := s.store(t)
	d := s.open(t, st, Verifier{})
	uids := 0
	rapid.Check(t, func(rt *rapid.T) {
		var keys []api.Key
		write := func(o api.Object, remove bool) {
			rev, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
				old, err := tx.Get(o.Header().Key())
				switch {
				case err != nil && !api.HasCode(err, api.CodeNotFound):
					return err
				case remove && err != nil:
					return nil
				case remove:
					return tx.Delete(o.Header().Key())
				case err == nil:
					o.Header().Metadata.UID = old.UID
				}
				rec, err := store.Encode(o)
				if err != nil {
					return err
				}
				return tx.Put(rec)
			})
			if err != nil {
				rt.Fatal(err)
			}
			if k := o.Header().Key(); !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
			if err := d.Await(t.Context(), rev); err != nil {
				rt.Fatal(err)
			}
		}
		g := generator{rt, &uids}
		for _, kind := range kinds() {
			for range rapid.IntRange(1, 4).Draw(rt, kind) {
				write(g.object(kind), false)
			}
		}
		// The sessions of now: a uid is never used again.
		var requests []api.Request
		for _, k := range keys {
			if k.Kind == api.KindSession {
				o := session(rt, st, k)
				for _, service := range services() {
					requests = append(requests, variants(api.Request{Service: service, Session: o.Metadata.UID})...)
				}
			}
		}
		for _, k := range mappings() {
			requests = append(requests, variants(api.Request{Route: &k})...)
		}
		for _, service := range services() {
			requests = append(requests, variants(api.Request{Service: service, Evidence: api.Evidence{Kind: api.EvidenceAnonymous}})...)
		}
		for range rapid.IntRange(1, 10).Draw(rt, "writes") {
			before := decideAll(t, d, requests)
			o := g.object(g.pick("kind", kinds()...))
			write(o, rapid.Bool().Draw(rt, "remove"))
			for i, after := range decideAll(t, d, requests) {
				if slices.Contains(before[i].DependsOn, o.Header().Key()) || same(before[i], after) {
					continue
				}
				rt.Fatalf("a write to %v changed a decision that does not depend on it:\nbefore %+v\nafter  %+v", o.Header().Key(), before[i], after)
			}
		}
		// What was reached commit by commit is what one who begins now finds.
		t.Run("anew", func(t *testing.T) {
			fresh := s.open(t, st, Verifier{})
			for i, want := range decideAll(t, fresh, requests) {
				// What was deleted before he began is nothing to who begins now.
				if got := decide(t, d, requests[i]); want.Reason != api.ReasonNoRoute && !same(got, want) {
					rt.Errorf("after some writes the decision is\n%+v\nand anew it is\n%+v", got, want)
				}
			}
		})
		for _, k := range keys {
			o := &bare{Head: api.Head{APIVersion: api.Version, Kind: k.Kind, Metadata: api.Metadata{Namespace: k.Namespace, Name: k.Name}}}
			if k.Group != api.GroupCore {
				o.APIVersion = k.Group + "/v2"
			}
			write(o, true)
		}
	})
}

// A bare is an Object of any kind that is only deleted.
type bare struct{ api.Head }

func (*bare) Default()               {}
func (*bare) Validate(*api.Problems) {}

func session(rt *rapid.T, st store.Store, k api.Key) (o *api.Session) {
	err := st.View(rt.Context(), func(r store.Reader) (err error) {
		o, err = store.Get[*api.Session](r, k)
		return err
	})
	if err != nil {
		rt.Fatal(err)
	}
	return o
}

func decideAll(t testing.TB, d Decider, requests []api.Request) []api.Decision {
	list := make([]api.Decision, len(requests))
	explainer, _ := d.(policy.Explainer)
	for i, r := range requests {
		list[i] = decide(t, d, r)
		if again := decide(t, d, r); !same(list[i], again) {
			t.Errorf("asked again, the answer to %+v is\n%+v\nand was\n%+v", r, again, list[i])
		}
		if explainer == nil {
			continue
		}
		x, err := explainer.Explain(t.Context(), r, "")
		if err != nil || !same(list[i], x.Decision) {
			t.Errorf("the decision about %+v is\n%+v\nand as it is explained\n%+v, %v", r, list[i], x.Decision, err)
		}
	}
	return list
}

// same tells whether two decisions say the same of the same Objects.
func same(a, b api.Decision) bool {
	a.ID, a.Revision, b.ID, b.Revision = "", api.Revision{}, "", api.Revision{}
	return reflect.DeepEqual(a, b)
}

// A generator draws Objects of a world with few names.
type generator struct {
	*rapid.T
	uids *int
}

func (g generator) pick(label string, of ...string) string {
	return rapid.SampledFrom(of).Draw(g.T, label)
}

func (g generator) some(label string, of ...string) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(of), 0, len(of), rapid.ID).Draw(g.T, label)
}

func (g generator) flag(label string) bool { return rapid.IntRange(0, 4).Draw(g.T, label) == 0 }

func (g generator) head(name string) api.Head {
	*g.uids++
	return head(name, fmt.Sprintf("uid-%d", *g.uids)) // if it does not exist yet
}

// kinds are what object takes.
func kinds() []string {
	return []string{"cluster", "namespace", "service", "mapping", "user", "group", "device", "session", "policy", "secret"}
}

func (g generator) object(kind string) api.Object {
	var o api.Object
	switch kind {
	case "cluster":
		c := &api.ClusterConfig{Head: g.head("default"), Spec: api.ClusterConfigSpec{Authorization: g.authorization()}}
		if hours := 2; g.flag("drain") {
			c.Spec.Routing.DrainTime = &api.Duration{Hours: &hours}
		}
		o = c
	case "namespace":
		o = &api.Namespace{Head: g.head(g.pick("namespace", "aa", "bb", "cc")),
			Spec: api.NamespaceSpec{Parent: g.pick("parent", "", "aa", "bb", "cc", "dd"), Authorization: g.authorization()}}
	case "service":
		v := &api.Service{Head: g.head(g.pick("service", services()...))}
		v.Spec = api.ServiceSpec{Mode: api.ModeTCP, IsDisabled: g.flag("disabled"), Authorization: g.authorization(),
			Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://127.0.0.1:1"}}}
		v.Spec.IsPublic, v.Spec.IsAnonymous, v.Spec.Authorization.EnableAnonymous = g.flag("public"), !g.flag("known"), g.flag("anonymous")
		if g.flag("limits") {
			v.Spec.Limits = &api.ServiceLimits{Connections: rapid.IntRange(1, 3).Draw(g.T, "connections")}
		}
		if g.flag("dynamic") {
			v.Spec.DynamicConfig = &api.DynamicConfig{
				Configs: []api.ServiceConfig{{Name: "child", Parent: g.pick("parent", "default", "other")},
					{Name: "other", Upstream: api.Upstream{URL: g.pick("url", "tcp://127.0.0.1:2", "tcp://127.0.0.1:3")}}},
				Rules: []api.ConfigRule{{Condition: g.condition(), ConfigName: g.pick("config", "default", "child", "other", "none")}},
			}
			if g.flag("no default") {
				v.Spec.Config = nil
			}
		}
		o = v
	case "mapping":
		k := rapid.SampledFrom(mappings()).Draw(g.T, "mapping")
		m := &api.TCPMapping{Head: g.head(k.Name)}
		m.Metadata.Namespace, m.Metadata.Labels = k.Namespace, map[string]string{"team": g.pick("team", "red", "blue")}
		if g.flag("cut") {
			m.Metadata.Annotations = map[string]string{api.AnnotationPrefix + api.AnnotationOnRemoval: "cut"}
		}
		o = m
	case "user":
		u := &api.User{Head: g.head(g.pick("user", "ann", "ben"))}
		u.Metadata.UID = "uid-" + u.Metadata.Name
		u.Spec = api.UserSpec{Type: api.UserHuman, Groups: g.some("groups", "g1", "g2", "g3"), IsDisabled: g.flag("disabled"), Authorization: g.authorization()}
		if g.flag("attrs") {
			u.Spec.Attrs = api.Attrs{"x": 1}
		}
		o = u
	case "group":
		o = &api.Group{Head: g.head(g.pick("group", "g1", "g2", "g3")), Spec: api.GroupSpec{Authorization: g.authorization()}}
	case "device":
		v := &api.Device{Head: g.head(g.pick("device", "d1", "d2")), Spec: api.DeviceSpec{Authorization: g.authorization()}}
		v.Metadata.UID = "uid-" + v.Metadata.Name
		if g.flag("pending") {
			v.Spec.State = api.DevicePending
		}
		v.Status.OSType = api.OSType(g.pick("os", "LINUX", "MAC"))
		o = v
	case "session":
		user := g.pick("user", "ann", "ben")
		x := &api.Session{Head: g.head(user + "-s")}
		x.Spec = api.SessionSpec{ExpiresAt: Now().Add(1500 * time.Millisecond), Authorization: g.authorization()}
		if g.flag("pending") {
			x.Spec.State = api.SessionPending
		}
		x.Status.UserRef = api.Ref{Name: user, UID: "uid-" + user}
		if device := g.pick("device", "", "d1", "d2"); device != "" {
			x.Status.DeviceRef = &api.Ref{Name: device, UID: "uid-" + device}
		}
		o = x
	case "policy":
		o = &api.Policy{Head: g.head(g.pick("policy", "p1", "p2", "p3", "p4")), Spec: g.policy()}
	case "secret":
		o = &api.Secret{Head: g.head(g.pick("secret", "s1", "s2"))}
	}
	o.Default()
	return o
}

func (g generator) authorization() api.Authorization {
	a := api.Authorization{Policies: g.some("policies", "p1", "p2", "p3", "p4")}
	if g.flag("inline") {
		a.InlinePolicies = []api.InlinePolicy{{Spec: g.policy()}}
	}
	return a
}

func (g generator) policy() api.PolicySpec {
	s := api.PolicySpec{IsDisabled: g.flag("disabled")}
	for range rapid.IntRange(0, 3).Draw(g.T, "rules") {
		s.Rules = append(s.Rules, api.Rule{
			Effect:    api.Effect(g.pick("effect", "ALLOW", "DENY")),
			Priority:  rapid.IntRange(-4, 4).Draw(g.T, "priority"),
			Condition: g.condition(),
		})
	}
	if g.flag("enforcement") {
		for range rapid.IntRange(1, 2).Draw(g.T, "enforcement rules") {
			s.EnforcementRules = append(s.EnforcementRules,
				api.EnforcementRule{Effect: api.Enforcement(g.pick("enforcement", "ENFORCE", "IGNORE")), Condition: g.condition()})
		}
	}
	return s
}

// services are the names of all Services of the generator.
func services() []string { return []string{"one.aa", "two.aa", "one.bb"} }

// mappings are the keys of all TCPMappings of the generator.
func mappings() (keys []api.Key) {
	for _, k := range []api.Key{{Namespace: "aa", Name: "one"}, {Namespace: "bb", Name: "one"}, {Name: "two"}} {
		k.Group, k.Kind = api.GroupAmbassador, api.KindTCPMapping
		keys = append(keys, k)
	}
	return keys
}

func (g generator) condition() api.Condition {
	c := api.Condition{Match: g.pick("match",
		`true`, `false`,
		`"g1" in ctx.user.spec.groups`,
		`ctx.groups.exists(g, g.metadata.name == "g2")`,
		`ctx.groups.size() > 1`,
		`ctx.user.spec.attrs.x == 1`,
		`has(ctx.namespace) && ctx.namespace.spec.parent == "cc"`,
		`ctx.namespace.metadata.uid != "uid-3"`,
		`ctx.session.metadata.name == "ann-s"`,
		`ctx.device.status.osType == "LINUX"`,
		`has(ctx.device) && ctx.device.metadata.name == "d1"`,
		`has(ctx.user)`,
		`now() < timestamp("2026-03-02T10:00:00.5Z")`,
		`dyn(ctx).request.ip == "192.0.2.8"`,
		`ctx.request.tls.sni == "x"`,
		`ctx.request.api.verb == "get"`,
		`ctx.service.metadata.labels.team == "red"`,
		`ctx.service.metadata.name == "one.aa"`)}
	switch g.pick("of", "match", "not", "none") {
	case "not":
		c.Not, c.Match = c.Match, ""
	case "none":
		c = api.Condition{None: &api.Conditions{Of: []api.Condition{c, {Match: "false"}}}}
	}
	return c
}

// variants returns the request at instants before and after everything that
// depends on time, with facts that differ in all that conditions read.
func variants(r api.Request) []api.Request {
	plain, other := &api.Facts{IP: "192.0.2.7"}, &api.Facts{IP: "192.0.2.8", TLS: &api.TLSFacts{SNI: "x"}}
	at := func(seconds int, f *api.Facts) api.Request {
		r.Now, r.Facts = Now().Add(time.Duration(seconds)*time.Second), f
		return r
	}
	return []api.Request{at(0, plain), at(0, other), at(1, plain), at(2, other)}
}
