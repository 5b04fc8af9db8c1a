package upstream

import (
	"encoding/json"
	"testing"
	"time"

	"cardea/api"
	"cardea/upstream/balance"
)

// A process that takes the place of another one sends nobody to an endpoint that the
// other knew to be unhealthy, or had ejected.
func TestRecall(t *testing.T) {
	health := &api.UpstreamHealth{Check: new(api.HealthProbe), Ejection: &api.Ejection{Failures: 1}}
	to := api.Destination{Service: "pg.default", Object: api.Key{Kind: api.KindService, Name: "pg.default"}, Config: &api.ServiceConfig{
		Name: api.DefaultConfig, Upstream: api.Upstream{Health: health, Loadbalance: &api.Loadbalance{Endpoints: []api.UpstreamEndpoint{
			{URL: "tcp://192.0.2.1:1"}, {URL: "tcp://192.0.2.2:1"}, {URL: "tcp://192.0.2.3:1"}, {URL: "tcp://192.0.2.4:1"},
		}}},
	}}
	old := newDialer()
	p := old.place(&to)
	if _, err := old.configure(p, to.Config); err != nil {
		t.Fatal(err)
	}
	for i, target := range p.set.Targets() {
		p.set.Judge(target, i != 0, "it says no", 1, 1)
	}
	p.set.Targets()[1].Failed("it was refused")

	text, err := json.Marshal(old.Memories()) // it goes from process to process
	if err != nil {
		t.Fatal(err)
	}
	var memories []Memory
	if err := json.Unmarshal(text, &memories); err != nil {
		t.Fatal(err)
	}
	next := newDialer()
	next.Recall(memories)
	p = next.place(&to)
	if _, err := next.configure(p, to.Config); err != nil {
		t.Fatal(err)
	}
	for i, want := range []api.HealthState{api.HealthUnhealthy, api.HealthEjected, api.HealthHealthy, api.HealthHealthy} {
		if s := next.Endpoints(to.Object)[i]; s.State != want {
			t.Errorf("%s is %s (%s), want %s", s.Address, s.State, s.Words, want)
		}
	}
	for range 20 {
		target, _ := p.set.Take(time.Now(), new(balance.Query))
		if target == nil || target.Addr.String() == "192.0.2.1:1" || target.Addr.String() == "192.0.2.2:1" {
			t.Fatalf("%v is taken", target)
		}
		target.Release(1, false)
	}
}
