package proxy

// Crowds returns of how many Services and foreign Objects connections are counted.
func (g *Gate) Crowds() int {
	g.registry.mu.Lock()
	defer g.registry.mu.Unlock()
	return len(g.registry.crowds)
}
