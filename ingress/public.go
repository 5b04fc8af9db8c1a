package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/api"
)

// TunnelPublic is what Facts.Tunnel says of connections to a public port.
const TunnelPublic = "public"

// ConditionListening is the type of the condition that says whether the public
// port of a Service is open.
const ConditionListening = "Listening"

// Public keeps the public ports of Services open: of those that are public and
// anonymous, each on its port. Who comes in there has no Session and is asked
// nothing; whether he may is decided like everything else.
//
// Its fields must not be changed while it is in use.
type Public struct {
	// Host is the IP address to listen on. Empty is every address of both
	// families, 0.0.0.0 every one of IPv4.
	Host   string
	Domain string // of the cluster
	// Handle takes a connection over, and returns at once. Its conn is the bare
	// *net.TCPConn unless the Service has spec.isTLS.
	Handle func(api.Arrival)
	// TLS makes the handshake of a connection to a Service with spec.isTLS, with
	// the certificate of that name, within a bounded time. It closes c if there is
	// an error, which is words for the log and may have a method
	// Reason() api.ReasonType.
	TLS func(ctx context.Context, c net.Conn, name string) (net.Conn, *api.TLSFacts, error)
	// Refused is told of connections that come to nothing.
	Refused func(api.Refusal)
	// Admission tells whether there are descriptors for another connection. It
	// should be one for public ports alone, that of TLS, too: then whoever floods
	// them takes no place from those who log in, and nobody is known there.
	Admission *Admission
	Log       *slog.Logger

	accepted, refused, failures atomic.Int64

	mu      sync.Mutex
	life    context.Context // of Run; nil before it
	over    bool            // Run has ended
	serving sync.WaitGroup  // of Run
	wake    chan struct{}   // tells Run that a port has failed
	wanted  []*api.Service
	open    map[int]*port         // by number
	states  map[string]*listening // by Service
}

// A port is open for a Service.
type port struct {
	*Listener
	service string
	number  int
	tls     atomic.Bool // the Service speaks it
	meter   meter       // of its connections
}

// follow makes a port what its Service says now.
func (o *port) follow(s *api.Service) {
	o.tls.Store(s.Spec.IsTLS)
	o.meter.set(s.Spec.Limits.Rate())
}

// listening is how it stands with the port of a Service.
type listening struct {
	condition api.StatusCondition
	port      int
	failed    int       // times in a row that it could not be opened
	next      time.Time // when to try again; zero if that would not help
}

// PublicStats are counters of a [Public].
type PublicStats struct {
	Open     int   // ports that are open
	Closed   int   // ports that should be open and are not; none after Run
	Accepted int64 // connections
	Refused  int64 // connections that came to nothing before they were an Arrival
	Failures int64 // of accepting
}

// How long to wait before a port that could not be opened is tried again: the
// first time, and at most.
const (
	firstRetry = time.Second
	mostRetry  = 30 * time.Second
)

// Set makes the ports of the Services that are public and anonymous, out of all
// that are given, the ones that are open. It returns when each was tried: what
// [Public.Conditions] then says is true of this list. Ports that stay are not
// touched, nor are connections that live. A Service that has a port keeps it; if
// several want one that is free, it goes to the first by name.
//
// ctx bounds nothing but the opening. Before Run connections wait; after it
// nothing is opened.
func (p *Public) Set(ctx context.Context, services []*api.Service) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return
	}
	p.wanted = nil
	for _, s := range services {
		if s.Spec.IsPublic && s.Spec.IsAnonymous && s.Status.Port != 0 {
			p.wanted = append(p.wanted, s)
		}
	}
	slices.SortFunc(p.wanted, func(a, b *api.Service) int { return cmp.Compare(a.Metadata.Name, b.Metadata.Name) })
	p.reconcile(ctx, true)
	p.signal()
}

// signal tells Run that the time of the next attempt may be another. mu must be
// held.
func (p *Public) signal() {
	if p.wake == nil {
		p.wake = make(chan struct{}, 1)
	}
	select {
	case p.wake <- struct{}{}:
	default: // it knows
	}
}

// reconcile closes the ports that are not wanted and opens those that are: all of
// them, or those whose time has come. mu must be held.
func (p *Public) reconcile(ctx context.Context, all bool) {
	if p.open == nil {
		p.open, p.states = map[int]*port{}, map[string]*listening{}
	}
	names := map[string]bool{}
	holds := map[int]string{} // who keeps which port
	for _, s := range p.wanted {
		names[s.Metadata.Name] = true
		if o := p.open[s.Status.Port]; o != nil && o.service == s.Metadata.Name {
			holds[s.Status.Port] = o.service
			o.follow(s)
		}
	}
	for number, o := range p.open {
		if holds[number] == "" {
			delete(p.open, number)
			o.Close()
		}
	}
	maps.DeleteFunc(p.states, func(name string, _ *listening) bool { return !names[name] })
	for _, s := range p.wanted {
		name, number := s.Metadata.Name, s.Status.Port
		st := p.states[name]
		if st == nil || st.port != number {
			st = &listening{port: number}
			p.states[name] = st
		}
		switch {
		case holds[number] == name:
		case holds[number] != "":
			st.next = time.Time{} // the port becomes free only by a change of the other Service
			st.is(false, fmt.Sprintf("port %d is that of Service %s; give one of the two another spec.port", number, holds[number]))
			continue
		case all || !st.next.After(time.Now()):
			if err := p.listen(ctx, s); err != nil {
				st.failed++
				st.next = time.Now().Add(min(firstRetry<<min(st.failed-1, 10), mostRetry))
				st.is(false, p.cannot(number, err))
				continue
			}
		default:
			continue
		}
		holds[number] = name
		st.failed, st.next = 0, time.Time{}
		st.is(true, "listening on "+p.open[number].Addr().String())
	}
}

// is notes whether the port is open.
func (l *listening) is(open bool, message string) {
	status := "False"
	if open {
		status = "True"
	}
	c := &l.condition
	if c.Status != status {
		c.Since = time.Now().UTC()
	}
	c.Type, c.Status, c.Message = ConditionListening, status, message
}

// cannot says for a person why a port is not open, and what to do.
func (p *Public) cannot(number int, err error) string {
	address := net.JoinHostPort(p.Host, fmt.Sprint(number))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("%s is taken by another program or by Cardea itself (find it with: ss -ltnp 'sport = :%d'); end it, or choose another spec.port", address, number)
	case errors.Is(err, syscall.EACCES):
		return fmt.Sprintf("the user that Cardea runs as may not listen on %s; choose a spec.port above 1023, or give it CAP_NET_BIND_SERVICE", address)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Sprintf("%s cannot be opened: no descriptors left; raise the limit (ulimit -n)", address)
	}
	return fmt.Sprintf("%s cannot be opened: %v", address, err)
}

// listen opens the port of a Service. mu must be held.
func (p *Public) listen(ctx context.Context, s *api.Service) error {
	network := "tcp"
	if ip, err := netip.ParseAddr(p.Host); err == nil && ip.Is4() {
		network = "tcp4" // else 0.0.0.0 would be every address of IPv6, too
	}
	// Keepalive as towards upstreams: the relay learns by it of peers that died.
	config := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}}
	config.SetMultipathTCP(false) // it costs at each accept, and the relay splices plain TCP
	l, err := config.Listen(ctx, network, net.JoinHostPort(p.Host, fmt.Sprint(s.Status.Port)))
	if err != nil {
		return err
	}
	o := &port{service: s.Metadata.Name, number: s.Status.Port}
	o.follow(s)
	o.Listener = &Listener{
		Listener: l, Direct: true, Refused: func(r api.Refusal) { p.refuse(o.service, r) }, Log: p.Log,
		Handle: func(ctx context.Context, c net.Conn) { p.take(ctx, o, c) },
	}
	p.open[o.number] = o
	if p.life != nil {
		p.serve(o)
	}
	return nil
}

// serve accepts on a port. mu must be held.
func (p *Public) serve(o *port) {
	ctx := p.life
	p.serving.Go(func() {
		err := o.Serve(ctx)
		p.failures.Add(o.Failures())
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.open[o.number] != o || ctx.Err() != nil {
			return // it was closed
		}
		delete(p.open, o.number)
		st := p.states[o.service]
		st.failed, st.next = 1, time.Now().Add(firstRetry)
		st.is(false, p.cannot(o.number, err))
		p.signal()
	})
}

// take makes an Arrival of a connection.
func (p *Public) take(ctx context.Context, o *port, c net.Conn) {
	p.accepted.Add(1)
	a := api.Arrival{Conn: c, Service: o.service, Evidence: api.Evidence{Kind: api.EvidenceAnonymous}, Facts: facts(c)}
	a.Facts.Tunnel = TunnelPublic
	err := o.meter.admit(c)
	if err == nil {
		err = p.Admission.admit()
	}
	if err != nil {
		abort(c)
		p.refuse(o.service, refusal(a.Facts, err))
		return
	}
	if !o.tls.Load() {
		p.Handle(a)
		return
	}
	p.serving.Go(func() {
		conn, tls, err := p.TLS(ctx, c, o.service+".svc."+p.Domain)
		if err != nil {
			p.refuse(o.service, refusal(a.Facts, err))
			return
		}
		a.Conn, a.Facts.TLS = conn, tls
		p.Handle(a)
	})
}

func (p *Public) refuse(service string, r api.Refusal) {
	p.refused.Add(1)
	r.Service = service
	r.Facts.Tunnel = TunnelPublic
	p.Refused(r)
}

// Run accepts on the ports that are open, and tries again those that could not be
// opened, until ctx is done. Then it closes them, and returns when all that it
// started is over. Connections that were handed over are not its own any more.
func (p *Public) Run(ctx context.Context) error {
	p.mu.Lock()
	p.life = ctx
	for _, o := range p.open {
		p.serve(o)
	}
	p.signal()
	wake := p.wake
	p.mu.Unlock()

	retry := time.NewTimer(mostRetry)
	defer retry.Stop()
	for ctx.Err() == nil {
		select {
		case <-wake:
		case <-retry.C:
			p.mu.Lock()
			p.reconcile(ctx, false)
			p.mu.Unlock()
		case <-ctx.Done():
		}
		retry.Reset(p.untilRetry())
	}

	p.mu.Lock()
	p.over = true // Serve closes what is open
	p.open, p.wanted = nil, nil
	for _, st := range p.states {
		st.next = time.Time{}
		st.is(false, "the cluster is stopping")
	}
	p.mu.Unlock()
	p.serving.Wait()
	return nil
}

// untilRetry returns how long to wait for the next port that is to be tried again.
func (p *Public) untilRetry() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := mostRetry
	for _, st := range p.states {
		if !st.next.IsZero() {
			wait = min(wait, time.Until(st.next))
		}
	}
	return max(wait, 0)
}

// Conditions returns how it stands with the port of a Service, in a list for its
// status: nothing if it is to have none.
func (p *Public) Conditions(service string) []api.StatusCondition {
	p.mu.Lock()
	defer p.mu.Unlock()
	if st := p.states[service]; st != nil {
		return []api.StatusCondition{st.condition}
	}
	return nil
}

// Addresses returns the addresses that are listened on, of which no upstream may
// be one. One of 0.0.0.0 or :: stands for every address of this machine.
func (p *Public) Addresses() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []netip.AddrPort
	for _, o := range p.open {
		all = append(all, addrPort(o.Addr()))
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return all
}

// Stats returns the counters as they stand.
func (p *Public) Stats() PublicStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PublicStats{Open: len(p.open), Accepted: p.accepted.Load(), Refused: p.refused.Load(), Failures: p.failures.Load()}
	s.Closed = len(p.wanted) - s.Open
	for _, o := range p.open {
		s.Failures += o.Failures()
	}
	return s
}
