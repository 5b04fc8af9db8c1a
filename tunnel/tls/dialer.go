package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/wire/frame"
)

// A Dialer opens streams over cardea/1. Connections whose stream has ended are
// kept for the next one, which then costs no handshake. The fields must not be
// changed while it is in use; end it with [Dialer.Close].
type Dialer struct {
	Address string         // HOST:PORT of the gateway
	Domain  string         // of the cluster: the gateway must prove to be gateway.DOMAIN
	Roots   *x509.CertPool // who may say so
	// Certificate returns the Session's certificate as it stands. It is asked for
	// each stream; connections that were made with another are dropped.
	Certificate func(context.Context) (*tls.Certificate, error)
	// Net connects to the gateway; nil is net.Dialer.
	Net func(ctx context.Context, network, address string) (net.Conn, error)

	making   chan struct{} // holds a value for each handshake of Dial; made with mu
	mu       sync.Mutex
	shown    tunnel.Credentials
	idle     []*idleLink // made with what is shown; the one that was last in use last
	settling map[*link]struct{}
	ending   sync.WaitGroup // goroutines, one each of settling
	closed   bool
}

const (
	connecting = 10 * time.Second // for a connection to the gateway and its handshake
	maxIdle    = 64               // connections kept for the next stream: as many as were in use at once, in most cases
	idleTime   = 2 * time.Minute  // of one; less than the server's, so that they are good
	maxMaking  = 32               // handshakes at once: a gateway has places for 256, half of them for strangers, and resets who finds none
)

// idleLink is a link without a stream.
type idleLink struct {
	*link
	timer *time.Timer // closes it
}

// Dial implements [tunnel.Dialer]. It returns after the gateway's verdict. A
// gateway that does not take the certificate makes it UNAUTHENTICATED.
func (d *Dialer) Dial(ctx context.Context, service string) (net.Conn, error) {
	service = api.ServiceName(service)
	open, err := frame.AppendOpen(nil, frame.Open{Service: service})
	if err != nil {
		return nil, err
	}
	config, err := d.configure(ctx)
	if err != nil {
		return nil, err
	}
	if l := d.take(); l != nil {
		conn, err := d.open(ctx, l, config, service, open, false)
		if _, stale := err.(staleError); !stale {
			return conn, err
		}
	}
	conn, sock, err := d.inTurn(ctx, config)
	if err != nil {
		return nil, err
	}
	hello := frame.AppendHello(nil, frame.Hello{Version: frame.Version})
	return d.open(ctx, newLink(conn, sock), config, service, append(hello, open...), true)
}

// DialRaw opens a raw stream: the Service is named by the server name, for which
// the gateway must have a certificate. A refusal is seen as a reset by the first
// Read or Write. alpn is the application's protocol, "" is none.
func (d *Dialer) DialRaw(ctx context.Context, service, alpn string) (net.Conn, error) {
	config, err := d.configure(ctx)
	if err != nil {
		return nil, err
	}
	conn, sock, err := d.connect(ctx, config, ServiceName(api.ServiceName(service), d.Domain), alpn)
	if err != nil {
		return nil, err
	}
	return &raw{Conn: conn, socket: sock}, nil
}

// Close closes the connections that are not in use, gives up waiting for the
// peers of streams that were closed, and returns when the Dialer does nothing
// any more. Streams that are open go on; Dial fails.
func (d *Dialer) Close() error {
	d.mu.Lock()
	d.closed = true
	idle := d.idle
	d.idle = nil
	for l := range d.settling {
		l.stop()
	}
	d.mu.Unlock()
	for _, l := range idle {
		l.discard()
	}
	d.ending.Wait()
	return nil
}

// configure returns the configuration for the certificate as it stands.
func (d *Dialer) configure(ctx context.Context) (*tls.Config, error) {
	cert, err := d.Certificate(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, net.ErrClosed
	}
	if d.making == nil {
		d.making = make(chan struct{}, maxMaking)
	}
	config, fresh, err := d.shown.Configure(cert, d.Roots)
	var old []*idleLink
	if fresh {
		old, d.idle = d.idle, nil
	}
	d.mu.Unlock()
	for _, l := range old {
		l.discard()
	}
	return config, err
}

// inTurn is connect for a stream, of which there may be many at once.
func (d *Dialer) inTurn(ctx context.Context, config *tls.Config) (*tls.Conn, *socket, error) {
	ctx, cancel := context.WithTimeout(ctx, connecting)
	defer cancel()
	select {
	case d.making <- struct{}{}:
		defer func() { <-d.making }()
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("too many connections to the gateway at %s are being made: %w", d.Address, ctx.Err())
	}
	return d.connect(ctx, config, GatewayName(d.Domain), Protocol)
}

// connect returns a TLS connection to the gateway under a server name.
func (d *Dialer) connect(ctx context.Context, config *tls.Config, name, alpn string) (*tls.Conn, *socket, error) {
	ctx, cancel := context.WithTimeout(ctx, connecting)
	defer cancel()
	dial := d.Net
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c, err := dial(ctx, "tcp", d.Address)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot reach the gateway at %s: %w", d.Address, err)
	}
	config = config.Clone()
	config.ServerName = name
	if alpn != "" {
		config.NextProtos = []string{alpn}
	}
	sock := &socket{Conn: c, strict: true}
	conn := tls.Client(sock, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("no TLS with the gateway at %s as %s: %w", d.Address, name, err)
	}
	return conn, sock, nil
}

// A staleError says that an idle connection turned out to be lost when it was
// asked for a stream.
type staleError struct{ error }

// open asks for a stream and waits for the verdict. first is set if nothing has
// been asked for on l before.
func (d *Dialer) open(ctx context.Context, l *link, config *tls.Config, service string, frames []byte, first bool) (net.Conn, error) {
	s, v, err := l.open(ctx, frames, first)
	if err != nil && err == ctx.Err() {
		return nil, err
	}
	if err != nil {
		return nil, failure(service, err, first)
	}
	s.over = func() { d.finish(s, config) }
	if v.Code == api.VerdictOK {
		return s, nil
	}
	s.Close()
	return nil, tunnel.Refused(service, v)
}

// open sends frames, the last of which is OPEN, and returns the stream and the verdict
// on it; over is still to be set, and if the verdict is not OK the stream to be closed.
// If there is an error, that of ctx if this is done, the connection was closed.
func (l *link) open(ctx context.Context, frames []byte, first bool) (*stream, api.Verdict, error) {
	stop := context.AfterFunc(ctx, func() { l.socket.abort() })
	v, err := l.ask(frames, first)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		l.conn.Close()
		return nil, api.Verdict{}, err
	}
	s := &stream{link: l, gotEnd: v.Code != frame.CodeOK}
	return s, api.Verdict{Code: api.VerdictCode(v.Code), DecisionID: v.DecisionID, Words: v.Words}, nil
}

// ask sends frames, the last of which is OPEN, and returns the verdict.
func (l *link) ask(frames []byte, first bool) (frame.Verdict, error) {
	l.send(frames) // if it fails, the peer may have said why
	if first {
		f, err := l.listen()
		if err != nil {
			return frame.Verdict{}, err
		}
		if f.Type != frame.TypeHello || f.Hello.Version != frame.Version {
			return frame.Verdict{}, unexpected(f.Type, "HELLO of version 1")
		}
	}
	f, err := l.listen()
	if err == nil && f.Type != frame.TypeVerdict {
		err = unexpected(f.Type, "VERDICT")
	}
	return f.Verdict, err
}

// A refusedError is a RESET in place of an answer.
type refusedError struct{ error }

// listen reads a frame, and takes RESET for an error.
func (l *link) listen() (frame.Frame, error) {
	f, err := l.frames.Next()
	if err == nil && f.Type == frame.TypeReset {
		err = refusedError{&tunnel.ResetError{Reason: f.Reason}}
	}
	return f, err
}

// failure returns what Dial returns for an error of ask.
func failure(service string, err error, first bool) error {
	if e := refusedCertificate(err); e != nil {
		return e
	}
	_, refused := err.(refusedError)
	if !first && !refused && !errors.Is(err, frame.ErrProtocol) {
		return staleError{err}
	}
	return tunnel.Lost(service, lossWords(err))
}

// refusedCertificate returns what an error means that is an alert of the gateway, nil
// if it is none. In TLS 1.3 a client hears of a certificate after its handshake.
func refusedCertificate(err error) error {
	remote, ok := errors.AsType[*net.OpError](err)
	if !ok || remote.Op != "remote error" {
		return nil
	}
	return tunnel.Unauthenticated("the gateway does not accept the certificate of this Session (" + remote.Err.Error() + ")")
}

// take returns an idle connection, or nil.
func (d *Dialer) take() *link {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.idle) > 0 {
		last := d.idle[len(d.idle)-1]
		d.idle = d.idle[:len(d.idle)-1]
		if last.timer.Stop() {
			return last.link
		}
	}
	return nil
}

// finish brings a stream to its end and keeps its connection.
func (d *Dialer) finish(s *stream, config *tls.Config) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		s.link.stop()
		s.settle()
		s.link.conn.Close()
		return
	}
	defer d.mu.Unlock()
	if d.settling == nil {
		d.settling = make(map[*link]struct{})
	}
	d.settling[s.link] = struct{}{}
	d.ending.Go(func() {
		err := s.settle()
		d.mu.Lock()
		delete(d.settling, s.link)
		kept := err == nil && d.keep(s.link, config)
		d.mu.Unlock()
		if !kept {
			s.link.conn.Close()
		}
	})
}

// keep makes a connection idle, and reports false if it is not to be kept. d.mu
// must be held.
func (d *Dialer) keep(l *link, config *tls.Config) bool {
	if d.closed || !d.shown.Last(config) || len(d.idle) == maxIdle {
		return false
	}
	i := &idleLink{link: l}
	i.timer = time.AfterFunc(idleTime, func() {
		d.mu.Lock()
		d.idle = slices.DeleteFunc(d.idle, func(x *idleLink) bool { return x == i })
		d.mu.Unlock()
		l.conn.Close()
	})
	d.idle = append(d.idle, i)
	return true
}

// discard closes an idle connection, unless its timer does.
func (l *idleLink) discard() {
	if l.timer.Stop() {
		l.conn.Close()
	}
}

var _ tunnel.Dialer = (*Dialer)(nil)
