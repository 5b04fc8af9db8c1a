//go:build linux

package loop

import (
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"cardea/relay"
)

// Connect implements relay.Connector.
func (e *Engine) Connect(given net.Conn, o relay.Opening) relay.Live {
	var from end
	if !from.find(given) {
		return nil
	}
	s := from.sock
	if s == nil || s.live.loop.engine != e || !s.take() {
		return nil
	}
	c := &s.live
	c.told = o
	c.legs[upstream].fd = -1
	c.outer = outers(from.outer, nil)
	c.ways[client].ahead(from.take())
	c.loop.relays.Add(1)
	c.loop.post(c.connect)
	return c
}

// connect begins to look for an upstream, and to watch the client: one that is gone
// need not be connected.
func (c *live) connect() {
	c.phase = connecting
	c.loop.enter(c)
	if err := c.watch(client); err != nil {
		c.cut(relay.ClientReset, err)
		return
	}
	if c.legs[client].is(gone) {
		c.answered(client, 0)
		return
	}
	c.next(nil)
}

// next connects to where the Opening says, now that another place has failed, or for
// the first time.
func (c *live) next(failed error) {
	o := c.told.(relay.Opening)
	for {
		to, within, ok := o.Next(failed)
		if !ok {
			reason := relay.DialFailed
			if t, ok := failed.(interface{ Timeout() bool }); ok && t.Timeout() {
				reason = relay.DialTimeout
			}
			c.cut(reason, failed)
			return
		}
		call, n := c.dial(to)
		if n == unix.EINPROGRESS {
			c.to = &to
			c.until = c.loop.engine.now() + within
			c.loop.wheel.clear(c)
			c.schedule()
			return
		}
		if n == 0 {
			c.to = &to
			c.connected()
			return
		}
		c.hangUp()
		failed = dialError(to, call, n)
	}
}

// dial begins to connect to an address. It returns what has failed, or EINPROGRESS.
func (c *live) dial(to netip.AddrPort) (call string, n syscall.Errno) {
	fd, n := tcpSocket(to.Addr())
	if n != 0 {
		return "socket", n
	}
	c.legs[upstream] = leg{fd: fd}
	noDelay(fd)
	c.loop.peer.set(to)
	answer := connect(fd, &c.loop.peer)
	if answer != 0 && answer != unix.EINPROGRESS {
		return "connect", answer
	}
	if err := c.watch(upstream); err != nil {
		return "epoll_ctl", unix.ENOMEM
	}
	return "", answer
}

// hangUp closes a socket that is not connected.
func (c *live) hangUp() {
	if fd := c.legs[upstream].fd; fd >= 0 {
		closeFD(fd)
	}
	c.legs[upstream] = leg{fd: -1}
	c.until = 0
}

func dialError(to netip.AddrPort, call string, n syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: os.NewSyscallError(call, n)}
}

// answered takes news of either socket while the upstream has not answered.
func (c *live) answered(i int, events uint32) {
	switch {
	case i == client && c.legs[client].is(gone):
		c.cut(relay.ClientReset, os.NewSyscallError("wait", c.verdict(client)))
	case i == client:
		// What it sends waits in the kernel; its end does, too.
	case events&(unix.EPOLLERR|unix.EPOLLHUP) != 0:
		n := pendingError(c.legs[upstream].fd)
		if n == 0 {
			n = unix.ECONNREFUSED
		}
		c.failed(n)
	case events&unix.EPOLLOUT != 0:
		c.connected()
	}
}

// failed gives up an attempt to connect.
func (c *live) failed(n syscall.Errno) {
	to := *c.to
	c.hangUp()
	c.next(dialError(to, "connect", n))
}

// connected joins the client to the upstream, which has answered.
func (c *live) connected() {
	o := c.told.(relay.Opening)
	c.until, c.to = 0, nil
	var local netip.AddrPort
	if o.NeedsLocal() {
		local = localAddr(c.legs[upstream].fd)
	}
	limits, preface, err := o.Connected(local)
	if err != nil {
		reason := relay.ProtocolError
		if r, ok := err.(interface{ CloseReason() string }); ok {
			reason = relay.Reason(r.CloseReason())
		}
		c.cut(reason, err)
		return
	}
	if len(preface) > 0 {
		all := append([]byte(nil), preface...)
		if h := c.ways[client].hold; h != nil {
			all = append(all, h.buffer...)
		}
		c.ways[client].ahead(all)
		c.ways[client].hold.silent = len(preface)
	}
	c.begin(limits)
}
