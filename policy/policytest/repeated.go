package policytest

import (
	"testing"
	"time"

	"cardea/api"
)

// repeated checks that an answer which was given before is not given again when
// something has changed: an Object of any kind that it was made from, or the
// request.
func (s suite) repeated(t *testing.T) {
	later := func(r *api.Request) { r.Now = r.Now.Add(2 * time.Hour) }
	rows := []struct {
		name   string
		change func(w *World, d *api.Device, p *api.Policy)
		ask    func(*api.Request)
		want   api.ReasonType
	}{
		{name: "nothing", want: api.ReasonPolicyMatch},
		{name: "the ClusterConfig", change: func(w *World, _ *api.Device, _ *api.Policy) { w.Cluster.Spec.Authorization = Inline(Deny("")) }, want: api.ReasonPolicyMatch},
		{name: "the Namespace", change: func(w *World, _ *api.Device, _ *api.Policy) { w.Namespace.Spec.Authorization = Inline(Deny("")) }, want: api.ReasonPolicyMatch},
		{name: "the Service", change: func(w *World, _ *api.Device, _ *api.Policy) { w.Service.Spec.IsDisabled = true }, want: api.ReasonServiceDisabled},
		{name: "the User", change: func(w *World, _ *api.Device, _ *api.Policy) { w.User.Spec.IsDisabled = true }, want: api.ReasonUserDisabled},
		{name: "the Groups of the User", change: func(w *World, _ *api.Device, _ *api.Policy) { w.User.Spec.Groups = nil }, want: api.ReasonNoPolicyMatch},
		{name: "the Group", change: func(w *World, _ *api.Device, _ *api.Policy) { w.Group.Spec.Authorization = Inline(Deny("")) }, want: api.ReasonPolicyMatch},
		{name: "the Session", change: func(w *World, _ *api.Device, _ *api.Policy) { w.Session.Spec.State = api.SessionRejected }, want: api.ReasonSessionNotActive},
		{name: "the Device", change: func(_ *World, d *api.Device, _ *api.Policy) { d.Spec.State = api.DeviceRejected }, want: api.ReasonDeviceNotActive},
		{name: "the Policy", change: func(_ *World, _ *api.Device, p *api.Policy) { p.Spec.IsDisabled = true }, want: api.ReasonNoPolicyMatch},
		{name: "the instant", ask: later, want: api.ReasonSessionExpired},
		{name: "the key", ask: func(r *api.Request) { r.Evidence.Data = append(r.Evidence.Data, "/ab"...) }, want: api.ReasonKeyMismatch},
		{name: "the Session that asks", ask: func(r *api.Request) { r.Session = "nobody" }, want: api.ReasonNoSession},
		{name: "the Service that is asked for", ask: func(r *api.Request) { r.Service = "other.default" }, want: api.ReasonNoService},
		{name: "who asks", ask: func(r *api.Request) { r.Evidence = api.Evidence{Kind: api.EvidenceAnonymous} }, want: api.ReasonUnauthenticated},
		{name: "whether anybody does", ask: func(r *api.Request) { r.Evidence = api.Evidence{} }, want: api.ReasonUnauthenticated},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			st := s.store(t)
			w := NewWorld()
			device, policy := w.AddDevice(), Policy("one", Allow(`"friends" in ctx.user.spec.groups`))
			w.Group.Spec.Authorization = Named("one")
			w.More = append(w.More, policy)
			d := s.open(t, st, Verifier{})
			await(t, d, Put(t, st, w.Objects()...))
			var before api.Decision
			for range 3 {
				got := decide(t, d, w.Request)
				if !got.Allowed() || got.ID == before.ID || before.ID != "" && !same(got, before) {
					t.Fatalf("to begin with: %+v, and before %+v", got, before)
				}
				before = got
			}
			if r.change != nil {
				r.change(w, device, policy)
				rev := Put(t, st, w.Objects()...)
				await(t, d, rev)
				w.Request.AtLeast = rev
			}
			if r.ask != nil {
				r.ask(&w.Request)
			}
			for range 2 {
				got := decide(t, d, w.Request)
				if got.Reason != r.want || got.Allowed() != (r.name == "nothing") || got.Revision.Compare(w.Request.AtLeast) < 0 {
					t.Errorf("%s %s (%s) at %v", got.Effect, got.Reason, got.Words, got.Revision)
				}
			}
		})
	}
}
