package ingress

import (
	"testing"
	"time"

	"cardea/api"
)

// A wildcard that covers the cluster's own domain takes none of its names: else one
// Service could take the API's, and nobody could take it back.
func TestWildcardOverOwnDomain(t *testing.T) {
	s := &api.Service{Head: api.Head{Metadata: api.Metadata{Name: "web.default"}}, Spec: api.ServiceSpec{
		Mode: api.ModeTCP, Port: 443, IsPublic: true, IsAnonymous: true, IsTLS: true,
		Public: &api.ServicePublic{Hosts: []string{"*.example.com"}},
		Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://up:1"}},
	}}
	s.Default()
	table := Compile(Input{Services: []*api.Service{s}, Domain: "access.example.com"}, nil, time.Unix(1_800_000_000, 0))
	r := &Router{}
	r.table.Store(table)
	for name, want := range map[string]bool{
		"www.example.com": true, "access.example.com": false, "api.access.example.com": false, "gateway.access.example.com": false,
		"web.default.svc.access.example.com": true, "other.default.svc.access.example.com": false, "notaccess.example.com": true,
	} {
		if _, ok := r.PublicName(name); ok != want {
			t.Errorf("%s: %v", name, ok)
		}
		if name == "web.default.svc.access.example.com" {
			continue // its row takes *.example.com, and this name is the cluster's
		}
		if a := table.Ask(api.RouteQuestion{Port: 443, SNI: name}); (a.Refused == "") != want {
			t.Errorf("%s: %+v", name, a)
		}
	}
}
