package proxy

import "cardea/relay"

// Drain cuts as many live connections, the oldest first (DRAINED): those of a process
// that another one has replaced do not end all at once.
func (g *Gate) Drain(most int) {
	all := g.registry.conns()
	for _, c := range all[:min(most, len(all))] {
		c.cut(relay.Drained, "another process serves now, and the time to drain is over", nil)
	}
}

// DrainFlows is DrainTunnel for flows of UDP alone: what they send comes to another process,
// which decides anew, and has upstream sockets of its own.
func (g *Gate) DrainFlows(name string) {
	for _, c := range g.registry.find(func(c *Conn) bool { return c.from.facts.Tunnel == name }) {
		c.mu.Lock()
		flow := relay.IsDatagram(c.Conn) // nil if the engine has a socket
		c.mu.Unlock()
		if !flow {
			continue
		}
		c.cut(relay.Drained, "what its client sends is another process's now", nil)
	}
}

// DrainTunnel cuts the live connections that came by a tunnel, as Facts.Tunnel has it,
// which ends in this process (DRAINED): nothing of them can come any more.
func (g *Gate) DrainTunnel(name string) {
	for _, c := range g.registry.find(func(c *Conn) bool { return c.from.facts.Tunnel == name }) {
		c.cut(relay.Drained, "its tunnel is another process's now", nil)
	}
}

// LeaveTunnel cuts the live connections that a Session, by its uid, has by a tunnel, as
// Facts.Tunnel has it (CLIENT_RESET): its client has left, and nothing of them can come any
// more.
func (g *Gate) LeaveTunnel(session, name string) {
	for _, c := range g.registry.find(func(c *Conn) bool { return c.from.facts.Tunnel == name }) {
		if d := g.registry.decision(&c.first); d.Subject.Session != nil && d.Subject.Session.UID == session {
			c.cut(relay.ClientReset, "its client has disconnected", nil)
		}
	}
}
