package proxy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"cardea/api"
)

// nobody has connections yet.
func nobody(string) map[caller]int { return map[caller]int{} }

// Whatever comes, waits, gives up and leaves: there are never more than may be, those
// who wait come in order and as soon as there is room, and in the end nobody counts.
func TestCrowds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := crowds{}
		c := crowd{service: "svc", kind: api.KindService}
		limits := api.Limits{Connections: 3, Pending: 4}
		live := 0
		var waiting []*waiter // the first is next
		called := func() (w *waiter) {
			for len(waiting) > 0 {
				select {
				case <-waiting[0].turn:
					w, waiting = waiting[0], waiting[1:]
					return w
				default:
					return nil
				}
			}
			return nil
		}
		var kept []*waiter // whose turn has come
		look := func() {
			for w := called(); w != nil; w = called() {
				kept = append(kept, w)
			}
			for _, w := range waiting {
				select {
				case <-w.turn:
					t.Fatal("one was overtaken")
				default:
				}
			}
			if limit := limits.Connections; len(waiting) > 0 && (limit == 0 || live+len(kept) < limit) {
				t.Fatalf("%d live, %d called, %d wait, and there may be %d", live, len(kept), len(waiting), limit)
			}
		}
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"come", "come", "come", "enter", "leave", "give up", "decline", "limit"}).Draw(t, "step") {
			case "come":
				room := limits.Connections == 0 || live+len(kept) < limits.Connections
				err := m.admit(c, limits, nil, nobody)
				switch waits, ok := errors.AsType[*waitError](err); {
				case ok && !room && len(waiting) < limits.Pending:
					waiting = append(waiting, waits.waiter)
				case err == nil && room:
					live++
				case err == nil || ok || room || len(waiting) < limits.Pending:
					t.Fatalf("came with %d live, %d called, %d waiting: %v", live, len(kept), len(waiting), err)
				}
			case "enter":
				if len(kept) > 0 {
					if err := m.admit(c, limits, kept[0], nobody); err != nil {
						t.Fatalf("whose turn has come: %v", err)
					}
					m.giveUp(kept[0]) // has no effect any more
					kept, live = kept[1:], live+1
				}
			case "leave":
				if live > 0 {
					m.leave(c)
					live--
				}
			case "give up":
				if len(waiting) > 0 {
					i := rapid.IntRange(0, len(waiting)-1).Draw(t, "who")
					m.giveUp(waiting[i])
					waiting = append(waiting[:i:i], waiting[i+1:]...)
				}
			case "decline":
				if len(kept) > 0 {
					m.giveUp(kept[0])
					kept = kept[1:]
				}
			case "limit":
				limits.Connections = rapid.IntRange(0, 5).Draw(t, "connections")
				if n := m[c.service]; n != nil {
					n.bound(limits.Connections)
				}
			}
			look()
		}
		for len(waiting)+len(kept)+live > 0 {
			for ; live > 0; live-- {
				m.leave(c)
			}
			look()
			for _, w := range kept {
				m.giveUp(w)
			}
			kept = nil
			look()
		}
		if len(m) != 0 {
			t.Fatalf("%d crowds are left", len(m))
		}
	})
}

// One connection is not several.
func TestFullWords(t *testing.T) {
	m := crowds{}
	c := crowd{service: "svc", kind: api.KindService}
	limits := api.Limits{Connections: 2, ConnectionsPerSession: 1}
	if err := m.admit(c, limits, nil, nobody); err != nil {
		t.Fatal(err)
	}
	want := "the source address has 1 live connection to the Service, and spec.limits.connectionsPerSession is 1"
	if err := m.admit(c, limits, nil, nobody); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	for who, want := range map[caller]string{{}: "this client has as many", {session: "s"}: "this Session has as many"} {
		c := c
		c.caller = who
		m := crowds{}
		m.admit(c, limits, nil, nobody)
		err := m.admit(c, limits, nil, nobody)
		if full, ok := err.(*fullError); !ok || !strings.HasPrefix(full.message, want) {
			t.Errorf("%v is told %+v", who, err)
		}
	}
	c.caller.network = netip.MustParsePrefix("192.0.2.2/32")
	m.admit(c, limits, nil, nobody)
	c.caller.network = netip.MustParsePrefix("192.0.2.3/32")
	want = "the Service has 2 live connections, and spec.limits.connections is 2"
	if err := m.admit(c, limits, nil, nobody); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// Whoever has no Session is counted by the network that one site has, and told of the
// limit by the name that the kind of Object has for it.
func TestCrowdsOfNetworks(t *testing.T) {
	for name, c := range map[string]struct {
		kind   string
		ips    []string // each has one connection; but not the last
		refuse string
	}{
		"IPv4":       {api.KindService, []string{"192.0.2.1", "192.0.2.2", "192.0.2.1"}, "the source address has 1 live connection to the Service, and spec.limits.connectionsPerSession is 1"},
		"mapped":     {api.KindService, []string{"192.0.2.1", "::ffff:192.0.2.1"}, "the source address has 1 live connection to the Service, and spec.limits.connectionsPerSession is 1"},
		"IPv6":       {api.KindService, []string{"2001:db8::1", "2001:db8:0:1::1", "2001:db8::2:0:0:9"}, "the source network (2001:db8::/64) has 1 live connection to the Service, and spec.limits.connectionsPerSession is 1"},
		"no address": {api.KindService, []string{"", ""}, "the source address has 1 live connection to the Service, and spec.limits.connectionsPerSession is 1"},
		"TCPMapping": {api.KindTCPMapping, []string{"192.0.2.1", "192.0.2.1"}, "the source address has 1 live connection to the TCPMapping, and the annotation cardea/connections-per-client is 1"},
	} {
		t.Run(name, func(t *testing.T) {
			m := crowds{}
			come := func(ip string) error {
				who := callerOf(&Conn{ip: ip}, nil)
				return m.admit(crowd{"svc", who, c.kind}, api.Limits{ConnectionsPerSession: 1}, nil, nobody)
			}
			last := len(c.ips) - 1
			for _, ip := range c.ips[:last] {
				if err := come(ip); err != nil {
					t.Fatalf("%s: %v", ip, err)
				}
			}
			if err := come(c.ips[last]); err == nil || err.Error() != c.refuse {
				t.Errorf("%v, want %s", err, c.refuse)
			}
			m.leave(crowd{"svc", callerOf(&Conn{ip: c.ips[0]}, nil), c.kind})
			if err := come(c.ips[last]); err != nil {
				t.Errorf("after one has left: %v", err)
			}
		})
	}
}
