package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"cardea/upstream/balance"
)

// attemptDelay is how long one address has before the next of its name is tried beside
// it (RFC 8305, section 5).
const attemptDelay = 250 * time.Millisecond

// connectTCP connects to one address, if that is allowed.
func (d *Dialer) connectTCP(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
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
	return nd.DialContext(ctx, "tcp", at.String())
}

// race connects to a target and, when a moment has passed without an answer, to others
// of its Host beside it. It returns the first connection. Else all that were tried have
// failed, and what went wrong is noted; perhaps not all were tried. All attempts have
// ended when it returns. ctx ends after within.
func (j *journey) race(ctx context.Context, first *balance.Target, within time.Duration) (net.Conn, *balance.Target) {
	connect := j.d.connect
	if connect == nil {
		connect = j.d.connectTCP
	}
	if j.place.isAlone(first) {
		conn, err := connect(ctx, first.Addr)
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
	var all sync.WaitGroup
	defer func() {
		cancel()
		all.Wait()
		close(results)
		for r := range results { // those that came too late
			if r.conn != nil {
				r.conn.Close()
			}
			r.of.Drop()
		}
	}()
	running := 0
	for next := first; ; next = nil {
		if next == nil {
			next = j.beside(first.Host)
		}
		var later <-chan time.Time
		if next != nil {
			running++
			all.Go(func() {
				c, err := connect(ctx, next.Addr)
				results <- result{c, err, next}
			})
			later = time.After(attemptDelay)
		}
		select {
		case r := <-results:
			running--
			if r.err == nil {
				return r.conn, r.of
			}
			if j.failed(r.of, r.err, within); running == 0 {
				return nil, nil
			}
		case <-later:
		}
	}
}
