package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/tunnel"
)

// A Server takes connections that were accepted, one call of [Server.Conn] each.
// Each ends as exactly one of: a connection to the API, one or more Arrivals, a pipe,
// a reverse link, a Refusal. The fields must not be changed while it is in use.
type Server struct {
	Handler tunnel.Handler
	Domain  string // of the cluster, in lower case
	// Certificate returns the server's certificate for a hello, also for the names of
	// public Services.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Public returns the Service, SERVICE.NAMESPACE, that may be reached by a server
	// name without a Session: a client that asks for it and shows no certificate is an
	// anonymous Arrival. One that shows a certificate comes as that Session, or is
	// refused, as ever. nil is none.
	Public func(sni string) (service string, ok bool)
	// ClientCAs returns who signs the certificates of Sessions, as it stands.
	ClientCAs func() *x509.CertPool
	// Admit decides whether and when a connection may make its handshake, before
	// anything is read. heard is called when the hello has come; its error refuses
	// the connection. leave is called once at the end of the handshake, with
	// whether it proved a Session; an error says that the connection was closed
	// meanwhile. Errors may have a method Reason() api.ReasonType. If Admit is nil,
	// everybody may at once. See ingress.Admission.
	Admit func(context.Context, net.Conn) (heard func() error, leave func(proved bool) error, err error)
	// Alive tells whether the Session of a certificate that verifies is still
	// there, for Admit, pipes and reverse links; whose Arrivals get in is not for the
	// road to say. If it is nil, it is.
	Alive func(leaf *x509.Certificate) bool
	// Session returns the uid of the Session of a certificate that verifies. If it is
	// nil, there are neither pipes nor reverse links.
	Session func(leaf *x509.Certificate) (uid string, ok bool)
	// Pipe is given the pipes of Sessions, and returns when one is over: p.Receive
	// fails then, also when ctx is done, or by [Server.DropSession] or [Server.Leave].
	// p is closed when Pipe has returned. If it is nil, there are none.
	Pipe func(ctx context.Context, leaf *x509.Certificate, p tunnel.Pipe)
	// OnBacks is told when the number of reverse links of a Session has changed, one
	// call at a time, and the last one with what is. It may be nil.
	OnBacks func(session string, links int)
	// API is given connections to the API, after the handshake. If the client
	// has presented a certificate, its key is proved but it is not verified. The
	// connection is API's from then on; API returns at once.
	API    func(*tls.Conn)
	Log    *slog.Logger
	Limits Limits

	once      sync.Once
	sorting   *tls.Config // for the hello
	apiConfig *tls.Config
	framed    *tls.Config
	packets   *tls.Config
	serve     *tls.Config
	raw       *tls.Config
	public    *tls.Config
	idle      atomic.Int64 // framed connections that wait for their next stream
	counters  counters
	links     links
	sessions  sessions
}

// Limits bound what strangers and idle clients can hold. Zero is the default.
type Limits struct {
	Handshake time.Duration // of one, and from there to the first OPEN; 10 s
	Idle      int           // framed connections without a stream; 4096. Beyond that they are closed when their stream ends
	IdleTime  time.Duration // of one; 5 minutes
	Backs     int           // reverse links of one Session without a stream, also such as are yet to say HELLO; 64. Beyond that they are closed
	Pipes     int           // of one Session; 4. One more ends the oldest
}

func (l Limits) withDefaults() Limits {
	if l.Handshake <= 0 {
		l.Handshake = handshakeTime
	}
	if l.Idle <= 0 {
		l.Idle = 4096
	}
	if l.IdleTime <= 0 {
		l.IdleTime = 5 * time.Minute
	}
	if l.Backs <= 0 {
		l.Backs = 64
	}
	if l.Pipes <= 0 {
		l.Pipes = 4
	}
	return l
}

func (s *Server) init() {
	s.Limits = s.Limits.withDefaults()
	s.apiConfig = &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: s.Certificate,
		ClientAuth:     tls.RequestClientCert,
		NextProtos:     []string{"http/1.1"},
	}
	s.framed = &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		GetCertificate:              s.Certificate,
		ClientAuth:                  tls.RequestClientCert, // verify says which way one is missing
		VerifyConnection:            s.verify,
		NextProtos:                  []string{Protocol},
		DynamicRecordSizingDisabled: true, // one write, one record: latency is the application's choice
	}
	s.packets = s.framed.Clone()
	s.packets.NextProtos = []string{PacketsProtocol}
	s.serve = s.framed.Clone()
	s.serve.NextProtos = []string{ServeProtocol}
	s.raw = s.framed.Clone()
	s.raw.NextProtos = nil
	s.public = s.raw.Clone() // apart: what is resumed there may have shown no certificate
	s.public.VerifyConnection = s.verifyIfShown
	s.sorting = &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: s.configFor}
}

// errNotServed ends the handshake of a client that wants something else.
var errNotServed = errors.New("nothing is served under this server name and protocol")

// configFor sorts a connection by its hello. Until then its socket is mute.
func (s *Server) configFor(info *tls.ClientHelloInfo) (*tls.Config, error) {
	sock := info.Conn.(*socket)
	sock.hello = sort(info, s.Domain, s.Public)
	if err := sock.heard(); err != nil {
		return nil, err
	}
	switch {
	case len(info.SupportedVersions) == 0: // SSLv3 or older
		return nil, errors.New("no version of TLS is offered")
	case !s.serves(sock.hello.form):
		return nil, errNotServed
	}
	sock.mute = false
	if sock.hello.form == formAPI {
		return s.apiConfig, nil
	}
	sock.strict = true
	switch sock.hello.form {
	case formFramed:
		return s.framed, nil
	case formPackets:
		return s.packets, nil
	case formServe:
		return s.serve, nil
	}
	raw := s.raw
	if sock.hello.public {
		raw = s.public
	}
	c := sock.config(raw)
	if sock.hello.alpn != "" {
		c.NextProtos = []string{sock.hello.alpn}
	}
	return c, nil
}

// serves tells whether there is something at the end of a form.
func (s *Server) serves(f form) bool {
	switch f {
	case formNone:
		return false
	case formPackets:
		return s.Session != nil && s.Pipe != nil
	case formServe:
		return s.Session != nil
	}
	return true
}

// verifyIfShown is verify for who may come without a certificate.
func (s *Server) verifyIfShown(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	return s.verify(cs)
}

// verify checks a client's certificate, also when its TLS session is resumed.
func (s *Server) verify(cs tls.ConnectionState) error {
	return tunnel.VerifyClient(cs, s.ClientCAs())
}

// Conn takes a connection that was accepted and returns when there is nothing
// left of it to do here: it was refused, or is the API's, or the Handler's, or,
// if it is framed or a reverse link, has carried its last stream, or is a pipe that
// is over.
//
// When ctx is done, what is not in use ends: a handshake, a framed connection
// between two streams, a reverse link that waits for one; and so does a pipe. A stream is the Handler's: Conn waits for it to be closed
// or reset, and is bounded in what it does after that.
func (s *Server) Conn(ctx context.Context, c net.Conn) {
	s.once.Do(s.init)
	sock := &socket{Conn: c, mute: true}
	facts := tunnel.ConnFacts(c.LocalAddr(), c.RemoteAddr())
	h := handshake{admit: s.Admit, limit: s.Limits.Handshake, proves: s.proves}
	conn, err := h.do(ctx, sock, s.sorting)
	if err != nil {
		if sock.hello.seen {
			facts.TLS = &api.TLSFacts{SNI: sock.hello.sni, ALPN: sock.hello.alpn}
		}
		s.refuse(facts, err)
		c.Close()
		return
	}
	state := conn.ConnectionState()
	s.counters.handshake(&state)
	if sock.hello.form == formAPI {
		s.API(conn)
		return
	}
	a := api.Arrival{Facts: facts, Evidence: api.Evidence{Kind: api.EvidenceAnonymous}}
	leaf := shown(&state)
	a.Facts.TLS = tunnel.TLSFacts(&state, leaf)
	if leaf != nil {
		a.Evidence = api.Evidence{Kind: api.EvidenceCertificate, Data: leaf.Raw}
	}
	if sock.hello.form == formRaw {
		a.Facts.Tunnel = RawName
		if leaf == nil {
			a.Facts.Tunnel = PublicName
		}
		a.Service = sock.hello.service
		a.Conn = &raw{Conn: conn, socket: sock}
		s.counters.streams.Add(1)
		s.Handler.Arrive(a)
		return
	}
	switch sock.hello.form {
	case formFramed:
		a.Facts.Tunnel = Protocol
		s.frames(ctx, newLink(conn, sock), a)
	case formPackets, formServe:
		if err := s.attach(ctx, conn, sock, leaf); err != nil {
			s.refuse(a.Facts, err)
		}
	}
}

// shown returns the client's certificate, nil if it has shown none.
func shown(state *tls.ConnectionState) *x509.Certificate {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	return state.PeerCertificates[0]
}

// proves tells whether a handshake has proved a live Session. That of the API
// has let the certificate pass unverified.
func (s *Server) proves(conn *tls.Conn) bool {
	state := conn.ConnectionState()
	leaf := shown(&state)
	if leaf == nil || conn.NetConn().(*socket).hello.form == formAPI && s.verify(state) != nil {
		return false
	}
	return s.Alive == nil || s.Alive(leaf)
}

// refuse reports a connection that ended before there was an Arrival.
func (s *Server) refuse(facts api.Facts, err error) {
	r := refused(err)
	s.Handler.Refused(api.Refusal{Facts: facts, Reason: r.reason, Words: r.words})
}
