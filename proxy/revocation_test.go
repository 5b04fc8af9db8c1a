package proxy_test

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/mode/tcp"
	"cardea/policy/local"
	"cardea/policy/policytest"
	"cardea/proxy"
	relaycopy "cardea/relay/copy"
	"cardea/relay/relaytest"
	"cardea/store"
	"cardea/store/memory"
)

// A realm is a store, the Decider over it and a Gate that asks that, with these
// connections, as SESSION/SERVICE:
//
//	ann-1/a  ann-1/b  ann-2/a  bob-1/a  bob-1/b  /open (without a name)
//	/TCPMapping/default/db (by the routing table)
//
// ann, of Group ops, and bob, of dev, may reach a by a Policy of that name, and b
// by what their Groups allow. ann-1 is bound to the Device laptop. Which config of
// a somebody gets hangs on the Group.
type realm struct {
	t     *testing.T
	store store.Store
	gate  *proxy.Gate

	a, b, open       *api.Service
	db               *api.TCPMapping
	cluster          *api.ClusterConfig
	namespace        *api.Namespace
	policy           *api.Policy
	ops, dev         *api.Group
	ann, bob         *api.User
	ann1, ann2, bob1 *api.Session
	laptop           *api.Device
}

func everything() []string {
	return []string{"/TCPMapping/default/db", "/open", "ann-1/a", "ann-1/b", "ann-2/a", "bob-1/a", "bob-1/b"}
}

func head(name string) api.Head {
	return api.Head{Metadata: api.Metadata{Name: name, UID: "uid-" + name}}
}

func newRealm(t *testing.T) *realm {
	plain := func(name string) *api.Service {
		return &api.Service{Head: head(name + ".default"), Spec: api.ServiceSpec{
			Mode: api.ModeTCP, Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://192.0.2.1:1"}},
		}}
	}
	group := func(name string) *api.Group {
		return &api.Group{Head: head(name), Spec: api.GroupSpec{Authorization: policytest.Inline(policytest.Allow(`ctx.service.metadata.name == "b.default"`))}}
	}
	user := func(name, group string) *api.User {
		return &api.User{Head: head(name), Spec: api.UserSpec{Type: api.UserHuman, Groups: []string{group}}}
	}
	session := func(name string, u *api.User) *api.Session {
		return &api.Session{Head: head(name), Spec: api.SessionSpec{ExpiresAt: time.Now().Add(24 * time.Hour)},
			Status: api.SessionStatus{Type: "CLIENT", UserRef: u.Ref()}}
	}
	r := &realm{t: t, a: plain("a"), b: plain("b"), open: plain("open"), ops: group("ops"), dev: group("dev"), ann: user("ann", "ops"), bob: user("bob", "dev")}
	r.a.Spec.Authorization = policytest.Named("a")
	r.a.Spec.DynamicConfig = &api.DynamicConfig{
		Configs: []api.ServiceConfig{{Name: "host-1", Upstream: api.Upstream{URL: "tcp://192.0.2.2:1"}}},
		Rules:   []api.ConfigRule{{Condition: api.Condition{Match: `"ops" in ctx.user.spec.groups`}, ConfigName: "host-1"}},
	}
	r.open.Spec.IsPublic, r.open.Spec.IsAnonymous, r.open.Spec.Port = true, true, 4222
	port := 5432
	r.db = &api.TCPMapping{Head: head("db"), Spec: api.TCPMappingSpec{Port: &port, Service: "db"}}
	r.db.Metadata.Namespace = "default"
	r.db.Default()
	r.cluster, r.namespace = &api.ClusterConfig{Head: head(api.ClusterConfigName)}, &api.Namespace{Head: head("default")}
	r.policy = policytest.Policy("a", policytest.Allow(""))
	r.ann1, r.ann2, r.bob1 = session("ann-1", r.ann), session("ann-2", r.ann), session("bob-1", r.bob)
	r.laptop = &api.Device{Head: head("laptop"), Spec: api.DeviceSpec{State: api.DeviceActive}, Status: api.DeviceStatus{UserRef: r.ann.Ref(), OSType: api.OSLinux}}
	ref := r.laptop.Ref()
	r.ann1.Status.DeviceRef = &ref

	r.store = memory.New()
	t.Cleanup(func() { r.store.Close() })
	r.put(r.cluster, r.namespace, r.db,
		r.a, r.b, r.open, r.policy, r.ops, r.dev, r.ann, r.bob, r.ann1, r.ann2, r.bob1, r.laptop)

	d := &local.Decider{Store: r.store, Identity: policytest.Verifier{}, Log: slog.New(slog.DiscardHandler)}
	var upstreams, clients []net.Conn
	r.gate = proxy.New(proxy.Rooms{
		Decider: d, Audit: nowhere{}, Refuse: func(api.Refusal) {}, Engine: relaycopy.New(),
		Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
		Dial: func(context.Context, api.Destination) (net.Conn, api.DialReport, error) {
			near, far := relaytest.Pipe()
			upstreams = append(upstreams, far)
			return near, api.DialReport{}, nil
		},
	})
	deciding, stopDeciding := context.WithCancel(t.Context())
	gating, stopGating := context.WithCancel(t.Context())
	decided, gated := make(chan struct{}), make(chan struct{})
	go func() { d.Run(deciding); close(decided) }()
	if err := d.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	go func() { r.gate.Run(gating); close(gated) }()
	t.Cleanup(func() {
		stopGating()
		<-gated
		stopDeciding()
		<-decided
		for _, c := range append(upstreams, clients...) {
			c.Close()
		}
	})
	synctest.Wait()
	for _, name := range everything() {
		session, service, _ := strings.Cut(name, "/")
		near, far := relaytest.Pipe()
		clients = append(clients, far)
		a := api.Arrival{Conn: near, Service: service + ".default", Evidence: policytest.Evidence("uid-" + session)}
		if strings.HasPrefix(service, api.KindTCPMapping) {
			a.Service, a.Route = "", &api.Routed{Object: r.db.Key(), Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://db:5432"}}}
		}
		if session == "" {
			a.Evidence, a.Facts = api.Evidence{Kind: api.EvidenceAnonymous}, api.Facts{IP: "192.0.2.9", Tunnel: "public"}
		}
		r.gate.Arrive(a)
		synctest.Wait()
	}
	if got := r.live(); !slices.Equal(got, everything()) {
		t.Fatalf("live at the beginning: %v", got)
	}
	return r
}

func (r *realm) put(objects ...api.Object) { policytest.Put(r.t, r.store, objects...) }

func (r *realm) delete(o api.Object) {
	if _, err := r.store.Update(r.t.Context(), "test", func(tx store.Tx) error { return tx.Delete(o.Header().Key()) }); err != nil {
		r.t.Fatal(err)
	}
}

// live returns what is live, sorted.
func (r *realm) live() []string {
	var list []string
	for _, c := range r.gate.List() {
		list = append(list, c.Session+"/"+strings.TrimSuffix(c.Service, ".default"))
	}
	slices.Sort(list)
	return list
}

// A change cuts exactly what hangs on it and is not allowed any more, at once.
func TestAChangeCutsExactlyWhatHangsOnIt(t *testing.T) {
	tests := []struct {
		name   string
		change func(*realm)
		cut    []string
	}{
		{"a User is disabled", func(r *realm) { r.ann.Spec.IsDisabled = true; r.put(r.ann) }, []string{"ann-1/a", "ann-1/b", "ann-2/a"}},
		{"a User is deleted", func(r *realm) { r.delete(r.bob) }, []string{"bob-1/a", "bob-1/b"}},
		{"a User leaves a Group, and gets another config", func(r *realm) { r.ann.Spec.Groups = []string{"dev"}; r.put(r.ann) }, []string{"ann-1/a", "ann-2/a"}},
		{"a Group allows no more", func(r *realm) { r.dev.Spec.Authorization = api.Authorization{}; r.put(r.dev) }, []string{"bob-1/b"}},
		{"a Group is deleted", func(r *realm) { r.delete(r.dev) }, []string{"bob-1/b"}},
		{"a Policy denies", func(r *realm) {
			r.policy.Spec.Rules = append(r.policy.Spec.Rules, policytest.Deny(`ctx.user.metadata.name == "bob"`))
			r.put(r.policy)
		}, []string{"bob-1/a"}},
		{"a Policy is deleted", func(r *realm) { r.delete(r.policy) }, []string{"ann-1/a", "ann-2/a", "bob-1/a"}},
		{"a Service names no Policy any more", func(r *realm) { r.a.Spec.Authorization = api.Authorization{}; r.put(r.a) }, []string{"ann-1/a", "ann-2/a", "bob-1/a"}},
		{"a Service is deleted", func(r *realm) { r.delete(r.b) }, []string{"ann-1/b", "bob-1/b"}},
		{"a Service is disabled", func(r *realm) { r.b.Spec.IsDisabled = true; r.put(r.b) }, []string{"ann-1/b", "bob-1/b"}},
		{"a Service is not open to everybody any more", func(r *realm) { r.open.Spec.IsPublic, r.open.Spec.IsAnonymous = false, false; r.put(r.open) }, []string{"/open"}},
		{"a Service asks its policies about everybody", func(r *realm) { r.open.Spec.Authorization.EnableAnonymous = true; r.put(r.open) }, []string{"/open"}},
		{"a Session is deleted", func(r *realm) { r.delete(r.ann2) }, []string{"ann-2/a"}},
		{"a Session is rejected", func(r *realm) { r.bob1.Spec.State = api.SessionRejected; r.put(r.bob1) }, []string{"bob-1/a", "bob-1/b"}},
		{"a Device is rejected", func(r *realm) { r.laptop.Spec.State = api.DeviceRejected; r.put(r.laptop) }, []string{"ann-1/a", "ann-1/b"}},
		{"a Device is deleted", func(r *realm) { r.delete(r.laptop) }, []string{"ann-1/a", "ann-1/b"}},
		{"a rule chooses another config for some", func(r *realm) {
			r.a.Spec.DynamicConfig.Rules[0].Condition.Match = `"dev" in ctx.user.spec.groups`
			r.put(r.a)
		}, []string{"ann-1/a", "ann-2/a", "bob-1/a"}},
		{"a config changes its content, and keeps its name", func(r *realm) {
			r.a.Spec.DynamicConfig.Configs[0].Upstream.URL, r.a.Spec.DynamicConfig.Configs[0].Parent = "tcp://192.0.2.3:1", api.DefaultConfig
			r.put(r.a)
		}, nil},
		{"the cluster denies an address", func(r *realm) {
			r.cluster.Spec.Authorization = policytest.Inline(policytest.Deny(`ctx.request.ip == "192.0.2.9"`))
			r.put(r.cluster)
		}, []string{"/TCPMapping/default/db"}},
		{"a Namespace denies a TCPMapping", func(r *realm) {
			r.namespace.Spec.Authorization = policytest.Inline(policytest.Deny(`ctx.service.metadata.name == "db.default"`))
			r.put(r.namespace)
		}, []string{"/TCPMapping/default/db"}},
		{"a TCPMapping changes", func(r *realm) { r.db.Spec.Service = "other"; r.put(r.db) }, nil},
		{"a TCPMapping is deleted", func(r *realm) { r.delete(r.db) }, nil},
		{"a TCPMapping is deleted, and made again", func(r *realm) {
			r.delete(r.db)
			r.db.Metadata.UID = "another"
			r.put(r.db)
		}, nil},
		{"a TCPMapping is deleted that cuts", func(r *realm) {
			r.db.Metadata.Annotations = map[string]string{api.AnnotationPrefix + api.AnnotationOnRemoval: "cut"}
			r.put(r.db)
			r.delete(r.db)
		}, []string{"/TCPMapping/default/db"}},
		{"what is still allowed", func(r *realm) { r.ann.Spec.Email = "ann@example.com"; r.put(r.ann, r.policy, r.a, r.laptop) }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRealm(t)
				tt.change(r)
				synctest.Wait()
				want := slices.DeleteFunc(everything(), func(s string) bool { return slices.Contains(tt.cut, s) })
				if got := r.live(); !slices.Equal(got, want) {
					t.Errorf("live are %v, want %v", got, want)
				}
			})
		})
	}
}

// Time itself cuts: nobody writes anything.
func TestTimeCuts(t *testing.T) {
	tests := []struct {
		name   string
		change func(r *realm, at time.Time)
		cut    []string
		within time.Duration
	}{
		{"a condition turns false", func(r *realm, at time.Time) {
			r.policy.Spec.Rules[0] = policytest.Allow(`ctx.user.metadata.name == "bob" || now() < timestamp("` + at.UTC().Format(time.RFC3339) + `")`)
			r.put(r.policy)
		}, []string{"ann-1/a", "ann-2/a"}, time.Second},
		{"a TCPMapping that was deleted is drained", func(r *realm, at time.Time) {
			r.cluster.Spec.Routing.DrainTime = &api.Duration{Hours: new(1)}
			r.put(r.cluster)
			r.delete(r.db)
			synctest.Wait()
			r.cluster.Spec.Routing.DrainTime = nil // 10 minutes
			r.put(r.cluster)
		}, []string{"/TCPMapping/default/db"}, 10 * time.Millisecond},
		{"a Session expires", func(r *realm, at time.Time) { r.bob1.Spec.ExpiresAt = at; r.put(r.bob1) }, []string{"bob-1/a", "bob-1/b"}, 10 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRealm(t)
				at := time.Now().Add(10 * time.Minute)
				tt.change(r, at)
				time.Sleep(time.Until(at) - time.Millisecond)
				synctest.Wait()
				if got := r.live(); !slices.Equal(got, everything()) {
					t.Errorf("before its time: live are %v", got)
				}
				time.Sleep(time.Millisecond + tt.within)
				synctest.Wait()
				want := slices.DeleteFunc(everything(), func(s string) bool { return slices.Contains(tt.cut, s) })
				if got := r.live(); !slices.Equal(got, want) {
					t.Errorf("after it: live are %v, want %v", got, want)
				}
			})
		})
	}
}
