package proxy_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"cardea/api"
	auditmemory "cardea/audit/memory"
	"cardea/mode/tcp"
	"cardea/proxy"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/relay/relaytest"
)

// placed is a stream whose peer has an address.
type placed struct {
	*relaytest.PipeEnd
	at net.Addr
}

func (p placed) RemoteAddr() net.Addr { return p.at }

// session is where an upstream is that a Session serves.
type session string

func (session) Network() string  { return "session" }
func (s session) String() string { return string(s) }

// An address of an upstream that does not serve any more loses its connections, and
// nobody else does.
func TestShun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		object := func(name string) api.Key {
			return api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Namespace: "team", Name: name}
		}
		d := &slow{changes: make(chan api.Change)}
		d.decide = func(context.Context, api.Request) (api.Decision, error) {
			a := answer(api.Allow, 1, "x")
			a.Subject.Session, a.Subject.IsAnonymous = nil, true
			return a, nil
		}
		log := new(auditmemory.Log)
		var mu sync.Mutex
		var upstreams []*relaytest.PipeEnd
		g := proxy.New(proxy.Rooms{
			Decider: d, Audit: log, Refuse: func(api.Refusal) {}, Engine: relaycopy.New(), Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
			Dial: func(_ context.Context, to api.Destination) (net.Conn, api.DialReport, error) {
				near, far := relaytest.Pipe()
				mu.Lock()
				defer mu.Unlock()
				upstreams = append(upstreams, far)
				at, err := netip.ParseAddrPort(to.Config.Upstream.URL)
				if err != nil {
					return placed{near, session(to.Config.Upstream.URL)}, api.DialReport{}, nil
				}
				return placed{near, net.TCPAddrFromAddrPort(at)}, api.DialReport{}, nil
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { g.Run(ctx); close(done) }()
		synctest.Wait()
		var clients []*relaytest.PipeEnd
		for _, c := range []struct{ name, config, upstream string }{
			{"db", "a", "192.0.2.1:1"},
			{"db", "a", "192.0.2.1:1"},
			{"db", "a", "192.0.2.1:2"},
			{"db", "b", "192.0.2.1:1"},
			{"other", "a", "192.0.2.1:1"},
			{"db", "a", "[2001:db8::1]:1"},
			{"db", "a", "session lab-1"},
		} {
			near, far := relaytest.Pipe()
			r := &api.Routed{Object: object(c.name), Config: &api.ServiceConfig{Name: c.config, Upstream: api.Upstream{URL: c.upstream}}}
			g.Arrive(api.Arrival{Conn: near, Route: r})
			synctest.Wait()
			clients = append(clients, far)
		}
		at := netip.MustParseAddrPort("192.0.2.1:1")
		if n := g.Shun(object("db"), "a", at.String(), relay.Unhealthy, "it does not answer"); n != 2 {
			t.Errorf("%d were cut", n)
		}
		if n := g.Shun(object("db"), "a", at.String(), relay.Unhealthy, "it does not answer"); n != 0 {
			t.Errorf("%d were cut once more", n)
		}
		synctest.Wait()
		for i, c := range clients {
			if i < 2 {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("number %d saw %v", i, err)
				}
			}
		}
		if n := len(g.List()); n != 5 {
			t.Errorf("%d are live", n)
		}
		recs := log.All()
		for _, rec := range recs[7:] {
			if tcp := rec.Entry.Info.TCP; tcp.CloseReason != string(relay.Unhealthy) || tcp.Error != "it does not answer" || rec.Entry.Common.Upstream != at.String() {
				t.Errorf("END = %+v", tcp)
			}
		}
		// A Session that serves has a name where others have an address.
		if n := g.Shun(object("db"), "a", "session lab-1", relay.Revoked, "it may not serve"); n != 1 {
			t.Errorf("%d were cut", n)
		}
		synctest.Wait()
		last := log.All()[len(recs)].Entry
		if tcp := last.Info.TCP; tcp.CloseReason != string(relay.Revoked) || tcp.Error != "it may not serve" || last.Common.Upstream != "session lab-1" {
			t.Errorf("END = %+v", tcp)
		}
		cancel()
		<-done
		for _, c := range append(clients, upstreams...) {
			io.Copy(io.Discard, c)
			c.Close()
		}
	})
}

// An address that is found not to serve while somebody is on his way there, be it by a
// long handshake, loses that connection as soon as it is there. What was said before
// does not count: it may serve again.
func TestUnhealthyWhileDialled(t *testing.T) {
	o := api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Namespace: "team", Name: "db"}
	other := o
	other.Name = "other"
	at, elsewhere := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.1:2")
	for _, test := range []struct {
		name   string
		before bool // the dial
		object api.Key
		config string
		at     netip.AddrPort
		cut    bool
	}{
		{"the address", false, o, "a", at, true},
		{"another address", false, o, "a", elsewhere, false},
		{"by another config", false, o, "b", at, false},
		{"of another Object", false, other, "a", at, false},
		{"before the dial", true, o, "a", at, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &slow{changes: make(chan api.Change)}
				d.decide = func(context.Context, api.Request) (api.Decision, error) {
					a := answer(api.Allow, 1, "x")
					a.Subject.Session, a.Subject.IsAnonymous = nil, true
					return a, nil
				}
				log, secured := new(auditmemory.Log), make(chan struct{})
				near, upstream := relaytest.Pipe()
				g := proxy.New(proxy.Rooms{
					Decider: d, Audit: log, Refuse: func(api.Refusal) {}, Engine: relaycopy.New(), Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
					Dial: func(context.Context, api.Destination) (net.Conn, api.DialReport, error) {
						<-secured
						return placed{near, net.TCPAddrFromAddrPort(at)}, api.DialReport{}, nil
					},
				})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { g.Run(ctx); close(done) }()
				synctest.Wait()
				say := func() {
					if n := g.Shun(test.object, test.config, test.at.String(), relay.Unhealthy, "it does not answer"); n != 0 {
						t.Errorf("%d were cut", n)
					}
				}
				if test.before {
					say()
				}
				leg, client := relaytest.Pipe()
				r := &api.Routed{Object: o, Config: &api.ServiceConfig{Name: "a", Upstream: api.Upstream{URL: "tcp://upstream:1"}}}
				g.Arrive(api.Arrival{Conn: leg, Route: r})
				synctest.Wait()
				if !test.before {
					say()
				}
				close(secured)
				synctest.Wait()
				if cut := len(g.List()) == 0; cut != test.cut {
					t.Errorf("it was cut: %v", cut)
				}
				if test.cut {
					for _, c := range []*relaytest.PipeEnd{client, upstream} {
						if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
							t.Errorf("a peer saw %v", err)
						}
					}
					if recs := log.All(); recs[1].Entry.Info.TCP.CloseReason != string(relay.Unhealthy) || recs[1].Entry.Info.TCP.Error != "it does not answer" {
						t.Errorf("END = %+v", recs[1].Entry.Info.TCP)
					}
				}
				cancel()
				<-done
				client.Close()
				upstream.Close()
			})
		})
	}
}
