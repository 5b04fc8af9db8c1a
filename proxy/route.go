package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"cardea/api"
)

// counted is what its figures are called.
func (o *origin) counted() Counted {
	k := o.object()
	name := k.Name
	if k.Namespace != "" {
		name = k.Namespace + "/" + name
	}
	if r := o.route; r != nil {
		name = cmp.Or(r.StatsName, name)
	}
	return Counted{k.Kind, name}
}

// complete puts into a decision that allows what it leaves to the routing table: a
// foreign Object's config and limits, and the config of whatever was sent to one
// place of several.
func (o *origin) complete(d *api.Decision) {
	r := o.route
	if r == nil || !d.Allowed() {
		return
	}
	if r.Config != nil {
		d.Config = r.Config
	}
	if o.isForeign() {
		d.Limits = r.Limits
	}
}

// asked refers to what the connection is to, although it may not exist.
func (o *origin) asked() *api.Ref {
	if !o.isForeign() {
		return &api.Ref{APIVersion: api.Version, Kind: api.KindService, Name: clip(o.service)}
	}
	return o.object().Ref()
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
		return c.from.anonymous() && c.from.facts.Listener == listener && c.ip == ip
	})
	type peer struct {
		object   api.Key
		upstream string
	}
	seen := map[peer]bool{}
	var peers []api.Arrival
	for _, c := range slices.Backward(found) {
		c.mu.Lock()
		there, to := c.isThere(), peer{c.from.object(), c.upstream.String()}
		c.mu.Unlock()
		if !there || to.upstream == "" || seen[to] || len(peers) == maxPeers {
			continue
		}
		seen[to] = true
		routed := api.Routed{Object: to.object}
		if c.from.route != nil {
			routed = *c.from.route
		}
		// No limit on connections: where there are as many as there may be, a query must
		// still be cancelled.
		routed.Config, routed.Limits = pinned(c.first.terms.Load().said.Config, to.upstream), api.Limits{Duration: peerLasts}
		peers = append(peers, api.Arrival{Service: c.from.service, Route: &routed})
	}
	return peers
}

// pinned returns a config that leads to one address, without TLS.
func pinned(c *api.ServiceConfig, address string) *api.ServiceConfig {
	p := &api.ServiceConfig{Name: c.Name}
	p.Upstream = api.Upstream{URL: "tcp://" + address, ConnectTimeout: c.Upstream.ConnectTimeout, ProxyProtocol: c.Upstream.ProxyProtocol}
	return p
}
