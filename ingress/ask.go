package ingress

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"cardea/api"
)

// A query is what is known of a connection when its row is looked for.
type query struct {
	tls  bool
	sni  string // folded; "" is none
	alpn []string
	from netip.Addr
}

// A witness is told each step of a search.
type witness func(format string, args ...any)

// find returns the row of a connection, or nil and why it has none. w may be nil.
//
// Server names decide before anything else, and for ever: if the rows of the best
// name do not take the connection, no other is looked at, or a condition on a name
// could be got round by coming to a worse name.
func (l *listener) find(q query, w witness) (*row, string) {
	b, pattern := l.best(q)
	switch {
	case b != nil:
	case !q.tls:
		return nil, fmt.Sprintf("%v takes only TLS", l.bind)
	case q.sni == "":
		return nil, fmt.Sprintf("no row of %v takes TLS without a server name", l.bind)
	default:
		return nil, fmt.Sprintf("no row of %v takes the server name %s", l.bind, q.sni)
	}
	title := titled(pattern)
	if l.bind.UDP {
		title = "any datagrams"
	} else if w != nil {
		w("%s: the best match is %s", q.words(), title)
	}
	for _, x := range b.candidates {
		why := x.refuses(q)
		switch {
		case why == nil && w != nil:
			w("%v (%s) matches", x.row.Owner, x.row.words)
		case w != nil:
			w("%v (%s) does not match: %s", x.row.Owner, x.row.words, why())
		}
		if why == nil {
			return x.row, ""
		}
	}
	return nil, fmt.Sprintf("of the rows of %v for %s none takes %s", l.bind, title, q.conditions())
}

// best returns the rows of the name that a connection comes to, and that name; nil if
// there are none.
func (l *listener) best(q query) (b *bucket, pattern string) {
	if q.tls {
		if b, pattern, ok := l.names.find(q.sni); ok {
			return b, pattern
		}
	}
	return l.bytes, ""
}

// titled says what a pattern of server names takes.
func titled(pattern string) string {
	switch pattern {
	case "":
		return "any bytes"
	case api.AnyName:
		return "any server name"
	}
	return "server name " + pattern
}

// words says what of a connection server names are about.
func (q query) words() string {
	switch {
	case !q.tls:
		return "no TLS"
	case q.sni == "":
		return "TLS without a server name"
	}
	return "server name " + q.sni
}

// refuses returns nil if a candidate takes a connection, else what tells why it does
// not.
func (x candidate) refuses(q query) func() string {
	switch {
	case x.source.IsValid() && !q.from.IsValid():
		return func() string {
			return fmt.Sprintf("it takes clients from %v, and it was not said where this one comes from", x.source)
		}
	case x.source.IsValid() && !x.source.Contains(q.from):
		return func() string { return fmt.Sprintf("%v is not in %v", q.from, x.source) }
	case len(x.row.Match.ALPN) > 0 && !slices.ContainsFunc(x.row.Match.ALPN, func(p string) bool { return slices.Contains(q.alpn, p) }):
		return func() string {
			if len(q.alpn) == 0 {
				return fmt.Sprintf("ALPN %s is not offered", few(x.row.Match.ALPN))
			}
			return fmt.Sprintf("ALPN %s is not offered, but %q", few(x.row.Match.ALPN), few(q.alpn))
		}
	}
	return nil
}

// conditions says what of a connection conditions are about.
func (q query) conditions() string {
	from := "a client from somewhere"
	if q.from.IsValid() {
		from = "a client from " + q.from.String()
	}
	switch {
	case !q.tls:
		return from
	case len(q.alpn) == 0:
		return from + " without ALPN"
	}
	return fmt.Sprintf("%s with ALPN %q", from, few(q.alpn))
}

// listener returns the listener of connections to an address of this machine: the
// one with that address before that of all addresses of its family before that of
// every one. It returns nil if there is none.
func (t *Table) listener(a netip.AddrPort) *listener {
	ip := a.Addr().Unmap().WithZone("")
	family := netip.IPv6Unspecified()
	if ip.Is4() {
		family = netip.IPv4Unspecified()
	}
	for _, ip := range [...]netip.Addr{ip, family, {}} {
		if l := t.at[netip.AddrPortFrom(ip, a.Port())]; l != nil {
			return l
		}
	}
	return nil
}

// entered returns the listener of a connection that came in at a bind. Only where others
// have the same port does it matter to which address.
func (t *Table) entered(b api.Bind, local netip.AddrPort) *listener {
	if l := t.listeners[b]; l != nil && l.alone {
		return l
	}
	return t.listener(local)
}

// speaksLast reports whether a client may come from an address that waits for its
// server to speak.
func (l *listener) speaksLast(from netip.Addr) bool {
	return l.bytes != nil && slices.ContainsFunc(l.bytes.candidates, func(x candidate) bool { return x.refuses(query{from: from}) == nil })
}

// Ask says where a connection would go, and why.
func (t *Table) Ask(q api.RouteQuestion) api.RouteAnswer { return t.ask(q, 0) }

// ask is Ask; timeout is that of hellos, 0 if it is not known.
func (t *Table) ask(q api.RouteQuestion, timeout time.Duration) api.RouteAnswer {
	a := api.RouteAnswer{Steps: []string{}}
	refuse := func(format string, args ...any) api.RouteAnswer {
		a.Refused = fmt.Sprintf(format, args...)
		return a
	}
	var from netip.Addr
	var err error
	if q.From != "" {
		if from, err = netip.ParseAddr(q.From); err != nil {
			return refuse("%q is not an IP address", q.From)
		}
		from = from.Unmap()
	}
	w := func(format string, args ...any) { a.Steps = append(a.Steps, fmt.Sprintf(format, args...)) }
	l, why := t.asked(q, w)
	if l == nil {
		return refuse("%s", why)
	}
	q.NoTLS = q.NoTLS || q.UDP
	a.Listener = l.bind.String()
	if l.proxied {
		w("each connection begins with a PROXY header from a trusted proxy; what follows is about the client that it names")
	}
	if l.asks {
		w("clients of PostgreSQL may ask for TLS first (SSLRequest)")
	}
	if l.bare() {
		w("nothing of the connection is read to find its row")
	}
	r, why := l.find(query{tls: !q.NoTLS, sni: api.FoldName(q.SNI), alpn: q.ALPN, from: from}, w)
	if r == nil {
		return refuse("%s", why)
	}
	owner := r.Owner
	a.Owner, a.Match, a.Version = &owner, r.words, r.version
	if a.TLS = r.tls(); q.NoTLS {
		a.TLS = ""
	}
	a.Members = r.shares()
	if r.Refused != "" {
		return refuse("%s", lacking(r, r.Refused))
	}
	if r.StartTLS != "" {
		w("TLS from the first byte needs ALPN %s", alpnPostgres)
	}
	if r.Match.SNI == "" && !l.bare() {
		after := "a fifth of helloTimeout"
		if timeout > 0 {
			after += fmt.Sprintf(" (%v)", silent(timeout))
		}
		w("a client that says nothing gets here after %s: so long a server that speaks first is not reached", after)
	}
	for _, m := range a.Members {
		w("the share of %v is %d of %d new connections", m.Object, m.Weight, m.Of)
	}
	w("%s", r.decided())
	return a
}

// lacking says that a row refuses, and why.
func lacking(r *row, why string) string {
	return fmt.Sprintf("%v lacks something, and refuses every connection: %s", r.Owner, why)
}

// decided says who decides about the connections of a row.
func (r *row) decided() string {
	if s := r.service; s != nil {
		words := "then policies decide: cardea why USER " + s.Metadata.Name
		if s.Spec.IsAnonymous {
			words += ", or for who has no Session those of the Service, its Namespace and the ClusterConfig"
		}
		return words
	}
	var namespaces []string
	for _, m := range r.Members {
		namespaces = append(namespaces, m.Object.Namespace)
	}
	return fmt.Sprintf("then a DENY in the ClusterConfig or in Namespace %s, if there is one, refuses", few(distinct(namespaces, cmp.Compare[string])))
}

// asked returns the listener that a question is about, or nil and why there is none.
func (t *Table) asked(q api.RouteQuestion, w witness) (*listener, string) {
	var there []*listener
	for b, l := range t.listeners {
		if b.Port == q.Port && b.UDP == q.UDP {
			there = append(there, l)
		}
	}
	slices.SortFunc(there, func(a, b *listener) int { return compareBinds(a.bind, b.bind) })
	port := "port " + strconv.Itoa(q.Port)
	if q.UDP {
		port += "/udp"
	}
	var l *listener
	switch {
	case len(there) == 0:
		return nil, fmt.Sprintf("nothing listens on %v", port)
	case q.Address != "":
		ip, err := netip.ParseAddr(q.Address)
		if err != nil {
			return nil, fmt.Sprintf("%q is not an IP address", q.Address)
		}
		i := slices.IndexFunc(there, func(l *listener) bool { return covers(l.bind, ip.Unmap().WithZone("")) })
		if i < 0 {
			return nil, fmt.Sprintf("nothing listens on %v of %v, but on %s", port, ip, binds(there))
		}
		if l = there[i]; len(there) > 1 {
			w("%v has %d listeners (%s): connections to %v belong to %v, which says most exactly where", port, len(there), binds(there), ip, l.bind)
		}
	default:
		if l = there[len(there)-1]; len(there) > 1 {
			w("%v has %d listeners (%s): as no address is given, this is about %v", port, len(there), binds(there), l.bind)
		}
	}
	if len(l.rows) == 1 {
		w("listener %v has 1 row", l.bind)
	} else {
		w("listener %v has %d rows", l.bind, len(l.rows))
	}
	return l, ""
}

func binds(list []*listener) string {
	var names []string
	for _, l := range list {
		names = append(names, l.bind.String())
	}
	return strings.Join(names, ", ")
}

// tls says what becomes of the TLS of a row's clients.
func (r *row) tls() string {
	t := r.Terminate
	if t == nil {
		if r.Match.SNI == "" {
			return "bytes go through as they are, TLS or not"
		}
		return "TLS goes through as it is; only its hello is read"
	}
	words := "TLS ends here, with "
	if t.Certificate != nil {
		words += "the certificate in " + t.Certificate.String()
	} else {
		words += "a certificate of the cluster for " + t.ClusterName
		if len(t.ClusterHosts) > 0 {
			words += ", and for the names of public.hosts"
		}
	}
	switch {
	case t.Sessions && t.RequireClientCertificate:
		words += "; the client must show the certificate of a Session"
	case t.Sessions:
		words += "; a client that shows the certificate of a Session is that Session"
	case t.ClientCA != nil && t.RequireClientCertificate:
		words += "; the client must show a certificate that verifies against " + t.ClientCA.String()
	case t.ClientCA != nil:
		words += "; if the client shows a certificate, it must verify against " + t.ClientCA.String()
	}
	if t.CRL != nil {
		words += " and is not revoked in " + t.CRL.String()
	}
	return words
}

// shares says where the connections of a row go.
func (r *row) shares() (list []api.RouteShare) {
	of := 0
	for _, m := range r.Members {
		of += max(m.Weight, 0)
	}
	for _, m := range r.Members {
		c := m.Config
		s := api.RouteShare{Object: m.Object, Weight: m.Weight, Of: of}
		if c == nil && r.service != nil {
			if c = r.service.Spec.Config; r.service.Spec.DynamicConfig != nil {
				s.Notes = append(s.Notes, "the config is chosen among several when the connection is decided")
			}
		}
		if c != nil {
			describe(&s, c)
		}
		if s.TLS == "" && r.Terminate != nil {
			s.TLS = "cleartext to the upstream"
		}
		list = append(list, s)
	}
	return list
}

// describe says what a config makes of a share.
func describe(s *api.RouteShare, c *api.ServiceConfig) {
	list, err := c.Upstream.Endpoints()
	if err != nil {
		s.Notes = append(s.Notes, "the upstream "+err.Error())
		return
	}
	for _, e := range list {
		s.Endpoints = append(s.Endpoints, e.Address())
	}
	if v := c.Upstream.ProxyProtocol; v != "" {
		s.Notes = append(s.Notes, "the upstream is sent a PROXY header, version "+strings.TrimPrefix(string(v), "V"))
	}
	t := c.TLS
	if t == nil && c.Certificate() == nil && !list[0].TLS {
		return
	}
	if t == nil {
		t = &api.UpstreamTLS{}
	}
	s.TLS = "TLS to the upstream"
	if c.Upstream.StartTLS != "" {
		s.TLS += " after a request for it"
	}
	if t.ServerName != "" {
		s.TLS += ", server name " + t.ServerName
	}
	switch {
	case t.InsecureSkipVerify:
		s.TLS += ", not verified"
	case t.CA != nil:
		s.TLS += ", verified against " + t.CA.String()
	case len(t.TrustedCAs) > 0:
		s.TLS += ", verified against its CAs"
	default:
		s.TLS += ", verified against the CAs of the system"
	}
	if t.Verification == api.VerificationReport {
		s.TLS += "; if that fails, it is reported, and the connection is made"
	}
}
