package api

import (
	"strings"
	"testing"
)

func TestParseDNSServer(t *testing.T) {
	for in, want := range map[string]string{
		"8.8.8.8":                           "dns://8.8.8.8:53",
		"2001:db8::1":                       "dns://[2001:db8::1]:53",
		"8.8.8.8:5353":                      "dns://8.8.8.8:5353",
		"[2001:db8::1]:5353":                "dns://[2001:db8::1]:5353",
		"dns://8.8.8.8":                     "dns://8.8.8.8:53",
		"dns://ns.example.com":              "dns://ns.example.com:53",
		"tcp://[2001:db8::1]":               "tcp://[2001:db8::1]:53",
		"tls://dns.google":                  "tls://dns.google:853",
		"tls://1.1.1.1:8853":                "tls://1.1.1.1:8853",
		"dns://fe80::1%25eth0":              "",
		"dns://[fe80::1%25e0]":              "dns://[fe80::1%e0]:53",
		"":                                  "",
		"dns.google":                        "",
		"8.8.8":                             "",
		"dns://8.8.8":                       "",
		"8.8.8.8:0":                         "",
		"dns://8.8.8.8:0":                   "",
		"dns://8.8.8.8:65536":               "",
		"dns://":                            "",
		"dns://a b":                         "",
		"dns://a..b":                        "",
		"dns://-a.com":                      "",
		"udp://8.8.8.8":                     "",
		"https://dns.google/q":              "",
		"tls://dns.google/q":                "",
		"tls://x@dns.google":                "",
		"tls://dns.google?a=b":              "",
		"tls://dns.google#b":                "",
		"tls:dns.google":                    "",
		"dns://" + strings.Repeat("a", 300): "",
	} {
		got, err := ParseDNSServer(in)
		if err != nil {
			if want != "" {
				t.Errorf("%q: %v", in, err)
			}
			continue
		}
		if got.String() != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
		if again, err := ParseDNSServer(got.String()); err != nil && !strings.Contains(want, "%") || err == nil && again != got {
			t.Errorf("%q is read again as %v, %v", got, again, err)
		}
	}
}

func TestFallbackZoneIsValidated(t *testing.T) {
	z := &FallbackZone{Servers: []string{"8.8.8.8", "nonsense"}, CacheDuration: &Duration{Milliseconds: new(1)}}
	var p Problems
	z.validate(&p, "/spec/dns/fallbackZone")
	var at []string
	for _, problem := range p.List {
		at = append(at, problem.Pointer)
	}
	if got := strings.Join(at, " "); got != "/spec/dns/fallbackZone/servers/1 /spec/dns/fallbackZone/cacheDuration/milliseconds" {
		t.Errorf("problems at %s", got)
	}
	var none Problems
	(*FallbackZone)(nil).validate(&none, "/x")
	if err := none.Err(); err != nil {
		t.Errorf("without a zone: %v", err)
	}
}
