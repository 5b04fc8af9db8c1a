package ingress

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"cardea/api"
)

// An Admission decides which of the connections that were accepted may make a TLS
// handshake, and when, so that no number of strangers keeps out those who mean it.
//
// A handshake needs a place from the accept to its end. Half of the places are
// for known networks, from which a Session was proved lately, the other half for
// strangers: neither can take the places of the other. If a half is full, a
// newcomer takes the place of the longest silent connection (one whose hello has
// not come; honest clients send it right behind the accept) or of a handshake
// that takes more than a second. It is taken from the network with the most
// places, and never from one with fewer than the newcomer's own has. If there is
// none to take, the newcomer waits, the network with the fewest places first, and
// not for long.
//
// A hello needs a token of its network, of which strangers get few a second. A
// handshake that proves a Session gives it back.
//
// The zero value has the default limits. The fields must not be changed while it
// is in use.
type Admission struct {
	Limits AdmissionLimits
	// Descriptors returns how many descriptors this process has open, and may
	// have. It is asked at most ten times a second. With more than a share of them
	// open (see Limits), strangers are refused. May be nil.
	Descriptors func() (used, limit int)

	mu        sync.Mutex
	known     half
	strangers half
	left      int       // descriptors, until strangers are refused
	counted   time.Time // when left was found out
	stats     AdmissionStats
	aborting  []io.Closer // unlock does it
}

// AdmissionLimits bound what comes before anybody is identified. Zero is the
// default.
type AdmissionLimits struct {
	Handshakes int           // under way at once, 256: half of known networks, half of strangers
	Wait       time.Duration // for a place; one second
	Waiting    int           // connections that wait for a place, in each half, 256; those of one network half as many
	Rate       int           // hellos a second of a network of strangers, and how many may come at once; 20; less than 0 is any number
	KnownRate  int           // the same of a known one; 1,000
	Share      int           // of all descriptors, in per cent, that may be open before strangers are refused; 90
	Lately     time.Duration // how long a network stays known after a Session was proved from it; one hour
}

// AdmissionStats are counters of an [Admission].
type AdmissionStats struct {
	Pending int // handshakes under way
	Waiting int // connections that wait for a place
	Known   int // networks that are known

	Handshakes int64 // that were begun
	Proved     int64 // that ended with proof of a Session
	// Refused before or in their handshake:
	TooMany   int64 // no place became free
	Displaced int64 // the place was needed
	TooFast   int64 // too many hellos of the network in a second
	Crowded   int64 // strangers, while descriptors were short
}

const (
	mostSources = 4096 // of which something is remembered, in each half; more than places and waiting together
	patience    = time.Second
	recount     = 100 * time.Millisecond
	mostLooks   = 8 // at connections that seem silent, for one that is
	anyRate     = 1 << 30
	// perConnection is how many descriptors a relayed connection takes: one to each
	// side.
	perConnection = 2
)

// An Overload is the error of a connection that a limit of this process refused.
type Overload string

// Error implements error.
func (o Overload) Error() string { return string(o) }

// Reason returns what a Refusal says.
func (o Overload) Reason() api.ReasonType { return api.ReasonOverload }

const (
	errTooMany   = Overload("too many handshakes at once")
	errDisplaced = Overload("too many handshakes at once: this one was silent or slow, and another needed its place")
	errCrowded   = Overload("almost no descriptors left: only networks from which a Session was proved lately are let in")
	errFull      = Overload("too few descriptors left for another connection")
	errStopping  = Overload("the server is stopping")
)

// half is the places of known networks or of strangers.
type half struct {
	sources
	places  int       // at most
	pending list.List // of *place, the oldest first
	waiting list.List // of *place, the oldest first
}

// A place is what a connection holds during its handshake.
type place struct {
	half  *half
	from  *source
	conn  io.Closer
	at    *list.Element // in half.pending or half.waiting
	given chan struct{} // closed when the place is there
	began time.Time     // when it was; zero while it waits
	heard bool          // the hello came
	taken bool          // the place was given to another
}

func (a *Admission) init() {
	if a.strangers.most != 0 {
		return
	}
	l := &a.Limits
	l.Handshakes = max(cmp.Or(l.Handshakes, 256), 2)
	l.Wait = cmp.Or(l.Wait, time.Second)
	l.Waiting = cmp.Or(l.Waiting, 256)
	l.Rate = cmp.Or(l.Rate, 20)
	if l.Rate < 0 {
		l.Rate = anyRate
	}
	l.KnownRate = cmp.Or(l.KnownRate, 1000)
	l.Share = cmp.Or(l.Share, 90)
	l.Lately = cmp.Or(l.Lately, time.Hour)
	a.strangers.sources = sources{most: mostSources, rate: l.Rate, burst: l.Rate}
	a.strangers.places = l.Handshakes / 2
	a.known.sources = sources{most: mostSources, rate: l.KnownRate, burst: l.KnownRate}
	a.known.places = l.Handshakes - a.strangers.places
}

// Enter asks for the place of a connection, and waits for it if need be. An error
// is an [Overload] and means that the connection is to be closed.
//
// With the place come two functions. heard is called when the hello has come,
// before anything costly is done for it; an error refuses the connection. leave
// gives the place back, once, at the end of the handshake, and is told whether it
// proved a Session; an error says that the place was given to another meanwhile,
// and the connection closed.
func (a *Admission) Enter(ctx context.Context, c net.Conn) (heard func() error, leave func(proved bool) error, err error) {
	p, err := a.enter(addrPort(c.RemoteAddr()).Addr(), c)
	if err == nil {
		err = a.await(ctx, p)
	}
	if err != nil {
		return nil, nil, err
	}
	return func() error { return a.heard(p) }, func(proved bool) error { return a.leave(p, proved) }, nil
}

// enter puts a connection from an address into the queue of its half, and gives out
// places.
func (a *Admission) enter(ip netip.Addr, c io.Closer) (*place, error) {
	now := time.Now()
	a.mu.Lock()
	defer a.unlock()
	a.init()
	h, from := a.find(ip, now)
	switch {
	case h == &a.strangers && a.room(now) < 0:
		a.stats.Crowded++
		return nil, errCrowded
	case !h.fill(from, now): // it would not be heard
		return nil, a.tooFast(h, from)
	case from.waiting >= max(a.Limits.Waiting/2, 1), h.waiting.Len() >= a.Limits.Waiting:
		a.stats.TooMany++
		return nil, errTooMany
	}
	p := &place{half: h, from: from, conn: c, given: make(chan struct{})}
	p.at = h.waiting.PushBack(p)
	from.waiting++
	a.give(h, now)
	return p, nil
}

// find returns the half and the source that an address belongs to.
func (a *Admission) find(ip netip.Addr, now time.Time) (*half, *source) {
	n := api.SourceNetwork(ip)
	if s := a.known.get(n); s != nil {
		if now.Sub(s.proved) < a.Limits.Lately || s.pending+s.waiting > 0 {
			return &a.known, s
		}
		a.known.drop(s)
	}
	return &a.strangers, a.strangers.make(n, now)
}

// room returns how many descriptors are left for strangers; less than 0 if there
// are too few already.
func (a *Admission) room(now time.Time) int {
	switch {
	case a.Descriptors == nil:
		a.left = math.MaxInt
	case now.Sub(a.counted) >= recount:
		used, limit := a.Descriptors()
		a.left, a.counted = limit*a.Limits.Share/100-used, now
	}
	return a.left
}

// give gives places to those of a half that wait, as far as there are any to give.
func (a *Admission) give(h *half, now time.Time) {
	for h.waiting.Len() > 0 {
		next := h.next()
		if h.pending.Len() >= h.places {
			victim := h.victim(next.from, now)
			if victim == nil {
				return
			}
			a.displace(victim)
		}
		next.quit()
		next.at = h.pending.PushBack(next)
		next.from.pending++
		next.began = now
		a.stats.Handshakes++
		close(next.given)
	}
}

// next returns whose turn it is: of the networks with the fewest places, whoever
// came first.
func (h *half) next() *place {
	var next *place
	for e := h.waiting.Front(); e != nil; e = e.Next() {
		if p := e.Value.(*place); next == nil || p.from.pending < next.from.pending {
			next = p
		}
	}
	return next
}

// victim returns whose place a newcomer of a network may take: of the greediest
// network that is the oldest connection that is silent or slow. It returns nil if
// there is none to take.
func (h *half) victim(newcomer *source, now time.Time) *place {
	candidate := func(p *place) bool {
		return (!p.heard || now.Sub(p.began) >= patience) && (p.from == newcomer || p.from.pending > newcomer.pending)
	}
	var greediest *source
	for e := h.pending.Front(); e != nil; e = e.Next() {
		if p := e.Value.(*place); candidate(p) && (greediest == nil || p.from.pending > greediest.pending) {
			greediest = p.from
		}
	}
	var oldest *place
	looks := mostLooks
	for e := h.pending.Front(); e != nil && looks > 0; e = e.Next() {
		p := e.Value.(*place)
		if p.from != greediest || !candidate(p) {
			continue
		}
		if oldest == nil {
			oldest = p
		}
		if p.heard || !unread(p.conn) {
			return p
		}
		looks-- // it has spoken, and waits for this process to listen
	}
	return oldest
}

// displace takes a place away.
func (a *Admission) displace(p *place) {
	a.free(p)
	p.taken = true
	a.stats.Displaced++
	a.aborting = append(a.aborting, p.conn)
}

// unlock releases mu, and then ends the handshakes whose places were taken.
func (a *Admission) unlock() {
	conns := a.aborting
	a.aborting = nil
	a.mu.Unlock()
	for _, c := range conns {
		abort(c)
	}
}

// free makes a place free.
func (a *Admission) free(p *place) {
	p.half.pending.Remove(p.at)
	p.from.pending--
}

// isGiven reports whether a place is there. As a rule it is, at once.
func (p *place) isGiven() bool {
	select {
	case <-p.given:
		return true
	default:
		return false
	}
}

// await waits until a place was given.
func (a *Admission) await(ctx context.Context, p *place) error {
	if p.isGiven() {
		return nil
	}
	wait := time.NewTimer(a.Limits.Wait)
	defer wait.Stop()
	var err error
	select {
	case <-p.given:
		return nil
	case <-wait.C:
		err = errTooMany
	case <-ctx.Done():
		err = errStopping
	}
	a.mu.Lock()
	defer a.unlock()
	if err == errTooMany { // those that were young when it came may be slow by now
		a.give(p.half, time.Now())
	}
	if !p.began.IsZero() {
		return nil
	}
	p.quit()
	if err == errTooMany {
		a.stats.TooMany++
	}
	return err
}

// quit ends the waiting for a place.
func (p *place) quit() {
	p.half.waiting.Remove(p.at)
	p.from.waiting--
}

func (a *Admission) heard(p *place) error {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.taken {
		return errDisplaced
	}
	p.heard = true
	if !p.half.fill(p.from, now) {
		return a.tooFast(p.half, p.from)
	}
	p.from.tokens--
	return nil
}

func (a *Admission) tooFast(h *half, from *source) error {
	a.stats.TooFast++
	return Overload(fmt.Sprintf("more than %d handshakes a second from %v", h.rate, from.network))
}

func (a *Admission) leave(p *place, proved bool) error {
	now := time.Now()
	a.mu.Lock()
	defer a.unlock()
	switch {
	case p.taken:
		return errDisplaced
	case p.began.IsZero(): // it was not given yet
		p.quit()
		return nil
	}
	a.free(p)
	if proved {
		a.stats.Proved++
		p.from.tokens++ // fill keeps it below the most
		a.known.make(p.from.network, now).proved = now
	}
	a.give(p.half, now)
	return nil
}

// Admit tells whether a connection that needs no handshake here, or is past it, may be
// relayed: not while descriptors are short, wherever it comes from. What it takes
// is counted at once, so that no more are let in before the next count than there
// is room for.
func (a *Admission) Admit() error {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	if a.room(now) < perConnection {
		a.stats.Crowded++
		return errFull
	}
	a.left -= perConnection
	return nil
}

// Stats returns the counters as they stand.
func (a *Admission) Stats() AdmissionStats {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.stats
	s.Pending = a.known.pending.Len() + a.strangers.pending.Len()
	s.Waiting = a.known.waiting.Len() + a.strangers.waiting.Len()
	s.Known = len(a.known.rows)
	return s
}

// abort closes a connection with a reset: nothing of it is left in the kernel.
func abort(c io.Closer) {
	switch c := c.(type) {
	case interface{ Reset(string) error }:
		c.Reset("")
		return
	case interface{ SetLinger(int) error }:
		c.SetLinger(0)
	}
	c.Close()
}
