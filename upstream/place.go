package upstream

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/upstream/balance"
)

const (
	// maxPlaces is the number of configs of which something is remembered, beside those
	// that have connections or are checked.
	maxPlaces = 4096
	// forgetTries is how many places are looked at for one that can be forgotten.
	forgetTries = 16
	// maxTargets is the number of places of a name of SRV records that are used.
	maxTargets = 16
)

// A placeKey names a config.
type placeKey struct{ service, config string }

// A place is what is remembered of a config.
type place struct {
	key      placeKey
	object   api.Key
	name     string // of the config, as its status has it
	set      *balance.Set
	serving  Serving // nil if there is none
	shape    atomic.Pointer[shape]
	used     atomic.Int64              // when it was last dialled, in seconds of Unix time
	ending   atomic.Pointer[condition] // what is remembered of the last dial
	renewing atomic.Bool               // its names are being resolved ahead of time
	figures  sync.Map                  // *figure by Host

	mu      sync.Mutex
	sources []*source // of the endpoints
	hope    time.Time // until when a Session may come that serves
	tls     *tls.Config
	from    ingredients // what tls was made of
	made    [32]byte    // the same, in a hash
	watched bool        // guarded by the Dialer's mu
}

// A shape is what a place was made of. It does not change.
type shape struct {
	// configs are all known to say the same.
	configs  [4]*api.ServiceConfig
	ends     []api.Endpoint
	rules    balance.Rules
	families []api.IPFamily
	retries  int // most that are tried beside the first; -1 is all
	hosts    map[string][]string
	named    bool // an endpoint has a name
	served   bool // an endpoint is one of a User
	tls      bool // TLS, or what comes before it, is spoken
	udp      bool // it is reached by datagrams
}

// A source is a name, or an address, that stands for targets: an endpoint, or what an
// SRV record of one leads to. What can change is guarded by the place's mu.
type source struct {
	end      api.Endpoint // the endpoint as it is configured
	host     string
	port     int
	name     string // what the upstream must prove with TLS
	priority int    // among the SRV records of one name
	share    int64  // of their weight

	addrs   []netip.Addr
	records []*source // of SRV records
	until   time.Time // until when these hold

	sessions []string // of a User that serve it, by uid
}

// isSRV tells whether the host is a name of SRV records.
func (s *source) isSRV() bool { return s.port == 0 }

// isServed tells whether it stands for the Sessions of a User.
func (s *source) isServed() bool { return s.end.User != "" }

// address returns HOST:PORT, or HOST alone of a name of SRV records; and the User who
// serves it.
func (s *source) address() string {
	if s.isServed() {
		return s.end.Address()
	}
	if s.isSRV() {
		return s.host
	}
	return net.JoinHostPort(s.host, strconv.Itoa(s.port))
}

// place returns what is remembered of a config. Where there are too many, one that has
// no connections and is not checked is forgotten: that costs a handshake, and turns.
func (d *Dialer) place(to *api.Destination) *place {
	k := placeKey{to.Service, to.Config.Name}
	d.mu.RLock()
	p := d.places[k]
	d.mu.RUnlock()
	if p != nil {
		return p
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p = d.places[k]; p != nil {
		return p
	}
	if d.places == nil {
		d.places, d.objects = map[placeKey]*place{}, map[api.Key][]*place{}
	}
	tries := 0
	for _, other := range d.places {
		if tries++; len(d.places) < maxPlaces || tries > forgetTries {
			break
		}
		d.forget(other)
	}
	p = &place{key: k, object: to.Object, serving: d.Serving, hope: time.Now().Add(hopeTime)}
	p.used.Store(time.Now().Unix())
	if k.config != api.DefaultConfig {
		p.name = k.config
	}
	// The turns do not begin always with the same: it may be forgotten again and again.
	p.set = balance.New(d.names.time, d.forgot, func(t *balance.Target, from, to api.HealthState, words string) {
		d.changes.note(p, t, from, to, words)
	})
	d.places[k] = p
	d.objects[p.object] = append(d.objects[p.object], p)
	return p
}

// forget forgets a place that has no connections and is not checked. mu must be held.
func (d *Dialer) forget(p *place) {
	if p.watched || !p.set.Idle() || d.places[p.key] != p {
		return
	}
	delete(d.places, p.key)
	d.objects[p.object] = slices.DeleteFunc(d.objects[p.object], func(o *place) bool { return o == p })
	if len(d.objects[p.object]) == 0 {
		delete(d.objects, p.object)
	}
	d.forgot++
}

// configure makes the place what a config says. It is quick if that has not changed.
func (d *Dialer) configure(p *place, c *api.ServiceConfig) (*shape, error) {
	s := p.shape.Load()
	if s != nil && slices.Contains(s.configs[:], c) && (!s.named || sameMap(s.hosts, d.Hosts())) {
		return s, nil
	}
	ends, err := c.Upstream.Endpoints()
	if err != nil {
		return nil, err
	}
	return d.shaped(p, c, merge(ends)), nil
}

// shaped does so with the endpoints of the config.
func (d *Dialer) shaped(p *place, c *api.ServiceConfig, ends []api.Endpoint) *shape {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := &shape{ends: ends, families: c.Upstream.Families, retries: -1, hosts: d.Hosts()}
	next.configs[0] = c
	if l := c.Upstream.Loadbalance; l != nil {
		next.rules.Balance, next.rules.SlowStart = l.Algorithm, l.SlowStart.Or(0)
		if l.Retries != nil {
			next.retries = *l.Retries
		}
	}
	if h := c.Upstream.Health; h != nil {
		next.rules.Ejection, next.rules.Checked = h.Ejection, h.Check != nil
	}
	next.tls = c.TLS != nil || c.ClientCertificate != nil || c.Upstream.StartTLS != ""
	for _, e := range ends {
		_, err := netip.ParseAddr(e.Host)
		next.named, next.tls, next.udp = next.named || err != nil && e.User == "", next.tls || e.TLS, next.udp || e.UDP
		next.served = next.served || e.User != ""
	}
	if next.served {
		next.rules.Fewest = true
		if next.rules.Ejection == nil {
			next.rules.Ejection = &api.Ejection{Failures: 1, Time: &api.Duration{Seconds: new(servedOut)}, MaxPercent: 100}
		}
	}
	last := p.shape.Load()
	if last != nil && next.same(last) {
		if i := slices.Index(last.configs[:], c); i < 0 {
			copy(next.configs[1:], last.configs[:])
		} else {
			next.configs = last.configs
		}
		if sameMap(last.hosts, next.hosts) || !next.named {
			p.shape.Store(next)
			return next
		}
	}
	p.shape.Store(next)
	old := p.sources
	p.sources = nil
	for _, e := range ends {
		i := slices.IndexFunc(old, func(s *source) bool { return s.end.Host == e.Host && s.end.Port == e.Port && s.end.User == e.User })
		s := &source{end: e, host: e.Host, port: e.Port, name: e.Host, share: 1}
		if s.isServed() {
			if s.until = forever(); i >= 0 {
				s.sessions = old[i].sessions
			}
			p.sources = append(p.sources, s)
			continue
		}
		if i >= 0 && last != nil && slices.Equal(last.families, next.families) && sameMap(last.hosts, next.hosts) {
			s.addrs, s.records, s.until = old[i].addrs, old[i].records, old[i].until
			for _, r := range s.records {
				r.end = e
			}
		} else if i >= 0 && slices.Equal(last.families, next.families) {
			s.addrs, s.records = old[i].addrs, old[i].records // they are resolved again
		}
		if a, err := netip.ParseAddr(e.Host); err == nil {
			s.addrs, s.until = []netip.Addr{a}, forever()
		}
		p.sources = append(p.sources, s)
	}
	p.update()
	return next
}

// forever is a time that does not come.
func forever() time.Time { return time.Unix(1<<40, 0) }

// same tells whether two shapes say the same of the targets.
func (s *shape) same(o *shape) bool {
	sameEjection := s.rules.Ejection == o.rules.Ejection || s.rules.Ejection != nil && o.rules.Ejection != nil && reflect.DeepEqual(s.rules.Ejection, o.rules.Ejection)
	a, b := s.rules, o.rules
	a.Ejection, b.Ejection = nil, nil
	return sameEjection && a == b && s.tls == o.tls && s.udp == o.udp && s.retries == o.retries && slices.Equal(s.ends, o.ends) && slices.Equal(s.families, o.families)
}

// sameMap tells whether two maps are one.
func sameMap(a, b map[string][]string) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

// merge makes endpoints that are listed several times one, which has the weights of
// all.
func merge(ends []api.Endpoint) []api.Endpoint {
	var out []api.Endpoint
	for _, e := range ends {
		i := slices.IndexFunc(out, func(o api.Endpoint) bool {
			return o.Host == e.Host && o.Port == e.Port && o.TLS == e.TLS && o.User == e.User
		})
		if i < 0 {
			out = append(out, e)
			continue
		}
		o := &out[i]
		if o.MaxConnections += e.MaxConnections; o.MaxConnections == e.MaxConnections || e.MaxConnections == 0 {
			o.MaxConnections = 0
		}
		o.Weight, o.Backup = o.Weight+e.Weight, o.Backup && e.Backup
	}
	return out
}

// update makes the targets those that the sources stand for. mu must be held.
func (p *place) update() {
	var lists [][]balance.Spec
	for _, s := range p.sources {
		if s.isServed() {
			lists = append(lists, p.served(s))
		} else {
			lists = append(lists, s.specs(s.end.Address()))
		}
	}
	// Of equals the endpoints take turns, and not the addresses of one.
	var specs []balance.Spec
	for i := 0; len(lists) > 0; i++ {
		lists = slices.DeleteFunc(lists, func(l []balance.Spec) bool { return len(l) <= i })
		for _, l := range lists {
			specs = append(specs, l[i])
		}
	}
	p.set.Update(specs, p.shape.Load().rules)
}

// shareUnit is what the addresses of one name divide among them.
const shareUnit = 720720

// specs returns the targets of a source.
func (s *source) specs(group string) (out []balance.Spec) {
	base := balance.Spec{Host: s.address(), Group: group, Weight: max(s.end.Weight, 1), Backup: s.end.Backup, Max: s.end.MaxConnections, Share: s.share * shareUnit, Until: s.until, Level: 2 * s.priority}
	if s.isSRV() && len(s.records) > 0 {
		for _, r := range s.records {
			specs := r.specs(group)
			for i := range specs {
				if s.until.Before(specs[i].Until) {
					specs[i].Until = s.until
				}
			}
			out = append(out, specs...)
		}
		return out
	}
	if len(s.addrs) == 0 {
		return []balance.Spec{base}
	}
	of := [2]int64{}
	family := func(a netip.Addr) int {
		if a.Is4() == s.addrs[0].Is4() {
			return 0
		}
		return 1
	}
	for _, a := range s.addrs {
		of[family(a)]++
	}
	for _, a := range s.addrs {
		x := base
		x.Addr = netip.AddrPortFrom(a, uint16(s.port))
		x.Level += family(a)
		x.Share /= of[family(a)]
		out = append(out, x)
	}
	return out
}

// source returns the source of a Host: what its targets are resolved of.
func (p *place) source(host string) (s, parent *source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sources {
		if s.address() == host {
			return s, nil
		}
		for _, r := range s.records {
			if r.address() == host {
				return r, s
			}
		}
	}
	return nil, nil
}

// stale yields the sources whose names will have to be resolved at that time.
func (p *place) stale(at time.Time) (list []*source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.sources {
		if !at.Before(s.until) {
			list = append(list, s)
			continue
		}
		for _, r := range s.records {
			if !at.Before(r.until) {
				list = append(list, r)
			}
		}
	}
	return list
}

// resolveSource finds out what a source stands for, and makes that the targets. An
// answer that ends within ahead is asked for again.
func (d *Dialer) resolveSource(ctx context.Context, p *place, s *source, ahead time.Duration) error {
	var addrs []netip.Addr
	var records []service
	var until time.Time
	var err error
	if s.isSRV() {
		records, until, err = d.services(ctx, s.host, ahead)
	} else {
		addrs, until, err = d.resolve(ctx, s.host, p.shape.Load().families, ahead)
	}
	if err != nil && (ctx.Err() != nil || ahead > 0) {
		return err // that there was no time says nothing of the name; and it still holds
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.until = until
	if !s.isSRV() {
		s.addrs = addrs
	} else {
		s.records = s.recordsOf(records)
	}
	p.update()
	return err
}

// recordsOf returns the sources that SRV records lead to: those that were known go on.
func (s *source) recordsOf(list []service) (out []*source) {
	slices.SortStableFunc(list, func(a, b service) int { return int(a.priority) - int(b.priority) })
	for _, r := range list {
		host := strings.TrimSuffix(r.target, ".")
		if slices.ContainsFunc(out, func(o *source) bool { return o.host == host && o.port == int(r.port) }) {
			continue
		}
		x := &source{end: s.end, host: host, port: int(r.port), name: s.name}
		if i := slices.IndexFunc(s.records, func(o *source) bool { return o.host == host && o.port == int(r.port) }); i >= 0 {
			x = s.records[i]
		}
		// One of weight 0 has a small chance (RFC 2782).
		if x.priority, x.share = int(r.priority), 100*int64(r.weight); r.weight == 0 {
			x.share = 1
		}
		if out = append(out, x); len(out) == maxTargets {
			break
		}
	}
	return out
}

// services returns the SRV records of a name, one at least, and how long they hold.
func (d *Dialer) services(ctx context.Context, host string, ahead time.Duration) ([]service, time.Time, error) {
	list, until, err := d.names.services(ctx, host, ahead)
	list = slices.DeleteFunc(slices.Clone(list), func(s service) bool { return s.target == "." || s.target == "" || s.port == 0 })
	if err == nil && len(list) == 0 {
		err = &net.DNSError{Err: "its SRV records say that there is no such service", Name: host, IsNotFound: true}
	}
	return list, until, err
}

// isAlone tells whether a target is the only one of its Host.
func (p *place) isAlone(t *balance.Target) bool { return len(p.set.OfHost(t.Host)) == 1 }
