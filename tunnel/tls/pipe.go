package tls

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"cardea/api"
	"cardea/tunnel"
)

// A pipe is a [tunnel.Pipe] over TLS: packets follow one another, each behind its length
// in two bytes, big endian. A packet of no bytes is the gateway's welcome, and nothing
// else.
type pipe struct {
	conn   *tls.Conn
	socket *socket

	reading sync.Mutex

	writer sync.WaitGroup // one goroutine
	more   chan struct{}  // there is something in queued

	mu     sync.Mutex
	queued *queue // nil is nothing
	err    error  // why the pipe is over
}

var _ tunnel.Pipe = (*pipe)(nil)

// A queue holds packets that wait to be written. What goes beyond it is lost: TCP below
// will not send it sooner for waiting longer.
type queue struct {
	used  int
	bytes [128 << 10]byte
}

// queues lends queues, so that a pipe that is silent holds none.
var queues = sync.Pool{New: func() any { return new(queue) }}

// newPipe returns a pipe over a connection, and starts to write what is sent. It lasts
// until Close.
func newPipe(conn *tls.Conn, sock *socket) *pipe {
	hurry(sock.Conn)
	p := &pipe{conn: conn, socket: sock, more: make(chan struct{}, 1)}
	p.writer.Go(p.write)
	return p
}

// Send implements [tunnel.Pipe].
func (p *pipe) Send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return p.send(b)
}

func (p *pipe) send(b []byte) error {
	if len(b) > tunnel.MaxPacket {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	if p.queued == nil {
		p.queued = queues.Get().(*queue)
		p.queued.used = 0
	}
	q := p.queued
	if q.used+2+len(b) > len(q.bytes) {
		return nil
	}
	binary.BigEndian.PutUint16(q.bytes[q.used:], uint16(len(b)))
	q.used += 2 + copy(q.bytes[q.used+2:], b)
	select {
	case p.more <- struct{}{}:
	default: // it was told
	}
	return nil
}

// write writes what is queued until the pipe is over.
func (p *pipe) write() {
	for range p.more {
		p.mu.Lock()
		q := p.queued
		p.queued = nil
		p.mu.Unlock()
		if q == nil {
			continue
		}
		err := p.emit(q.bytes[:q.used])
		queues.Put(q)
		if err != nil {
			p.end(err)
			return
		}
	}
}

// emit writes bytes in small records, a batch of them at once, as link does.
func (p *pipe) emit(b []byte) error {
	for len(b) > 0 {
		some := b[:min(len(b), batch)]
		b = b[len(some):]
		p.socket.gather()
		var err error
		for len(some) > 0 && err == nil {
			n := min(len(some), chunk)
			_, err = p.conn.Write(some[:n])
			some = some[n:]
		}
		if err = errors.Join(err, p.socket.flush()); err != nil {
			return err
		}
	}
	return nil
}

// Receive implements [tunnel.Pipe].
func (p *pipe) Receive(b []byte) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	for {
		n, err := p.receive(b)
		if err != nil {
			return 0, p.end(err)
		}
		if 0 < n && n <= len(b) {
			return n, nil
		}
	}
}

// receive reads the next packet, into b if there is room for it, and returns its size.
func (p *pipe) receive(b []byte) (int, error) {
	var length [2]byte
	if _, err := io.ReadFull(p.conn, length[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > len(b) {
		_, err := io.CopyN(io.Discard, p.conn, int64(n))
		return n, err
	}
	_, err := io.ReadFull(p.conn, b[:n])
	return n, err
}

// end notes why the pipe is over, once, ends its connection, and returns what was noted.
// TLS has no part in it: what is lost is lost.
func (p *pipe) end(why error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = why
		close(p.more)
		p.socket.Close()
	}
	return p.err
}

// Close implements [tunnel.Pipe].
func (p *pipe) Close() error {
	p.end(net.ErrClosed)
	p.writer.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queued != nil {
		queues.Put(p.queued)
		p.queued = nil
	}
	return nil
}

// leave ends the pipe and waits for nobody.
func (p *pipe) leave() { p.end(errStopped) }

// RemoteAddr implements [tunnel.Pipe].
func (p *pipe) RemoteAddr() net.Addr { return p.conn.RemoteAddr() }

// Pipe opens a pipe to the gateway, which a [Server] then has as Server.Pipe. A gateway
// that does not take the certificate makes it UNAUTHENTICATED. ctx bounds the dialling
// only, and [Dialer.Close] does not end it.
func (d *Dialer) Pipe(ctx context.Context) (tunnel.Pipe, error) {
	config, err := d.configure(ctx)
	if err != nil {
		return nil, err
	}
	conn, sock, err := d.connect(ctx, config, GatewayName(d.Domain), PacketsProtocol)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { sock.abort() })
	conn.SetReadDeadline(time.Now().Add(connecting))
	welcome := make([]byte, 2)
	_, err = io.ReadFull(conn, welcome)
	if !stop() {
		err = ctx.Err()
	} else if err != nil {
		err = cmp.Or[error](refusedCertificate(err), api.Errorf(api.CodeUnavailable, "the gateway at %s opens no pipe: %s", d.Address, lossWords(err)))
	} else if welcome[0]|welcome[1] != 0 {
		err = errors.New("the gateway begins with a packet where its welcome was due")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetReadDeadline(time.Time{})
	return newPipe(conn, sock), nil
}
