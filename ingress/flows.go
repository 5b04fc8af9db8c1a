package ingress

import (
	"fmt"

	"cardea/api"
	"cardea/relay/datagram"
)

// takeFlow sends a flow where its row says, or refuses it.
func (r *Router) takeFlow(d *door, f *datagram.Flow) {
	d.accepted.Add(1)
	from := addrPort(f.RemoteAddr())
	v := visit{router: r, door: d, peer: from, from: from}
	v.facts = api.Facts{IP: from.Addr().String(), Port: int(from.Port()), Listener: d.text(addrPort(f.LocalAddr())), Tunnel: TunnelPublic}
	if v.listener = r.table.Load().listeners[d.bind]; v.listener != nil {
		v.nearest = v.listener.sole
	}
	err := v.enter()
	if err == nil && f.Excess() {
		err = denial{api.ReasonOverload, fmt.Sprintf("%v has as many flows as there may be: %d", d.bind, datagram.MostFlows)}
	}
	if err == nil {
		err = v.row()
	}
	if err == nil {
		v.arrive(f, nil)
		return
	}
	f.Close()
	x := refusal(v.facts, err)
	x.Datagrams = true
	v.locate(&x)
	r.refused(d, x)
}
