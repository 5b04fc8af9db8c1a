package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	auditmemory "cardea/audit/memory"
	"cardea/mode/tcp"
	"cardea/proxy"
	relaycopy "cardea/relay/copy"
	"cardea/relay/relaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counted is an upstream connection that notes when it is over.
type counted struct {
	*relaytest.PipeEnd
	over func()
}

func (c counted) Close() error              { c.over(); return c.PipeEnd.Close() }
func (c counted) Reset(reason string) error { c.over(); return c.PipeEnd.Reset(reason) }

// Many come and go in every way at once. There are never more than may be, and
// afterwards nobody is counted and every START has its END.
func TestCountsAreRightAtEveryTime(t *testing.T) {
	const most, each, clients, rounds = 6, 2, 24, 40
	var upstreams sync.WaitGroup
	var live, refused atomic.Int64
	var by [clients / 4]atomic.Int64
	limits := api.Limits{Connections: most, ConnectionsPerSession: each, Pending: 2, PendingTimeout: time.Millisecond}
	d := &slow{changes: make(chan api.Change)}
	d.decide = func(_ context.Context, r api.Request) (api.Decision, error) {
		a := answer(api.Allow, 1, "user")
		uid := r.Session + string(r.Evidence.Data)
		a.Subject.Session, a.Limits = &api.Ref{Name: uid, UID: uid}, limits
		return a, nil
	}
	log := new(auditmemory.Log)
	g := proxy.New(proxy.Rooms{
		Decider: d, Audit: log, Refuse: func(r api.Refusal) {
			if r.Reason != api.ReasonLimit {
				t.Errorf("refused: %s %s", r.Reason, r.Words)
			}
			refused.Add(1)
		},
		Engine: relaycopy.New(), Modes: []proxy.Mode{tcp.Mode()}, Log: slog.New(slog.DiscardHandler),
		Dial: func(context.Context, api.Destination) (net.Conn, api.DialReport, error) {
			if rand.IntN(5) == 0 {
				return nil, api.DialReport{}, errors.New("connection refused")
			}
			if n := live.Add(1); n > most {
				t.Errorf("%d are connected", n)
			}
			near, far := relaytest.Pipe()
			upstreams.Go(func() { io.Copy(far, far); far.Close() })
			return counted{near, sync.OnceFunc(func() { live.Add(-1) })}, api.DialReport{}, nil
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running, coming sync.WaitGroup
	running.Go(func() { g.Run(ctx) })
	d.changes <- change(1) // it runs, or will

	for i := range clients {
		coming.Go(func() {
			n := i % len(by)
			for range rounds {
				near, far := relaytest.Pipe()
				g.Arrive(api.Arrival{Conn: near, Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceMemory, Data: fmt.Append(nil, "s", n)}})
				io.WriteString(far, "x")
				if _, err := far.Read(make([]byte, 1)); err != nil {
					far.Close()
					continue
				}
				if now := by[n].Add(1); now > each {
					t.Errorf("%d are connected for one Session", now)
				}
				by[n].Add(-1)
				switch rand.IntN(4) {
				case 0:
					far.Reset("gone")
				case 1:
					far.CloseWrite()
					io.Copy(io.Discard, far)
				case 2: // somebody's
					for _, c := range g.List() {
						g.Kill(c.ID, "root")
						break
					}
				}
				far.Close()
			}
		})
	}
	coming.Wait()
	cancel()
	running.Wait()
	upstreams.Wait()

	if s := g.Stats(); s.Live != 0 || s.Held != 0 || s.Waiting != 0 || g.Crowds() != 0 || s.Arrivals != clients*rounds {
		t.Errorf("stats = %+v", s)
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
