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
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
)

// several is a config of so many endpoints, 192.0.2.1:80 and so on.
func several(n int) *api.ServiceConfig {
	cfg := &api.ServiceConfig{Name: "default", Upstream: api.Upstream{Loadbalance: new(api.Loadbalance)}}
	for i := range n {
		cfg.Upstream.Loadbalance.Endpoints = append(cfg.Upstream.Loadbalance.Endpoints, api.UpstreamEndpoint{URL: fmt.Sprintf("tcp://192.0.2.%d:80", i+1)})
	}
	return cfg
}

// endpoints answers at addresses, by their last number, and notes what was tried.
type endpoints struct {
	answer func(last int, ctx context.Context) error // nil: a connection
	mu     sync.Mutex
	tried  []int
}

func (e *endpoints) connect(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	last := int(at.Addr().As4()[3])
	e.mu.Lock()
	e.tried = append(e.tried, last)
	e.mu.Unlock()
	if err := e.answer(last, ctx); err != nil {
		return nil, err
	}
	return pipeTo{to: at, closed: new(sync.Map)}, nil
}

func (e *endpoints) took() []int {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := e.tried
	e.tried = nil
	return out
}

func TestEndpointsTakeTurns(t *testing.T) {
	e := &endpoints{answer: func(int, context.Context) error { return nil }}
	d := newDialer()
	d.connect = e.connect
	dial := func(service string, cfg *api.ServiceConfig) {
		t.Helper()
		_, report, err := d.Dial(t.Context(), destination(service, cfg))
		if err != nil {
			t.Fatal(err)
		}
		report.Hold.Release(1, false)
	}
	for range 4 {
		dial("db.default", several(3))
	}
	if got := e.took(); !slices.Equal(got, []int{1, 2, 3, 1}) {
		t.Errorf("tried %v", got)
	}
	// Each config has its own turns, and one that has fewer endpoints now goes on.
	other := several(3)
	other.Name = "other"
	dial("db.default", other)
	dial("web.default", several(3))
	dial("db.default", several(1))
	dial("db.default", several(3))
	if got := e.took(); !slices.Equal(got, []int{1, 1, 1, 2}) {
		t.Errorf("tried %v", got)
	}
	for i := range 2 * maxPlaces {
		dial(fmt.Sprintf("s%d.default", i), several(1))
	}
	if n := len(d.places); n > maxPlaces {
		t.Errorf("%d configs are remembered", n)
	}
}

func TestNextEndpoint(t *testing.T) {
	e := &endpoints{answer: func(last int, _ context.Context) error {
		if last == 3 {
			return nil
		}
		return syscall.ECONNREFUSED
	}}
	d := newDialer()
	d.connect = e.connect
	for _, want := range [][]int{{1, 2, 3}, {3}, {2, 3}, {1, 3}} {
		if _, err := dialTo(d, t.Context(), "db.default", several(3)); err != nil {
			t.Fatal(err)
		}
		if got := e.took(); !slices.Equal(got, want) {
			t.Errorf("tried %v, want %v", got, want)
		}
	}
	e.answer = func(int, context.Context) error { return syscall.ECONNREFUSED }
	_, err := dialTo(d, t.Context(), "db.default", several(100))
	x, ok := errors.AsType[*Error](err)
	if !ok || x.Reason != DialFailed || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("error is %v", err)
	}
	for _, w := range []string{"none of 100 endpoints", "192.0.2.2:80: ", "192.0.2.17:80: ", "and 84 more"} {
		if !strings.Contains(x.Words, w) {
			t.Errorf("the words are %q, and %q is not in them", x.Words, w)
		}
	}
}

// One endpoint that does not answer leaves time for the others.
func TestDeadEndpoint(t *testing.T) {
	hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	seconds := func(n int) *api.Duration { return &api.Duration{Seconds: &n} }
	for name, c := range map[string]struct {
		n       int
		timeout *api.Duration
		answer  func(last int, ctx context.Context) error
		after   time.Duration
		tried   []int
		reason  string // "" is a connection
		words   string
	}{
		"the first of two hangs": {2, nil, func(last int, ctx context.Context) error {
			if last == 1 {
				return hangs(ctx)
			}
			return nil
		}, 5 * time.Second, []int{1, 2}, "", ""},
		"two of three hang": {3, seconds(30), func(last int, ctx context.Context) error {
			if last < 3 {
				return hangs(ctx)
			}
			return nil
		}, 20 * time.Second, []int{1, 2, 3}, "", ""},
		"all hang": {2, seconds(4), func(_ int, ctx context.Context) error { return hangs(ctx) }, 4 * time.Second, []int{1, 2}, DialTimeout, "no answer within 2s"},
		"many hang": {50, seconds(3), func(_ int, ctx context.Context) error { return hangs(ctx) }, 3 * time.Second, []int{1, 2, 3, 4}, DialTimeout,
			"for 46 more there was no time: see spec.config.upstream.connectTimeout"},
		"one hangs and one refuses": {2, nil, func(last int, ctx context.Context) error {
			if last == 1 {
				return hangs(ctx)
			}
			return syscall.ECONNREFUSED
		}, 5 * time.Second, []int{1, 2}, DialFailed, "nothing listens there"},
		"a short time": {2, func() *api.Duration { ms := 300; return &api.Duration{Milliseconds: &ms} }(),
			func(_ int, ctx context.Context) error { return hangs(ctx) }, 300 * time.Millisecond, []int{1, 2}, DialTimeout, "no answer within 150ms"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &endpoints{answer: c.answer}
				d := newDialer()
				d.connect = e.connect
				cfg := several(c.n)
				cfg.Upstream.ConnectTimeout = c.timeout
				start := time.Now()
				_, err := dialTo(d, t.Context(), "db.default", cfg)
				if took := time.Since(start); took != c.after {
					t.Errorf("took %v, want %v", took, c.after)
				}
				if got := e.took(); !slices.Equal(got, c.tried) {
					t.Errorf("tried %v, want %v", got, c.tried)
				}
				x, failed := errors.AsType[*Error](err)
				if c.reason == DialFailed && errors.Is(err, context.DeadlineExceeded) {
					t.Error("the cause is a time-out, and the reason is not")
				}
				switch {
				case !failed && c.reason != "", failed && x.Reason != c.reason:
					t.Errorf("error is %v, want %q", err, c.reason)
				case failed && !strings.Contains(x.Words, c.words):
					t.Errorf("the words are %q, and %q is not in them", x.Words, c.words)
				}
			})
		})
	}
}

// An endpoint whose TLS fails is one that fails, and its reason tells most.
func TestEndpointWithoutTLS(t *testing.T) {
	ca := newIssuer(t, "our CA")
	other := newIssuer(t, "another CA")
	bad := accepts(t, "127.0.0.1:0", greetingBy(t, other))
	good := accepts(t, "127.0.0.1:0", greetingBy(t, ca))
	closed, dead := listen(t, "127.0.0.1:0")
	closed.Close()
	config := func(ports ...string) *api.ServiceConfig {
		cfg := secured("", &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}})
		cfg.Upstream.Loadbalance = new(api.Loadbalance)
		for _, p := range ports {
			cfg.Upstream.Loadbalance.Endpoints = append(cfg.Upstream.Loadbalance.Endpoints, api.UpstreamEndpoint{URL: "tls://127.0.0.1:" + p})
		}
		return cfg
	}
	d := newDialer()
	converses(t, dial(t, d, config(bad, dead, good)))
	_, err := dialTo(d, t.Context(), "web.default", config(bad, dead))
	x, ok := errors.AsType[*Error](err)
	if !ok || x.Reason != UpstreamTLS || !strings.Contains(x.Words, "127.0.0.1:"+bad) || !strings.Contains(x.Words, "127.0.0.1:"+dead) {
		t.Errorf("error is %v", err)
	}
}

// greetingBy is greeting with a certificate of a CA.
func greetingBy(t *testing.T, by *issuer) func(net.Conn) {
	return greeting(&tls.Config{Certificates: []tls.Certificate{by.issue(t, nil, "127.0.0.1")}})
}

func TestDialContext(t *testing.T) {
	_, port := listen(t, "127.0.0.1:0")
	d := newDialer()
	d.Hosts = named("otel.corp", "127.0.0.1")
	c, err := d.DialContext(t.Context(), "tcp", "otel.corp:"+port)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	d.Loopback = false
	d.Hosts = func() map[string][]string {
		return map[string][]string{"otel.corp": {"127.0.0.1"}, "meta.corp": {"169.254.169.254"}}
	}
	for address, words := range map[string]string{
		"otel.corp:" + port:                "spec.upstream.allow",
		"127.0.0.1:" + port:                "spec.upstream.allow",
		"meta.corp:80":                     "link-local",
		"[fd00:ec2::254]:80":               "metadata",
		"metadata.google.internal:80":      "metadata",
		"Metadata.Google.Internal.:80":     "metadata",
		"instance-data:80":                 "metadata",
		"otel.corp":                        "HOST:PORT",
		"otel.corp:0":                      "from 1 to 65535",
		"otel.corp:http":                   "from 1 to 65535",
		"otel.corp:70000":                  "from 1 to 65535",
		strings.Repeat("x", 5000) + ":1:1": "HOST:PORT",
	} {
		_, err := d.DialContext(t.Context(), "tcp", address)
		x, ok := errors.AsType[*Error](err)
		if !ok || x.Reason != DialFailed || !strings.Contains(x.Words, words) || len(x.Words) > 1000 {
			t.Errorf("%.100s: error is %v, want %q", address, err, words)
		}
	}
	if _, err := d.DialContext(t.Context(), "udp", "otel.corp:"+port); err == nil {
		t.Error("connected over udp")
	}
}

// The name of cloud metadata is one that an operator can mean.
func TestMetadataName(t *testing.T) {
	e := &endpoints{answer: func(int, context.Context) error { return nil }}
	d := newDialer()
	d.connect = e.connect
	refused(t, d, "tcp://metadata.google.internal:80", DialFailed, "spec.dns.hosts")
	d.Hosts = named("metadata.google.internal", "192.0.2.1")
	if _, err := dialTo(d, t.Context(), "db.default", config("tcp://metadata.google.internal:80")); err != nil {
		t.Error(err)
	}
}

func FuzzDialContext(f *testing.F) {
	f.Add("otel.corp:4317")
	f.Add("[::1%lo]:80")
	f.Add("metadata.google.internal:80")
	d := newDialer()
	d.Loopback = false
	d.connect = func(_ context.Context, at netip.AddrPort) (net.Conn, error) {
		if err := d.check(at); err != nil {
			return nil, err
		}
		return nil, syscall.ECONNREFUSED
	}
	f.Fuzz(func(t *testing.T, address string) {
		_, err := d.DialContext(t.Context(), "tcp", address)
		if x, ok := errors.AsType[*Error](err); !ok || x.Words == "" {
			t.Fatalf("%q: %v", address, err)
		}
	})
}
