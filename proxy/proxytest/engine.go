package proxytest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"cardea/api"
	"cardea/proxy"
	"cardea/relay"
	"cardea/relay/relaytest"
)

// carrier is an engine that notes the limits that it is given.
type carrier struct {
	relay.Engine
	limited func(relay.Limits)
}

// Start implements relay.Engine.
func (e carrier) Start(p relay.Pair, done func(relay.Result)) relay.Live {
	e.limited(p.Limits)
	return limited{e.Engine.Start(p, done), e.limited}
}

type limited struct {
	relay.Live
	noted func(relay.Limits)
}

// Limit implements relay.Live.
func (l limited) Limit(limits relay.Limits) {
	l.noted(limits)
	l.Live.Limit(limits)
}

// connector is a carrier that connects by itself, as an event loop does: client is a
// socket or over one, and the World says what it connects to.
type connector struct {
	carrier
	world      *World
	connecting sync.WaitGroup
}

var _ relay.Connector = (*connector)(nil)

// Wait implements relay.Engine.
func (e *connector) Wait() {
	e.connecting.Wait()
	e.carrier.Wait()
}

// Connect implements relay.Connector.
func (e *connector) Connect(client net.Conn, o relay.Opening) relay.Live {
	e.world.mu.Lock()
	refuses := e.world.refusesSockets
	e.world.mu.Unlock()
	below := client
	for t, ok := below.(relay.Transparent); ok; t, ok = below.(relay.Transparent) {
		below = t.NetConn()
	}
	if _, ok := below.(socket); !ok || refuses {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &connecting{cancel: cancel}
	to, within, ok := o.Next(nil)
	e.connecting.Go(func() {
		defer cancel()
		e.connect(ctx, l, client, o, to, within, ok)
	})
	return l
}

// connect goes from one address to the next, until it is connected, cut, or at the end.
func (e *connector) connect(ctx context.Context, l *connecting, client net.Conn, o relay.Opening, to netip.AddrPort, within time.Duration, ok bool) {
	var last error
	end := func(reason relay.Reason, err error) {
		if cut := l.cutBy(); cut != "" {
			reason, err = cut, nil
		}
		relay.Reset(client, reason)
		o.Done(relay.Result{Reason: reason, Err: err})
	}
	for ; ok; to, within, ok = o.Next(last) {
		up, err := e.world.reach(ctx, to, within)
		if l.cutBy() != "" {
			if up != nil {
				relay.Reset(up, relay.Revoked)
			}
			end("", nil)
			return
		}
		if last = err; err != nil {
			continue
		}
		var local netip.AddrPort
		if o.NeedsLocal() {
			local = netip.MustParseAddrPort("192.0.2.250:50000")
		}
		limits, preface, err := o.Connected(local)
		if err != nil {
			relay.Reset(up, relay.ProtocolError)
			end(relay.ProtocolError, err)
			return
		}
		if len(preface) > 0 {
			up.Write(preface)
		}
		l.relay(e.carrier.Start(relay.Pair{Client: client, Upstream: up, Limits: limits}, o.Done))
		return
	}
	if errors.Is(last, syscall.ETIMEDOUT) {
		end(relay.DialTimeout, last)
	} else {
		end(relay.DialFailed, last)
	}
}

// connecting is a Live whose upstream may not be there yet.
type connecting struct {
	cancel context.CancelFunc

	mu   sync.Mutex
	cut  relay.Reason
	live relay.Live
}

func (l *connecting) cutBy() relay.Reason {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}

// relay gives it the relay that it has become.
func (l *connecting) relay(live relay.Live) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = live
	if l.cut != "" {
		live.Cut(l.cut)
	}
}

// Bytes implements relay.Live.
func (l *connecting) Bytes() (received, sent int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live == nil {
		return 0, 0
	}
	return l.live.Bytes()
}

// Cut implements relay.Live.
func (l *connecting) Cut(r relay.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut == "" {
		l.cut = r
	}
	l.cancel()
	if l.live != nil {
		l.live.Cut(r)
	}
}

// Limit implements relay.Live.
func (l *connecting) Limit(limits relay.Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live != nil {
		l.live.Limit(limits)
	}
}

// socket is a client's near end, as an Acceptor gives it.
type socket struct{ *relaytest.PipeEnd }

var _ relay.Socket = socket{}

// AddrPorts implements relay.Socket.
func (socket) AddrPorts() (local, remote netip.AddrPort) {
	return netip.MustParseAddrPort("192.0.2.250:5432"), netip.MustParseAddrPort("192.0.2.1:4711")
}

// Await implements relay.Socket; nobody calls it once the connection has arrived.
func (socket) Await(time.Duration, int, func([]byte, error) bool) { panic("proxytest: Await") }

// Discard implements relay.Socket.
func (socket) Discard(int) {}

// TCP implements relay.Socket.
func (socket) TCP() (*net.TCPConn, []byte, error) { return nil, nil, errors.ErrUnsupported }

// route is a proxy.Plan: one address after the other.
type route struct {
	world *World
	left  []netip.AddrPort
	tries int
	err   error
	ended bool
}

var _ proxy.Plan = (*route)(nil)

// upstreamAt is the n-th address of the upstream, from 0.
func upstreamAt(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), 1)
}

// plan implements proxy.Rooms.Plan.
func (w *World) plan(to api.Destination) proxy.Plan {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noPlan {
		return nil
	}
	w.dialled = to
	r := &route{world: w}
	for n := range max(1, w.addresses) {
		r.left = append(r.left, upstreamAt(n))
	}
	w.plans++
	return r
}

// Next implements proxy.Plan.
func (r *route) Next(failed error) (netip.AddrPort, time.Duration, bool) {
	r.err = failed
	if r.tries++; r.tries > len(r.left) {
		return netip.AddrPort{}, 0, false
	}
	return r.left[r.tries-1], 5 * time.Second, true
}

// NeedsLocal implements proxy.Plan.
func (r *route) NeedsLocal() bool { return r.world.preface != "" }

// Connected implements proxy.Plan.
func (r *route) Connected(local netip.AddrPort) ([]byte, api.DialReport) {
	r.end()
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	report := r.world.report
	report.Retries += r.tries - 1
	report.Hold = r.world.holdOne()
	if r.world.preface == "" {
		return nil, report
	}
	return []byte(r.world.preface + local.String() + "\n"), report
}

// Failure implements proxy.Plan.
func (r *route) Failure() (api.DialReport, error) {
	r.end()
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	return r.world.report, r.err
}

func (r *route) end() {
	if r.ended {
		panic("proxytest: a Plan was told twice how it ended")
	}
	r.ended = true
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	r.world.plans--
}

// A place is what a connection holds at its upstream.
type place struct {
	world    *World
	released []release
}

// A release is what was told when a place was given back.
type release struct {
	sent   int64
	broken bool
}

// holdOne returns a place. w.mu is held.
func (w *World) holdOne() api.Hold {
	p := &place{world: w}
	w.holds = append(w.holds, p)
	return p
}

// Release implements api.Hold.
func (p *place) Release(sent int64, broken bool) {
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	p.released = append(p.released, release{sent, broken})
}
