package ingress

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
)

// passCancel passes a CancelRequest on to wherever its client has connections: which of
// them it is for only the server knows, by the key in it. Each is a connection of its
// own, which is decided and recorded as any other; when all are over, so is this one.
//
// A CancelRequest comes on a connection of its own, without anything that would tell
// a row (PostgreSQL documentation, "Canceling Requests in Progress").
func (v *visit) passCancel() error {
	to := v.router.Upstreams(v.facts.Listener, v.client().Addr())
	if len(to) == 0 {
		return noRoute("a CancelRequest from where there is no connection")
	}
	for _, a := range to {
		if a.Route == nil {
			continue
		}
		for _, row := range v.router.table.Load().of[a.Route.Object] {
			if err := row.meter.admit(v.client().Addr()); err != nil {
				return err
			}
		}
	}
	packet := bytes.Clone(v.read[:v.cancel.Len])
	left := new(atomic.Int32)
	left.Store(int32(len(to)))
	for _, a := range to {
		a.Facts = v.facts
		if a.Evidence.Kind == "" {
			a.Evidence = api.Evidence{Kind: api.EvidenceAnonymous}
		}
		a.Conn = &canceller{client: v.conn, left: left, packet: packet, done: make(chan struct{})}
		v.router.Handle(a)
	}
	return nil
}

// A canceller is a connection of which the client says a CancelRequest and no more,
// and hears nothing: the server answers by closing.
type canceller struct {
	client *net.TCPConn
	left   *atomic.Int32 // cancellers of the client that are not closed
	once   sync.Once
	done   chan struct{} // closed by Close

	mu     sync.Mutex
	packet []byte // what Read has not returned
}

// Read returns the packet, then io.EOF.
func (c *canceller) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.done:
		return 0, net.ErrClosed
	default:
	}
	if len(c.packet) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.packet)
	c.packet = c.packet[n:]
	return n, nil
}

// Write takes what the server says, which nobody wants to hear.
func (c *canceller) Write(b []byte) (int, error) {
	select {
	case <-c.done:
		return 0, net.ErrClosed
	default:
		return len(b), nil
	}
}

// Close closes the connection of the client, too, if it is the last.
func (c *canceller) Close() error {
	c.once.Do(func() {
		close(c.done)
		if c.left.Add(-1) == 0 {
			c.client.Close()
		}
	})
	return nil
}

// CloseWrite implements relay.CloseWriter: the end of what the server says is the end.
func (c *canceller) CloseWrite() error { return nil }

// Reset implements relay.Resetter.
func (c *canceller) Reset(string) error { return c.Close() }

// WaitReset implements relay.Watcher: a client that has gone changes nothing.
func (c *canceller) WaitReset() error {
	<-c.done
	return net.ErrClosed
}

// LocalAddr returns the address that the client came to.
func (c *canceller) LocalAddr() net.Addr { return c.client.LocalAddr() }

// RemoteAddr returns the address of the client's end.
func (c *canceller) RemoteAddr() net.Addr { return c.client.RemoteAddr() }

// SetDeadline, SetReadDeadline and SetWriteDeadline do nothing: nothing here waits.
func (c *canceller) SetDeadline(time.Time) error { return nil }

func (c *canceller) SetReadDeadline(time.Time) error { return nil }

func (c *canceller) SetWriteDeadline(time.Time) error { return nil }
