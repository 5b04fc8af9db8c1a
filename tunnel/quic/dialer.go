package quic

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"cardea/api"
	"cardea/tunnel"
	"cardea/wire/frame"
)

// A Dialer opens streams on one connection to a gateway, which it makes when there is
// none, and pipes on others. The fields must not be changed while it is in use; end it
// with [Dialer.Close].
type Dialer struct {
	Address string         // HOST:PORT of the gateway, UDP
	Domain  string         // of the cluster: the gateway must prove to be gateway.DOMAIN
	Roots   *x509.CertPool // who may say so
	// Certificate returns the Session's certificate as it stands. It is asked for
	// each stream; a connection that was made with another carries no further one.
	Certificate func(context.Context) (*tls.Certificate, error)
	// Listen returns the UDP socket of a connection; nil is net.ListenUDP, of any
	// address.
	Listen func() (net.PacketConn, error)

	making chan struct{} // holds a value while a connection is made; made with mu
	crowd  crowd

	mu     sync.Mutex
	shown  tunnel.Credentials
	link   *dialled // for the next stream; nil if there is none
	links  map[*dialled]struct{}
	closed bool
}

const (
	connecting = 10 * time.Second // for a connection to the gateway
	attempting = 3 * time.Second  // for one of several addresses, but for the last
	idleTime   = 2 * time.Minute  // of a connection without a stream; less than the server's, so that it is good
	doubting   = 2 * time.Second  // of silence after an OPEN: then another connection is tried
)

// dialled is a link of a Dialer.
type dialled struct {
	*link
	over chan struct{} // closed when nothing is left of it
}

// Status is what a Dialer knows of its connection.
type Status struct {
	Connected bool
	Remote    string        // IP:PORT of the gateway
	RTT       time.Duration // smoothed
	Sent      uint64        // bytes, on the connection that there is
	Received  uint64
	Streams   int // that are open
}

// Status returns what is known of the connection that carries streams.
func (d *Dialer) Status() Status {
	d.mu.Lock()
	l := d.link
	d.mu.Unlock()
	if l == nil || l.conn.Context().Err() != nil {
		return Status{}
	}
	s := l.conn.ConnectionStats()
	return Status{true, l.conn.RemoteAddr().String(), s.SmoothedRTT, s.BytesSent, s.BytesReceived, l.now().streams}
}

// Dial implements [tunnel.Dialer]. It returns after the gateway's verdict. A gateway that
// does not take the certificate makes it UNAUTHENTICATED.
func (d *Dialer) Dial(ctx context.Context, service string) (net.Conn, error) {
	service = api.ServiceName(service)
	open, err := frame.AppendOpen(nil, frame.Open{Service: service})
	if err != nil {
		return nil, err
	}
	for {
		l, first, err := d.connection(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := d.open(ctx, l, service, open, first)
		if _, stale := err.(staleError); !stale {
			return conn, err
		}
		d.retire(l)
	}
}

// Connect makes a connection to the gateway if there is none, so that it is known whether
// there can be one. A gateway that does not take the certificate may say so only later.
func (d *Dialer) Connect(ctx context.Context) error {
	_, _, err := d.connection(ctx)
	return err
}

// connection returns a link for a stream. first is set if it was made for that.
func (d *Dialer) connection(ctx context.Context) (l *dialled, first bool, err error) {
	config, err := d.configure(ctx)
	if err != nil {
		return nil, false, err
	}
	if l := d.current(); l != nil {
		return l, false, nil
	}
	select {
	case d.making <- struct{}{}:
		defer func() { <-d.making }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	if l := d.current(); l != nil {
		return l, false, nil
	}
	conn, release, err := d.connect(ctx, config, Protocol)
	if err != nil {
		return nil, false, err
	}
	l = &dialled{newLink(conn, &d.crowd, idleTime), make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		l.leave()
		err = net.ErrClosed
	} else if d.shown.Last(config) {
		d.link = l
	}
	d.links[l] = struct{}{}
	go func() {
		defer close(l.over)
		l.serve()
		release()
		d.retire(l)
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.links, l)
	}()
	return l, true, err
}

// current returns the link that there is, nil if there is none that is good.
func (d *Dialer) current() *dialled {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link == nil || d.link.conn.Context().Err() != nil {
		return nil
	}
	if d.link.now().leaving {
		return nil
	}
	return d.link
}

// retire lets a link carry no further stream.
func (d *Dialer) retire(l *dialled) {
	l.leave()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.link == l {
		d.link = nil
	}
}

// configure returns the configuration for the certificate as it stands.
func (d *Dialer) configure(ctx context.Context) (*tls.Config, error) {
	cert, err := d.Certificate(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, net.ErrClosed
	}
	if d.making == nil {
		d.making, d.links, d.crowd.most = make(chan struct{}, 1), map[*dialled]struct{}{}, math.MaxInt64
	}
	config, fresh, err := d.shown.Configure(cert, d.Roots)
	if fresh && d.link != nil {
		d.link.leave()
		d.link = nil
	}
	return config, err
}

// connect makes a connection to the gateway. release is to be called when it has ended.
func (d *Dialer) connect(ctx context.Context, config *tls.Config, protocol string) (conn *quic.Conn, release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, connecting)
	defer cancel()
	addresses, err := resolve(ctx, d.Address)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot reach the gateway at %s: %w", d.Address, err)
	}
	config = config.Clone()
	config.ServerName, config.NextProtos = tunnel.GatewayName(d.Domain), []string{protocol}
	for i, a := range addresses {
		one, cancel := ctx, context.CancelFunc(func() {})
		if i < len(addresses)-1 {
			one, cancel = context.WithTimeout(ctx, attempting)
		}
		conn, release, err = d.dial(one, a, config)
		cancel()
		if err == nil {
			return conn, release, nil
		}
	}
	if ctx.Err() == context.Canceled {
		return nil, nil, ctx.Err()
	}
	return nil, nil, fmt.Errorf("no QUIC with the gateway at %s as %s: %w", d.Address, config.ServerName, err)
}

// resolve returns the addresses of HOST:PORT.
func resolve(ctx context.Context, address string) (all []net.UDPAddr, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("%q is no port", service)
	}
	ips, err := new(net.Resolver).LookupNetIP(ctx, "ip", host)
	for _, ip := range ips {
		all = append(all, *net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip.Unmap(), uint16(port))))
	}
	return all, err
}

// dial makes a connection to an address.
func (d *Dialer) dial(ctx context.Context, to net.UDPAddr, config *tls.Config) (*quic.Conn, func(), error) {
	listen := d.Listen
	if listen == nil {
		listen = func() (net.PacketConn, error) { return net.ListenUDP("udp", nil) }
	}
	pc, err := listen()
	if err != nil {
		return nil, nil, err
	}
	transport := &quic.Transport{Conn: over(pc), ConnectionIDLength: 8}
	release := func() {
		transport.Close()
		pc.Close()
	}
	conn, err := transport.Dial(ctx, &to, config, &quic.Config{
		HandshakeIdleTimeout:           handshakeTime / 2,
		MaxIdleTimeout:                 silence,
		KeepAlivePeriod:                knocking,
		InitialStreamReceiveWindow:     streamWindow,
		MaxStreamReceiveWindow:         mostStreamWindow,
		InitialConnectionReceiveWindow: mostConnWindow,
		MaxConnectionReceiveWindow:     mostConnWindow,
		MaxIncomingStreams:             -1,
		MaxIncomingUniStreams:          1,
		EnableDatagrams:                true,
	})
	if err != nil {
		release()
		return nil, nil, err
	}
	return conn, release, nil
}

// A staleError says that a connection that was in use before turned out to be lost, or
// at its end, when it was asked for a stream.
type staleError struct{ error }

// open asks for a stream and waits for the verdict. first is set if nothing has been
// asked for on l before.
func (d *Dialer) open(ctx context.Context, l *dialled, service string, open []byte, first bool) (net.Conn, error) {
	q, err := l.conn.OpenStreamSync(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, failure(service, err, err, first)
	}
	s := newStream(q, l.link)
	s.over = func() {
		if s.isCut() || !l.begin(s.settle) {
			s.settle() // which has nothing to wait for
		}
	}
	if !l.add(s) {
		s.forget()
		q.CancelRead(codeDone)
		q.CancelWrite(codeDone)
		return nil, staleError{errLeaving}
	}
	var doubt *time.Timer
	if !first {
		before := l.conn.ConnectionStats().PacketsReceived
		doubt = time.AfterFunc(doubting, func() {
			if l.conn.ConnectionStats().PacketsReceived == before {
				s.Reset(doubtful)
			}
		})
		defer doubt.Stop()
	}
	stop := context.AfterFunc(ctx, func() { s.Reset("given up") })
	v, err := s.ask(open)
	if !stop() {
		return nil, ctx.Err()
	}
	if err != nil {
		s.Reset("no verdict")
		return nil, failure(service, err, s.lostBy(), first)
	}
	if v.Code == api.VerdictOK {
		if doubt != nil && !doubt.Stop() && s.ended() != nil {
			return nil, staleError{s.ended()}
		}
		return s, nil
	}
	s.lose(&tunnel.ResetError{Reason: "refused"})
	s.Close()
	return nil, tunnel.Refused(service, v)
}

// doubtful is the reason of a reset of a stream whose connection seems to be lost.
const doubtful = "no answer, while nothing else came"

// ask sends OPEN and returns the verdict.
func (s *stream) ask(open []byte) (api.Verdict, error) {
	if _, err := s.Write(open); err != nil {
		return api.Verdict{}, err
	}
	f, err := frame.NewReader(s).Next()
	if err == nil && f.Type != frame.TypeVerdict {
		err = fmt.Errorf("%w: %v where VERDICT was due", frame.ErrProtocol, f.Type)
	}
	v := f.Verdict
	return api.Verdict{Code: api.VerdictCode(v.Code), DecisionID: v.DecisionID, Words: v.Words}, err
}

// failure returns what Dial returns for an error, lost being that of the connection, if
// that is the cause.
func failure(service string, err, lost error, first bool) error {
	if e := refusedCertificate(lost); e != nil {
		return e
	}
	if err == errLeaving || !first && (lost != nil || lossWords(err) == doubtful) {
		return staleError{err}
	}
	return tunnel.Lost(service, lossWords(err))
}

// refusedCertificate returns what an error means that is an alert of the gateway, nil
// if it is none. In TLS 1.3 a client hears of a certificate after its handshake.
func refusedCertificate(err error) error {
	alert, ok := errors.AsType[*quic.TransportError](err)
	if !ok || !alert.Remote || !alert.ErrorCode.IsCryptoError() {
		return nil
	}
	return tunnel.Unauthenticated("the gateway does not accept the certificate of this Session (" + alert.Error() + ")")
}

// Pipe opens a pipe to the gateway, on a connection of its own, which a [Server] then has
// as Server.Pipe. A gateway that does not take the certificate makes it UNAUTHENTICATED.
// ctx bounds the dialling only, and [Dialer.Close] does not end it.
func (d *Dialer) Pipe(ctx context.Context) (tunnel.Pipe, error) {
	config, err := d.configure(ctx)
	if err != nil {
		return nil, err
	}
	conn, release, err := d.connect(ctx, config, PacketsProtocol)
	if err != nil {
		return nil, err
	}
	large, err := welcomed(ctx, conn)
	if err != nil {
		conn.CloseWithError(codeNone, "")
		release()
		switch e := refusedCertificate(err); {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case e != nil:
			return nil, e
		}
		return nil, api.Errorf(api.CodeUnavailable, "the gateway at %s opens no pipe: %s", d.Address, lossWords(err))
	}
	p := newPipe(conn, release)
	p.work.Go(func() { p.receiveLarge(large) })
	return p, nil
}

// Close ends the connection if no stream is open, after what was sent on it is delivered,
// or a few seconds. Otherwise it ends with its last stream. Dial fails.
func (d *Dialer) Close() error {
	d.mu.Lock()
	d.closed, d.link = true, nil
	var links []*dialled
	for l := range d.links {
		links = append(links, l)
	}
	d.mu.Unlock()
	for _, l := range links {
		l.leave()
		if !l.now().inUse {
			<-l.over
		}
	}
	return nil
}

var _ tunnel.Dialer = (*Dialer)(nil)
