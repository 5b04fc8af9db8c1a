package api

import (
	"slices"
	"strings"
	"testing"
)

func TestServing(t *testing.T) {
	port := 5433
	service := func(change func(*Service)) *Service {
		s := &Service{Spec: ServiceSpec{Mode: ModeTCP, Config: &ServiceConfig{Upstream: Upstream{URL: "tcp://127.0.0.1:5432", User: "devices"}}}}
		s.Metadata.Name = "db"
		if change != nil {
			change(s)
		}
		s.Default()
		return s
	}
	several := func(list ...UpstreamEndpoint) func(*Service) {
		return func(s *Service) {
			s.Spec.Config.Upstream = Upstream{User: s.Spec.Config.Upstream.User, Loadbalance: &Loadbalance{Endpoints: list}}
		}
	}
	tests := []struct {
		name   string
		change func(*Service)
		want   string // "" if it is accepted
	}{
		{"one URL, of the device's own loopback", nil, ""},
		{"a link-local address", func(s *Service) { s.Spec.Config.Upstream.URL = "tls://169.254.169.254:443" }, ""},
		{"endpoints", several(UpstreamEndpoint{URL: "tcp://127.0.0.1:5432"}, UpstreamEndpoint{URL: "tcp://127.0.0.1:5432", User: "laptops"}), ""},
		{"endpoints without a User of their own", several(UpstreamEndpoint{URL: "tcp://a:5432"}, UpstreamEndpoint{URL: "tcp://b:5432"}),
			"/spec/config/upstream/user must not be there for two endpoints"},
		{"a User twice", several(UpstreamEndpoint{URL: "tcp://a:5432", User: "laptops"}, UpstreamEndpoint{URL: "tcp://b:5432", User: "laptops"}),
			"/spec/config/upstream/loadbalance/endpoints/1/user must not be there for two endpoints"},
		{"not a name", func(s *Service) { s.Spec.Config.Upstream.User = "Bob Smith" }, "/spec/config/upstream/user must name a User"},
		{"SRV records", func(s *Service) { s.Spec.Port, s.Spec.Config.Upstream.URL = port, "tcp://_pg._tcp.db" }, "/spec/config/upstream/url must be HOST:PORT"},
		{"families", func(s *Service) { s.Spec.Config.Upstream.Families = []IPFamily{IPv6} }, "/spec/config/upstream/families must be left out with user"},
		{"a check", func(s *Service) { s.Spec.Config.Upstream.Health = &UpstreamHealth{Check: &HealthProbe{}} }, ""},
		{"a check of another port", func(s *Service) { s.Spec.Config.Upstream.Health = &UpstreamHealth{Check: &HealthProbe{Port: 80}} },
			"/spec/config/upstream/health/check/port must be left out with user"},
		{"cuts by a check", func(s *Service) {
			s.Spec.Config.Upstream.Health = &UpstreamHealth{Check: &HealthProbe{}, CloseOnUnhealthy: true}
		}, ""},
		{"datagrams", func(s *Service) { s.Spec.Mode, s.Spec.Config.Upstream.URL = ModeUDP, "udp://127.0.0.1:53" }, ""},
		{"a check of datagrams", func(s *Service) {
			s.Spec.Mode, s.Spec.Config.Upstream.URL = ModeUDP, "udp://127.0.0.1:53"
			s.Spec.Config.Upstream.Health = &UpstreamHealth{Check: &HealthProbe{}}
		}, "/spec/config/upstream/health/check must be left out with mode UDP and user"},
		{"what a parent says is said of the parent", func(s *Service) {
			s.Spec.Config.Upstream.Families = []IPFamily{IPv6}
			s.Spec.DynamicConfig = &DynamicConfig{Configs: []ServiceConfig{{Name: "other", Parent: "default"}}}
		}, "/spec/config/upstream/families must be left out with user"},
		{"and what a child says, of the child", func(s *Service) {
			s.Spec.DynamicConfig = &DynamicConfig{Configs: []ServiceConfig{{Name: "other", Parent: "default", Upstream: Upstream{Families: []IPFamily{IPv4}}}}}
		}, "/spec/dynamicConfig/configs/0/upstream/families must be left out with user"},
	}
	for _, tt := range tests {
		var p Problems
		service(tt.change).Validate(&p)
		var got []string
		for _, x := range p.List {
			got = append(got, x.Pointer+" "+x.Rule)
		}
		if ok := tt.want == "" && len(got) == 0 || len(got) == 1 && tt.want != "" && strings.HasPrefix(got[0], tt.want); !ok {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}

	// Who serves what, and with what it takes from its parents.
	s := service(func(s *Service) {
		s.Spec.DynamicConfig = &DynamicConfig{Configs: []ServiceConfig{
			{Name: "same", Parent: "default"},
			{Name: "theirs", Parent: "default", Upstream: Upstream{User: "laptops"}},
			{Name: "ours", Parent: "default", Upstream: Upstream{URL: "tcp://db:5432"}},
			{Name: "both", Upstream: Upstream{User: "laptops", Loadbalance: &Loadbalance{Endpoints: []UpstreamEndpoint{
				{URL: "tcp://a:1"}, {URL: "tcp://b:1", User: "devices"}}}}},
		}}
	})
	for _, tt := range []struct{ config, user, want string }{
		{"default", "devices", "tcp://127.0.0.1:5432"}, {"default", "laptops", ""}, {"default", "", ""},
		{"same", "devices", "tcp://127.0.0.1:5432"},
		{"theirs", "laptops", "tcp://127.0.0.1:5432"}, {"theirs", "devices", ""},
		{"ours", "devices", ""}, {"ours", "", ""},
		{"both", "laptops", "tcp://a:1"}, {"both", "devices", "tcp://b:1"},
	} {
		if url, ok := s.EffectiveConfig(tt.config).ServedBy(tt.user); url != tt.want || ok != (tt.want != "") {
			t.Errorf("%s serves of %s %q, %v, want %q", tt.user, tt.config, url, ok, tt.want)
		}
	}
	var users []string
	for c := range s.configs() {
		for user, pointer := range c.Servers() {
			users = append(users, c.Name+pointer+"="+user)
		}
	}
	want := []string{"default/upstream/user=devices", "theirs/upstream/user=laptops", "both/upstream/user=laptops", "both/upstream/loadbalance/endpoints/1/user=devices"}
	if !slices.Equal(users, want) {
		t.Errorf("the Users are %q", users)
	}
	if got := s.upstream(); got != "tcp://127.0.0.1:5432 (user devices)" {
		t.Errorf("a table shows %q", got)
	}
}
