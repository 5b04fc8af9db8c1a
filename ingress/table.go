package ingress

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"cardea/api"
)

// An Input is what a [Table] is made of. Nothing in it is written to.
type Input struct {
	// Services are the Services; those that are not public are passed over.
	Services []*api.Service
	Foreign  api.Routes // of the dialects
	// Secrets are what is known of the certificates in Secrets of ours, by name; nil
	// for one that holds none.
	Secrets map[string]*api.CertificateFacts
	Domain  string // of the cluster
	// Host is the IP address at which Services listen that name none; "" is every one.
	Host string
	// Own are listeners of this process that are not the table's: no row may have them.
	Own []netip.AddrPort
}

// A Table says where the connections to public ports go: for each listener the
// rows, and for each Object of which they were made how it stands with it. It does
// not change, but for the turns of its rows, which go on from table to table.
type Table struct {
	listeners map[api.Bind]*listener
	at        map[netip.AddrPort]*listener // the same, of TCP; "" is the zero Addr
	status    map[api.Key]*api.RouteStatus
	of        map[api.Key][]*row // the rows of an Object
	public    names[string]      // Services that are reached at the cluster's own port
	serial    int                // of all tables that were made of one another
	rows      map[string]*row    // by identity: what the next table may go on with
	meters    map[api.Key]*meter // by Owner
}

// A listener is one place to listen, and its rows.
type listener struct {
	bind  api.Bind
	alone bool // no other has the same port
	// proxied says that each connection begins with a PROXY header.
	proxied bool
	// asks says that TLS may begin after a request for it, as in PostgreSQL.
	asks  bool
	names names[*bucket]
	bytes *bucket // rows that take any bytes; nil if there are none
	rows  []*row  // all, the oldest first
	sole  *row    // one of them, if all are of one Object
	// meter is that of all rows, if there is but one: then it can be asked before a
	// byte is read.
	meter *meter
}

// bare reports whether nothing of a connection has to be read to find its row.
func (l *listener) bare() bool { return l.names.empty() && !l.asks }

// A bucket is the rows of one server name, in the order in which they are tried.
type bucket struct{ candidates []candidate }

// A candidate is a row, for clients of one of its networks.
type candidate struct {
	row    *row
	source netip.Prefix // the zero Prefix is everywhere
}

// A row is a Route that is ready to be matched.
type row struct {
	api.Route              // its names and conditions as they are compared
	service   *api.Service // if it is of one
	place     string       // its bind and match: no two rows of a table have the same
	words     string       // what it matches, for people
	turns     *turns       // nil if nobody has a turn
	meter     *meter       // nil is any rate
	version   string       // of turns
	routed    []*api.Routed
	// ending is how the Router ends the TLS of its clients.
	ending atomic.Pointer[ending]
}

// identity tells rows apart between which turns cannot go on.
func (r *row) identity() string {
	b := append(make([]byte, 0, 128), r.place...)
	for _, m := range r.Members {
		b = append(append(b, 0), m.Object.Group...)
		b = append(append(b, 0), m.Object.String()...)
		b = strconv.AppendInt(append(b, 0), int64(m.Weight), 10)
	}
	return string(b)
}

// names are things by the server names that they are for.
type names[T any] struct {
	exact map[string]T // AnyName among them
	below map[string]T // by the DOMAIN of *.DOMAIN
	// own is the cluster's domain: no *.DOMAIN stands for it, nor for a name below it.
	own string
}

func (n *names[T]) empty() bool { return len(n.exact) == 0 && len(n.below) == 0 }

// at returns where the thing for a name, or a pattern, is kept: a map and its key.
func (n *names[T]) at(pattern string) (map[string]T, string) {
	if n.exact == nil {
		n.exact, n.below = map[string]T{}, map[string]T{}
	}
	if domain, ok := strings.CutPrefix(pattern, "*."); ok {
		return n.below, domain
	}
	return n.exact, pattern
}

// find returns what is for a server name, and the pattern that it stands under: the
// name itself, else *.DOMAIN for the longest DOMAIN, else AnyName. The name is folded.
func (n *names[T]) find(name string) (x T, pattern string, ok bool) {
	if name != "" {
		if x, ok = n.exact[name]; ok {
			return x, name, true
		}
	}
	for rest := name; len(n.below) > 0 && !isBelow(name, n.own); {
		if _, rest, ok = strings.Cut(rest, "."); !ok {
			break
		}
		if x, ok = n.below[rest]; ok {
			return x, "*." + rest, true
		}
	}
	x, ok = n.exact[api.AnyName]
	return x, api.AnyName, ok
}

// The reasons of conditions.
const (
	reasonAccepted = "ACCEPTED"
	reasonResolved = "RESOLVED"
	reasonInvalid  = "INVALID"
	reasonConflict = "CONFLICT"
	reasonReserved = "RESERVED" // the name, or the port, is the cluster's own
	reasonNoSecret = "NO_SECRET"
	reasonBad      = "BAD_SECRET"
	reasonExpired  = "EXPIRED"
)

// Compile makes the table of an input. It is pure: it opens, reads and asks nothing.
// What stays as it was before goes on with its turns and their version; before may
// be nil.
//
// Of two rows that want the same of the same listener the one whose Object is older
// keeps it, the other is not accepted; rows without an age are the youngest. A row
// that cannot be accepted is left out alone.
func Compile(in Input, before *Table, now time.Time) *Table {
	if before == nil {
		before = &Table{}
	}
	n := len(in.Services) + len(in.Foreign.Routes)
	c := &compiler{Input: in, now: now, before: before, accepted: make(map[string]*row, n), proxied: map[api.Bind]string{}, lost: map[api.Key][]loss{}, out: &Table{
		listeners: map[api.Bind]*listener{}, at: map[netip.AddrPort]*listener{}, status: make(map[api.Key]*api.RouteStatus, n), of: make(map[api.Key][]*row, n),
		serial: before.serial + 1, rows: make(map[string]*row, n), meters: make(map[api.Key]*meter, n),
	}}
	c.Domain = api.FoldName(in.Domain)
	c.out.public.own = c.Domain
	for key, s := range in.Foreign.Status {
		c.out.status[key] = &api.RouteStatus{Conditions: slices.Clone(s.Conditions), Notes: slices.Clone(s.Notes)}
	}
	for _, b := range in.Foreign.Proxied {
		if b, err := canonical(b); err == nil {
			c.proxied[b] = "a Listener"
		}
	}
	var rows []*row
	for _, r := range in.Foreign.Routes {
		rows = append(rows, &row{Route: r})
	}
	for _, s := range in.Services {
		if s.Spec.IsPublic && s.Status.Port != 0 {
			rows = append(rows, c.service(s)...)
		}
	}
	rows = slices.DeleteFunc(rows, func(r *row) bool { return !c.prepare(r) })
	slices.SortStableFunc(rows, byAge)
	for _, r := range rows {
		c.settle(r)
	}
	c.listen()
	c.finish()
	c.open()
	return c.out
}

// byAge orders rows: those come first that keep what others want, too.
func byAge(a, b *row) int {
	if a.Created.IsZero() != b.Created.IsZero() {
		if a.Created.IsZero() {
			return 1
		}
		return -1
	}
	if c := cmp.Or(a.Created.Compare(b.Created), compareKeys(a.Owner, b.Owner), cmp.Compare(a.place, b.place)); c != 0 {
		return c
	}
	return cmp.Compare(a.identity(), b.identity())
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Group, b.Group))
}

// A compiler makes one Table.
type compiler struct {
	Input
	now      time.Time
	before   *Table
	out      *Table
	accepted map[string]*row     // by place
	order    []*row              // the same, the oldest first
	proxied  map[api.Bind]string // who wants PROXY headers
	lost     map[api.Key][]loss
}

// A loss is why a row is not accepted.
type loss struct{ reason, words string }

// lose notes that a row is left out.
func (c *compiler) lose(r *row, reason, format string, args ...any) bool {
	x := loss{reason, fmt.Sprintf(format, args...)}
	for _, key := range r.objects() {
		if !slices.Contains(c.lost[key], x) {
			c.lost[key] = append(c.lost[key], x)
		}
	}
	return false
}

// objects returns the Objects that a row is of.
func (r *row) objects() []api.Key {
	keys := []api.Key{r.Owner}
	for _, m := range r.Members {
		if !slices.Contains(keys, m.Object) {
			keys = append(keys, m.Object)
		}
	}
	return keys
}

// service returns the rows of a Service, one for each of its server names.
func (c *compiler) service(s *api.Service) []*row {
	spec, public := &s.Spec, cmp.Or(s.Spec.Public, &api.ServicePublic{})
	one := row{service: s, Route: api.Route{
		Owner: s.Key(), Created: s.Metadata.CreatedAt, Bind: api.Bind{Address: cmp.Or(public.Address, c.Host), Port: s.Status.Port, UDP: spec.Mode == api.ModeUDP},
		StartTLS: public.StartTLS, Members: []api.Member{{Object: s.Key(), Weight: 1}}, Rate: spec.Limits.Rate(),
	}}
	// What follows was validated when it was written. A Service that breaks these
	// rules all the same must not become a door that is wider than it says.
	if public.Address == api.AnyAddress {
		one.Bind.Address = ""
	}
	hosts := public.Hosts
	switch {
	case one.Bind.UDP && (spec.IsTLS || !spec.IsAnonymous || public.Passthrough || public.ProxyProtocol || public.StartTLS != "" || len(hosts)+len(public.ALPN) > 0):
		c.lose(&one, reasonInvalid, "mode UDP needs isAnonymous, and has neither TLS nor server names nor a PROXY header")
		return nil
	case spec.IsTLS && public.Passthrough, len(hosts) > 0 && !spec.IsTLS && !public.Passthrough, len(hosts) == 0 && (public.Passthrough || len(public.ALPN) > 0):
		c.lose(&one, reasonInvalid, "server names need one of isTLS and public.passthrough, and these and public.alpn need server names")
		return nil
	case !spec.IsAnonymous && !spec.IsTLS:
		c.lose(&one, reasonInvalid, "who comes can only be asked who he is with isTLS")
		return nil
	}
	for _, text := range public.Sources {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			c.lose(&one, reasonInvalid, "public.sources: %q is not a CIDR", text)
			return nil
		}
		one.Match.Sources = append(one.Match.Sources, p)
	}
	one.Match.ALPN = public.ALPN
	if spec.IsTLS {
		one.Terminate = &api.Termination{Sessions: true, RequireClientCertificate: !spec.IsAnonymous, ALPN: public.ALPN}
		one.Refused = c.certificate(s, one.Terminate)
	}
	if len(hosts) == 0 {
		hosts = []string{""}
		if spec.IsTLS {
			hosts = []string{api.AnyName}
		}
	}
	var rows []*row
	for _, h := range hosts {
		r := &row{service: s, Route: one.Route}
		r.Match.SNI = h
		rows = append(rows, r)
	}
	return rows
}

// certificate says what the clients of a Service are shown, and returns why that
// cannot be had.
func (c *compiler) certificate(s *api.Service, t *api.Termination) (refused string) {
	if s.Spec.Public == nil || s.Spec.Public.Certificate == nil {
		t.ClusterName, t.ClusterHosts = s.Metadata.Name+".svc."+c.Domain, c.clusterHosts(s)
		return ""
	}
	name := s.Spec.Public.Certificate.FromSecret
	key := api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: name}
	t.Certificate = &api.Material{Secret: &key, Service: s.Metadata.Name}
	facts, there := c.Secrets[name]
	status := c.statusOf(s.Key())
	switch {
	case !there:
		refused = fmt.Sprintf("Secret %s is not there", name)
		status.Set(api.ConditionResolved, false, reasonNoSecret, refused, c.now)
	case facts == nil || !facts.HasKey:
		refused = fmt.Sprintf("Secret %s does not hold a certificate and its key", name)
		status.Set(api.ConditionResolved, false, reasonBad, refused, c.now)
	default:
		status.Set(api.ConditionResolved, true, reasonResolved, "Secret "+name, c.now)
	}
	return refused
}

// clusterHosts returns the names of public.hosts for which the cluster vouches: none
// of its own, beside that which the Service has.
func (c *compiler) clusterHosts(s *api.Service) (hosts []string) {
	if s.Spec.Public == nil {
		return nil
	}
	for _, h := range s.Spec.Public.Hosts {
		if h = api.FoldName(h); h != api.AnyName && validName(strings.TrimPrefix(h, "*.")) && !c.ownName(h) {
			hosts = append(hosts, h)
		}
	}
	return distinct(hosts, cmp.Compare[string])
}

func (c *compiler) statusOf(key api.Key) *api.RouteStatus {
	s := c.out.status[key]
	if s == nil {
		s = &api.RouteStatus{}
		c.out.status[key] = s
	}
	return s
}

// prepare brings a row into the form in which rows are compared, and reports
// whether it can be one.
func (c *compiler) prepare(r *row) bool {
	bind, err := canonical(r.Bind)
	if err != nil {
		return c.lose(r, reasonInvalid, "%v", err)
	}
	r.Bind = bind
	m := &r.Match
	m.SNI = api.FoldName(m.SNI)
	m.ALPN = distinct(m.ALPN, cmp.Compare[string])
	sources := slices.Clone(m.Sources)
	for i, p := range sources {
		if sources[i] = masked(p); !sources[i].IsValid() {
			return c.lose(r, reasonInvalid, "%v is not a network", p)
		}
	}
	m.Sources = distinct(sources, comparePrefixes)
	r.name()
	switch {
	case m.SNI != "" && m.SNI != api.AnyName && !validName(strings.TrimPrefix(m.SNI, "*.")):
		return c.lose(r, reasonInvalid, "%.100q is not a server name, *.DOMAIN or *", m.SNI)
	case m.SNI == "" && (len(m.ALPN) > 0 || r.Terminate != nil):
		return c.lose(r, reasonInvalid, "ALPN, and TLS that ends here, need a server name; * is any")
	case c.reserved(r):
		return c.lose(r, reasonReserved, "%s is a name of the cluster itself, below its domain %s", m.SNI, c.Domain)
	}
	for _, own := range c.Own {
		if overlaps(own, r.Bind) {
			return c.lose(r, reasonReserved, "%v is an address of the cluster itself (%v); choose another port", r.Bind, own)
		}
	}
	return true
}

// name makes the names of a row: one that is exact and one for people.
func (r *row) name() {
	m := &r.Match
	r.place = r.Bind.String() + " " + m.SNI
	if len(m.ALPN)+len(m.Sources) > 0 {
		r.place += fmt.Sprintf(" %q %v", m.ALPN, m.Sources)
	}
	switch {
	case r.Bind.UDP:
		r.words = "any datagrams"
	case m.SNI == "":
		r.words = "any bytes"
	case m.SNI == api.AnyName:
		r.words = "any server name"
	default:
		r.words = "sni " + m.SNI
	}
	if len(m.ALPN) > 0 {
		r.words += ", alpn " + few(m.ALPN)
	}
	if len(m.Sources) > 0 {
		r.words += ", from " + few(m.Sources)
	}
}

// few writes the first of a list, and how many more there are.
func few[T any](list []T) string {
	const most = 3
	var b strings.Builder
	for i, x := range list[:min(len(list), most)] {
		if i > 0 {
			b.WriteString(" or ")
		}
		fmt.Fprint(&b, x)
	}
	if n := len(list) - most; n > 0 {
		fmt.Fprintf(&b, " or %d more", n)
	}
	return b.String()
}

// reserved reports whether a row takes a server name below the cluster's domain
// that is not its own.
func (c *compiler) reserved(r *row) bool {
	return c.ownName(r.Match.SNI) && (r.service == nil || r.Match.SNI != r.service.Metadata.Name+".svc."+c.Domain)
}

// ownName reports whether a server name, or a pattern, is in the cluster's domain.
func (c *compiler) ownName(name string) bool {
	return isBelow(strings.TrimPrefix(name, "*."), c.Domain)
}

// isBelow reports whether a name is a domain, or below it; "" is none.
func isBelow(name, domain string) bool {
	return domain != "" && (name == domain || strings.HasSuffix(name, "."+domain))
}

// settle takes a row into the table unless an older one is where it wants to be.
func (c *compiler) settle(r *row) {
	if older := c.accepted[r.place]; older != nil {
		if older.Owner != r.Owner {
			other := "server name, condition, address or port"
			if r.Bind.UDP {
				other = "address or port"
			}
			c.lose(r, reasonConflict, "%s on %v is taken by %v, which came first; choose another %s", r.words, r.Bind, older.Owner, other)
		}
		return
	}
	if s := r.service; s != nil && s.Spec.Public != nil && s.Spec.Public.ProxyProtocol && c.proxied[r.Bind] == "" {
		if l := c.out.listeners[r.Bind]; l != nil {
			c.lose(r, reasonConflict, "connections to %v do not begin with a PROXY header, as %v came first; set public.proxyProtocol there, too, or choose another port", r.Bind, l.rows[0].Owner)
			return
		}
		c.proxied[r.Bind] = r.Owner.String()
	}
	c.accepted[r.place] = r
	c.order = append(c.order, r)
	l := c.out.listeners[r.Bind]
	if l == nil {
		l = &listener{bind: r.Bind}
		l.names.own = c.Domain
		c.out.listeners[r.Bind] = l
	}
	l.rows = append(l.rows, r)
	if s := r.service; s != nil && c.proxied[r.Bind] != "" && (s.Spec.Public == nil || !s.Spec.Public.ProxyProtocol) {
		note := fmt.Sprintf("connections to %v begin with a PROXY header, as %s says", r.Bind, c.proxied[r.Bind])
		if st := c.statusOf(r.Owner); !slices.Contains(st.Notes, note) {
			st.Notes = append(st.Notes, note)
		}
	}
}

// listen makes the listeners ready to be asked for rows.
func (c *compiler) listen() {
	ports := map[api.Bind]int{}
	for bind := range c.out.listeners {
		ports[api.Bind{Port: bind.Port, UDP: bind.UDP}]++
	}
	for _, l := range c.out.listeners {
		l.alone = ports[api.Bind{Port: l.bind.Port, UDP: l.bind.UDP}] == 1
		l.proxied = c.proxied[l.bind] != ""
		a, _ := netip.ParseAddr(l.bind.Address)
		if !l.bind.UDP {
			c.out.at[netip.AddrPortFrom(a, uint16(l.bind.Port))] = l
		}
		l.sole = sole(slices.Values(l.rows))
		for i, r := range l.rows {
			c.ready(r)
			b := l.bucket(r.Match.SNI)
			for _, p := range r.Match.Sources {
				b.candidates = append(b.candidates, candidate{r, p})
			}
			if len(r.Match.Sources) == 0 {
				b.candidates = append(b.candidates, candidate{row: r})
			}
			l.asks = l.asks || r.StartTLS != ""
			if i == 0 {
				l.meter = r.meter
			} else if l.meter != r.meter {
				l.meter = nil
			}
		}
		if l.bytes != nil {
			l.bytes.sort()
		}
		for b := range maps.Values(l.names.exact) {
			b.sort()
		}
		for b := range maps.Values(l.names.below) {
			b.sort()
		}
	}
}

// bucket returns the bucket of a server name, which may be new.
func (l *listener) bucket(name string) *bucket {
	if name == "" {
		if l.bytes == nil {
			l.bytes = &bucket{}
		}
		return l.bytes
	}
	in, at := l.names.at(name)
	b := in[at]
	if b == nil {
		b = &bucket{}
		in[at] = b
	}
	return b
}

// sole returns a row of several if all are of one Object, else nil.
func sole(rows iter.Seq[*row]) (one *row) {
	for r := range rows {
		if one != nil && one.Owner != r.Owner {
			return nil
		}
		one = r
	}
	return one
}

// rows yields the rows of a bucket, perhaps more than once.
func (b *bucket) rows(yield func(*row) bool) {
	for _, x := range b.candidates {
		if !yield(x.row) {
			return
		}
	}
}

// sort brings rows with more conditions to the front, then longer prefixes, then
// older rows.
func (b *bucket) sort() {
	slices.SortStableFunc(b.candidates, func(x, y candidate) int {
		return cmp.Or(cmp.Compare(y.conditions(), x.conditions()), cmp.Compare(y.source.Bits(), x.source.Bits()))
	})
}

func (x candidate) conditions() (n int) {
	if len(x.row.Match.ALPN) > 0 {
		n++
	}
	if x.source.IsValid() {
		n++
	}
	return n
}

// ready gives a row what it has before its first connection.
func (c *compiler) ready(r *row) {
	identity := r.identity()
	if old := c.before.rows[identity]; old != nil {
		r.turns, r.version = old.turns, old.version
	} else {
		weights := make([]int, len(r.Members))
		for i, m := range r.Members {
			weights[i] = m.Weight
		}
		r.turns, r.version = newTurns(weights), c.version(identity)
	}
	c.out.rows[identity] = r
	if r.Rate > 0 {
		r.meter = cmp.Or(c.out.meters[r.Owner], c.before.meters[r.Owner])
		if r.meter == nil {
			r.meter = &meter{}
			r.limit()
		}
		c.out.meters[r.Owner] = r.meter
	}
	listener := r.Bind.String()
	for _, m := range r.Members {
		r.routed = append(r.routed, &api.Routed{Object: m.Object, Config: m.Config, Limits: m.Limits, StatsName: m.StatsName,
			Log: api.LogRoute{Listener: listener, Match: r.words, Version: r.version}})
	}
	if r.Refused != "" {
		return
	}
	if r.Refused = r.flaw(); r.Refused != "" {
		for _, key := range r.objects() {
			c.statusOf(key).Set(api.ConditionResolved, false, reasonInvalid, r.Refused, c.now)
		}
	}
}

// flaw returns why a row refuses, beside what its maker found.
func (r *row) flaw() string {
	if t := r.Terminate; t != nil {
		if _, _, _, _, err := t.Resolve(); err != nil {
			return err.Error()
		}
	}
	if r.turns == nil {
		return "nobody has a share of the connections: there is no weight above 0, or the weights are too large"
	}
	return ""
}

// limit makes the meter of a row what the row says.
func (r *row) limit() {
	if r.meter == nil {
		return
	}
	says := "annotation cardea/connections-per-second"
	if r.service != nil {
		says = "spec.limits.connectionsPerSecond"
	}
	r.meter.set(r.Rate, says)
	if r.Bind.UDP {
		r.meter.bound(sourcesAtOnce * r.Rate)
	}
}

// version returns a name for a sequence that begins now.
func (c *compiler) version(identity string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %s", c.now.UnixNano(), c.out.serial, identity))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}

// finish says how it stands with each Object.
func (c *compiler) finish() {
	for _, r := range c.order {
		for _, key := range r.objects() {
			c.out.of[key] = append(c.out.of[key], r)
		}
	}
	for key, rows := range c.out.of {
		status := c.statusOf(key)
		if len(c.lost[key]) == 0 && status.Condition(api.ConditionAccepted) == nil {
			status.Set(api.ConditionAccepted, true, reasonAccepted, served(rows)+" on "+rows[0].Bind.String(), c.now)
		}
	}
	for key, list := range c.lost {
		slices.SortFunc(list, func(a, b loss) int { return cmp.Or(cmp.Compare(a.reason, b.reason), cmp.Compare(a.words, b.words)) })
		var words []string
		for _, x := range list {
			words = append(words, x.words)
		}
		message := strings.Join(words, "; ")
		if rows := c.out.of[key]; len(rows) > 0 {
			message += fmt.Sprintf(" (the rest, %s, is served)", served(rows))
		}
		c.statusOf(key).Set(api.ConditionAccepted, false, list[0].reason, message, c.now)
	}
	for key, status := range c.out.status {
		old := c.before.status[key]
		for i := range status.Conditions {
			x := &status.Conditions[i]
			if old == nil {
				continue
			}
			if was := old.Condition(x.Type); was != nil && was.Status == x.Status {
				x.Since = was.Since
			}
		}
	}
}

// served says what rows of one Object match.
func served(rows []*row) string {
	if len(rows) == 1 {
		return rows[0].words
	}
	var words []string
	for _, r := range rows {
		words = append(words, r.words)
	}
	return few(distinct(words, cmp.Compare[string]))
}

// open notes the names by which public Services are reached at the cluster's own
// port, where whoever comes is anybody, from anywhere, and TLS ends. Those that make
// conditions are not.
func (c *compiler) open() {
	services := slices.SortedFunc(slices.Values(c.Services), func(a, b *api.Service) int {
		return cmp.Or(a.Metadata.CreatedAt.Compare(b.Metadata.CreatedAt), cmp.Compare(a.Metadata.Name, b.Metadata.Name))
	})
	for _, s := range services {
		name, public := s.Metadata.Name, cmp.Or(s.Spec.Public, &api.ServicePublic{})
		if s.Spec.Mode == api.ModeUDP || !s.Spec.IsPublic || !s.Spec.IsAnonymous || public.Passthrough || len(public.Sources) > 0 || len(public.ALPN) > 0 {
			continue
		}
		for _, host := range append([]string{name + ".svc." + c.Domain}, public.Hosts...) {
			r := row{service: s, Route: api.Route{Match: api.Match{SNI: api.FoldName(host)}}}
			in, at := c.out.public.at(r.Match.SNI)
			if _, taken := in[at]; !taken && r.Match.SNI != api.AnyName && !c.reserved(&r) {
				in[at] = name
			}
		}
	}
}

// canonical returns a bind as binds are compared.
func canonical(b api.Bind) (api.Bind, error) {
	if b.Port < 1 || b.Port > 65535 {
		return b, fmt.Errorf("port %d is not from 1 to 65535", b.Port)
	}
	if b.Address == "" {
		return b, nil
	}
	a, err := netip.ParseAddr(b.Address)
	if err != nil {
		return b, fmt.Errorf("%.100q is not an IP address", b.Address)
	}
	b.Address = a.Unmap().String()
	return b, nil
}

// compareBinds orders binds by port, TCP first, and then by how much they take: one address,
// those of a family, every one.
func compareBinds(a, b api.Bind) int {
	udp := func(b api.Bind) int {
		if b.UDP {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.Port, b.Port), udp(a)-udp(b), cmp.Compare(breadth(a), breadth(b)), cmp.Compare(a.Address, b.Address))
}

// breadth tells how much a bind takes.
func breadth(b api.Bind) int {
	switch b.Address {
	case "":
		return 2
	case "0.0.0.0", "::":
		return 1
	}
	return 0
}

// covers reports whether connections to an address are a bind's.
func covers(b api.Bind, a netip.Addr) bool {
	switch b.Address {
	case "":
		return true
	case "0.0.0.0":
		return a.Is4()
	case "::":
		return a.Is6()
	}
	return b.Address == a.String()
}

// overlaps reports whether a connection could belong to a bind and to a listener
// that is not the table's.
func overlaps(own netip.AddrPort, b api.Bind) bool {
	a := own.Addr().Unmap()
	switch {
	case int(own.Port()) != b.Port, b.UDP: // what is our own is of TCP
		return false
	case a == netip.IPv6Unspecified(): // it takes IPv4, too
		return true
	case a == netip.IPv4Unspecified():
		x, err := netip.ParseAddr(b.Address)
		return err != nil || x.Is4()
	}
	return covers(b, a)
}

// validName reports whether a folded name can be a server name (RFC 6066).
func validName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return len(name) <= 253
}

// masked returns a network as networks are compared; it is not valid if p is not.
func masked(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// distinct returns the values of a list in order, each once.
func distinct[T comparable](list []T, compare func(a, b T) int) []T {
	if len(list) == 0 {
		return nil
	}
	return slices.Compact(slices.SortedFunc(slices.Values(list), compare))
}

// Status returns how it stands with an Object: a foreign one, or a Service with a
// public port. It is nil if the table has nothing of it.
func (t *Table) Status(k api.Key) *api.RouteStatus {
	s := t.status[k]
	if s == nil {
		return nil
	}
	return &api.RouteStatus{Conditions: slices.Clone(s.Conditions), Notes: slices.Clone(s.Notes)}
}
