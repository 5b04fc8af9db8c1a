package tls

// Settling returns how many streams were closed and have not come to their end.
func (d *Dialer) Settling() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.settling)
}
