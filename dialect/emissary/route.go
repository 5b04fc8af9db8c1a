package emissary

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"cardea/api"
)

// addRoute makes the Route of a group.
func (c *compiler) addRoute(g *group) {
	g.setShares()
	port, lead := c.ports[g.key.port], g.lead
	r := api.Route{
		Owner: lead.key, Created: lead.created, Bind: port.bind(g.key),
		Match:    api.Match{SNI: g.key.host, Sources: lead.sources},
		StartTLS: lead.startTLS, Rate: lead.rate, Members: make([]api.Member, 0, len(g.members)),
	}
	if lead.alpn != nil {
		r.Match.ALPN = slices.Sorted(slices.Values(lead.alpn))
	}
	if port.rows++; port.rows == 1 {
		port.first = lead.key
	}
	if len(port.binds) == 0 || port.binds[len(port.binds)-1] != r.Bind {
		port.binds = append(port.binds, r.Bind)
	}

	var uses []api.Key // in the order in which they are met
	var refers bool
	var broken problem
	var notes []string
	if g.key.host != "" && !lead.passthrough {
		refers = true
		r.Terminate, broken = c.terminate(g, &uses, &notes)
	}
	var context *tlsContext
	if name := lead.spec.TLS.Name; name != "" {
		refers = true
		var p problem
		if context, p = c.originate(name, lead.ns, &uses, &notes); !p.ok() {
			broken = both(broken, p)
		}
	}
	for _, n := range notes {
		g.note(n)
	}
	limits, refused := c.limits(g)
	families := c.families(g)
	sum := 0
	for _, m := range g.members {
		sum += m.share
		l := limits
		l.PendingTimeout, l.Duration, l.HalfClose = 0, m.duration, m.halfClose
		l.ConnectionsPerSession, l.Bytes, l.Upload, l.Download = m.perClient, m.bytes, m.upload, m.download
		if l.Pending > 0 {
			l.PendingTimeout = m.pending
		}
		r.Members = append(r.Members, api.Member{
			Object: m.key, Weight: m.share, Limits: l, StatsName: cmp.Or(m.spec.StatsName, m.spec.V3StatsName),
			Config: c.config(g, m, context, families),
		})
		if refers {
			m.resolved(broken)
		}
		if uses != nil {
			c.out.Uses[m.key] = uses
		}
	}
	if sum == 0 {
		refused = "every mapping has weight 0"
	}
	if refused != "" {
		g.note("every connection is refused: " + refused)
	}
	r.Refused = cmp.Or(broken.words, refused)
	c.out.Routes = append(c.out.Routes, r)
}

// join returns a list with more keys, each once.
func join(list []api.Key, more ...api.Key) []api.Key {
	for _, k := range more {
		if !slices.Contains(list, k) {
			list = append(list, k)
		}
	}
	return list
}

// both joins two problems.
func both(a, b problem) problem {
	if a.ok() {
		return b
	}
	return problem{a.reason, a.words + "; " + b.words}
}

// terminate returns how TLS is ended for a group. With a problem it is something that
// ends no TLS.
func (c *compiler) terminate(g *group, uses *[]api.Key, notes *[]string) (*api.Termination, problem) {
	p := c.providers.find(g.key.host, g.lead.ns)
	if p == nil {
		return new(api.Termination), problemf(ReasonNoContext,
			"host is %s, and no TLSContext or Host says which certificate it has: add a TLSContext with hosts: [%q] and secret, or the annotation %s%s: passthrough",
			g.key.host, g.key.host, api.AnnotationPrefix, api.AnnotationTLS)
	}
	*uses = join(join(make([]api.Key, 0, 1+len(p.uses)), p.key), p.uses...)
	*notes = append(*notes, p.notes...)
	if !p.problem.ok() {
		words := p.problem.words
		if p.problem.reason != ReasonContext {
			words = p.key.String() + ", which host uses: " + words
		}
		return new(api.Termination), problem{p.problem.reason, words}
	}
	t := p.terminate
	if want := g.lead.alpn; want != nil {
		own := *t
		own.ALPN = want
		if t.ALPN != nil {
			own.ALPN = slices.DeleteFunc(slices.Clone(t.ALPN), func(x string) bool { return !slices.Contains(want, x) })
			if len(own.ALPN) == 0 {
				return new(api.Termination), problemf(ReasonNoAgreement, "the annotation %s%s and alpn_protocols of %s have no protocol in common: add one", api.AnnotationPrefix, api.AnnotationALPN, p.key)
			}
		}
		t = &own
	}
	return t, problem{}
}

// originate returns the context that a mapping names for TLS to its service.
func (c *compiler) originate(name, ns string, uses *[]api.Key, notes *[]string) (*tlsContext, problem) {
	t, ok := c.contexts.find(name, ns)
	if !ok {
		return nil, c.noContext("tls", name)
	}
	t.used = true
	*uses = join(join(*uses, t.key), t.uses()...)
	*notes = append(*notes, t.notes()...)
	if p := t.inUse(); !p.ok() {
		return nil, p
	}
	if p := t.missing(); !p.ok() {
		return nil, problem{p.reason, t.key.String() + ", which tls names: " + p.words}
	}
	return t, problem{}
}

// config returns how the service of a member is reached. TLS to it is never left out
// because its context is not there.
func (c *compiler) config(g *group, m *mapping, context *tlsContext, families []api.IPFamily) *api.ServiceConfig {
	originates := g.lead.originates()
	port := m.service.port
	switch {
	case port != 0:
	case originates || g.lead.passthrough:
		port = 443
	default:
		port = 80
	}
	out := &api.ServiceConfig{Name: api.DefaultConfig, Upstream: api.Upstream{
		URL: m.service.url(port), ConnectTimeout: c.timeout(m.connect), ProxyProtocol: m.proxy,
		Loadbalance: c.loadbalance(m), Health: m.health,
	}}
	if !m.service.literal {
		out.Upstream.Families = families
	}
	if originates || g.lead.passthrough {
		out.Upstream.StartTLS = g.lead.startTLS
	}
	if originates {
		out.TLS = c.upstreamTLS(g, m, context)
	}
	return out
}

// loadbalance returns how the addresses of a service share its connections: as the
// mapping says, and what it leaves out as the Module does.
func (c *compiler) loadbalance(m *mapping) *api.Loadbalance {
	if m.loadbalance == nil || c.defaults.Loadbalance == nil {
		return cmp.Or(m.loadbalance, c.defaults.Loadbalance)
	}
	l := *m.loadbalance
	l.Algorithm = cmp.Or(l.Algorithm, c.defaults.Loadbalance.Algorithm)
	return &l
}

// timeout returns a time as it is written in configs. Equal ones are one.
func (c *compiler) timeout(d time.Duration) *api.Duration {
	out := c.connect[d]
	if out == nil {
		ms := int(d / time.Millisecond)
		out = &api.Duration{Milliseconds: &ms}
		c.connect[d] = out
	}
	return out
}

func (c *compiler) upstreamTLS(g *group, m *mapping, context *tlsContext) *api.UpstreamTLS {
	t := &api.UpstreamTLS{ServerName: strings.TrimSuffix(m.service.host, "."), Verification: api.VerificationReport}
	if context != nil {
		t.Own, t.CA, t.CRL = context.cert.material, context.ca.material, context.crl.material
		t.ALPN, t.TLSTerms = context.alpn, context.terms
		t.ServerName = cmp.Or(context.sni, t.ServerName)
	}
	switch {
	case context == nil && g.lead.spec.TLS.Name != "":
		t.Verification = api.VerificationRequire // the row refuses; should it ever be dialled, it is strict
	case c.Verification == api.VerificationRequire:
		if m.verification == api.VerificationReport {
			m.note("the annotation %s%s has no effect: the ClusterConfig says REQUIRE", api.AnnotationPrefix, api.AnnotationUpstreamVerification)
		}
		t.Verification = api.VerificationRequire
	case m.verification != "":
		t.Verification = m.verification
	case t.CA != nil:
		t.Verification = api.VerificationRequire
	}
	if t.Verification == api.VerificationReport {
		m.status.Conditions = append(m.status.Conditions, api.StatusCondition{
			Type: api.ConditionUpstreamVerified, Status: "Unknown", Reason: string(api.VerificationReport), Since: c.Now.UTC(),
			Message: "no CA is named: the upstream's certificate is checked against those of the system, and the connection is made all the same",
		})
	}
	return t
}

// noteUnused notes with contexts and Hosts that nothing of TCP uses them.
func (c *compiler) noteUnused() {
	for _, t := range c.contexts.byPlace {
		if !t.used {
			t.note("no TCPMapping uses it")
		}
	}
	for _, h := range c.hosts {
		if !h.used {
			h.note("no TCPMapping uses it")
		}
	}
}
