package quic

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"cardea/api"
	"cardea/tunnel"
	"cardea/wire/frame"
)

// A Server takes connections on a UDP socket. The fields must not be changed while it is
// in use.
type Server struct {
	Handler tunnel.Handler
	Domain  string // of the cluster, in lower case
	// Certificate returns the server's certificate for a hello.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// ClientCAs returns who signs the certificates of Sessions, as it stands.
	ClientCAs func() *x509.CertPool
	// Alive tells whether the Session of a certificate that verifies is still there, for
	// pipes; whose Arrivals get in is not for the road to say. If it is nil, it is.
	Alive func(leaf *x509.Certificate) bool
	// Session returns the uid of the Session of a certificate that verifies. If it is
	// nil, there are no pipes, and each certificate counts as a Session.
	Session func(leaf *x509.Certificate) (uid string, ok bool)
	// Pipe is given the pipes of Sessions, and returns when one is over: p.Receive fails
	// then, also when ctx is done, or by [Server.DropSession]. p is closed when Pipe has
	// returned. If it is nil, there are none.
	Pipe func(ctx context.Context, leaf *x509.Certificate, p tunnel.Pipe)
	// ResetKey is a secret that stays when the process starts anew, by which clients of
	// the former one learn at once that it is gone (RFC 9000, section 10.3). If it is
	// zero, they learn it when the server has been silent for 20 seconds.
	ResetKey [32]byte
	Log      *slog.Logger
	Limits   Limits

	once     sync.Once
	streams  *tls.Config
	packets  *tls.Config
	crowd    crowd
	door     door
	heads    heads
	windows  windows
	pipes    pipes
	counters counters
}

// Limits bound what strangers and idle clients can hold. Zero is the default.
type Limits struct {
	Handshakes int           // under way at once, 256; of one network a quarter. With an eighth of them, clients must prove their address (RFC 9000, section 8.1.2)
	Handshake  time.Duration // of one, and from the first byte of a stream to its OPEN; 10 s
	Idle       int           // connections without a stream; 4096. Beyond that one is closed when its last stream ends
	IdleTime   time.Duration // of one; 5 minutes
	Streams    int           // of one connection; 1024. The client waits for one to end
	Conns      int           // with streams or for them, of one Session; 8. One more is refused
	Pipes      int           // of one Session; 4. One more ends the oldest
	Windows    int           // bytes to which the flow windows of connections grow, in all; 256 MiB. Those of one Session grow to a 32nd of it
}

func (l Limits) withDefaults() Limits {
	for _, x := range []struct {
		n   *int
		def int
	}{{&l.Handshakes, 256}, {&l.Idle, 4096}, {&l.Streams, 1024}, {&l.Conns, 8}, {&l.Pipes, 4}, {&l.Windows, 256 << 20}} {
		if *x.n <= 0 {
			*x.n = x.def
		}
	}
	if l.Handshake <= 0 {
		l.Handshake = handshakeTime
	}
	if l.IdleTime <= 0 {
		l.IdleTime = 5 * time.Minute
	}
	return l
}

// Stats are counters of a [Server].
type Stats struct {
	Handshakes  int64 // that were completed
	Refused     int64 // connections that were not let in
	Connections int   // that carry streams
	Idle        int   // of those: without one
	Streams     int64 // that were opened
	Pipes       int   // that are open
}

type counters struct{ handshakes, refused, connections, streams, pipes atomic.Int64 }

// Stats returns the counters as they stand.
func (s *Server) Stats() Stats {
	return Stats{
		Handshakes:  s.counters.handshakes.Load(),
		Refused:     s.counters.refused.Load(),
		Connections: int(s.counters.connections.Load()),
		Idle:        int(s.crowd.idle.Load()),
		Streams:     s.counters.streams.Load(),
		Pipes:       int(s.counters.pipes.Load()),
	}
}

func (s *Server) init() {
	s.Limits = s.Limits.withDefaults()
	s.door.limit = s.Limits.Handshakes
	s.crowd.most = int64(s.Limits.Idle)
	s.windows.most, s.windows.mostOfSession = int64(s.Limits.Windows), int64(s.Limits.Windows)/32
	s.streams = &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: s.Certificate,
		ClientAuth:     tls.RequestClientCert, // verify says which way one is missing
		NextProtos:     []string{Protocol},
	}
	s.packets = s.streams.Clone()
	s.packets.NextProtos = []string{PacketsProtocol}
}

// Serve takes connections on pc until ctx is done, and leaves pc open. When ctx is done,
// what is not in use ends: handshakes, pipes, connections without a stream. A stream is
// the Handler's: Serve waits for it to be closed or reset, and is bounded in what it does
// after that. An error says that the socket is of no use. A pc that is a [Socket] can be
// handed over to another process meanwhile.
func (s *Server) Serve(ctx context.Context, pc net.PacketConn) error {
	s.once.Do(s.init)
	transport := &quic.Transport{
		Conn: over(pc), ConnectionIDGenerator: marked(0),
		VerifySourceAddress: func(net.Addr) bool { return s.door.busy() },
		ConnContext: func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
			return s.begin(ctx, tunnel.ConnFacts(pc.LocalAddr(), info.RemoteAddr))
		},
	}
	if shared, ok := pc.(*Socket); ok {
		transport.ConnectionIDGenerator = marked(shared.mark)
	}
	if s.ResetKey != [32]byte{} {
		transport.StatelessResetKey = (*quic.StatelessResetKey)(&s.ResetKey)
	}
	defer s.door.attempts.Wait()
	defer transport.Close()
	l, err := transport.Listen(&tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: s.configFor}, &quic.Config{
		HandshakeIdleTimeout:           s.Limits.Handshake / 2, // of silence; twice that in all
		MaxIdleTimeout:                 silence,
		InitialStreamReceiveWindow:     streamWindow,
		MaxStreamReceiveWindow:         mostStreamWindow,
		InitialConnectionReceiveWindow: connWindow,
		MaxConnectionReceiveWindow:     mostConnWindow,
		AllowConnectionWindowIncrease: func(conn *quic.Conn, by uint64) bool {
			h := attemptOf(conn.Context()).windows.Load()
			return h != nil && h.grow(by)
		},
		MaxIncomingStreams:    int64(s.Limits.Streams),
		MaxIncomingUniStreams: 1,
		EnableDatagrams:       true,
	})
	if err != nil {
		return err
	}
	var conns sync.WaitGroup
	defer conns.Wait()
	defer l.Close() // which leaves connections alone
	for {
		conn, err := l.Accept(ctx)
		if ctx.Err() != nil {
			if err == nil {
				conn.CloseWithError(codeNone, "the server is stopping")
			}
			return nil
		}
		if err != nil {
			return err
		}
		conns.Go(func() { s.conn(ctx, conn) })
	}
}

// errNotServed ends the handshake of a client that wants something else.
var errNotServed = errors.New("nothing is served under this server name and protocol")

// configFor sorts a connection by its hello.
func (s *Server) configFor(info *tls.ClientHelloInfo) (*tls.Config, error) {
	a := attemptOf(info.Context())
	if a == nil {
		return nil, errNotServed
	}
	a.facts.TLS = &api.TLSFacts{SNI: tunnel.ServerName(info.ServerName)}
	if len(info.SupportedProtos) > 0 {
		a.facts.TLS.ALPN = info.SupportedProtos[0]
	}
	var c *tls.Config
	switch {
	case a.facts.TLS.SNI != tunnel.GatewayName(s.Domain):
	case slices.Contains(info.SupportedProtos, Protocol):
		c = s.streams
	case slices.Contains(info.SupportedProtos, PacketsProtocol) && s.Pipe != nil && s.Session != nil:
		c = s.packets
	}
	if c == nil {
		a.refuse(errNotServed)
		return nil, errNotServed
	}
	own := c.Clone()
	// The keys are those of c, so that a TLS session is resumed by any connection.
	own.UnwrapSession = c.DecryptTicket
	own.WrapSession = c.EncryptTicket
	own.VerifyConnection = func(state tls.ConnectionState) error {
		err := tunnel.VerifyClient(state, s.ClientCAs())
		if err != nil {
			a.refuse(err)
		}
		return err
	}
	return own, nil
}

// conn serves a connection whose handshake is complete.
func (s *Server) conn(ctx context.Context, conn *quic.Conn) {
	s.counters.handshakes.Add(1)
	a := attemptOf(conn.Context())
	s.door.end(a)
	state := conn.ConnectionState().TLS
	leaf := state.PeerCertificates[0]
	session := s.owner(leaf)
	held := s.windows.open(session)
	defer held.close()
	a.windows.Store(held)
	facts := tunnel.ConnFacts(conn.LocalAddr(), conn.RemoteAddr())
	facts.TLS = tunnel.TLSFacts(&state, leaf)
	if state.NegotiatedProtocol == PacketsProtocol {
		if err := s.pipe(ctx, conn, leaf); err != nil {
			s.refuse(facts, err)
		}
		return
	}
	if !s.heads.enter(session, s.Limits.Conns) {
		conn.CloseWithError(codeNone, errManyConns.Error())
		s.refuse(facts, errManyConns)
		return
	}
	defer s.heads.leave(session)
	facts.Tunnel = Name
	arrival := api.Arrival{Facts: facts, Evidence: api.Evidence{Kind: api.EvidenceCertificate, Data: leaf.Raw}}
	l := newLink(conn, &s.crowd, s.Limits.IdleTime)
	stop := context.AfterFunc(ctx, func() {
		l.tell(all, frame.AppendDone(nil))
		l.leave()
	})
	defer stop()
	s.counters.connections.Add(1)
	defer s.counters.connections.Add(-1)
	defer s.crowd.idle.Add(-1) // when no stream is left
	var streams sync.WaitGroup
	defer streams.Wait()
	streams.Go(func() { s.accept(l, arrival, &streams) })
	l.serve()
}

// accept takes the streams of a connection. a is what all their Arrivals have in common.
func (s *Server) accept(l *link, a api.Arrival, streams *sync.WaitGroup) {
	for {
		q, err := l.conn.AcceptStream(l.conn.Context())
		if err != nil {
			return
		}
		st := newStream(q, l)
		if !l.add(st) {
			st.forget()
			q.CancelRead(codeLeave)
			q.CancelWrite(codeLeave)
			continue
		}
		streams.Go(func() { s.carry(st, a) })
	}
}

// carry gives a stream to the Handler and brings it to its end.
func (s *Server) carry(st *stream, a api.Arrival) {
	over := make(chan struct{})
	st.over, st.silent = func() { close(over) }, errUntold
	st.quic.SetReadDeadline(time.Now().Add(s.Limits.Handshake))
	f, err := frame.NewReader(st.quic).Next()
	if err == nil && f.Type != frame.TypeOpen {
		err = frame.ErrProtocol
	}
	if err != nil {
		st.Reset("no OPEN at the begin of the stream: " + lossWords(err))
		st.link.remove(st)
		if errors.Is(err, frame.ErrProtocol) {
			st.link.fail(err)
		}
		return
	}
	st.quic.SetReadDeadline(time.Time{})
	if f.Open.TraceID != "" {
		s.Log.Debug("stream", "service", f.Open.Service, "trace", f.Open.TraceID, "from", st.RemoteAddr())
	}
	// The client may have another address by now.
	now := tunnel.ConnFacts(st.LocalAddr(), st.RemoteAddr())
	a.Facts.IP, a.Facts.Port = now.IP, now.Port
	a.Service, a.Conn = api.ServiceName(f.Open.Service), &arrival{stream: st}
	s.counters.streams.Add(1)
	s.Handler.Arrive(a)
	<-over
	st.settle()
}

// refuse reports a connection that ended before there was an Arrival.
func (s *Server) refuse(facts api.Facts, err error) {
	s.counters.refused.Add(1)
	s.Handler.Refused(api.Refusal{Facts: facts, Reason: api.ReasonHandshake, Words: err.Error()})
}
