package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"cardea/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newServer returns a Server of the domain example.com with the Services nats.default,
// db.prod and hidden.default (of which only "admin" may know), and no fallback.
func newServer() *Server {
	entries := map[string]Entry{}
	for i, e := range []Entry{
		{Service: "nats.default", Port: 4222, Protocol: "tcp"},
		{Service: "db.prod", Port: 5432, Protocol: "tcp"},
		{Service: "hidden.default", Port: 80, Protocol: "tcp"},
	} {
		v4 := netip.AddrFrom4([4]byte{100, 64, 0, byte(16 + i)})
		v6 := netip.MustParsePrefix("fd00:1:2::/64").Addr().As16()
		v6[15] = byte(16 + i)
		e.Addresses = []netip.Addr{v4, netip.AddrFrom16(v6)}
		entries[e.Service] = e
	}
	v4only := entries["nats.default"]
	v4only.Service, v4only.Addresses = "old.default", []netip.Addr{netip.MustParseAddr("100.64.0.30")}
	entries["old.default"] = v4only
	s := &Server{
		Domain: "Example.com",
		Find:   func(service string) (Entry, bool) { e, ok := entries[service]; return e, ok },
		At: func(addr netip.Addr) (string, bool) {
			for name, e := range entries {
				for _, a := range e.Addresses {
					if a == addr {
						return name, true
					}
				}
			}
			return "", false
		},
		Plan: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/12"), netip.MustParsePrefix("fd00:1:2::/64")},
		Own:  []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:1:2::1")},
		May: func(_ context.Context, session, service string) bool {
			return session == "admin" || service != "hidden.default"
		},
		Log: slog.New(slog.DiscardHandler),
	}
	s.fallback.machine.path = "/nonexistent"
	return s
}

// ask returns the answer to a question, which must be one.
func ask(t *testing.T, s *Server, session string, q *dns.Msg, stream bool) *dns.Msg {
	t.Helper()
	query, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	text := s.Answer(t.Context(), session, query, stream)
	if text == nil {
		t.Fatal("no answer")
	}
	m := new(dns.Msg)
	if err := m.Unpack(text); err != nil {
		t.Fatal(err)
	}
	if m.Id != q.Id || !m.Response {
		t.Errorf("the answer has id %d, response %t", m.Id, m.Response)
	}
	return m
}

func query(name string, kind uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, kind) }

// text returns the code and the records of a message on one line.
func text(m *dns.Msg) string {
	parts := []string{dns.RcodeToString[m.Rcode]}
	if m.Authoritative {
		parts = append(parts, "aa")
	}
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			line := strings.Join(strings.Fields(rr.String()), " ")
			line = strings.Replace(line, " 5 IN ", " ", 1)
			parts = append(parts, []string{"", "auth:", "more:"}[i]+line)
		}
	}
	return strings.Join(parts, "; ")
}

func TestOwnNames(t *testing.T) {
	const (
		soaSvc  = "auth:svc.example.com. SOA dns.example.com. hostmaster.example.com. 1 3600 600 86400 5"
		soaTail = " SOA dns.example.com. hostmaster.example.com. 1 3600 600 86400 5"
		refused = "REFUSED"
	)
	rows := []struct {
		name string
		kind uint16
		want string
	}{
		{"nats.", dns.TypeA, "NOERROR; aa; nats. A 100.64.0.16"},
		{"nats.", dns.TypeAAAA, "NOERROR; aa; nats. AAAA fd00:1:2::10"},
		{"nats.default.", dns.TypeA, "NOERROR; aa; nats.default. A 100.64.0.16"},
		{"db.prod.", dns.TypeA, "NOERROR; aa; db.prod. A 100.64.0.17"},
		{"nats.svc.example.com.", dns.TypeA, "NOERROR; aa; nats.svc.example.com. A 100.64.0.16"},
		{"NATS.Default.SVC.EXAMPLE.com.", dns.TypeA, "NOERROR; aa; NATS.Default.SVC.EXAMPLE.com. A 100.64.0.16"},
		{"db.prod.svc.example.com.", dns.TypeAAAA, "NOERROR; aa; db.prod.svc.example.com. AAAA fd00:1:2::11"},
		{"nats.local.example.com.", dns.TypeA, "NOERROR; aa; nats.local.example.com. A 100.64.0.16"},
		{"db.prod.local.example.com.", dns.TypeA, "NOERROR; aa; db.prod.local.example.com. A 100.64.0.17"},
		{"db.prod.svc.example.com.", dns.TypeSRV, "NOERROR; aa; db.prod.svc.example.com. SRV 0 0 5432 db.prod.svc.example.com.; " +
			"more:db.prod.svc.example.com. A 100.64.0.17; more:db.prod.svc.example.com. AAAA fd00:1:2::11"},
		{"nats.", dns.TypeSRV, "NOERROR; aa; nats. SRV 0 0 4222 nats.default.svc.example.com.; " +
			"more:nats.default.svc.example.com. A 100.64.0.16; more:nats.default.svc.example.com. AAAA fd00:1:2::10"},
		{"_any._tcp.db.prod.svc.example.com.", dns.TypeSRV, "NOERROR; aa; _any._tcp.db.prod.svc.example.com. SRV 0 0 5432 db.prod.svc.example.com.; " +
			"more:db.prod.svc.example.com. A 100.64.0.17; more:db.prod.svc.example.com. AAAA fd00:1:2::11"},
		{"_any._tcp.db.prod.svc.example.com.", dns.TypeA, "NOERROR; aa; " + soaSvc},
		{"_tcp.db.prod.svc.example.com.", dns.TypeSRV, "NOERROR; aa; " + soaSvc},
		{"_any._udp.db.prod.svc.example.com.", dns.TypeSRV, "NXDOMAIN; aa; " + soaSvc},
		{"_any._tcp._tcp.db.prod.svc.example.com.", dns.TypeSRV, "NXDOMAIN; aa; " + soaSvc},
		{"_any._tcp.nope.svc.example.com.", dns.TypeSRV, "NXDOMAIN; aa; " + soaSvc},
		{"_any._tcp.svc.example.com.", dns.TypeSRV, "NXDOMAIN; aa; " + soaSvc},
		{"_any._tcp.hidden.svc.example.com.", dns.TypeSRV, "NXDOMAIN; aa; " + soaSvc},
		{"gateway.example.com.", dns.TypeA, "NOERROR; aa; gateway.example.com. A 100.64.0.1"},
		{"dns.example.com.", dns.TypeAAAA, "NOERROR; aa; dns.example.com. AAAA fd00:1:2::1"},

		// What is not there, and what has no such records.
		{"nope.svc.example.com.", dns.TypeA, "NXDOMAIN; aa; " + soaSvc},
		{"a.b.c.svc.example.com.", dns.TypeA, "NXDOMAIN; aa; " + soaSvc},
		{`nats\.default.svc.example.com.`, dns.TypeA, "NXDOMAIN; aa; " + soaSvc},
		{"nats.svc.example.com.", dns.TypeTXT, "NOERROR; aa; " + soaSvc},
		{"old.svc.example.com.", dns.TypeAAAA, "NOERROR; aa; " + soaSvc},
		{"old.", dns.TypeAAAA, "NOERROR; aa; auth:old." + soaTail},
		{"gateway.example.com.", dns.TypeMX, "NOERROR; aa; auth:gateway.example.com." + soaTail},
		{"svc.example.com.", dns.TypeA, "NOERROR; aa; " + soaSvc},
		{"svc.example.com.", dns.TypeSOA, "NOERROR; aa; " + strings.TrimPrefix(soaSvc, "auth:")},
		{"local.example.com.", dns.TypeNS, "NOERROR; aa; local.example.com. NS dns.example.com.; " +
			"more:dns.example.com. A 100.64.0.1; more:dns.example.com. AAAA fd00:1:2::1"},
		{"example.com.", dns.TypeA, "NOERROR; aa; auth:example.com." + soaTail},
		{"portal.example.com.", dns.TypeA, "NXDOMAIN; aa; auth:example.com." + soaTail},

		// ANY gets as little as may be.
		{"nats.", dns.TypeANY, `NOERROR; aa; nats. HINFO "RFC8482" ""`},
		{"nope.svc.example.com.", dns.TypeANY, "NXDOMAIN; aa; " + soaSvc},

		// What the Session may not know of is as what is not there.
		{"hidden.svc.example.com.", dns.TypeA, "NXDOMAIN; aa; " + soaSvc},
		{"hidden.default.svc.example.com.", dns.TypeSRV, "NXDOMAIN; aa; " + soaSvc},
		{"hidden.", dns.TypeA, refused},
		{"18.0.64.100.in-addr.arpa.", dns.TypePTR, "NXDOMAIN; aa; auth:0.64.100.in-addr.arpa." + soaTail},

		// Reverse names.
		{"17.0.64.100.in-addr.arpa.", dns.TypePTR, "NOERROR; aa; 17.0.64.100.in-addr.arpa. PTR db.prod.svc.example.com."},
		{reverse("fd00:1:2::11"), dns.TypePTR, "NOERROR; aa; " + reverse("fd00:1:2::11") + " PTR db.prod.svc.example.com."},
		{"1.0.64.100.in-addr.arpa.", dns.TypePTR, "NOERROR; aa; 1.0.64.100.in-addr.arpa. PTR dns.example.com."},
		{"99.0.64.100.in-addr.arpa.", dns.TypePTR, "NXDOMAIN; aa; auth:0.64.100.in-addr.arpa." + soaTail},
		{"17.0.64.100.in-addr.arpa.", dns.TypeA, "NOERROR; aa; auth:0.64.100.in-addr.arpa." + soaTail},
		{"1.2.3.4.in-addr.arpa.", dns.TypePTR, refused},
		{"017.0.64.100.in-addr.arpa.", dns.TypePTR, refused},

		// Others' names, without a fallback.
		{"nope.", dns.TypeA, refused},
		{"www.example.org.", dns.TypeA, refused},
		{"nats.default.svc.", dns.TypeA, refused},
		{"notexample.com.", dns.TypeA, refused},
		{".", dns.TypeNS, refused},
		{"nats.", dns.TypeAXFR, refused},
		{"nats.", dns.TypeIXFR, refused},
		{"nats.", dns.TypeOPT, refused},
	}
	s := newServer()
	for _, r := range rows {
		if got := text(ask(t, s, "guest", query(r.name, r.kind), false)); got != r.want {
			t.Errorf("%s %s:\n got %s\nwant %s", r.name, dns.TypeToString[r.kind], got, r.want)
		}
	}
	if got, want := text(ask(t, s, "admin", query("hidden.", dns.TypeA), false)), "NOERROR; aa; hidden. A 100.64.0.18"; got != want {
		t.Errorf("who may know: %s, want %s", got, want)
	}
}

func reverse(addr string) string {
	name, _ := dns.ReverseAddr(addr)
	return name
}

// What is no proper question is refused, or not answered at all.
func TestMessages(t *testing.T) {
	s := newServer()
	good, _ := query("nats.", dns.TypeA).Pack()
	change := func(f func(m *dns.Msg)) []byte {
		m := query("nats.", dns.TypeA)
		f(m)
		text, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	opt := func(m *dns.Msg) *dns.OPT { return m.SetEdns0(1232, false).IsEdns0() }
	for name, row := range map[string]struct {
		query []byte
		want  int // -1: no answer
	}{
		"a question":         {good, dns.RcodeSuccess},
		"nothing":            {nil, -1},
		"half a header":      {good[:11], -1},
		"an answer":          {change(func(m *dns.Msg) { m.Response = true }), -1},
		"a header":           {good[:12], dns.RcodeFormatError},
		"half a question":    {good[:15], dns.RcodeFormatError},
		"no question":        {change(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		"two questions":      {change(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		"with an answer":     {change(func(m *dns.Msg) { m.Answer = []dns.RR{s.soa("x.")} }), dns.RcodeFormatError},
		"NOTIFY":             {change(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		"UPDATE":             {change(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"STATUS":             {change(func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }), dns.RcodeNotImplemented},
		"another class":      {change(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"any class":          {change(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
		"EDNS":               {change(func(m *dns.Msg) { opt(m) }), dns.RcodeSuccess},
		"two OPT records":    {change(func(m *dns.Msg) { m.Extra = append(m.Extra, opt(m)) }), dns.RcodeFormatError},
		"EDNS of the future": {change(func(m *dns.Msg) { opt(m).SetVersion(1) }), dns.RcodeBadVers},
		"an unknown option": {change(func(m *dns.Msg) {
			o := opt(m)
			o.Option = append(o.Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")})
		}), dns.RcodeSuccess},
		"too large": {change(func(m *dns.Msg) {
			o := opt(m)
			o.Option = append(o.Option, &dns.EDNS0_LOCAL{Code: 65001, Data: make([]byte, maxQuery)})
		}), dns.RcodeFormatError},
	} {
		answer := s.Answer(t.Context(), "guest", row.query, false)
		if answer == nil {
			if row.want >= 0 {
				t.Errorf("%s: no answer", name)
			}
			continue
		}
		m := new(dns.Msg)
		if err := m.Unpack(answer); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if m.Rcode != row.want {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[m.Rcode], dns.RcodeToString[row.want])
		}
		if !m.Response || m.Id != uint16(row.query[0])<<8|uint16(row.query[1]) {
			t.Errorf("%s: the answer is of another query", name)
		}
	}
}

// An OPT record is answered by one, and only then there is one; DO comes back (RFC 3225).
func TestEDNS(t *testing.T) {
	s := newServer()
	if m := ask(t, s, "guest", query("nats.", dns.TypeA), false); m.IsEdns0() != nil {
		t.Error("an OPT record that nobody asked for")
	}
	for _, do := range []bool{false, true} {
		o := ask(t, s, "guest", query("nats.", dns.TypeA).SetEdns0(4096, do), false).IsEdns0()
		if o == nil || o.Version() != 0 || o.UDPSize() != maxDatagram || o.Do() != do {
			t.Errorf("DO %t: %v", do, o)
		}
	}
	m := ask(t, s, "guest", query("www.example.org.", dns.TypeA).SetEdns0(4096, false), false)
	var words string
	for _, o := range m.IsEdns0().Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			words = e.ExtraText
		}
	}
	if !strings.Contains(words, "no name servers") {
		t.Errorf("why it is refused is not said: %v", m)
	}
}

// A datagram is no larger than the asker takes and than passes everywhere; a stream has
// all.
func TestTruncation(t *testing.T) {
	s := newServer()
	many := Entry{Service: "many.default", Port: 1}
	for i := range 100 {
		many.Addresses = append(many.Addresses, netip.AddrFrom4([4]byte{100, 64, 1, byte(i)}))
	}
	s.Find = func(string) (Entry, bool) { return many, true }
	for _, row := range []struct {
		edns   uint16 // 0: none
		stream bool
		most   int
		whole  bool
	}{
		{0, false, 512, false},
		{100, false, 512, false},
		{700, false, 700, false},
		{4096, false, maxDatagram, false},
		{0, true, 65535, true},
		{512, true, 65535, true},
	} {
		q := query("many.", dns.TypeA)
		if row.edns > 0 {
			q.SetEdns0(row.edns, false)
		}
		text, _ := q.Pack()
		answer := s.Answer(t.Context(), "guest", text, row.stream)
		m := new(dns.Msg)
		if err := m.Unpack(answer); err != nil {
			t.Fatal(err)
		}
		if len(answer) > row.most || m.Truncated == row.whole || row.whole && len(m.Answer) != 100 || row.edns > 0 && m.IsEdns0() == nil {
			t.Errorf("%+v: %d bytes, %d records, truncated %t", row, len(answer), len(m.Answer), m.Truncated)
		}
	}
}

// Whatever is asked, the answer is a message that answers it.
func FuzzAnswer(f *testing.F) {
	for _, q := range []*dns.Msg{
		query("nats.", dns.TypeA), query("db.prod.svc.example.com.", dns.TypeSRV).SetEdns0(4096, true),
		query("17.0.64.100.in-addr.arpa.", dns.TypePTR), query(reverse("fd00:1:2::11"), dns.TypePTR), query(".", dns.TypeANY),
	} {
		text, _ := q.Pack()
		f.Add(text, false)
		f.Add(text, true)
	}
	s := newServer()
	f.Fuzz(func(t *testing.T, query []byte, stream bool) {
		answer := s.Answer(t.Context(), "guest", query, stream)
		isQuery := len(query) >= 12 && query[2]&0x80 == 0
		if isQuery != (answer != nil) {
			t.Fatalf("a query: %t, an answer: %x", isQuery, answer)
		}
		if answer == nil {
			return
		}
		if answer[0] != query[0] || answer[1] != query[1] || answer[2]&0x80 == 0 || answer[2]&0x78 != query[2]&0x78 {
			t.Errorf("%x is no answer to %x", answer[:4], query[:4])
		}
		if !stream && len(answer) > maxDatagram {
			t.Errorf("a datagram of %d bytes", len(answer))
		}
		m := new(dns.Msg)
		if err := m.Unpack(answer); err != nil {
			t.Errorf("the answer cannot be read: %v", err)
		}
		if m.Rcode == dns.RcodeServerFailure {
			t.Errorf("SERVFAIL without a fallback, to %x", query)
		}
	})
}

// What others say is read as warily.
func FuzzParseAnswer(f *testing.F) {
	m := new(dns.Msg).SetReply(query("example.org.", dns.TypeA))
	m.Answer = []dns.RR{addressRecord("example.org.", netip.MustParseAddr("192.0.2.1"))}
	m.Id = 7
	text, _ := m.Pack()
	f.Add(text)
	s := newServer()
	f.Fuzz(func(t *testing.T, text []byte) {
		m := parseAnswer(text, 7, question{name: "example.org.", kind: dns.TypeA})
		if m == nil {
			return
		}
		if m.Id != 7 || !m.Response {
			t.Errorf("taken for an answer: %v", m)
		}
		lifetime(m)
		s.leadsInside(t.Context(), "guest", m)
		reply := new(dns.Msg).SetReply(query("example.org.", dns.TypeA))
		reply.Answer, reply.Ns, reply.Extra = m.Answer, m.Ns, m.Extra
		if out := pack(reply, nil, nil, false); len(out) > dns.MinMsgSize {
			t.Errorf("a datagram of %d bytes", len(out))
		}
	})
}

func TestZoneOfTheCluster(t *testing.T) {
	s := newServer()
	s.Zone = func() *api.FallbackZone {
		return &api.FallbackZone{Servers: []string{"100.64.0.1", "dns://[fd00:1:2::1]:53"}}
	}
	if got := text(ask(t, s, "guest", query("www.example.org.", dns.TypeA), false)); got != "REFUSED" {
		t.Errorf("the server asks itself: %s", got)
	}
}

// BenchmarkAnswer is a question for a Service.
func BenchmarkAnswer(b *testing.B) {
	s := newServer()
	text, _ := query("db.prod.svc.example.com.", dns.TypeA).SetEdns0(1232, false).Pack()
	b.ReportAllocs()
	for b.Loop() {
		if s.Answer(b.Context(), "guest", text, false) == nil {
			b.Fatal("no answer")
		}
	}
}
