package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"cardea/api"
)

// A name of SRV records stands for their hosts and ports, by priority.
func TestSRV(t *testing.T) {
	s := newNameServer(t)
	s.set("_pg._tcp.db.corp.", "SRV", "20 0 5434 n3.db.corp.", "10 0 5432 n1.db.corp.", "10 65535 5433 n2.db.corp.")
	for i, name := range []string{"n1.db.corp.", "n2.db.corp.", "n3.db.corp."} {
		s.set(name, "A", "192.0.2."+string(rune('1'+i)))
		s.set(name, "AAAA")
	}
	d := newDialer()
	d.lookup = nil
	machine(t, &d.names, s.port, "nameserver 127.0.0.1\n", "")
	var tried []string
	down := map[string]bool{}
	d.connect = func(_ context.Context, at netip.AddrPort) (net.Conn, error) {
		tried = append(tried, at.String())
		if down[at.String()] {
			return nil, syscall.ECONNREFUSED
		}
		return &net.TCPConn{}, nil
	}
	cfg := config("tcp://_pg._tcp.db.corp:1")
	_, report, err := d.Dial(t.Context(), destination("db.default", cfg))
	if err != nil || report.Retries != 0 || len(tried) != 1 || tried[0] == "192.0.2.3:5434" {
		t.Errorf("tried %v: %v, %+v", tried, err, report)
	}
	down["192.0.2.1:5432"], down["192.0.2.2:5433"] = true, true
	tried = nil
	_, report, err = d.Dial(t.Context(), destination("db.default", config("tcp://_pg._tcp.db.corp")))
	if err != nil || report.Retries != 2 || len(tried) != 3 || tried[2] != "192.0.2.3:5434" {
		t.Errorf("tried %v: %v, %+v", tried, err, report)
	}
	down["192.0.2.3:5434"] = true
	_, err = dialTo(d, t.Context(), "db.default", cfg)
	for _, w := range []string{"none of 3 endpoints", "n1.db.corp:5432", "n2.db.corp:5433", "n3.db.corp:5434"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error is %v, and %q is not in it", err, w)
		}
	}
	// Among several endpoints it is one.
	both := config("")
	both.Upstream.Loadbalance = &api.Loadbalance{Endpoints: []api.UpstreamEndpoint{{URL: "tcp://_pg._tcp.db.corp"}, {URL: "tcp://192.0.2.9:80"}}}
	tried = nil
	for i, retries := range []int{0, 1, 0} { // its share is a half
		if _, report, err := d.Dial(t.Context(), destination("web.default", both)); err != nil || report.Retries != retries || tried[len(tried)-1] != "192.0.2.9:80" {
			t.Errorf("dial %d: tried %v: %v, %+v", i, tried, err, report)
		}
	}

	for name, words := range map[string]string{"_none._tcp.corp": "no such host", "_off._tcp.corp": "no such service"} {
		s.set("_off._tcp.corp.", "SRV", "0 0 1 .")
		_, err := dialTo(d, t.Context(), "db.default", config("tcp://"+name))
		x, ok := errors.AsType[*Error](err)
		if !ok || x.Reason != DialFailed || !strings.Contains(x.Words, words) {
			t.Errorf("%s: error is %v, want %q", name, err, words)
		}
	}
	// Neither does it lead to metadata, nor to names that are told of in turn.
	s.set("_meta._tcp.corp.", "SRV", "0 0 80 metadata.google.internal.")
	s.set("_turn._tcp.corp.", "SRV", "0 0 80 _pg._tcp.db.corp.")
	for name, words := range map[string]string{"_meta._tcp.corp": "metadata", "_turn._tcp.corp": "no such host"} {
		if _, err := dialTo(d, t.Context(), "db.default", config("tcp://"+name)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: error is %v, want %q", name, err, words)
		}
	}
}

// With TLS the domain must be proved that the records are of: whoever writes them
// chooses hosts, and not whom to trust.
func TestSRVName(t *testing.T) {
	ca := newIssuer(t, "our CA")
	s := newNameServer(t)
	for name, words := range map[string]string{"db.corp": "", "n1.elsewhere.corp": `not for "db.corp"`} {
		port := accepts(t, "127.0.0.1:0", greeting(&tls.Config{Certificates: []tls.Certificate{ca.issue(t, nil, name)}}))
		s.set("_pg._tcp.db.corp.", "SRV", "0 0 "+port+" n1.elsewhere.corp.")
		s.set("n1.elsewhere.corp.", "A", "127.0.0.1")
		d := newDialer()
		d.lookup = nil
		machine(t, &d.names, s.port, "nameserver 127.0.0.1\n", "")
		for _, given := range []string{"", "_pg._tcp.db.corp"} {
			c, err := dialTo(d, t.Context(), "db.default", secured("tls://_pg._tcp.db.corp", &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}, ServerName: given}))
			if err == nil {
				converses(t, c)
				c.Close()
			}
			if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
				t.Errorf("a certificate for %s: %v, want %q", name, err, words)
			}
		}
	}
}

// Of equal priority weights are shares, and 0 is nearly none.
func TestSRVWeights(t *testing.T) {
	s := newNameServer(t)
	s.set("_pg._tcp.db.corp.", "SRV", "0 30 5432 n1.db.corp.", "0 0 5432 n2.db.corp.", "0 70 5432 n3.db.corp.", "1 99 5432 n4.db.corp.")
	for i := range 4 {
		name := fmt.Sprintf("n%d.db.corp.", i+1)
		s.set(name, "A", fmt.Sprintf("192.0.2.%d", i+1))
		s.set(name, "AAAA")
	}
	d := newDialer()
	d.lookup = nil
	machine(t, &d.names, s.port, "nameserver 127.0.0.1\n", "")
	e := &endpoints{answer: func(int, context.Context) error { return nil }}
	d.connect = e.connect
	first := map[int]int{}
	for range 1000 {
		if _, err := dialTo(d, t.Context(), "db.default", config("tcp://_pg._tcp.db.corp")); err != nil {
			t.Fatal(err)
		}
		first[e.took()[0]]++
	}
	if first[1] < 295 || first[1] > 305 || first[2] > 3 || first[3] < 695 || first[3] > 705 || first[4] > 0 {
		t.Errorf("came first: %v of 1000, want 300 : 0 : 700", first)
	}
}

func TestFamilies(t *testing.T) {
	d := newDialer()
	d.Hosts = func() map[string][]string {
		return map[string][]string{"both.corp": {"192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"}, "four.corp": {"192.0.2.1"}}
	}
	var tried []string
	d.connect = func(_ context.Context, at netip.AddrPort) (net.Conn, error) {
		tried = append(tried, at.Addr().String())
		return nil, syscall.ECONNREFUSED
	}
	for _, c := range []struct {
		host     string
		families []api.IPFamily
		want     []string
		words    string
	}{
		{"both.corp", nil, []string{"192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"}, ""},
		{"both.corp", []api.IPFamily{api.IPv6, api.IPv4}, []string{"2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"}, ""},
		{"both.corp", []api.IPFamily{api.IPv4}, []string{"192.0.2.1", "192.0.2.2"}, ""},
		{"both.corp", []api.IPFamily{api.IPv6}, []string{"2001:db8::1", "2001:db8::2"}, ""},
		{"four.corp", []api.IPFamily{api.IPv6}, nil, "no IPv6 address"},
		{"192.0.2.7", []api.IPFamily{api.IPv6}, []string{"192.0.2.7"}, ""}, // what is no name is what it is
	} {
		tried = nil
		cfg := config("tcp://" + c.host + ":80")
		cfg.Upstream.Families = c.families
		_, err := dialTo(d, t.Context(), fmt.Sprint(c.host, c.families), cfg)
		if !slices.Equal(tried, c.want) || err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s, %v: tried %v (%v), want %v", c.host, c.families, tried, err, c.want)
		}
	}
}

// A name whose address changes is followed by new connections.
func TestDialFollowsDNS(t *testing.T) {
	_, port := listen(t, "127.0.0.1:0")
	other, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Skip(err)
	}
	other.Close() // nobody is there
	s := newNameServer(t)
	s.set("db.corp.", "AAAA")
	s.set("db.corp.", "A", "db.corp. 1 IN A 127.0.0.2")
	d := newDialer()
	d.lookup = nil
	clock := machine(t, &d.names, s.port, "nameserver 127.0.0.1\n", "")
	refused(t, d, "tcp://db.corp:"+port, DialFailed, "127.0.0.2")
	s.set("db.corp.", "A", "db.corp. 1 IN A 127.0.0.1")
	clock.pass(leastTTL)
	greets(t, d, "tcp://db.corp:"+port)
	// And what it resolves to is checked each time.
	s.set("db.corp.", "A", "db.corp. 1 IN A 169.254.169.254")
	clock.pass(leastTTL)
	refused(t, d, "tcp://db.corp:"+port, DialFailed, "link-local")
}

func TestStats(t *testing.T) {
	e := &endpoints{answer: func(last int, _ context.Context) error {
		if last == 1 {
			return syscall.ECONNREFUSED
		}
		return nil
	}}
	d := newDialer()
	d.connect = e.connect
	for range 2 { // 1 then 2, 2
		if _, err := dialTo(d, t.Context(), "db.default", several(2)); err != nil {
			t.Fatal(err)
		}
	}
	got := d.Stats()
	if len(got) != 2 || got[0].Endpoint != "192.0.2.1:80" || got[0].Dialled != 0 || got[0].Failed[DialFailed] != 1 || got[0].Retries != 0 ||
		got[1].Dialled != 2 || got[1].Retries != 1 || len(got[1].Failed) != 0 || got[1].Object.Name != "db.default" {
		t.Errorf("the figures are %+v", got)
	}
	for i := range maxFigures + 10 {
		d.figures.row(api.Key{Name: string(rune(i))}, "x").count(false, nil)
	}
	if got := d.Stats(); len(got) != maxFigures+1 || got[0].Object != (api.Key{}) || got[0].Dialled == 0 {
		t.Errorf("%d figures, the first %+v", len(got), got[0])
	}
}
