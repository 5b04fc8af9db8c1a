package api

import (
	"net/netip"
	"testing"
)

func TestSourceNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":             "192.0.2.7/32",
		"::ffff:192.0.2.7":      "192.0.2.7/32",
		"2001:db8:0:1:2::3":     "2001:db8:0:1::/64",
		"fe80::5:6:7:8%eth0":    "fe80::/64",
		"2001:db8:0:1:ffff::ff": "2001:db8:0:1::/64",
	} {
		if got := SourceNetwork(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("%s is counted by %s, want %s", in, got, want)
		}
	}
	if got := SourceNetwork(netip.Addr{}); got.IsValid() {
		t.Errorf("no address is counted by %s", got)
	}
}
