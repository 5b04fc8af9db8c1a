package ingress

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cardea/api"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// public returns a public, anonymous Service, and what edit makes of it.
func public(name string, port int, edits ...func(*api.ServiceSpec)) *api.Service {
	s := &api.Service{}
	s.Metadata.Name, s.Metadata.CreatedAt = name, noon
	s.Spec = api.ServiceSpec{Mode: api.ModeTCP, IsPublic: true, IsAnonymous: true, Port: port, Public: &api.ServicePublic{}, Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://" + name + ":1"}}}
	for _, edit := range edits {
		edit(&s.Spec)
	}
	s.Default()
	return s
}

// through makes a Service take server names, whose TLS goes through.
func through(hosts ...string) func(*api.ServiceSpec) {
	return func(s *api.ServiceSpec) { s.Public.Passthrough, s.Public.Hosts = true, hosts }
}

// ended makes a Service take server names, whose TLS ends here.
func ended(hosts ...string) func(*api.ServiceSpec) {
	return func(s *api.ServiceSpec) { s.IsTLS, s.Public.Hosts = true, hosts }
}

func offered(alpn ...string) func(*api.ServiceSpec) {
	return func(s *api.ServiceSpec) { s.Public.ALPN = alpn }
}

func coming(from ...string) func(*api.ServiceSpec) {
	return func(s *api.ServiceSpec) { s.Public.Sources = from }
}

func address(a string) func(*api.ServiceSpec) {
	return func(s *api.ServiceSpec) { s.Public.Address = a }
}

// table compiles Services of which each is younger than the one before it.
func table(services ...*api.Service) *Table {
	for i, s := range services {
		s.Metadata.CreatedAt = noon.Add(time.Duration(i) * time.Second)
	}
	return Compile(Input{Services: services, Domain: "cardea.internal"}, nil, noon)
}

// where returns the name of the Object where a connection goes, or "" and why it
// goes nowhere.
func where(t *Table, q api.RouteQuestion) (name, why string) {
	a := t.Ask(q)
	if a.Refused != "" {
		return "", a.Refused
	}
	return a.Owner.Name, ""
}

func TestMatch(t *testing.T) {
	tab := table(
		public("exact.ns", 443, through("db.example.com")),
		public("below.ns", 443, ended("*.example.com")),
		public("deep.ns", 443, ended("*.eu.example.com")),
		public("any.ns", 443, ended("*")),
		public("bytes.ns", 443),
		public("only.ns", 444, through("a.b")),
		public("raw.ns", 445),
		public("tls.ns", 446, ended()),
		public("h2.ns", 447, through("x"), offered("h2")),
		public("near.ns", 447, through("x"), coming("10.1.0.0/16", "2001:db8::/32")),
		public("wide.ns", 447, through("x"), coming("10.0.0.0/8")),
		public("both.ns", 447, through("x"), offered("h2"), coming("10.0.0.0/8")),
		public("rest.ns", 447, through("*")),
		public("office.ns", 448, coming("192.0.2.0/24")),
		public("home.ns", 449, coming("192.0.2.0/24")),
		public("other.ns", 449),
	)
	for _, x := range []struct {
		q    api.RouteQuestion
		want string // or what of the refusal is said
	}{
		{api.RouteQuestion{Port: 443, SNI: "db.example.com"}, "exact.ns"},
		{api.RouteQuestion{Port: 443, SNI: "DB.Example.COM."}, "exact.ns"},
		{api.RouteQuestion{Port: 443, SNI: "web.example.com"}, "below.ns"},
		{api.RouteQuestion{Port: 443, SNI: "a.web.example.com"}, "below.ns"},
		{api.RouteQuestion{Port: 443, SNI: "x.y.eu.example.com"}, "deep.ns"},
		{api.RouteQuestion{Port: 443, SNI: "eu.example.com"}, "below.ns"},
		{api.RouteQuestion{Port: 443, SNI: "example.com"}, "any.ns"},
		{api.RouteQuestion{Port: 443, SNI: "notexample.com"}, "any.ns"},
		{api.RouteQuestion{Port: 443}, "any.ns"},
		{api.RouteQuestion{Port: 443, NoTLS: true}, "bytes.ns"},
		{api.RouteQuestion{Port: 444, SNI: "a.b"}, "only.ns"},
		{api.RouteQuestion{Port: 444, SNI: "c.b"}, "no row of *:444 takes the server name c.b"},
		{api.RouteQuestion{Port: 444}, "no row of *:444 takes TLS without a server name"},
		{api.RouteQuestion{Port: 444, NoTLS: true}, "*:444 takes only TLS"},
		{api.RouteQuestion{Port: 445, SNI: "a.b"}, "raw.ns"},
		{api.RouteQuestion{Port: 446, SNI: "a.b"}, "tls.ns"},
		{api.RouteQuestion{Port: 446}, "tls.ns"},
		{api.RouteQuestion{Port: 446, NoTLS: true}, "*:446 takes only TLS"},
		{api.RouteQuestion{Port: 447, SNI: "x", From: "10.1.2.3"}, "near.ns"},
		{api.RouteQuestion{Port: 447, SNI: "x", From: "::ffff:10.1.2.3"}, "near.ns"},
		{api.RouteQuestion{Port: 447, SNI: "x", From: "2001:db8::1"}, "near.ns"},
		{api.RouteQuestion{Port: 447, SNI: "x", From: "10.2.0.1"}, "wide.ns"},
		{api.RouteQuestion{Port: 447, SNI: "x", From: "10.1.2.3", ALPN: []string{"http/1.1", "h2"}}, "both.ns"},
		{api.RouteQuestion{Port: 447, SNI: "x", From: "2001:db8::1", ALPN: []string{"h2"}}, "near.ns"},
		{api.RouteQuestion{Port: 447, SNI: "x", From: "192.0.2.1", ALPN: []string{"h2"}}, "h2.ns"},
		// No way around a condition: the name is there, so no worse one is looked at.
		{api.RouteQuestion{Port: 447, SNI: "x", From: "192.0.2.1"}, "of the rows of *:447 for server name x none takes a client from 192.0.2.1 without ALPN"},
		{api.RouteQuestion{Port: 447, SNI: "x"}, "none takes a client from somewhere"},
		{api.RouteQuestion{Port: 447, SNI: "y", From: "192.0.2.1"}, "rest.ns"},
		{api.RouteQuestion{Port: 448, NoTLS: true, From: "192.0.2.9"}, "office.ns"},
		{api.RouteQuestion{Port: 448, SNI: "a.b", From: "192.0.2.9"}, "office.ns"},
		{api.RouteQuestion{Port: 448, NoTLS: true, From: "192.0.3.9"}, "of the rows of *:448 for any bytes none takes a client from 192.0.3.9"},
		{api.RouteQuestion{Port: 449, NoTLS: true, From: "192.0.2.9"}, "home.ns"},
		{api.RouteQuestion{Port: 449, NoTLS: true, From: "192.0.3.9"}, "other.ns"},
		{api.RouteQuestion{Port: 450}, "nothing listens on port 450"},
		{api.RouteQuestion{Port: 443, From: "me"}, `"me" is not an IP address`},
		{api.RouteQuestion{Port: 443, Address: "here"}, `"here" is not an IP address`},
	} {
		name, why := where(tab, x.q)
		if name != x.want && (why == "" || !strings.Contains(why, x.want)) {
			t.Errorf("%+v goes to %q %q, want %q", x.q, name, why, x.want)
		}
	}
}

// A wildcard listener and a specific one of a port live side by side; a connection
// to the specific address sees its rows and no others.
func TestAddresses(t *testing.T) {
	tab := table(
		public("every.ns", 80),
		public("four.ns", 80, address("0.0.0.0")),
		public("six.ns", 80, address("::")),
		public("one.ns", 80, address("192.0.2.1"), through("a.b")),
		public("mapped.ns", 81, address("::ffff:192.0.2.1")),
		public("long.ns", 82, address("2001:DB8:0:0::1")),
	)
	for _, x := range []struct {
		port          int
		address, want string
	}{
		{80, "", "every.ns"}, {80, "192.0.2.2", "four.ns"}, {80, "2001:db8::1", "six.ns"}, {80, "192.0.2.1", ""},
		{81, "192.0.2.1", "mapped.ns"}, {82, "2001:db8::1", "long.ns"}, {82, "2001:db8::2", ""},
	} {
		if name, why := where(tab, api.RouteQuestion{Port: x.port, Address: x.address, NoTLS: true}); name != x.want {
			t.Errorf("%s:%d goes to %q %s", x.address, x.port, name, why)
		}
	}
	if name, _ := where(tab, api.RouteQuestion{Port: 80, Address: "192.0.2.1", SNI: "a.b"}); name != "one.ns" {
		t.Error("the specific listener does not take its name")
	}
}

// condition returns the status and the message of a condition.
func condition(t *testing.T, s *api.RouteStatus, kind string) (string, string) {
	t.Helper()
	if s == nil {
		return "", ""
	}
	c := s.Condition(kind)
	if c == nil {
		return "", ""
	}
	if c.Since.IsZero() || c.Reason == "" || c.Message == "" {
		t.Errorf("a condition that says too little: %+v", *c)
	}
	return c.Status, c.Message
}

func service(name string) api.Key {
	return api.Key{Group: api.GroupCore, Kind: api.KindService, Name: name}
}

func mapping(name string) api.Key {
	return api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Namespace: "ns", Name: name}
}

// foreign returns a Route of a mapping, as old as noon and some seconds.
func foreign(name string, age int, bind api.Bind, m api.Match) api.Route {
	return api.Route{Owner: mapping(name), Created: noon.Add(time.Duration(age) * time.Second), Bind: bind, Match: m,
		Members: []api.Member{{Object: mapping(name), Weight: 1, Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://" + name + ":80"}}}}}
}

func TestConflicts(t *testing.T) {
	at := api.Bind{Port: 443}
	for _, x := range []struct {
		name  string
		in    Input
		loser api.Key
		words string // of the loser
	}{
		{"the older Service keeps the port", Input{Services: []*api.Service{public("b.ns", 443), public("a.ns", 443, func(s *api.ServiceSpec) {})}}, service("b.ns"), "any bytes on *:443 is taken by Service/a.ns, which came first"},
		{"the same name, written otherwise", Input{Services: []*api.Service{public("a.ns", 443, through("x.y")), public("b.ns", 443, through("X.Y."))}}, service("b.ns"), "sni x.y on *:443 is taken by Service/a.ns"},
		{"the same conditions in another order", Input{Services: []*api.Service{
			public("a.ns", 443, through("x"), offered("a", "b"), coming("10.0.0.0/8", "::1/128")), public("b.ns", 443, through("x"), offered("b", "a"), coming("::1/128", "10.1.2.3/8")),
		}}, service("b.ns"), "alpn a or b, from 10.0.0.0/8 or ::1/128 on *:443 is taken by Service/a.ns"},
		{"an older mapping", Input{Services: []*api.Service{public("a.ns", 443)}, Foreign: api.Routes{Routes: []api.Route{foreign("m", -5, at, api.Match{})}}}, service("a.ns"), "TCPMapping/ns/m, which came first"},
		{"a younger mapping", Input{Services: []*api.Service{public("a.ns", 443)}, Foreign: api.Routes{Routes: []api.Route{foreign("m", 5, at, api.Match{})}}}, mapping("m"), "Service/a.ns, which came first"},
		{"a mapping without an age", Input{Services: []*api.Service{public("a.ns", 443)}, Foreign: api.Routes{Routes: []api.Route{{Owner: mapping("m"), Bind: at}}}}, mapping("m"), "Service/a.ns, which came first"},
		{"a name below the cluster's domain", Input{Services: []*api.Service{public("a.ns", 443, through("api.cardea.internal"))}}, service("a.ns"), "a name of the cluster itself"},
		{"the domain", Input{Services: []*api.Service{public("a.ns", 443, through("Cardea.Internal"))}}, service("a.ns"), "a name of the cluster itself"},
		{"all names below the domain", Input{Services: []*api.Service{public("a.ns", 443, through("*.cardea.internal"))}}, service("a.ns"), "a name of the cluster itself"},
		{"the name of another Service", Input{Services: []*api.Service{public("a.ns", 443, through("b.ns.svc.cardea.internal"))}}, service("a.ns"), "a name of the cluster itself"},
		{"a mapping with the name of a Service", Input{Foreign: api.Routes{Routes: []api.Route{foreign("m", 0, at, api.Match{SNI: "a.ns.svc.cardea.internal"})}}}, mapping("m"), "a name of the cluster itself"},
		{"the cluster's own port", Input{Services: []*api.Service{public("a.ns", 443)}, Own: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:443")}}, service("a.ns"), "*:443 is an address of the cluster itself (127.0.0.1:443)"},
		{"an address of the cluster's own port", Input{Services: []*api.Service{public("a.ns", 443, address("192.0.2.1"))}, Own: []netip.AddrPort{netip.MustParseAddrPort("[::ffff:192.0.2.1]:443")}}, service("a.ns"), "192.0.2.1:443 is an address of the cluster itself"},
		{"no port", Input{Foreign: api.Routes{Routes: []api.Route{foreign("m", 0, api.Bind{Port: 70000}, api.Match{})}}}, mapping("m"), "port 70000"},
		{"no address", Input{Foreign: api.Routes{Routes: []api.Route{foreign("m", 0, api.Bind{Address: "host", Port: 1}, api.Match{})}}}, mapping("m"), `"host" is not an IP address`},
		{"no name", Input{Foreign: api.Routes{Routes: []api.Route{foreign("m", 0, at, api.Match{SNI: "a b"})}}}, mapping("m"), `"a b" is not a server name`},
		{"ALPN of any bytes", Input{Foreign: api.Routes{Routes: []api.Route{foreign("m", 0, at, api.Match{ALPN: []string{"h2"}})}}}, mapping("m"), "need a server name"},
		{"who asks without TLS", Input{Services: []*api.Service{public("a.ns", 443, func(s *api.ServiceSpec) { s.IsAnonymous = false })}}, service("a.ns"), "isTLS"},
		{"names without TLS", Input{Services: []*api.Service{public("a.ns", 443, func(s *api.ServiceSpec) { s.Public.Hosts = []string{"a.b"} })}}, service("a.ns"), "isTLS"},
		{"PROXY headers where there are none", Input{Services: []*api.Service{public("a.ns", 443), public("b.ns", 443, through("x"), func(s *api.ServiceSpec) { s.Public.ProxyProtocol = true })}}, service("b.ns"), "do not begin with a PROXY header, as Service/a.ns came first"},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.in.Domain = "cardea.internal"
			fine := public("fine.ns", 443, address("198.51.100.1"))
			x.in.Services = append(x.in.Services, fine)
			tab := Compile(x.in, nil, noon)
			if status, message := condition(t, tab.Status(x.loser), api.ConditionAccepted); status != "False" || !strings.Contains(message, x.words) {
				t.Errorf("%q: %s", status, message)
			}
			for key := range tab.status {
				if status, message := condition(t, tab.Status(key), api.ConditionAccepted); key != x.loser && status != "True" {
					t.Errorf("%v: %q %s", key, status, message)
				}
			}
			if name, why := where(tab, api.RouteQuestion{Port: 443, Address: "198.51.100.1", NoTLS: true}); name != "fine.ns" {
				t.Errorf("a bad row takes another away: %s", why)
			}
		})
	}
}

func TestOverlaps(t *testing.T) {
	for _, x := range []struct {
		own, bind string
		want      bool
	}{
		{"[::]:1", "192.0.2.1", true}, {"[::]:1", "", true}, {"[::]:1", "2001:db8::1", true},
		{"0.0.0.0:1", "192.0.2.1", true}, {"0.0.0.0:1", "", true}, {"0.0.0.0:1", "::", false}, {"0.0.0.0:1", "2001:db8::1", false},
		{"192.0.2.1:1", "", true}, {"192.0.2.1:1", "0.0.0.0", true}, {"192.0.2.1:1", "::", false}, {"192.0.2.1:1", "192.0.2.2", false}, {"192.0.2.1:2", "", false},
		{"[2001:db8::1]:1", "::", true}, {"[2001:db8::1]:1", "0.0.0.0", false}, {"[2001:db8::1]:1", "2001:db8::1", true},
	} {
		if got := overlaps(netip.MustParseAddrPort(x.own), api.Bind{Address: x.bind, Port: 1}); got != x.want {
			t.Errorf("%s and %q: %v", x.own, x.bind, got)
		}
	}
}

// A Service may have its own name, loses only the names that another has, and says
// what it serves.
func TestPartOfAService(t *testing.T) {
	tab := table(public("a.ns", 443, through("x", "y")), public("b.ns", 443, ended("y", "z", "b.ns.svc.cardea.internal")))
	for sni, want := range map[string]string{"x": "a.ns", "y": "a.ns", "z": "b.ns", "b.ns.svc.cardea.internal": "b.ns"} {
		if name, why := where(tab, api.RouteQuestion{Port: 443, SNI: sni}); name != want {
			t.Errorf("%s goes to %q %s", sni, name, why)
		}
	}
	if status, message := condition(t, tab.Status(service("b.ns")), api.ConditionAccepted); status != "False" || !strings.Contains(message, "(the rest, sni b.ns.svc.cardea.internal or sni z, is served)") {
		t.Errorf("%s: %s", status, message)
	}
	if status, message := condition(t, tab.Status(service("a.ns")), api.ConditionAccepted); status != "True" || message != "sni x or sni y on *:443" {
		t.Errorf("%s: %s", status, message)
	}
	if tab.Status(service("c.ns")) != nil || tab.Status(mapping("m")) != nil {
		t.Error("there is a status of what is not there")
	}
}

// What lacks something keeps its place, and refuses.
func TestRefusedRows(t *testing.T) {
	secret := func(name string) func(*api.ServiceSpec) {
		return func(s *api.ServiceSpec) { s.Public.Certificate = &api.PublicCertificate{FromSecret: name} }
	}
	bad := foreign("m", 0, api.Bind{Port: 443}, api.Match{SNI: "m"})
	bad.Refused = "Secret/ns/x is not there"
	none := foreign("none", 0, api.Bind{Port: 443}, api.Match{SNI: "none"})
	none.Members[0].Weight = 0
	terms := foreign("terms", 0, api.Bind{Port: 443}, api.Match{SNI: "terms"})
	terms.Terminate = &api.Termination{Certificate: &api.Material{Chain: "c", Key: "k"}, TLSTerms: api.TLSTerms{Curves: []string{"P-1"}}}
	tab := Compile(Input{
		Services: []*api.Service{
			public("missing.ns", 443, ended("missing"), secret("missing")), public("empty.ns", 443, ended("empty"), secret("empty")),
			public("keyless.ns", 443, ended("keyless"), secret("keyless")), public("good.ns", 443, ended("good"), secret("good")), public("any.ns", 443, through("*")),
		},
		Secrets: map[string]*api.CertificateFacts{"empty": nil, "keyless": {}, "good": {HasKey: true}},
		Foreign: api.Routes{Routes: []api.Route{bad, none, terms}},
	}, nil, noon)
	for sni, want := range map[string]string{
		"missing": "Secret missing is not there", "empty": "Secret empty does not hold", "keyless": "Secret keyless does not hold",
		"m": "TCPMapping/ns/m lacks something, and refuses every connection: Secret/ns/x", "none": "nobody has a share", "terms": "P-1",
	} {
		if _, why := where(tab, api.RouteQuestion{Port: 443, SNI: sni}); !strings.Contains(why, want) {
			t.Errorf("%s: %q", sni, why)
		}
	}
	for key, want := range map[api.Key]string{service("missing.ns"): "False", service("empty.ns"): "False", service("keyless.ns"): "False", service("good.ns"): "True", service("any.ns"): "", mapping("none"): "False", mapping("terms"): "False"} {
		if status, message := condition(t, tab.Status(key), api.ConditionResolved); status != want {
			t.Errorf("%v: %q %s", key, status, message)
		}
		if status, _ := condition(t, tab.Status(key), api.ConditionAccepted); status != "True" {
			t.Errorf("%v is not accepted", key)
		}
	}
}

// The sequence of a row that stays goes on, under its version; another row, and one
// with other weights, begins anew.
func TestTurnsGoOn(t *testing.T) {
	split := func(a, b int) Input {
		r := foreign("a", 0, api.Bind{Port: 1}, api.Match{})
		r.Members = []api.Member{{Object: mapping("a"), Weight: a}, {Object: mapping("b"), Weight: b}}
		return Input{Foreign: api.Routes{Routes: []api.Route{r}}, Services: []*api.Service{public("s.ns", 2)}}
	}
	version := func(tab *Table) string { return tab.Ask(api.RouteQuestion{Port: 1}).Version }
	turn := func(tab *Table) int { return tab.listeners[api.Bind{Port: 1}].rows[0].turns.take() }
	one := Compile(split(1, 1), nil, noon)
	if v := version(one); len(v) != 8 || strings.ToLower(v) != v {
		t.Errorf("version %q", v)
	}
	if turn(one) != 0 {
		t.Error("the first has not the first turn")
	}
	two := Compile(split(1, 1), one, noon.Add(time.Second))
	if version(two) != version(one) || turn(two) != 1 || turn(one) != 0 {
		t.Error("a table of the same rows begins anew")
	}
	three := Compile(split(1, 2), two, noon.Add(time.Second))
	four := Compile(split(1, 1), three, noon.Add(time.Second))
	if version(three) == version(two) || version(four) == version(one) || version(four) == version(three) {
		t.Errorf("versions %s, %s, %s, %s", version(one), version(two), version(three), version(four))
	}
	if turn(four) != 0 {
		t.Error("a sequence that begins anew goes on where another was")
	}
	if a, b := one.Ask(api.RouteQuestion{Port: 2}).Version, four.Ask(api.RouteQuestion{Port: 2}).Version; a == "" || a != b {
		t.Errorf("an unrelated row has the versions %q and %q", a, b)
	}
}

// A condition that stays as it is keeps its Since.
func TestSince(t *testing.T) {
	in := Input{Services: []*api.Service{public("a.ns", 1), public("b.ns", 1)}}
	one := Compile(in, nil, noon)
	in.Services[1].Spec.Port, in.Services[1].Status.Port = 2, 2
	two := Compile(in, one, noon.Add(time.Hour))
	for name, want := range map[string]time.Time{"a.ns": noon, "b.ns": noon.Add(time.Hour)} {
		if c := two.Status(service(name)).Condition(api.ConditionAccepted); c.Since != want || c.Status != "True" {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestProxied(t *testing.T) {
	proxied := func(s *api.ServiceSpec) { s.Public.ProxyProtocol = true }
	tab := Compile(Input{
		Services: []*api.Service{public("a.ns", 1, through("a"), proxied), public("b.ns", 1, through("b")), public("c.ns", 2), public("d.ns", 3)},
		Foreign:  api.Routes{Proxied: []api.Bind{{Port: 3}, {Port: 4}}},
	}, nil, noon)
	for port, want := range map[int]bool{1: true, 2: false, 3: true} {
		if tab.listeners[api.Bind{Port: port}].proxied != want {
			t.Errorf("port %d: %v", port, !want)
		}
	}
	for name, want := range map[string]string{"a.ns": "", "b.ns": "connections to *:1 begin with a PROXY header, as Service/a.ns says", "c.ns": "", "d.ns": "connections to *:3 begin with a PROXY header, as a Listener says"} {
		if notes := strings.Join(tab.Status(service(name)).Notes, "; "); notes != want {
			t.Errorf("%s: %q", name, notes)
		}
	}
}

// What is anonymous and makes no conditions is reached at the cluster's own port.
func TestPublicNames(t *testing.T) {
	r := &Router{}
	r.table.Store(table(
		public("raw.ns", 1), public("web.ns", 443, ended("www.example.com", "*.example.org", "*")), public("late.ns", 444, ended("www.example.com", "late.example.com")),
		public("asks.ns", 445, ended("asks.example.com"), func(s *api.ServiceSpec) { s.IsAnonymous = false }),
		public("from.ns", 446, ended("from.example.com"), coming("10.0.0.0/8")), public("through.ns", 447, through("through.example.com")),
		public("alpn.ns", 448, ended("alpn.example.com"), offered("h2")), public("greedy.ns", 449, ended("api.cardea.internal")),
		public("private.ns", 450, func(s *api.ServiceSpec) { s.IsPublic, s.IsAnonymous = false, false }),
	))
	for sni, want := range map[string]string{
		"raw.ns.svc.cardea.internal": "raw.ns", "WEB.ns.svc.cardea.internal": "web.ns", "www.example.com": "web.ns", "a.example.org": "web.ns", "late.example.com": "late.ns",
		"asks.ns.svc.cardea.internal": "", "asks.example.com": "", "from.example.com": "", "from.ns.svc.cardea.internal": "", "through.ns.svc.cardea.internal": "",
		"alpn.example.com": "", "api.cardea.internal": "", "greedy.ns.svc.cardea.internal": "greedy.ns", "private.ns.svc.cardea.internal": "", "else.example.com": "", "": "",
	} {
		if name, ok := r.PublicName(sni); name != want || ok != (want != "") {
			t.Errorf("%q is %q, %v", sni, name, ok)
		}
	}
}

// The cluster vouches for the server names of a Service, but for no other name of its
// own, at the port of the Service and at the cluster's.
func TestClusterHosts(t *testing.T) {
	tab := table(
		public("web.ns", 443, ended("www.Example.com", "*.example.org", "*", "*.svc.cardea.internal", "api.cardea.internal", "cardea.internal", "web.ns.svc.cardea.internal")),
		public("plain.ns", 444, ended()),
	)
	want := []string{"*.example.org", "www.example.com"}
	if got := tab.of[service("web.ns")][0].Terminate; got.ClusterName != "web.ns.svc.cardea.internal" || !slices.Equal(got.ClusterHosts, want) {
		t.Errorf("%+v", got)
	}
	if got := tab.of[service("plain.ns")][0].Terminate; got.ClusterName != "plain.ns.svc.cardea.internal" || got.ClusterHosts != nil {
		t.Errorf("%+v", got)
	}
	s := newSite(t).run()
	var asked []string
	s.ClusterCertificate = func(name string, more ...string) (*tls.Certificate, error) {
		asked = append([]string{name}, more...)
		return s.pki.leaf(name), nil
	}
	port := freePort(t)
	s.set(public("web.ns", port, local, ended("*.example.org", "www.example.com")))
	want = append([]string{"web.ns.svc.cardea.internal"}, want...)
	if c, err := s.PublicCertificate("a.example.org"); c == nil || err != nil || !slices.Equal(asked, want) {
		t.Errorf("%v, %v of %q", c, err, asked)
	}
	asked = nil
	s.dial(at("127.0.0.1", port), helloOf(t, &tls.Config{ServerName: "www.example.com"})...).CloseWrite()
	<-s.refusals
	if !slices.Equal(asked, want) {
		t.Errorf("%q", asked)
	}
}

// TestAsk shows what a person reads.
func TestAsk(t *testing.T) {
	r := foreign("a", 0, api.Bind{Address: "0.0.0.0", Port: 2222}, api.Match{SNI: "db.x"})
	r.Terminate = &api.Termination{Certificate: &api.Material{Chain: "/tls/db.pem", Key: "/tls/db.key"}, ClientCA: &api.Material{Chain: "/tls/ca.pem"}, RequireClientCertificate: true}
	r.Members = []api.Member{
		{Object: mapping("a"), Weight: 70, Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://old:5432", ProxyProtocol: api.ProxyV2}}},
		{Object: mapping("b"), Weight: 30, Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tls://new:5432"}, TLS: &api.UpstreamTLS{ServerName: "new", Verification: api.VerificationReport}}},
	}
	tab := Compile(Input{Foreign: api.Routes{Routes: []api.Route{r}}, Services: []*api.Service{public("far.ns", 2222, address("0.0.0.0"), through("db.x"), coming("10.0.0.0/8")), public("every.ns", 2222)}}, nil, noon)
	a := tab.Ask(api.RouteQuestion{Port: 2222, Address: "192.0.2.1", SNI: "db.x", From: "192.0.2.7"})
	want := []string{
		"port 2222 has 2 listeners (0.0.0.0:2222, *:2222): connections to 192.0.2.1 belong to 0.0.0.0:2222, which says most exactly where",
		"listener 0.0.0.0:2222 has 2 rows",
		"server name db.x: the best match is server name db.x",
		"Service/far.ns (sni db.x, from 10.0.0.0/8) does not match: 192.0.2.7 is not in 10.0.0.0/8",
		"TCPMapping/ns/a (sni db.x) matches",
		"the share of TCPMapping/ns/a is 70 of 100 new connections",
		"the share of TCPMapping/ns/b is 30 of 100 new connections",
		"then a DENY in the ClusterConfig or in Namespace ns, if there is one, refuses",
	}
	if !slices.Equal(a.Steps, want) {
		t.Errorf("%s", strings.Join(a.Steps, "\n"))
	}
	if a.Listener != "0.0.0.0:2222" || a.Match != "sni db.x" || *a.Owner != mapping("a") || a.TLS != "TLS ends here, with the certificate in file /tls/db.pem; the client must show a certificate that verifies against file /tls/ca.pem" {
		t.Errorf("%+v", a)
	}
	shares := []api.RouteShare{
		{Object: mapping("a"), Weight: 70, Of: 100, Endpoints: []string{"old:5432"}, TLS: "cleartext to the upstream", Notes: []string{"the upstream is sent a PROXY header, version 2"}},
		{Object: mapping("b"), Weight: 30, Of: 100, Endpoints: []string{"new:5432"}, TLS: "TLS to the upstream, server name new, verified against the CAs of the system; if that fails, it is reported, and the connection is made"},
	}
	if !reflect.DeepEqual(a.Members, shares) {
		t.Errorf("%+v", a.Members)
	}
}

// TestAskSteps is what a person reads of rows of other kinds.
func TestAskSteps(t *testing.T) {
	private := public("private.ns", 5432, ended("p.x"), func(s *api.ServiceSpec) { s.IsAnonymous = false })
	tab := table(public("pg.ns", 5432, ended("db.x", "*.cardea.internal"), postgres), private, public("any.ns", 5432), public("bare.ns", 1))
	decided := "then policies decide: cardea why USER %s, or for who has no Session those of the Service, its Namespace and the ClusterConfig"
	for _, x := range []struct {
		q     api.RouteQuestion
		steps []string
	}{
		{api.RouteQuestion{Port: 5432, SNI: "db.x"}, []string{"TLS from the first byte needs ALPN postgresql", "the share of Service/pg.ns is 1 of 1 new connections", fmt.Sprintf(decided, "pg.ns")}},
		{api.RouteQuestion{Port: 5432, SNI: "p.x"}, []string{"(sni p.x) matches", "the share of Service/private.ns is 1 of 1 new connections", "then policies decide: cardea why USER private.ns"}},
		{api.RouteQuestion{Port: 5432, NoTLS: true}, []string{"a client that says nothing gets here after a fifth of helloTimeout (1s): so long a server that speaks first is not reached", "the share of Service/any.ns is 1 of 1 new connections", fmt.Sprintf(decided, "any.ns")}},
		{api.RouteQuestion{Port: 1, NoTLS: true}, []string{"(any bytes) matches", "the share of Service/bare.ns is 1 of 1 new connections", fmt.Sprintf(decided, "bare.ns")}},
	} {
		steps := tab.ask(x.q, 5*time.Second).Steps
		last := steps[len(steps)-len(x.steps):]
		if !strings.HasSuffix(last[0], x.steps[0]) || !slices.Equal(last[1:], x.steps[1:]) {
			t.Errorf("%+v: %s", x.q, strings.Join(last, "\n"))
		}
	}
	steps := strings.Join(tab.Ask(api.RouteQuestion{Port: 5432, NoTLS: true}).Steps, "\n")
	if !strings.Contains(steps, "after a fifth of helloTimeout: so long") {
		t.Errorf("without a Router:\n%s", steps)
	}
	// What a Router knows comes with it.
	r := &Router{Settings: func() *api.ClusterRouting { return &api.ClusterRouting{HelloTimeout: milliseconds(500)} }}
	r.table.Store(tab)
	if steps := strings.Join(r.Ask(api.RouteQuestion{Port: 5432, NoTLS: true}).Steps, "\n"); !strings.Contains(steps, "(100ms)") {
		t.Errorf("of a Router:\n%s", steps)
	}
}

// random returns an input in which much is the same and some is wrong.
func random(r *rand.Rand) Input {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	in := Input{Domain: "cardea.internal", Host: pick("", "127.0.0.1"), Foreign: api.Routes{Status: map[api.Key]*api.RouteStatus{}}}
	name := func() string {
		return pick("", "*", "a.b", "*.b", "*.a.b", "A.B", "c", "x y", "api.cardea.internal", "*.", "a..b", "*.*")
	}
	sources := func() (list []string) {
		for range r.IntN(3) {
			list = append(list, pick("10.0.0.0/8", "10.1.0.0/16", "::/0", "bad", "::ffff:10.0.0.0/104", "0.0.0.0/0"))
		}
		return list
	}
	for i := range r.IntN(8) {
		s := public(fmt.Sprintf("s%d.ns", i), r.IntN(3))
		s.Metadata.CreatedAt = noon.Add(time.Duration(r.IntN(3)) * time.Second)
		s.Spec.IsTLS, s.Spec.IsAnonymous, s.Spec.IsPublic = r.IntN(2) == 0, r.IntN(4) > 0, r.IntN(6) > 0
		s.Spec.Public = &api.ServicePublic{Address: pick("", "", "127.0.0.1", "0.0.0.0", "::", "bad"), Passthrough: r.IntN(3) == 0, Sources: sources(), ProxyProtocol: r.IntN(6) == 0}
		for range r.IntN(3) {
			s.Spec.Public.Hosts = append(s.Spec.Public.Hosts, name())
		}
		if r.IntN(4) == 0 {
			s.Spec.Public = nil
		}
		in.Services = append(in.Services, s)
	}
	for i := range r.IntN(8) {
		x := foreign(fmt.Sprintf("m%d", i), r.IntN(3), api.Bind{Address: pick("", "127.0.0.1", "::", "bad"), Port: r.IntN(4)}, api.Match{SNI: name()})
		for _, text := range sources() {
			p, _ := netip.ParsePrefix(text)
			x.Match.Sources = append(x.Match.Sources, p)
		}
		if r.IntN(3) == 0 {
			x.Match.ALPN = []string{pick("h2", "", "x")}
		}
		for j := range r.IntN(3) {
			x.Members = append(x.Members, api.Member{Object: mapping(fmt.Sprintf("m%d-%d", i, j)), Weight: r.IntN(200) - 50})
		}
		if r.IntN(5) == 0 {
			x.Members = nil
		}
		if r.IntN(3) == 0 {
			x.Terminate = &api.Termination{}
		}
		if r.IntN(5) == 0 {
			x.Refused = "it lacks something"
		}
		in.Foreign.Routes = append(in.Foreign.Routes, x)
	}
	if r.IntN(4) == 0 {
		in.Foreign.Proxied = []api.Bind{{Port: 1}, {Address: "bad", Port: 2}}
	}
	if r.IntN(4) == 0 {
		in.Own = []netip.AddrPort{netip.MustParseAddrPort(pick("127.0.0.1:1", "[::]:2", "0.0.0.0:1"))}
	}
	return in
}

// view is what can be seen of a table.
func view(t *Table) string {
	var out []any
	for _, port := range []int{0, 1, 2, 3} {
		for _, address := range []string{"", "127.0.0.1", "192.0.2.1", "::1"} {
			for _, sni := range []string{"", "a.b", "x.a.b", "c", "d", "api.cardea.internal", "*"} {
				for _, from := range []string{"", "10.1.2.3", "2001:db8::1"} {
					out = append(out, t.Ask(api.RouteQuestion{Port: port, Address: address, SNI: sni, From: from, NoTLS: sni == "*", ALPN: []string{"h2"}}))
				}
			}
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(t.status), compareKeys) {
		out = append(out, key, t.status[key])
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// FuzzCompile: whatever the input is, the table is the same for the same input in
// any order, each Object that has a row or wants one has a status, and to leave out
// a row that is not accepted changes nothing for the others.
func FuzzCompile(f *testing.F) {
	for seed := range uint64(50) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		in := random(r)
		tab := Compile(in, nil, noon)
		seen := view(tab)
		shuffled := in
		shuffled.Services, shuffled.Foreign.Routes = slices.Clone(in.Services), slices.Clone(in.Foreign.Routes)
		r.Shuffle(len(in.Services), func(i, j int) {
			shuffled.Services[i], shuffled.Services[j] = shuffled.Services[j], shuffled.Services[i]
		})
		r.Shuffle(len(in.Foreign.Routes), func(i, j int) {
			shuffled.Foreign.Routes[i], shuffled.Foreign.Routes[j] = shuffled.Foreign.Routes[j], shuffled.Foreign.Routes[i]
		})
		if again := view(Compile(shuffled, nil, noon)); again != seen {
			t.Fatalf("the order of the input matters:\n%s\n%s", seen, again)
		}
		if again := view(Compile(in, tab, noon.Add(time.Hour))); again != seen {
			t.Fatalf("a table of the same input is another:\n%s\n%s", seen, again)
		}
		lost := func(k api.Key) bool { c := tab.status[k].Condition(api.ConditionAccepted); return c.Status == "False" }
		without := in
		without.Services = slices.DeleteFunc(slices.Clone(in.Services), func(s *api.Service) bool {
			return s.Spec.IsPublic && s.Status.Port != 0 && lost(s.Key()) && len(tab.of[s.Key()]) == 0
		})
		without.Foreign.Routes = slices.DeleteFunc(slices.Clone(in.Foreign.Routes), func(x api.Route) bool {
			return lost(x.Owner) && len(tab.of[x.Owner]) == 0
		})
		less := Compile(without, nil, noon)
		if len(less.rows) != len(tab.rows) {
			t.Fatalf("%d rows without what was not accepted, and %d with it", len(less.rows), len(tab.rows))
		}
		for identity, r := range tab.rows {
			if l := less.rows[identity]; l == nil || l.Refused != r.Refused || l.version != r.version {
				t.Fatalf("%s is another row without what was not accepted", r.words)
			}
		}
	})
}

// many returns n Services on one port, each with a name of its own.
func many(n int) Input {
	in := Input{Domain: "cardea.internal"}
	for i := range n {
		in.Services = append(in.Services, public(fmt.Sprintf("s%d.ns", i), 443, through(fmt.Sprintf("host-%d.example.com", i))))
	}
	return in
}

func BenchmarkCompile(b *testing.B) {
	in := many(10_000)
	before := Compile(in, nil, noon)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			Compile(in, nil, noon)
		}
	})
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			Compile(in, before, noon)
		}
	})
}

func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		l := Compile(many(n), nil, noon).listeners[api.Bind{Port: 443}]
		q := query{tls: true, sni: fmt.Sprintf("host-%d.example.com", n-1), from: netip.MustParseAddr("192.0.2.1")}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if r, why := l.find(q, nil); r == nil {
					b.Fatal(why)
				}
			}
		})
	}
}
