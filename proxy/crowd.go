package proxy

import (
	"container/list"
	"fmt"
	"net/netip"

	"cardea/api"
)

// A crowd is whom a connection is counted among: those to one Service, or one
// foreign Object, and, of them, those of one caller.
type crowd struct {
	service string
	caller  caller
	kind    string // of the Object
}

// A caller is a Session or, without one, a source network.
type caller struct {
	session string       // uid; "" without one
	network netip.Prefix // not valid with a Session, and of who has no address
}

// crowdOf returns whom the connection that d opens is counted among.
func crowdOf(c *Conn, d *api.Decision) crowd {
	return crowd{c.from.name, callerOf(c, d.Subject.Session), c.from.kind()}
}

// callerOf returns whose connection c is.
func callerOf(c *Conn, session *api.Ref) caller {
	if session != nil {
		return caller{session: session.UID}
	}
	ip, _ := netip.ParseAddr(c.ip) // who has none is counted with all others that have none
	return caller{network: api.SourceNetwork(ip)}
}

// String says who it is among others that are counted.
func (c caller) String() string {
	switch {
	case c.session != "":
		return "the Session"
	case c.network.IsValid() && !c.network.IsSingleIP():
		return "the source network (" + c.network.String() + ")"
	}
	return "the source address"
}

// caller returns whose connection it opens.
func (g *Grant) caller() caller { return callerOf(g.conn, g.terms.Load().session) }

// crowds counts the live connections of each Service that has some. The registry
// guards it: whoever is let in is counted before anybody else is looked at.
type crowds map[string]*count

type count struct {
	all     int            // live, and places that are kept for those whose turn has come
	by      map[caller]int // live; nil until somebody's connections were limited
	limit   int            // of all, as was last said; 0 is none
	waiting list.List      // of *waiter: until there are fewer than limit, in order
}

// A share is how many connections each Session has, to whatever Service, and may have
// where the Service does not say. The registry guards it, as it does crowds.
type share struct {
	most int // 0 is any number
	of   map[string]int
}

// admit counts one more connection of a Session, "" for none, unless that would be more
// than it may have.
func (s *share) admit(session string, limits api.Limits) error {
	if s.most == 0 || session == "" {
		return nil
	}
	n := s.of[session]
	if n >= s.most && limits.ConnectionsPerSession == 0 {
		return &fullError{
			words: fmt.Sprintf("the Session has %s, and %d is the most that one may have of the descriptors of this process; "+
				"spec.limits.connectionsPerSession of a Service says otherwise for that", live(n), s.most),
			message: "this Session has as many connections as one may have; close one or try later",
		}
	}
	s.of[session] = n + 1
	return nil
}

// leave undoes admit.
func (s *share) leave(session string) {
	if s.most == 0 || session == "" {
		return
	}
	if s.of[session]--; s.of[session] == 0 {
		delete(s.of, session)
	}
}

// A waiter is the place of a connection among those that wait.
type waiter struct {
	service string
	turn    chan struct{} // closed when its turn has come: a place is kept for it
	place   *list.Element // in the queue; nil in none
	kept    bool          // it has not taken the place that is kept for it
}

// A fullError says that there are as many connections as there may be.
type fullError struct {
	words   string // for the log
	message string // for the caller
}

func (e *fullError) Error() string { return e.words }

// A waitError says so too, and that the connection may wait.
type waitError struct {
	*fullError
	*waiter
}

// admit counts one more connection, unless that would be more than limits allow:
// then the error is a fullError or, if it may wait, a waitError. What is live
// counts, whatever the limits were when it began. w is the place of one whose turn
// has come, nil for who has not waited. callers counts those of a Service by caller.
func (m crowds) admit(c crowd, limits api.Limits, w *waiter, callers func(service string) map[caller]int) error {
	n := m[c.service]
	if n == nil {
		n = new(count)
	}
	n.bound(limits.Connections)
	if limits.ConnectionsPerSession > 0 && n.by == nil {
		n.by = callers(c.service)
	}
	own, hasTurn := n.by[c.caller], w != nil && w.kept && w.service == c.service
	if limits.ConnectionsPerSession > 0 && own >= limits.ConnectionsPerSession {
		limit := "spec.limits.connectionsPerSession"
		if c.kind != api.KindService {
			limit = "the annotation " + api.AnnotationPrefix + api.AnnotationConnectionsPerClient
		}
		who := "client"
		if c.caller.session != "" {
			who = "Session"
		}
		return &fullError{
			words:   fmt.Sprintf("%v has %s to the %s, and %s is %d", c.caller, live(own), c.kind, limit, limits.ConnectionsPerSession),
			message: fmt.Sprintf("this %s has as many connections to the Service as allowed; close one or try later", who),
		}
	}
	if !hasTurn && (n.isFull() || n.waiting.Len() > 0) {
		full := n.full(c, limits)
		if n.waiting.Len() >= limits.Pending {
			return full
		}
		w = &waiter{service: c.service, turn: make(chan struct{})}
		w.place = n.waiting.PushBack(w)
		m[c.service] = n
		return &waitError{full, w}
	}
	if hasTurn {
		w.kept = false
	} else {
		n.all++
	}
	m[c.service] = n
	if n.by != nil {
		n.by[c.caller]++
	}
	return nil
}

// full is the error for one connection more.
func (n *count) full(c crowd, limits api.Limits) *fullError {
	limit := "spec.limits.connections"
	if c.kind != api.KindService {
		limit = "its limit of connections"
	}
	e := &fullError{
		words:   fmt.Sprintf("the %s has %s, and %s is %d", c.kind, live(n.all), limit, limits.Connections),
		message: "the Service has as many connections as allowed; try later",
	}
	if limits.Pending > 0 {
		e.words += fmt.Sprintf("; %d wait of at most %d", n.waiting.Len(), limits.Pending)
	}
	return e
}

// live says how many connections are live.
func live(n int) string {
	if n == 1 {
		return "1 live connection"
	}
	return fmt.Sprintf("%d live connections", n)
}

func (n *count) isFull() bool { return n.limit > 0 && n.all >= n.limit }

// bound puts another limit in the place of that of n, and wakes who may now come.
func (n *count) bound(limit int) {
	n.limit = limit
	n.next()
}

// next keeps the free places for those that wait the longest, and tells them.
func (n *count) next() {
	for !n.isFull() && n.waiting.Len() > 0 {
		w := n.waiting.Remove(n.waiting.Front()).(*waiter)
		w.place, w.kept = nil, true
		n.all++
		close(w.turn)
	}
}

// leave undoes admit.
func (m crowds) leave(c crowd) {
	n := m[c.service]
	if n.by != nil {
		if n.by[c.caller]--; n.by[c.caller] == 0 {
			delete(n.by, c.caller)
		}
	}
	m.free(c.service, n)
}

// free gives a place back.
func (m crowds) free(service string, n *count) {
	n.all--
	if n.next(); n.all == 0 { // then nobody waits: there is room
		delete(m, service)
	}
}

// giveUp ends the wait of one that has not taken its place.
func (m crowds) giveUp(w *waiter) {
	switch n := m[w.service]; {
	case w.place != nil:
		n.waiting.Remove(w.place)
		w.place = nil
	case w.kept:
		w.kept = false
		m.free(w.service, n)
	}
}
