package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"cardea/api"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/tunnel"
)

// Ports publishes Services at local addresses: each connection that comes to one
// is carried to its Service. The fields are all that it needs; set them before
// the first use.
//
// What goes wrong with one connection is told to it by a reset, and to a person
// in words by Log: a refusal (with the id of the decision), a connection that was
// cut, and, once for each change, that the cluster cannot be reached. There is
// nothing to reconnect: the next connection tries again.
type Ports struct {
	Dialer tunnel.Dialer
	Log    *slog.Logger

	once    sync.Once
	engine  *relaycopy.Engine
	mu      sync.Mutex
	open    []*port
	down    bool // the cluster could not be reached when it was last tried
	trouble string
	serving sync.WaitGroup
}

// A port is a Port that is served.
type port struct {
	Port
	net.Listener
}

// dialTimeout bounds the opening of a connection to a Service, the decision and
// the cluster's dialling included.
const dialTimeout = 45 * time.Second

// Publish listens at all of the ports, or at none, and serves them until ctx is
// done; what is open then is cut. It returns the ports with their addresses as
// they came to be. A Port that is published already is left as it is.
func (p *Ports) Publish(ctx context.Context, ports ...Port) ([]Port, error) {
	p.init()
	p.mu.Lock()
	defer p.mu.Unlock()
	var fresh []*port
	var out []Port
	for _, want := range ports {
		if i := slices.IndexFunc(p.open, func(o *port) bool { return o.Port == want }); i >= 0 {
			out = append(out, p.open[i].Port)
			continue
		}
		l, err := listen(ctx, want)
		if err != nil {
			for _, o := range fresh {
				o.Close()
			}
			return nil, want.refused(err)
		}
		want.Address = l.Addr().String()
		fresh = append(fresh, &port{want, l})
		out = append(out, want)
	}
	for _, o := range fresh {
		p.open = append(p.open, o)
		p.serving.Go(func() { p.serve(ctx, o) })
	}
	return out, nil
}

func (p *Ports) init() { p.once.Do(func() { p.engine = relaycopy.New() }) }

// List returns what is published.
func (p *Ports) List() []Port {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Port, len(p.open))
	for i, o := range p.open {
		list[i] = o.Port
	}
	return list
}

// Trouble returns the last refusal, or the last connection that was cut, in
// words; "" if there was none.
func (p *Ports) Trouble() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trouble
}

func (p *Ports) setTrouble(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = fmt.Sprintf(format, args...)
}

// Wait returns when no port is served and no connection is open: some time after
// the contexts of all calls of Publish are done.
func (p *Ports) Wait() {
	p.init()
	p.serving.Wait()
	p.engine.Wait()
}

// listen opens the socket of a Port. A Unix socket that nobody listens at any
// more is replaced.
func listen(ctx context.Context, p Port) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, p.network(), p.Address)
	if p.Network != "unix" {
		return l, err
	}
	if errors.Is(err, syscall.EADDRINUSE) && isStale(ctx, p.Address) {
		os.Remove(p.Address)
		l, err = lc.Listen(ctx, p.Network, p.Address)
	}
	if err == nil && !p.Share {
		if err = os.Chmod(p.Address, 0o600); err != nil {
			l.Close()
		}
	}
	return l, err
}

// isStale reports whether a Unix socket has no listener.
func isStale(ctx context.Context, path string) bool {
	i, err := os.Lstat(path)
	if err != nil || i.Mode()&os.ModeSocket == 0 {
		return false
	}
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// serve takes the connections of a port until ctx is done.
func (p *Ports) serve(ctx context.Context, o *port) {
	stop := context.AfterFunc(ctx, func() { o.Close() })
	defer stop()
	var conns sync.WaitGroup
	for {
		c, err := o.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil { // a lack of descriptors, or a peer that left: it passes
			p.Log.Warn("cannot accept a connection", "service", o.Service, "error", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		conns.Go(func() { p.carry(ctx, o.Port, c) })
	}
	o.Close()
	p.mu.Lock()
	p.open = slices.DeleteFunc(p.open, func(x *port) bool { return x == o })
	p.mu.Unlock()
	conns.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// carry joins a connection that came to a Port to its Service.
func (p *Ports) carry(ctx context.Context, o Port, local net.Conn) {
	if err := p.admit(o, local); err != nil {
		p.Log.Warn("refused a local connection", "service", o.Service, "address", o.Address, "error", err)
		relay.Reset(local, relay.Limit)
		return
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	stream, err := p.Dialer.Dial(dial, o.Service)
	cancel()
	if err != nil {
		relay.Reset(local, relay.UpstreamReset)
		if ctx.Err() == nil {
			p.tell(o, err)
		}
		return
	}
	p.reached()
	p.relay(ctx, o, local, stream)
}

// relay gives a pair to the engine, and cuts it when ctx is done.
func (p *Ports) relay(ctx context.Context, o Port, local, stream net.Conn) {
	started := make(chan (func() bool), 1)
	live := p.engine.Start(relay.Pair{Client: local, Upstream: stream}, func(r relay.Result) {
		stop := <-started
		stop()
		if reset, ok := errors.AsType[*tunnel.ResetError](r.Err); ok && r.Reason == relay.UpstreamReset {
			p.setTrouble("a connection to %s was cut: %s", o.Service, reset.Reason)
			p.Log.Warn("a connection was cut", "service", o.Service, "reason", reset.Reason)
		}
	})
	started <- context.AfterFunc(ctx, func() { live.Cut(relay.Drained) })
}

// tell says why there was no connection to a Service.
func (p *Ports) tell(o Port, err error) {
	if e, ok := errors.AsType[*api.Error](err); ok {
		words := e.Message
		log := p.Log.With("service", o.Service, "code", string(e.Code))
		if e.DecisionID != "" {
			log = log.With("decision", e.DecisionID)
			words += " (decision " + e.DecisionID + ")"
		}
		if e.Hint != "" {
			log = log.With("hint", e.Hint)
		}
		p.setTrouble("no connection to %s: %s", o.Service, words)
		log.Warn("no connection: " + e.Message)
		return
	}
	p.mu.Lock()
	known := p.down
	p.down = true
	p.mu.Unlock()
	if !known {
		p.Log.Warn("the cluster cannot be reached; each new connection tries again", "service", o.Service, "error", err)
	}
}

// reached notes that the cluster has answered.
func (p *Ports) reached() {
	p.mu.Lock()
	was := p.down
	p.down = false
	p.mu.Unlock()
	if was {
		p.Log.Info("the cluster can be reached again")
	}
}

// A strangerError says that a connection is somebody else's.
type strangerError struct{ uid uint32 }

func (e strangerError) Error() string {
	return fmt.Sprintf("it comes from uid %d, and the port was published by uid %d: publish it with --share to serve others", e.uid, os.Getuid())
}

// admit refuses a connection that is not the publisher's own, so that others on
// this machine cannot borrow the Session. root may do anything here anyway.
func (p *Ports) admit(o Port, c net.Conn) error {
	if o.Share {
		return nil
	}
	uid, err := peerUID(c)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return nil // told when the port was published
	case err != nil:
		return fmt.Errorf("whose it is cannot be told (%w): publish it with --share to serve others", err)
	case uid != 0 && uid != uint32(os.Getuid()):
		return strangerError{uid}
	}
	return nil
}
