package wireguard

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/relay"
	"cardea/tunnel"
	"cardea/wire/packet"
)

// Name is what the road writes into Facts.Tunnel.
const Name = "wireguard"

// DefaultMTU is the size in bytes of the largest packet in a tunnel: what every link that
// carries IPv6 can carry, less nothing, as the packets of WireGuard may be fragmented on
// the way.
const DefaultMTU = 1280

// A Gateway is the end of WireGuard tunnels. Its fields must not be changed after Open.
type Gateway struct {
	// Handler takes what arrives: TCP connections and UDP flows. The conn of a flow has a
	// method Datagram(): each Read and Write is a datagram.
	Handler tunnel.Handler
	// Find returns the Service (SERVICE or SERVICE.NAMESPACE) that is at an address, with
	// protocol "tcp" or "udp". What is for none is dropped. It must not block.
	Find func(to netip.AddrPort, protocol string) (service string, ok bool)
	// Ports returns the TCP ports of all Services now. See [Gateway.Refresh].
	Ports func() []int
	// Answer answers a question to the name server, which may have come by TCP (stream);
	// nil is no answer.
	Answer func(ctx context.Context, session string, query []byte, stream bool) []byte
	// Accept gives a listening socket of the kernel to who accepts by itself, and not
	// through package net: relay.Acceptor.Listen. May be nil: then package net accepts.
	// Forms TUN and KERNEL.
	Accept func(l *net.TCPListener) (relay.Listener, error)
	// Tell is told of a connection that was refused or cut, as TCP can carry no more than
	// a reset. It must not block; it may be nil.
	Tell func(session string, r api.NetworkRefusal)

	// Services are the prefixes in which Services have their addresses, Sessions those of
	// clients, and DNS the addresses of the name server, within Services.
	Services, Sessions []netip.Prefix
	DNS                []netip.Addr

	// Form says how much of it is the kernel's.
	Form Form
	// Interface is the name of the network interface to make, in form TUN.
	Interface string
	// Listen is the UDP port, 0 is any, and the address that is listened at, unless it is
	// unspecified. (On systems other than Linux it is always all, and form KERNEL refuses
	// to have one.)
	Listen netip.AddrPort
	Key    Key // private
	MTU    int // in bytes; 0 is DefaultMTU
	Log    *slog.Logger

	// Inherit returns what the Gateway of the process before has left by a name, nil for
	// nothing, and Memory is what it knew: see [Gateway.Bequeath]. Inherit may be nil.
	// Form KERNEL has no use for them.
	Inherit func(name string) *os.File
	Memory  string

	known    memory        // guarded by change
	recalled []Key         // peers of known; guarded by change
	begun    chan struct{} // closed by Run: before it nothing is read
	plane    *plane
	core     core
	epoch    epoch
	probes   pace
	public   atomic.Pointer[Key]
	refresh  chan struct{}

	change   sync.Mutex // one change of peers at a time; before mu
	left     bool       // by Leave; guarded by change
	mu       sync.RWMutex
	sessions map[string]*session
	byKey    map[Key]*session
	byAddr   map[netip.Addr]*session
	leaving  []leaving // in the order of time

	life    sync.Mutex
	ctx     context.Context // of Run
	running atomic.Bool     // changed under life
	tasks   sync.WaitGroup
}

// A Form is how much of a Gateway is the kernel's.
type Form int

// The forms. What they do for clients is the same.
const (
	Userspace Form = iota // nothing: WireGuard is in this process, and so is TCP
	TUN                   // TCP, behind a TUN interface
	Kernel                // WireGuard and TCP
)

// A Peer is a Session that may use the Gateway.
type Peer struct {
	Session   string // uid
	PublicKey Key
	Addresses []netip.Addr
}

// session is a Peer and what it has under way.
type session struct {
	id        string
	key       Key          // guarded by Gateway.mu
	addresses []netip.Addr // guarded by Gateway.mu

	asks    atomic.Int32 // questions to the name server that came by UDP
	askers  atomic.Int32 // TCP connections to it
	opening atomic.Int32 // TCP connections whose handshake is under way
	waits   relay.Room   // datagrams of flows that wait to be read

	mu    sync.Mutex
	gone  bool
	flows map[flowKey]*flow
	conns map[resetter]struct{} // TCP
	parts *packet.Reassembler
	pipes []tunnel.Pipe // the oldest first
}

// resetter is a conn that can be cut.
type resetter interface{ Reset(reason string) error }

// leaving is a Session that was removed. Whoever decides about its connections cuts them,
// and knows why; what is left of them at a time, the Gateway cuts.
type leaving struct {
	s  *session
	at time.Time
}

// A PeerStatus is how a Session is connected.
type PeerStatus struct {
	Session        string
	Endpoint       netip.AddrPort // where its packets come from; zero if nothing has come
	Carrier        string         // CarrierUDP and the like; "" if nothing has come
	Handshake      time.Time      // the last one; zero if there was none
	Received, Sent uint64         // bytes, with what WireGuard adds
}

// Bounds of what a Session may have.
const (
	openingMost = 128              // TCP handshakes under way, form USERSPACE
	pipesMost   = 2                // pipes; another one ends the oldest
	proveWithin = 15 * time.Second // how long a pipe may go unused
	// greetLate is how long it may go unused before the Gateway begins a handshake: two that
	// are begun at once end both.
	greetLate = 300 * time.Millisecond
	tidyEvery = time.Second
	cutWithin = 2 * time.Second // how long a removed Session's connections may outlive it
	dnsIdle   = 10 * time.Second
)

// Open makes all that it needs, and begins to listen. What comes before Run waits; in form
// KERNEL it is dropped.
func (g *Gateway) Open() error {
	if g.MTU == 0 {
		g.MTU = DefaultMTU
	}
	if g.Memory != "" {
		if err := json.Unmarshal([]byte(g.Memory), &g.known); err != nil {
			return fmt.Errorf("what the gateway before knew: %w", err)
		}
	}
	g.begun = make(chan struct{})
	g.epoch, g.probes = newEpoch(), pace{rate: 20_000}
	g.refresh = make(chan struct{}, 1)
	g.sessions, g.byKey, g.byAddr = map[string]*session{}, map[Key]*session{}, map[netip.Addr]*session{}
	public := g.Key.Public()
	g.public.Store(&public)
	g.plane = &plane{nothing: nothing{g.MTU}, g: g, out: newQueue(g.MTU), over: make(chan struct{})}
	var err error
	g.core, err = g.openCore()
	return err
}

// openCore makes what the form says.
func (g *Gateway) openCore() (core, error) {
	if g.Form == Kernel {
		return g.openKernel()
	}
	open := g.openUserspace
	if g.Form == TUN {
		open = g.openTUN
	}
	var err error
	if g.plane.below, err = open(); err != nil {
		return nil, err
	}
	return g.openInProcess()
}

// Port returns the UDP port that the Gateway listens at.
func (g *Gateway) Port() int { return g.core.port() }

// Run serves until ctx is done, and returns nil when all that it started has ended.
func (g *Gateway) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.life.Lock()
	g.ctx = ctx
	g.running.Store(true)
	g.life.Unlock()
	close(g.begun)
	g.start(g.recall)
	g.Refresh()
	g.keep(ctx)
	g.life.Lock()
	g.running.Store(false)
	g.life.Unlock()
	if l, ok := g.plane.below.(listener); ok {
		l.stop()
	}
	g.mu.RLock()
	sessions := make([]*session, 0, len(g.sessions)+len(g.leaving))
	for _, s := range g.sessions {
		sessions = append(sessions, s)
	}
	for _, l := range g.leaving {
		sessions = append(sessions, l.s)
	}
	g.mu.RUnlock()
	for _, s := range sessions {
		s.cut("DRAINED")
	}
	cancel()
	g.tasks.Wait()
	return nil
}

// Close ends it. It is called after Run has returned.
func (g *Gateway) Close() error {
	g.core.close()
	return nil
}

// start runs a task that Run waits for, and reports whether it did: it does not before
// Run and after its end.
func (g *Gateway) start(task func()) bool {
	g.life.Lock()
	defer g.life.Unlock()
	if !g.running.Load() {
		return false
	}
	g.tasks.Go(task)
	return true
}

// task does something for the name server, of which there may be so many at once, and
// reports whether there was room.
func (s *session) task(g *Gateway, count *atomic.Int32, most int32, do func()) bool {
	done := func() { count.Add(-1) }
	if count.Add(1) <= most && g.start(func() { defer done(); do() }) {
		return true
	}
	done()
	return false
}

// session returns whose address it is, or nil.
func (g *Gateway) session(a netip.Addr) *session {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.byAddr[a]
}

// Put adds a Session, or changes its key or addresses: what was encrypted under the old
// key counts for nothing from then on. Connections that are under way stay.
func (g *Gateway) Put(p Peer) error {
	g.change.Lock()
	defer g.change.Unlock()
	if g.left {
		return nil
	}
	s, old, err := g.enter(p)
	if s == nil || err != nil {
		return err
	}
	// WireGuard waits for packets that are on their way through the plane, which asks
	// for Sessions: g.mu must not be held.
	if !old.IsZero() && old != p.PublicKey {
		err = g.core.remove(old)
	}
	if err = errors.Join(err, g.core.put(p.PublicKey, p.Addresses, g.endpoint(p.PublicKey))); err != nil {
		g.leave(s)
		return fmt.Errorf("Session %s: %w", p.Session, err)
	}
	return nil
}

// enter puts a Session into the tables, and returns it with the key that it had. If there
// is nothing to change it returns nil.
func (g *Gateway) enter(p Peer) (s *session, old Key, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if o := g.byKey[p.PublicKey]; o != nil && o.id != p.Session {
		return nil, Key{}, fmt.Errorf("another Session has the WireGuard key of Session %s", p.Session)
	}
	for _, a := range p.Addresses {
		if o := g.byAddr[a]; o != nil && o.id != p.Session {
			return nil, Key{}, fmt.Errorf("another Session has the address %s of Session %s", a, p.Session)
		}
		if !within(g.Sessions, a) {
			return nil, Key{}, fmt.Errorf("the address %s of Session %s is not among those of Sessions", a, p.Session)
		}
	}
	if s = g.sessions[p.Session]; s == nil {
		s = &session{id: p.Session, waits: relay.Room{Most: queuesMost}}
	} else {
		if s.key == p.PublicKey && slices.Equal(s.addresses, p.Addresses) {
			return nil, Key{}, nil
		}
		old = s.key
		g.forget(s)
	}
	s.key, s.addresses = p.PublicKey, slices.Clone(p.Addresses)
	g.sessions[s.id], g.byKey[s.key] = s, s
	for _, a := range s.addresses {
		g.byAddr[a] = s
	}
	return s, old, nil
}

// forget takes a Session out of the tables. g.mu must be held.
func (g *Gateway) forget(s *session) {
	delete(g.sessions, s.id)
	delete(g.byKey, s.key)
	for _, a := range s.addresses {
		delete(g.byAddr, a)
	}
}

// Remove ends the tunnel of a Session: no packet comes from it or goes to it any more. Its
// connections are left to whoever decides about them for a few seconds, and then reset.
func (g *Gateway) Remove(id string) {
	g.change.Lock()
	defer g.change.Unlock()
	g.mu.RLock()
	s := g.sessions[id]
	g.mu.RUnlock()
	if s != nil {
		g.leave(s)
	}
}

// leave removes a Session. g.change must be held.
func (g *Gateway) leave(s *session) {
	g.mu.Lock()
	key := s.key
	g.forget(s)
	g.leaving = append(g.leaving, leaving{s, time.Now().Add(cutWithin)})
	g.mu.Unlock()
	s.mu.Lock()
	s.gone = true
	s.parts = nil
	pipes := s.pipes
	s.pipes = nil
	s.mu.Unlock()
	for _, p := range pipes {
		p.Close()
	}
	if g.left {
		return
	}
	if err := g.core.remove(key); err != nil {
		g.Log.Error("the tunnel of a Session that is gone cannot be closed", "session", s.id, "error", err)
	}
}

// cut resets whatever a Session has under way.
func (s *session) cut(reason string) {
	s.mu.Lock()
	var conns []resetter
	for c := range s.conns {
		conns = append(conns, c)
	}
	for _, f := range s.flows {
		conns = append(conns, f)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.Reset(reason)
	}
}

// keep keeps everything as it should be, until ctx is done.
func (g *Gateway) keep(ctx context.Context) {
	every := time.NewTicker(tidyEvery)
	defer every.Stop()
	for {
		select {
		case now := <-every.C:
			g.tidy(now)
		case <-g.refresh:
			if l, ok := g.plane.below.(listener); ok {
				l.refresh()
			}
		case <-ctx.Done():
			return
		}
	}
}

// tidy ends what has outlived its time.
func (g *Gateway) tidy(now time.Time) {
	g.mu.Lock()
	var late []*session
	for len(g.leaving) > 0 && !now.Before(g.leaving[0].at) {
		late = append(late, g.leaving[0].s)
		g.leaving = g.leaving[1:]
	}
	sessions := make([]*session, 0, len(g.sessions))
	for _, s := range g.sessions {
		sessions = append(sessions, s)
	}
	g.mu.Unlock()
	for _, s := range late {
		s.cut("SESSION_ENDED")
	}
	for _, s := range sessions {
		for _, f := range s.idle(g.plane, now) {
			f.expire()
		}
	}
}

// idle returns the flows that have been silent for too long, and forgets those whose
// refusal is over, and the parts of what did not come whole.
func (s *session) idle(pl *plane, now time.Time) (idle []*flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts != nil {
		s.parts.Expire(now)
		pl.dropped[dropFragment].Add(int64(s.parts.Dropped()))
	}
	for key, f := range s.flows {
		switch {
		case f.refused && !now.Before(f.until):
			delete(s.flows, key)
		case !f.refused && now.UnixNano()-f.active.Load() >= int64(flowIdle):
			idle = append(idle, f)
		}
	}
	return idle
}

// SetKey gives the Gateway another private key. Peers that know its public key make a new
// handshake; what they have sent under the old keys is still taken until then, and what
// passes in the tunnel stays.
func (g *Gateway) SetKey(k Key) error {
	g.change.Lock()
	defer g.change.Unlock()
	if g.left {
		return nil
	}
	public := k.Public()
	if err := g.core.setKey(k); err != nil {
		return err
	}
	g.public.Store(&public)
	return nil
}

// Attach takes the packets of a carrier of a Session, until ctx is done or the pipe is
// over, which it closes. One over which the Session's peer does not authenticate itself is
// closed after some seconds. It returns nil when another one of the Session took its place.
func (g *Gateway) Attach(ctx context.Context, id string, p tunnel.Pipe) error {
	g.mu.RLock()
	s := g.sessions[id]
	g.mu.RUnlock()
	if s == nil {
		p.Close()
		return fmt.Errorf("Session %s is not connected", id)
	}
	defer p.Close()
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return fmt.Errorf("Session %s is not connected", id)
	}
	s.pipes = append(s.pipes, p)
	if len(s.pipes) > pipesMost {
		s.pipes[0].Close()
		s.pipes = slices.Delete(s.pipes, 0, 1)
	}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { p.Close() })
	defer stop()
	err := g.core.carry(p, func(e *pipe) { g.greet(s, e) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.pipes, p); i >= 0 {
		s.pipes = slices.Delete(s.pipes, i, i+1)
		return err
	}
	return nil
}

// greet begins a handshake with a Session's peer by a pipe, unless it has made one: what it
// knows of the Gateway may be from before that was started, and WireGuard keeps it from
// another handshake for five seconds.
func (g *Gateway) greet(s *session, e *pipe) {
	g.change.Lock()
	defer g.change.Unlock()
	g.mu.RLock()
	key, there := s.key, g.sessions[s.id] == s
	g.mu.RUnlock()
	if there && !g.left && !e.proven.Load() {
		g.core.greet(key, e)
	}
}

// Peers returns how the Sessions are connected.
func (g *Gateway) Peers() []PeerStatus {
	peers, err := g.core.peers()
	if err != nil {
		return nil
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	all := make([]PeerStatus, 0, len(peers))
	for _, p := range peers {
		s := g.byKey[p.key]
		if s == nil {
			continue
		}
		all = append(all, PeerStatus{Session: s.id, Endpoint: p.at, Carrier: p.carrier, Handshake: p.handshake, Received: p.received, Sent: p.sent})
	}
	return all
}

// Dropped returns how many packets of clients were dropped, by the reason.
func (g *Gateway) Dropped() map[string]int {
	var all [drops]int
	all[dropSource], all[dropQueue] = g.core.dropped()
	m := map[string]int{}
	for i, name := range dropNames() {
		if n := all[i] + int(g.plane.dropped[i].Load()); n > 0 {
			m[name] = n
		}
	}
	return m
}

// Refresh tells that Ports may have changed. Run looks at once.
func (g *Gateway) Refresh() {
	select {
	case g.refresh <- struct{}{}:
	default:
	}
}

// probed answers a probe.
func (g *Gateway) probed(b []byte) []byte {
	if !g.probes.allow(time.Now()) {
		return nil
	}
	key := *g.public.Load()
	n, _, ok := readProbe(probeType, b, key)
	if !ok {
		return nil
	}
	return makeProbe(answerType, n, g.epoch, key)
}

// arrival is what a connection or a flow becomes.
func (g *Gateway) arrival(c net.Conn, service string, s *session, from, to netip.AddrPort) api.Arrival {
	return api.Arrival{
		Conn:     c,
		Service:  service,
		Evidence: api.Evidence{Kind: api.EvidenceTunnel, Data: []byte(s.id)},
		Facts:    api.Facts{IP: from.Addr().String(), Port: int(from.Port()), Listener: to.String(), Tunnel: Name},
	}
}

// accepted is given a TCP connection that a client has opened: c, which is to be the conn
// of an Arrival, and the part of it that its Session knows.
func (g *Gateway) accepted(c net.Conn, r *registered, from, to netip.AddrPort) {
	s := g.session(from.Addr())
	if s == nil {
		r.Conn.Reset("no Session")
		return
	}
	asks, service := slices.Contains(g.DNS, to.Addr()), ""
	if !asks {
		name, ok := g.Find(to, "tcp")
		if !ok {
			r.Conn.Reset("no Service")
			return
		}
		service = api.ServiceName(name)
	}
	r.s, r.teller = s, teller{g: g, session: s.id, service: service}
	switch {
	case !s.register(r):
		r.Conn.Reset("no Session")
	case !asks:
		g.Handler.Arrive(g.arrival(c, service, s, from, to))
	case !s.task(g, &s.askers, askersMost, func() { g.answerStream(r) }):
		r.Reset("too many connections to the name server")
	}
}

// answerStream answers the questions of a TCP connection, one after the other (RFC 7766).
func (g *Gateway) answerStream(c *registered) {
	defer c.Close()
	stop := context.AfterFunc(g.ctx, func() { c.Reset("DRAINED") })
	defer stop()
	for {
		c.SetDeadline(time.Now().Add(dnsIdle))
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		a := g.Answer(g.ctx, c.s.id, query, true)
		if a == nil || len(a) > 65535 {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
			return
		}
	}
}
