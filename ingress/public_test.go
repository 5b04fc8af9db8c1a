package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/api"
)

// site is a Public that runs until the end of the test.
type site struct {
	*Public
	arrivals chan api.Arrival
	refusals chan api.Refusal
	stop     func()
}

func newSite(t *testing.T, host string) *site {
	s := &site{arrivals: make(chan api.Arrival, 10), refusals: make(chan api.Refusal, 10)}
	s.Public = &Public{
		Host: host, Domain: "cardea.internal", Log: quiet, Admission: &Admission{},
		Handle:  func(a api.Arrival) { s.arrivals <- a },
		Refused: func(r api.Refusal) { s.refusals <- r },
	}
	return s
}

func (s *site) run(t *testing.T) *site {
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
	t.Cleanup(func() {
		s.stop()
		for len(s.arrivals) > 0 {
			(<-s.arrivals).Conn.Close()
		}
	})
	return s
}

// arrival dials and returns the Arrival that this makes.
func (s *site) arrival(t *testing.T, addr string) (net.Conn, api.Arrival) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	a := <-s.arrivals
	t.Cleanup(func() { a.Conn.Close() })
	return c, a
}

// condition returns whether the port of a Service is open, and the message.
func (s *site) condition(t *testing.T, service string) (open bool, message string) {
	t.Helper()
	list := s.Conditions(service)
	if len(list) != 1 || list[0].Type != "Listening" || list[0].Since.IsZero() || list[0].Status != "True" && list[0].Status != "False" {
		t.Fatalf("conditions of %s: %+v", service, list)
	}
	return list[0].Status == "True", list[0].Message
}

// retry makes it time to open the port of a Service again, and waits until it is.
func (s *site) retry(t *testing.T, service string) {
	t.Helper()
	for s.Conditions(service)[0].Status != "True" {
		s.mu.Lock()
		if st := s.states[service]; !st.next.IsZero() {
			st.next = time.Now()
			s.signal()
		}
		s.mu.Unlock()
		runtime.Gosched()
	}
}

func public(name string, port int) *api.Service {
	s := &api.Service{}
	s.Metadata.Name = name + ".default"
	s.Spec.Mode, s.Spec.IsPublic, s.Spec.IsAnonymous = api.ModeTCP, true, true
	s.Status.Port = port
	return s
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

func TestPublicArrival(t *testing.T) {
	for _, test := range []struct{ listen, dial string }{
		{"127.0.0.1", "127.0.0.1"}, {"::1", "::1"}, {"", "127.0.0.1"}, {"", "::1"}, {"::", "::1"}, {"0.0.0.0", "127.0.0.1"},
	} {
		t.Run(test.dial+" on "+test.listen, func(t *testing.T) {
			s := newSite(t, test.listen).run(t)
			port := freePort(t)
			s.Set(t.Context(), []*api.Service{public("a", port)})
			c, a := s.arrival(t, at(test.dial, port))
			if _, bare := a.Conn.(*net.TCPConn); !bare {
				t.Errorf("the conn is a %T", a.Conn)
			}
			from := c.LocalAddr().(*net.TCPAddr)
			want := api.Facts{IP: test.dial, Port: from.Port, Listener: at(test.dial, port), Tunnel: "public"}
			if a.Facts != want {
				t.Errorf("facts %+v, want %+v", a.Facts, want)
			}
			if a.Service != "a.default" || a.Evidence.Kind != api.EvidenceAnonymous || a.Evidence.Data != nil {
				t.Errorf("%+v", a)
			}
			if own := s.Addresses(); len(own) != 1 || int(own[0].Port()) != port {
				t.Errorf("addresses %v", own)
			}
		})
	}
}

func TestOnlyAnonymousPublicServicesHaveAPort(t *testing.T) {
	s := newSite(t, "127.0.0.1").run(t)
	private, closed, none := public("a", freePort(t)), public("b", freePort(t)), public("c", 0)
	private.Spec.IsPublic, closed.Spec.IsAnonymous = false, false
	s.Set(t.Context(), []*api.Service{private, closed, none})
	for _, svc := range []*api.Service{private, closed, none} {
		if got := s.Conditions(svc.Metadata.Name); got != nil {
			t.Errorf("%s: %+v", svc.Metadata.Name, got)
		}
	}
	if got := s.Addresses(); got != nil {
		t.Errorf("listening on %v", got)
	}
}

func TestSetTouchesOnlyWhatChanges(t *testing.T) {
	s := newSite(t, "127.0.0.1").run(t)
	stays, goes := public("a", freePort(t)), public("b", freePort(t))
	s.Set(t.Context(), []*api.Service{stays, goes})
	before := s.open[stays.Status.Port]
	c, a := s.arrival(t, at("127.0.0.1", goes.Status.Port))

	s.Set(t.Context(), []*api.Service{stays})
	if _, err := net.Dial("tcp", at("127.0.0.1", goes.Status.Port)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the port that is not wanted any more: %v", err)
	}
	go a.Conn.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("a connection that lives: %v", err)
	}
	if s.Conditions("b.default") != nil || s.open[stays.Status.Port] != before {
		t.Error("b has a condition, or a was opened anew")
	}
	s.arrival(t, at("127.0.0.1", stays.Status.Port))

	moved := public("a", freePort(t))
	s.Set(t.Context(), []*api.Service{moved})
	s.arrival(t, at("127.0.0.1", moved.Status.Port))
	if _, err := net.Dial("tcp", at("127.0.0.1", stays.Status.Port)); err == nil {
		t.Error("the former port is open")
	}
}

func TestTwoServicesWithOnePort(t *testing.T) {
	s := newSite(t, "127.0.0.1").run(t)
	port := freePort(t)
	holder, late := public("m", port), public("a", port)
	s.Set(t.Context(), []*api.Service{holder})
	other := public("z", freePort(t))
	s.Set(t.Context(), []*api.Service{late, holder, other}) // who has it keeps it, whatever its name is
	if open, message := s.condition(t, "a.default"); open || !strings.Contains(message, "Service m.default") || !strings.Contains(message, fmt.Sprint(port)) {
		t.Errorf("%v, %q", open, message)
	}
	for _, name := range []string{"m.default", "z.default"} {
		if open, message := s.condition(t, name); !open || !strings.Contains(message, "127.0.0.1:") {
			t.Errorf("%s: %v, %q", name, open, message)
		}
	}
	if _, a := s.arrival(t, at("127.0.0.1", port)); a.Service != "m.default" {
		t.Errorf("arrived at %s", a.Service)
	}
	if got := s.Stats(); got.Open != 2 || got.Closed != 1 {
		t.Errorf("%+v", got)
	}
	s.Set(t.Context(), []*api.Service{late, other})
	if open, message := s.condition(t, "a.default"); !open {
		t.Errorf("after the other has gone: %q", message)
	}
	if _, a := s.arrival(t, at("127.0.0.1", port)); a.Service != "a.default" {
		t.Errorf("arrived at %s", a.Service)
	}
}

func TestPortThatIsTaken(t *testing.T) {
	s := newSite(t, "127.0.0.1").run(t)
	blocker, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Close()
	taken, fine := public("a", blocker.Addr().(*net.TCPAddr).Port), public("b", freePort(t))
	s.Set(t.Context(), []*api.Service{taken, fine})
	if open, message := s.condition(t, "a.default"); open || !strings.Contains(message, blocker.Addr().String()) || !strings.Contains(message, "another program") {
		t.Errorf("%v, %q", open, message)
	}
	s.arrival(t, at("127.0.0.1", fine.Status.Port))
	blocker.Close()
	s.retry(t, "a.default")
	s.arrival(t, at("127.0.0.1", taken.Status.Port))
}

func TestListenerThatFailsIsOpenedAgain(t *testing.T) {
	s := newSite(t, "127.0.0.1").run(t)
	svc := public("a", freePort(t))
	s.Set(t.Context(), []*api.Service{svc})
	s.arrival(t, at("127.0.0.1", svc.Status.Port))
	s.open[svc.Status.Port].Close() // as if the kernel had
	for s.Conditions("a.default")[0].Status == "True" {
		runtime.Gosched()
	}
	s.retry(t, "a.default")
	s.arrival(t, at("127.0.0.1", svc.Status.Port))
}

func TestAddressOfAnotherMachine(t *testing.T) {
	s := newSite(t, "192.0.2.1").run(t)
	s.Set(t.Context(), []*api.Service{public("a", freePort(t))})
	if open, message := s.condition(t, "a.default"); open || !strings.Contains(message, "192.0.2.1:") || !strings.Contains(message, "assign") {
		t.Errorf("%v, %q", open, message)
	}
}

func TestRunOpensAndCloses(t *testing.T) {
	s := newSite(t, "127.0.0.1")
	svc := public("a", freePort(t))
	s.Set(t.Context(), []*api.Service{svc})
	c, err := net.Dial("tcp", at("127.0.0.1", svc.Status.Port)) // waits
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.run(t)
	a := <-s.arrivals
	s.stop()
	if _, err := net.Dial("tcp", at("127.0.0.1", svc.Status.Port)); err == nil {
		t.Error("the port is open after Run")
	}
	go a.Conn.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("a connection that lives: %v", err)
	}
	a.Conn.Close()
	s.Set(t.Context(), []*api.Service{svc})
	if got := s.Addresses(); got != nil {
		t.Errorf("opened after Run: %v", got)
	}
}

func TestPublicTLS(t *testing.T) {
	s := newSite(t, "127.0.0.1")
	fail := make(chan error, 1)
	s.TLS = func(_ context.Context, c net.Conn, name string) (net.Conn, *api.TLSFacts, error) {
		if err := <-fail; err != nil {
			c.Close()
			return nil, nil, err
		}
		return c, &api.TLSFacts{SNI: name}, nil
	}
	s.run(t)
	svc := public("a", freePort(t))
	s.Set(t.Context(), []*api.Service{svc})
	s.arrival(t, at("127.0.0.1", svc.Status.Port))
	svc = public("a", svc.Status.Port)
	svc.Spec.IsTLS = true
	s.Set(t.Context(), []*api.Service{svc})
	fail <- nil
	if _, a := s.arrival(t, at("127.0.0.1", svc.Status.Port)); a.Facts.TLS == nil || a.Facts.TLS.SNI != "a.default.svc.cardea.internal" {
		t.Errorf("%+v", a.Facts.TLS)
	}
	fail <- Overload("no place")
	c, err := net.Dial("tcp", at("127.0.0.1", svc.Status.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r := <-s.refusals; r.Reason != api.ReasonOverload || r.Words != "no place" || r.Facts.IP != "127.0.0.1" || r.Facts.Tunnel != "public" {
		t.Errorf("%+v", r)
	}
}

// Who opens connections too fast is reset and counted, before it is an Arrival;
// another Service has a count of its own, and a change of the limit counts at
// once.
func TestPublicRate(t *testing.T) {
	s := newSite(t, "127.0.0.1").run(t)
	slow, other := public("a", freePort(t)), public("b", freePort(t))
	slow.Spec.Limits = &api.ServiceLimits{ConnectionsPerSecond: 1}
	s.Set(t.Context(), []*api.Service{slow, other})
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
	if r.Reason != api.ReasonLimit || r.Facts.IP != "127.0.0.1" || r.Facts.Tunnel != "public" || !strings.Contains(r.Words, "more than 1 connections a second from 127.0.0.1/32") {
		t.Errorf("%+v", r)
	}
	s.arrival(t, at("127.0.0.1", other.Status.Port))

	before := s.open[slow.Status.Port]
	fast := public("a", slow.Status.Port)
	fast.Spec.Limits = &api.ServiceLimits{ConnectionsPerSecond: 1_000_000}
	s.Set(t.Context(), []*api.Service{fast, other})
	for range 5 {
		s.arrival(t, at("127.0.0.1", slow.Status.Port))
	}
	if s.open[slow.Status.Port] != before {
		t.Error("the port was opened anew")
	}
}

// What is closed because the cluster stops has not failed.
func TestStoppingIsNoFailure(t *testing.T) {
	s := newSite(t, "127.0.0.1").run(t)
	svc := public("a", freePort(t))
	s.Set(t.Context(), []*api.Service{svc})
	s.stop()
	s.Set(t.Context(), []*api.Service{svc, public("b", freePort(t))})
	if got := s.Stats(); got.Open != 0 || got.Closed != 0 {
		t.Errorf("%+v", got)
	}
	if open, message := s.condition(t, "a.default"); open || message != "the cluster is stopping" {
		t.Errorf("%v, %q", open, message)
	}
}

func TestPublicIsClosedToStrangersWhenDescriptorsAreShort(t *testing.T) {
	s := newSite(t, "127.0.0.1")
	s.Admission.Descriptors = func() (int, int) { return 95, 100 }
	s.run(t)
	svc := public("a", freePort(t))
	s.Set(t.Context(), []*api.Service{svc})
	c, err := net.Dial("tcp", at("127.0.0.1", svc.Status.Port))
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v", err)
	}
	if r := <-s.refusals; r.Reason != api.ReasonOverload || r.Facts.IP != "127.0.0.1" {
		t.Errorf("%+v", r)
	}
	if got := s.Stats(); got.Accepted != 1 || got.Refused != 1 {
		t.Errorf("%+v", got)
	}
}
