package wireguard

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ports are the sockets at which the kernel listens for connections to Services: one for
// each port that Services have. Whoever has them sees that what is sent to the one port
// gets to the other, and back, and that nobody comes to them but through a tunnel.
type ports struct {
	g *Gateway
	// listen makes the socket for a port of Services, at any port of its own.
	listen listen
	// opened is told of each socket, with the port of Services that it is for and its own:
	// nobody gets there before. shut is told when the one for a port is to be closed.
	opened func(port, own int)
	shut   func(port int)

	mu      sync.Mutex
	sockets map[int]accepter         // by the port of Services
	heirs   map[int]*net.TCPListener // those of the process before, until they are among these
	held    bool                     // nothing is opened or closed
	stopped bool
}

// An accepter is a listening socket with who accepts: a relay.Listener, which says what
// its methods do, or [plain].
type accepter interface {
	Serve(ctx context.Context, take func(net.Conn), trouble func(error) time.Duration) error
	Close() error
	SyscallConn() (syscall.RawConn, error)
}

// listen makes a listening socket for a port of Services. c has a Control.
type listen func(ctx context.Context, c net.ListenConfig, port int) (net.Listener, error)

func newPorts(g *Gateway, listen listen, opened func(port, own int), shut func(port int)) *ports {
	return &ports{g: g, listen: listen, opened: opened, shut: shut, sockets: map[int]accepter{}, heirs: map[int]*net.TCPListener{}}
}

// refresh implements listener: it opens and closes sockets, so that there is one for
// each port.
func (p *ports) refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || p.held {
		return
	}
	want := map[int]bool{dnsPort: true}
	for _, port := range p.g.Ports() {
		want[port] = true
	}
	for port := range p.sockets {
		if !want[port] {
			p.remove(port)
		}
	}
	defer p.disown() // what is not wanted
	for port := range want {
		if p.sockets[port] != nil || !isPort(port) {
			continue
		}
		if err := p.add(port); err != nil {
			p.g.Log.Error("the gateway cannot listen for Services on a port", "port", port, "error", err)
		}
	}
}

// stop implements listener.
func (p *ports) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	for port := range p.sockets {
		p.remove(port)
	}
	p.disown()
}

func isPort(n int) bool { return n > 0 && n < 1<<16 }

// adopt takes the socket that the process before had for a port, and reports whether there
// is one.
func (p *ports) adopt(port int, f *os.File) (there bool, err error) {
	if f == nil {
		return false, nil
	}
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		return false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heirs[port] = l.(*net.TCPListener)
	return true, nil
}

// disown closes the sockets of the process before that have no use. p.mu must be held.
func (p *ports) disown() {
	for port, l := range p.heirs {
		p.shut(port)
		l.Close()
	}
	clear(p.heirs)
}

// give adds the sockets to what is handed over.
func (p *ports) give(add func(name string, of syscall.Conn) error) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for port, s := range p.sockets {
		err = errors.Join(err, add(portName(port), s))
	}
	for port, l := range p.heirs {
		err = errors.Join(err, add(portName(port), l))
	}
	return err
}

// hold has the sockets stay what they are, or not any more.
func (p *ports) hold(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = yes
}

// add opens the socket for a port. p.mu must be held.
func (p *ports) add(port int) error {
	l, err := p.socket(port)
	if err != nil {
		return err
	}
	own := l.Addr().(*net.TCPAddr).Port
	s := p.accepter(l)
	if !p.g.start(func() { p.serve(s, port) }) {
		s.Close()
		return net.ErrClosed
	}
	p.sockets[port] = s
	p.opened(port, own)
	return nil
}

// remove closes the socket for a port. p.mu must be held.
func (p *ports) remove(port int) {
	p.shut(port)
	p.sockets[port].Close()
	delete(p.sockets, port)
}

// socket makes a socket for a port, or takes that of the process before. p.mu must be held.
func (p *ports) socket(port int) (*net.TCPListener, error) {
	if l := p.heirs[port]; l != nil {
		delete(p.heirs, port)
		return l, nil
	}
	c := net.ListenConfig{
		Control:   func(network, address string, raw syscall.RawConn) error { return control(raw, keepAlive) },
		KeepAlive: -1, // connections have it from their listener, whoever accepts
	}
	c.SetMultipathTCP(false)
	l, err := p.listen(p.g.ctx, c, port)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// control does something with a socket.
func control(raw syscall.RawConn, do func(fd int) error) (err error) {
	failed := raw.Control(func(fd uintptr) { err = do(int(fd)) })
	return errors.Join(failed, err)
}

// keepAlive has the connections of a listening socket find out that a peer is gone.
func keepAlive(fd int) (err error) {
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepaliveIdle.Seconds())},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepaliveInterval.Seconds())},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepaliveCount},
	} {
		err = errors.Join(err, unix.SetsockoptInt(fd, o.level, o.name, o.value))
	}
	return err
}

// accepter returns who accepts at a socket: the engine, if it does.
func (p *ports) accepter(l *net.TCPListener) accepter {
	if p.g.Accept == nil {
		return plain{l}
	}
	s, err := p.g.Accept(l)
	if err != nil {
		p.g.Log.Warn("connections through tunnels are accepted through package net, which is slower", "error", err)
		return plain{l}
	}
	return s
}

// serve takes the connections to a port of Services until its socket is closed.
func (p *ports) serve(s accepter, port int) {
	var said time.Time
	trouble := func(err error) time.Duration { // too few descriptors, and the like: it passes
		if now := time.Now(); now.Sub(said) >= complainEvery {
			p.g.Log.Error("the gateway cannot accept; it goes on trying", "port", port, "error", err)
			said = now
		}
		return acceptAgain
	}
	err := s.Serve(p.g.ctx, func(c net.Conn) {
		t, from, to := newTransparent(c, uint16(port))
		p.g.accepted(t, &t.registered, from, to)
	}, trouble)
	if err != nil {
		p.g.Log.Error("the gateway does not accept any more", "port", port, "error", err)
	}
}

const (
	acceptAgain   = 100 * time.Millisecond
	complainEvery = time.Second
)

// plain is a listening socket at which package net accepts.
type plain struct{ *net.TCPListener }

// Serve implements accepter.
func (p plain) Serve(ctx context.Context, take func(net.Conn), trouble func(error) time.Duration) error {
	for {
		c, err := p.Accept()
		switch {
		case err == nil:
			take(c)
		case errors.Is(err, net.ErrClosed):
			return nil
		default:
			select {
			case <-time.After(trouble(err)):
			case <-ctx.Done():
			}
		}
	}
}
