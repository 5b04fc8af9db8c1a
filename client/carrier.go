package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"cardea/tunnel"
)

// A Tunnel is how what is carried gets to a gateway.
type Tunnel string

// The Tunnels. With a network interface all carry WireGuard's packets: WIREGUARD by UDP,
// which is what it is made for, the other two where UDP does not pass. Published ports
// have no packets: QUIC and TLS are streams there.
const (
	TunnelAuto      Tunnel = "auto"
	TunnelWireGuard Tunnel = "wireguard"
	TunnelQUIC      Tunnel = "quic"
	TunnelTLS       Tunnel = "tls"
)

// ParseTunnel reads a Tunnel.
func ParseTunnel(s string) (Tunnel, error) {
	switch t := Tunnel(s); t {
	case TunnelAuto, TunnelWireGuard, TunnelQUIC, TunnelTLS:
		return t, nil
	}
	return "", fmt.Errorf("%.40q is no tunnel: want auto, wireguard, quic or tls", s)
}

// Words returns the Tunnel for a person.
func (t Tunnel) Words() string {
	switch t {
	case TunnelWireGuard:
		return "WireGuard (UDP)"
	case TunnelQUIC:
		return "QUIC"
	case TunnelTLS:
		return "TLS"
	}
	return "none"
}

// Traffic has to go on within ten seconds after UDP was blocked. What is inside is TCP as a
// rule, which repeats what is lost after r, 2r, 4r, … seconds, its first time-out being r:
// if the packets go another way T seconds after the block, TCP tries again at 2T + r at the
// latest. So T is to be 4.5 seconds at most; it is probeEvery + 2 * probeTime, if another
// way can be opened in one probeTime.
const (
	probeEvery = 2 * time.Second         // while all is well
	probeTime  = time.Second             // for an answer
	probeAgain = probeTime / 2           // after which it is asked again
	probeFails = 3                       // so many without an answer, and another carrier is taken
	probeGood  = 2                       // so many in a row, and UDP is taken again
	pipeTime   = 2500 * time.Millisecond // to open a pipe
	pipeLead   = probeTime               // for which a pipe that is liked better is waited for
	pipeAgain  = time.Second             // between two attempts to open one
)

// A carrier sees that WireGuard's packets get to one gateway: by UDP while that passes,
// else by a pipe of QUIC, else by one of TLS; and by UDP again when it passes again. What
// is inside the tunnel is not concerned: its addresses, keys and connections stay.
type carrier struct {
	name   string // of the gateway
	tunnel Tunnel // what was asked for
	// via makes a pipe the carrier, nil UDP.
	via func(tunnel.Pipe) error
	// probe asks the gateway for an echo by UDP, whatever the carrier is.
	probe func(context.Context) (time.Duration, error)
	// echo asks for one through the tunnel; nil if nobody would answer.
	echo func(context.Context) (time.Duration, error)
	// missed is told that a probe by UDP was not answered.
	missed func()
	log    *slog.Logger
	kick   chan struct{} // there is reason to look at once; of capacity 1

	mu      sync.Mutex
	offers  offers
	changed bool   // what is offered has, and nobody has looked at that yet
	now     Tunnel // "" before there was one, and while there is none
	why     string
	at      string // the other end of the pipe; "" with UDP
	since   time.Time
	latency time.Duration
	settled chan struct{} // closed when it is known what the carrier is, or that there is none
	pipe    *watchedPipe
}

// The offers of a gateway are the ways to it, as the cluster says.
type offers struct {
	udp   bool       // WireGuard at a UDP port
	pipes []pipeKind // the others, the one that is liked best first
}

// A pipeKind is a way to open a pipe.
type pipeKind struct {
	tunnel Tunnel
	open   func(context.Context) (tunnel.Pipe, error)
}

// offer says what ways there are to the gateway now. One that is gone is left at once, and
// one that is better than what carries is tried at once.
func (c *carrier) offer(o offers) {
	c.mu.Lock()
	same := c.offers.udp == o.udp && slices.EqualFunc(c.offers.pipes, o.pipes, func(a, b pipeKind) bool { return a.tunnel == b.tunnel })
	c.offers, c.changed = o, c.changed || !same
	c.mu.Unlock()
	if !same {
		c.look()
	}
}

// pipes returns the ways to open a pipe that may be tried.
func (c *carrier) pipes() []pipeKind {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.offers.pipes), func(k pipeKind) bool { return c.tunnel != TunnelAuto && c.tunnel != k.tunnel })
}

// outdone says why the pipe that carries should give way to another, after what is offered
// has changed; "" if it should not.
func (c *carrier) outdone() string {
	all := c.pipes()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.changed {
		return ""
	}
	c.changed = false
	switch i := slices.IndexFunc(all, func(k pipeKind) bool { return k.tunnel == c.now }); {
	case i < 0:
		return "the gateway has no " + c.now.Words() + " any more"
	case i > 0:
		return "the gateway has " + all[0].tunnel.Words() + " now"
	}
	return ""
}

// run carries until ctx is done.
func (c *carrier) run(ctx context.Context) {
	defer c.closePipe()
	for ctx.Err() == nil {
		switch {
		case c.pipe != nil:
			c.onPipe(ctx)
		case !c.mayUDP():
			c.open(ctx, c.race(ctx), c.noUDP())
		default:
			c.onUDP(ctx)
		}
	}
}

// mayUDP reports whether UDP may be the carrier.
func (c *carrier) mayUDP() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.offers.udp && (c.tunnel == TunnelAuto || c.tunnel == TunnelWireGuard)
}

// noUDP says why UDP may not.
func (c *carrier) noUDP() string {
	switch c.tunnel {
	case TunnelAuto:
		return "the gateway has no port for WireGuard"
	case TunnelWireGuard:
		return "the gateway has no port for WireGuard, and --tunnel wireguard allows nothing else"
	}
	return "asked for by --tunnel"
}

// onUDP sees whether UDP passes, and waits; if it does not, it takes another carrier.
func (c *carrier) onUDP(ctx context.Context) {
	rtt, race, err := c.ask(ctx)
	switch {
	case ctx.Err() != nil:
		race.close()
	case err == nil:
		race.close()
		why := "UDP passes"
		if c.tunnel == TunnelWireGuard {
			why = "asked for by --tunnel"
		}
		c.use(TunnelWireGuard, "", why)
		c.measured(rtt)
		c.wait(ctx, probeEvery)
	case race == nil:
		c.lost(err.Error() + ", and --tunnel wireguard allows nothing else")
	default:
		c.open(ctx, race, err.Error())
	}
}

// ask probes by UDP up to probeFails times, each time with probeTime for the answer. After
// the first that is missed it has pipes opened, if there may be any: a race, which is the
// caller's then.
func (c *carrier) ask(ctx context.Context) (rtt time.Duration, r *race, err error) {
	type answer struct {
		rtt time.Duration
		err error
	}
	asking, stop := context.WithCancel(ctx)
	answers := make(chan answer, probeFails)
	var all sync.WaitGroup
	defer all.Wait()
	defer stop()
	probe := func() {
		all.Go(func() {
			rtt, err := c.try(asking, c.probe)
			answers <- answer{rtt, err}
		})
	}
	probe()
	late := time.NewTimer(probeAgain)
	defer late.Stop()
	for misses := 0; misses < probeFails; {
		select {
		case <-ctx.Done():
			return 0, r, ctx.Err()
		case <-late.C:
			probe()
		case a := <-answers:
			if a.err == nil {
				return a.rtt, r, nil
			}
			c.missed()
			if misses++; misses > 1 {
				continue
			}
			probe() // at another address of the gateway, if it has one
			if c.tunnel != TunnelWireGuard {
				r = c.race(ctx)
			}
		}
	}
	return 0, r, fmt.Errorf("%d probes by UDP were not answered", probeFails)
}

// onPipe watches a pipe until something is to be done, and does it.
func (c *carrier) onPipe(ctx context.Context) {
	good, silent := 0, 0
	for {
		pause := probeEvery
		if silent > 0 {
			pause = probeAgain
		}
		select {
		case <-ctx.Done():
			return
		case <-c.pipe.over:
			err := c.pipe.failure()
			c.closePipe()
			c.open(ctx, c.race(ctx), fmt.Sprintf("the carrier by %s broke: %v", c.now.Words(), err))
			return
		case <-time.After(pause):
		case <-c.kick:
		}
		if why := c.outdone(); why != "" {
			c.open(ctx, c.race(ctx), why)
			return
		}
		var rtt, inner time.Duration
		var missed, mute error
		var both sync.WaitGroup
		if c.mayUDP() {
			both.Go(func() { rtt, missed = c.try(ctx, c.probe) })
		}
		if c.echo != nil {
			both.Go(func() { inner, mute = c.try(ctx, c.echo) })
		}
		both.Wait()
		if ctx.Err() != nil {
			return
		}
		if c.mayUDP() {
			if good++; missed != nil {
				good = 0
				c.missed()
			}
			if good == probeGood {
				c.backToUDP(rtt)
				return
			}
		}
		if c.echo == nil {
			continue
		}
		if mute == nil {
			silent = 0
			c.measured(inner)
		} else if silent++; silent == probeFails {
			was := c.now.Words()
			c.closePipe()
			c.open(ctx, c.race(ctx), fmt.Sprintf("nothing came back by %s", was))
			return
		}
	}
}

// backToUDP takes UDP in the place of a pipe.
func (c *carrier) backToUDP(rtt time.Duration) {
	if err := c.via(nil); err != nil {
		c.log.Warn("cannot go back to UDP", "gateway", c.name, "error", err)
		return
	}
	c.closePipe()
	c.use(TunnelWireGuard, "", "UDP passes again")
	c.measured(rtt)
}

// open takes the pipe that wins a race, for a reason, in the place of the one that there
// is. If there is none it waits, and returns.
func (c *carrier) open(ctx context.Context, r *race, why string) {
	defer r.close()
	for {
		k, p := r.take()
		if ctx.Err() != nil {
			if p != nil {
				p.Close()
			}
			return
		}
		if p == nil {
			break
		}
		w := &watchedPipe{Pipe: p, over: make(chan struct{})}
		err := c.via(w)
		if err == nil {
			c.closePipe()
			c.pipe = w
			c.use(k, p.RemoteAddr().String(), strings.Join(append([]string{why}, r.words(k)...), "; "))
			return
		}
		p.Close()
		r.failed(k, err)
	}
	c.closePipe()
	c.lost(strings.Join(append([]string{why}, r.words("")...), "; "))
	c.wait(ctx, pipeAgain)
}

// race begins to open all pipes that may carry.
func (c *carrier) race(ctx context.Context) *race {
	ctx, cancel := context.WithTimeout(ctx, pipeTime)
	r := &race{cancel: cancel, lead: time.After(pipeLead)}
	c.mu.Lock()
	c.changed = false // all that is offered is tried
	c.mu.Unlock()
	pipes := c.pipes()
	for _, k := range pipes {
		r.runners = append(r.runners, runner{tunnel: k.tunnel})
	}
	r.ended = make(chan runner, len(pipes))
	for _, k := range pipes {
		r.all.Go(func() {
			p, err := k.open(ctx)
			if err != nil {
				err = fmt.Errorf("failed: %w", err)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("did not answer within %v", pipeTime)
			}
			r.ended <- runner{k.tunnel, p, err}
		})
	}
	return r
}

// closePipe ends the pipe, if there is one.
func (c *carrier) closePipe() {
	if c.pipe != nil {
		c.pipe.Close()
		c.pipe = nil
	}
}

// try asks once.
func (c *carrier) try(ctx context.Context, ask func(context.Context) (time.Duration, error)) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	return ask(ctx)
}

// wait waits, but not if there is reason to look.
func (c *carrier) wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-c.kick:
	}
}

// look has the carrier probe at once.
func (c *carrier) look() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// use notes what the carrier is now, and where it leads to if that is not where WireGuard
// does by itself.
func (c *carrier) use(t Tunnel, at, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now == t && t == TunnelWireGuard {
		return
	}
	first := c.since.IsZero()
	c.now, c.at, c.why, c.since, c.latency = t, at, why, time.Now(), 0
	if first || t == TunnelWireGuard {
		c.log.Info("the gateway is reached by "+t.Words(), "gateway", c.name, "because", why)
	} else {
		c.log.Warn("the gateway is now reached by "+t.Words(), "gateway", c.name, "because", why)
	}
	c.settle()
}

// lost notes that there is no carrier.
func (c *carrier) lost(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now != "" || c.since.IsZero() {
		c.log.Warn("the gateway cannot be reached; it is tried again and again", "gateway", c.name, "because", why)
		c.since = time.Now()
	}
	c.now, c.why, c.latency = "", why, 0
	c.settle()
}

// settle says that it is known how it stands. c.mu is held.
func (c *carrier) settle() {
	select {
	case <-c.settled:
	default:
		close(c.settled)
	}
}

// works reports whether something carries.
func (c *carrier) works() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now != ""
}

func (c *carrier) measured(rtt time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latency = rtt
}

// status fills in how the gateway is reached.
func (c *carrier) status(s *GatewayStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Transport, s.Why, s.Since = c.now, c.why, c.since.UTC()
	if c.at != "" && c.now != "" {
		s.Address = c.at
	}
	s.LatencyMilliseconds = milliseconds(c.latency)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// A race opens several pipes side by side. The first of them is liked best.
type race struct {
	cancel  context.CancelFunc
	lead    <-chan time.Time // what comes first is taken from then on; nil: it is so
	all     sync.WaitGroup
	ended   chan runner
	runners []runner
}

// A runner is one of the pipes: neither there nor failed at first.
type runner struct {
	tunnel Tunnel
	pipe   tunnel.Pipe
	err    error
}

// take returns the pipe that is liked best of those that are there once its lead is over,
// or if there is none the first that comes; nil if all have failed. It is the caller's.
func (r *race) take() (Tunnel, tunnel.Pipe) {
	for {
		for range len(r.ended) {
			r.set(<-r.ended)
		}
		better := false // one that is liked better may still come
		for i := range r.runners {
			x := &r.runners[i]
			if x.pipe != nil && (r.lead == nil || !better) {
				p := x.pipe
				x.pipe = nil
				return x.tunnel, p
			}
			better = better || x.err == nil
		}
		if !better {
			return "", nil
		}
		select {
		case <-r.lead:
			r.lead = nil
		case x := <-r.ended:
			r.set(x)
		}
	}
}

func (r *race) set(x runner) {
	i := slices.IndexFunc(r.runners, func(y runner) bool { return y.tunnel == x.tunnel })
	r.runners[i] = x
}

// failed notes that a pipe that was taken is of no use.
func (r *race) failed(t Tunnel, err error) { r.set(runner{t, nil, fmt.Errorf("failed: %w", err)}) }

// words says what became of those that are liked better than the one that was taken.
func (r *race) words(taken Tunnel) (all []string) {
	for _, x := range r.runners {
		switch {
		case x.tunnel == taken:
			return all
		case x.err != nil:
			all = append(all, fmt.Sprintf("%s %v", x.tunnel.Words(), x.err))
		default:
			all = append(all, fmt.Sprintf("%s did not answer within %v", x.tunnel.Words(), pipeLead))
		}
	}
	return all
}

// close ends the race, and closes what was opened and not taken. A nil race is none.
func (r *race) close() {
	if r == nil {
		return
	}
	r.cancel()
	r.all.Wait()
	close(r.ended)
	for x := range r.ended {
		r.set(x)
	}
	for _, x := range r.runners {
		if x.pipe != nil {
			x.pipe.Close()
		}
	}
}

// A watchedPipe tells when it is over.
type watchedPipe struct {
	tunnel.Pipe
	once sync.Once
	over chan struct{}
	err  error // why; good once over is closed
}

// Receive implements tunnel.Pipe.
func (w *watchedPipe) Receive(b []byte) (int, error) {
	n, err := w.Pipe.Receive(b)
	w.note(err)
	return n, err
}

// Send implements tunnel.Pipe.
func (w *watchedPipe) Send(b []byte) error {
	err := w.Pipe.Send(b)
	w.note(err)
	return err
}

func (w *watchedPipe) note(err error) {
	if err != nil {
		w.once.Do(func() {
			w.err = err
			close(w.over)
		})
	}
}

// failure says why the pipe is over, which it must be.
func (w *watchedPipe) failure() error {
	return cmp.Or(w.err, errors.New("it was closed"))
}
