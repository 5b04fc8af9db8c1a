package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"cardea/api"
)

// A fake answers in place of name servers and counts what it is asked.
type fake struct {
	mu     sync.Mutex
	asked  []string // SERVER NAME
	answer func(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error)
}

func (f *fake) try(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error) {
	f.mu.Lock()
	f.asked = append(f.asked, server.Host+" "+q.name)
	f.mu.Unlock()
	return f.answer(ctx, server, q)
}

// times returns how often it was asked since it was looked at last.
func (f *fake) times() int { return len(f.taken()) }

func (f *fake) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.asked
	f.asked = nil
	return list
}

// says returns an answer with records, a line each; those after a line "--" are of the
// section of authority.
func says(rcode int, lines ...string) func(context.Context, api.DNSServer, question) (*dns.Msg, error) {
	return func(_ context.Context, _ api.DNSServer, q question) (*dns.Msg, error) {
		m := new(dns.Msg).SetReply(query(q.name, q.kind))
		m.Rcode = rcode
		section := &m.Answer
		for _, l := range lines {
			if l == "--" {
				section = &m.Ns
				continue
			}
			rr, err := dns.NewRR(l)
			if err != nil {
				return nil, err
			}
			*section = append(*section, rr)
		}
		return m, nil
	}
}

func mute(ctx context.Context, _ api.DNSServer, _ question) (*dns.Msg, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// withFallback runs a test in a bubble, with a Server whose fallback is a fake.
func withFallback(t *testing.T, servers []string, test func(t *testing.T, s *Server, f *fake)) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newServer(), &fake{answer: mute}
		s.fallback.try = f.try
		s.Zone = func() *api.FallbackZone { return &api.FallbackZone{Servers: servers} }
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		test(t, s, f)
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func one() []string { return []string{"192.0.2.53"} }

const soa = "example.org. 300 IN SOA ns. root. 1 2 3 4 60"

func TestKept(t *testing.T) {
	for name, row := range map[string]struct {
		rcode int
		lines []string
		most  *api.Duration
		holds time.Duration // 0: not at all
	}{
		"as long as it says":                 {0, []string{"www.example.org. 120 IN A 192.0.2.1"}, nil, 2 * time.Minute},
		"as long as the shortest record":     {0, []string{"www.example.org. 120 IN CNAME a.example.org.", "a.example.org. 30 IN A 192.0.2.1"}, nil, 30 * time.Second},
		"no longer than an hour":             {0, []string{"www.example.org. 90000 IN A 192.0.2.1"}, nil, time.Hour},
		"no longer than wanted":              {0, []string{"www.example.org. 120 IN A 192.0.2.1"}, &api.Duration{Seconds: new(10)}, 10 * time.Second},
		"longer if wanted":                   {0, []string{"www.example.org. 90000 IN A 192.0.2.1"}, &api.Duration{Hours: new(2)}, 2 * time.Hour},
		"without time to live":               {0, []string{"www.example.org. 0 IN A 192.0.2.1"}, nil, 0},
		"with an impossible one":             {0, []string{"www.example.org. 4294967295 IN A 192.0.2.1"}, nil, 0},
		"no such name":                       {dns.RcodeNameError, []string{"--", soa}, nil, time.Minute},
		"no such name, for long":             {dns.RcodeNameError, []string{"--", "example.org. 90000 IN SOA ns. root. 1 2 3 4 90000"}, nil, mostNegative},
		"no such name, nobody says how long": {dns.RcodeNameError, nil, nil, 0},
		"no such records":                    {0, []string{"--", soa}, nil, time.Minute},
		"an alias for nothing":               {0, []string{"www.example.org. 120 IN CNAME a.example.org.", "--", soa}, nil, time.Minute},
		"a referral":                         {0, []string{"--", "example.org. 300 IN NS ns.example.org."}, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
				s.Zone = func() *api.FallbackZone { return &api.FallbackZone{Servers: one(), CacheDuration: row.most} }
				f.answer = says(row.rcode, row.lines...)
				q := query("www.example.org.", dns.TypeA)
				first := ask(t, s, "guest", q, false)
				if first.Rcode != row.rcode || first.Authoritative || !first.RecursionAvailable {
					t.Errorf("the answer is %v", first)
				}
				if row.holds > 0 {
					time.Sleep(row.holds - time.Second)
					again := ask(t, s, "other", q, false)
					if f.times() != 1 {
						t.Error("it was asked for again within its time")
					}
					for i, rr := range slices.Concat(again.Answer, again.Ns) {
						before := slices.Concat(first.Answer, first.Ns)[i].Header().Ttl
						if got := rr.Header().Ttl; got != before-uint32((row.holds-time.Second)/time.Second) {
							t.Errorf("what is left of %d seconds is %d", before, got)
						}
					}
					time.Sleep(time.Second)
				} else {
					f.taken()
				}
				ask(t, s, "guest", q, false)
				if f.times() != 1 {
					t.Error("it was not asked for again after its time")
				}
			})
		})
	}
}

// Many who ask the same are one question, and who leaves takes nobody along.
func TestCoalesced(t *testing.T) {
	withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
		release := make(chan struct{})
		f.answer = func(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error) {
			<-release
			return says(0, "www.example.org. 0 IN A 192.0.2.1")(ctx, server, q)
		}
		text, _ := query("www.example.org.", dns.TypeA).Pack()
		upper, _ := query("WWW.example.ORG.", dns.TypeA).Pack()
		leaving, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { // the first, who leaves
			m := new(dns.Msg)
			if m.Unpack(s.Answer(leaving, "guest", text, false)) != nil || m.Rcode != dns.RcodeServerFailure {
				t.Errorf("who left got %v", m)
			}
		})
		synctest.Wait()
		for i := range 50 {
			all.Go(func() {
				q := [][]byte{text, upper}[i%2]
				m := new(dns.Msg)
				if m.Unpack(s.Answer(t.Context(), fmt.Sprint(i), q, false)) != nil || len(m.Answer) != 1 {
					t.Errorf("got %v", m)
				}
			})
		}
		leave()
		synctest.Wait()
		close(release)
		all.Wait()
		if n := f.times(); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

// A server that says nothing costs the first asker its time, and then is asked last
// until it has had the chance to recover.
func TestServersThatFail(t *testing.T) {
	withFallback(t, []string{"192.0.2.1", "192.0.2.2"}, func(t *testing.T, s *Server, f *fake) {
		up := map[string]bool{"192.0.2.2": true}
		f.answer = func(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error) {
			if !up[server.Host] {
				return mute(ctx, server, q)
			}
			return says(0, q.name+" 60 IN A 192.0.2.9")(ctx, server, q)
		}
		look := func(name string) (int, string, time.Duration) {
			start := time.Now()
			m := ask(t, s, "guest", query(name, dns.TypeA), false)
			return m.Rcode, strings.Join(f.taken(), ","), time.Since(start)
		}
		if rcode, asked, took := look("a."); rcode != 0 || asked != "192.0.2.1 a.,192.0.2.2 a." || took > maxTry {
			t.Errorf("the first asker: %d, %s, %v", rcode, asked, took)
		}
		if rcode, asked, took := look("b."); rcode != 0 || asked != "192.0.2.2 b." || took != 0 {
			t.Errorf("the second asker: %d, %s, %v", rcode, asked, took)
		}
		time.Sleep(demotion)
		up["192.0.2.1"] = true
		if rcode, asked, _ := look("c."); rcode != 0 || asked != "192.0.2.1 c." {
			t.Errorf("after its recovery: %d, %s", rcode, asked)
		}
		clear(up)
		rcode, asked, took := look("d.")
		if rcode != dns.RcodeServerFailure || asked != "192.0.2.1 d.,192.0.2.2 d.,192.0.2.1 d.,192.0.2.2 d." || took > patience {
			t.Errorf("nobody answers: %d, %s, %v", rcode, asked, took)
		}
		if rcode, asked, took := look("d."); rcode != dns.RcodeServerFailure || asked != "" || took != 0 {
			t.Errorf("nobody answers, asked again at once: %d, %s, %v", rcode, asked, took)
		}
		time.Sleep(failureTTL)
		up["192.0.2.2"] = true
		if rcode, _, _ := look("d."); rcode != 0 {
			t.Errorf("a failure is remembered: %d", rcode)
		}
	})
}

// Whoever makes a server fail again and again does not fill the log with it.
func TestLogOfFailures(t *testing.T) {
	withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
		var said strings.Builder
		s.fallback.log = slog.New(slog.NewTextHandler(&said, nil))
		lines := func() (n int) { n = strings.Count(said.String(), "\n"); said.Reset(); return n }
		flap := func(times int) {
			for i := range times {
				f.answer = mute
				ask(t, s, "guest", query(fmt.Sprintf("%d-%d.", i, time.Now().Unix()), dns.TypeA), false)
				f.answer = says(dns.RcodeNameError)
				ask(t, s, "guest", query(fmt.Sprintf("%d-%d.", i, time.Now().Unix()), dns.TypeA), false)
			}
		}
		flap(10) // 4 seconds each
		if n := lines(); n != 2 {
			t.Errorf("within less than a minute %d lines", n)
		}
		time.Sleep(tellEvery)
		flap(1)
		if n := lines(); n != 2 {
			t.Errorf("a minute later %d lines", n)
		}
	})
}

// A server that cannot or does not want to tell is not the last word.
func TestOtherCodes(t *testing.T) {
	for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError} {
		withFallback(t, []string{"192.0.2.1", "192.0.2.2"}, func(t *testing.T, s *Server, f *fake) {
			second := says(rcode)
			f.answer = func(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error) {
				if server.Host == "192.0.2.1" {
					return says(rcode)(ctx, server, q)
				}
				return second(ctx, server, q)
			}
			if m := ask(t, s, "guest", query("a.", dns.TypeA), false); m.Rcode != dns.RcodeServerFailure || f.times() != 2 {
				t.Errorf("both say %s: %s", dns.RcodeToString[rcode], dns.RcodeToString[m.Rcode])
			}
			second = says(0, "b. 60 IN A 192.0.2.9")
			if m := ask(t, s, "guest", query("b.", dns.TypeA), false); len(m.Answer) != 1 || f.times() != 2 {
				t.Errorf("one says %s: %v", dns.RcodeToString[rcode], m)
			}
		})
	}
}

// What is kept is bounded in number and size, and what is used stays.
func TestCacheIsBounded(t *testing.T) {
	var c cache
	now := time.Now()
	put := func(i, size int) {
		f := &flight{text: make([]byte, size)}
		m := new(dns.Msg)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Ttl: 60}}}
		c.put(question{name: fmt.Sprint(i)}, f, m, time.Hour, now)
	}
	has := func(i int) bool { return c.get(question{name: fmt.Sprint(i)}, now) != nil }
	for i := range maxKept + 100 {
		put(i, 10)
		has(0)
	}
	if len(c.kept) != maxKept || c.order.Len() != maxKept || !has(0) || has(1) || has(100) || !has(101) {
		t.Errorf("%d are kept", len(c.kept))
	}
	for i := range 2000 {
		put(i, maxKeptSize)
	}
	if c.bytes > maxKeptBytes || len(c.kept) < 100 || c.order.Len() != len(c.kept) {
		t.Errorf("%d are kept, in %d bytes", len(c.kept), c.bytes)
	}
	for i := range 2000 {
		put(i, 10)
	}
	put(5000, maxKeptSize+1)
	if has(5000) {
		t.Error("a huge answer is kept")
	}
	for e := c.order.Front(); e != nil; e = c.order.Front() {
		c.remove(e)
	}
	if c.bytes != 0 || len(c.kept) != 0 {
		t.Errorf("of nothing %d bytes and %d answers are left", c.bytes, len(c.kept))
	}
}

// Who asks too much is refused, and takes nobody else's place; all together are bounded.
func TestQuestionsAreBounded(t *testing.T) {
	withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
		var all sync.WaitGroup
		var refused atomic.Int32
		flood := func(session string, n int) {
			for i := range n {
				all.Go(func() {
					start := time.Now()
					m := ask(t, s, session, query(fmt.Sprintf("%d.%s.example.org.", i, session), dns.TypeA), false)
					if m.Rcode == dns.RcodeServerFailure && time.Since(start) == 0 {
						refused.Add(1)
					}
				})
			}
			synctest.Wait()
		}
		flood("greedy", maxWaiting+30)
		if n := f.times(); n != maxWaiting || refused.Load() != 30 {
			t.Errorf("one Session: %d are asked, %d refused", n, refused.Load())
		}
		for i := range 20 {
			flood(fmt.Sprint("s", i), 60)
		}
		if n := f.times(); n != maxFlights-maxWaiting || refused.Load() != 30+20*60-int32(n) {
			t.Errorf("all: %d are asked, %d refused", n, refused.Load())
		}
		all.Wait()
		f.answer = says(0, "a. 60 IN A 192.0.2.9")
		if m := ask(t, s, "greedy", query("a.", dns.TypeA), false); m.Rcode != 0 {
			t.Errorf("afterwards: %v", m)
		}
		if n := len(s.fallback.flights) + len(s.fallback.waiting); n != 0 {
			t.Errorf("%d are left", n)
		}
	})
}

// Before Run and after it, and while it ends, the fallback fails at once.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newServer(), &fake{answer: mute}
		s.fallback.try = f.try
		s.Zone = func() *api.FallbackZone { return &api.FallbackZone{Servers: one()} }
		fails := func(when string) {
			start := time.Now()
			if m := ask(t, s, "guest", query("a.", dns.TypeA), false); m.Rcode != dns.RcodeServerFailure || time.Since(start) != 0 {
				t.Errorf("%s: %v", when, m)
			}
		}
		fails("before Run")
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		synctest.Wait()
		waits := make(chan struct{})
		go func() {
			defer close(waits)
			ask(t, s, "guest", query("b.", dns.TypeA), false)
		}()
		synctest.Wait()
		start := time.Now()
		stop()
		<-waits
		if err := <-done; err != nil || time.Since(start) != 0 {
			t.Errorf("Run: %v, after %v", err, time.Since(start))
		}
		fails("after Run")
	})
}

// No name of others leads to a Service, in whatever record.
func TestRebinding(t *testing.T) {
	for _, line := range []string{
		"evil.example.org. 60 IN A 100.64.0.16",
		"evil.example.org. 60 IN AAAA fd00:1:2::10",
		"evil.example.org. 60 IN AAAA ::ffff:100.64.0.16",
		"evil.example.org. 60 IN A 100.64.0.1",
		"evil.example.org. 60 IN HTTPS 1 . ipv4hint=192.0.2.1,100.64.0.16",
		"evil.example.org. 60 IN SVCB 1 . ipv6hint=fd00:1:2::10",
	} {
		withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
			f.answer = says(0, "evil.example.org. 60 IN A 192.0.2.1", line)
			for range 2 { // also out of the cache
				if m := ask(t, s, "guest", query("evil.example.org.", dns.TypeA), false); m.Rcode != dns.RcodeNameError || len(m.Answer)+len(m.Extra) > 0 {
					t.Errorf("%s: %v", line, m)
				}
			}
			f.answer = says(0, strings.NewReplacer("100.64.0.16", "100.100.0.16", "100.64.0.1", "10.0.0.1", "fd00:1:2::10", "fd00:1:3::10").Replace(line))
			if m := ask(t, s, "guest", query("fine.example.org.", dns.TypeA), false); m.Rcode != 0 || len(m.Answer) != 1 {
				t.Errorf("an address of others: %v", m)
			}
		})
	}
}

// No name of others is another name of the cluster's, in whatever record: who follows it
// comes to where its addresses would lead.
func TestAliases(t *testing.T) {
	for line, leadsInside := range map[string]bool{
		"evil.example.org. 60 IN CNAME db.prod.svc.example.com.":              true,
		"evil.example.org. 60 IN CNAME DB.prod.SVC.example.COM.":              true,
		"evil.example.org. 60 IN CNAME nats.local.example.com.":               true,
		"evil.example.org. 60 IN CNAME none.svc.example.com.":                 true, // there may be one tomorrow
		"evil.example.org. 60 IN CNAME hidden.svc.example.com.":               true,
		"evil.example.org. 60 IN CNAME nats.":                                 true,
		"evil.example.org. 60 IN CNAME db.prod.":                              true,
		"evil.example.org. 60 IN CNAME gateway.example.com.":                  true,
		"example.org. 60 IN DNAME svc.example.com.":                           true,
		"evil.example.org. 60 IN SRV 0 0 80 db.prod.svc.example.com.":         true,
		"evil.example.org. 60 IN MX 10 nats.":                                 true,
		"evil.example.org. 60 IN HTTPS 0 nats.svc.example.com.":               true,
		"evil.example.org. 60 IN SVCB 1 db.prod. port=5432":                   true,
		"evil.example.org. 60 IN CNAME www.example.net.":                      false,
		"evil.example.org. 60 IN CNAME portal.example.com.":                   false, // it has its address in some other DNS
		"evil.example.org. 60 IN CNAME prod.":                                 false, // no Service
		"evil.example.org. 60 IN CNAME hidden.":                               false, // as if there were none
		"evil.example.org. 60 IN CNAME notsvc.example.com.":                   false,
		"evil.example.org. 60 IN HTTPS 1 .":                                   false,
		"evil.example.org. 60 IN TXT \"v=1 include:db.prod.svc.example.com\"": false,
	} {
		withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
			f.answer = says(0, line)
			for range 2 { // also out of the cache
				m := ask(t, s, "guest", query("evil.example.org.", dns.TypeA), false)
				if withheld := m.Rcode == dns.RcodeNameError && len(m.Answer)+len(m.Extra) == 0; withheld != leadsInside {
					t.Errorf("%s: withheld %t, want %t: %v", line, withheld, leadsInside, m)
				}
			}
		})
	}
}

// Who wants signatures, or unverified data, is not answered with what others wanted, and
// who asks without the flag for recursion does not learn what others have asked for.
func TestQuestionsOfOthers(t *testing.T) {
	withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
		var got question
		f.answer = func(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error) {
			got = q
			return says(0, "a. 60 IN A 192.0.2.9")(ctx, server, q)
		}
		for i, change := range []func(m *dns.Msg){
			func(*dns.Msg) {},
			func(m *dns.Msg) { m.SetEdns0(1232, true) },
			func(m *dns.Msg) { m.CheckingDisabled = true },
			func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		} {
			q := query("a.", dns.TypeA)
			change(q)
			want := question{"a.", q.Question[0].Qtype, i == 1, i == 2}
			for range 2 {
				ask(t, s, "guest", q, false)
			}
			if n := f.times(); n != 1 || got != want {
				t.Errorf("asked %d times, last %+v, want %+v", n, got, want)
			}
		}
		q := query("a.", dns.TypeA)
		q.RecursionDesired = false
		if m := ask(t, s, "guest", q, false); m.Rcode != dns.RcodeRefused || len(m.Answer) > 0 {
			t.Errorf("without RD: %v", m)
		}
	})
}

// Names that are the cluster's never reach the fallback; the rest of its domain does.
func TestWhatIsAskedFor(t *testing.T) {
	withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
		f.answer = says(dns.RcodeNameError)
		for name, wanted := range map[string]int{
			"nats.": 0, "db.prod.": 0, "nope.svc.example.com.": 0, "hidden.local.example.com.": 0, "dns.example.com.": 0,
			"17.0.64.100.in-addr.arpa.": 0, "99.0.64.100.in-addr.arpa.": 0,
			"hidden.": 1, "nope.prod.": 1, "example.com.": 1, "portal.example.com.": 1, "1.2.0.192.in-addr.arpa.": 1,
		} {
			ask(t, s, "guest", query(name, dns.TypeA), false)
			if n := f.times(); n != wanted {
				t.Errorf("%s is asked for %d times", name, n)
			}
		}
	})
}

// Other servers may say something else.
func TestZoneChanges(t *testing.T) {
	withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
		f.answer = says(0, "a. 60 IN A 192.0.2.9")
		for _, row := range []struct {
			server string
			asked  int
		}{{"192.0.2.53", 1}, {"192.0.2.53", 0}, {"192.0.2.54", 1}, {"tls://192.0.2.54", 1}, {"192.0.2.53", 1}} {
			s.Zone = func() *api.FallbackZone { return &api.FallbackZone{Servers: []string{row.server}} }
			ask(t, s, "guest", query("a.", dns.TypeA), false)
			if n := f.times(); n != row.asked {
				t.Errorf("%s is asked %d times", row.server, n)
			}
		}
	})
}

// Without servers of its own, those of the machine are asked, as they are at the time.
func TestMachine(t *testing.T) {
	withFallback(t, nil, func(t *testing.T, s *Server, f *fake) {
		f.answer = says(dns.RcodeNameError)
		path := filepath.Join(t.TempDir(), "resolv.conf")
		s.fallback.machine.path = path
		for i, row := range []struct{ file, want string }{
			{"nameserver 192.0.2.1\nsearch example.org\n", "192.0.2.1 a."},
			{"nameserver 100.64.0.1\nnameserver 2001:db8::1\nnameserver nonsense\n", "2001:db8::1 a."},
			{"search example.org\n", ""},
			{"", ""}, // no file
			{"nameserver fe80::1%eth0\n", "fe80::1%eth0 a."},
		} {
			if row.file == "" {
				os.Remove(path)
			} else if err := os.WriteFile(path, []byte(row.file), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(fileEvery)
			m := ask(t, s, "guest", query("a.", dns.TypeA), false)
			if got := strings.Join(f.taken(), ","); got != row.want || (m.Rcode == dns.RcodeRefused) != (row.want == "") {
				t.Errorf("%d: asked %q: %s", i, got, dns.RcodeToString[m.Rcode])
			}
		}
	})
}

func TestProblemsAreSaid(t *testing.T) {
	withFallback(t, one(), func(t *testing.T, s *Server, f *fake) {
		f.answer = func(context.Context, api.DNSServer, question) (*dns.Msg, error) {
			return nil, errors.New("connection refused")
		}
		m := ask(t, s, "guest", query("a.", dns.TypeA).SetEdns0(1232, false), false)
		if got := m.IsEdns0().String(); !strings.Contains(got, "dns://192.0.2.53:53: connection refused") {
			t.Errorf("%s", got)
		}
	})
}
