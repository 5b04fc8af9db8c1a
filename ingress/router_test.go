package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/relay"
	"cardea/secret"
	roadtls "cardea/tunnel/tls"
)

// site is a Router that runs until the end of the test.
type site struct {
	*Router
	t        *testing.T
	settings atomic.Pointer[api.ClusterRouting]
	pki      *pki
	arrivals chan api.Arrival
	refusals chan api.Refusal
	stop     func()

	mu        sync.Mutex
	materials map[string]*secret.Material // by chain
	upstreams []api.Arrival
}

func newSite(t *testing.T) *site {
	s := &site{t: t, pki: newPKI(t), arrivals: make(chan api.Arrival, 1000), refusals: make(chan api.Refusal, 1000), materials: map[string]*secret.Material{}}
	s.settings.Store(&api.ClusterRouting{})
	cluster := sync.OnceValue(func() *tls.Certificate { return s.pki.leaf("a.ns.svc.cardea.internal") })
	s.Router = &Router{
		Handle:    func(a api.Arrival) { s.arrivals <- a },
		Terminate: (&roadtls.Terminator{}).Accept,
		Material: func(_ context.Context, m *api.Material) (*secret.Material, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if x := s.materials[m.Chain]; x != nil {
				return x, nil
			}
			return nil, os.ErrNotExist
		},
		ClusterCertificate: func(string, ...string) (*tls.Certificate, error) { return cluster(), nil },
		ClusterCAs:         func() *x509.CertPool { return s.pki.pool },
		Settings:           func() *api.ClusterRouting { return s.settings.Load() },
		Upstreams: func(string, netip.Addr) []api.Arrival {
			s.mu.Lock()
			defer s.mu.Unlock()
			return slices.Clone(s.upstreams)
		},
		Refused:   func(r api.Refusal) { s.refusals <- r },
		Admission: &Admission{Limits: AdmissionLimits{Rate: -1}},
		Log:       quiet,
	}
	return s
}

// roads are the ways to accept: each a Router.Raw.
func roads() map[string]func(*net.TCPListener) (relay.Listener, error) {
	return map[string]func(*net.TCPListener) (relay.Listener, error){"net": nil, "loop": listenLoop()}
}

// onRoads runs a test with each way to accept.
func onRoads(t *testing.T, test func(t *testing.T, newSite func(*testing.T) *site)) {
	for name, raw := range roads() {
		t.Run(name, func(t *testing.T) {
			test(t, func(t *testing.T) *site {
				s := newSite(t)
				s.Raw = raw
				return s
			})
		})
	}
}

// bare reports whether a connection is as it was accepted.
func (s *site) bare(c net.Conn) bool {
	_, ordinary := c.(*net.TCPConn)
	_, isRaw := c.(relay.Socket)
	return ordinary && s.Raw == nil || isRaw && s.Raw != nil
}

// run runs the Router until the end of the test, or stop.
func (s *site) run() *site {
	ctx, cancel := context.WithCancel(context.Background()) // t.Context ends before the cleanups
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	s.stop = func() {
		cancel()
		<-done
	}
	s.t.Cleanup(func() {
		s.stop()
		for len(s.arrivals) > 0 {
			(<-s.arrivals).Conn.Close()
		}
	})
	return s
}

// put keeps a Material in a file.
func (s *site) put(chain string, m *secret.Material) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.materials[chain] = m
}

// set puts Services into force, of which each is younger than the one before it.
func (s *site) set(services ...*api.Service) {
	for i, x := range services {
		x.Metadata.CreatedAt = noon.Add(time.Duration(i) * time.Second)
	}
	s.force(Input{Services: services})
}

func (s *site) force(in Input) {
	in.Domain = "cardea.internal"
	s.Set(context.Background(), Compile(in, s.table.Load(), time.Now()))
}

// dial opens a connection and says something.
func (s *site) dial(addr string, say ...byte) *net.TCPConn {
	s.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.Write(say)
	return c.(*net.TCPConn)
}

// arrival waits for the Arrival that a connection makes.
func (s *site) arrival() api.Arrival { return s.arrivalOf(func() {}) }

// arrivalOf is arrival for what may have to be done more than once.
func (s *site) arrivalOf(again func()) api.Arrival {
	s.t.Helper()
	for every := time.Tick(50 * time.Millisecond); ; {
		select {
		case a := <-s.arrivals:
			s.t.Cleanup(func() { a.Conn.Close() })
			return a
		case r := <-s.refusals:
			s.t.Fatalf("refused: %+v", r)
		case <-every:
			again()
		}
	}
}

// refusal waits for the Refusal of a connection, and checks that the client sees a
// reset.
func (s *site) refusal(c *net.TCPConn, reason api.ReasonType, words string) api.Refusal {
	s.t.Helper()
	var r api.Refusal
	select {
	case r = <-s.refusals:
	case a := <-s.arrivals:
		s.t.Fatalf("let in: %+v", a)
	}
	if r.Reason != reason || !strings.Contains(r.Words, words) || r.Facts.IP == "" && r.Facts.ProxiedBy == "" || r.Facts.Listener == "" || r.Facts.Tunnel != "public" {
		s.t.Errorf("%+v, want %s, %q", r, reason, words)
	}
	if c != nil {
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			s.t.Errorf("the client sees %v", err)
		}
	}
	return r
}

// condition returns whether the port of a Service is open, and the message.
func (s *site) condition(name string) (open bool, message string) {
	s.t.Helper()
	status, message := condition(s.t, s.Status(service(name)), api.ConditionListening)
	return status == "True", message
}

// freePort returns a port that nobody listens on, in either family.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func at(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

func local(s *api.ServiceSpec) { s.Public.Address = "127.0.0.1" }

func TestArrival(t *testing.T) { onRoads(t, testArrival) }

func testArrival(t *testing.T, newSite func(*testing.T) *site) {
	for _, test := range []struct{ listen, dial string }{
		{"127.0.0.1", "127.0.0.1"}, {"::1", "::1"}, {"", "127.0.0.1"}, {"", "::1"}, {"::", "::1"}, {"0.0.0.0", "127.0.0.1"},
	} {
		t.Run(test.dial+" on "+test.listen, func(t *testing.T) {
			s := newSite(t).run()
			port := freePort(t)
			s.set(public("a.ns", port, address(test.listen)))
			c := s.dial(at(test.dial, port))
			a := s.arrival()
			if !s.bare(a.Conn) {
				t.Errorf("the conn is a %T", a.Conn)
			}
			from := c.LocalAddr().(*net.TCPAddr)
			want := api.Facts{IP: test.dial, Port: from.Port, Listener: at(test.dial, port), Tunnel: "public"}
			if a.Facts != want {
				t.Errorf("facts %+v, want %+v", a.Facts, want)
			}
			if a.Service != "a.ns" || a.Evidence.Kind != api.EvidenceAnonymous || a.Evidence.Data != nil {
				t.Errorf("%+v", a)
			}
			if r := a.Route; r.Object != service("a.ns") || r.Config != nil || r.Log.Match != "any bytes" || r.Log.Version == "" || r.Log.Listener != (api.Bind{Address: test.listen, Port: port}).String() {
				t.Errorf("%+v", r)
			}
			if own := s.Addresses(); len(own) != 1 || int(own[0].Port()) != port {
				t.Errorf("addresses %v", own)
			}
		})
	}
}

func TestOneFamily(t *testing.T) { onRoads(t, testOneFamily) }

func testOneFamily(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	for listen, refused := range map[string]string{"0.0.0.0": "::1", "::": "127.0.0.1"} {
		s.set(public("a.ns", port, address(listen)))
		if _, err := net.Dial("tcp", at(refused, port)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s on %s: %v", refused, listen, err)
		}
	}
}

// A wildcard and specific addresses of one port, in whatever order they come.
func TestSideBySide(t *testing.T) { onRoads(t, testSideBySide) }

func testSideBySide(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	every, one, six := public("every.ns", port), public("one.ns", port, local), public("six.ns", port, address("::"))
	where := func(host string) string {
		t.Helper()
		s.dial(at(host, port))
		return s.arrival().Service
	}
	s.set(every)
	s.set(every, one)
	if a, b, c := where("127.0.0.1"), where("127.0.0.2"), where("::1"); a != "one.ns" || b != "every.ns" || c != "every.ns" {
		t.Errorf("specific after wildcard: %s, %s, %s", a, b, c)
	}
	s.set(one)
	if _, err := net.Dial("tcp", at("127.0.0.2", port)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without the wildcard: %v", err)
	}
	if l, err := net.Listen("tcp", at("", port)); err == nil {
		l.Close()
		t.Error("another program can have the port")
	}
	s.set(one, every, six)
	for range 8 {
		if a, b, c := where("127.0.0.1"), where("127.0.0.2"), where("::1"); a != "one.ns" || b != "every.ns" || c != "six.ns" {
			t.Fatalf("wildcard after specific: %s, %s, %s", a, b, c)
		}
	}
	for _, name := range []string{"every.ns", "one.ns", "six.ns"} {
		if open, message := s.condition(name); !open {
			t.Errorf("%s: %s", name, message)
		}
	}
}

// An address that goes from one bind to another has a listener all the time: a client
// that begins as one is closed is told nothing, tries again, and gets in.
func TestBindsChange(t *testing.T) { onRoads(t, testBindsChange) }

func testBindsChange(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	for i := range 10 {
		s.set(public("a.ns", port, address([]string{"", "127.0.0.1", "0.0.0.0"}[i%3])))
		s.dial(at("127.0.0.1", port)).Close()
		s.arrival().Conn.Close()
	}
}

// Those who wait at a port that goes are taken first.
func TestRetire(t *testing.T) {
	for name, road := range roads() {
		t.Run(name, func(t *testing.T) { testRetire(t, road) })
	}
}

func testRetire(t *testing.T, road func(*net.TCPListener) (relay.Listener, error)) {
	const waiting = 20
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if road != nil {
		x, err := road(l.(*net.TCPListener))
		if err != nil {
			t.Fatal(err)
		}
		l = raw{x}
	}
	entered, proceed := make(chan struct{}), make(chan struct{})
	taken := make(chan net.Conn, waiting)
	var first sync.Once
	x := &Listener{Listener: l, Direct: true, Log: quiet, Handle: func(_ context.Context, c net.Conn) {
		taken <- c
		first.Do(func() {
			close(entered)
			<-proceed
		})
	}}
	done := make(chan error)
	go func() { done <- x.Serve(t.Context()) }()
	var said, heard []byte
	for i := range waiting {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		said = append(said, byte('a'+i))
		c.Write(said[i:])
	}
	<-entered
	x.Retire()
	close(proceed)
	if err := <-done; err != nil {
		t.Error(err)
	}
	close(taken)
	for c := range taken {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Error(err)
		}
		heard = append(heard, b...)
		c.Close()
	}
	if road != nil { // several take at once
		slices.Sort(heard)
	}
	if !bytes.Equal(said, heard) {
		t.Errorf("of %s these are taken: %s", said, heard)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the listener is open: %v", err)
	}
}

func TestSetTouchesOnlyWhatChanges(t *testing.T) { onRoads(t, testSetTouchesOnlyWhatChanges) }

func testSetTouchesOnlyWhatChanges(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	stays, goes := public("a.ns", freePort(t), local), public("b.ns", freePort(t), local)
	s.set(stays, goes)
	before := s.doors[api.Bind{Address: "127.0.0.1", Port: stays.Status.Port}].listener
	c := s.dial(at("127.0.0.1", goes.Status.Port))
	a := s.arrival()

	s.set(stays)
	if _, err := net.Dial("tcp", at("127.0.0.1", goes.Status.Port)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the port that is not wanted any more: %v", err)
	}
	go a.Conn.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("a connection that lives: %v", err)
	}
	if s.Status(service("b.ns")) != nil || s.doors[api.Bind{Address: "127.0.0.1", Port: stays.Status.Port}].listener != before {
		t.Error("b has a status, or a was opened anew")
	}
	s.dial(at("127.0.0.1", stays.Status.Port))
	s.arrival()
}

func TestTwoServicesWithOnePort(t *testing.T) { onRoads(t, testTwoServicesWithOnePort) }

func testTwoServicesWithOnePort(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	older, younger := public("m.ns", port, local), public("a.ns", port, local)
	s.set(older, younger)
	if status, message := condition(t, s.Status(service("a.ns")), api.ConditionAccepted); status != "False" || !strings.Contains(message, "Service/m.ns") {
		t.Errorf("%v, %q", status, message)
	}
	s.dial(at("127.0.0.1", port))
	if a := s.arrival(); a.Service != "m.ns" {
		t.Errorf("arrived at %s", a.Service)
	}
	s.set(younger)
	s.dial(at("127.0.0.1", port))
	if a := s.arrival(); a.Service != "a.ns" {
		t.Errorf("arrived at %s", a.Service)
	}
}

// retry makes it time to open the port of a Service again, and waits until it is.
func (s *site) retry(name string) {
	for {
		if open, _ := s.condition(name); open {
			return
		}
		s.locked(func() {
			for _, d := range s.doors {
				if !d.next.IsZero() {
					d.next = time.Now()
				}
			}
			s.signal()
		})
		runtime.Gosched()
	}
}

func (s *site) locked(do func()) {
	s.Router.mu.Lock()
	defer s.Router.mu.Unlock()
	do()
}

func TestPortThatIsTaken(t *testing.T) { onRoads(t, testPortThatIsTaken) }

func testPortThatIsTaken(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	blocker, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Close()
	taken, fine := public("a.ns", blocker.Addr().(*net.TCPAddr).Port, local), public("b.ns", freePort(t), local)
	s.set(taken, fine)
	if open, message := s.condition("a.ns"); open || !strings.Contains(message, blocker.Addr().String()) || !strings.Contains(message, "another program") {
		t.Errorf("%v, %q", open, message)
	}
	q := api.RouteQuestion{Port: taken.Status.Port, NoTLS: true}
	if a := s.Ask(q); a.Open || a.Refused != "" || !strings.Contains(strings.Join(a.Steps, "\n"), "the port is not open: ") {
		t.Errorf("%+v", a)
	}
	if list, _ := s.Summary(); !slices.ContainsFunc(list, func(l string) bool {
		return strings.HasPrefix(l, fmt.Sprintf("127.0.0.1:%d (1 route), not open: 127.0.0.1:%d is taken by another program", taken.Status.Port, taken.Status.Port))
	}) {
		t.Errorf("%q", list)
	}
	if got := s.Stats(); got.Open != 1 || got.Closed != 1 || len(got.Listeners) != 2 {
		t.Errorf("%+v", got)
	}
	s.dial(at("127.0.0.1", fine.Status.Port))
	s.arrival()
	blocker.Close()
	s.retry("a.ns")
	s.dial(at("127.0.0.1", taken.Status.Port))
	s.arrival()
	if a := s.Ask(q); !a.Open || *a.Owner != service("a.ns") {
		t.Errorf("%+v", a)
	}
}

func TestListenerThatFailsIsOpenedAgain(t *testing.T) { onRoads(t, testListenerThatFailsIsOpenedAgain) }

func testListenerThatFailsIsOpenedAgain(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	svc := public("a.ns", freePort(t), local)
	s.set(svc)
	s.dial(at("127.0.0.1", svc.Status.Port))
	s.arrival()
	s.locked(func() { s.doors[api.Bind{Address: "127.0.0.1", Port: svc.Status.Port}].listener.Close() }) // as if the kernel had
	for {
		if open, _ := s.condition("a.ns"); !open {
			break
		}
		runtime.Gosched()
	}
	s.retry("a.ns")
	s.dial(at("127.0.0.1", svc.Status.Port))
	s.arrival()
}

func TestAddressOfAnotherMachine(t *testing.T) { onRoads(t, testAddressOfAnotherMachine) }

func testAddressOfAnotherMachine(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	s.set(public("a.ns", freePort(t), address("192.0.2.1")))
	if open, message := s.condition("a.ns"); open || !strings.Contains(message, "192.0.2.1:") || !strings.Contains(message, "not an address of this machine") {
		t.Errorf("%v, %q", open, message)
	}
}

func TestRunOpensAndCloses(t *testing.T) { onRoads(t, testRunOpensAndCloses) }

func testRunOpensAndCloses(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t)
	svc := public("a.ns", freePort(t), local)
	s.set(svc)
	c := s.dial(at("127.0.0.1", svc.Status.Port)) // waits
	s.run()
	a := s.arrival()
	s.stop()
	if _, err := net.Dial("tcp", at("127.0.0.1", svc.Status.Port)); err == nil {
		t.Error("the port is open after Run")
	}
	go a.Conn.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("a connection that lives: %v", err)
	}
	s.set(svc, public("b.ns", freePort(t), local))
	if got := s.Addresses(); len(got) != 0 {
		t.Errorf("opened after Run: %v", got)
	}
	if got := s.Stats(); got.Open != 0 || got.Closed != 0 {
		t.Errorf("what is closed because the cluster stops has not failed: %+v", got)
	}
	if open, message := s.condition("a.ns"); open || message != "the cluster is stopping" {
		t.Errorf("%v, %q", open, message)
	}
}

// Who opens connections too fast is reset and counted, before it is an Arrival;
// another Service has a count of its own, and a change of the limit counts at once.
func TestRouterRate(t *testing.T) { onRoads(t, testRouterRate) }

func testRouterRate(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	slow, other := public("a.ns", freePort(t), local), public("b.ns", freePort(t), local)
	limit := func(n int) { slow.Spec.Limits = &api.ServiceLimits{ConnectionsPerSecond: n} }
	limit(1)
	s.set(slow, other)
	var r api.Refusal
	for seen := 0; r.Words == ""; seen++ { // a slow machine may make it more than two
		c, err := net.Dial("tcp", at("127.0.0.1", slow.Status.Port))
		if errors.Is(err, syscall.ECONNRESET) && seen >= 2 { // before connect(2) has returned
			r = <-s.refusals
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		select {
		case a := <-s.arrivals:
			a.Conn.Close()
		case r = <-s.refusals:
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || seen < 2 {
				t.Errorf("the client sees %v, as number %d", err, seen+1)
			}
		}
	}
	if r.Reason != api.ReasonLimit || *r.Object != (api.Ref{APIVersion: "core/v1", Kind: "Service", Name: "a.ns"}) || r.Facts.IP != "127.0.0.1" || r.Facts.Tunnel != "public" || !strings.Contains(r.Words, "more than 1 connections a second from 127.0.0.1/32") {
		t.Errorf("%+v", r)
	}
	s.dial(at("127.0.0.1", other.Status.Port))
	s.arrival()
	limit(1_000_000)
	s.set(slow, other)
	for range 5 {
		s.dial(at("127.0.0.1", slow.Status.Port))
		s.arrival()
	}
}

func TestClosedToStrangersWhenDescriptorsAreShort(t *testing.T) {
	onRoads(t, testClosedToStrangersWhenDescriptorsAreShort)
}

func testClosedToStrangersWhenDescriptorsAreShort(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t)
	s.Admission.Descriptors = func() (int, int) { return 95, 100 }
	s.run()
	svc := public("a.ns", freePort(t), local)
	s.set(svc)
	c, err := net.Dial("tcp", at("127.0.0.1", svc.Status.Port))
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
	if r := <-s.refusals; r.Reason != api.ReasonOverload || r.Facts.IP != "127.0.0.1" || *r.Object != (api.Ref{APIVersion: "core/v1", Kind: "Service", Name: "a.ns"}) {
		t.Errorf("%+v", r)
	}
	if l := s.Stats().Listeners; len(l) != 1 || l[0].Accepted != 1 || l[0].Refused[api.ReasonOverload] != 1 || !l[0].Open {
		t.Errorf("%+v", l)
	}
}

// helloOf returns the hello of a client, with what config says.
func helloOf(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	config.InsecureSkipVerify = true
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		defer a.Close()
		tls.Client(a, config).Handshake()
	}()
	header := make([]byte, 5)
	if _, err := io.ReadFull(b, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(header[3])<<8|int(header[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	return append(header, body...)
}

// records cuts a hello into records of so many bytes.
func records(hello []byte, size int) (out []byte) {
	for part := range slices.Chunk(hello[5:], size) {
		out = append(out, 22, 3, 1, byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

// A client's bytes go through as they are, however its hello is cut.
func TestPassthrough(t *testing.T) { onRoads(t, testPassthrough) }

func testPassthrough(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	s.set(public("a.ns", port, through("a.b")), public("rest.ns", port))
	plain := helloOf(t, &tls.Config{ServerName: "A.b", NextProtos: []string{"h2", "x"}})
	big := helloOf(t, &tls.Config{ServerName: "a.b", NextProtos: slices.Repeat([]string{strings.Repeat("p", 200)}, 60)})
	for name, hello := range map[string][]byte{"one record": plain, "one byte each": records(plain, 1), "three bytes each": records(plain, 3), "large": big, "large, in records": records(big, 100)} {
		for _, packets := range []int{1 << 20, 7} {
			t.Run(fmt.Sprintf("%s, in packets of %d", name, packets), func(t *testing.T) {
				say := append(bytes.Clone(hello), "early"...)
				c := s.dial(at("127.0.0.1", port))
				go func() {
					for part := range slices.Chunk(say, packets) {
						c.Write(part)
					}
					c.CloseWrite()
				}()
				a := s.arrival()
				if a.Service != "a.ns" || a.Facts.TLS == nil || a.Facts.TLS.SNI != "a.b" || a.Route.Log.Match != "sni a.b" {
					t.Fatalf("%+v %+v", a, a.Facts.TLS)
				}
				p, ok := a.Conn.(relay.Transparent)
				if !ok || !s.bare(a.Conn) && !s.bare(p.NetConn()) {
					t.Fatalf("the conn is a %T", a.Conn)
				}
				got := p.Unread()
				rest, err := io.ReadAll(a.Conn)
				if err != nil || !bytes.Equal(append(got, rest...), say) {
					t.Errorf("%d and %d bytes of %d, %v", len(got), len(rest), len(say), err)
				}
			})
		}
	}
}

// Read gives what was read before, too, for whoever does not ask for it.
func TestPeekedRead(t *testing.T) { onRoads(t, testPeekedRead) }

func testPeekedRead(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	s.set(public("a.ns", port, through("a.b")))
	say := append(helloOf(t, &tls.Config{ServerName: "a.b"}), "more"...)
	c := s.dial(at("127.0.0.1", port), say...)
	c.CloseWrite()
	a := s.arrival()
	got, err := io.ReadAll(struct{ io.Reader }{a.Conn})
	if err != nil || !bytes.Equal(got, say) {
		t.Errorf("%d of %d bytes, %v", len(got), len(say), err)
	}
	a.Conn.Write([]byte("answer"))
	if err := a.Conn.(relay.CloseWriter).CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestNoRoute(t *testing.T) { onRoads(t, testNoRoute) }

func testNoRoute(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	s.set(public("a.ns", port, through("a.b"), coming("192.0.2.0/24")), public("b.ns", port, through("*.b")))
	for sni, words := range map[string]string{"c.d": "takes the server name c.d", "": "takes TLS without a server name", "a.b": "none takes a client from 127.0.0.1 without ALPN"} {
		c := s.dial(at("127.0.0.1", port), helloOf(t, &tls.Config{ServerName: sni})...)
		r := s.refusal(c, api.ReasonNoRoute, words)
		if r.Facts.TLS == nil || r.Facts.TLS.SNI != sni {
			t.Errorf("facts of %q: %+v", sni, r.Facts.TLS)
		}
		// Its server name is a Service's, though its network is not.
		if is := r.Object != nil && r.Object.Name == "a.ns"; is != (sni == "a.b") || *r.Route != (api.LogRoute{Listener: api.Bind{Port: port}.String()}) {
			t.Errorf("%q: the refusal is about %+v at %+v", sni, r.Object, r.Route)
		}
	}
	s.refusal(s.dial(at("127.0.0.1", port), []byte("GET / HTTP/1.1\r\n")...), api.ReasonNoRoute, "takes only TLS")
}

// What begins as a hello and cannot be read is refused, and gets no other row.
func TestBadHellos(t *testing.T) { onRoads(t, testBadHellos) }

func testBadHellos(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t)
	s.settings.Store(&api.ClusterRouting{HelloTimeout: milliseconds(500)})
	s.run()
	port := freePort(t)
	s.set(public("a.ns", port, through("a.b")), public("rest.ns", port))
	hello := helloOf(t, &tls.Config{ServerName: "a.b"})
	bad := bytes.Clone(hello)
	bad[5] = 2 // a ServerHello
	for name, x := range map[string]struct {
		say   []byte
		end   bool
		words string
	}{
		"malformed":     {bad, false, "malformed"},
		"cut short":     {hello[:len(hello)-1], true, "the client went away within its hello"},
		"never whole":   {hello[:len(hello)-1], false, "not complete in time"},
		"one byte":      {hello[:1], false, "not complete in time"},
		"without end":   {append([]byte{22, 3, 1, 0x40, 0, 1, 1, 0, 0}, make([]byte, 0x4000)...), false, ""},
		"other records": {append(records(hello, 40)[:45], 23, 3, 3, 0, 1, 0), false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			c := s.dial(at("127.0.0.1", port), x.say...)
			if x.end {
				c.CloseWrite()
			}
			s.refusal(c, api.ReasonHandshake, x.words)
		})
	}
	s.t = t
}

func milliseconds(n int) *api.Duration { return &api.Duration{Milliseconds: &n} }

// Who says nothing gets the row that takes any bytes, as its server speaks first;
// where there is none it is refused.
func TestSilence(t *testing.T) { onRoads(t, testSilence) }

func testSilence(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t)
	s.settings.Store(&api.ClusterRouting{HelloTimeout: milliseconds(250)})
	s.run()
	open, closed, near := freePort(t), freePort(t), freePort(t)
	s.set(public("a.ns", open, through("a.b")), public("rest.ns", open), public("b.ns", closed, through("a.b")), public("c.ns", near, through("a.b")), public("d.ns", near, coming("192.0.2.0/24")))
	c := s.dial(at("127.0.0.1", open))
	a := s.arrival()
	if !s.bare(a.Conn) || a.Service != "rest.ns" {
		t.Errorf("%T at %s", a.Conn, a.Service)
	}
	go a.Conn.Write([]byte("220 ready"))
	if _, err := io.ReadFull(c, make([]byte, 9)); err != nil {
		t.Error(err)
	}
	c.Write([]byte("late")) // and no deadline is left
	if _, err := io.ReadFull(a.Conn, make([]byte, 4)); err != nil {
		t.Error(err)
	}
	s.dial(at("127.0.0.1", open)).CloseWrite()
	if a := s.arrival(); a.Service != "rest.ns" {
		t.Errorf("who ends at once goes to %s", a.Service)
	}
	s.refusal(s.dial(at("127.0.0.1", closed)), api.ReasonHandshake, "said nothing in time")
	s.refusal(s.dial(at("127.0.0.1", near)), api.ReasonHandshake, "said nothing in time")
	c = s.dial(at("127.0.0.1", closed))
	c.CloseWrite()
	s.refusal(c, api.ReasonHandshake, "went away before it said anything")
}

// A row that refuses refuses who says nothing, too, and who says nothing is counted.
func TestSilenceIsNoWayRound(t *testing.T) { onRoads(t, testSilenceIsNoWayRound) }

func testSilenceIsNoWayRound(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t)
	s.settings.Store(&api.ClusterRouting{HelloTimeout: milliseconds(100)})
	s.run()
	bind := api.Bind{Address: "127.0.0.1", Port: freePort(t)}
	named, rest := foreign("named", 0, bind, api.Match{SNI: "a.b"}), foreign("rest", 0, bind, api.Match{})
	rest.Members = []api.Member{{Object: mapping("rest")}}
	s.force(Input{Foreign: api.Routes{Routes: []api.Route{named, rest}}})
	c := s.dial(at("127.0.0.1", bind.Port))
	s.refusal(c, api.ReasonRouteRefused, "nobody has a share")

	rest.Members[0].Weight, rest.Rate = 1, 1
	s.force(Input{Foreign: api.Routes{Routes: []api.Route{named, rest}}})
	var all []*net.TCPConn
	for range 5 {
		all = append(all, s.dial(at("127.0.0.1", bind.Port)))
	}
	for range all {
		select {
		case a := <-s.arrivals:
			a.Conn.Close()
		case r := <-s.refusals:
			if r.Reason != api.ReasonLimit {
				t.Errorf("%+v", r)
			}
			return
		}
	}
	t.Error("all are let in")
}

// Silent clients take no memory that is not bounded, and keep nobody out.
func TestManySilentClients(t *testing.T) { onRoads(t, testManySilentClients) }

func testManySilentClients(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t)
	s.Admission.Limits.Handshakes = 16
	s.run()
	port := freePort(t)
	s.set(public("a.ns", port, through("a.b"), func(s *api.ServiceSpec) { s.Limits = &api.ServiceLimits{ConnectionsPerSecond: 1_000_000} }))
	for range 200 {
		if c, err := net.Dial("tcp", at("127.0.0.1", port)); err == nil { // else it was reset before connect(2) has returned
			defer c.Close()
		}
	}
	hello := helloOf(t, &tls.Config{ServerName: "a.b"})
	for { // one that comes among them may lose its place while its hello is read
		c, err := net.Dial("tcp", at("127.0.0.1", port))
		if err != nil {
			continue
		}
		defer c.Close()
		c.Write(hello)
		from := c.LocalAddr().(*net.TCPAddr).Port
		for waits := true; waits; {
			select {
			case a := <-s.arrivals:
				a.Conn.Close()
				if got := s.Admission.Stats(); got.Pending > 8 || a.Facts.Port != from {
					t.Errorf("%+v, %+v", got, a.Facts)
				}
				return
			case r := <-s.refusals:
				if r.Reason != api.ReasonOverload {
					t.Fatalf("%+v", r)
				}
				waits = r.Facts.Port != from
			}
		}
	}
}

// When the Router stops, nobody who has not arrived is left.
func TestStopWhilePeeking(t *testing.T) { onRoads(t, testStopWhilePeeking) }

func testStopWhilePeeking(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	s.set(public("a.ns", port, through("a.b")), public("b.ns", port, ended("c")))
	half := s.dial(at("127.0.0.1", port), 22, 3)
	hello := helloOf(t, &tls.Config{ServerName: "c"})
	in := s.dial(at("127.0.0.1", port), hello...) // in its handshake
	if _, err := in.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for s.Admission.Stats().Pending < 2 {
		runtime.Gosched()
	}
	s.stop()
	for range 2 {
		if r := <-s.refusals; r.Reason != api.ReasonOverload || !strings.Contains(r.Words, "stopping") {
			t.Errorf("%+v", r)
		}
	}
	if _, err := half.Read(make([]byte, 1)); err == nil {
		t.Error("a connection is left")
	}
}

// Weights, certificates and rows change while connections come: none is lost, and
// under each version every member has its share.
func TestHotSwap(t *testing.T) { onRoads(t, testHotSwap) }

func testHotSwap(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	split := func(a, b, unrelated int) Input {
		r := foreign("a", 0, api.Bind{Address: "127.0.0.1", Port: port}, api.Match{SNI: "a.b"})
		r.Members = []api.Member{{Object: mapping("a"), Weight: a}, {Object: mapping("b"), Weight: b}}
		r.Terminate = &api.Termination{Certificate: &api.Material{Chain: "cert", Key: "key"}}
		in := Input{Foreign: api.Routes{Routes: []api.Route{r}}}
		for i := range unrelated {
			in.Foreign.Routes = append(in.Foreign.Routes, foreign(fmt.Sprint("m", i), 0, api.Bind{Address: "127.0.0.1", Port: port}, api.Match{SNI: fmt.Sprint("m", i)}))
		}
		return in
	}
	certificate := func(version string) *secret.Material {
		return &secret.Material{Certificate: s.pki.leaf("a.b"), Version: version}
	}
	s.put("cert", certificate("0"))
	s.force(split(70, 30, 0))
	const clients, each = 4, 30
	var done atomic.Int64
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range each {
				c, err := tls.Dial("tcp", at("127.0.0.1", port), &tls.Config{ServerName: "a.b", RootCAs: s.pki.pool})
				if err != nil {
					t.Errorf("a new connection: %v", err)
					break
				}
				c.Close()
				done.Add(1)
			}
		})
	}
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		for i := 1; done.Load() < clients*each && !t.Failed(); i++ {
			s.put("cert", certificate(fmt.Sprint(i)))
			s.force(split(70+i%3, 30-i%3, i%5))
		}
	}()
	had := map[string][2]int{}
	for range clients * each {
		a := s.arrival()
		h := had[a.Route.Log.Version]
		if a.Route.Object == mapping("a") {
			h[0]++
		} else {
			h[1]++
		}
		had[a.Route.Log.Version] = h
		a.Conn.Close()
	}
	all.Wait()
	<-changed
	if len(had) < 2 {
		t.Errorf("there was no change: %v", had)
	}
	for version, h := range had {
		k := float64(h[0] + h[1])
		// The weights of the first member were 70 to 72 of 100.
		if float64(h[0]) <= k*0.70-1 || float64(h[0]) >= k*0.72+1 {
			t.Errorf("under version %s: %v", version, h)
		}
	}
}
