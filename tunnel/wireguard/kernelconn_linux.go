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
	net.Conn             // a *net.TCPConn, or a relay.Socket
	finished atomic.Bool // our end of file is on its way
	cut      atomic.Pointer[tunnel.ResetError]
}

// Read implements net.Conn.
func (c *kernelConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF && !c.finished.Load() && isClosed(c.Conn) {
		err = syscall.ECONNRESET // and a Write has been told
	}
	return n, c.failure(err)
}

// Write implements net.Conn.
func (c *kernelConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.failure(err)
}

// CloseWrite implements tunnel.Conn.
func (c *kernelConn) CloseWrite() error {
	c.finished.Store(true)
	return c.failure(c.Conn.(relay.CloseWriter).CloseWrite())
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
	if err := relay.Reset(c.Conn, relay.Reason(reason)); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// isClosed reports whether the kernel has closed a connection, which it does before both
// ends have finished only when it was reset or lost.
func isClosed(c net.Conn) (yes bool) {
	raw, err := c.(syscall.Conn).SyscallConn()
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
	kernel kernelConn
	port   uint16 // of the Service
}

var (
	_ tunnel.Conn       = (*transparent)(nil)
	_ tunnel.Teller     = (*transparent)(nil)
	_ relay.Transparent = (*transparent)(nil)
)

// newTransparent returns the conn of what a socket for a port of Services has accepted,
// with its addresses.
func newTransparent(c net.Conn, port uint16) (t *transparent, from, to netip.AddrPort) {
	t = &transparent{kernel: kernelConn{Conn: c}, port: port}
	t.Conn = &t.kernel
	if s, ok := c.(relay.Socket); ok {
		to, from = s.AddrPorts()
	} else {
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
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addrPortOf(t.Conn.LocalAddr()).Addr(), t.port))
}

// NetConn returns what is below.
func (t *transparent) NetConn() net.Conn { return t.kernel.Conn }

// Unread returns nothing: nothing was read.
func (*transparent) Unread() []byte { return nil }

// SyscallConn implements syscall.Conn.
func (t *transparent) SyscallConn() (syscall.RawConn, error) {
	return t.kernel.Conn.(syscall.Conn).SyscallConn()
}
