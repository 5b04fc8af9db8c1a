package ingress

import "time"

// never is when a port is tried again that is another process's now.
const never = 100 * 365 * 24 * time.Hour

// Leave closes the descriptors of all ports, which another process has too: see
// Sockets. Those who wait there are that one's; those who have come in go on, as under
// Run, with the table that is in force. No port is opened any more.
func (r *Router) Leave() {
	r.setting.Lock()
	defer r.setting.Unlock()
	r.mu.Lock()
	var all []*Listener
	r.over = true
	for _, d := range r.doors {
		if d.listener != nil {
			all = append(all, d.listener)
		}
		d.listener, d.next = nil, time.Now().Add(never)
		d.is(false, reasonStopping, "another process has taken the port over")
	}
	r.mu.Unlock()
	for _, l := range all {
		l.Listener.Close() // Serve ends by it
	}
}
