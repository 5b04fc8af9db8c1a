package wireguard

import (
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"cardea/wire/packet"
)

// userspace is the form of a Gateway that needs no privilege: TCP is a netstack's.
type userspace struct {
	*netstack
	g *Gateway
}

func (g *Gateway) openUserspace() (below, error) {
	n, err := newNetstack(g.MTU, nil, g.plane.out)
	if err != nil {
		return nil, err
	}
	u := userspace{n, g}
	n.listen(u.accept)
	return u, nil
}

func (u userspace) admit([]byte, *packet.Info) bool { return true }

func (u userspace) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return u.out.read(bufs, sizes, offset)
}

// accept takes a TCP connection that is asked for. It is called in a goroutine of its own.
func (u userspace) accept(r *tcp.ForwarderRequest) {
	id := r.ID()
	from, to := addrPort(id.RemoteAddress, id.RemotePort), addrPort(id.LocalAddress, id.LocalPort)
	s := u.g.session(from.Addr())
	if s == nil || s.opening.Add(1) > openingMost {
		if s != nil {
			s.opening.Add(-1)
		}
		r.Complete(true)
		return
	}
	queue := new(waiter.Queue)
	ep, err := r.CreateEndpoint(queue)
	s.opening.Add(-1)
	if err != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	w := &watched{registered{Conn: newStackConn(ep, queue)}}
	u.g.accepted(w, &w.registered, from, to)
}
