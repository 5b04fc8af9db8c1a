// Package balance chooses among the targets of an upstream: whose turn it is, which
// of them serve, how many connections each has, and who waits for a place. It knows
// addresses and opens nothing.
//
// A [Set] has the targets of one config. Each [Target] is one address that one of the
// configured endpoints stands for, or a Session that serves it; the endpoint is the Group
// of its targets, which share its weight and its bound of connections.
//
// Of the targets that may be chosen those of the best tier count alone: that serve and
// are no backup, then backups, then those that were ejected because connections to
// them failed (so that never all are out). A target that a check has found unhealthy
// is not chosen at all.
package balance

import (
	"cmp"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"cardea/api"
)

const (
	// unit is the weight of a Group of weight 1: a number that most numbers of targets
	// divide, so that shares are exact (it is the least common multiple of 1 to 16).
	unit = 720720
	// MaxOfHost is the number of targets of one Host that are tried for one connection.
	MaxOfHost = 16
	// maxWaiting is the number of connections that wait for a place of one Set.
	maxWaiting = 4096
	// maxGone is the number of targets that are remembered although they are gone and
	// have no connections, and goneTime for how long: a name may have other addresses
	// each time it is asked for.
	maxGone  = 256
	goneTime = 5 * time.Minute
)

// A Spec is a target as it is configured, and resolved.
type Spec struct {
	Addr netip.AddrPort // not valid: its name has not been resolved, or it is a Session
	// Session is the uid of the Session that serves it, and Name what that is called; ""
	// if none does.
	Session, Name string
	Host          string // HOST:PORT of the name that led to it
	Group         string // the endpoint as it is configured
	Weight        int    // of the Group; at least 1
	Backup        bool   // of the Group
	Max           int    // connections of the Group at once; 0 is any number
	// Level is above 0 where a target is chosen only while none of the Group serves that
	// has a lower one, and Share is its part of the weight among those of its Level.
	Level int
	Share int64
	// Until is how long it may be chosen without its name being resolved again.
	Until time.Time
}

// Rules say how is chosen.
type Rules struct {
	Balance api.Balance
	// Fewest has those take turns that have the fewest connections for their weight,
	// where Balance says nothing.
	Fewest    bool
	SlowStart time.Duration
	Ejection  *api.Ejection // nil for none
	Checked   bool          // somebody calls Judge
}

// A Target is one address of an endpoint. Its exported fields do not change. It is an
// [api.Hold]: that of one of its connections.
type Target struct {
	Addr          netip.AddrPort
	Session, Name string // of a Session that serves
	Host, Group   string

	set *Set
	// What follows is guarded by set.mu.
	spec   Spec
	group  *group
	gone   time.Time // when it was no part of the Set any more
	conns  int       // connections that it has, and that are being made
	tier   int
	weight int64  // of those of its tier and level
	lead   bool   // of the level of its Group that is chosen first
	ofHost int    // targets of its Host that can be chosen
	turn   int64  // smooth weighted round robin
	hash   uint64 // of its address

	since   time.Time // of its state
	began   time.Time // of its slow start
	verdict api.HealthState
	words   string // of the verdict
	row     int    // verdicts in a row that contradict it

	proven  bool      // connected to, and not failed since
	refused int       // attempts in a row that failed
	broken  int       // connections in a row that were broken off before a byte
	times   int       // ejections in a row
	out     time.Time // until when it is ejected; zero if it is not
	back    time.Time // when it last was not any more
	why     string    // it was ejected
}

// IsKnown tells whether it can be connected to: it is no name that is yet to be resolved.
func (t *Target) IsKnown() bool { return t.Addr.IsValid() || t.Session != "" }

// At returns where it is, for words: an address, or the name of its Session.
func (t *Target) At() string {
	if t.Session != "" {
		return api.ServedAt(t.Name)
	}
	return t.Addr.String()
}

// A group is an endpoint as it is configured.
type group struct {
	conns, max int
}

// A Set is the targets of one config. It may be used from any number of goroutines.
type Set struct {
	now     func() time.Time
	changed func(t *Target, from, to api.HealthState, words string)

	mu      sync.Mutex
	rules   Rules
	targets []*Target // in the order in which equals take turns
	first   []*Target // of the best tier, and the first level of their Group
	groups  map[string]*group
	gone    []*Target // that are remembered
	waiting []*waiter
	scratch []*Target
	few     []*Target // what fewest returns
	bounded bool      // a group has a max
	ramping time.Time // until when a target is in its slow start
	returns time.Time // when the next ejection is over; zero if there is none
	fresh   time.Time // until when all names are resolved
	serving bool
	flipped time.Time // when serving changed
	hosts   int
	usable  int // Hosts that can be chosen
	choices int // targets that can be
	updated bool
	skip    int
	chance  func(n int64) int64
}

// New returns a Set without targets, which passes over the first so many turns. changed is told of each change of a target's
// state; it is called while the Set is locked, and must neither block nor call it. It
// may be nil.
func New(now func() time.Time, skip int, changed func(t *Target, from, to api.HealthState, words string)) *Set {
	if changed == nil {
		changed = func(*Target, api.HealthState, api.HealthState, string) {}
	}
	return &Set{now: now, skip: skip, changed: changed, groups: map[string]*group{}, chance: rand.Int64N}
}

// Update makes the targets those of specs. A target that was there goes on with its
// turns, its health and its connections; a new one has the health of another one with
// its address, if there was one.
func (s *Set) Update(specs []Spec, rules Rules) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	type key struct {
		group, host, session string
		addr                 netip.AddrPort
	}
	had := map[key]*Target{}
	at := map[netip.AddrPort]*Target{}
	for _, t := range slices.Concat(s.gone, s.targets) {
		had[key{t.Group, t.Host, t.Session, t.Addr}] = t
		at[t.Addr] = t
	}
	old := s.targets
	s.targets = make([]*Target, 0, len(specs))
	is := make(map[*Target]bool, len(specs))
	groups := map[string]*group{}
	for _, spec := range specs {
		g := groups[spec.Group]
		if g == nil {
			if g = s.groups[spec.Group]; g == nil {
				g = new(group)
			}
			g.max = spec.Max
			groups[spec.Group] = g
		}
		k := key{spec.Group, spec.Host, spec.Session, spec.Addr}
		t := had[k]
		switch {
		case t == nil:
			t = &Target{Addr: spec.Addr, Session: spec.Session, Name: spec.Name, Host: spec.Host, Group: spec.Group, set: s, hash: hashOf(spec), since: now}
			if o := at[spec.Addr]; o != nil && spec.Addr.IsValid() {
				t.inherit(o)
			} else if s.updated && t.IsKnown() && s.resolvedBefore(old, spec.Group) {
				t.began = now
			}
		case t.Session != "" && !t.gone.IsZero():
			t.inherit(&Target{since: now, began: now}) // it has come anew
		case is[t]:
			continue // the same twice
		}
		is[t] = true
		had[k], t.spec, t.group, t.gone = t, spec, g, time.Time{}
		s.targets = append(s.targets, t)
	}
	for _, t := range old {
		if !is[t] {
			t.gone = now
			s.gone = append(s.gone, t)
		}
	}
	s.gone = slices.DeleteFunc(s.gone, func(t *Target) bool { return t.gone.IsZero() })
	for name, g := range s.groups {
		if groups[name] == nil && g.conns > 0 {
			groups[name] = g
		}
	}
	s.groups = groups
	for _, t := range slices.Concat(s.targets, s.gone) {
		if s.updated && rules.Checked != s.rules.Checked { // nothing happened to it
			t.verdict, t.row, t.words, t.since = "", 0, "", now
		}
	}
	s.rules = rules
	for _, t := range slices.Concat(s.targets, s.gone) {
		if rules.Ejection == nil {
			s.setting(t, now, func() { t.out, t.times = time.Time{}, 0 })
		}
	}
	s.updated = s.updated || len(specs) > 0
	s.inBounds(now)
	s.forget(now)
	s.rebuild(now)
	if n := len(s.first); n > 1 {
		for range s.skip % n {
			s.turned(s.first, s.choose(s.first, now, netip.Addr{}), now)
		}
		s.skip = 0
	}
	s.serve(now)
}

// resolvedBefore tells whether a group had an address before: one that is added later
// is new, and not only known now.
func (s *Set) resolvedBefore(old []*Target, group string) bool {
	return !slices.ContainsFunc(old, func(t *Target) bool { return t.Group == group && !t.IsKnown() })
}

// inherit takes over how it stands with an address.
func (t *Target) inherit(o *Target) {
	t.since, t.began, t.verdict, t.words, t.row = o.since, o.began, o.verdict, o.words, o.row
	t.proven, t.refused, t.broken = o.proven, o.refused, o.broken
	t.times, t.out, t.back, t.why = o.times, o.out, o.back, o.why
}

// forget drops those of gone that nobody needs. mu must be held.
func (s *Set) forget(now time.Time) {
	idle := 0
	for i := len(s.gone) - 1; i >= 0; i-- {
		t := s.gone[i]
		if t.conns > 0 {
			continue
		}
		if idle++; idle > maxGone || !t.IsKnown() || now.Sub(t.gone) > goneTime {
			s.gone = slices.Delete(s.gone, i, i+1)
		}
	}
}

// inBounds lets those in again, that were ejected first first, of which too many are
// out. mu must be held.
func (s *Set) inBounds(now time.Time) {
	out := slices.DeleteFunc(slices.Clone(s.targets), func(t *Target) bool { return t.out.IsZero() })
	slices.SortStableFunc(out, func(a, b *Target) int { return a.out.Compare(b.out) })
	for len(out) > 0 && len(out) > s.mayBeOut() {
		s.returned(out[0], now)
		out = out[1:]
	}
}

// mayBeOut is the number of targets that may be ejected at once. mu must be held.
func (s *Set) mayBeOut() int {
	if s.rules.Ejection == nil {
		return 0
	}
	n := 0
	for _, t := range s.targets {
		if t.IsKnown() {
			n++
		}
	}
	return n * cmp.Or(s.rules.Ejection.MaxPercent, 50) / 100
}

// The tiers.
const (
	tierServing = iota
	tierBackup
	tierOut
	tierBackupOut
	tierNone // it is not chosen
)

// tierOf returns that of a target. mu must be held.
func tierOf(t *Target) int {
	tier := tierServing
	switch {
	case t.verdict == api.HealthUnhealthy:
		return tierNone
	case !t.out.IsZero():
		tier = tierOut
	}
	if t.spec.Backup {
		tier++
	}
	return tier
}

// rebuild works out, after a change, who is chosen first and with which weight. mu
// must be held.
func (s *Set) rebuild(now time.Time) {
	s.bounded, s.ramping, s.returns, s.fresh = false, time.Time{}, time.Time{}, time.Time{}
	best := tierNone
	hosts, usable := map[string]bool{}, map[string]int{}
	s.choices = 0
	type rank struct {
		group       string
		tier, level int
	}
	level := map[string]rank{} // by group: what it is chosen by first
	for i, t := range s.targets {
		t.tier = tierOf(t)
		best = min(best, t.tier)
		if hosts[t.Host] = true; t.tier != tierNone {
			usable[t.Host]++
			s.choices++
		}
		s.bounded = s.bounded || t.spec.Max > 0
		if until := t.began.Add(s.rules.SlowStart); !t.began.IsZero() && until.After(now) && until.After(s.ramping) {
			s.ramping = until
		}
		if !t.out.IsZero() && (s.returns.IsZero() || t.out.Before(s.returns)) {
			s.returns = t.out
		}
		if i == 0 || t.spec.Until.Before(s.fresh) {
			s.fresh = t.spec.Until
		}
		r := rank{t.Group, t.tier, t.spec.Level}
		if l, known := level[t.Group]; !known || r.tier < l.tier || r.tier == l.tier && r.level < l.level {
			level[t.Group] = r
		}
	}
	shares := map[rank]int64{}
	for _, t := range s.targets {
		shares[rank{t.Group, t.tier, t.spec.Level}] += t.spec.Share
	}
	s.first = s.first[:0]
	for _, t := range s.targets {
		r := rank{t.Group, t.tier, t.spec.Level}
		t.lead, t.ofHost = level[t.Group] == r, usable[t.Host]
		t.weight = max(int64(float64(t.spec.Weight)*unit*float64(t.spec.Share)/float64(max(shares[r], 1))+0.5), 1)
		if t.tier == best && t.lead && best != tierNone {
			s.first = append(s.first, t)
		}
	}
	s.hosts, s.usable = len(hosts), len(usable)
	if serving := best <= tierBackup; serving != s.serving || s.flipped.IsZero() {
		s.serving, s.flipped = serving, now
	}
}

// A Query says for what connection a target is wanted.
type Query struct {
	Client netip.Addr // for SOURCE_HASH; not valid if there is none
	// Tried are the targets that were tried, in that order: none of them is chosen, and
	// those of other Hosts first.
	Tried []*Target
	Host  string   // if it is not "", only targets of it are chosen
	Known []string // Hosts that were resolved for this connection
	Stale bool     // names are taken as they are
	// Sure takes only what can be relied upon: all names are resolved, the target is
	// the only one of its Host, or could be connected to when that was last tried, and
	// there is a place at every other one that may come after it.
	Sure bool
}

// An Outcome says what came of a Query.
type Outcome int

// The outcomes.
const (
	Taken     Outcome = iota // the target has one connection more
	Stale                    // the name of the target must be resolved first, or none is sure; nothing was taken
	Full                     // there are targets, and all have as many connections as they may
	None                     // there is none that was not tried
	Unhealthy                // none serves
)

// Take chooses a target and gives it a connection: that ends with one call of Drop,
// Failed or Release.
func (s *Set) Take(now time.Time, q *Query) (*Target, Outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(now, q)
}

// take is Take. mu must be held.
func (s *Set) take(now time.Time, q *Query) (*Target, Outcome) {
	s.settle(now)
	list, none := s.first, None
	if len(s.first) == 0 {
		none = Unhealthy
		if len(q.Tried) > 0 {
			none = None
		}
	}
	if len(q.Tried) > 0 || q.Host != "" || s.bounded {
		var full bool
		if list, full = s.candidates(q); len(list) == 0 && full {
			return nil, Full
		}
	}
	if len(list) == 0 {
		return nil, none
	}
	if q.Sure && s.bounded && slices.ContainsFunc(s.targets, func(t *Target) bool { return t.tier != tierNone && t.isFull() }) {
		return nil, Stale
	}
	if s.rules.Fewest && s.rules.Balance == "" {
		list = s.fewest(list, now)
	}
	t := s.choose(list, now, q.Client)
	if !q.Stale && !now.Before(t.spec.Until) && !slices.Contains(q.Known, t.Host) || q.Sure && (!now.Before(s.fresh) || t.ofHost > 1 && !t.proven) {
		return t, Stale
	}
	if s.algorithm(q.Client) == api.BalanceRoundRobin {
		s.turned(list, t, now)
	}
	t.conns++
	t.group.conns++
	return t, Taken
}

// candidates returns the targets among which is chosen: those of the best tier, and
// among them of Hosts that were not tried, else of the family that was not tried last
// (RFC 8305, section 4). full tells that there are better ones, all full. mu must be
// held.
func (s *Set) candidates(q *Query) (list []*Target, full bool) {
	const worst = 4
	best, fullTier := worst*tierNone, tierNone
	list = s.scratch[:0]
	for _, t := range s.targets {
		if t.tier == tierNone || q.Host != "" && t.Host != q.Host || slices.Contains(q.Tried, t) {
			continue
		}
		tried, v4 := 0, false
		for _, o := range q.Tried {
			if o.Host == t.Host {
				tried, v4 = tried+1, o.Addr.Addr().Is4()
			}
		}
		rank := worst * t.tier
		switch {
		case tried >= MaxOfHost:
			continue
		case tried > 0 && v4 == t.Addr.Addr().Is4():
			rank += 3
		case tried > 0:
			rank += 2
		case !t.lead:
			rank++
		}
		if t.isFull() {
			fullTier = min(fullTier, t.tier)
			continue
		}
		if rank < best {
			best, list = rank, list[:0]
		}
		if rank == best {
			list = append(list, t)
		}
	}
	s.scratch = list[:0]
	if fullTier < best/worst {
		return nil, true
	}
	return list, false
}

// isFull tells whether its Group has as many connections as it may. mu must be held.
func (t *Target) isFull() bool { return t.spec.Max > 0 && t.group.conns >= t.spec.Max }

// Full returns for who has tried those and is told that all are Full which Groups that
// are, and which others are spare: they have a place, and are not chosen before none of
// the first serves.
func (s *Set) Full(tried []*Target) (full, spare []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tier := tierNone
	for _, t := range s.targets {
		if t.isFull() && !slices.Contains(tried, t) {
			tier = min(tier, t.tier)
		}
	}
	for _, t := range s.targets {
		switch {
		case t.tier == tierNone || slices.Contains(tried, t):
		case t.tier == tier && t.isFull() && !slices.Contains(full, t.Group):
			full = append(full, t.Group)
		case t.tier > tier && !t.isFull() && !slices.Contains(spare, t.Group):
			spare = append(spare, t.Group)
		}
	}
	return full, spare
}

// settle ends the ejections and the slow starts whose time is over. mu must be held.
func (s *Set) settle(now time.Time) {
	if !s.ramping.IsZero() && !now.Before(s.ramping) {
		s.ramping = time.Time{}
	}
	if s.returns.IsZero() || now.Before(s.returns) {
		return
	}
	for _, t := range s.targets {
		if !t.out.IsZero() && !now.Before(t.out) {
			s.returned(t, now)
		}
	}
	s.rebuild(now)
	s.serve(now)
}

// returned ends an ejection. mu must be held.
func (s *Set) returned(t *Target, now time.Time) {
	s.setting(t, now, func() {
		t.out, t.back, t.began, t.refused, t.broken = time.Time{}, now, now, 0, 0
	})
}

// setting changes a target by f, and tells if that changes its state. mu must be held.
func (s *Set) setting(t *Target, now time.Time, f func()) {
	from := t.state()
	f()
	if to := t.state(); to != from {
		if t.since = now; !t.gone.IsZero() {
			return
		}
		s.changed(t, from, to, t.reason(to))
	}
}

// state returns how it stands with a target. mu must be held.
func (t *Target) state() api.HealthState {
	switch {
	case t.verdict == api.HealthUnhealthy:
		return api.HealthUnhealthy
	case !t.out.IsZero():
		return api.HealthEjected
	case t.verdict == "" && t.set.rules.Checked || !t.IsKnown():
		return api.HealthUnknown
	}
	return api.HealthHealthy
}

// reason says why it stands so. mu must be held.
func (t *Target) reason(state api.HealthState) string {
	switch state {
	case api.HealthEjected:
		return t.why
	case api.HealthUnhealthy, api.HealthHealthy:
		return t.words
	}
	return ""
}

// Tick ends the ejections whose time is over; without it they end when somebody asks.
func (s *Set) Tick(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(now)
	s.forget(now)
}

// Fresh tells whether the names of all targets need not be resolved for a while.
func (s *Set) Fresh(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.targets) > 0 && now.Before(s.fresh)
}

// Hosts returns the number of Hosts.
func (s *Set) Hosts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts
}

// Left returns how many Hosts, and how many targets, can be tried for a connection
// that has tried those.
func (s *Set) Left(tried []*Target) (hosts, targets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hosts, targets = s.usable, s.choices
	for i, t := range tried {
		if t.tier == tierNone || !t.gone.IsZero() {
			continue
		}
		targets--
		ofHost := 1
		for _, o := range tried[:i] {
			if o.Host == t.Host && o.tier != tierNone && o.gone.IsZero() {
				ofHost++
			}
		}
		if ofHost == t.ofHost {
			hosts--
		}
	}
	return hosts, targets
}

// OfHost returns the targets of a Host.
func (s *Set) OfHost(host string) (list []*Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.targets {
		if t.Host == host {
			list = append(list, t)
		}
	}
	return list
}

// Targets returns the targets.
func (s *Set) Targets() []*Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.targets)
}

// Has tells whether a target is still one of the Set.
func (s *Set) Has(t *Target) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.gone.IsZero()
}

// Idle tells whether no target has connections, and nobody waits.
func (s *Set) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	busy := func(t *Target) bool { return t.conns > 0 }
	return len(s.waiting) == 0 && !slices.ContainsFunc(s.targets, busy) && !slices.ContainsFunc(s.gone, busy)
}

// A Status is how it stands with a target.
type Status struct {
	Host, Group string
	At          string // see Target.At
	State       api.HealthState
	Since       time.Time
	Words       string
	Weight      int
	Backup      bool
	Connections int
}

// Status returns how it stands with the targets whose names have been resolved, and
// whether one of them serves, and since when that is so.
func (s *Set) Status() (list []Status, serving bool, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle(s.now())
	for _, t := range s.targets {
		if !t.IsKnown() {
			continue
		}
		state := t.state()
		list = append(list, Status{t.Host, t.Group, t.At(), state, t.since, t.reason(state), t.spec.Weight, t.spec.Backup, t.conns})
	}
	return list, s.serving, s.flipped
}

// hashOf returns the hash of a target that SOURCE_HASH uses: the same in every process.
func hashOf(s Spec) uint64 {
	if s.Session != "" {
		h := fnv.New64a()
		h.Write([]byte(s.Session))
		return mix(h.Sum64(), 0)
	}
	b := s.Addr.Addr().As16()
	return mix(mix(word(b[:8]), word(b[8:])), uint64(s.Addr.Port()))
}
