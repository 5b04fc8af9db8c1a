package emissary

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"cardea/api"
)

// A mapping is a TCPMapping that can be understood.
type mapping struct {
	*object
	spec    *api.TCPMappingSpec
	service service
	address string // canonical; "" is every one
	host    string // canonical; "" is none
	options
	share int // weight in its group
}

// A groupKey is what the mappings of one row share.
type groupKey struct {
	address    string // "" for every address, of whichever family
	port       int
	host       string
	conditions string // of the annotations
}

func (k groupKey) compare(o groupKey) int {
	if k.port != o.port {
		return k.port - o.port
	}
	for _, d := range []int{strings.Compare(k.address, o.address), strings.Compare(k.host, o.host)} {
		if d != 0 {
			return d
		}
	}
	return strings.Compare(k.conditions, o.conditions)
}

// String says for a person what the mappings share.
func (k groupKey) String() string {
	at := api.Bind{Address: k.address, Port: k.port}.String()
	switch k.host {
	case "":
		return at + ", any bytes"
	case api.AnyName:
		return at + ", TLS with any name"
	}
	return at + ", host " + k.host
}

// isEvery reports whether an address stands for every one of its family.
func isEvery(address string) bool { return address == "" || address == "0.0.0.0" || address == "::" }

// originates reports whether TLS is spoken to the service: https:// is tls: true.
func (m *mapping) originates() bool { return m.spec.TLS.IsSet() || m.service.scheme == "https" }

func (m *mapping) key4group() groupKey {
	k := groupKey{address: m.address, port: *m.spec.Port, host: m.host}
	if isEvery(k.address) {
		k.address = ""
	}
	if m.alpn != nil || m.sources != nil {
		k.conditions = fmt.Sprint(slices.Sorted(slices.Values(m.alpn)), m.sources)
	}
	return k
}

// A port is what is known of the rows of one port.
type port struct {
	unset, v4, v6 bool       // which addresses that stand for every one there are
	binds         []api.Bind // of the rows
	first         api.Key    // the Object of one of them
	rows          int
}

// bind returns where the rows with an address listen. What says unset, 0.0.0.0 or ::
// is of one listener: of every address, unless all say the same.
func (p *port) bind(k groupKey) api.Bind {
	b := api.Bind{Address: k.address, Port: k.port}
	switch {
	case k.address != "" || p.unset || p.v4 && p.v6:
	case p.v4:
		b.Address = "0.0.0.0"
	case p.v6:
		b.Address = "::"
	}
	return b
}

// readMappings makes the Routes.
func (c *compiler) readMappings() {
	groups := map[groupKey]*group{}
	take(c, c.TCPMappings, func(m *api.TCPMapping) *api.Installations { return &m.Spec.Installations }, func(x *api.TCPMapping, o *object) {
		m, p := c.readMapping(x, o)
		if !p.ok() {
			o.reject(p)
			return
		}
		k := m.key4group()
		g := groups[k]
		if g == nil {
			g = &group{key: k, lead: m}
			groups[k] = g
		}
		if p := g.join(m); !p.ok() {
			o.reject(p)
		}
	})
	sorted := make([]*group, 0, len(groups))
	c.ports = map[int]*port{}
	for _, g := range groups {
		sorted = append(sorted, g)
		p := c.ports[g.key.port]
		if p == nil {
			p = new(port)
			c.ports[g.key.port] = p
		}
		for _, m := range g.members {
			p.unset = p.unset || m.address == ""
			p.v4 = p.v4 || m.address == "0.0.0.0"
			p.v6 = p.v6 || m.address == "::"
		}
	}
	slices.SortFunc(sorted, func(a, b *group) int { return a.key.compare(b.key) })
	c.out.Routes = make([]api.Route, 0, len(sorted))
	for _, g := range sorted {
		c.addRoute(g)
	}
}

// readMapping reads what a mapping says by itself.
func (c *compiler) readMapping(x *api.TCPMapping, o *object) (*mapping, problem) {
	s := &x.Spec
	m := &mapping{object: o, spec: s, host: canonical(s.Host)}
	var wrong []string
	m.options, wrong = c.parseOptions(x.Metadata.Annotations)
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if s.Port == nil || *s.Port < 1 || *s.Port > 65535 {
		bad("port must be from 1 to 65535")
	}
	if s.Address != "" {
		a, err := netip.ParseAddr(s.Address)
		if err != nil || a.Zone() != "" {
			bad("address must be an IP address, of IPv6 without brackets and zone, not %q", short(s.Address))
		}
		m.address = a.Unmap().String()
	}
	// A host that is nothing but a dot must not become none, nor *. become *.
	if s.Host != "" && (!isPattern(m.host) || m.host == api.AnyName && s.Host != api.AnyName) {
		bad("host must be NAME, *.DOMAIN or *, not %q", short(s.Host))
	}
	if w := s.Weight; w != nil && (*w < 0 || *w > 100) {
		bad("weight must be from 0 to 100, not %d", *w)
	}
	if s.CircuitBreakers != nil {
		if words := wrongBreakers(*s.CircuitBreakers); words != "" {
			bad("%s", words)
		}
	}
	var err error
	if m.service, err = parseService(s.Service); err != nil {
		bad("service must be HOST or HOST:PORT: %s", err)
	} else if o.ns != c.ns && !c.defaults.AmbassadorNamespace {
		m.service = m.service.in(o.ns)
		if host := strings.TrimSuffix(m.service.host, "."); !m.service.literal && !isName(host) {
			bad("service must be HOST or HOST:PORT: %s is too long for a host name", host)
		}
	}
	switch {
	case m.host != "":
	case m.passthrough:
		bad("the annotation %s%s needs host", api.AnnotationPrefix, api.AnnotationTLS)
	case m.alpn != nil:
		bad("the annotation %s%s needs host", api.AnnotationPrefix, api.AnnotationALPN)
	case m.startTLS != "":
		bad("the annotation %s%s needs host", api.AnnotationPrefix, api.AnnotationStartTLS)
	}
	if m.passthrough && m.originates() {
		bad("with the annotation %s%s TLS is the service's: leave tls and https:// out", api.AnnotationPrefix, api.AnnotationTLS)
	}
	if p := invalid(wrong); !p.ok() {
		return nil, p
	}
	if p := c.checkResolver(s.Resolver, o); !p.ok() {
		return nil, p
	}
	m.noteNoEffect()
	return m, problem{}
}

// noteNoEffect notes what of a mapping means nothing, or not what it seems to.
func (m *mapping) noteNoEffect() {
	s := m.spec
	switch tls := s.TLS.IsSet(); {
	case m.service.scheme == "http" && tls:
		m.note("service says http:// and tls is set: TLS is spoken to the service")
	case m.service.scheme == "http" || m.service.scheme == "tcp":
		m.note("service has the scheme %s, which TCPMappings must not have: it is taken for a connection without TLS", m.service.scheme)
	case m.service.scheme == "https":
		m.note("service has the scheme https, which TCPMappings must not have: it is taken for tls: true")
	}
	if m.service.path != "" {
		m.note("service has the path %q, which has no effect on TCP", short(m.service.path))
	}
	if strings.HasPrefix(m.service.host, "_") {
		m.note("service begins with _: its hosts and ports are those of SRV records")
	}
	if m.loadbalance != nil && m.service.literal {
		m.note("the annotation %s%s has no effect: service is a single address", api.AnnotationPrefix, api.AnnotationLoadbalance)
	}
	if s.ClusterTag != "" {
		m.note("cluster_tag has no effect: it is part of names within Envoy")
	}
	if !s.Labels.IsZero() {
		m.note("labels have no effect on TCP")
	}
}

// A group is the mappings that share a row, in order.
type group struct {
	key     groupKey
	lead    *mapping // the first, whose settings hold for all
	members []*mapping
	sum     int // of the weights that are set
}

// join adds a mapping, or says why it cannot be.
func (g *group) join(m *mapping) problem {
	if m != g.lead {
		if p := g.disagree(m); !p.ok() {
			return p
		}
	}
	if w := m.spec.Weight; w != nil {
		if g.sum+*w > 100 {
			return problemf(ReasonConflict, "weight %d is more than the others leave, which come first and have %d of 100: %s (%s). Lower one of them", *w, g.sum, g.weighted(), g.key)
		}
		g.sum += *w
	}
	g.members = append(g.members, m)
	return problem{}
}

// weighted names the members with a weight.
func (g *group) weighted() string {
	var names []string
	for _, m := range g.members {
		if w := m.spec.Weight; w != nil && *w > 0 {
			names = append(names, fmt.Sprintf("%s has %d", m.key, *w))
		}
		if len(names) == 4 {
			return strings.Join(names[:3], ", ") + " and so on"
		}
	}
	return strings.Join(names, ", ")
}

// A setting is one in which the mappings of a group must agree: its text, "" if it is
// not set.
type setting struct {
	name string
	text func(*mapping) string
	// strict settings are not taken from the first: who leaves one out means it.
	strict bool
}

// settings returns those in which mappings must agree. Address, port and host are what
// makes the group.
func settings() []setting {
	flag := func(b *bool) string {
		if b == nil {
			return ""
		}
		return strconv.FormatBool(*b)
	}
	return []setting{
		{name: "tls", strict: true, text: func(m *mapping) string {
			switch {
			case !m.originates():
				return ""
			case m.spec.TLS.Name != "":
				return strconv.Quote(short(m.spec.TLS.Name))
			}
			return "true"
		}},
		{name: "idle_timeout_ms", text: func(m *mapping) string {
			if t := m.spec.IdleTimeoutMs; t != nil && t.Int != 0 {
				return strconv.FormatInt(t.Int, 10)
			}
			return ""
		}},
		{name: "circuit_breakers", text: func(m *mapping) string {
			if m.spec.CircuitBreakers == nil {
				return ""
			}
			b, _ := json.Marshal(*m.spec.CircuitBreakers)
			return short(string(b))
		}},
		{name: "enable_ipv4", text: func(m *mapping) string { return flag(m.spec.EnableIPv4) }},
		{name: "enable_ipv6", text: func(m *mapping) string { return flag(m.spec.EnableIPv6) }},
		{name: "the annotation " + api.AnnotationPrefix + api.AnnotationTLS, strict: true, text: func(m *mapping) string {
			if m.passthrough {
				return "passthrough"
			}
			return ""
		}},
		{name: "the annotation " + api.AnnotationPrefix + api.AnnotationStartTLS, strict: true, text: func(m *mapping) string { return strings.ToLower(string(m.startTLS)) }},
		{name: "the annotation " + api.AnnotationPrefix + api.AnnotationConnectionsPerSecond, text: func(m *mapping) string {
			if m.rate == 0 {
				return ""
			}
			return strconv.Itoa(m.rate)
		}},
	}
}

// disagree says in what a mapping contradicts the first of its group. What it leaves
// out it takes from there, but for how its bytes go: a mapping without tls must not
// get it from another, nor lose it to one.
func (g *group) disagree(m *mapping) problem {
	for _, s := range settings() {
		mine, theirs := s.text(m), s.text(g.lead)
		if mine == theirs || mine == "" && !s.strict {
			continue
		}
		mine, theirs = cmp.Or(mine, "not set"), cmp.Or(theirs, "not set")
		return problemf(ReasonConflict, "%s is %s here and %s in %s, which comes first and is for the same connections (%s): make them agree, or give one another port or host",
			s.name, mine, theirs, g.lead.key, g.key)
	}
	return problem{}
}

// setShares gives the members their weights. Those that are set are per cent. What is
// left of 100 is split evenly over the rest: in whole per cent if the last needs at
// most one more than the others, else in as many parts of one as make them equal.
func (g *group) setShares() {
	var rest []*mapping
	for _, m := range g.members {
		if m.spec.Weight == nil {
			rest = append(rest, m)
		}
	}
	n, left := len(rest), 100-g.sum
	parts := 1 // of one per cent
	if n > 0 && left > 0 && (left < n || left%n > 1) {
		parts = n / gcd(n, left)
	}
	for _, m := range g.members {
		if m.spec.Weight != nil {
			m.share = *m.spec.Weight * parts
		}
	}
	for i, m := range rest {
		if m.share = left * parts / n; i == n-1 {
			m.share += left * parts % n
		}
		if left == 0 {
			m.note("it gets no connections: the weights of the others come to 100")
		}
	}
	if n == 0 && g.sum > 0 && g.sum < 100 {
		for _, m := range g.members {
			if len(g.members) == 1 {
				m.note("weight has no effect: no other mapping shares its connections")
			} else {
				m.note("the weights of the mappings for %s come to %d, not 100: they count as shares of %d", g.key, g.sum, g.sum)
			}
		}
	}
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// limits returns the bounds that the group's mappings have, and why none of its
// connections is let in, if so.
func (c *compiler) limits(g *group) (l api.Limits, refused string) {
	breakers := c.defaults.CircuitBreakers
	if own := g.lead.spec.CircuitBreakers; own != nil {
		breakers = *own
	}
	seen := false
	for _, b := range breakers {
		if b.MaxRequests != nil || b.MaxRetries != nil {
			g.note("circuit_breakers: max_requests and max_retries have no effect on TCP")
		}
		if b.Priority == "high" {
			g.note("circuit_breakers: the priority high has no effect on TCP")
			continue
		}
		if seen {
			g.note("circuit_breakers: of several with one priority the first counts")
			continue
		}
		seen = true
		switch {
		case b.MaxConnections == nil && b.MaxPendingRequests != nil:
			g.note("circuit_breakers: max_pending_requests has no effect without max_connections")
		case b.MaxConnections != nil && *b.MaxConnections == 0:
			refused = "circuit_breakers: max_connections is 0"
		case b.MaxConnections != nil:
			l.Connections = *b.MaxConnections
			if b.MaxPendingRequests != nil {
				l.Pending = *b.MaxPendingRequests
			}
		}
	}
	if t := g.lead.spec.IdleTimeoutMs; t != nil {
		const most = 100 * 360 * 24 * time.Hour
		l.Idle = time.Duration(min(t.Int, int64(most/time.Millisecond))) * time.Millisecond
	}
	return l, refused
}

// note notes something with each member.
func (g *group) note(text string) {
	for _, m := range g.members {
		m.object.note("%s", text)
	}
}

// families returns the address families of the service's name.
func (c *compiler) families(g *group) []api.IPFamily {
	v4, v6 := c.defaults.EnableIPv4, c.defaults.EnableIPv6
	if own := g.lead.spec.EnableIPv4; own != nil {
		v4 = *own
	}
	if own := g.lead.spec.EnableIPv6; own != nil {
		v6 = *own
	}
	switch {
	case v4 && v6:
		return []api.IPFamily{api.IPv6, api.IPv4}
	case v6:
		return []api.IPFamily{api.IPv6}
	case !v4:
		g.note("enable_ipv4 and enable_ipv6 are both false: IPv4 is used")
	}
	return []api.IPFamily{api.IPv4}
}
