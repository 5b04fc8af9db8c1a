package tls_test

import (
	stdtls "crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/ingress"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
)

// crowd is a Handler that answers every stream and counts what is refused.
type crowd struct {
	refused  atomic.Int64
	overload atomic.Int64
}

func (c *crowd) Arrive(a api.Arrival) {
	if s, ok := a.Conn.(tunnel.Teller); ok {
		s.Verdict(api.Verdict{Code: api.VerdictOK})
	}
	a.Conn.Write([]byte("welcome"))
	a.Conn.Close()
}

func (c *crowd) Refused(r api.Refusal) {
	c.refused.Add(1)
	if r.Reason == api.ReasonOverload && r.Facts.IP != "" && r.Words != "" {
		c.overload.Add(1)
	}
}

// flood opens n connections to an address, from several goroutines, and says
// nothing. It closes them with the test.
func flood(t *testing.T, address string, n int) {
	t.Helper()
	const hands = 8
	conns := make([]net.Conn, n)
	var all sync.WaitGroup
	for h := range hands {
		all.Go(func() {
			for i := h; i < n; i += hands {
				c, err := net.Dial("tcp", address)
				switch {
				case err == nil:
					conns[i] = c
				case !errors.Is(err, syscall.ECONNRESET): // refused so soon
					t.Errorf("connection %d: %v", i, err)
				}
			}
		})
	}
	all.Wait()
	t.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	})
}

// floodSize returns how many connections may be open at one end: 9,000, or less
// where there are not so many descriptors.
func floodSize(t *testing.T) int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	return min(9000, int(l.Cur)/2-500)
}

// TestFlood shows that 9,000 silent connections keep out nobody who shows a
// certificate: not from the same network, where nothing else tells them apart,
// known or not, and that they hold few places and are all reported.
func TestFlood(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("known %v", known), func(t *testing.T) {
			h, admission := &crowd{}, &ingress.Admission{}
			g := serve(t, &tls.Server{Handler: h, Admit: admission.Enter})
			welcome := func() {
				t.Helper()
				start := time.Now()
				c, err := g.dialer(t, always(g.ca.Session())).Dial(t.Context(), "nats") // each over a connection of its own
				if err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(c); string(b) != "welcome" || err != nil {
					t.Errorf("%q, %v", b, err)
				}
				c.Close()
				t.Logf("connected in %v", time.Since(start))
			}
			if known {
				welcome()
			}
			n := floodSize(t)
			start := time.Now()
			flood(t, g.addr, n)
			// What did not fit into the kernel's queue comes a second later, or more; what
			// it has tried to get in five times it gives up after 63 (tcp_synack_retries).
			for admission.Stats().Handshakes < int64(n) && time.Since(start) < 80*time.Second {
				runtime.Gosched()
			}
			came := int(admission.Stats().Handshakes)
			t.Logf("%d of %d silent connections in %v", came, n, time.Since(start))
			if n, came = came, n; n < came/2 {
				t.Fatalf("%d of %d connections came in", n, came)
			}
			for range 3 {
				welcome()
			}
			s := admission.Stats()
			t.Logf("%+v", s)
			if s.Pending > 256 || s.Proved == 0 {
				t.Errorf("%+v", s)
			}
			for h.overload.Load() < int64(n)-256 { // they are refused, and said so, as others come
				runtime.Gosched()
			}
		})
	}
}

// TestFloodOfHellos shows that of the handshakes of a stranger few a second are
// made, and that who is known is not held up.
func TestFloodOfHellos(t *testing.T) {
	h, admission := &crowd{}, &ingress.Admission{}
	strangers := serveOn(t, &tls.Server{Handler: h, Admit: admission.Enter}, "[::1]:0") // another network than
	known := serve(t, &tls.Server{Handler: h, Admit: admission.Enter})                  // 127.0.0.1
	d := known.dialer(t, always(known.ca.Session()))
	dial := func() {
		t.Helper()
		c, err := d.Dial(t.Context(), "nats")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	dial()
	refused := 0
	for range 200 {
		c, err := net.Dial("tcp", strangers.addr)
		if err == nil {
			err = stdtls.Client(c, strangers.client("api."+domain, nil, nil)).Handshake()
			c.Close()
		}
		if err != nil {
			refused++
		}
	}
	s := admission.Stats()
	t.Logf("%d of 200 were refused; %+v", refused, s)
	if refused == 0 || s.TooFast != int64(refused) {
		t.Errorf("%d of 200 handshakes of a stranger were refused; %+v", refused, s)
	}
	dial()
}

// TestWhoIsKnown shows what makes a network known: the certificate of a live
// Session, at the API too, and nothing else.
func TestWhoIsKnown(t *testing.T) {
	var alive atomic.Bool
	alive.Store(true)
	h := tunneltest.NewHouse()
	for _, test := range []struct {
		name, sni string
		alpn      []string
		with      string
		known     int
	}{
		{"framed", "gateway." + domain, []string{"cardea/1"}, "session", 1},
		{"raw", "nats.svc." + domain, nil, "session", 1},
		{"API", "api." + domain, nil, "session", 1},
		{"API without certificate", "api." + domain, nil, "", 0},
		{"API with that of another authority", "api." + domain, nil, "stranger", 0},
		{"API with that of a Session that is gone", "api." + domain, nil, "gone", 0},
		{"raw with that of a Session that is gone", "nats.svc." + domain, nil, "gone", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			admission := &ingress.Admission{}
			g := serve(t, &tls.Server{
				Handler: h, Admit: admission.Enter,
				Alive: func(leaf *x509.Certificate) bool { return leaf.SerialNumber.Int64() != 13 },
			})
			cert := g.ca.Session()
			switch test.with {
			case "":
				cert = nil
			case "stranger":
				cert = tunneltest.NewAuthority(t).Session()
			case "gone":
				cert = g.ca.Session(func(c *x509.Certificate) { c.SerialNumber.SetInt64(13) })
			}
			c, err := g.handshake(t, test.sni, test.alpn, cert)
			if err != nil {
				t.Fatal(err)
			}
			for admission.Stats().Pending > 0 {
				runtime.Gosched()
			}
			c.Close()
			if s := admission.Stats(); s.Known != test.known {
				t.Errorf("%+v", s)
			}
			<-g.accepted
			for len(h.Arrivals) > 0 {
				(<-h.Arrivals).Conn.Close()
			}
		})
	}
}

// BenchmarkUnauthenticated is the cost of one attempt of a stranger: the CPU time
// of the server's process, what its kernel does included. The stranger is a
// process of its own. How many attempts there may be is another question: without
// a limit on their rate here, to see what each costs.
func BenchmarkUnauthenticated(b *testing.B) {
	for _, test := range []struct {
		name, attack string
		rate         int
	}{
		{"silent", "silent", 20},
		{"hello, too many a second", "hello", 20},
		{"hello, name not served", "hello", 1 << 30},
		{"handshake, no certificate", "handshake", 1 << 30},
	} {
		b.Run(test.name, func(b *testing.B) {
			admission := &ingress.Admission{Limits: ingress.AdmissionLimits{Rate: test.rate}}
			h := &crowd{}
			s := &tls.Server{Handler: h, Admit: admission.Enter, Domain: domain}
			g := serveOn(b, s, "127.0.0.1:0")
			self, err := os.Executable()
			if err != nil {
				b.Fatal(err)
			}
			attempts := max(b.N, 2000)
			child := exec.CommandContext(b.Context(), self)
			child.Env = append(os.Environ(), "TLS_TEST_ATTACK="+test.attack, "TLS_TEST_TARGET="+g.addr, "TLS_TEST_ATTEMPTS="+strconv.Itoa(attempts))
			before := cpuTime(b)
			if out, err := child.CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			for h.refused.Load() < int64(attempts) {
				runtime.Gosched()
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(attempts), "cpu-µs/attempt")
			b.ReportMetric(0, "ns/op")
			b.Logf("%+v", admission.Stats())
		})
	}
}

// cpuTime returns how much CPU time this process has taken.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// attack makes attempts on a server, as the process of a stranger.
func attack(kind, target string, attempts int) error {
	config := &stdtls.Config{ServerName: "www.example.com", InsecureSkipVerify: true}
	if kind == "handshake" {
		config.ServerName = "nats.svc." + domain
	}
	const silent, hands = 1000, 64
	kept := make(chan net.Conn, silent+hands)
	var all sync.WaitGroup
	failed := make(chan error, hands)
	for h := range hands {
		all.Go(func() {
			for range (attempts + hands - 1 - h) / hands {
				c, err := net.Dial("tcp", target)
				if errors.Is(err, syscall.ECONNRESET) { // refused so soon
					continue
				}
				if err != nil {
					failed <- err
					return
				}
				if kind == "silent" {
					if kept <- c; len(kept) >= silent {
						(<-kept).Close()
					}
					continue
				}
				client := stdtls.Client(c, config)
				client.Handshake()
				client.Read(make([]byte, 1)) // until it is closed
				c.Close()
			}
		})
	}
	all.Wait()
	for len(kept) > 0 {
		(<-kept).Close()
	}
	close(failed)
	return <-failed
}
