package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
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

const (
	probeEvery = 2 * time.Second         // while all is well
	probeTime  = time.Second             // for an answer; and between probes that get none
	probeFails = 3                       // so many in a row, and another carrier is taken
	probeGood  = 2                       // so many in a row, and UDP is taken again
	pipeTime   = 2500 * time.Millisecond // to open a pipe
	pipeAgain  = time.Second             // between two attempts to open one
)

// A carrier sees that WireGuard's packets get to one gateway: by UDP while that passes,
// else by a pipe of QUIC, else by one of TLS; and by UDP again when it passes again. What
// is inside the tunnel is not concerned: its addresses, keys and connections stay.
type carrier struct {
	name   string // of the gateway
	tunnel Tunnel // what was asked for
	udp    bool   // whether the gateway has WireGuard at a UDP port
	// via makes a pipe the carrier, nil UDP.
	via func(tunnel.Pipe) error
	// probe asks the gateway for an echo by UDP, whatever the carrier is.
	probe func(context.Context) (time.Duration, error)
	// echo asks for one through the tunnel; nil if nobody would answer.
	echo func(context.Context) (time.Duration, error)
	// missed is told that a probe by UDP was not answered.
	missed func()
	pipes  []pipeKind // those that may be tried, in turn
	log    *slog.Logger
	kick   chan struct{} // there is reason to look at once; of capacity 1

	mu      sync.Mutex
	now     Tunnel // "" before there was one, and while there is none
	why     string
	since   time.Time
	latency time.Duration
	settled chan struct{} // closed when it is known what the carrier is, or that there is none
	pipe    *watchedPipe
}

// A pipeKind is a way to open a pipe.
type pipeKind struct {
	tunnel Tunnel
	open   func(context.Context) (tunnel.Pipe, error)
}

// run carries until ctx is done.
func (c *carrier) run(ctx context.Context) {
	defer c.closePipe()
	misses := 0
	for ctx.Err() == nil {
		switch {
		case c.pipe != nil:
			c.onPipe(ctx)
			misses = 0
		case !c.mayUDP():
			c.open(ctx, c.noUDP())
		default:
			misses = c.onUDP(ctx, misses)
		}
	}
}

// mayUDP reports whether UDP may be the carrier.
func (c *carrier) mayUDP() bool {
	return c.udp && (c.tunnel == TunnelAuto || c.tunnel == TunnelWireGuard)
}

// noUDP says why UDP may not.
func (c *carrier) noUDP() string {
	if c.tunnel == TunnelAuto {
		return "the gateway has no port for WireGuard"
	}
	return "asked for by --tunnel"
}

// onUDP probes once, and waits. It returns how many probes in a row were not answered.
func (c *carrier) onUDP(ctx context.Context, misses int) int {
	began := time.Now()
	rtt, err := c.try(ctx, c.probe)
	if ctx.Err() != nil {
		return 0
	}
	if err == nil {
		why := "UDP passes"
		if c.tunnel == TunnelWireGuard {
			why = "asked for by --tunnel"
		}
		c.use(TunnelWireGuard, why)
		c.measured(rtt)
		c.wait(ctx, probeEvery)
		return 0
	}
	misses++
	c.missed()
	if misses%probeFails != 0 {
		c.wait(ctx, probeTime-time.Since(began))
		return misses
	}
	words := fmt.Sprintf("%d probes by UDP were not answered", probeFails)
	if c.tunnel == TunnelWireGuard {
		c.lost(words + ", and --tunnel wireguard allows nothing else")
		return misses
	}
	c.open(ctx, words)
	return misses
}

// onPipe watches a pipe until something is to be done, and does it.
func (c *carrier) onPipe(ctx context.Context) {
	good, silent := 0, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.pipe.over:
			err := c.pipe.failure()
			c.closePipe()
			c.open(ctx, fmt.Sprintf("the carrier by %s broke: %v", c.now.Words(), err))
			return
		case <-time.After(probeEvery):
		case <-c.kick:
		}
		if c.mayUDP() {
			rtt, err := c.try(ctx, c.probe)
			if good++; err != nil {
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
		rtt, err := c.try(ctx, c.echo)
		if err == nil {
			silent = 0
			c.measured(rtt)
		} else if silent++; silent == probeFails && ctx.Err() == nil {
			was := c.now.Words()
			c.closePipe()
			c.open(ctx, fmt.Sprintf("nothing came back by %s", was))
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
	c.use(TunnelWireGuard, "UDP passes again")
	c.measured(rtt)
}

// open takes the first of the pipes that can be opened, for a reason. If there is none it
// waits, and returns.
func (c *carrier) open(ctx context.Context, why string) {
	var failures []string
	for _, k := range c.pipes {
		if c.tunnel != TunnelAuto && c.tunnel != k.tunnel {
			continue
		}
		brief, cancel := context.WithTimeout(ctx, pipeTime)
		p, err := k.open(brief)
		cancel()
		if ctx.Err() != nil {
			if err == nil {
				p.Close()
			}
			return
		}
		if err == nil {
			w := &watchedPipe{Pipe: p, over: make(chan struct{})}
			if err = c.via(w); err == nil {
				c.pipe = w
				c.use(k.tunnel, strings.Join(append([]string{why}, failures...), "; "))
				return
			}
			p.Close()
		}
		failures = append(failures, fmt.Sprintf("%s failed: %v", k.tunnel.Words(), err))
	}
	c.lost(strings.Join(append([]string{why}, failures...), "; "))
	c.wait(ctx, pipeAgain)
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

// use notes what the carrier is now.
func (c *carrier) use(t Tunnel, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now == t && t == TunnelWireGuard {
		return
	}
	first := c.since.IsZero()
	c.now, c.why, c.since, c.latency = t, why, time.Now(), 0
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
	s.LatencyMilliseconds = float64(c.latency.Microseconds()) / 1000
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
