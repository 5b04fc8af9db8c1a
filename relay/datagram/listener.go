package datagram

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/relay"
)

// MostFlows is how many flows a [Listener] has at once.
const MostFlows = 16_384

// Limits of what waits to be read, in bytes: in one flow, and in all of a Listener.
const (
	mostQueued = 256 << 10
	mostBytes  = 32 << 20
)

// A Listener is a socket of UDP as a net.Listener: what comes from one source, to one address
// of this machine, is a connection.
//
// Whoever sends datagrams can say that they come from anywhere. So the number of flows is
// bounded, and when there are as many as there may be, the oldest of those gives way whose
// client has not sent anything since it was answered: it is not known to be there at all.
type Listener struct {
	socket *net.UDPConn
	waits  relay.Room

	// What follows is of Accept.
	buffer []byte
	room   []byte     // what the kernel says beside a datagram
	said   []byte     // what it said beside the last one, as a rule the same
	to     netip.Addr // which means this
	reply  []byte     // and this

	mu     sync.Mutex
	of     map[flowKey]*Flow
	fresh  list.List // those that may give way, the oldest first
	most   int
	closed bool
	left   bool // by Leave
	over   bool // and Accept has ended
}

// A flowKey tells flows apart.
type flowKey struct {
	from netip.AddrPort
	to   netip.Addr // not valid if the system does not tell
}

// Listen opens a port of UDP: network is udp, udp4 or udp6. Of config ControlContext must
// not be set.
func Listen(ctx context.Context, config net.ListenConfig, network, address string) (*Listener, error) {
	control := config.Control
	// Before it is bound: what came earlier would not say where to.
	config.Control = func(network, address string, c syscall.RawConn) error {
		if control != nil {
			if err := control(network, address, c); err != nil {
				return err
			}
		}
		return askForDestination(c)
	}
	c, err := config.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return newListener(c.(*net.UDPConn), MostFlows), nil
}

// Inherit returns the Listener of a socket that another process has opened, by Listen.
func Inherit(socket *net.UDPConn) *Listener { return newListener(socket, MostFlows) }

func newListener(socket *net.UDPConn, most int) *Listener {
	return &Listener{socket: socket, buffer: make([]byte, relay.MaxDatagram), room: make([]byte, 128), of: map[flowKey]*Flow{}, most: most, waits: relay.Room{Most: mostBytes}}
}

// Accept implements net.Listener. It is it that reads the socket: datagrams of flows that
// there are wait until it is called again. What it returns is a *Flow. One calls it at a
// time.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		n, noob, _, from, err := l.socket.ReadMsgUDPAddrPort(l.buffer, l.room)
		if errors.Is(err, os.ErrDeadlineExceeded) { // only Leave makes that
			l.mu.Lock()
			l.over = true
			l.closeLeft()
			l.mu.Unlock()
			return nil, net.ErrClosed
		}
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(l.room[:noob], l.said) {
			l.said = append(l.said[:0], l.room[:noob]...)
			l.to, l.reply = destination(l.said)
		}
		key := flowKey{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), l.to}
		if f := l.take(key, l.buffer[:n], from, l.reply); f != nil {
			return f, nil
		}
	}
}

// take gives a datagram to its flow, and returns that if it is new.
func (l *Listener) take(key flowKey, b []byte, from netip.AddrPort, reply []byte) *Flow {
	l.mu.Lock()
	f := l.of[key]
	isNew := f == nil
	var gone *Flow
	if isNew {
		f = &Flow{listener: l, key: key, peer: from, reply: reply, in: relay.NewInbox(mostQueued, &l.waits)}
		f.excess, gone = !l.enter(f), l.gaveWay()
	} else if f.place != nil && f.answered.Load() {
		l.fresh.Remove(f.place)
		f.place = nil
	}
	l.mu.Unlock()
	if gone != nil {
		gone.in.End(errGaveWay)
	}
	f.in.Put(b)
	if isNew {
		return f
	}
	return nil
}

// enter takes a new flow in, if it may be. l.mu is held.
func (l *Listener) enter(f *Flow) bool {
	if l.closed || len(l.of) >= l.most && l.fresh.Len() == 0 {
		return false
	}
	l.of[f.key] = f
	f.place = l.fresh.PushBack(f)
	return true
}

// gaveWay takes out a flow that gives way to another, if there are too many. l.mu is held.
func (l *Listener) gaveWay() *Flow {
	if len(l.of) <= l.most {
		return nil
	}
	f := l.fresh.Front().Value.(*Flow)
	l.leave(f)
	return f
}

// leave takes a flow out. l.mu is held.
func (l *Listener) leave(f *Flow) {
	if l.of[f.key] == f {
		delete(l.of, f.key)
	}
	if f.place != nil {
		l.fresh.Remove(f.place)
		f.place = nil
	}
	l.closeLeft()
}

// closeLeft closes a socket that was left, and that no flow needs. l.mu is held.
func (l *Listener) closeLeft() {
	if l.over && len(l.of) == 0 {
		l.socket.Close()
	}
}

// Leave ends Accept: what comes to the socket is for another process that has it. The flows
// go on, so that what they are answered still goes out by it; when and how they end is for
// whoever has them. With the last one the socket is closed.
func (l *Listener) Leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = true
	l.socket.SetReadDeadline(time.Unix(1, 0))
}

// Close implements net.Listener. All flows end with it, unless they were left.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.left {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	err := l.socket.Close()
	l.mu.Lock()
	all := make([]*Flow, 0, len(l.of))
	for _, f := range l.of {
		all = append(all, f)
	}
	l.mu.Unlock()
	for _, f := range all {
		f.in.End(errPortClosed)
		f.Close()
	}
	return err
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.socket.LocalAddr() }

// SyscallConn implements syscall.Conn.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return l.socket.SyscallConn() }

var (
	errGaveWay    = errors.New("it gave way to others: there are as many flows as there may be, and the client has not sent anything since it was answered")
	errPortClosed = errors.New("the port was closed")
)

// A Flow is what comes from one source: a relay.Datagram, and a relay.Awaiter.
type Flow struct {
	listener *Listener
	key      flowKey
	peer     netip.AddrPort // as the socket wants it
	reply    []byte         // what the kernel is told beside an answer, so that it comes from where was asked
	excess   bool
	answered atomic.Bool
	place    *list.Element // among those that may give way; of listener.mu
	in       *relay.Inbox
}

// Excess reports whether there is no place for the flow: it gets no more than its first
// datagram, and should be closed.
func (f *Flow) Excess() bool { return f.excess }

// Datagram implements relay.Datagram.
func (*Flow) Datagram() {}

// Await implements relay.Awaiter.
func (f *Flow) Await() error { return f.in.Await() }

// Read implements net.Conn.
func (f *Flow) Read(p []byte) (int, error) { return f.in.Read(p) }

// Write implements net.Conn.
func (f *Flow) Write(p []byte) (int, error) {
	if err := f.in.Err(); err != nil {
		return 0, err
	}
	n, _, err := f.listener.socket.WriteMsgUDPAddrPort(p, f.reply, f.peer)
	if err == nil {
		f.answered.Store(true)
	}
	return n, err
}

// Close implements net.Conn.
func (f *Flow) Close() error {
	f.listener.mu.Lock()
	f.listener.leave(f)
	f.listener.mu.Unlock()
	f.in.Drop(net.ErrClosed)
	return nil
}

// LocalAddr implements net.Conn.
func (f *Flow) LocalAddr() net.Addr {
	at := f.listener.socket.LocalAddr().(*net.UDPAddr)
	if f.key.to.IsValid() {
		at = net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.key.to, uint16(at.Port)))
	}
	return at
}

// RemoteAddr implements net.Conn.
func (f *Flow) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(f.key.from) }

// SetReadDeadline implements net.Conn.
func (f *Flow) SetReadDeadline(t time.Time) error { return f.in.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn. A datagram is written or lost.
func (f *Flow) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline implements net.Conn.
func (f *Flow) SetDeadline(t time.Time) error { return f.SetReadDeadline(t) }
