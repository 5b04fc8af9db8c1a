package wireguard

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"cardea/tunnel"
)

// stackConn is a TCP connection of a netstack.
type stackConn struct {
	ep            tcpip.Endpoint
	queue         *waiter.Queue
	local, remote net.Addr
	read, write   *tunnel.Deadline
	reading       sync.Mutex
	writing       sync.Mutex
	finished      atomic.Bool // our end of file is on its way

	mu   sync.Mutex
	err  error         // why this end is over: net.ErrClosed or a reset; what is said once holds
	gone chan struct{} // closed when this end is over by its own doing
}

var (
	_ tunnel.Conn    = (*stackConn)(nil)
	_ tunnel.Watcher = (*stackConn)(nil)
)

func newStackConn(ep tcpip.Endpoint, queue *waiter.Queue) *stackConn {
	c := &stackConn{ep: ep, queue: queue, gone: make(chan struct{}), read: tunnel.NewDeadline(), write: tunnel.NewDeadline()}
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = net.TCPAddrFromAddrPort(addrPort(a.Addr, a.Port))
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.remote = net.TCPAddrFromAddrPort(addrPort(a.Addr, a.Port))
	}
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
	ep.SocketOptions().SetDelayOption(false) // no delay, as net does
	ep.SocketOptions().SetSendBufferSize(sendSize, true)
	return c
}

// Read implements net.Conn.
func (c *stackConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	n := 0
	err := c.wait(waiter.ReadableEvents, c.read, func() tcpip.Error {
		w := tcpip.SliceWriter(p)
		r, err := c.ep.Read(&w, tcpip.ReadOptions{})
		n = r.Count
		return err
	})
	if n > 0 {
		c.ep.ModerateRecvBuf(n)
	}
	return n, err
}

// Write implements net.Conn. It returns when the stack has taken all of p.
func (c *stackConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	written := 0
	for {
		err := c.wait(waiter.WritableEvents, c.write, func() tcpip.Error {
			n, err := c.ep.Write(bytes.NewReader(p[written:]), tcpip.WriteOptions{})
			written += int(n)
			return err
		})
		if err == io.EOF { // a writer hears of no end of file
			err = syscall.EPIPE
		}
		if err != nil || written == len(p) {
			return written, err
		}
	}
}

// wait does something until it does not have to wait any more.
func (c *stackConn) wait(events waiter.EventMask, until *tunnel.Deadline, do func() tcpip.Error) error {
	if err := c.ended(); err != nil {
		return err
	}
	if tunnel.IsClosed(until.Wait()) {
		return os.ErrDeadlineExceeded
	}
	err := do()
	if _, ok := err.(*tcpip.ErrWouldBlock); !ok {
		return c.failure(err)
	}
	entry, notified := waiter.NewChannelEntry(events | waiter.EventErr | waiter.EventHUp)
	c.queue.EventRegister(&entry)
	defer c.queue.EventUnregister(&entry)
	for {
		err := do()
		if _, ok := err.(*tcpip.ErrWouldBlock); !ok {
			return c.failure(err)
		}
		at := until.Wait()
		select {
		case <-notified:
		case <-c.gone:
			return c.ended()
		case <-at:
			if tunnel.IsClosed(until.Wait()) { // it may have been moved
				return os.ErrDeadlineExceeded
			}
		}
	}
}

// failure says what an error of the stack means for this end.
func (c *stackConn) failure(err tcpip.Error) error {
	if err == nil {
		return nil
	}
	if over := c.ended(); over != nil {
		return over
	}
	switch err.(type) {
	case *tcpip.ErrClosedForReceive:
		if !c.wasReset() {
			return io.EOF
		}
	case *tcpip.ErrClosedForSend:
		if !c.wasReset() {
			return syscall.EPIPE
		}
	}
	reason := "by the peer"
	if _, ok := err.(*tcpip.ErrTimeout); ok {
		reason = "the peer does not answer"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = &tunnel.ResetError{Reason: reason}
	}
	return c.err
}

// wasReset reports whether the stack has taken a reset, which it tells once at most, and
// not at all when the peer had finished before: then it is closed, though this end has not
// finished.
func (c *stackConn) wasReset() bool {
	switch tcp.EndpointState(c.ep.State()) {
	case tcp.StateError:
		return true
	case tcp.StateClose:
		return !c.finished.Load()
	}
	return false
}

// ended tells why this end is over, if it is.
func (c *stackConn) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// end ends this end, once.
func (c *stackConn) end(why error) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if tunnel.IsClosed(c.gone) {
		return false
	}
	c.err = why
	close(c.gone)
	return true
}

// CloseWrite implements tunnel.Conn.
func (c *stackConn) CloseWrite() error {
	if err := c.ended(); err != nil {
		return err
	}
	if err := c.ep.Shutdown(tcpip.ShutdownWrite); err != nil {
		return c.failure(err)
	}
	c.finished.Store(true)
	return nil
}

// Close implements net.Conn.
func (c *stackConn) Close() error {
	if !c.end(net.ErrClosed) {
		return net.ErrClosed
	}
	c.ep.Close()
	return nil
}

// Reset implements tunnel.Conn. TCP carries no reason.
func (c *stackConn) Reset(reason string) error {
	if c.end(&tunnel.ResetError{Reason: reason}) {
		c.ep.Abort()
		c.ep.Close()
	}
	return nil
}

// WaitReset implements tunnel.Watcher.
func (c *stackConn) WaitReset() error {
	entry, notified := waiter.NewChannelEntry(waiter.EventErr | waiter.EventHUp)
	c.queue.EventRegister(&entry)
	defer c.queue.EventUnregister(&entry)
	for {
		if err := c.ended(); err != nil {
			return err
		}
		if c.wasReset() {
			return c.failure(&tcpip.ErrConnectionReset{})
		}
		if s := tcp.EndpointState(c.ep.State()); s == tcp.StateClose || s == tcp.StateTimeWait {
			return nil
		}
		select {
		case <-notified:
		case <-c.gone:
		}
	}
}

// LocalAddr implements net.Conn.
func (c *stackConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *stackConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *stackConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *stackConn) SetReadDeadline(t time.Time) error {
	c.read.Set(t)
	return c.closed()
}

// SetWriteDeadline implements net.Conn.
func (c *stackConn) SetWriteDeadline(t time.Time) error {
	c.write.Set(t)
	return c.closed()
}

// closed is net.ErrClosed after Close.
func (c *stackConn) closed() error {
	if tunnel.IsClosed(c.gone) {
		return c.ended()
	}
	return nil
}
