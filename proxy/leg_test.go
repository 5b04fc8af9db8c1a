package proxy

import (
	"net"
	"testing"

	"cardea/relay"
)

// told is a socket over which words go their own way, as over a tunnel.
type told struct {
	*net.TCPConn
	reset []string
}

func (c *told) NetConn() net.Conn { return c.TCPConn }
func (*told) Unread() []byte      { return nil }
func (c *told) Reset(reason string) error {
	c.reset = append(c.reset, reason)
	return nil
}

// An engine must find the socket under a conn that is told of resets, or all its bytes
// go through memory of this process.
func TestSocketUnderLeg(t *testing.T) {
	socket := new(net.TCPConn)
	conn := &told{TCPConn: socket}
	l := (&Conn{Conn: conn}).leg()
	at := net.Conn(l)
	for {
		s, ok := at.(relay.Transparent)
		if !ok {
			break
		}
		at = s.NetConn()
	}
	if at != net.Conn(socket) {
		t.Errorf("an engine finds %T, not the socket", at)
	}
	if err := relay.Reset(l, relay.Revoked); err != nil || len(conn.reset) != 1 || conn.reset[0] != string(relay.Revoked) {
		t.Errorf("the conn was told %q, %v, of a reset", conn.reset, err)
	}
}
