package ingress

import (
	"net"
	"time"

	"cardea/api"
	"cardea/relay/datagram"
)

// never is when a port is tried again that is another process's now.
const never = 100 * 365 * 24 * time.Hour

// Leave closes the descriptors of all ports, which another process has too: see
// Sockets. Those who wait there are that one's; those who have come in go on, as under
// Run, with the table that is in force. Flows of UDP, too, are answered by who was asked,
// until somebody cuts them; but only where that process has taken the port: if it has not,
// they end, so that it can open the port itself. No port is opened any more.
func (r *Router) Leave(taken func(api.Bind) bool) {
	r.setting.Lock()
	defer r.setting.Unlock()
	r.mu.Lock()
	var all []func()
	r.over = true
	for bind, d := range r.doors {
		if d.listener != nil {
			all = append(all, leaver(d.listener.Listener, taken(bind)))
		}
		d.listener, d.next = nil, time.Now().Add(never)
		d.is(false, reasonStopping, "another process has taken the port over")
	}
	r.mu.Unlock()
	for _, leave := range all {
		leave() // Serve ends by it
	}
}

// leaver returns what leaves a port.
func leaver(l net.Listener, taken bool) func() {
	if flows, ok := l.(*datagram.Listener); ok && taken {
		return flows.Leave
	}
	return func() { l.Close() }
}
