package ingress

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/relay"
)

// datagrams makes a Service one of mode UDP.
func datagrams(s *api.ServiceSpec) {
	s.Mode, s.Config = api.ModeUDP, &api.ServiceConfig{Upstream: api.Upstream{URL: "udp://192.0.2.1:53"}}
}

// freeUDP returns a port that nobody listens on, of UDP or TCP, in either family.
func freeUDP(t *testing.T) int {
	t.Helper()
	for {
		port := freePort(t)
		if c, err := net.ListenPacket("udp", at("", port)); err == nil {
			c.Close()
			return port
		}
	}
}

// send opens a socket, from an address unless that is "", and sends a datagram.
func send(t *testing.T, from, to, what string) *net.UDPConn {
	t.Helper()
	d := net.Dialer{}
	if from != "" {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
	}
	c, err := d.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, what); err != nil {
		t.Fatal(err)
	}
	return c.(*net.UDPConn)
}

// reads reads one datagram.
func reads(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, relay.MaxDatagram)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(b); err != nil || string(b[:n]) != want {
		t.Errorf("read %.40q, %v, want %.40q", b[:n], err, want)
	}
}

// A flow arrives with its first datagram, and is answered from the address that was asked,
// wherever the port is.
func TestFlowArrives(t *testing.T) {
	for _, test := range []struct{ listen, dial string }{
		{"127.0.0.1", "127.0.0.1"}, {"::1", "::1"}, {"", "127.0.0.1"}, {"", "::1"}, {"::", "::1"}, {"0.0.0.0", "127.0.0.1"},
		{"", "127.0.0.2"}, {"0.0.0.0", "127.0.0.2"},
	} {
		t.Run(test.dial+" on "+test.listen, func(t *testing.T) {
			if test.dial == "127.0.0.2" && runtime.GOOS != "linux" {
				t.Skip("only Linux has all of 127.0.0.0/8")
			}
			s := newSite(t).run()
			port := freeUDP(t)
			s.set(public("a.ns", port, address(test.listen), datagrams))
			c := send(t, "", at(test.dial, port), "hello")
			a := s.arrival()
			from := c.LocalAddr().(*net.UDPAddr)
			if want := (api.Facts{IP: from.IP.String(), Port: from.Port, Listener: at(test.dial, port), Tunnel: "public"}); a.Facts != want {
				t.Errorf("facts %+v, want %+v", a.Facts, want)
			}
			if _, ok := a.Conn.(interface{ Datagram() }); !ok || a.Service != "a.ns" || a.Evidence.Kind != api.EvidenceAnonymous {
				t.Errorf("%+v", a)
			}
			if r := a.Route; r.Object != service("a.ns") || r.Log.Match != "any datagrams" || r.Log.Listener != (api.Bind{Address: test.listen, Port: port, UDP: true}).String() {
				t.Errorf("%+v", r)
			}
			reads(t, a.Conn, "hello")
			for _, text := range []string{"", "x", strings.Repeat("y", 65507)} {
				io.WriteString(c, text)
				reads(t, a.Conn, text)
				io.WriteString(a.Conn, text)
				reads(t, c, text)
			}
			send(t, "", at(test.dial, port), "another")
			reads(t, s.arrival().Conn, "another")
			if own := s.Addresses(); len(own) != 1 || int(own[0].Port()) != port {
				t.Errorf("addresses %v", own)
			}
			if open, words := s.condition("a.ns"); !open {
				t.Error(words)
			}
		})
	}
}

// A port of UDP and one of TCP have nothing to do with each other, but two of UDP have.
func TestPortsOfBothKinds(t *testing.T) {
	s := newSite(t).run()
	port := freeUDP(t)
	s.set(public("tcp.ns", port, local), public("udp.ns", port, local, datagrams), public("late.ns", port, local, datagrams))
	send(t, "", at("127.0.0.1", port), "x")
	if a := s.arrival(); a.Service != "udp.ns" {
		t.Errorf("a datagram went to %s", a.Service)
	}
	s.dial(at("127.0.0.1", port))
	if a := s.arrival(); a.Service != "tcp.ns" {
		t.Errorf("a connection went to %s", a.Service)
	}
	if status, words := condition(t, s.Status(service("late.ns")), api.ConditionAccepted); status != "False" || !strings.Contains(words, fmt.Sprintf("127.0.0.1:%d/udp is taken by Service/udp.ns, which came first; choose another address or port", port)) {
		t.Errorf("the later one: %s, %s", status, words)
	}
	s.set(public("tcp.ns", port, local))
	if other, err := net.ListenPacket("udp", at("127.0.0.1", port)); err != nil {
		t.Errorf("the port of UDP stays open without a Service: %v", err)
	} else {
		other.Close()
	}
	s.dial(at("127.0.0.1", port))
	if a := s.arrival(); a.Service != "tcp.ns" {
		t.Errorf("a connection went to %s", a.Service)
	}
}

// A port that is closed ends its flows, and one that is taken says by whom.
func TestPortOfUDPIsClosed(t *testing.T) {
	s := newSite(t).run()
	port := freeUDP(t)
	s.set(public("a.ns", port, local, datagrams))
	send(t, "", at("127.0.0.1", port), "x")
	a := s.arrival()
	s.set()
	if _, err := io.Copy(io.Discard, a.Conn); err == nil || !strings.Contains(err.Error(), "the port was closed") {
		t.Errorf("the flow reads %v", err)
	}
	if _, err := a.Conn.Write([]byte("x")); err == nil {
		t.Error("the flow is written to")
	}
	other, err := net.ListenPacket("udp", at("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s.set(public("a.ns", port, local, datagrams))
	if open, words := s.condition("a.ns"); open || !strings.Contains(words, "ss -uanp") {
		t.Errorf("open %v: %s", open, words)
	}
}

func TestFlowsAreRefused(t *testing.T) {
	s := newSite(t).run()
	port := freeUDP(t)
	s.set(public("a.ns", port, local, datagrams, coming("127.0.0.3/32")))
	send(t, "", at("127.0.0.1", port), "x")
	if r := s.refusal(nil, api.ReasonNoRoute, "none takes a client from 127.0.0.1"); !r.Datagrams || r.Object.Name != "a.ns" || !r.Anonymous {
		t.Errorf("%+v", r)
	}
}

// One source may open so many flows a second, and all together five times as many,
// whoever they say that they are.
func TestRateOfFlows(t *testing.T) {
	s := newSite(t).run()
	port := freeUDP(t)
	s.set(public("a.ns", port, local, datagrams, func(s *api.ServiceSpec) { s.Limits = &api.ServiceLimits{ConnectionsPerSecond: 1} }))
	from := func(n int) string { return fmt.Sprintf("127.0.1.%d", n) }
	for range 2 {
		send(t, from(1), at("127.0.0.1", port), "x")
		s.arrival()
	}
	send(t, from(1), at("127.0.0.1", port), "x")
	s.refusal(nil, api.ReasonLimit, "more than 1 connections a second from 127.0.1.1/32")
	let := 0
	for n := range 30 {
		send(t, from(10+n), at("127.0.0.1", port), "x")
		select {
		case <-s.arrivals:
			let++
		case r := <-s.refusals:
			if r.Reason != api.ReasonLimit || !strings.Contains(r.Words, "from all sources together (spec.limits.connectionsPerSecond, times 5)") {
				t.Fatalf("%+v", r)
			}
		}
	}
	if let < 8 || let > 20 { // ten at once, less the two, and five more each second that this takes
		t.Errorf("%d sources were let in", let)
	}
}

// A Service that breaks the rules is no door.
func TestInvalidDatagrams(t *testing.T) {
	for name, edit := range map[string]func(*api.ServiceSpec){
		"somebody": func(s *api.ServiceSpec) { s.IsAnonymous = false },
		"TLS":      func(s *api.ServiceSpec) { s.IsTLS = true },
		"names":    func(s *api.ServiceSpec) { s.Public.Hosts = []string{"a.b"} },
		"a header": proxied,
	} {
		tab := table(public("a.ns", 53, datagrams, edit))
		if status, words := condition(t, tab.Status(service("a.ns")), api.ConditionAccepted); status != "False" || len(tab.listeners) != 0 {
			t.Errorf("%s: %s, %s", name, status, words)
		}
	}
}

// The table says where a datagram would go, and does not take one for the other.
func TestAskUDP(t *testing.T) {
	tab := table(public("tcp.ns", 53), public("udp.ns", 53, datagrams), public("one.ns", 53, local, datagrams, coming("127.0.0.0/8")))
	for _, test := range []struct {
		q       api.RouteQuestion
		want    string
		refused string
	}{
		{api.RouteQuestion{Port: 53, NoTLS: true}, "tcp.ns", ""},
		{api.RouteQuestion{Port: 53, UDP: true}, "udp.ns", ""},
		{api.RouteQuestion{Port: 53, UDP: true, Address: "127.0.0.1", From: "127.0.0.1"}, "one.ns", ""},
		{api.RouteQuestion{Port: 53, UDP: true, Address: "127.0.0.1", From: "10.0.0.1"}, "", "of the rows of 127.0.0.1:53/udp for any datagrams none takes a client from 10.0.0.1"},
		{api.RouteQuestion{Port: 54, UDP: true}, "", "nothing listens on port 54/udp"},
	} {
		a := tab.Ask(test.q)
		if a.Refused != test.refused || (a.Owner == nil) != (test.want == "") || a.Owner != nil && a.Owner.Name != test.want || a.TLS != "" {
			t.Errorf("%+v: %+v", test.q, a)
		}
	}
}
