package api

import (
	"slices"
	"testing"
)

// publicService returns a Service that is valid, with what edit makes of it.
func publicService(edit func(*ServiceSpec)) *Service {
	s := &Service{}
	s.Metadata.Name = "db"
	s.Spec = ServiceSpec{Mode: ModeTCP, IsPublic: true, IsAnonymous: true, Public: &ServicePublic{}, Config: &ServiceConfig{Upstream: Upstream{URL: "tcp://a:1"}}}
	edit(&s.Spec)
	s.Default()
	return s
}

func TestPublicServices(t *testing.T) {
	for _, x := range []struct {
		name string
		edit func(*ServiceSpec)
		want []string // the pointers of what is wrong
	}{
		{"of any bytes", func(*ServiceSpec) {}, nil},
		{"that asks who comes", func(s *ServiceSpec) { s.IsAnonymous, s.IsTLS = false, true }, nil},
		{"that cannot ask", func(s *ServiceSpec) { s.IsAnonymous = false }, []string{"/spec/isPublic"}},
		{"whose port is not open", func(s *ServiceSpec) { s.IsPublic, s.IsAnonymous = false, false }, []string{"/spec/public"}},
		{"with names", func(s *ServiceSpec) { s.IsTLS, s.Public.Hosts = true, []string{"a.example.com", "*.EXAMPLE.com", "*"} }, nil},
		{"with bad names", func(s *ServiceSpec) {
			s.IsTLS, s.Public.Hosts = true, []string{"a..b", "192.0.2.1", "::1", "*a.b", "a.*.b", "b.c", "B.C.", ""}
		}, []string{"/spec/public/hosts/0", "/spec/public/hosts/1", "/spec/public/hosts/2", "/spec/public/hosts/3", "/spec/public/hosts/4", "/spec/public/hosts/6", "/spec/public/hosts/7"}},
		{"with too many names", func(s *ServiceSpec) { s.IsTLS, s.Public.Hosts = true, make([]string, 1001) }, []string{"/spec/public/hosts"}},
		{"with names and no TLS", func(s *ServiceSpec) { s.Public.Hosts = []string{"a.b"} }, []string{"/spec/public/hosts"}},
		{"passthrough", func(s *ServiceSpec) {
			s.Public.Passthrough, s.Public.Hosts, s.Public.ALPN, s.Public.StartTLS = true, []string{"a.b"}, []string{"h2"}, StartTLSPostgres
		}, nil},
		{"passthrough of every name", func(s *ServiceSpec) { s.Public.Passthrough = true }, []string{"/spec/public/passthrough"}},
		{"passthrough that is ended here", func(s *ServiceSpec) { s.Public.Passthrough, s.Public.Hosts, s.IsTLS = true, []string{"a.b"}, true }, []string{"/spec/public/passthrough"}},
		{"passthrough that asks who comes", func(s *ServiceSpec) {
			s.Public.Passthrough, s.Public.Hosts, s.IsAnonymous = true, []string{"a.b"}, false
		}, []string{"/spec/public/passthrough"}},
		{"with ALPN and no names", func(s *ServiceSpec) { s.IsTLS, s.Public.ALPN = true, []string{"h2"} }, []string{"/spec/public/alpn"}},
		{"with bad ALPN", func(s *ServiceSpec) {
			s.IsTLS, s.Public.Hosts, s.Public.ALPN = true, []string{"*"}, []string{"h2", "", "h2"}
		}, []string{"/spec/public/alpn/1", "/spec/public/alpn/2"}},
		{"with networks", func(s *ServiceSpec) { s.Public.Sources = []string{"192.0.2.0/24", "2001:db8::/32", "192.0.2.1"} }, []string{"/spec/public/sources/2"}},
		{"at an address", func(s *ServiceSpec) { s.Public.Address = "::" }, nil},
		{"at no address", func(s *ServiceSpec) { s.Public.Address = "localhost" }, []string{"/spec/public/address"}},
		{"at an address with a zone", func(s *ServiceSpec) { s.Public.Address = "fe80::1%eth0" }, []string{"/spec/public/address"}},
		{"with a certificate", func(s *ServiceSpec) { s.IsTLS, s.Public.Certificate = true, &PublicCertificate{FromSecret: "cert"} }, nil},
		{"with a certificate and no TLS", func(s *ServiceSpec) { s.Public.Certificate = &PublicCertificate{FromSecret: "cert"} }, []string{"/spec/public/certificate"}},
		{"with a certificate from nowhere", func(s *ServiceSpec) { s.IsTLS, s.Public.Certificate = true, &PublicCertificate{} }, []string{"/spec/public/certificate/fromSecret"}},
		{"with STARTTLS and no TLS", func(s *ServiceSpec) { s.Public.StartTLS = StartTLSPostgres }, []string{"/spec/public/startTLS"}},
		{"with STARTTLS to the upstream", func(s *ServiceSpec) { s.Config.TLS, s.Config.Upstream.StartTLS = &UpstreamTLS{}, StartTLSPostgres }, nil},
		{"with STARTTLS to the upstream and no TLS", func(s *ServiceSpec) { s.Config.Upstream.StartTLS = StartTLSPostgres }, []string{"/spec/config/upstream/startTLS"}},
		{"with one family twice", func(s *ServiceSpec) { s.Config.Upstream.Families = []IPFamily{IPv6, IPv6} }, []string{"/spec/config/upstream/families"}},
		{"with both families", func(s *ServiceSpec) { s.Config.Upstream.Families = []IPFamily{IPv6, IPv4} }, nil},
		{"with bad terms of TLS", func(s *ServiceSpec) {
			s.Config.TLS = &UpstreamTLS{ALPN: []string{""}, TLSTerms: TLSTerms{Curves: []string{"P-1"}}}
		}, []string{"/spec/config/tls/curves/0", "/spec/config/tls/alpn/0"}},
		{"where some wait", func(s *ServiceSpec) {
			s.Limits = &ServiceLimits{Connections: 1, PendingConnections: 5, PendingTimeout: &Duration{Seconds: of(1)}}
		}, nil},
		{"where some wait for nothing", func(s *ServiceSpec) { s.Limits = &ServiceLimits{PendingConnections: 5} }, []string{"/spec/limits/pendingConnections"}},
		{"where none wait, and not long", func(s *ServiceSpec) {
			s.Limits = &ServiceLimits{PendingConnections: -1, PendingTimeout: &Duration{Milliseconds: of(1)}}
		}, []string{"/spec/limits/pendingConnections", "/spec/limits/pendingTimeout/milliseconds"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			var p Problems
			publicService(x.edit).Validate(&p)
			var got []string
			for _, found := range p.List {
				got = append(got, found.Pointer)
			}
			if !slices.Equal(got, x.want) {
				t.Errorf("%+v", p.List)
			}
		})
	}
}

// What a child leaves out of the way to its upstream is its parent's.
func TestInheritedUpstream(t *testing.T) {
	s := publicService(func(s *ServiceSpec) {
		s.Config = &ServiceConfig{Upstream: Upstream{URL: "tcp://a:1", ProxyProtocol: ProxyV2, StartTLS: StartTLSPostgres, Families: []IPFamily{IPv4}},
			TLS: &UpstreamTLS{ALPN: []string{"postgresql"}, TLSTerms: TLSTerms{MinVersion: "v1.3", Curves: []string{"X25519"}}}}
		s.DynamicConfig = &DynamicConfig{Configs: []ServiceConfig{{Name: "child", Parent: DefaultConfig, Upstream: Upstream{URL: "tcp://b:1", ProxyProtocol: ProxyV1}, TLS: &UpstreamTLS{TLSTerms: TLSTerms{MinVersion: "v1.2"}}}}}
	})
	c := s.EffectiveConfig("child")
	if u := c.Upstream; u.ProxyProtocol != ProxyV1 || u.StartTLS != StartTLSPostgres || len(u.Families) != 1 {
		t.Errorf("%+v", u)
	}
	if x := c.TLS; len(x.ALPN) != 1 || x.MinVersion != "v1.2" || len(x.Curves) != 1 {
		t.Errorf("%+v", x)
	}
	var p Problems
	if s.Validate(&p); p.Err() != nil {
		t.Error(p.Err())
	}
}
