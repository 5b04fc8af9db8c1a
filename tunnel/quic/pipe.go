package quic

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"cardea/tunnel"
)

// A pipe is a [tunnel.Pipe]: the packets of a connection.
type pipe struct {
	conn  *quic.Conn
	large *quic.SendStream // for what is too large for a datagram; nil until there is such
	work  sync.WaitGroup
	out   chan []byte
	in    chan []byte
	after func() // releases what the connection was made with; may be nil

	closing sync.Once
}

var _ tunnel.Pipe = (*pipe)(nil)

// queued is how many packets wait in each direction; one more is lost.
const queued = 256

// newPipe returns the pipe of a connection. It lasts until Close, which calls after.
func newPipe(conn *quic.Conn, after func()) *pipe {
	p := &pipe{conn: conn, out: make(chan []byte, queued), in: make(chan []byte, queued), after: after}
	p.work.Go(p.send)
	p.work.Go(p.receive)
	return p
}

// Send implements [tunnel.Pipe].
func (p *pipe) Send(b []byte) error {
	if err := p.over(); err != nil {
		return err
	}
	if len(b) == 0 || len(b) > tunnel.MaxPacket {
		return nil
	}
	select {
	case p.out <- append([]byte(nil), b...):
	default: // it is lost
	}
	return nil
}

// over tells why the pipe is over, if so.
func (p *pipe) over() error { return context.Cause(p.conn.Context()) }

// send sends what is queued.
func (p *pipe) send() {
	for {
		select {
		case b := <-p.out:
			err := p.conn.SendDatagram(b)
			if _, large := errors.AsType[*quic.DatagramTooLargeError](err); large {
				p.sendLarge(b)
			}
		case <-p.conn.Context().Done():
			return
		}
	}
}

// sendLarge sends a packet on the stream. An error shows in the connection.
func (p *pipe) sendLarge(b []byte) {
	if p.large == nil {
		large, err := p.conn.OpenUniStream()
		if err != nil {
			return
		}
		p.large = large
	}
	p.large.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...))
}

// receive takes datagrams.
func (p *pipe) receive() {
	for {
		b, err := p.conn.ReceiveDatagram(p.conn.Context())
		if err != nil {
			return
		}
		p.take(b)
	}
}

// take gives a packet to Receive.
func (p *pipe) take(b []byte) {
	if len(b) == 0 {
		return
	}
	select {
	case p.in <- b:
	default: // it is lost
	}
}

// receiveLarge takes packets from a stream. The peer ends it with the connection only.
func (p *pipe) receiveLarge(r io.Reader) {
	for {
		b, err := readPacket(r)
		if err != nil {
			break
		}
		p.take(b)
	}
	p.conn.CloseWithError(codeProtocol, "the stream of packets has ended")
}

// readPacket reads a packet from a stream.
func readPacket(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// Receive implements [tunnel.Pipe].
func (p *pipe) Receive(b []byte) (int, error) {
	for {
		select {
		case packet := <-p.in:
			if len(packet) <= len(b) {
				return copy(b, packet), nil
			}
		case <-p.conn.Context().Done():
			return 0, p.over()
		}
	}
}

// leave ends the pipe; Close is still to be called.
func (p *pipe) leave(code quic.ApplicationErrorCode, words string) {
	p.conn.CloseWithError(code, words)
}

// Close implements [tunnel.Pipe].
func (p *pipe) Close() error {
	p.leave(codeNone, "")
	p.work.Wait()
	p.closing.Do(func() {
		if p.after != nil {
			p.after()
		}
	})
	return nil
}

// RemoteAddr implements [tunnel.Pipe].
func (p *pipe) RemoteAddr() net.Addr { return p.conn.RemoteAddr() }

// welcome tells the client that it was taken.
func (p *pipe) welcome() error {
	large, err := p.conn.OpenUniStream()
	if err != nil {
		return err
	}
	p.large = large
	_, err = large.Write([]byte{0, 0})
	return err
}

// welcomed waits for the welcome, and returns the stream of large packets.
func welcomed(ctx context.Context, conn *quic.Conn) (io.Reader, error) {
	large, err := conn.AcceptUniStream(ctx)
	if err != nil {
		return nil, err
	}
	large.SetReadDeadline(time.Now().Add(handshakeTime))
	b, err := readPacket(large)
	if err == nil && len(b) > 0 {
		err = errors.New("a packet came where the welcome was due")
	}
	large.SetReadDeadline(time.Time{})
	return large, err
}
