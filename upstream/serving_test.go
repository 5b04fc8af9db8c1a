package upstream

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/relay"
	"cardea/tunnel"
	"cardea/tunnel/memory"
	"cardea/wire/proxyproto"
)

// devices are Sessions that serve, in memory. They are a Serving.
type devices struct {
	mu    sync.Mutex
	list  map[string]*device // by uid
	asked []string           // the Sessions that were dialled
}

// A device is one of them.
type device struct {
	user  string
	dead  bool   // it says nothing any more
	words string // why it does not get there; "" if it does
	serve func(target string, conn tunnel.Conn)

	mu    sync.Mutex
	conns []tunnel.Conn
}

func newDevices(list map[string]*device) *devices { return &devices{list: list} }

func (x *devices) Sessions(service, user string) (list []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for uid, d := range x.list {
		if d.user == user && service == "db.default" {
			list = append(list, uid)
		}
	}
	return list
}

func (x *devices) Name(session string) string { return session + "-name" }

func (x *devices) Dial(ctx context.Context, session, target string) (net.Conn, error) {
	x.mu.Lock()
	d := x.list[session]
	x.asked = append(x.asked, session)
	x.mu.Unlock()
	if d == nil {
		return nil, api.Errorf(api.CodeUnavailable, "the device is gone")
	}
	return (&memory.Road{Handler: d}).Dial(ctx, target)
}

// took returns the Sessions that were dialled since the last call.
func (x *devices) took() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := strings.Join(x.asked, " ")
	x.asked = nil
	return out
}

// put makes a device be there, or with nil not any more.
func (x *devices) put(session string, d *device) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.list[session] = d; d == nil {
		delete(x.list, session)
	}
}

func (d *device) Refused(api.Refusal) {}

func (d *device) Arrive(a api.Arrival) {
	d.mu.Lock()
	defer d.mu.Unlock()
	conn := a.Conn.(tunnel.Conn)
	switch {
	case d.dead:
		d.conns = append(d.conns, conn)
	case d.words != "":
		conn.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictUnavailable, Words: d.words})
		conn.Close()
	default:
		conn.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictOK})
		d.conns = append(d.conns, conn)
		if d.serve != nil {
			go d.serve(a.Service, conn)
		}
	}
}

// die ends a device as SIGKILL, or the loss of its power, does.
func (d *device) die(silent bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true // in silence, what it had goes on: nobody has noticed yet
	for _, c := range d.conns {
		if !silent {
			c.Reset("lost")
		}
	}
}

// servedBy is a config that Sessions of devices serve.
func servedBy(user string) *api.ServiceConfig {
	return &api.ServiceConfig{Name: "default", Upstream: api.Upstream{URL: "tcp://127.0.0.1:5432", User: user}}
}

// through dials db.default, which must succeed, and returns the name of the Session.
func through(t *testing.T, d *Dialer, cfg *api.ServiceConfig) (string, api.Hold) {
	t.Helper()
	c, report, err := d.Dial(t.Context(), destination("db.default", cfg))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(strings.TrimPrefix(c.RemoteAddr().String(), "session "), "-name"), report.Hold
}

func TestServedByTheLeastBusy(t *testing.T) {
	x := newDevices(map[string]*device{"a": {user: "devices"}, "b": {user: "devices"}, "c": {user: "others"}})
	d := newDialer()
	d.Serving = x
	cfg := servedBy("devices")
	holds := map[string][]api.Hold{}
	dial := func(n int) {
		t.Helper()
		for range n {
			who, hold := through(t, d, cfg)
			holds[who] = append(holds[who], hold)
		}
	}
	dial(6)
	if len(holds["a"]) != 3 || len(holds["b"]) != 3 {
		t.Fatalf("a has %d, b has %d", len(holds["a"]), len(holds["b"]))
	}
	for _, h := range holds["a"][:2] {
		h.Release(1, false)
	}
	x.took()
	dial(2)
	if got := x.took(); got != "a a" {
		t.Errorf("who has fewer was not taken: %s", got)
	}
	// A new one gets connections until it has as many.
	x.put("d", &device{user: "devices"})
	dial(3)
	if got := x.took(); got != "d d d" {
		t.Errorf("the new one was not taken: %s", got)
	}
	if d.Plan(destination("db.default", cfg)) != nil {
		t.Error("an engine is to connect to a Session by itself")
	}
	var list []string
	for _, e := range d.Endpoints(destination("db.default", cfg).Object) {
		list = append(list, fmt.Sprintf("%s %s %s %d", e.Endpoint, e.Address, e.State, e.Connections))
	}
	slices.Sort(list)
	want := []string{"a", "b", "d"}
	for i, w := range want {
		want[i] = "127.0.0.1:5432 (user devices) session " + w + "-name HEALTHY 3"
	}
	if !slices.Equal(list, want) {
		t.Errorf("the endpoints are %q", list)
	}
}

// dialFails returns the Error of a dial that must fail.
func dialFails(t *testing.T, d *Dialer, cfg *api.ServiceConfig, reason string, words ...string) {
	t.Helper()
	_, err := dialTo(d, t.Context(), "db.default", cfg)
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Reason != reason {
		t.Fatalf("error is %v, want %s", err, reason)
	}
	for _, w := range words {
		if !strings.Contains(e.Words, w) {
			t.Errorf("the words are %q, and %q is not in them", e.Words, w)
		}
	}
}

func TestNobodyServes(t *testing.T) {
	_, port := listen(t, "127.0.0.1:0") // where no TCP connection is ever made to
	cfg := servedBy("devices")
	cfg.Upstream.URL = "tcp://127.0.0.1:" + port
	want := []string{"127.0.0.1:" + port + " (user devices)", "no connected Session of User devices serves it", "cardea connect --serve db.default"}
	synctest.Test(t, func(t *testing.T) {
		dialFails(t, newDialer(), cfg, Unhealthy, want...)
		x := newDevices(map[string]*device{"a": {user: "others"}})
		d := newDialer()
		d.Serving = x
		fails := func(within time.Duration) {
			t.Helper()
			start := time.Now()
			dialFails(t, d, cfg, Unhealthy, want...)
			if took := time.Since(start); took != within {
				t.Errorf("it took %v, want %v", took, within)
			}
		}
		// One may be about to come, to a process that has just begun. Later it would be here.
		fails(comeTime)
		time.Sleep(hopeTime)
		fails(0)
		if c := d.Healthy(destination("db.default", nil).Object); c == nil || c.Status != "False" || !strings.Contains(c.Message, want[1]) {
			t.Errorf("the condition is %+v", c)
		}
		x.put("a", &device{user: "devices"})
		_, hold := through(t, d, cfg)
		hold.Release(1, false)
		// The only one was here a moment ago, and comes again.
		x.put("a", nil)
		fails(comeTime)
		var back sync.WaitGroup
		back.Go(func() {
			time.Sleep(time.Second)
			x.put("a", &device{user: "devices"})
		})
		start := time.Now()
		_, hold = through(t, d, cfg)
		hold.Release(1, false)
		if took := time.Since(start); took > time.Second+comeLook {
			t.Errorf("it took %v", took)
		}
		back.Wait()
		x.put("a", nil)
		time.Sleep(hopeTime)
		fails(0)
	})
}

func TestAnotherSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &device{user: "devices"}, &device{user: "devices"}
		x := newDevices(map[string]*device{"a": a, "b": b})
		d := newDialer()
		d.Serving = x
		cfg := servedBy("devices")
		// dial dials twice, and says who was asked, in the order of their names, and how
		// long it took.
		dial := func(want string, within time.Duration) {
			t.Helper()
			start := time.Now()
			for range 2 {
				_, hold := through(t, d, cfg)
				hold.Release(1, false)
			}
			if got := slices.Sorted(strings.FieldsSeq(x.took())); strings.Join(got, " ") != want {
				t.Errorf("asked %q, want %q", got, want)
			}
			if took := time.Since(start); took != within {
				t.Errorf("it took %v, want %v", took, within)
			}
		}
		dial("a b", 0)
		// One that says no is left at once, and passed over for a while.
		a.words = "127.0.0.1:5432: nothing listens there"
		dial("a b b", 0)
		dial("b b", 0)
		time.Sleep(5 * time.Second)
		a.words = ""
		dial("a b", 0)
		// One that says nothing has a second, and is passed over then.
		b.die(true)
		dial("a a b", time.Second)
		dial("a a", 0)
		// It goes and comes again: it is as good as new.
		x.put("b", nil)
		dial("a a", 0)
		b = &device{user: "devices"}
		x.put("b", b)
		dial("a b", 0)
		// All are dead: each was asked, and the words say which.
		a.die(true)
		b.die(true)
		start := time.Now()
		dialFails(t, d, cfg, DialTimeout, "session a-name: no answer of the device", "session b-name: no answer of the device")
		if took := time.Since(start); took > DefaultTimeout {
			t.Errorf("it took %v", took)
		}
	})
}

// A device that is slow, and not dead, is waited for while others are asked beside it.
func TestSlowSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newDevices(map[string]*device{"a": {user: "devices"}, "b": {user: "devices"}})
		d := newDialer()
		slow := &slowly{x, 3 * time.Second}
		d.Serving = slow
		start := time.Now()
		_, hold := through(t, d, servedBy("devices"))
		hold.Release(1, false)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("it took %v", took)
		}
		if got := x.took(); got != "a b" {
			t.Errorf("asked %q", got)
		}
		slow.by = time.Hour
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if _, err := dialTo(d, ctx, "db.default", servedBy("devices")); err == nil {
			t.Error("connected")
		}
	})
}

// slowly is a Serving that takes its time.
type slowly struct {
	*devices
	by time.Duration
}

func (s *slowly) Dial(ctx context.Context, session, target string) (net.Conn, error) {
	c, err := s.devices.Dial(ctx, session, target)
	select {
	case <-time.After(s.by):
		return c, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestSessionDiesUnderLoad is two Sessions of which one dies, in silence or not, while
// many connect: who has a connection through the other keeps it, and who is new has one in
// two seconds.
func TestSessionDiesUnderLoad(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("silent %v", silent), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				echo := func(_ string, c tunnel.Conn) {
					io.Copy(c, c)
					c.Close()
				}
				a, b := &device{user: "devices", serve: echo}, &device{user: "devices", serve: echo}
				d := newDialer()
				d.Serving = newDevices(map[string]*device{"a": a, "b": b})
				cfg := servedBy("devices")
				talk := func(c net.Conn) error {
					if _, err := io.WriteString(c, "ping"); err != nil {
						return err
					}
					_, err := io.ReadFull(c, make([]byte, 4))
					return err
				}
				died := make(chan struct{})
				var all sync.WaitGroup
				for i := range 40 {
					all.Go(func() {
						c, report, err := d.Dial(t.Context(), destination("db.default", cfg))
						if err != nil {
							t.Error(err)
							return
						}
						defer c.Close()
						for n := range 100 {
							if err = talk(c); err != nil {
								break
							}
							if i == 0 && n == 50 {
								b.die(silent)
								close(died)
							}
							time.Sleep(10 * time.Millisecond)
						}
						report.Hold.Release(1, err != nil)
						if err != nil && c.RemoteAddr().String() != "session b-name" {
							t.Errorf("a connection through the one that lives broke: %v", err)
						}
					})
				}
				<-died
				for range 100 {
					all.Go(func() {
						start := time.Now()
						c, report, err := d.Dial(t.Context(), destination("db.default", cfg))
						if err != nil {
							t.Error(err)
							return
						}
						defer c.Close()
						if took := time.Since(start); took > 2*time.Second {
							t.Errorf("a new connection took %v", took)
						}
						if err := talk(c); err != nil {
							t.Error(err)
						}
						report.Hold.Release(4, false)
					})
					time.Sleep(5 * time.Millisecond)
				}
				all.Wait()
				for _, dev := range []*device{a, b} { // for the bubble: nobody serves on
					dev.die(false)
				}
			})
		})
	}
}

// What the cluster has beside Sessions is taken as it says.
func TestSessionsBesideOthers(t *testing.T) {
	x := newDevices(map[string]*device{"a": {user: "devices"}})
	e := &endpoints{answer: func(int, context.Context) error { return nil }}
	d := newDialer()
	d.Serving, d.connect = x, e.connect
	cfg := several(1)
	cfg.Upstream.Loadbalance.Endpoints = append(cfg.Upstream.Loadbalance.Endpoints,
		api.UpstreamEndpoint{URL: "tcp://192.0.2.1:80", User: "devices", Backup: true})
	dial := func() string {
		t.Helper()
		c, report, err := d.Dial(t.Context(), destination("db.default", cfg))
		if err != nil {
			t.Fatal(err)
		}
		report.Hold.Release(1, false)
		if direct, ok := c.(pipeTo); ok {
			return direct.to.String()
		}
		return c.RemoteAddr().String()
	}
	if got := dial(); got != "192.0.2.1:80" {
		t.Errorf("the backup is not kept: %s", got)
	}
	e.answer = func(int, context.Context) error { return syscall.ECONNREFUSED }
	if got := dial(); got != "session a-name" {
		t.Errorf("connected to %s", got)
	}
}

// Datagrams travel with their lengths, each flow through one Session.
func TestDatagramsThroughASession(t *testing.T) {
	x := newDevices(map[string]*device{"a": {user: "devices", serve: func(_ string, c tunnel.Conn) {
		defer c.Close()
		m := relay.Messages(c)
		b := make([]byte, relay.MaxDatagram)
		for {
			n, err := m.Read(b)
			if err != nil {
				return
			}
			m.Write(append([]byte("re: "), b[:n]...))
		}
	}}})
	d := newDialer()
	d.Serving = x
	cfg := servedBy("devices")
	cfg.Upstream.URL = "udp://127.0.0.1:53"
	c, report, err := d.Dial(t.Context(), destination("db.default", cfg))
	if err != nil {
		t.Fatal(err)
	}
	defer report.Hold.Release(1, false)
	defer c.Close()
	if !relay.IsDatagram(c) || c.RemoteAddr().String() != "session a-name" {
		t.Errorf("the conn is a %T at %s", c, c.RemoteAddr())
	}
	for range 2 {
		if got, err := ask(c); got != "re: ?" || err != nil {
			t.Errorf("the answer is %q, %v", got, err)
		}
	}
}

// TLS is spoken with the upstream, through the device: it is verified by the name in the
// URL, and a PROXY header comes before.
func TestSecuredThroughASession(t *testing.T) {
	ca := newIssuer(t, "CA")
	certificate := ca.issue(t, nil, "db.corp")
	heard := make(chan string, 1)
	x := newDevices(map[string]*device{"a": {user: "devices", serve: func(target string, c tunnel.Conn) {
		defer c.Close()
		header := make([]byte, 16) // version 2: its last two bytes are the size of the rest
		io.ReadFull(c, header)
		header = append(header, make([]byte, binary.BigEndian.Uint16(header[14:]))...)
		io.ReadFull(c, header[16:])
		h, _, err := proxyproto.Parse(header)
		if err != nil {
			t.Error(err)
			return
		}
		s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
		if err := s.Handshake(); err != nil {
			heard <- err.Error()
			return
		}
		io.WriteString(s, "hello")
		s.CloseWrite()
		b, err := io.ReadAll(s)
		heard <- fmt.Sprintf("%s %s %q %v", target, h.Source.Addr(), b, errors.Is(err, syscall.ECONNRESET))
	}}})
	d := newDialer()
	d.Serving = x
	cfg := servedBy("devices")
	cfg.Upstream.URL, cfg.Upstream.ProxyProtocol = "tls://db.corp:5432", api.ProxyV2
	cfg.TLS = &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}}
	to := destination("db.default", cfg)
	to.Facts = &api.Facts{IP: "192.0.2.7", Port: 4711}
	dial := func() net.Conn {
		t.Helper()
		c, report, err := d.Dial(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		report.Hold.Release(1, false)
		if report.Verified == nil || !*report.Verified || c.RemoteAddr().String() != "session a-name" {
			t.Errorf("verified %v, at %s", report.Verified, c.RemoteAddr())
		}
		return c
	}
	c := dial()
	if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	io.WriteString(c, "thanks")
	c.(interface{ CloseWrite() error }).CloseWrite()
	if got := <-heard; got != `db.default/default 192.0.2.7 "thanks" false` {
		t.Errorf("it heard %s", got)
	}
	c.Close()
	// A reset goes all the way.
	c = dial()
	io.ReadFull(c, make([]byte, len("hello")))
	c.(interface{ Reset(string) error }).Reset("REVOKED")
	if got := <-heard; !strings.HasSuffix(got, "true") {
		t.Errorf("it heard %s", got)
	}
	// And who is not whom the URL names gets nothing.
	certificate = ca.issue(t, nil, "other")
	_, _, err := d.Dial(t.Context(), to)
	if e, ok := errors.AsType[*Error](err); !ok || e.Reason != UpstreamTLS || !strings.Contains(e.Words, "db.corp:5432 (user devices): session a-name: ") || !strings.Contains(e.Words, `for "other"`) {
		t.Errorf("error is %v", err)
	}
	<-heard
}

func TestSessionsAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &device{user: "devices"}, &device{user: "devices", words: "nothing listens there"}
		for _, d := range []*device{a, b} {
			d.serve = func(_ string, c tunnel.Conn) {
				io.Copy(io.Discard, c)
				c.Close()
			}
		}
		d := newDialer()
		d.Serving = newDevices(map[string]*device{"a": a, "b": b})
		cfg := servedBy("devices")
		cfg.Upstream.Health = &api.UpstreamHealth{Check: &api.HealthProbe{}, CloseOnUnhealthy: true}
		var notes told
		notes.to(d)
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() { d.Run(ctx) })
		d.Watch([]api.Destination{destination("db.default", cfg)})
		time.Sleep(time.Minute)
		if changes, _ := notes.took(); !slices.Contains(changes, "db.default session b-name UNKNOWN→UNHEALTHY") || !slices.Contains(changes, "db.default session a-name UNKNOWN→HEALTHY") {
			t.Errorf("told %q", changes)
		}
		for range 4 {
			if who, hold := through(t, d, cfg); who != "a" {
				t.Errorf("connected to %s", who)
			} else {
				defer hold.Release(1, false)
			}
		}
		if _, cut := notes.took(); len(cut) != 0 {
			t.Errorf("cut were %q", cut)
		}
		a.mu.Lock()
		a.words = "it has gone"
		a.mu.Unlock()
		time.Sleep(time.Minute)
		// As the connections themselves say where they lead.
		if _, cut := notes.took(); len(cut) != 1 || !strings.HasPrefix(cut[0], "db.default session a-name: ") || !strings.Contains(cut[0], "it has gone") {
			t.Errorf("cut were %q", cut)
		}
		cancel()
		run.Wait()
		a.die(false)
	})
}
