package policytest

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"cardea/api"
)

// allowAll lets everybody reach the Service of the World.
func allowAll(w *World) { w.Service.Spec.Authorization = Inline(Allow("")) }

// policed makes the Request anonymous and lets those rules of the Service decide.
func policed(rules ...api.Rule) func(*World) {
	return func(w *World) {
		w.Anonymous()
		w.Service.Spec.Authorization = Inline(rules...)
		w.Service.Spec.Authorization.EnableAnonymous = true
	}
}

// atOpen makes the Service one that is open to everyone, with those rules; the
// Request stays that of a Session.
func atOpen(rules ...api.Rule) func(*World) {
	return func(w *World) {
		evidence := w.Request.Evidence
		w.Anonymous()
		w.Request.Evidence, w.Service.Spec.Authorization = evidence, Inline(rules...)
	}
}

func key(kind, name string) api.Key {
	return api.Key{Group: api.GroupCore, Kind: kind, Name: name}
}

func (s suite) decisions(t *testing.T) {
	type row struct {
		name    string
		change  func(*World)
		effect  api.Effect
		reason  api.ReasonType
		rule    string // the deciding rule's name
		config  string
		limits  api.Limits
		message string
		depends []api.Key
	}
	named := func(r api.Rule, name string, priority int) api.Rule {
		r.Name, r.Priority = name, priority
		return r
	}
	config := func(name, match string) api.ConfigRule {
		return api.ConfigRule{ConfigName: name, Condition: api.Condition{Match: match}}
	}
	dynamic := func(w *World, rules ...api.ConfigRule) {
		allowAll(w)
		w.Service.Spec.DynamicConfig = &api.DynamicConfig{
			Configs: []api.ServiceConfig{{Name: "other", Upstream: api.Upstream{URL: "tcp://127.0.0.1:4223"}}},
			Rules:   rules,
		}
	}
	rows := []row{
		// Who asks.
		{name: "nobody", change: func(w *World) { allowAll(w); w.Request.Evidence = api.Evidence{} },
			effect: api.Deny, reason: api.ReasonUnauthenticated},
		{name: "evidence that proves nothing", change: func(w *World) { allowAll(w); w.Request.Evidence.Kind = "RUMOUR" },
			effect: api.Deny, reason: api.ReasonUnauthenticated},
		{name: "nobody asks for what does not exist", change: func(w *World) { w.Service = nil; w.Request.Evidence = api.Evidence{} },
			effect: api.Deny, reason: api.ReasonUnauthenticated, depends: []api.Key{key(api.KindService, "nats.default")}},
		{name: "a Session that does not exist", change: func(w *World) { allowAll(w); w.Session = nil },
			effect: api.Deny, reason: api.ReasonNoSession},
		{name: "the key of the Session", change: func(w *World) { allowAll(w); w.Request.Evidence.Data = append(w.Request.Evidence.Data, "/aa"...) },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "another key", change: func(w *World) { allowAll(w); w.Request.Evidence.Data = append(w.Request.Evidence.Data, "/ab"...) },
			effect: api.Deny, reason: api.ReasonKeyMismatch, depends: []api.Key{key(api.KindSession, "alice-abc123")}},
		{name: "a renewal needs no evidence", change: func(w *World) {
			allowAll(w)
			w.Request.Session, w.Request.Evidence = w.Session.Metadata.UID, api.Evidence{}
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "a renewal of a Session that is gone", change: func(w *World) {
			allowAll(w)
			w.Request.Session, w.Session = w.Session.Metadata.UID, nil
		}, effect: api.Deny, reason: api.ReasonNoSession},
		{name: "a Session that is not active", change: func(w *World) { allowAll(w); w.Session.Spec.State = api.SessionPending },
			effect: api.Deny, reason: api.ReasonSessionNotActive, depends: []api.Key{key(api.KindSession, "alice-abc123")}},
		{name: "a Session at its end", change: func(w *World) { allowAll(w); w.Session.Spec.ExpiresAt = Now() },
			effect: api.Deny, reason: api.ReasonSessionExpired, depends: []api.Key{key(api.KindSession, "alice-abc123")}},
		{name: "a User who is gone", change: func(w *World) { allowAll(w); w.User = nil },
			effect: api.Deny, reason: api.ReasonNoUser, depends: []api.Key{key(api.KindUser, "alice")}},
		{name: "a User who was made again", change: func(w *World) { allowAll(w); w.User.Metadata.UID = "u2" },
			effect: api.Deny, reason: api.ReasonNoUser, depends: []api.Key{key(api.KindUser, "alice")}},
		{name: "a Device", change: func(w *World) { allowAll(w); w.AddDevice() },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default", depends: []api.Key{key(api.KindDevice, "linux-abcd1234")}},
		{name: "a Device that waits for approval", change: func(w *World) { allowAll(w); w.AddDevice().Spec.State = api.DevicePending },
			effect: api.Deny, reason: api.ReasonDeviceNotActive, depends: []api.Key{key(api.KindDevice, "linux-abcd1234")}},
		{name: "a Device that was rejected", change: func(w *World) { allowAll(w); w.AddDevice().Spec.State = api.DeviceRejected },
			effect: api.Deny, reason: api.ReasonDeviceNotActive, depends: []api.Key{key(api.KindDevice, "linux-abcd1234")}},
		{name: "a Device that is gone", change: func(w *World) { allowAll(w); w.AddDevice(); w.More = nil },
			effect: api.Deny, reason: api.ReasonDeviceNotActive, depends: []api.Key{key(api.KindDevice, "linux-abcd1234")}},
		{name: "a Device that was made again", change: func(w *World) { allowAll(w); w.AddDevice().Metadata.UID = "d2" },
			effect: api.Deny, reason: api.ReasonDeviceNotActive, depends: []api.Key{key(api.KindDevice, "linux-abcd1234")}},
		{name: "what a Device reports is no attribute", change: func(w *World) {
			w.AddDevice()
			w.Service.Spec.Authorization = Inline(Allow(`size(ctx.device.spec.attrs) > 0 || has(ctx.device.spec.attrs.hostname) || has(attrs.hostname)`))
		}, effect: api.Deny, reason: api.ReasonNoPolicyMatch},
		{name: "what a Device reports", change: func(w *World) {
			w.AddDevice()
			w.Service.Spec.Authorization = Inline(Allow(`ctx.device.status.reported.hostname == "laptop" && ctx.device.status.osType == "LINUX"`))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "no Device where a rule reads it", change: func(w *World) { w.Service.Spec.Authorization = Inline(Allow(`ctx.device.spec.state == "ACTIVE"`)) },
			effect: api.Deny, reason: api.ReasonNoPolicyMatch},
		{name: "no Device where a DENY reads it", change: func(w *World) {
			w.Service.Spec.Authorization = Inline(Allow(""), Deny(`ctx.device.status.osType == "WINDOWS"`))
		}, effect: api.Deny, reason: api.ReasonPolicyMatch},
		{name: "no Device, and a guard", change: func(w *World) {
			w.Service.Spec.Authorization = Inline(Allow(""), Deny(`has(ctx.device) && ctx.device.status.osType == "WINDOWS"`))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "a disabled User", change: func(w *World) { allowAll(w); w.User.Spec.IsDisabled = true },
			effect: api.Deny, reason: api.ReasonUserDisabled, depends: []api.Key{key(api.KindUser, "alice")}},

		// What is asked for.
		{name: "a Service that does not exist", change: func(w *World) { w.Service = nil; w.User.Spec.Authorization = Inline(Allow("")) },
			effect: api.Deny, reason: api.ReasonNoService, depends: []api.Key{key(api.KindService, "nats.default")}},
		{name: "a disabled Service", change: func(w *World) { allowAll(w); w.Service.Spec.IsDisabled = true },
			effect: api.Deny, reason: api.ReasonServiceDisabled, depends: []api.Key{key(api.KindService, "nats.default")}},
		{name: "the short name of a Service", change: func(w *World) { allowAll(w); w.Request.Service = "nats" },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "the API", change: func(w *World) {
			w.Service = &api.Service{Head: head("api.cardea", "v2"), Spec: api.ServiceSpec{Mode: api.ModeAPI}}
			w.User.Spec.Authorization = Inline(named(Allow(`ctx.request.api.verb == "get"`), "may get", 0))
			w.Request.Service, w.Request.Facts.API = "api.cardea", &api.APIFacts{Verb: "get"}
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, rule: "may get",
			depends: []api.Key{key(api.KindService, "api.cardea"), key(api.KindNamespace, "cardea")}},

		// Where rules come from.
		{name: "no policy", change: func(*World) {}, effect: api.Deny, reason: api.ReasonNoPolicyMatch,
			depends: []api.Key{key(api.KindClusterConfig, "default"), key(api.KindService, "nats.default"),
				key(api.KindNamespace, "default"), key(api.KindUser, "alice"), key(api.KindGroup, "friends"),
				key(api.KindSession, "alice-abc123")}},
		{name: "of the Service", change: allowAll, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "of the Namespace", change: func(w *World) { w.Namespace.Spec.Authorization = Inline(Allow("")) },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "of a Namespace above", change: func(w *World) {
			w.Namespace.Spec.Parent = "team"
			w.More = append(w.More,
				&api.Namespace{Head: head("team", "n2"), Spec: api.NamespaceSpec{Parent: "company"}},
				&api.Namespace{Head: head("company", "n3"), Spec: api.NamespaceSpec{Authorization: Inline(Allow(""))}})
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default",
			depends: []api.Key{key(api.KindNamespace, "team"), key(api.KindNamespace, "company")}},
		{name: "not of a Namespace below", change: func(w *World) {
			w.More = append(w.More, &api.Namespace{Head: head("below", "n2"),
				Spec: api.NamespaceSpec{Parent: "default", Authorization: Inline(Allow(""))}})
		}, effect: api.Deny, reason: api.ReasonNoPolicyMatch},
		{name: "Namespaces in a circle", change: func(w *World) { allowAll(w); w.Namespace.Spec.Parent = "default" },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "of the User", change: func(w *World) { w.User.Spec.Authorization = Inline(Allow("")) },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "of a Group", change: func(w *World) { w.Group.Spec.Authorization = Inline(Allow("")) },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "a Group that does not exist", change: func(w *World) { w.Group = nil },
			effect: api.Deny, reason: api.ReasonNoPolicyMatch, depends: []api.Key{key(api.KindGroup, "friends")}},
		{name: "of the Session", change: func(w *World) { w.Session.Spec.Authorization = Inline(Allow("")) },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "of the Device", change: func(w *World) { w.AddDevice().Spec.Authorization = Inline(Allow("")) },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "of a Device that denies", change: func(w *World) { allowAll(w); w.AddDevice().Spec.Authorization = Inline(Deny("")) },
			effect: api.Deny, reason: api.ReasonPolicyMatch},
		{name: "of the cluster", change: func(w *World) { w.Cluster.Spec.Authorization = Inline(Allow("")) },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "a named Policy", change: func(w *World) {
			w.Group.Spec.Authorization = Named("open")
			w.More = append(w.More, Policy("open", named(Allow(""), "anyone", 0)))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, rule: "anyone", config: "default", depends: []api.Key{key(api.KindPolicy, "open")}},
		{name: "a Policy that does not exist", change: func(w *World) { w.Group.Spec.Authorization = Named("open") },
			effect: api.Deny, reason: api.ReasonNoPolicyMatch, depends: []api.Key{key(api.KindPolicy, "open")}},
		{name: "a disabled Policy", change: func(w *World) {
			w.Group.Spec.Authorization = Named("open")
			p := Policy("open", Allow(""))
			p.Spec.IsDisabled = true
			w.More = append(w.More, p)
		}, effect: api.Deny, reason: api.ReasonNoPolicyMatch, depends: []api.Key{key(api.KindPolicy, "open")}},
		{name: "a Policy that is named twice", change: func(w *World) {
			w.Group.Spec.Authorization, w.User.Spec.Authorization = Named("open"), Named("open")
			w.More = append(w.More, Policy("open", Allow("")))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "a disabled inline policy", change: func(w *World) {
			allowAll(w)
			w.Service.Spec.Authorization.InlinePolicies[0].Spec.IsDisabled = true
		}, effect: api.Deny, reason: api.ReasonNoPolicyMatch},

		// Which rule decides.
		{name: "DENY before ALLOW", change: func(w *World) {
			w.Service.Spec.Authorization = Inline(named(Allow(""), "a", 0), named(Deny(""), "d", 0))
		}, effect: api.Deny, reason: api.ReasonPolicyMatch, rule: "d"},
		{name: "a stronger ALLOW before DENY", change: func(w *World) {
			w.Service.Spec.Authorization = Inline(named(Deny(""), "d", 0))
			w.User.Spec.Authorization = Inline(named(Allow(""), "a", -1))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, rule: "a", config: "default"},
		{name: "the strongest of all", change: func(w *World) {
			w.Service.Spec.Authorization = Inline(named(Allow(""), "4", 4), named(Allow(""), "1", 1), named(Deny(""), "0", 0))
			w.Cluster.Spec.Authorization = Inline(named(Allow(""), "-3", -3), named(Deny(""), "-4", -4))
		}, effect: api.Deny, reason: api.ReasonPolicyMatch, rule: "-4"},
		{name: "a rule that does not match is passed over", change: func(w *World) {
			w.Service.Spec.Authorization = Inline(named(Deny("false"), "d", -4), named(Allow(""), "a", 0))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, rule: "a", config: "default"},
		{name: "the first of equals", change: func(w *World) {
			w.Service.Spec.Authorization = Inline(named(Allow(""), "1", 0), named(Allow(""), "2", 0))
			w.User.Spec.Authorization = Inline(named(Allow(""), "3", 0))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, rule: "1", config: "default"},
		{name: "a message for whom it refuses", change: func(w *World) {
			d := named(Deny(""), "d", 0)
			d.Message = "ask Bob"
			w.Service.Spec.Authorization = Inline(d)
		}, effect: api.Deny, reason: api.ReasonPolicyMatch, rule: "d", message: "ask Bob"},
		{name: "no message for whom it allows", change: func(w *World) {
			a := named(Allow(""), "a", 0)
			a.Message = "welcome"
			w.Service.Spec.Authorization = Inline(a)
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, rule: "a", config: "default"},

		// Which config.
		{name: "the first config that matches", change: func(w *World) {
			dynamic(w, config("default", "false"), config("other", `ctx.user.metadata.name == "alice"`), config("default", "true"))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "other"},
		{name: "no config matches", change: func(w *World) { dynamic(w, config("other", "false")) },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "a config that cannot be told", change: func(w *World) { dynamic(w, config("other", "attrs.x == 1"), config("other", "true")) },
			effect: api.Deny, reason: api.ReasonConfig},
		{name: "a config that does not exist", change: func(w *World) { dynamic(w, config("another", "true")) },
			effect: api.Deny, reason: api.ReasonConfig},
		{name: "no config at all", change: func(w *World) { allowAll(w); w.Service.Spec.Config = nil },
			effect: api.Deny, reason: api.ReasonConfig},
		{name: "no config but those of rules", change: func(w *World) { dynamic(w, config("other", "true")); w.Service.Spec.Config = nil },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "other"},
		{name: "no config but those of rules that do not match", change: func(w *World) { dynamic(w, config("other", "false")); w.Service.Spec.Config = nil },
			effect: api.Deny, reason: api.ReasonConfig},
		{name: "a config for a Device", change: func(w *World) {
			dynamic(w, config("other", `ctx.device.status.osType == "LINUX"`))
			w.AddDevice()
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "other"},

		// How much.
		{name: "limits", change: func(w *World) {
			allowAll(w)
			hours, seconds := 2, 3
			w.Service.Spec.Limits = &api.ServiceLimits{Connections: 7, ConnectionsPerSession: 5,
				IdleTimeout: &api.Duration{Hours: &hours}, HalfCloseTimeout: &api.Duration{Seconds: &seconds}, MaxDuration: &api.Duration{Days: &hours}}
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default",
			limits: api.Limits{Connections: 7, ConnectionsPerSession: 5, Idle: 2 * time.Hour, HalfClose: 3 * time.Second, Duration: 48 * time.Hour}},
		{name: "connections that wait", change: func(w *World) {
			allowAll(w)
			w.Service.Spec.Limits = &api.ServiceLimits{Connections: 7, PendingConnections: 3}
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default", limits: api.Limits{Connections: 7, Pending: 3, PendingTimeout: 5 * time.Second}},
		{name: "how long they wait", change: func(w *World) {
			allowAll(w)
			seconds := 2
			w.Service.Spec.Limits = &api.ServiceLimits{Connections: 7, PendingConnections: 3, PendingTimeout: &api.Duration{Seconds: &seconds}}
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default", limits: api.Limits{Connections: 7, Pending: 3, PendingTimeout: 2 * time.Second}},

		// A public port that asks who comes.
		{name: "a Session at a public Service", change: func(w *World) { allowAll(w); w.Service.Spec.IsPublic = true },
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "a Session at a public Service, and no rule matches", change: func(w *World) { w.Service.Spec.IsPublic = true },
			effect: api.Deny, reason: api.ReasonNoPolicyMatch},

		// Nobody asked who it is.
		{name: "anonymous, and open to everyone", change: (*World).Anonymous,
			effect: api.Allow, reason: api.ReasonAnonymous, config: "default", depends: []api.Key{key(api.KindService, "nats.default")}},
		{name: "anonymous, and open to everyone, whatever policies say", change: func(w *World) {
			w.Anonymous()
			w.Service.Spec.Authorization, w.Cluster.Spec.Authorization = Inline(Deny("")), Inline(Deny(""))
		}, effect: api.Allow, reason: api.ReasonAnonymous, config: "default"},
		{name: "anonymous, and a config is chosen", change: func(w *World) {
			dynamic(w, config("default", `has(ctx.user)`), config("other", `ctx.request.ip == "192.0.2.7"`))
			w.Anonymous()
		}, effect: api.Allow, reason: api.ReasonAnonymous, config: "other"},
		{name: "anonymous, and a config that reads the User", change: func(w *World) {
			dynamic(w, config("other", `ctx.user.metadata.name == "alice"`))
			w.Anonymous()
		}, effect: api.Deny, reason: api.ReasonConfig},
		{name: "anonymous at a private Service", change: func(w *World) { w.Anonymous(); w.Service.Spec.IsPublic = false },
			effect: api.Deny, reason: api.ReasonUnauthenticated, depends: []api.Key{key(api.KindService, "nats.default")}},
		{name: "anonymous at a Service that asks who comes", change: func(w *World) { w.Anonymous(); w.Service.Spec.IsAnonymous = false },
			effect: api.Deny, reason: api.ReasonUnauthenticated, depends: []api.Key{key(api.KindService, "nats.default")}},
		{name: "anonymous at a disabled Service", change: func(w *World) { w.Anonymous(); w.Service.Spec.IsDisabled = true },
			effect: api.Deny, reason: api.ReasonUnauthenticated, depends: []api.Key{key(api.KindService, "nats.default")}},
		{name: "anonymous at a Service that does not exist", change: func(w *World) { w.Anonymous(); w.Service = nil },
			effect: api.Deny, reason: api.ReasonUnauthenticated, depends: []api.Key{key(api.KindService, "nats.default")}},
		{name: "anonymous, and no policy", change: policed(Allow("false")),
			effect: api.Deny, reason: api.ReasonNoPolicyMatch},
		{name: "anonymous, by a policy of the Service", change: policed(Allow(`net.isIPInRange(ctx.request.ip, "192.0.2.0/24")`)),
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "anonymous, by a policy of a Namespace above", change: func(w *World) {
			policed(Allow("false"))(w)
			w.Namespace.Spec.Parent = "team"
			w.More = append(w.More, &api.Namespace{Head: head("team", "n2"), Spec: api.NamespaceSpec{Authorization: Inline(Allow(""))}})
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default", depends: []api.Key{key(api.KindNamespace, "team")}},
		{name: "anonymous, by a policy of the cluster", change: func(w *World) {
			policed(Allow(""))(w)
			w.Cluster.Spec.Authorization = Inline(named(Deny(""), "closed", -1))
		}, effect: api.Deny, reason: api.ReasonPolicyMatch, rule: "closed"},
		{name: "anonymous, and policies of others", change: func(w *World) {
			policed(Allow("false"))(w)
			w.User.Spec.Authorization, w.Group.Spec.Authorization, w.Session.Spec.Authorization = Inline(Allow("")), Inline(Allow("")), Inline(Allow(""))
		}, effect: api.Deny, reason: api.ReasonNoPolicyMatch},
		{name: "anonymous, and an ALLOW that reads the User", change: policed(Allow(`ctx.user.metadata.name != "bob"`), Allow(`ctx.session.spec.state != "PENDING"`),
			Allow(`!ctx.groups.exists(g, g.metadata.name == "friends")`), Allow(`ctx.groups == []`), Allow(`ctx.device.spec.state != "PENDING"`)),
			effect: api.Deny, reason: api.ReasonNoPolicyMatch},
		{name: "anonymous, and a DENY that reads the User", change: policed(Allow(""), Deny(`ctx.user.metadata.name == "bob"`)),
			effect: api.Deny, reason: api.ReasonPolicyMatch},
		{name: "anonymous, and a DENY that reads Groups", change: policed(Allow(""), Deny(`ctx.groups.exists(g, g.metadata.name == "enemies")`)),
			effect: api.Deny, reason: api.ReasonPolicyMatch},
		{name: "anonymous, and a guard", change: policed(Allow(`!has(ctx.user) && !has(ctx.groups)`)),
			effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
		{name: "a Session at an open Service, and no rule matches", change: atOpen(),
			effect: api.Allow, reason: api.ReasonAnonymous, config: "default", depends: []api.Key{key(api.KindUser, "alice"), key(api.KindGroup, "friends")}},
		{name: "a Session at an open Service, and a DENY matches", change: atOpen(Deny(`ctx.user.metadata.name == "alice"`)),
			effect: api.Deny, reason: api.ReasonPolicyMatch},
		{name: "a Session at an open Service, and an ALLOW matches", change: atOpen(named(Allow(""), "a", 0)),
			effect: api.Allow, reason: api.ReasonPolicyMatch, rule: "a", config: "default"},
		{name: "a Session at an anonymous Service with policies, and no rule matches", change: func(w *World) {
			atOpen()(w)
			w.Service.Spec.Authorization.EnableAnonymous = true
		}, effect: api.Deny, reason: api.ReasonNoPolicyMatch},
		{name: "an expired Session at an open Service", change: func(w *World) { atOpen()(w); w.Session.Spec.ExpiresAt = Now() },
			effect: api.Deny, reason: api.ReasonSessionExpired},
		{name: "a User without a Group has Groups", change: func(w *World) {
			w.User.Spec.Groups = nil
			w.Service.Spec.Authorization = Inline(Allow(`has(ctx.groups) && ctx.groups == []`))
		}, effect: api.Allow, reason: api.ReasonPolicyMatch, config: "default"},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			st := s.store(t)
			w := NewWorld()
			r.change(w)
			rev := Put(t, st, w.Objects()...)
			d := s.open(t, st, Verifier{})
			await(t, d, rev)
			got := decide(t, d, w.Request)
			if got.Effect != r.effect || got.Reason != r.reason || got.Message != r.message {
				t.Errorf("%s %s %q (%s), want %s %s %q", got.Effect, got.Reason, got.Message, got.Words, r.effect, r.reason, r.message)
			}
			if r.rule != "" && (got.Rule == nil || got.Rule.Name != r.rule || got.Rule.Effect != r.effect) {
				t.Errorf("rule %+v, want %q", got.Rule, r.rule)
			}
			if (got.Rule != nil) != (r.reason == api.ReasonPolicyMatch) {
				t.Errorf("rule %+v for the reason %s", got.Rule, got.Reason)
			}
			if got.Config == nil && r.config != "" || got.Config != nil && got.Config.Name != r.config {
				t.Errorf("config %+v, want %q", got.Config, r.config)
			}
			if got.Limits != r.limits {
				t.Errorf("limits %+v, want %+v", got.Limits, r.limits)
			}
			for _, k := range r.depends {
				if !slices.Contains(got.DependsOn, k) {
					t.Errorf("DependsOn %v lacks %v", got.DependsOn, k)
				}
			}
			if got.Allowed() {
				checkSubject(t, w, got)
			}
		})
	}
}

// checkSubject checks that an ALLOW says who and what, and until when.
func checkSubject(t *testing.T, w *World, got api.Decision) {
	want := api.Subject{
		Service: refOf(w.Service), Mode: w.Service.Spec.Mode,
		Region: &api.Ref{APIVersion: api.Version, Kind: api.KindRegion, Name: "default", UID: w.Cluster.Status.RegionUID},
	}
	if w.Service.Spec.Mode != api.ModeAPI {
		want.Namespace = refOf(w.Namespace)
	}
	var until time.Time
	if want.IsAnonymous = w.Request.Evidence.Kind == api.EvidenceAnonymous; !want.IsAnonymous {
		want.Session, want.User, until = refOf(w.Session), refOf(w.User), w.Session.Spec.ExpiresAt
		for _, o := range w.More {
			if o.Header().Kind == api.KindDevice {
				want.Device = refOf(o)
			}
		}
	}
	if !reflect.DeepEqual(got.Subject, want) {
		t.Errorf("subject %+v, want %+v", got.Subject, want)
	}
	if !got.Until.Equal(until) {
		t.Errorf("until %v, want the Session's end %v", got.Until, until)
	}
}

func refOf(o api.Object) *api.Ref {
	r := o.Header().Ref()
	return &r
}
