package proxy_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	auditmemory "cardea/audit/memory"
	"cardea/mode/tcp"
	"cardea/proxy"
	relaycopy "cardea/relay/copy"
	"cardea/relay/relaytest"
)

// slow is a Decider whose every answer the test writes.
type slow struct {
	decide  func(context.Context, api.Request) (api.Decision, error)
	changes chan api.Change
}

func (s *slow) Decide(ctx context.Context, r api.Request) (api.Decision, error) {
	return s.decide(ctx, r)
}

func (s *slow) Changes(ctx context.Context, _ api.Revision) iter.Seq2[api.Change, error] {
	return func(yield func(api.Change, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-s.changes:
				if !yield(c, nil) {
					return
				}
			}
		}
	}
}

func revision(n uint64) api.Revision { return api.Revision{Epoch: 1, Number: n} }

// answer is a decision on revision n that hangs on keys.
func answer(effect api.Effect, n uint64, keys ...string) api.Decision {
	d := api.Decision{
		ID: "d", Revision: revision(n), Effect: effect, Lease: 30 * time.Second, Reason: api.ReasonPolicyMatch,
		Config:  &api.ServiceConfig{Name: api.DefaultConfig},
		Subject: api.Subject{Mode: api.ModeTCP, Session: &api.Ref{Name: "s", UID: "s"}, Service: &api.Ref{Name: "svc.default"}},
	}
	for _, k := range keys {
		d.DependsOn = append(d.DependsOn, api.Key{Kind: "X", Name: k})
	}
	return d
}

func change(n uint64, keys ...string) api.Change {
	c := api.Change{Revision: revision(n)}
	for _, k := range keys {
		c.Keys = append(c.Keys, api.Key{Kind: "X", Name: k})
	}
	return c
}

// gate runs a Gate before upstreams that are silent.
func gate(t *testing.T, d *slow) *proxy.Gate {
	var mu sync.Mutex
	var upstreams []net.Conn
	log := new(auditmemory.Log)
	g := proxy.New(proxy.Rooms{
		Decider: d, Audit: log, Refuse: func(r api.Refusal) { log.Append(t.Context(), r.Record) }, Engine: relaycopy.New(),
		Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
		Dial: func(context.Context, api.Destination) (net.Conn, api.DialReport, error) {
			near, far := relaytest.Pipe()
			mu.Lock()
			defer mu.Unlock()
			upstreams = append(upstreams, far)
			return near, api.DialReport{}, nil
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { g.Run(ctx); close(done) }()
	synctest.Wait()
	t.Cleanup(func() {
		cancel()
		<-done
		for _, c := range upstreams {
			c.Close()
		}
	})
	return g
}

// arrive lets a connection arrive and returns the client's end.
func arrive(g *proxy.Gate, conn func(*relaytest.PipeEnd) net.Conn) *relaytest.PipeEnd {
	near, far := relaytest.Pipe()
	g.Arrive(api.Arrival{Conn: conn(near), Service: "svc.default"})
	return far
}

func plain(c *relaytest.PipeEnd) net.Conn { return c }

// An answer that was overtaken by a change must not stand, whatever it depends on
// and whoever asked: a User joins a Group while a decision is being made, and the
// Group loses its right before the answer is in.
func TestAnOvertakenAnswerDoesNotStand(t *testing.T) {
	for _, when := range []string{"at the first decision", "when it is asked again"} {
		t.Run(when, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var asked, denied atomic.Int64
				hold := make(chan struct{})
				held := int64(1)
				if when != "at the first decision" {
					held = 2
				}
				d := &slow{changes: make(chan api.Change)}
				d.decide = func(_ context.Context, r api.Request) (api.Decision, error) {
					switch n := asked.Add(1); {
					case n < held:
						return answer(api.Allow, 4, "user"), nil
					case n == held:
						<-hold
						return answer(api.Allow, 5, "user", "group"), nil
					case denied.Load() != 0:
						return answer(api.Deny, 6, "user", "group"), nil
					}
					return answer(api.Allow, 5, "user", "group"), nil
				}
				g := gate(t, d)
				d.changes <- change(4)
				c := arrive(g, plain)
				synctest.Wait()
				d.changes <- change(5, "user") // joins the group
				synctest.Wait()
				denied.Store(1)
				d.changes <- change(6, "group") // which nothing that is held hangs on yet
				synctest.Wait()
				close(hold)
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the client saw %v", err)
				}
				if live := g.List(); len(live) != 0 {
					t.Errorf("live on an answer that was overtaken: %+v", live)
				}
			})
		})
	}
}

// A Decider that hangs instead of failing bounds every connection all the same.
func TestAHangingDeciderDoesNotHoldUpTheEndOfLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hangs atomic.Bool
		d := &slow{changes: make(chan api.Change)}
		d.decide = func(ctx context.Context, _ api.Request) (api.Decision, error) {
			if hangs.Load() {
				<-ctx.Done()
				return api.Decision{}, ctx.Err()
			}
			return answer(api.Allow, 1, "user"), nil
		}
		g := gate(t, d)
		for range 200 {
			defer arrive(g, plain).Close()
		}
		synctest.Wait()
		if n := len(g.List()); n != 200 {
			t.Fatalf("%d are live", n)
		}
		hangs.Store(true)
		time.Sleep(32 * time.Second)
		synctest.Wait()
		if n := len(g.List()); n != 0 {
			t.Errorf("%d outlived their lease", n)
		}
	})
}

// mute is a client whose road takes five seconds to take a verdict.
type mute struct{ *relaytest.PipeEnd }

func (m mute) Verdict(api.Verdict) error {
	time.Sleep(5 * time.Second)
	return io.ErrShortWrite
}

// Clients that do not take what they are told delay nobody else's revocation.
func TestSlowClientsDelayNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var denied atomic.Bool
		d := &slow{changes: make(chan api.Change)}
		d.decide = func(_ context.Context, r api.Request) (api.Decision, error) {
			if denied.Load() {
				return answer(api.Deny, 2, "user"), nil
			}
			return answer(api.Allow, 1, "user"), nil
		}
		g := gate(t, d)
		c := arrive(g, plain)
		synctest.Wait()
		for range 64 {
			defer arrive(g, func(c *relaytest.PipeEnd) net.Conn { return mute{c} }).Close()
		}
		synctest.Wait()
		denied.Store(true)
		now := time.Now()
		d.changes <- change(2, "user")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client saw %v", err)
		}
		if late := time.Since(now); late != 0 {
			t.Errorf("it took %v", late)
		}
	})
}
