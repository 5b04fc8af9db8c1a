package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"cardea/upstream/balance"
)

// attemptDelay is how long one address has before the next of its name is tried beside
// it (RFC 8305, section 5), and servedDelay one Session before the next that serves the
// same: its device has to connect first.
const (
	attemptDelay = 250 * time.Millisecond
	servedDelay  = time.Second
)

// connectTCP connects to one address, if that is allowed.
func (d *Dialer) connectTCP(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	return d.connectSocket(ctx, "tcp", at)
}

// connectUDP does so with a socket that takes datagrams from that address alone, and is
// told when nobody takes them there. Whether somebody does is not known before.
func (d *Dialer) connectUDP(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	return d.connectSocket(ctx, "udp", at)
}

func (d *Dialer) connectSocket(ctx context.Context, network string, at netip.AddrPort) (net.Conn, error) {
	nd := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3},
		// The last moment before connect(2), with the address that it gets.
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("cannot check the address %q", address)
			}
			if err := d.check(to); err != nil {
				d.refuse(address, err)
				return err
			}
			return nil
		},
	}
	nd.SetMultipathTCP(false) // whatever GODEBUG says: the relay expects a plain TCP socket
	return nd.DialContext(ctx, network, at.String())
}

// connectTo connects to a target.
func (j *journey) connectTo(ctx context.Context, t *balance.Target) (net.Conn, error) {
	switch {
	case t.Session != "":
		return j.d.connectSession(ctx, j.Destination, t, j.shape.udp)
	case j.d.connect != nil:
		return j.d.connect(ctx, t.Addr)
	case j.shape.udp:
		return j.d.connectUDP(ctx, t.Addr)
	}
	return j.d.connectTCP(ctx, t.Addr)
}

// race connects to a target and, when a moment has passed without an answer, to others
// of its Host beside it. It returns the first connection; a Session that could not answer
// in that moment, when another one did, has failed. Else all that were tried have
// failed, and what went wrong is noted; perhaps not all were tried. All attempts have
// ended when it returns. ctx ends after within.
func (j *journey) race(ctx context.Context, first *balance.Target, within time.Duration) (net.Conn, *balance.Target) {
	if j.place.isAlone(first) {
		conn, err := j.connectTo(ctx, first)
		if err != nil {
			j.failed(first, err, within)
			return nil, nil
		}
		return conn, first
	}
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		conn net.Conn
		err  error
		of   *balance.Target
	}
	results := make(chan result, balance.MaxOfHost) // nobody waits to put his
	delay := attemptDelay
	if first.Session != "" {
		delay = min(servedDelay, within/2)
	}
	var late []*balance.Target // Sessions that did not answer in that
	var won bool
	var all sync.WaitGroup
	defer func() {
		cancel()
		all.Wait()
		close(results)
		for r := range results { // those that came too late
			if r.conn != nil {
				r.conn.Close()
			}
			if won && slices.Contains(late, r.of) {
				r.of.Failed(fmt.Sprintf("no answer within %v, when another Session gave one", delay))
			} else {
				r.of.Drop()
			}
		}
	}()
	running := 0
	var last *balance.Target
	for next := first; ; next = nil {
		if next == nil {
			next = j.beside(first.Host)
		}
		var later <-chan time.Time
		if next != nil {
			running++
			all.Go(func() {
				c, err := j.connectTo(ctx, next)
				results <- result{c, err, next}
			})
			last = next
			later = time.After(delay)
		}
		select {
		case r := <-results:
			running--
			if r.err == nil {
				won = true
				return r.conn, r.of
			}
			if j.failed(r.of, r.err, within); running == 0 {
				return nil, nil
			}
		case <-later:
			if last.Session != "" {
				late = append(late, last)
			}
		}
	}
}
