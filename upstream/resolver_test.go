package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"cardea/api"
)

// A nameServer is a small DNS server whose zone changes.
type nameServer struct {
	port string

	mu      sync.Mutex
	records map[string][]string // by "NAME TYPE": the records, as zone files have them
	rcode   int                 // for everything, if it is not success
	mute    map[string]bool     // questions that it does not answer
	asked   []string            // "NAME TYPE" over UDP, "NAME TYPE tcp" over TCP
	edit    func(*dns.Msg)      // a last hand at the answer
	wait    chan struct{}       // answers wait for it
	waiting chan struct{}       // has one for each that waits
}

func newNameServer(t testing.TB) *nameServer {
	t.Helper()
	s := &nameServer{records: map[string][]string{}, mute: map[string]bool{}, waiting: make(chan struct{}, 100)}
	var udp net.PacketConn
	var tcp net.Listener
	for range 10 { // until there is a port that both have
		var err error
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		udp.Close()
	}
	if tcp == nil {
		t.Fatal("no port for a name server")
	}
	_, s.port, _ = net.SplitHostPort(udp.LocalAddr().String())
	var serving sync.WaitGroup
	for _, server := range []*dns.Server{{PacketConn: udp, Handler: s}, {Listener: tcp, Handler: s}} {
		up := make(chan struct{})
		server.NotifyStartedFunc = func() { close(up) }
		serving.Go(func() { server.ActivateAndServe() })
		<-up
		t.Cleanup(func() { server.Shutdown() })
	}
	t.Cleanup(func() {
		s.mu.Lock()
		if s.wait != nil {
			close(s.wait)
			s.wait = nil
		}
		s.mu.Unlock()
	})
	return s
}

// ServeDNS implements dns.Handler.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, ask *dns.Msg) {
	q := ask.Question[0]
	k := strings.ToLower(q.Name) + " " + dns.TypeToString[q.Qtype]
	s.mu.Lock()
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	noted := k
	if tcp {
		noted += " tcp"
	}
	s.asked = append(s.asked, noted)
	m := new(dns.Msg)
	m.SetReply(ask)
	m.RecursionAvailable = true
	m.Rcode = s.rcode
	for _, text := range s.records[k] {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		if _, is := rr.(*dns.SOA); is {
			m.Ns = append(m.Ns, rr)
			continue
		}
		m.Answer = append(m.Answer, rr)
	}
	if _, known := s.records[k]; !known && m.Rcode == dns.RcodeSuccess {
		m.Rcode = dns.RcodeNameError
	}
	mute, wait, edit := s.mute[k], s.wait, s.edit
	s.mu.Unlock()
	if wait != nil {
		s.waiting <- struct{}{}
		<-wait
	}
	if mute {
		return
	}
	if edit != nil {
		edit(m)
	}
	if opt := ask.IsEdns0(); opt != nil && !tcp && m.Rcode == dns.RcodeSuccess {
		m.Truncate(int(opt.UDPSize()))
	}
	w.WriteMsg(m)
}

// set makes records those of a name and type: none says that it has none.
func (s *nameServer) set(name, kind string, records ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range records {
		if !strings.Contains(r, " IN ") {
			records[i] = fmt.Sprintf("%s 60 IN %s %s", name, kind, r)
		}
	}
	s.records[name+" "+kind] = records
}

func (s *nameServer) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// isFirst tells whether one question was asked since took was called.
func (s *nameServer) isFirst() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked) == 1
}

// took returns what was asked since.
func (s *nameServer) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.asked
	s.asked = nil
	slices.Sort(out)
	return out
}

// A clock is moved by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) time() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// machine makes r that of a machine with that resolv.conf and hosts. It returns the
// clock by which answers end.
func machine(t testing.TB, r *resolver, port, config, hosts string) *clock {
	t.Helper()
	dir := t.TempDir()
	r.config.path, r.hosts.path = filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	for path, text := range map[string]string{r.config.path: config, r.hosts.path: hosts} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := &clock{now: time.Now()}
	r.port, r.now = port, c.time
	return c
}

// resolving returns a resolver that asks s, and its clock.
func resolving(t testing.TB, s *nameServer, options string) (*resolver, *clock) {
	r := new(resolver)
	return r, machine(t, r, s.port, "nameserver 127.0.0.1\n"+options, "")
}

// finds fails unless a name has those addresses, in any order within a family.
func finds(t *testing.T, r *resolver, host string, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, _, err := r.addresses(ctx, host, nil, 0)
	var texts []string
	for _, a := range got {
		texts = append(texts, a.String())
	}
	slices.Sort(texts)
	slices.Sort(want)
	if !slices.Equal(texts, want) {
		t.Errorf("%s is at %v (%v), want %v", host, texts, err, want)
	}
}

// misses fails unless a name is not there, or its lookup fails otherwise.
func misses(t *testing.T, r *resolver, host string, missing bool, words string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	got, _, err := r.addresses(ctx, host, nil, 0)
	e, ok := errors.AsType[*net.DNSError](err)
	if !ok || e.IsNotFound != missing || !strings.Contains(err.Error(), words) {
		t.Errorf("%s is at %v, error %v; want %q, missing %v", host, got, err, words, missing)
	}
}

func TestResolve(t *testing.T) {
	s := newNameServer(t)
	s.set("db.corp.", "A", "192.0.2.1", "192.0.2.2")
	s.set("db.corp.", "AAAA", "2001:db8::1")
	s.set("v4.corp.", "A", "192.0.2.3")
	s.set("v4.corp.", "AAAA")
	r, _ := resolving(t, s, "")
	finds(t, r, "db.corp", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	finds(t, r, "DB.Corp.", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	finds(t, r, "v4.corp", "192.0.2.3")
	misses(t, r, "none.corp", true, "no such host")
	misses(t, r, "not a name", true, "no such host")
	misses(t, r, strings.Repeat("long.", 60)+"corp", true, "no such host")
	want := []string{"db.corp. A", "db.corp. AAAA", "none.corp. A", "none.corp. AAAA", "v4.corp. A", "v4.corp. AAAA"}
	if got := s.took(); !slices.Equal(got, want) {
		t.Errorf("the server was asked %v, want each once: %v", got, want)
	}
	// One family asks for one type.
	ctx := t.Context()
	r, _ = resolving(t, s, "")
	for _, c := range []struct {
		families []api.IPFamily
		want     string
	}{{[]api.IPFamily{api.IPv4}, "db.corp. A"}, {[]api.IPFamily{api.IPv6}, "db.corp. AAAA"}} {
		if _, _, err := r.addresses(ctx, "db.corp", c.families, 0); err != nil {
			t.Error(err)
		}
		if got := s.took(); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%v: asked %v", c.families, got)
		}
	}
}

// What a name resolves to is followed when its answer has ended, and not before.
func TestResolveTTL(t *testing.T) {
	s := newNameServer(t)
	r, clock := resolving(t, s, "")
	at := func(last int) { s.set("db.corp.", "A", fmt.Sprintf("db.corp. 60 IN A 192.0.2.%d", last)) }
	s.set("db.corp.", "AAAA", "corp. 3600 IN SOA ns. root. 1 2 3 4 3600")
	at(1)
	finds(t, r, "db.corp", "192.0.2.1")
	at(2)
	clock.pass(59 * time.Second)
	finds(t, r, "db.corp", "192.0.2.1")
	clock.pass(2 * time.Second)
	finds(t, r, "db.corp", "192.0.2.2")
	s.took()

	// A TTL of 0 is a second, one of a year an hour.
	s.set("db.corp.", "A", "db.corp. 0 IN A 192.0.2.3")
	clock.pass(time.Minute)
	finds(t, r, "db.corp", "192.0.2.3")
	at(4)
	finds(t, r, "db.corp", "192.0.2.3")
	clock.pass(time.Second)
	finds(t, r, "db.corp", "192.0.2.4")
	s.set("db.corp.", "A", "db.corp. 31536000 IN A 192.0.2.5")
	clock.pass(time.Minute)
	finds(t, r, "db.corp", "192.0.2.5")
	at(6)
	clock.pass(59 * time.Minute)
	finds(t, r, "db.corp", "192.0.2.5")
	clock.pass(2 * time.Minute)
	finds(t, r, "db.corp", "192.0.2.6")
	s.took()

	// That there is none is kept for as long as the SOA says, and at most 30 s.
	s.set("later.corp.", "AAAA", "corp. 3600 IN SOA ns. root. 1 2 3 4 3600")
	s.set("later.corp.", "A", "corp. 3600 IN SOA ns. root. 1 2 3 4 3600")
	misses(t, r, "later.corp", true, "no such host")
	s.set("later.corp.", "A", "192.0.2.7")
	clock.pass(29 * time.Second)
	misses(t, r, "later.corp", true, "no such host")
	clock.pass(2 * time.Second)
	finds(t, r, "later.corp", "192.0.2.7")
}

// While DNS fails, an answer that has ended serves for five minutes more, and the
// server is not asked each time.
func TestResolveStale(t *testing.T) {
	s := newNameServer(t)
	r, clock := resolving(t, s, "options attempts:1")
	s.set("db.corp.", "A", "192.0.2.1")
	s.set("db.corp.", "AAAA", "2001:db8::1")
	finds(t, r, "db.corp", "192.0.2.1", "2001:db8::1")
	s.took()
	s.change(func() { s.rcode = dns.RcodeServerFailure })
	clock.pass(2 * time.Minute)
	for range 3 {
		finds(t, r, "db.corp", "192.0.2.1", "2001:db8::1")
	}
	if got := s.took(); len(got) != 2 {
		t.Errorf("the server was asked %v, want each question once", got)
	}
	clock.pass(staleRecheck + time.Second)
	finds(t, r, "db.corp", "192.0.2.1", "2001:db8::1")
	if got := s.took(); len(got) != 2 {
		t.Errorf("the server was asked %v, want each question once", got)
	}
	s.change(func() { s.rcode = 0; s.mute["db.corp. A"] = true })
	s.set("db.corp.", "AAAA", "2001:db8::2")
	clock.pass(staleRecheck + time.Second)
	finds(t, r, "db.corp", "192.0.2.1", "2001:db8::2") // one fails, the other is followed
	s.change(func() { s.rcode = dns.RcodeServerFailure; clear(s.mute) })
	clock.pass(6 * time.Minute)
	misses(t, r, "db.corp", false, "SERVFAIL")
	// That a name is gone is no failure.
	s.change(func() { s.rcode = 0 })
	finds(t, r, "db.corp", "192.0.2.1", "2001:db8::2")
	s.change(func() { s.rcode = dns.RcodeNameError })
	clock.pass(2 * time.Minute)
	misses(t, r, "db.corp", true, "no such host")
}

// While DNS fails, names are also found by the search list.
func TestResolveStaleSearch(t *testing.T) {
	s := newNameServer(t)
	r, clock := resolving(t, s, "search a.corp b.corp\noptions attempts:1")
	s.set("db.b.corp.", "A", "192.0.2.1")
	finds(t, r, "db", "192.0.2.1")
	s.change(func() { s.rcode = dns.RcodeServerFailure })
	clock.pass(2 * time.Minute)
	finds(t, r, "db", "192.0.2.1")
}

// However many want to know a name at once, the server is asked once.
func TestResolveTogether(t *testing.T) {
	s := newNameServer(t)
	r, _ := resolving(t, s, "")
	s.set("db.corp.", "A", "192.0.2.1")
	s.set("db.corp.", "AAAA")
	hold := make(chan struct{})
	s.change(func() { s.wait = hold })
	// The first gives up, and does not spoil it for the others.
	gone, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if _, _, err := r.addresses(gone, "db.corp", []api.IPFamily{api.IPv4}, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up got %v", err)
		}
	})
	<-s.waiting
	s.took()
	for range 20 {
		all.Go(func() {
			addrs, _, err := r.addresses(t.Context(), "db.corp", []api.IPFamily{api.IPv4}, 0)
			if err != nil || len(addrs) != 1 {
				t.Errorf("%v, %v", addrs, err)
			}
		})
	}
	leave()
	<-s.waiting
	s.change(func() { close(hold); s.wait = nil })
	all.Wait()
	if asked := s.took(); len(asked) != 1 {
		t.Errorf("the server was asked %v", asked)
	}
}

func TestResolveSearch(t *testing.T) {
	s := newNameServer(t)
	for name, address := range map[string]string{"db.default.svc.cluster.local.": "192.0.2.1", "db.other.svc.cluster.local.": "192.0.2.2", "www.corp.": "192.0.2.3", "db.corp.": "192.0.2.4"} {
		s.set(name, "A", address)
	}
	r, _ := resolving(t, s, "search default.svc.cluster.local svc.cluster.local corp\noptions ndots:5\n")
	finds(t, r, "db", "192.0.2.1")
	finds(t, r, "db.other", "192.0.2.2")
	finds(t, r, "www", "192.0.2.3")
	finds(t, r, "www.corp", "192.0.2.3")
	finds(t, r, "db.corp.", "192.0.2.4")
	misses(t, r, "db.", true, "no such host") // absolute
	r, _ = resolving(t, s, "search corp\n")
	finds(t, r, "www", "192.0.2.3")
	misses(t, r, "nowhere", true, "no such host")

	// Nothing leads to the names of cloud metadata.
	s.set("metadata.google.internal.", "A", "192.0.2.9")
	r, _ = resolving(t, s, "search google.internal internal\n")
	if _, _, err := r.addresses(t.Context(), "metadata", nil, 0); err == nil || !strings.Contains(err.Error(), "metadata") {
		t.Errorf("metadata, by way of the search list: %v", err)
	}
}

func TestResolveHostsFile(t *testing.T) {
	s := newNameServer(t)
	s.set("db.corp.", "A", "192.0.2.1")
	r := new(resolver)
	clock := machine(t, r, s.port, "nameserver 127.0.0.1\n", "# all of them\n10.0.0.1 db.corp DB2.corp. # ours\n::1 six\nnonsense\n10.0.0.2\tdb.corp\n")
	finds(t, r, "DB.corp.", "10.0.0.1", "10.0.0.2")
	finds(t, r, "db2.corp", "10.0.0.1")
	finds(t, r, "six", "::1")
	finds(t, r, "localhost", "127.0.0.1", "::1")
	finds(t, r, "a.localhost.", "127.0.0.1", "::1")
	if err := os.WriteFile(r.hosts.path, []byte("10.0.0.3 db2.corp\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	finds(t, r, "db2.corp", "10.0.0.1") // looked at every few seconds
	clock.pass(fileEvery)
	finds(t, r, "db2.corp", "10.0.0.3")
	finds(t, r, "db.corp", "192.0.2.1")
	if err := os.Remove(r.hosts.path); err != nil {
		t.Fatal(err)
	}
	clock.pass(fileEvery)
	misses(t, r, "db2.corp", true, "no such host")
}

func TestResolveAliases(t *testing.T) {
	s := newNameServer(t)
	r, clock := resolving(t, s, "")
	for _, kind := range []string{"A", "AAAA"} {
		s.set("www.corp.", kind, "www.corp. 60 IN CNAME edge.corp.", "edge.corp. 5 IN CNAME n1.corp.")
		s.set("loop.corp.", kind, "loop.corp. 60 IN CNAME pool.corp.", "pool.corp. 60 IN CNAME loop.corp.")
		s.set("round.corp.", kind, "round.corp. 60 IN CNAME trip.corp.")
		s.set("trip.corp.", kind, "trip.corp. 60 IN CNAME round.corp.")
		s.set("half.corp.", kind, "half.corp. 60 IN CNAME db.corp.") // the server does not go on
		s.set("db.corp.", kind)
	}
	s.set("www.corp.", "A", append(s.records["www.corp. A"], "n1.corp. 60 IN A 192.0.2.1", "evil.corp. 60 IN A 192.0.2.66")...)
	s.set("db.corp.", "A", "192.0.2.2")
	finds(t, r, "www.corp", "192.0.2.1")
	finds(t, r, "half.corp", "192.0.2.2")
	misses(t, r, "loop.corp", true, "no such host")
	misses(t, r, "round.corp", false, "come to no end")
	// The shortest TTL of the chain counts.
	s.set("www.corp.", "A", "www.corp. 60 IN A 192.0.2.3")
	clock.pass(6 * time.Second)
	finds(t, r, "www.corp", "192.0.2.3")
}

// A large answer comes over TCP.
func TestResolveTruncated(t *testing.T) {
	s := newNameServer(t)
	var records, want []string
	for i := range 200 {
		records = append(records, fmt.Sprintf("192.0.2.%d", i+1))
	}
	s.set("many.corp.", "A", records...)
	s.set("many.corp.", "AAAA")
	r, _ := resolving(t, s, "")
	for i := range maxRecords {
		want = append(want, fmt.Sprintf("192.0.2.%d", i+1))
	}
	finds(t, r, "many.corp", want...)
	if got := s.took(); !slices.Contains(got, "many.corp. A tcp") {
		t.Errorf("the server was asked %v", got)
	}
}

// A server that knows no EDNS0 is asked without.
func TestResolveWithoutEDNS(t *testing.T) {
	s := newNameServer(t)
	s.set("db.corp.", "A", "192.0.2.1")
	r, _ := resolving(t, s, "options attempts:1")
	for _, bare := range []bool{false, true} {
		s.took()
		s.change(func() {
			s.edit = func(m *dns.Msg) {
				if s.isFirst() {
					m.Answer, m.Rcode = nil, dns.RcodeFormatError
					if bare {
						m.Question = nil
					}
				}
			}
		})
		r.rows = nil
		got, _, err := r.addresses(t.Context(), "db.corp", []api.IPFamily{api.IPv4}, 0)
		if asked := s.took(); err != nil || len(got) != 1 || len(asked) != 2 {
			t.Errorf("%v, %v after %v", got, err, asked)
		}
	}
}

// What does not answer the question is not read.
func TestResolveStrays(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(udp.LocalAddr().String())
	var serving sync.WaitGroup
	serving.Go(func() {
		buffer := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buffer)
			if err != nil {
				return
			}
			ask := new(dns.Msg)
			if ask.Unpack(buffer[:n]) != nil {
				continue
			}
			say := func(address string, change func(*dns.Msg)) {
				m := new(dns.Msg)
				m.SetReply(ask)
				rr, _ := dns.NewRR(ask.Question[0].Name + " 60 IN A " + address)
				m.Answer = []dns.RR{rr}
				change(m)
				b, _ := m.Pack()
				udp.WriteTo(b, from)
			}
			say("192.0.2.66", func(m *dns.Msg) { m.Id++ })
			say("192.0.2.67", func(m *dns.Msg) { m.Question[0].Name = "evil.corp." })
			say("192.0.2.68", func(m *dns.Msg) { m.Response = false })
			say("192.0.2.69", func(m *dns.Msg) { m.Question = nil })
			say("192.0.2.70", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX })
			udp.WriteTo([]byte("garbage"), from)
			say("192.0.2.1", func(m *dns.Msg) { m.Question[0].Name = strings.ToUpper(m.Question[0].Name) })
		}
	})
	defer serving.Wait()
	defer udp.Close()
	r := new(resolver)
	machine(t, r, port, "nameserver 127.0.0.1\n", "")
	got, _, err := r.addresses(t.Context(), "db.corp", []api.IPFamily{api.IPv4}, 0)
	if err != nil || len(got) != 1 || got[0].String() != "192.0.2.1" {
		t.Errorf("%v, %v", got, err)
	}
}

// A server that says nothing leaves time for the next, and a family that is not
// answered does not hold up the other for long.
func TestResolveNextServer(t *testing.T) {
	s := newNameServer(t)
	s.set("db.corp.", "A", "192.0.2.1")
	s.set("db.corp.", "AAAA")
	deaf, err := net.ListenPacket("udp", "127.0.0.2:"+s.port)
	if err != nil {
		t.Skip(err)
	}
	defer deaf.Close()
	r := new(resolver)
	machine(t, r, s.port, "nameserver 127.0.0.2\nnameserver 127.0.0.1\noptions attempts:1\n", "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if got, _, err := r.addresses(ctx, "db.corp", nil, 0); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	s.change(func() { s.mute["db.corp. AAAA"] = true })
	r, _ = resolving(t, s, "")
	finds(t, r, "db.corp", "192.0.2.1")
	s.change(func() { s.mute["db.corp. A"] = true })
	r, _ = resolving(t, s, "options attempts:1 timeout:1")
	misses(t, r, "db.corp", false, "no answer")
}

func TestResolveForgets(t *testing.T) {
	s := newNameServer(t)
	r, _ := resolving(t, s, "")
	for i := range maxQuestions + 10 {
		r.row(question{fmt.Sprint(i), dns.TypeA})
	}
	if n := len(r.rows); n != maxQuestions {
		t.Errorf("%d questions are kept", n)
	}
}

// Without a resolv.conf the system is asked.
func TestResolveWithoutConfig(t *testing.T) {
	r := new(resolver)
	machine(t, r, "", "# none\n", "")
	if addrs, _, err := r.addresses(t.Context(), "192.0.2.1", nil, 0); err != nil || len(addrs) != 1 {
		t.Errorf("%v, %v", addrs, err)
	}
}

// Whatever a server says, what is read answers the question and is bounded.
func FuzzAnswer(f *testing.F) {
	q := question{"www.corp.", dns.TypeA}
	for _, records := range [][]string{
		{"www.corp. 60 IN A 192.0.2.1"}, {"www.corp. 60 IN CNAME a.corp.", "a.corp. 60 IN A 192.0.2.1"},
		{"www.corp. 60 IN CNAME www.corp."}, {"a.corp. 60 IN A 192.0.2.1"}, {"www.corp. 4294967295 IN A 192.0.2.1"},
	} {
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: 7, Response: true}, Question: []dns.Question{{Name: "www.corp.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}}
		for _, text := range records {
			rr, err := dns.NewRR(text)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(dns.TypeA))
	}
	f.Fuzz(func(t *testing.T, b []byte, kind uint16) {
		q := q
		q.kind = kind
		m := parseAnswer(b, 7, q)
		if m == nil {
			return
		}
		got := read(q, m)
		if len(got.addrs)+len(got.services) > maxRecords || got.ttl < 0 || got.ttl > mostTTL {
			t.Fatalf("%+v", got)
		}
		if got.next != "" && len(got.addrs)+len(got.services) > 0 {
			t.Fatalf("records, and another name: %+v", got)
		}
		for _, a := range got.addrs {
			if !a.IsValid() || a.Is4In6() {
				t.Fatalf("address %v", a)
			}
		}
		for _, s := range got.services {
			if s.target == "" {
				t.Fatal("no target")
			}
		}
	})
}
