package api

import (
	"strings"
	"testing"
)

// The port of a name of SRV records comes from them: the URL needs none, and one
// that it has does not count. The Service then needs a port of its own.
func TestSRVEndpoints(t *testing.T) {
	for url, want := range map[string]string{
		"tcp://_pg._tcp.db.corp": "_pg._tcp.db.corp", "tls://_pg._tcp.db.corp:5432": "_pg._tcp.db.corp",
		"postgres://_pg._tcp.db.corp": "_pg._tcp.db.corp", "tcp://db.corp:1": "db.corp:1", "tcp://db.corp": "",
	} {
		u := Upstream{URL: url}
		list, err := u.Endpoints()
		if (err == nil) != (want != "") || err == nil && list[0].Address() != want {
			t.Errorf("%s is %v (%v), want %q", url, list, err, want)
		}
	}
	for _, port := range []int{0, 5432} {
		s := &Service{Spec: ServiceSpec{Mode: ModeTCP, Port: port, Config: &ServiceConfig{Upstream: Upstream{URL: "tcp://_pg._tcp.db.corp"}}}}
		s.Metadata.Name = "db"
		s.Default()
		var p Problems
		s.Validate(&p)
		missing := false
		for _, x := range p.List {
			missing = missing || x.Pointer == "/spec/port" && strings.Contains(x.Rule, "SRV")
		}
		if missing != (port == 0) {
			t.Errorf("with port %d: %+v", port, p.List)
		}
	}
}
