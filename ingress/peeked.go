package ingress

import (
	"net"

	"cardea/wire/hello"
)

// A peeked is a connection of which the beginning was read to find its row. It
// changes no byte: what was read comes out of it first. It is a relay.Transparent.
//
// It does not embed *net.TCPConn, whose other ways to read would leave out what was
// read.
type peeked struct {
	net.Conn
	tcp    *net.TCPConn // the same
	unread []byte
	hello  *hello.Hello // what the row was found by, if that was TLS
}

// Read returns what was read before, then what comes.
func (p *peeked) Read(b []byte) (int, error) {
	if len(p.unread) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.unread)
	if p.unread = p.unread[n:]; len(p.unread) == 0 {
		p.unread = nil
	}
	return n, nil
}

// Unread returns, and gives up, what Read has not returned yet of what was read.
func (p *peeked) Unread() []byte {
	b := p.unread
	p.unread = nil
	return b
}

// NetConn returns the connection beneath.
func (p *peeked) NetConn() net.Conn { return p.Conn }

// CloseWrite half-closes.
func (p *peeked) CloseWrite() error { return p.tcp.CloseWrite() }

// SetLinger is that of net.TCPConn: who ends the TLS of the connection aborts it so.
func (p *peeked) SetLinger(seconds int) error { return p.tcp.SetLinger(seconds) }

// Hello returns what the row was found by, nil if that was not TLS: whoever ends the
// TLS makes sure that it reads the same.
func (p *peeked) Hello() *hello.Hello { return p.hello }
