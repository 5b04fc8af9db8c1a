package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	auditmemory "cardea/audit/memory"
	"cardea/mode/tcp"
	"cardea/proxy"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/relay/relaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A road is how clients come to a Gate, and it to its upstream.
type road struct {
	rooms   proxy.Rooms                                                // Engine, and Dial or Plan
	connect func(t *testing.T, g *proxy.Gate, who api.Evidence) client // somebody comes
	end     func()
}

type client interface {
	net.Conn
	CloseWrite() error
	reset()
}

type pipeClient struct{ *relaytest.PipeEnd }

func (c pipeClient) reset() { c.Reset("gone") }

// places counts the connections to an upstream.
type places struct {
	t    *testing.T
	live atomic.Int64
	most int64
}

func (p *places) take() api.Hold {
	if n := p.live.Add(1); n > p.most {
		p.t.Errorf("%d are connected", n)
	}
	return &taken{places: p}
}

// taken is one place, which is given back once.
type taken struct {
	*places
	back atomic.Bool
}

func (p *taken) Release(int64, bool) {
	if p.back.Swap(true) {
		p.t.Error("a place was given back twice")
	}
	p.live.Add(-1)
}

// byPipe is the road of streams in memory, each with a goroutine.
func byPipe(_ *testing.T, p *places) *road {
	var upstreams sync.WaitGroup
	return &road{
		rooms: proxy.Rooms{Engine: relaycopy.New(), Dial: func(context.Context, api.Destination) (net.Conn, api.DialReport, error) {
			if rand.IntN(5) == 0 {
				return nil, api.DialReport{}, errors.New("connection refused")
			}
			near, far := relaytest.Pipe()
			upstreams.Go(func() { io.Copy(far, far); far.Close() })
			return near, api.DialReport{Hold: p.take()}, nil
		}},
		connect: func(_ *testing.T, g *proxy.Gate, who api.Evidence) client {
			near, far := relaytest.Pipe()
			g.Arrive(api.Arrival{Conn: near, Service: "svc.default", Evidence: who})
			return pipeClient{far}
		},
		end: upstreams.Wait,
	}
}

// Many come and go in every way at once. There are never more than may be, and
// afterwards nobody is counted and every START has its END.
func TestCountsAreRightAtEveryTime(t *testing.T) { testCounts(t, byPipe) }

func testCounts(t *testing.T, by func(*testing.T, *places) *road) {
	const most, each, clients, rounds = 6, 2, 24, 40
	var refused atomic.Int64
	var live [clients / 4]atomic.Int64
	limits := api.Limits{Connections: most, ConnectionsPerSession: each, Pending: 2, PendingTimeout: time.Millisecond}
	d := &slow{changes: make(chan api.Change)}
	d.decide = func(_ context.Context, r api.Request) (api.Decision, error) {
		a := answer(api.Allow, 1, "user")
		uid := r.Session + string(r.Evidence.Data)
		a.Subject.Session, a.Limits = &api.Ref{Name: uid, UID: uid}, limits
		return a, nil
	}
	log := new(auditmemory.Log)
	held := &places{t: t, most: most}
	road := by(t, held)
	rooms := road.rooms
	rooms.Decider, rooms.Audit, rooms.Modes, rooms.Log = d, log, []proxy.Mode{tcp.Mode()}, slog.New(slog.DiscardHandler)
	rooms.Refuse = func(r api.Refusal) {
		if r.Reason != api.ReasonLimit {
			t.Errorf("refused: %s %s", r.Reason, r.Words)
		}
		refused.Add(1)
	}
	g := proxy.New(rooms)
	ctx, cancel := context.WithCancel(t.Context())
	var running, coming sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	d.changes <- change(1) // it runs, or will

	for i := range clients {
		coming.Go(func() {
			n := i % len(live)
			for range rounds {
				c := road.connect(t, g, api.Evidence{Kind: api.EvidenceMemory, Data: fmt.Append(nil, "s", n)})
				if c == nil {
					continue // refused before it knew
				}
				io.WriteString(c, "x")
				if _, err := c.Read(make([]byte, 1)); err != nil {
					c.Close()
					continue
				}
				if now := live[n].Add(1); now > each {
					t.Errorf("%d are connected for one Session", now)
				}
				live[n].Add(-1)
				switch rand.IntN(5) {
				case 0:
					c.reset()
				case 1:
					c.CloseWrite()
					io.Copy(io.Discard, c)
				case 2: // somebody's
					for _, c := range g.List() {
						g.Kill(c.ID, "root")
						break
					}
				case 3: // all there are
					for _, c := range g.List() {
						if at, err := netip.ParseAddrPort(c.Upstream); err == nil {
							g.Shun(api.Key{Group: api.GroupCore, Kind: api.KindService, Name: "svc.default"}, api.DefaultConfig, at.String(), relay.Unhealthy, "down")
						}
					}
				}
				c.Close()
			}
		})
	}
	coming.Wait()
	road.end()
	cancel()
	running.Wait()

	if s := g.Stats(); s.Live != 0 || s.Held != 0 || s.Waiting != 0 || g.Crowds() != 0 || s.Arrivals != clients*rounds {
		t.Errorf("stats = %+v", s)
	}
	if n := held.live.Load(); n != 0 {
		t.Errorf("%d places were not given back", n)
	}
	if refused.Load() == 0 {
		t.Error("nobody met a limit")
	}
	open := map[string]int{}
	for _, rec := range log.All() {
		switch rec.Entry.Info.TCP.Type {
		case api.LogStart:
			open[rec.Entry.Common.ConnectionID]++
		case api.LogEnd:
			open[rec.Entry.Common.ConnectionID]--
		}
	}
	if n := len(open); n != clients*rounds-int(refused.Load()) {
		t.Errorf("%d connections are in the log, and %d of %d were refused", n, refused.Load(), clients*rounds)
	}
	for id, n := range open {
		if n != 0 {
			t.Errorf("%s has %d STARTs without END", id, n)
		}
	}
}
