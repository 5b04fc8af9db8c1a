package proxy

import (
	"cardea/api"
	"cardea/relay"
)

// An approach is a connection to an upstream that is being made. Which of the
// addresses it ends at is only known then: what is said of any of them meanwhile is
// kept until then. All of it belongs to the Conn, under its lock.
type approach struct {
	next    *approach          // another one of the Conn
	config  string             // the name of that
	shunned map[string]*ending // by where
}

// approaches begins an approach.
func (c *Conn) approaches(a *approach, to *api.ServiceConfig) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.config, a.next = configName(to), c.approach
	c.approach = a
}

// arrives ends an approach. It returns why the connection is to be cut if that was
// said of where it has come to; at is nil if it came nowhere. c.mu is held.
func (c *Conn) arrives(a *approach, at *endpoint) *ending {
	for p := &c.approach; *p != nil; p = &(*p).next {
		if *p == a {
			*p = a.next
			break
		}
	}
	if at == nil {
		return nil
	}
	return a.shunned[at.text]
}

// isConnecting reports whether upstream is only where the connection may come to. c.mu
// is held.
func (c *Conn) isConnecting() bool { return c.run == nil && c.approach != nil }

// Shun cuts the live connections to one place of an upstream, and returns how many: at
// is its address, or the name of a Session that serves, as [Gate.List] has it; o and config
// are the Object and the name of the config in the Destination. why and words say why, for
// the log. What is being connected goes on, to another place if this one fails, and is cut
// once it is connected to this one.
func (g *Gate) Shun(o api.Key, config, at string, why relay.Reason, words string) (cut int) {
	for _, c := range g.registry.find(func(c *Conn) bool { return c.from.object() == o }) {
		if c.shun(config, at, &ending{reason: why, words: words}) {
			c.cut(why, words, nil)
			cut++
		}
	}
	return cut
}

// shun notes why nobody may come to a place by that config. It reports whether the
// connection is there already.
func (c *Conn) shun(config string, at string, why *ending) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for a := c.approach; a != nil; a = a.next {
		if a.config != config {
			continue
		}
		if a.shunned == nil {
			a.shunned = map[string]*ending{}
		}
		a.shunned[at] = why
	}
	return c.isThere() && !c.isConnecting() && c.upstream.is(at) && configName(c.first.terms.Load().said.Config) == config
}
