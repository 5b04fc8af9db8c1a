package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"cardea/api"
)

// isForeign reports whether the connection is to an Object of another system, where
// the routing table sent it.
func (c *Conn) isForeign() bool { return c.foreign != "" }

// object is the key of what the connection is to.
func (c *Conn) object() api.Key {
	if c.isForeign() {
		return c.arrival.Route.Object
	}
	return api.Key{Group: api.GroupCore, Kind: api.KindService, Name: api.ServiceName(c.arrival.Service)}
}

// counted is what its figures are called.
func (c *Conn) counted() Counted {
	k := c.object()
	name := k.Name
	if k.Namespace != "" {
		name = k.Namespace + "/" + name
	}
	if r := c.arrival.Route; r != nil {
		name = cmp.Or(r.StatsName, name)
	}
	return Counted{k.Kind, name}
}

// complete puts into a decision that allows what it leaves to the routing table: a
// foreign Object's config and limits, and the config of whatever was sent to one
// place of several.
func (c *Conn) complete(d *api.Decision) {
	r := c.arrival.Route
	if r == nil || !d.Allowed() {
		return
	}
	if r.Config != nil {
		d.Config = r.Config
	}
	if c.isForeign() {
		d.Limits = r.Limits
	}
}

// asked refers to what the connection is to, although it may not exist.
func (c *Conn) asked() *api.Ref {
	if !c.isForeign() {
		return &api.Ref{APIVersion: api.Version, Kind: api.KindService, Name: clip(c.arrival.Service)}
	}
	return c.object().Ref()
}

// logRoute is what a record says of the way: of an END, also what was met on it.
func (c *Conn) logRoute(t api.LogType) *api.LogRoute {
	c.mu.Lock()
	report := c.report
	c.mu.Unlock()
	var l *api.LogRoute
	if c.arrival.Route != nil {
		l = &c.arrival.Route.Log
	}
	if t != api.LogEnd || report == (api.DialReport{}) {
		return l
	}
	var whole api.LogRoute
	if l != nil {
		whole = *l
	}
	whole.Retries, whole.UpstreamVerified, whole.UpstreamWords = report.Retries, report.Verified, clip(report.Words)
	return &whole
}

const (
	maxPeers = 16 // that Peers returns
	// peerLasts bounds a connection beside another one to a foreign Object.
	peerLasts = 10 * time.Second
)

// Peers returns an Arrival, without Conn, Facts and Evidence, for each upstream to
// which a source address has live connections that came in at a listener
// (Facts.Listener), the latest first, at most 16. Each leads to exactly that
// upstream, in plaintext; it is decided as any other, about somebody whom nobody
// asked who he is. Connections of Sessions are left out: a source address proves
// none.
func (g *Gate) Peers(listener string, source netip.Addr) []api.Arrival {
	ip := source.String()
	found := g.registry.find(func(c *Conn) bool {
		return c.anonymous() && c.facts.Listener == listener && c.facts.IP == ip
	})
	type peer struct {
		object   api.Key
		upstream string
	}
	seen := map[peer]bool{}
	var peers []api.Arrival
	for _, c := range slices.Backward(found) {
		c.mu.Lock()
		first, to := c.first, peer{c.object(), address(c.upstream)}
		c.mu.Unlock()
		if first == nil || to.upstream == "" || seen[to] || len(peers) == maxPeers {
			continue
		}
		seen[to] = true
		d := g.registry.decision(first)
		routed := api.Routed{Object: to.object}
		if c.arrival.Route != nil {
			routed = *c.arrival.Route
		}
		// No limit on connections: where there are as many as there may be, a query must
		// still be cancelled.
		routed.Config, routed.Limits = pinned(d.Config, to.upstream), api.Limits{Duration: peerLasts}
		peers = append(peers, api.Arrival{Service: c.arrival.Service, Route: &routed})
	}
	return peers
}

// pinned returns a config that leads to one address, without TLS.
func pinned(c *api.ServiceConfig, address string) *api.ServiceConfig {
	p := &api.ServiceConfig{Name: c.Name}
	p.Upstream = api.Upstream{URL: "tcp://" + address, ConnectTimeout: c.Upstream.ConnectTimeout, ProxyProtocol: c.Upstream.ProxyProtocol}
	return p
}
