package proxy

import (
	"fmt"

	"cardea/api"
)

// A crowd is whom a connection is counted among: those to one Service and, of
// them, those of one caller.
type crowd struct {
	service string
	caller  caller
}

// A caller is a Session or, without one, a source address.
type caller struct {
	name    string // uid or address
	session bool
}

// crowdOf returns whom the connection that g opens is counted among.
func crowdOf(g *Grant) crowd {
	who := caller{name: g.conn.facts.IP}
	if s := g.held.Subject.Session; s != nil {
		who = caller{s.UID, true}
	}
	return crowd{g.conn.service(&g.held), who}
}

// crowds counts the live connections of each Service that has some. The registry
// guards it: whoever is let in is counted before anybody else is looked at.
type crowds map[string]*count

type count struct {
	all int
	by  map[caller]int
}

// A fullError says that there are as many connections as there may be.
type fullError struct {
	words   string // for the log
	message string // for the caller
}

func (e *fullError) Error() string { return e.words }

// admit counts one more connection, unless that would be more than limits allow.
// What is live counts, whatever the limits were when it began.
func (m crowds) admit(c crowd, limits api.Limits) error {
	n := m[c.service]
	if n == nil {
		n = &count{by: map[caller]int{}}
	}
	switch all, own := n.all, n.by[c.caller]; {
	case limits.Connections > 0 && all >= limits.Connections:
		return &fullError{
			words:   fmt.Sprintf("the Service has %d live connections, and spec.limits.connections is %d", all, limits.Connections),
			message: "the Service has as many connections as allowed; try later",
		}
	case limits.ConnectionsPerSession > 0 && own >= limits.ConnectionsPerSession:
		whose := "the source address"
		if c.caller.session {
			whose = "the Session"
		}
		return &fullError{
			words:   fmt.Sprintf("%s has %d live connections to the Service, and spec.limits.connectionsPerSession is %d", whose, own, limits.ConnectionsPerSession),
			message: "this Session has as many connections to the Service as allowed; close one or try later",
		}
	}
	m[c.service] = n
	n.all++
	n.by[c.caller]++
	return nil
}

// leave undoes admit.
func (m crowds) leave(c crowd) {
	n := m[c.service]
	if n.by[c.caller]--; n.by[c.caller] == 0 {
		delete(n.by, c.caller)
	}
	if n.all--; n.all == 0 {
		delete(m, c.service)
	}
}
