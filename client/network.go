package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"cardea/api"
	"cardea/netif"
	tunneltls "cardea/tunnel/tls"
	"cardea/tunnel/wireguard"
)

// A Network is the place of a home's Session in the private network, for as long as Run
// runs. With Options.Interface unmodified programs of this machine reach Services; else it
// is what published ports go through (see [Network.Dialer]), and what serving needs.
//
// Run keeps one call to the cluster open, which says what there is: the Session's
// addresses, the gateways, what is to be served. That call may break off, the gateways
// may restart, change their keys or come and go, the machine may sleep or change its
// network: all that is healed, and connections last as far as the addresses do.
//
// The fields are all that it needs; set them before Run.
type Network struct {
	Client  *Client
	Options NetworkOptions
	Log     *slog.Logger

	key   wireguard.Key // of this device; zero if it needs none
	roads quicRoads
	serve *Server        // nil: it serves nothing
	work  sync.WaitGroup // what goes on beside an inside
	// within is how long it may take until it is up; 0 is upTime.
	within time.Duration

	once   sync.Once
	up     chan struct{}
	place  chan struct{} // closed when there is a state
	closed chan struct{} // closed when Run has ended

	mu       sync.Mutex
	session  string // whose place it is
	address  string // of the API, as it was last called
	state    *api.NetworkState
	inside   *inside // nil if there is none
	carriers map[string]*carrying
	leads    map[netip.Prefix]string // the gateway to which a network is left, of those that lead to it
	unproved string                  // why nothing is known to get through yet, if that was tried
	refusals []api.NetworkRefusal    // the last few
	since    time.Time               // of the call that is open; zero if there is none
	problem  string                  // why there is none
	breakOff context.CancelFunc      // of the call that is open
}

// NetworkOptions are what is asked of a Network.
type NetworkOptions struct {
	// Interface is the name of the network interface that is to be made, as for
	// netif.Config; "" is none.
	Interface string `json:"interface,omitempty"`
	NoDNS     bool   `json:"noDNS,omitempty"` // leave the settings of names alone
	Tunnel    Tunnel `json:"tunnel,omitempty"`
	// Serve are the Services that are to be served from here; ServeAll is all that name
	// the User. ServeAnyURL agrees to whatever URL they come to have.
	Serve       []string `json:"serve,omitempty"`
	ServeAll    bool     `json:"serveAll,omitempty"`
	ServeAnyURL bool     `json:"serveAnyURL,omitempty"`
}

// IsNeeded reports whether there has to be a Network: published ports over TLS need none.
func (o *NetworkOptions) IsNeeded() bool {
	return o.Interface != "" || o.serves() || o.Tunnel == TunnelWireGuard || o.Tunnel == TunnelQUIC
}

func (o *NetworkOptions) serves() bool { return o.ServeAll || len(o.Serve) > 0 }

// packets reports whether there are packets, and so a WireGuard.
func (o *NetworkOptions) packets() bool { return o.Interface != "" || o.Tunnel == TunnelWireGuard }

// same reports whether a Network with these options does what p asks for.
func (o *NetworkOptions) same(p NetworkOptions) bool {
	return o.Interface == p.Interface && o.NoDNS == p.NoDNS && o.Tunnel == p.Tunnel &&
		slices.Equal(o.Serve, p.Serve) && o.ServeAll == p.ServeAll && o.ServeAnyURL == p.ServeAnyURL
}

// with returns options that do what both ask for; ok is false if there are none.
func (o *NetworkOptions) with(p NetworkOptions) (both NetworkOptions, ok bool) {
	oneOf := func(a, b, none string) (string, bool) {
		if a == none {
			a = b
		}
		return a, a == b || b == none
	}
	both = NetworkOptions{NoDNS: o.NoDNS || p.NoDNS, ServeAll: o.ServeAll || p.ServeAll, ServeAnyURL: o.ServeAnyURL || p.ServeAnyURL}
	var tunnel string
	if both.Interface, ok = oneOf(o.Interface, p.Interface, ""); !ok {
		return both, false
	}
	if tunnel, ok = oneOf(string(cmp.Or(o.Tunnel, TunnelAuto)), string(cmp.Or(p.Tunnel, TunnelAuto)), string(TunnelAuto)); !ok {
		return both, false
	}
	if both.Tunnel = Tunnel(tunnel); !both.ServeAll {
		both.Serve = slices.Compact(slices.Sorted(slices.Values(slices.Concat(o.Serve, p.Serve))))
	}
	return both, true
}

// Words returns the options as flags of connect.
func (o *NetworkOptions) Words() string {
	var all []string
	add := func(is bool, words string) {
		if is {
			all = append(all, words)
		}
	}
	add(o.Interface != "", "--interface "+o.Interface)
	add(o.NoDNS, "--no-dns")
	add(o.Tunnel != "" && o.Tunnel != TunnelAuto, "--tunnel "+string(o.Tunnel))
	for _, s := range o.Serve {
		add(true, "--serve "+s)
	}
	add(o.ServeAll, "--serve-all")
	add(o.ServeAnyURL, "--serve-any-url")
	return strings.Join(all, " ")
}

// NetworkStatus is how it stands with a Network.
type NetworkStatus struct {
	Session string `json:"session"`
	// Form is INTERFACE, STACK (WireGuard within the process, for published ports) or
	// STREAMS.
	Form      string          `json:"form"`
	Tunnel    Tunnel          `json:"tunnel"` // what was asked for
	Interface string          `json:"interface,omitempty"`
	Addresses api.Addresses   `json:"addresses,omitzero"`
	Services  []string        `json:"services,omitempty"` // what goes through the tunnel
	DNS       string          `json:"dns,omitempty"`      // how names are set on this machine, or why not
	Servers   []string        `json:"dnsServers,omitempty"`
	Gateways  []GatewayStatus `json:"gateways"`
	Serves    []ServeStatus   `json:"serves,omitempty"`
	// Refusals are the last connections that were not let in, the latest last.
	Refusals []api.NetworkRefusal `json:"refusals,omitempty"`
	// Since is since when the cluster is being listened to; it is zero while it cannot be
	// reached, and Problem says why. What is connected goes on meanwhile.
	Since   time.Time `json:"since,omitzero"`
	Problem string    `json:"problem,omitempty"`
}

// The forms of a Network.
const (
	FormInterface = "INTERFACE"
	FormStack     = "STACK"
	FormStreams   = "STREAMS"
)

// GatewayStatus is how a gateway is reached.
type GatewayStatus struct {
	Name    string `json:"name"`
	Region  string `json:"region,omitempty"`
	Address string `json:"address,omitempty"` // outer, of what carries now
	// Transport is "" while the gateway cannot be reached; Why says why it is what it is.
	Transport           Tunnel    `json:"transport,omitempty"`
	Why                 string    `json:"why,omitempty"`
	Since               time.Time `json:"since,omitzero"`
	LatencyMilliseconds float64   `json:"latencyMilliseconds,omitempty"`
	HandshakeAt         time.Time `json:"handshakeAt,omitzero"` // the last one of WireGuard
	ReceivedBytes       int64     `json:"receivedBytes"`
	SentBytes           int64     `json:"sentBytes"`
}

// An EndedError says that the place is gone for good, and why.
type EndedError struct{ Reason *api.Error }

// Error implements error.
func (e *EndedError) Error() string { return "the private network has ended: " + e.Reason.Error() }

// Unwrap returns the reason.
func (e *EndedError) Unwrap() error { return e.Reason }

const (
	// silence is how long the cluster may say nothing: it says ALIVE each 10 seconds.
	silence = 25 * time.Second
	// Between two attempts to call the cluster.
	firstAgain, lastAgain = 100 * time.Millisecond, 2 * time.Second
	// upTime bounds the wait until something has come back from a gateway, and proveAgain
	// is the time between two attempts.
	upTime     = 12 * time.Second
	proveAgain = 100 * time.Millisecond
	// byeTime bounds the call that gives the place up.
	byeTime = 2 * time.Second
	// keepRefusals is how many are shown.
	keepRefusals = 8
	// tickEvery is how often it is looked whether time has jumped, as after sleep, and
	// whether the certificate is to be renewed.
	tickEvery = time.Second
	// jump is by how much the clock of the wall is ahead of ours after sleep.
	jump = 5 * time.Second
)

func (n *Network) init() {
	n.once.Do(func() {
		n.up, n.place, n.closed = make(chan struct{}), make(chan struct{}), make(chan struct{})
		n.carriers = map[string]*carrying{}
	})
}

// Run is connected until ctx is done, and returns nil then, or until the place is gone,
// which an [EndedError] says. That it cannot begin is an error that says what to do: what
// this machine lacks is found out before the place is taken, which another may have, and
// names are asked at the cluster only when something has come back from a gateway. If
// nothing does within [upTime], that is an error, too. When Run returns, all that it has
// changed on this machine is as it was before.
func (n *Network) Run(ctx context.Context) (err error) {
	n.init()
	defer close(n.closed)
	l, err := n.Client.current(ctx)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.session = l.Session
	n.mu.Unlock()
	if err := n.check(ctx, l); err != nil {
		return err
	}
	if n.Options.packets() {
		n.key = wireguard.NewKey()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer n.work.Wait()
	defer cancel(nil)
	all.Go(func() { n.tick(ctx) })
	all.Go(func() { n.expect(ctx, cancel) })
	if n.Options.serves() {
		n.serve = &Server{AnyURL: n.Options.ServeAnyURL, Log: n.Log}
		all.Go(func() { n.serve.Run(ctx) }) // never fails
		all.Go(func() { n.takeBack(ctx) })
	}
	err = n.listen(ctx)
	if late, ok := errors.AsType[*api.Error](context.Cause(ctx)); ok {
		err = late
	}
	n.leave(context.WithoutCancel(ctx), err)
	return err
}

// check reports why this machine cannot have the interface.
func (n *Network) check(ctx context.Context, l *login) error {
	if n.Options.Interface == "" {
		return nil
	}
	var s api.NetworkState
	if err := l.api.Do(ctx, http.MethodGet, "/api/connect", nil, &s); err != nil {
		return err
	}
	c, err := n.interfaceConfig(&s)
	if err != nil {
		return err
	}
	if err := netif.Check(c); err != nil {
		return noInterface(err)
	}
	return nil
}

// expect ends a Network that is not up in time: whoever began it would take it for one.
func (n *Network) expect(ctx context.Context, end context.CancelCauseFunc) {
	select {
	case <-n.place:
	case <-ctx.Done():
		return
	}
	late := time.NewTimer(cmp.Or(n.within, upTime))
	defer late.Stop()
	select {
	case <-n.up:
	case <-ctx.Done():
	case <-late.C:
		end(n.notUp())
	}
}

// notUp says why the Network is not up.
func (n *Network) notUp() *api.Error {
	s := n.Status()
	n.mu.Lock()
	unproved, state := n.unproved, n.state
	n.mu.Unlock()
	var all, ports []string
	for _, g := range s.Gateways {
		switch {
		case s.Form == FormStreams:
			all = append(all, fmt.Sprintf("gateway %s: %s", g.Name, unproved))
		case g.Transport == "":
			all = append(all, fmt.Sprintf("gateway %s cannot be reached: %s", g.Name, cmp.Or(g.Why, "it does not answer")))
		default:
			all = append(all, fmt.Sprintf("gateway %s is reached by %s, and nothing comes back through the tunnel: %s", g.Name, g.Transport.Words(), unproved))
		}
	}
	for _, g := range state.Gateways {
		port := g.WireGuardPort
		if s.Tunnel == TunnelQUIC {
			port = g.QUICPort
		}
		if port != 0 {
			ports = append(ports, fmt.Sprintf("%d/udp", port))
		}
	}
	if len(all) == 0 {
		all = []string{"the cluster has no gateway now"}
	}
	e := api.Errorf(api.CodeUnavailable, "not connected: %s", strings.Join(all, "; "))
	e.Hint = "cardea doctor looks at the way there"
	if s.Tunnel == TunnelWireGuard || s.Tunnel == TunnelQUIC {
		e.Hint = fmt.Sprintf("leave out --tunnel %s: what does not pass by UDP goes by TLS then", s.Tunnel)
		if len(ports) > 0 {
			e.Hint += "; or open " + strings.Join(ports, ", ") + " in the firewalls on the way"
		}
	}
	return e
}

// Up returns a channel that is closed when the Network is there: its interface, and a
// gateway from which something has come back.
func (n *Network) Up() <-chan struct{} {
	n.init()
	return n.up
}

// listen keeps a call to the cluster open, and does as it says.
func (n *Network) listen(ctx context.Context) error {
	again, begun, told := firstAgain, false, false
	for {
		said, err := n.call(ctx, begun)
		if ctx.Err() != nil {
			return nil
		}
		if said {
			begun, told, again = true, false, firstAgain
		}
		if !begun || isFinal(err) {
			return err
		}
		err = cmp.Or(err, errors.New("the cluster ended the call"))
		n.mu.Lock()
		n.since, n.problem = time.Time{}, err.Error()
		n.mu.Unlock()
		if !told {
			n.Log.Warn("the cluster cannot be listened to; what is connected goes on, and it is tried again", "error", err)
			told = true
		}
		pause(ctx, again)
		again = min(2*again, lastAgain)
	}
}

// isFinal reports whether it is no use to call again.
func isFinal(err error) bool {
	if _, ok := errors.AsType[*EndedError](err); ok {
		return true
	}
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Code != api.CodeUnavailable && e.Code != api.CodeInternal
}

// call asks for the place, and does as the cluster says until the call breaks off. It
// reports whether the cluster has said anything.
func (n *Network) call(ctx context.Context, again bool) (said bool, err error) {
	l, err := n.Client.current(ctx)
	if err != nil {
		return false, err
	}
	if l.Session != n.session {
		return false, &EndedError{api.Errorf(api.CodeConflict, "%s is logged in as another Session, %s, now; it was %s", l.home, l.Session, n.session)}
	}
	in := api.ConnectRequest{Serve: n.Options.Serve, ServeAll: n.Options.ServeAll}
	if n.Options.packets() {
		in.PublicKey = n.key.Public().Text()
	}
	call, cancel := context.WithCancel(ctx)
	defer cancel()
	n.mu.Lock()
	n.breakOff, n.address = cancel, l.Address
	n.mu.Unlock()
	silent := time.AfterFunc(silence, cancel)
	defer silent.Stop()
	err = l.api.Stream(call, http.MethodPost, "/api/connect", in, func(line json.RawMessage) error {
		silent.Reset(silence)
		var e api.ConnectEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("the cluster sent an event that is not understood (is it of another version?): %w", err)
		}
		if err := n.heard(ctx, &e); err != nil || said {
			return err
		}
		said = true
		n.hears(again)
		return nil
	})
	if call.Err() != nil && ctx.Err() == nil {
		err = errors.New("the cluster has said nothing for a while")
	}
	return said, err
}

// hears notes that the cluster is listened to, and whether that is so again.
func (n *Network) hears(again bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.since, n.problem = time.Now().UTC(), ""
	if !again {
		return
	}
	n.Log.Info("the cluster is listened to again")
	if in := n.inside; in != nil {
		in.work.Go(func() { n.heal(in) })
	}
}

// heard does what an event says.
func (n *Network) heard(ctx context.Context, e *api.ConnectEvent) error {
	switch e.Type {
	case api.ConnectState:
		if e.State == nil {
			return errors.New("the cluster sent a STATE without a state")
		}
		return n.apply(ctx, e.State)
	case api.ConnectRefused:
		if e.Refused != nil {
			n.refused(*e.Refused)
		}
	case api.ConnectEnded:
		reason := e.Ended
		if reason == nil {
			reason = api.Errorf(api.CodeUnavailable, "the cluster does not say why")
		}
		return &EndedError{reason}
	}
	return nil // also what a later version says
}

// refused notes that a connection was not let in.
func (n *Network) refused(r api.NetworkRefusal) {
	r.Words = refusalWords(r.Words)
	n.mu.Lock()
	if n.refusals = append(n.refusals, r); len(n.refusals) > keepRefusals {
		n.refusals = slices.Delete(n.refusals, 0, 1)
	}
	n.mu.Unlock()
	n.Log.Warn("a connection was refused or cut: "+r.Words, "service", r.Service, "decision", r.DecisionID)
}

// apply makes it so that the Network is what a state says.
func (n *Network) apply(ctx context.Context, s *api.NetworkState) error {
	n.mu.Lock()
	before, in := n.state, n.inside
	n.mu.Unlock()
	isNew := n.Options.packets() && (in == nil || !sameNetwork(before, s))
	if isNew {
		if in != nil {
			n.Log.Info("the address plan has changed: the tunnel is made anew")
			n.closeInside()
		}
		made, err := n.openInside(ctx, s)
		if err != nil {
			return err // if it is not the first time the call begins again, and so does this
		}
		in = made
	}
	n.mu.Lock()
	n.state, n.inside = s, in
	n.mu.Unlock()
	if n.serve != nil {
		n.serve.Set(s.Serves)
	}
	n.roads.keep(s.Gateways)
	if in != nil {
		n.setGateways(ctx, in, s)
	}
	if before == nil {
		close(n.place)
	}
	switch {
	case isNew:
		in.work.Go(func() {
			n.prove(in.ctx, func(ctx context.Context) error { return n.carries(ctx, in) }, func() { n.openDNS(ctx, in, s) })
		})
	case before == nil:
		n.work.Go(func() { n.prove(ctx, n.streams, func() {}) })
	}
	return nil
}

// sameNetwork reports whether two states are of the same interface.
func sameNetwork(a, b *api.NetworkState) bool {
	return a != nil && a.Addresses == b.Addresses && a.MTU == b.MTU && a.Domain == b.Domain &&
		slices.Equal(a.Services, b.Services) && slices.Equal(a.DNS, b.DNS)
}

// prove tries until something comes back from a gateway. Then it does what is to be done
// then, and the Network is up.
func (n *Network) prove(ctx context.Context, try func(context.Context) error, then func()) {
	for ctx.Err() == nil {
		err := try(ctx)
		if err == nil {
			then()
			n.isUp()
			return
		}
		n.mu.Lock()
		n.unproved = err.Error()
		n.mu.Unlock()
		pause(ctx, proveAgain)
	}
}

// carries reports why nothing goes through the tunnel, nil if it does: all ways to gateways
// were tried, one of them is good, and what is asked through the tunnel is answered.
func (n *Network) carries(ctx context.Context, in *inside) error {
	n.mu.Lock()
	all := slices.Collect(maps.Values(n.carriers))
	n.mu.Unlock()
	good := false
	for _, c := range all {
		select {
		case <-c.settled:
		case <-ctx.Done():
			return ctx.Err()
		}
		good = good || c.works()
	}
	if !good {
		return errors.New("no gateway can be reached")
	}
	if in.echo == nil {
		return nil
	}
	brief, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if _, err := in.echo(brief); err != nil {
		return errors.New("the cluster's DNS, which is asked, does not answer")
	}
	return nil
}

// streams reports why nothing goes by streams, nil if something does. Over TLS it is known
// already: the cluster was called.
func (n *Network) streams(ctx context.Context) error {
	if n.Options.Tunnel != TunnelQUIC {
		return nil
	}
	brief, cancel := context.WithTimeout(ctx, pipeTime)
	defer cancel()
	d, err := n.quicTo(brief, "")
	if err == nil {
		err = d.Connect(brief)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("QUIC did not answer within %v", pipeTime)
	}
	return err
}

func (n *Network) isUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.up:
	default:
		close(n.up)
	}
}

// tick looks now and then whether time has jumped, and keeps the certificate fresh.
func (n *Network) tick(ctx context.Context) {
	every := time.NewTicker(tickEvery)
	defer every.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		now := time.Now()
		slept := now.Round(0).Sub(last.Round(0)) - now.Sub(last)
		if last = now; slept > jump {
			n.Log.Info("this machine has slept: looking anew how the gateways are reached", "for", slept.Round(time.Second))
			n.mu.Lock()
			if n.breakOff != nil {
				n.breakOff() // it may be dead, and nobody has noticed
			}
			n.mu.Unlock()
			n.renew()
		}
		if l, err := n.Client.current(ctx); err == nil && l.Session == n.session {
			l.fresh(ctx) // tells by itself what goes wrong
		}
		n.keepDNS()
	}
}

// takeBack takes the connections to what is served, also after the cluster's CA, or what
// else the home holds of it, has changed.
func (n *Network) takeBack(ctx context.Context) {
	for ctx.Err() == nil {
		l, err := n.Client.current(ctx)
		if err != nil {
			pause(ctx, lastAgain)
			continue
		}
		of, cancel := context.WithCancel(ctx)
		var done sync.WaitGroup
		done.Go(func() {
			defer cancel()
			for of.Err() == nil {
				pause(of, lastAgain)
				if now, err := n.Client.current(of); err == nil && now != l {
					return
				}
			}
		})
		back := &tunneltls.Listener{Dialer: l.dialer, Handle: n.serve.Handle, Log: n.Log}
		if err := back.Run(of); err != nil {
			n.Log.Warn("what is served cannot be reached by the cluster; it is tried again", "error", err)
			pause(of, lastAgain)
		}
		cancel()
		done.Wait()
	}
}

// leave gives up the place and ends what was begun for it.
func (n *Network) leave(ctx context.Context, why error) {
	n.mu.Lock()
	in, had, session := n.inside, n.state != nil, n.session
	n.mu.Unlock()
	if in != nil {
		in.reset(n.Log) // while there is still a way for the resets
	}
	if _, ended := errors.AsType[*EndedError](why); had && !ended {
		bye, cancel := context.WithTimeout(ctx, byeTime)
		defer cancel()
		if l, err := n.Client.current(bye); err == nil && l.Session == session {
			if err := l.api.Do(bye, http.MethodPost, "/api/disconnect", nil, nil); err != nil {
				n.Log.Info("the cluster was not told of the end", "error", err)
			}
		}
	}
	n.closeInside()
	n.roads.close()
}

// Status returns how it stands.
func (n *Network) Status() NetworkStatus {
	n.init()
	n.mu.Lock()
	defer n.mu.Unlock()
	s := NetworkStatus{Session: n.session, Form: FormStreams, Tunnel: cmp.Or(n.Options.Tunnel, TunnelAuto), Since: n.since, Problem: n.problem, Refusals: slices.Clone(n.refusals), Gateways: []GatewayStatus{}}
	if n.Options.packets() {
		s.Form = FormStack
	}
	if n.serve != nil {
		s.Serves = n.serve.Status()
	}
	if n.state == nil {
		return s
	}
	if n.inside != nil {
		s.Addresses, s.Services = n.state.Addresses, n.state.Services
		n.inside.status(&s)
	}
	for _, g := range n.state.Gateways {
		x := GatewayStatus{Name: g.Name, Region: g.Region}
		if c := n.carriers[g.Name]; c != nil {
			x.Address = c.endpoint()
			c.status(&x)
			n.inside.link(&x)
		} else if s.Form == FormStreams && s.Tunnel == TunnelQUIC {
			n.roads.status(&x)
		} else if s.Form == FormStreams {
			tlsStreams(&x, n.address, s.Tunnel)
		}
		s.Gateways = append(s.Gateways, x)
	}
	return s
}
