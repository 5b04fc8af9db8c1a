package api

import (
	"slices"
	"strings"
	"testing"
)

// flows returns a Service of mode UDP.
func flows(change func(*ServiceSpec)) *Service {
	s := &Service{Head: Head{Metadata: Metadata{Name: "dns"}}}
	s.Spec = ServiceSpec{Mode: ModeUDP, Config: &ServiceConfig{Upstream: Upstream{URL: "udp://192.0.2.1:53"}}}
	change(&s.Spec)
	s.Default()
	return s
}

func TestDatagrams(t *testing.T) {
	tests := map[string]struct {
		change func(*ServiceSpec)
		want   []string // beginnings of what is wrong
	}{
		"as it should be":     {func(*ServiceSpec) {}, nil},
		"the port of a name":  {func(s *ServiceSpec) { s.Config.Upstream.URL = "dns://resolver.corp" }, nil},
		"served by a User":    {func(s *ServiceSpec) { s.Config.Upstream.User = "ann" }, nil},
		"endpoints":           {func(s *ServiceSpec) { balance(s, "udp://a:1", "udp://b:1") }, nil},
		"public":              {func(s *ServiceSpec) { s.IsPublic, s.IsAnonymous = true, true }, nil},
		"a stream":            {func(s *ServiceSpec) { s.Config.Upstream.URL = "tcp://a:1" }, []string{"/spec/config/upstream/url must be udp://HOST:PORT or dns://HOST, as the mode is UDP"}},
		"a stream among them": {func(s *ServiceSpec) { balance(s, "udp://a:1", "tcp://b:1") }, []string{"/spec/config/upstream/loadbalance/endpoints/1/url must be udp://"}},
		"no port":             {func(s *ServiceSpec) { s.Config.Upstream.URL = "udp://a" }, []string{"/spec/config/upstream/url must be udp://HOST:PORT or dns://HOST: the port is missing"}},
		"nothing":             {func(s *ServiceSpec) { s.Config.Upstream.URL = "" }, []string{"/spec/config/upstream/url is required: udp://HOST:PORT"}},
		"no scheme":           {func(s *ServiceSpec) { s.Config.Upstream.URL = "gopher://a:1" }, []string{"/spec/config/upstream/url must be udp://HOST:PORT or dns://HOST: the scheme must be udp or dns"}},
		"datagrams of a stream": {func(s *ServiceSpec) { s.Mode = ModeTCP }, []string{
			"/spec/config/upstream/url must be tcp://HOST:PORT or tls://HOST:PORT: the scheme udp needs mode: UDP"}},
		"what a stream has": {func(s *ServiceSpec) {
			s.Config.TLS = &UpstreamTLS{}
			s.Config.Upstream.ProxyProtocol, s.Config.Upstream.StartTLS = ProxyV2, StartTLSPostgres
			s.Config.Upstream.Health = &UpstreamHealth{Check: &HealthProbe{}}
		}, []string{"/spec/config/tls ", "/spec/config/upstream/startTLS ", "/spec/config/upstream/proxyProtocol ", "/spec/config/upstream/health/check "}},
		"a check elsewhere":   {func(s *ServiceSpec) { s.Config.Upstream.Health = &UpstreamHealth{Check: &HealthProbe{Port: 80}} }, nil},
		"public for somebody": {func(s *ServiceSpec) { s.IsPublic = true }, []string{"/spec/isPublic needs isAnonymous: true with mode UDP"}},
		"public with TLS":     {func(s *ServiceSpec) { s.IsPublic, s.IsTLS = true, true }, []string{"/spec/isTLS must be left out with mode UDP"}},
		"public with names": {func(s *ServiceSpec) {
			s.IsPublic, s.IsAnonymous, s.Public = true, true, &ServicePublic{Hosts: []string{"a"}}
		}, []string{"/spec/public/hosts "}},
		"public with a header": {func(s *ServiceSpec) {
			s.IsPublic, s.IsAnonymous, s.Public = true, true, &ServicePublic{ProxyProtocol: true}
		}, []string{"/spec/public/proxyProtocol "}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var p Problems
			s := flows(tt.change)
			s.Validate(&p)
			var got []string
			for _, x := range p.List {
				if !x.Warning {
					got = append(got, x.Pointer+" "+x.Rule)
				}
			}
			for _, want := range tt.want {
				if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, want) }) {
					t.Errorf("got %q, want one that begins with %q", got, want)
				}
			}
			if len(tt.want) == 0 && len(got) > 0 {
				t.Errorf("got %q, want none", got)
			}
		})
	}
}

func balance(s *ServiceSpec, urls ...string) {
	s.Config.Upstream = Upstream{Loadbalance: &Loadbalance{}}
	for _, u := range urls {
		s.Config.Upstream.Loadbalance.Endpoints = append(s.Config.Upstream.Loadbalance.Endpoints, UpstreamEndpoint{URL: u})
	}
}
