package wireguard

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"cardea/relay"
	"cardea/tunnel"
)

// kernelConn is a TCP connection of the kernel, which tells a reset once: this remembers.
type kernelConn struct {
	*net.TCPConn
	finished atomic.Bool // our end of file is on its way
	cut      atomic.Pointer[tunnel.ResetError]
}

// Read implements net.Conn.
func (c *kernelConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if err == io.EOF && !c.finished.Load() && isClosed(c.TCPConn) {
		err = syscall.ECONNRESET // and a Write has been told
	}
	return n, c.failure(err)
}

// Write implements net.Conn.
func (c *kernelConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	return n, c.failure(err)
}

// CloseWrite implements tunnel.Conn.
func (c *kernelConn) CloseWrite() error {
	c.finished.Store(true)
	return c.failure(c.TCPConn.CloseWrite())
}

// failure says what an error of the kernel means.
func (c *kernelConn) failure(err error) error {
	switch {
	case err == nil, errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ENOTCONN),
		errors.Is(err, syscall.EPIPE) && !c.finished.Load():
		c.cut.CompareAndSwap(nil, &tunnel.ResetError{Reason: "by the peer"})
	case errors.Is(err, syscall.ETIMEDOUT):
		c.cut.CompareAndSwap(nil, &tunnel.ResetError{Reason: "the peer does not answer"})
	}
	if cut := c.cut.Load(); cut != nil {
		return cut
	}
	return err
}

// Reset implements tunnel.Conn.
func (c *kernelConn) Reset(reason string) error {
	c.cut.CompareAndSwap(nil, &tunnel.ResetError{Reason: reason})
	c.SetLinger(0)
	if err := c.TCPConn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// isClosed reports whether the kernel has closed a connection, which it does before both
// ends have finished only when it was reset or lost.
func isClosed(c *net.TCPConn) (yes bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) {
		const closed = 7 // TCP_CLOSE
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		yes = err == nil && info.State == closed
	})
	return yes
}

// transparent is registered over a TCP connection of the kernel: an engine that has what
// it takes reads and writes that.
type transparent struct {
	registered
	socket net.Conn // that is below: a relay.Socket, or a *net.TCPConn
	port   uint16   // of the Service
}

var (
	_ tunnel.Conn       = (*transparent)(nil)
	_ tunnel.Teller     = (*transparent)(nil)
	_ relay.Transparent = (*transparent)(nil)
)

// newTransparent returns the conn of what a socket for a port of Services has accepted,
// with its addresses.
func newTransparent(c net.Conn, port uint16) (t *transparent, from, to netip.AddrPort) {
	t = &transparent{socket: c, port: port}
	switch c := c.(type) {
	case relay.Socket:
		t.Conn = c
		to, from = c.AddrPorts()
	case *net.TCPConn:
		t.Conn = &kernelConn{TCPConn: c}
		to, from = addrPortOf(c.LocalAddr()), addrPortOf(c.RemoteAddr())
	}
	return t, from, netip.AddrPortFrom(to.Addr(), port)
}

func addrPortOf(a net.Addr) netip.AddrPort {
	at := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// LocalAddr implements net.Conn.
func (t *transparent) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addrPortOf(t.socket.LocalAddr()).Addr(), t.port))
}

// NetConn returns what is below.
func (t *transparent) NetConn() net.Conn { return t.socket }

// Unread returns nothing: nothing was read.
func (*transparent) Unread() []byte { return nil }

// SyscallConn implements syscall.Conn.
func (t *transparent) SyscallConn() (syscall.RawConn, error) {
	return t.socket.(syscall.Conn).SyscallConn()
}
