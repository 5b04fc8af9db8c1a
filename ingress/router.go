package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/api"
	"cardea/handover"
	"cardea/relay"
	"cardea/relay/datagram"
	"cardea/secret"
)

// TunnelPublic is what Facts.Tunnel says of connections to a public port.
const TunnelPublic = "public"

// A Router keeps the ports of a [Table] open, and hands each connection on to where
// its row sends it. Its fields must not be changed while it is in use.
type Router struct {
	// Handle takes a connection over, and returns at once. Its Conn is the bare
	// *net.TCPConn where nothing was read of it, or the socket of Raw, with what was
	// read, where its TLS is not ended here.
	Handle func(api.Arrival)
	// Raw gives a listening socket to who accepts raw: relay.Acceptor.Listen. May be
	// nil: then package net accepts.
	Raw func(l *net.TCPListener) (relay.Listener, error)
	// Inherit returns the listener of a bind that the process before has had open, or
	// nil; that of UDP is a *datagram.Listener. It is asked once for each bind, before any
	// is opened. May be nil.
	Inherit func(api.Bind) net.Listener
	// Terminate makes the handshake of a connection, within a bounded time. It closes
	// c if there is an error, which is words for the log and may have a method
	// Reason() api.ReasonType. The certificate is that of the client, if it has shown
	// one that verifies. A place of Admission is held meanwhile.
	Terminate func(ctx context.Context, c net.Conn, config *tls.Config) (net.Conn, *api.TLSFacts, *x509.Certificate, error)
	// Material returns what is in a Secret or in files.
	Material func(ctx context.Context, m *api.Material) (*secret.Material, error)
	// ClusterCertificate returns the certificate of the cluster for a server name, and
	// others that are not the cluster's own, and ClusterCAs who signs the certificates of
	// Sessions, as they stand.
	ClusterCertificate func(name string, more ...string) (*tls.Certificate, error)
	ClusterCAs         func() *x509.CertPool
	// Settings returns ClusterConfig.spec.routing, never nil.
	Settings func() *api.ClusterRouting
	// Upstreams returns an Arrival, without a Conn, for each upstream to which a client
	// has connections of a listener (the address that it connected to), to which it may
	// send a CancelRequest of PostgreSQL.
	Upstreams func(listener string, source netip.Addr) []api.Arrival
	// Refused is told of connections that come to nothing.
	Refused func(api.Refusal)
	// Admission tells how many connections may be before their row is known, or in
	// their handshake, and whether there are descriptors for another one. It should be
	// one for public ports alone: then whoever floods them takes no place from those
	// who log in.
	Admission *Admission
	Log       *slog.Logger

	table atomic.Pointer[Table] // nil before Set
	// addresses are what Addresses returns; nil since doors were opened or closed, which
	// is done with mu held.
	addresses atomic.Pointer[[]netip.AddrPort]

	setting sync.Mutex // one Set, or reload of files, at a time
	endings map[string]*ending
	said    map[api.Key]string // what the log was told of Objects that refuse

	mu      sync.Mutex
	life    context.Context // of Run; nil before it
	over    bool            // Run has ended
	serving sync.WaitGroup  // of Run
	wake    chan struct{}   // tells Run that a port has failed
	doors   map[api.Bind]*door
	asked   map[api.Bind]bool // binds for which Inherit was asked
}

// A door is where connections come in: one bind of the table.
type door struct {
	bind      api.Bind
	heir      net.Listener // of the process before, until it is opened
	listener  *Listener    // nil while it is not open
	serving   bool
	condition api.StatusCondition
	failed    int       // times in a row that it could not be opened
	next      time.Time // when to try again; zero if it is open
	closed    chan struct{}
	local     atomic.Pointer[localAddress]
	counts
}

// A localAddress is one to which a connection came, and how it is written.
type localAddress struct {
	netip.AddrPort
	text string
}

// counts count what came in at a door.
type counts struct {
	accepted, failures atomic.Int64
	mu                 sync.Mutex
	refused            map[api.ReasonType]int64
}

// How long to wait before a port that could not be opened is tried again: the
// first time, and at most.
const (
	firstRetry = time.Second
	mostRetry  = 30 * time.Second
)

// reread is how often files of certificates are looked at.
const reread = 5 * time.Second

// The reasons of the condition Listening.
const (
	reasonListening = "LISTENING"
	reasonCannot    = "CANNOT_LISTEN"
	reasonStopping  = "STOPPING"
)

// Set puts a table into force. It returns when what certificates it needs were
// loaded, and each of its ports was tried: what Status then says is true of this
// table. Connections that live are not touched, nor are ports that stay; of a port
// that goes, the connections that wait are taken first, by the table before.
//
// ctx bounds nothing but that. Before Run connections wait; after it nothing is
// opened.
func (r *Router) Set(ctx context.Context, t *Table) {
	r.setting.Lock()
	defer r.setting.Unlock()
	if r.stopped() {
		return
	}
	r.load(ctx, t, false)
	for row := range t.each() {
		row.limit()
	}
	gone := r.open(ctx, t)
	for _, d := range gone {
		d.retire()
	}
	r.table.Store(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.doors {
		r.serve(d)
	}
	r.signal()
}

func (r *Router) stopped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// each yields the rows of a table.
func (t *Table) each() func(yield func(*row) bool) { return maps.Values(t.rows) }

// signal tells Run that the time of the next attempt may be another. mu must be
// held.
func (r *Router) signal() {
	if r.wake == nil {
		r.wake = make(chan struct{}, 1)
	}
	select {
	case r.wake <- struct{}{}:
	default: // it knows
	}
}

// open tries the ports of a table that are not open, and returns those that are and
// should not be. The new ones come first, so that an address that goes from one bind
// to another is never without a listener.
func (r *Router) open(ctx context.Context, t *Table) (gone []*door) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return nil
	}
	if r.doors == nil {
		r.doors = map[api.Bind]*door{}
	}
	binds := slices.SortedFunc(maps.Keys(t.listeners), compareBinds)
	for _, bind := range binds {
		if r.doors[bind] == nil {
			r.doors[bind] = &door{bind: bind, heir: r.inherit(bind)}
		}
	}
	for _, bind := range binds {
		if d := r.doors[bind]; d.listener == nil {
			r.try(ctx, d)
		}
	}
	for bind, d := range r.doors {
		if t.listeners[bind] == nil {
			delete(r.doors, bind)
			r.addresses.Store(nil)
			if d.listener != nil {
				gone = append(gone, d)
			}
		}
	}
	return gone
}

// retire takes the connections that wait at a door, and closes it.
func (d *door) retire() {
	if !d.serving {
		d.listener.Close()
		return
	}
	d.listener.Retire()
	<-d.closed
}

// try opens a door. mu must be held.
func (r *Router) try(ctx context.Context, d *door) {
	l, err := d.heir, error(nil)
	if l == nil {
		l, err = r.listen(ctx, d.bind)
	}
	d.heir = nil
	if err != nil {
		d.failed++
		d.next = time.Now().Add(min(firstRetry<<min(d.failed-1, 10), mostRetry))
		d.is(false, reasonCannot, cannot(d.bind, err))
		return
	}
	d.failed, d.next, d.serving, d.closed = 0, time.Time{}, false, make(chan struct{})
	d.local.Store(nil)
	take := func(ctx context.Context, c net.Conn) { r.take(ctx, d, c) }
	if d.bind.UDP {
		take = func(_ context.Context, c net.Conn) { r.takeFlow(d, c.(*datagram.Flow)) }
	} else {
		l = r.accepter(l)
	}
	d.is(true, reasonListening, "listening on "+l.Addr().String())
	r.addresses.Store(nil)
	d.listener = &Listener{
		Listener: l, Direct: true, Log: r.Log,
		Refused: func(x api.Refusal) { r.refused(d, x) },
		Handle:  take,
	}
}

// is notes whether a door is open.
func (d *door) is(open bool, reason, message string) {
	status := "False"
	if open {
		status = "True"
	}
	c := &d.condition
	if c.Status != status {
		c.Since = time.Now().UTC()
	}
	c.Type, c.Status, c.Reason, c.Message = api.ConditionListening, status, reason, message
}

// cannot says for a person why a port is not open, and what to do.
func cannot(bind api.Bind, err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		kind := "t"
		if bind.UDP {
			kind = "u"
		}
		return fmt.Sprintf("%v is taken by another program (find it with: ss -%sanp 'sport = :%d'); end it, or choose another port", bind, kind, bind.Port)
	case errors.Is(err, syscall.EACCES):
		return fmt.Sprintf("the user that Cardea runs as may not listen on %v; choose a port above 1023, or give it CAP_NET_BIND_SERVICE", bind)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Sprintf("%v is not an address of this machine (ip address lists those): %v", bind, err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Sprintf("%v cannot be opened: no descriptors left; raise the limit (ulimit -n)", bind)
	}
	return fmt.Sprintf("%v cannot be opened: %v", bind, err)
}

// keepAlive is as towards upstreams: the relay learns by it of peers that died.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}
}

// inherit returns what the process before has had open for a bind, nil for nothing.
// mu must be held.
func (r *Router) inherit(bind api.Bind) net.Listener {
	if r.Inherit == nil || r.asked[bind] {
		return nil
	}
	if r.asked == nil {
		r.asked = map[api.Bind]bool{}
	}
	r.asked[bind] = true
	l := r.Inherit(bind)
	if tcp, ok := l.(*net.TCPListener); ok {
		return heir{tcp}
	}
	return l
}

// An heir is a listener that another process has opened: package net has forgotten how
// to keep its connections alive.
type heir struct{ *net.TCPListener }

// Accept implements net.Listener.
func (h heir) Accept() (net.Conn, error) {
	c, err := h.AcceptTCP()
	if err != nil {
		return nil, err
	}
	c.SetKeepAliveConfig(keepAlive()) // it fails only if the client has gone
	return c, nil
}

// accepter gives a listener to who accepts raw, if there is somebody.
func (r *Router) accepter(l net.Listener) net.Listener {
	tcp, ok := l.(*net.TCPListener)
	if h, is := l.(heir); is {
		tcp, ok = h.TCPListener, true
	}
	if r.Raw == nil || !ok {
		return l
	}
	err := bequeath(tcp)
	if err == nil {
		var x relay.Listener
		if x, err = r.Raw(tcp); err == nil {
			return raw{x}
		}
	}
	r.Log.Warn("a port is served through package net, which is slower", "listener", l.Addr().String(), "error", err)
	return l
}

// Sockets returns duplicates of the descriptors of the ports that are open, for the
// process after this one. The caller closes them. What waits at a port is not lost as
// long as one of its descriptors is open.
func (r *Router) Sockets() (map[api.Bind]*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[api.Bind]*os.File{}
	for bind, d := range r.doors {
		if d.listener == nil {
			continue
		}
		f, err := handover.Duplicate(d.listener.Listener, d.listener.Addr().String())
		if err != nil {
			for _, f := range all {
				f.Close()
			}
			return nil, fmt.Errorf("the descriptor of %v: %w", bind, err)
		}
		all[bind] = f
	}
	return all, nil
}

// listen opens a socket. mu must be held.
//
// A port can be open at one address and, with other rows, at all others: the kernel
// gives a connection to the socket that says most exactly where. That needs
// SO_REUSEPORT on both (socket(7)), with which another program of the same user could
// take a part of the connections unnoticed. So it is set only when another socket of
// ours comes to the port.
func (r *Router) listen(ctx context.Context, bind api.Bind) (net.Listener, error) {
	config := net.ListenConfig{KeepAliveConfig: keepAlive()}
	config.SetMultipathTCP(false) // it costs at each accept, and the relay splices plain TCP
	for _, d := range r.doors {
		if d.bind.Port == bind.Port && d.bind.UDP == bind.UDP && d.listener != nil {
			config.Control = func(_, _ string, c syscall.RawConn) error { return sharePort(c) }
			if err := d.share(); err != nil {
				return nil, err
			}
		}
	}
	network := "tcp"
	switch bind.Address {
	case "0.0.0.0":
		network = "tcp4" // else it would be every address of IPv6, too
	case "::":
		network = "tcp6"
	}
	listen := config.Listen
	if bind.UDP {
		listen = func(ctx context.Context, network, address string) (net.Listener, error) {
			l, err := datagram.Listen(ctx, config, strings.Replace(network, "tcp", "udp", 1), address)
			if err != nil {
				return nil, err
			}
			return l, nil
		}
	}
	l, err := listen(ctx, network, net.JoinHostPort(bind.Address, fmt.Sprint(bind.Port)))
	if bind.Address == "" && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
		l, err = listen(ctx, "tcp4", net.JoinHostPort("", fmt.Sprint(bind.Port))) // there is no IPv6 here
	}
	return l, err
}

// share lets other sockets have the same port.
func (d *door) share() error {
	s, ok := d.listener.Listener.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	c, err := s.SyscallConn()
	if err != nil {
		return err
	}
	return sharePort(c)
}

// serve accepts at a door, if Run runs and it is open. mu must be held.
func (r *Router) serve(d *door) {
	if r.life == nil || r.over || d.listener == nil || d.serving {
		return
	}
	d.serving = true
	ctx, l, closed := r.life, d.listener, d.closed
	r.serving.Go(func() {
		defer close(closed)
		err := l.Serve(ctx)
		d.failures.Add(l.Failures())
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.doors[d.bind] != d || d.listener != l || ctx.Err() != nil {
			return // it was closed
		}
		d.listener = nil
		r.addresses.Store(nil)
		d.failed, d.next = 1, time.Now().Add(firstRetry)
		d.is(false, reasonCannot, cannot(d.bind, err))
		r.signal()
	})
}

// Run accepts at the ports that are open, tries again those that could not be
// opened, and looks whether files of certificates have changed, until ctx is done.
// Then it closes the ports, and returns when all that it started is over.
// Connections that were handed over are not its own any more.
func (r *Router) Run(ctx context.Context) error {
	r.mu.Lock()
	r.life = ctx
	for _, d := range r.doors {
		r.serve(d)
	}
	r.signal()
	wake := r.wake
	r.mu.Unlock()

	retry, files := time.NewTimer(mostRetry), time.NewTicker(reread)
	defer retry.Stop()
	defer files.Stop()
	for ctx.Err() == nil {
		select {
		case <-wake:
		case <-retry.C:
			r.retry(ctx)
		case <-files.C:
			r.reload(ctx)
		case <-ctx.Done():
		}
		retry.Reset(r.untilRetry())
	}

	r.mu.Lock()
	r.over = true // Serve closes what is open
	for _, d := range r.doors {
		d.listener, d.next = nil, time.Time{}
		d.is(false, reasonStopping, "the cluster is stopping")
	}
	r.mu.Unlock()
	r.serving.Wait()
	return nil
}

// retry tries the ports whose time has come.
func (r *Router) retry(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.doors {
		if d.listener == nil && !d.next.After(time.Now()) {
			r.try(ctx, d)
			r.serve(d)
		}
	}
}

// untilRetry returns how long to wait for the next port that is to be tried again.
func (r *Router) untilRetry() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait := mostRetry
	for _, d := range r.doors {
		if !d.next.IsZero() {
			wait = min(wait, time.Until(d.next))
		}
	}
	return max(wait, 0)
}

// Status is [Table.Status] of the table in force, with what is true of this process:
// whether its ports are open, and whether what it refers to can be loaded.
func (r *Router) Status(k api.Key) *api.RouteStatus {
	t := r.table.Load()
	if t == nil {
		return nil
	}
	s := t.Status(k)
	if s == nil {
		return nil
	}
	var first *api.StatusCondition // of its doors, that which is not open before the others
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, row := range t.of[k] {
		if d := r.doors[row.Bind]; d != nil && (first == nil || first.Status == "True" && d.condition.Status != "True") {
			c := d.condition
			first = &c
		}
	}
	now := time.Now()
	for _, row := range t.of[k] {
		if e := row.ending.Load(); e != nil {
			e.tell(s, now)
		}
	}
	if first != nil {
		s.Conditions = append(s.Conditions, *first)
	}
	return s
}

// Objects returns the Objects of which the table in force has a status, in no order.
func (r *Router) Objects() []api.Key {
	t := r.table.Load()
	if t == nil {
		return nil
	}
	return slices.Collect(maps.Keys(t.status))
}

// Ask is [Table.Ask] of the table in force, with whether the port is open.
func (r *Router) Ask(q api.RouteQuestion) api.RouteAnswer {
	t := r.table.Load()
	if t == nil {
		t = &Table{}
	}
	a := t.ask(q, r.helloTimeout())
	r.mu.Lock()
	defer r.mu.Unlock()
	for bind, d := range r.doors {
		if bind.String() != a.Listener {
			continue
		}
		if a.Open = d.listener != nil; !a.Open {
			a.Steps = append(a.Steps, "the port is not open: "+d.condition.Message)
		}
	}
	if a.Refused == "" && a.Owner != nil {
		for _, row := range t.of[*a.Owner] {
			if why := row.lacks(); why != "" && row.words == a.Match && row.Bind.String() == a.Listener {
				a.Refused = lacking(row, why)
			}
		}
	}
	return a
}

// PublicName returns the Service, SERVICE.NAMESPACE, that is reached by a server name
// at the cluster's own port by whoever comes: one that is public and anonymous, by
// NAME.NAMESPACE.svc.DOMAIN or one of its public.hosts.
func (r *Router) PublicName(sni string) (service string, ok bool) {
	t := r.table.Load()
	if t == nil {
		return "", false
	}
	service, _, ok = t.public.find(api.FoldName(sni))
	return service, ok
}

// Addresses returns the addresses that are listened on, of which no upstream may be
// one. One of 0.0.0.0 or :: stands for every address of this machine. The result must
// not be written to. A port that another process has taken over is still ours in this.
func (r *Router) Addresses() []netip.AddrPort {
	if all := r.addresses.Load(); all != nil { // it is asked for each connection
		return *all
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]netip.AddrPort, 0, len(r.doors))
	for _, d := range r.doors {
		if d.listener != nil {
			all = append(all, addrPort(d.listener.Addr()))
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	all = slices.Clip(all)
	r.addresses.Store(&all)
	return all
}

// RouterStats are counters of a [Router].
type RouterStats struct {
	Open      int // ports that are open
	Closed    int // ports that should be open and are not; none after Run
	Listeners []ListenerStats
}

// ListenerStats are counters of one port, at one address or at all.
type ListenerStats struct {
	Listener string // ADDRESS:PORT as it is configured
	Open     bool
	Accepted int64                    // connections
	Refused  map[api.ReasonType]int64 // connections that came to nothing before they were an Arrival
	Failures int64                    // of accepting
}

// Stats returns the counters as they stand, in the order of ports.
func (r *Router) Stats() (s RouterStats) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, bind := range slices.SortedFunc(maps.Keys(r.doors), compareBinds) {
		d := r.doors[bind]
		l := ListenerStats{Listener: d.bind.String(), Open: d.listener != nil, Accepted: d.accepted.Load(), Failures: d.failures.Load()}
		if l.Open {
			s.Open++
			l.Failures += d.listener.Failures()
		} else if !r.over {
			s.Closed++
		}
		d.counts.mu.Lock()
		l.Refused = maps.Clone(d.counts.refused)
		d.counts.mu.Unlock()
		s.Listeners = append(s.Listeners, l)
	}
	return s
}

// refused reports a connection that comes to nothing.
func (r *Router) refused(d *door, x api.Refusal) {
	d.counts.mu.Lock()
	if d.counts.refused == nil {
		d.counts.refused = map[api.ReasonType]int64{}
	}
	d.counts.refused[x.Reason]++
	d.counts.mu.Unlock()
	x.Facts.Tunnel = TunnelPublic
	if x.Route == nil {
		x.Route = &api.LogRoute{Listener: d.bind.String()}
	}
	r.Refused(x)
}
