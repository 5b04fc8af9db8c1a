package policytest

import (
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/store"
)

// routes checks what is decided about a TCPMapping: nobody is asked who he is, and a
// DENY of the cluster or of the Namespace of its name refuses.
func (s suite) routes(t *testing.T) {
	rows := []struct {
		name   string
		change func(*World, *api.TCPMapping)
		effect api.Effect
		reason api.ReasonType
	}{
		{"no policy", func(*World, *api.TCPMapping) {}, api.Allow, api.ReasonAnonymous},
		{"without evidence", func(w *World, _ *api.TCPMapping) { w.Request.Evidence = api.Evidence{} }, api.Allow, api.ReasonAnonymous},
		{"without our Namespace", func(w *World, _ *api.TCPMapping) { w.Namespace = nil }, api.Allow, api.ReasonAnonymous},
		{"a DENY of the cluster", func(w *World, _ *api.TCPMapping) { w.Cluster.Spec.Authorization = Inline(Deny("")) }, api.Deny, api.ReasonPolicyMatch},
		{"a DENY of the Namespace", func(w *World, _ *api.TCPMapping) {
			w.Namespace.Spec.Authorization = Inline(Deny(`ctx.request.ip == "192.0.2.7"`))
		}, api.Deny, api.ReasonPolicyMatch},
		{"a DENY of a Namespace above", func(w *World, _ *api.TCPMapping) {
			w.Namespace.Spec.Parent = "team"
			w.More = append(w.More, &api.Namespace{Head: head("team", "n2"), Spec: api.NamespaceSpec{Authorization: Inline(Deny(""))}})
		}, api.Deny, api.ReasonPolicyMatch},
		{"a DENY of another Namespace", func(w *World, _ *api.TCPMapping) {
			w.More = append(w.More, &api.Namespace{Head: head("other", "n2"), Spec: api.NamespaceSpec{Authorization: Inline(Deny(""))}})
		}, api.Allow, api.ReasonAnonymous},
		{"a DENY that does not match", func(w *World, _ *api.TCPMapping) {
			w.Cluster.Spec.Authorization = Inline(Deny(`ctx.request.ip == "192.0.2.8"`))
		}, api.Allow, api.ReasonAnonymous},
		{"a DENY that reads the User", func(w *World, _ *api.TCPMapping) {
			w.Cluster.Spec.Authorization = Inline(Deny(`ctx.user.metadata.name == "bob"`))
		}, api.Deny, api.ReasonPolicyMatch},
		{"a DENY that reads the User, and a guard", func(w *World, _ *api.TCPMapping) {
			w.Cluster.Spec.Authorization = Inline(Deny(`has(ctx.user) && ctx.user.metadata.name == "bob"`))
		}, api.Allow, api.ReasonAnonymous},
		{"an ALLOW", func(w *World, _ *api.TCPMapping) { w.Cluster.Spec.Authorization = Inline(Allow("")) }, api.Allow, api.ReasonPolicyMatch},
		{"what rules see", func(w *World, m *api.TCPMapping) {
			m.Metadata.Labels = map[string]string{"team": "red"}
			w.Cluster.Spec.Authorization = Inline(Deny(""), api.Rule{Effect: api.Allow, Priority: -1, Condition: api.Condition{
				Match: `ctx.service.metadata.name == "db.default" && ctx.service.metadata.labels.team == "red" && ctx.service.spec.mode == "TCP"` +
					` && ctx.service.spec.isPublic && ctx.service.spec.isAnonymous && ctx.service.spec.port == 5432 && ctx.namespace.metadata.name == "default"`}})
		}, api.Allow, api.ReasonPolicyMatch},
		{"policies of our Service of that name", func(w *World, _ *api.TCPMapping) {
			w.Service.Metadata.Name, w.Service.Spec.Authorization = "db.default", Inline(Deny(""))
		}, api.Allow, api.ReasonAnonymous},
		{"no namespace", func(w *World, m *api.TCPMapping) {
			m.Metadata.Namespace, w.Request.Route.Namespace = "", ""
			w.Namespace.Spec.Authorization = Inline(Deny(""))
		}, api.Deny, api.ReasonPolicyMatch},
		{"what does not exist", func(w *World, _ *api.TCPMapping) { w.Request.Route.Name = "other" }, api.Deny, api.ReasonNoRoute},
		{"that of another namespace", func(w *World, _ *api.TCPMapping) { w.Request.Route.Namespace = "other" }, api.Deny, api.ReasonNoRoute},
		{"another kind", func(w *World, _ *api.TCPMapping) { w.Request.Route.Kind = api.KindHost }, api.Deny, api.ReasonNoRoute},
		{"another group", func(w *World, _ *api.TCPMapping) { w.Request.Route.Group = api.GroupCore }, api.Deny, api.ReasonNoRoute},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			st := s.store(t)
			w := NewWorld()
			m := w.Mapping("db")
			r.change(w, m)
			d := s.open(t, st, Verifier{})
			await(t, d, Put(t, st, w.Objects()...))
			got := decide(t, d, w.Request)
			if got.Effect != r.effect || got.Reason != r.reason || got.Config != nil || got.Limits != (api.Limits{}) || !got.Until.IsZero() {
				t.Errorf("%s %s (%s) until %v, want %s %s", got.Effect, got.Reason, got.Words, got.Until, r.effect, r.reason)
			}
			for _, k := range []api.Key{*w.Request.Route, key(api.KindClusterConfig, api.ClusterConfigName)} {
				if !slices.Contains(got.DependsOn, k) {
					t.Errorf("DependsOn %v lacks %v", got.DependsOn, k)
				}
			}
			want := api.Subject{IsAnonymous: true, Region: &api.Ref{APIVersion: api.Version, Kind: api.KindRegion, Name: "default", UID: "r1"}}
			if r.reason != api.ReasonNoRoute {
				want.Service, want.Mode = refOf(m), api.ModeTCP
				if w.Namespace != nil {
					want.Namespace = refOf(w.Namespace)
				}
				if k := key(api.KindNamespace, "default"); !slices.Contains(got.DependsOn, k) {
					t.Errorf("DependsOn %v lacks %v", got.DependsOn, k)
				}
			}
			if !reflect.DeepEqual(got.Subject, want) {
				t.Errorf("subject %+v, want %+v", got.Subject, want)
			}
			if again := decide(t, d, w.Request); !same(got, again) {
				t.Errorf("asked again: %+v", again)
			}
		})
	}
}

// drain checks how long the connections of a TCPMapping outlast it. Time is that of
// the bubble: commits are stamped with it.
func (s suite) drain(t *testing.T) {
	minutes := 30
	long := &api.Duration{Minutes: &minutes}
	in := func(name string, cut bool, f func(t *testing.T, w *World, ask func() api.Decision, put, remove func(...api.Object))) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := s.store(t)
				w := NewWorld()
				if m := w.Mapping("db"); cut {
					m.Metadata.Annotations = map[string]string{api.AnnotationPrefix + api.AnnotationOnRemoval: "cut"}
				}
				d := s.open(t, st, Verifier{})
				ask := func() api.Decision {
					w.Request.Now = time.Now()
					return decide(t, d, w.Request)
				}
				put := func(o ...api.Object) { await(t, d, Put(t, st, o...)) }
				put(w.Objects()...)
				if got := ask(); !got.Allowed() || !got.Until.IsZero() {
					t.Fatalf("to begin with: %+v", got)
				}
				f(t, w, ask, put, func(list ...api.Object) {
					rev, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
						for _, o := range list {
							if err := tx.Delete(o.Header().Key()); err != nil {
								return err
							}
						}
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
					await(t, d, rev)
				})
			})
		})
	}
	lasts := func(t *testing.T, got api.Decision, d time.Duration) {
		t.Helper()
		if !got.Allowed() || got.Until.Sub(time.Now()).Round(time.Second) != d || got.Subject.Service == nil {
			t.Errorf("%s %s until %v, which is in %v; want %v", got.Effect, got.Reason, got.Until, time.Until(got.Until), d)
		}
	}
	over := func(t *testing.T, got api.Decision) {
		t.Helper()
		if got.Allowed() || got.Reason != api.ReasonRouteRemoved {
			t.Errorf("%s %s", got.Effect, got.Reason)
		}
	}
	in("ten minutes", false, func(t *testing.T, w *World, ask func() api.Decision, _, remove func(...api.Object)) {
		remove(w.More[0])
		lasts(t, ask(), 10*time.Minute)
		time.Sleep(9 * time.Minute)
		lasts(t, ask(), time.Minute)
		time.Sleep(time.Minute)
		over(t, ask())
	})
	in("as long as the ClusterConfig says", false, func(t *testing.T, w *World, ask func() api.Decision, put, remove func(...api.Object)) {
		remove(w.More[0])
		w.Cluster.Spec.Routing.DrainTime = long
		put(w.Cluster)
		lasts(t, ask(), 30*time.Minute)
		remove(w.Cluster)
		lasts(t, ask(), 10*time.Minute)
	})
	in("not at all", true, func(t *testing.T, w *World, ask func() api.Decision, put, remove func(...api.Object)) {
		remove(w.More[0])
		over(t, ask())
		put(w.More[0])
		if got := ask(); !got.Allowed() || !got.Until.IsZero() {
			t.Errorf("made again: %+v", got)
		}
	})
	in("until it is made again", false, func(t *testing.T, w *World, ask func() api.Decision, put, remove func(...api.Object)) {
		remove(w.More[0])
		again := api.Clone(w.More[0])
		again.Header().Metadata.UID = "another"
		put(again)
		if got := ask(); !got.Allowed() || !got.Until.IsZero() || got.Subject.Service.UID != "another" {
			t.Errorf("made again: %+v", got)
		}
		remove(again)
		lasts(t, ask(), 10*time.Minute)
	})
	in("and refused meanwhile", false, func(t *testing.T, w *World, ask func() api.Decision, put, remove func(...api.Object)) {
		remove(w.More[0])
		lasts(t, ask(), 10*time.Minute)
		w.Cluster.Spec.Authorization = Inline(Deny(""))
		put(w.Cluster)
		if got := ask(); got.Allowed() || got.Reason != api.ReasonPolicyMatch {
			t.Errorf("%s %s", got.Effect, got.Reason)
		}
	})
	in("one of very many", false, func(t *testing.T, w *World, ask func() api.Decision, put, remove func(...api.Object)) {
		var many []api.Object
		for i := range 3000 {
			m := api.Clone(w.More[0])
			h := m.Header()
			h.Metadata.Name = string(rune('a'+i%26)) + "-" + time.Duration(i).String()
			h.Metadata.UID = h.Metadata.Name
			many = append(many, m)
		}
		put(many...)
		remove(w.More[0])
		remove(many[:1500]...)
		lasts(t, ask(), 10*time.Minute)
		time.Sleep(11 * time.Minute)
		over(t, ask())
		remove(many[1500:]...)
		if got := ask(); got.Allowed() {
			t.Errorf("%s %s", got.Effect, got.Reason)
		}
	})
}
