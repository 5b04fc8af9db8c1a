package api

import (
	"slices"
	"testing"
	"time"
)

func of(n int) *int { return &n }

// TestEffectiveConfig: a config takes from its parents what it leaves out.
func TestEffectiveConfig(t *testing.T) {
	s := &Service{Spec: ServiceSpec{
		Config: &ServiceConfig{Upstream: Upstream{URL: "tcp://a:1", ConnectTimeout: &Duration{Seconds: of(3)}},
			TLS: &UpstreamTLS{TrustedCAs: []string{"A"}, ServerName: "a", ClientCertificate: &ClientCertificateSource{FromSecret: "one"}}},
		DynamicConfig: &DynamicConfig{Configs: []ServiceConfig{
			{Name: "child", Parent: DefaultConfig, TLS: &UpstreamTLS{TrustedCAs: []string{"B"}, ServerName: "b"}},
			{Name: "grandchild", Parent: "child", Upstream: Upstream{Loadbalance: &Loadbalance{Endpoints: []UpstreamEndpoint{{URL: "tls://b:2"}}}}},
			{Name: "alone", Upstream: Upstream{URL: "ssh://c"}},
		}},
	}}
	s.Default()

	c := s.EffectiveConfig("grandchild")
	if c.Name != "grandchild" || c.Upstream.URL != "" || c.Upstream.Address() != "b:2" {
		t.Errorf("the upstream is %+v", c.Upstream)
	}
	if got := c.Upstream.ConnectTimeout.Or(time.Hour); got != 3*time.Second {
		t.Errorf("the connect timeout is %v", got)
	}
	if c.TLS.ServerName != "b" || len(c.TLS.TrustedCAs) != 2 || c.Certificate().FromSecret != "one" {
		t.Errorf("TLS is %+v", c.TLS)
	}
	if p := s.Config("child"); len(p.TLS.TrustedCAs) != 1 || p.TLS.ClientCertificate != nil {
		t.Errorf("what is written was changed: %+v", p.TLS)
	}
	if c := s.EffectiveConfig("alone"); c.TLS != nil || c.Upstream.Address() != "c:22" {
		t.Errorf("a config without a parent got %+v", c)
	}
	if s.EffectiveConfig("nothing") != nil {
		t.Error("there is a config that nobody wrote")
	}
}

func TestEndpoints(t *testing.T) {
	for text, want := range map[string]Endpoint{
		"tcp://h:1":            {Host: "h", Port: 1, Weight: 1},
		"tcp://[::1]:1":        {Host: "::1", Port: 1, Weight: 1},
		"tls://h:1":            {Host: "h", Port: 1, TLS: true, Weight: 1},
		"postgres://h":         {Host: "h", Port: 5432, Weight: 1},
		"https://h":            {Host: "h", Port: 443, TLS: true, Weight: 1},
		"https://h:8443/":      {Host: "h", Port: 8443, TLS: true, Weight: 1},
		"tcp://h":              {},
		"tcp://:1":             {},
		"tcp://h:0":            {},
		"tcp://h:70000":        {},
		"tcp://u:p@h:1":        {},
		"tcp://h:1/path":       {},
		"udp://h:1":            {Host: "h", Port: 1, UDP: true, Weight: 1},
		"dns://h":              {Host: "h", Port: 53, UDP: true, Weight: 1},
		"udp://h":              {},
		"gopher://h:1":         {},
		"h:1":                  {},
		"tcp://sp ace:1":       {},
		"tcp://h..x:1":         {},
		"tcp://[fe80::1%25]:1": {},
		"":                     {},
	} {
		u := Upstream{URL: text}
		e, err := u.Endpoints()
		if (err == nil) != (want != Endpoint{}) || err == nil && e[0] != want {
			t.Errorf("%q is %+v, %v; want %+v", text, e, err, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for _, x := range []struct {
		d    *Duration
		want time.Duration
		ok   bool
	}{
		{nil, time.Minute, true},
		{&Duration{Hours: of(4)}, 4 * time.Hour, true},
		{&Duration{Months: of(1)}, 720 * time.Hour, true},
		{&Duration{Milliseconds: of(1500)}, 1500 * time.Millisecond, true},
		{&Duration{}, time.Minute, false},
		{&Duration{Hours: of(1), Days: of(1)}, time.Hour, false},
		{&Duration{Seconds: of(0)}, 0, false},
		{&Duration{Seconds: of(-1)}, -time.Second, false},
		{&Duration{Months: of(1 << 40)}, 0, false},
	} {
		var p Problems
		x.d.validate(&p, "/d", time.Second, maxDuration)
		if (p.Err() == nil) != x.ok {
			t.Errorf("%v: %v", x.d, p.Err())
		}
		if got := x.d.Or(time.Minute); x.ok && got != x.want {
			t.Errorf("%v is %v, want %v", x.d, got, x.want)
		}
	}
}

func TestSecretBinding(t *testing.T) {
	b := &SecretBinding{Services: []string{"nats", "a1.sea"}, Hosts: []string{"DB.example.com"}}
	for _, x := range []struct {
		service, host string
		want          bool
	}{
		{"nats.default", "db.example.com", true},
		{"a1.sea", "db.example.com", true},
		{"nats.sea", "db.example.com", false},
		{"nats.default", "elsewhere", false},
	} {
		if got := b.Allows(x.service, x.host); got != x.want {
			t.Errorf("%s to %s: %v", x.service, x.host, got)
		}
	}
	if !(*SecretBinding)(nil).Allows("any.default", "where") {
		t.Error("a Secret without a binding may not be used")
	}
}

// TestRate: a public port has a rate whether or not one is written.
func TestRate(t *testing.T) {
	var none *ServiceLimits
	for l, want := range map[*ServiceLimits]int{none: 200, {}: 200, {ConnectionsPerSecond: 1}: 1, {ConnectionsPerSecond: 1_000_000}: 1_000_000} {
		var p Problems
		if l.validate(&p, "/l"); p.Err() != nil || l.Rate() != want {
			t.Errorf("%+v: %d, %v", l, l.Rate(), p.Err())
		}
	}
	for _, n := range []int{-1, 1_000_001} {
		var p Problems
		if (&ServiceLimits{ConnectionsPerSecond: n}).validate(&p, "/l"); p.Err() == nil {
			t.Errorf("%d is let through", n)
		}
	}
}

// An endpoint of weight 0 gets no new connections; one at least must get some.
func TestWeightZero(t *testing.T) {
	zero, two := of(0), of(2)
	list := []UpstreamEndpoint{{URL: "tcp://a:1", Weight: zero}, {URL: "tcp://b:1", Weight: two}, {URL: "tcp://c:1"}}
	ends, err := (&Upstream{Loadbalance: &Loadbalance{Endpoints: list}}).Endpoints()
	if want := []Endpoint{{Host: "b", Port: 1, Weight: 2}, {Host: "c", Port: 1, Weight: 1}}; err != nil || !slices.Equal(ends, want) {
		t.Errorf("%v, %v, want %v", ends, err, want)
	}
	var p Problems
	(&Loadbalance{Endpoints: []UpstreamEndpoint{{URL: "tcp://a:1", Weight: zero}, {URL: "tcp://b:1", Backup: true}}}).Validate(&p, "")
	if len(p.List) != 1 {
		t.Errorf("no endpoint gets connections, and the problems are %v", p.List)
	}
}
