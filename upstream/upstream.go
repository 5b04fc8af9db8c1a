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
// Which endpoint of an upstream, and which address of it, a connection goes to is
// chosen by package balance: for [Dialer.Dial], which connects, and for a [Plan], by
// which an engine that connects by itself is told where to. Whether endpoints serve is
// learnt from what becomes of connections, and by asking them: see [Dialer.Watch].
//
// Names are resolved here too: see resolver.
package upstream

import (
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
	// Serving leads to the Sessions that are the upstream of a config (upstream.user); nil
	// is that there are none.
	Serving Serving
	// Timeout bounds a dial whose config says nothing, resolution and TLS
	// included; 0 is DefaultTimeout.
	Timeout time.Duration
	// Log hears of addresses that were refused, and of upstreams that are not
	// verified.
	Log *slog.Logger
	// Changed is told, by Run, of each change of the health of an endpoint's address; of
	// one that changes again and again only some times a minute, and then as it stands.
	// It may be nil, as Unhealthy may.
	Changed func(d api.Destination, h api.HealthInfo)
	// Unhealthy is told, by Run, that a check has found an address, or a Session, unhealthy
	// to which connections are to be ended then (closeOnUnhealthy). at is as the RemoteAddr
	// of these has it.
	Unhealthy func(d api.Destination, at, words string)

	warnings warnings
	names    resolver
	figures  figures
	verified conditions
	reached  conditions

	mu      sync.RWMutex
	places  map[placeKey]*place
	objects map[api.Key][]*place
	forgot  int // how many of places were forgotten

	local   interfaces
	changes changes
	checks  checks

	// What tests replace.
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	connect func(ctx context.Context, at netip.AddrPort) (net.Conn, error)
	locals  func() ([]net.Addr, error)
}

// Dial connects to a destination as its Config says, which has what it takes from its
// parents. Which of its endpoints, and of the addresses that their names have, comes
// first, package balance says; another one is tried when one fails. An endpoint whose
// host begins with "_" is a name of SRV records (RFC 2782), which stand for as many
// endpoints in its place. An endpoint of a User stands for the Sessions that serve it: see
// [Serving]. A failure is an [*Error]. What comes of it is remembered: see
// [Dialer.Reachable].
//
// The connection is a *net.TCPConn with keep-alive or, with TLS or through a Session, a
// stream that can be half-closed and reset as that can: see package relay. Where the URL
// says UDP it is a *net.UDPConn, connected, of which nobody knows yet whether it is
// answered. Whoever has it calls Release of the report's Hold when it is over.
func (d *Dialer) Dial(ctx context.Context, to api.Destination) (net.Conn, api.DialReport, error) {
	var report api.DialReport
	p := d.place(&to)
	s, err := d.configure(p, to.Config)
	if err != nil {
		return nil, report, &Error{Reason: DialFailed, Words: "spec.config.upstream.url " + err.Error(), Err: err}
	}
	conn, report, failure := d.journey(to, p, s).dial(ctx)
	if failure == nil {
		p.reached(d, to.Object)
		return conn, report, nil
	}
	if ctx.Err() == nil { // that the client has gone says nothing of the upstream
		d.unreached(to.Object, failure)
	}
	return nil, report, failure
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
	to := api.Destination{Config: &api.ServiceConfig{Name: address}}
	p := d.place(&to)
	shape := p.shape.Load()
	if shape == nil || !sameMap(shape.hosts, d.Hosts()) {
		shape = d.shaped(p, to.Config, []api.Endpoint{{Host: host, Port: int(port), Weight: 1}})
	}
	conn, report, failure := d.journey(to, p, shape).dial(ctx)
	if failure != nil {
		return nil, failure
	}
	report.Hold.Release(0, false) // nobody counts these
	return conn, nil
}
