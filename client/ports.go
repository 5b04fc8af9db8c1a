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
	"cardea/relay/datagram"
	"cardea/tunnel"
)

// Ports publishes Services at local addresses: each connection that comes to one
// is carried to its Service, and at a port of UDP each flow: the datagrams of one source.
// The fields are all that it needs; set them before the first use.
//
// A web page gets nothing from a TCP port: see web.go.
//
// What goes wrong with one connection is told to it by a reset, and to a person
// in words by Log: a refusal (with the id of the decision), a connection that was
// cut, and, once for each change, that the cluster cannot be reached. There is
// nothing to reconnect: the next connection tries again.
type Ports struct {
	Dialer tunnel.Dialer
	Names  *Names // of what programs ask the proxy for; nil takes names for what they are
	Log    *slog.Logger

	once    sync.Once
	streams *relaycopy.Engine
	flows   *datagram.Engine
	pages   sync.WaitGroup // farewells to web pages
	mu      sync.Mutex
	open    []*port
	down    string // why the cluster could not be reached when it was last tried; "" if it could
	trouble string
	serving sync.WaitGroup
}

// A port is a Port that is served. One of listener and socket is there.
type port struct {
	Port
	host     string // of the address, as it was asked for
	listener net.Listener
	socket   *net.UDPConn
}

func (o *port) Close() error {
	if o.socket != nil {
		return o.socket.Close()
	}
	return o.listener.Close()
}

// listen opens the socket of a Port.
func listen(ctx context.Context, p Port) (*port, error) {
	o := &port{Port: p}
	o.host, _, _ = net.SplitHostPort(p.Address) // "" for a Unix socket
	if p.Network != "udp" {
		l, err := listenStream(ctx, p)
		if err != nil {
			return nil, err
		}
		o.listener, o.Address = l, l.Addr().String()
		return o, nil
	}
	c, err := new(net.ListenConfig).ListenPacket(ctx, p.network(), p.Address)
	if err != nil {
		return nil, err
	}
	o.socket, o.Address = c.(*net.UDPConn), c.LocalAddr().String()
	return o, nil
}

// dialTimeout bounds the opening of a connection to a Service, the decision and
// the cluster's dialling included.
const dialTimeout = 45 * time.Second

// Publish listens at all of the ports, or at none, and serves them until ctx is
// done; what is open then is cut. It returns the ports with their addresses as
// they came to be. A Port that is published already is left as it is.
func (p *Ports) Publish(ctx context.Context, ports ...Port) ([]Port, error) {
	r, err := p.reserve(ctx, ports)
	if err != nil {
		return nil, err
	}
	p.serveAll(ctx, r)
	return r.all, nil
}

// A reservation is ports that are listened at and not served.
type reservation struct {
	all   []Port  // as they came to be, with those that were published before
	fresh []*port // the others
}

func (r *reservation) giveUp() {
	for _, o := range r.fresh {
		o.Close()
	}
}

// reserve listens at all of the ports that are not published yet, or at none.
func (p *Ports) reserve(ctx context.Context, ports []Port) (*reservation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := new(reservation)
	for _, want := range ports {
		if i := slices.IndexFunc(p.open, func(o *port) bool { return o.Port == want }); i >= 0 {
			r.all = append(r.all, p.open[i].Port)
			continue
		}
		o, err := listen(ctx, want)
		if err != nil {
			r.giveUp()
			return nil, want.refused(err)
		}
		r.fresh = append(r.fresh, o)
		r.all = append(r.all, o.Port)
	}
	return r, nil
}

// serveAll serves what is reserved until ctx is done.
func (p *Ports) serveAll(ctx context.Context, r *reservation) {
	p.init()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range r.fresh {
		p.open = append(p.open, o)
		p.serving.Go(func() { p.serve(ctx, o) })
	}
}

func (p *Ports) init() {
	p.once.Do(func() { p.streams, p.flows = relaycopy.New(), datagram.New() })
}

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
	p.streams.Wait()
	p.flows.Wait()
	p.pages.Wait()
}

// listenStream opens the socket of a Port of connections. A Unix socket that nobody
// listens at any more is replaced.
func listenStream(ctx context.Context, p Port) (net.Listener, error) {
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

// serve takes what comes to a port until ctx is done.
func (p *Ports) serve(ctx context.Context, o *port) {
	stop := context.AfterFunc(ctx, func() { o.Close() })
	defer stop()
	var all sync.WaitGroup
	switch {
	case o.socket != nil:
		p.takeDatagrams(ctx, o, &all)
	case o.Network == NetworkProxy:
		p.serveProxy(ctx, o)
	default:
		p.accept(ctx, o, &all)
	}
	o.Close()
	p.mu.Lock()
	p.open = slices.DeleteFunc(p.open, func(x *port) bool { return x == o })
	p.mu.Unlock()
	all.Wait()
}

// accept takes the connections of a port, each in a goroutine of all, until the port is
// closed.
func (p *Ports) accept(ctx context.Context, o *port, all *sync.WaitGroup) {
	for {
		c, err := o.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // a lack of descriptors, or a peer that left: it passes
			p.Log.Warn("cannot accept a connection", "service", o.Service, "error", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		all.Go(func() { p.carry(ctx, o, c) })
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// carry joins a connection that came to a port to its Service.
func (p *Ports) carry(ctx context.Context, o *port, local net.Conn) {
	if err := p.admit(o.Share, local); err != nil {
		p.Log.Warn("refused a local connection", "service", o.Service, "address", o.Address, "error", err)
		relay.Reset(local, relay.Limit)
		return
	}
	stream, err := p.dial(ctx, o.Service, p.Dialer.Dial)
	if err != nil {
		relay.Reset(local, relay.UpstreamReset)
		return
	}
	if c, ok := local.(*net.TCPConn); ok {
		local = &guard{TCPConn: c, host: o.host, leave: p.pages.Go, refused: func(why string) {
			p.setTrouble("a web page was refused at the port of %s: %s", o.Service, why)
			p.Log.Warn("refused a web page", "service", o.Service, "address", o.Address, "because", why)
		}}
	}
	p.relay(ctx, p.streams, o.Service, relay.Pair{Client: local, Upstream: stream})
}

// dial opens a connection to a Service, or says why there is none.
func (p *Ports) dial(ctx context.Context, service string, open func(context.Context, string) (net.Conn, error)) (net.Conn, error) {
	brief, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stream, err := open(brief, service)
	switch {
	case err == nil:
		p.reached()
	case ctx.Err() == nil:
		p.tell(service, err)
	}
	return stream, err
}

// relay gives a pair to an engine, and cuts it when ctx is done.
func (p *Ports) relay(ctx context.Context, engine relay.Engine, service string, pair relay.Pair) {
	started := make(chan (func() bool), 1)
	live := engine.Start(pair, func(r relay.Result) {
		stop := <-started
		stop()
		if reset, ok := errors.AsType[*tunnel.ResetError](r.Err); ok && r.Reason == relay.UpstreamReset {
			why := reasonWords(reset.Reason)
			p.setTrouble("a connection to %s was cut: %s", service, why)
			p.Log.Warn("a connection was cut", "service", service, "reason", why)
		}
	})
	started <- context.AfterFunc(ctx, func() { live.Cut(relay.Drained) })
}

// tell says why there was no connection to a Service.
func (p *Ports) tell(service string, err error) {
	if e, ok := errors.AsType[*api.Error](err); ok {
		words := e.Message
		log := p.Log.With("service", service, "code", string(e.Code))
		if e.DecisionID != "" {
			log = log.With("decision", e.DecisionID)
			words += " (decision " + e.DecisionID + ")"
		}
		if e.Hint != "" {
			log = log.With("hint", e.Hint)
			words += "; " + e.Hint
		}
		p.setTrouble("no connection to %s: %s", service, words)
		log.Warn("no connection: " + e.Message)
		return
	}
	p.mu.Lock()
	known := p.down
	p.down = err.Error()
	p.mu.Unlock()
	if known == "" {
		p.Log.Warn("the cluster cannot be reached; each new connection tries again", "service", service, "error", err)
	}
}

// reached notes that the cluster has answered.
func (p *Ports) reached() {
	p.mu.Lock()
	was := p.down
	p.down = ""
	p.mu.Unlock()
	if was != "" {
		p.Log.Info("the cluster can be reached again")
	}
}

// unreached says why the cluster could not be reached when it was last tried; "" if it
// could.
func (p *Ports) unreached() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}

// A strangerError says that a connection is somebody else's.
type strangerError struct{ uid uint32 }

func (e strangerError) Error() string {
	return fmt.Sprintf("it comes from uid %d, and the port was published by uid %d: publish it with --share to serve others", e.uid, os.Getuid())
}

// admit refuses a connection that is not the publisher's own, so that others on
// this machine cannot borrow the Session, unless it is shared. root may do anything here
// anyway.
func (p *Ports) admit(share bool, c net.Conn) error {
	if share {
		return nil
	}
	return own(peerUID(c))
}

// own refuses what comes from a process of somebody else, given whose it is.
func own(uid uint32, err error) error {
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
