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
