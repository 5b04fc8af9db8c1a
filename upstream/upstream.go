// Package upstream reaches the upstreams of Services. It is the only room that
// dials them, and the one through which whatever else the cluster fetches is
// fetched (see [Dialer.DialContext]).
//
// Whoever may write a Service chooses where the cluster connects to. So that
// nobody makes of this a way around the cluster's own policies, some addresses
// are refused (see [Dialer]). What is checked is the address that is about to be
// connected to, each time, after names were resolved: a name that changes its
// address between a check and its use gains nothing.
//
// Where a config says so, TLS is spoken, and an upstream that does not prove who
// it is gets nothing; unless the config says that this is to be reported only.
//
// Names are resolved here too: see resolver.
package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"cardea/api"
	"cardea/secret"
)

const (
	// DefaultTimeout is how long a dial may take if nothing else is said.
	DefaultTimeout = 10 * time.Second
	// fairPart is the time that one of several endpoints has at least: this, or a
	// quarter of all.
	fairPart = time.Second
	// maxPlaces is the number of configs of which something is remembered.
	maxPlaces = 1024
)

// A Dialer connects to upstreams. Its fields must not change once it is in use;
// what the functions return may. It may be used from any number of goroutines.
//
// It refuses, whatever the name and the spelling (IPv4 within IPv6 included):
// unspecified, broadcast and multicast addresses, link-local and metadata
// addresses, loopback unless Loopback is set, and the cluster's own listeners.
// Allow lifts this for what it lists, with two limits: an own listener has to be
// listed by its one address, so that allowing loopback as a whole opens no way
// back in; and nothing lifts it for unspecified addresses, which every system
// reads as it likes. The names of cloud metadata are refused too, unless Hosts
// has them.
type Dialer struct {
	// Hosts returns ClusterConfig.spec.dns.hosts: addresses of names, which
	// precede those of DNS.
	Hosts func() map[string][]string
	// Allow returns ClusterConfig.spec.upstream.allow.
	Allow func() []netip.Prefix
	// Loopback allows 127.0.0.0/8 and ::1: for clusters that listen nowhere else.
	Loopback bool
	// Own returns the addresses that this cluster listens on. An unspecified
	// address is every address of this machine.
	Own func() []netip.AddrPort
	// Certificate returns the client certificate that a Secret holds, for a
	// Service (its full name) to show to a host, if it may be used for that. It is
	// asked before each connection. Its error is for the log.
	Certificate func(ctx context.Context, secret, service, host string) (*tls.Certificate, error)
	// Material returns what a Secret or files hold that a foreign Object names, for it
	// (KIND/NAMESPACE/NAME) to use with a host. It is asked before each connection. Its
	// error is for the log.
	Material func(ctx context.Context, m *api.Material, service, host string) (*secret.Material, error)
	// ForbidInsecure returns ClusterConfig.spec.upstream.forbidInsecureSkipVerify.
	ForbidInsecure func() bool
	// RequireVerification tells whether ClusterConfig.spec.routing.upstreamVerification
	// is REQUIRE, so that no upstream's certificate is merely reported; nil is no.
	RequireVerification func() bool
	// Timeout bounds a dial whose config says nothing, resolution and TLS
	// included; 0 is DefaultTimeout.
	Timeout time.Duration
	// Log hears of addresses that were refused, and of upstreams that are not
	// verified.
	Log *slog.Logger

	warnings warnings
	names    resolver
	figures  figures
	verified conditions
	reached  conditions

	mu     sync.Mutex
	places map[placeKey]*place
	forgot int // how many of places were forgotten

	// What tests replace.
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	connect func(ctx context.Context, at netip.AddrPort) (net.Conn, error)
	locals  func() ([]net.Addr, error)
}

// A placeKey names a config.
type placeKey struct{ service, config string }

// A place is what is remembered of a config.
type place struct {
	mu     sync.Mutex
	turns  int             // of its endpoints
	spread map[turnKey]int // turns of the addresses of its names
	first  int             // with which those begin
	tls    *tls.Config
	from   ingredients // what tls was made of
	made   [32]byte    // the same, in a hash
}

// place returns what is remembered of a config. Where there are too many, any of
// them is forgotten: that costs a handshake, and the turns of its addresses.
func (d *Dialer) place(service, config string) *place {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := placeKey{service, config}
	p := d.places[k]
	if p != nil {
		return p
	}
	if d.places == nil {
		d.places = map[placeKey]*place{}
	}
	for other := range d.places {
		if len(d.places) < maxPlaces {
			break
		}
		delete(d.places, other)
		d.forgot++
	}
	p = &place{first: d.forgot} // not always the same: it may be forgotten again and again
	d.places[k] = p
	return p
}

// turn returns endpoints in the order in which they are tried: each time they begin
// with the next.
func (p *place) turn(ends []api.Endpoint) []endpoint {
	p.mu.Lock()
	at := p.turns % len(ends)
	p.turns = at + 1
	p.mu.Unlock()
	list := make([]endpoint, len(ends))
	for i := range ends {
		e := ends[(at+i)%len(ends)]
		list[i] = endpoint{Endpoint: e, name: e.Host}
	}
	return list
}

// Dial connects to a destination as its Config says, which has what it takes from
// its parents. Endpoints take turns, as the addresses of a name do, and the next one
// is tried when one fails. An endpoint whose host begins with "_" is a name of SRV
// records (RFC 2782), which stand for as many endpoints in its place. A failure is an
// [*Error]. What comes of it is remembered: see [Dialer.Reachable].
//
// The connection is a *net.TCPConn with keep-alive or, with TLS, a stream that can
// be half-closed and reset as that can: see package relay.
func (d *Dialer) Dial(ctx context.Context, to api.Destination) (net.Conn, api.DialReport, error) {
	conn, report, failure := d.connectTo(ctx, to)
	if failure == nil {
		d.reached.set(to.Object, api.ConditionUpstreamReachable, true, "Connected", "", time.Now())
		return conn, report, nil
	}
	if ctx.Err() == nil { // that the client has gone says nothing of the upstream
		d.reached.set(to.Object, api.ConditionUpstreamReachable, false, failure.Reason, failure.Words, time.Now())
	}
	return nil, report, failure
}

// connectTo does the work of Dial.
func (d *Dialer) connectTo(ctx context.Context, to api.Destination) (net.Conn, api.DialReport, *Error) {
	var report api.DialReport
	ends, err := to.Config.Upstream.Endpoints()
	if err != nil {
		return nil, report, &Error{Reason: DialFailed, Words: "spec.config.upstream.url " + err.Error(), Err: err}
	}
	timeout := to.Config.Upstream.ConnectTimeout.Or(cmp.Or(d.Timeout, DefaultTimeout))
	dialling, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	t := target{Destination: to, place: d.place(to.Service, to.Config.Name), caller: ctx}
	var failed []*Error
	queue := t.place.turn(ends)
	for all := len(queue); ; {
		t.end, queue = queue[0], queue[1:]
		part, within, done := share(dialling, timeout, len(queue)+1)
		var conn net.Conn
		var failure *Error
		if t.end.isSRV() {
			var targets []endpoint
			if targets, failure = d.targets(part, t, within); failure == nil {
				queue, all = append(targets, queue...), all-1+len(targets)
			}
		} else {
			conn, failure = d.try(part, t, within, &report)
			if failure == nil || ctx.Err() == nil { // that the client has gone says nothing of an endpoint
				d.figures.count(to.Object, t.end.Address(), len(failed) > 0, failure)
			}
		}
		done()
		switch {
		case conn != nil:
			report.Retries = len(failed)
			return conn, report, nil
		case failure == nil:
			continue
		}
		if failed = append(failed, failure); len(queue) == 0 || dialling.Err() != nil || left(dialling) < time.Millisecond {
			report.Retries = len(failed) - 1
			return nil, report, together(failed, all)
		}
	}
}

// A target is an endpoint and all that says how to reach it.
type target struct {
	api.Destination
	end    endpoint
	place  *place
	caller context.Context // of whoever asked, without the dial's own time limit
}

// isForeign tells whether the target is one of a foreign Object: words name other
// fields then.
func (t *target) isForeign() bool { return t.Object.Group == api.GroupAmbassador }

// fields returns those that words name.
func (t *target) fields() fields { return fieldsOf(t.isForeign()) }

// left returns the time until the deadline of ctx.
func left(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	return time.Until(deadline)
}

// share returns the part of ctx's time that the first of so many endpoints has, and
// how much that is. ctx ends after timeout, counted from when the first of all was
// tried.
func share(ctx context.Context, timeout time.Duration, endpoints int) (context.Context, time.Duration, context.CancelFunc) {
	if endpoints == 1 {
		return ctx, timeout, func() {}
	}
	rest := left(ctx)
	part := min(rest, max(rest/time.Duration(endpoints), min(fairPart, timeout/4))).Round(time.Millisecond)
	ctx, cancel := context.WithTimeout(ctx, part)
	return ctx, part, cancel
}

// try connects to an endpoint. ctx ends after timeout.
func (d *Dialer) try(ctx context.Context, t target, timeout time.Duration, report *api.DialReport) (net.Conn, *Error) {
	var s *session
	if t.end.TLS || t.Config.TLS != nil || t.Config.ClientCertificate != nil {
		var err error
		if s, err = d.session(ctx, t); err != nil {
			return nil, &Error{Reason: UpstreamTLS, Words: t.end.Address() + ": " + err.Error(), Err: err}
		}
	}
	conn, err := d.dial(ctx, t.place, t.end.Host, uint16(t.end.Port), t.Config.Upstream.Families)
	if err != nil {
		return nil, explain(t.caller, t.end.Address(), t.fields(), timeout, err)
	}
	if err := preface(ctx, conn, t); err != nil {
		conn.Close()
		return nil, explainPreface(t.caller, t.end.Address(), timeout, err)
	}
	if s == nil {
		return conn, nil
	}
	secure, err := s.handshake(ctx, conn)
	if s.verdict != nil {
		d.verified.set(t.Object, api.ConditionUpstreamVerified, s.verdict.verified, s.verdict.reason(), s.words(), time.Now())
	}
	if err != nil {
		return nil, s.explain(t.caller, timeout, err)
	}
	report.Verified, report.Words = &s.verdict.verified, s.words()
	return secure, nil
}

// DialContext connects to HOST:PORT, as net.Dialer does, to any address that an
// upstream may have: for whatever else the cluster fetches from where its
// configuration says. network is tcp. A failure is an [*Error].
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &Error{Reason: DialFailed, Words: fmt.Sprintf("%.300q is not HOST:PORT", address), Err: err}
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 || network != "tcp" {
		return nil, &Error{Reason: DialFailed, Words: fmt.Sprintf("%.300q (%.20s): the port must be from 1 to 65535, over tcp", address, network), Err: err}
	}
	timeout := cmp.Or(d.Timeout, DefaultTimeout)
	dialling, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := d.dial(dialling, d.place("", address), host, uint16(port), nil)
	if err != nil {
		return nil, explain(ctx, address, fieldsOf(false), timeout, err)
	}
	return conn, nil
}
