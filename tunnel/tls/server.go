package tls

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/tunnel"
)

// A Server takes connections that were accepted, one call of [Server.Conn] each.
// Each ends as exactly one of: a connection to the API, one or more Arrivals, a
// Refusal. The fields must not be changed while it is in use.
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
	// there, for Admit and nothing else; who gets in is not for the road to say.
	// If it is nil, it is.
	Alive func(leaf *x509.Certificate) bool
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
	raw       *tls.Config
	public    *tls.Config
	idle      atomic.Int64 // framed connections that wait for their next stream
	counters  counters
	links     links
}

// Limits bound what strangers and idle clients can hold. Zero is the default.
type Limits struct {
	Handshake time.Duration // of one, and from there to the first OPEN; 10 s
	Idle      int           // framed connections without a stream; 4096. Beyond that they are closed when their stream ends
	IdleTime  time.Duration // of one; 5 minutes
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
	case sock.hello.form == formNone:
		return nil, errNotServed
	}
	sock.mute = false
	if sock.hello.form == formAPI {
		return s.apiConfig, nil
	}
	sock.strict = true
	if sock.hello.form == formFramed {
		return s.framed, nil
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

// verifyIfShown is verify for who may come without a certificate.
func (s *Server) verifyIfShown(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	return s.verify(cs)
}

// verify checks a client's certificate, also when its TLS session is resumed.
func (s *Server) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("no client certificate")
	}
	leaf := cs.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	roots := s.ClientCAs()
	if roots == nil { // x509 would take the system's
		roots = x509.NewCertPool()
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: between,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	invalid, unknown := new(x509.CertificateInvalidError), new(x509.UnknownAuthorityError)
	switch {
	case errors.As(err, invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the client certificate holds from %s to %s", stamp(leaf.NotBefore), stamp(leaf.NotAfter))
	case errors.As(err, invalid) && invalid.Reason == x509.IncompatibleUsage,
		err == nil && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return errors.New("the client certificate is not for client authentication")
	case errors.As(err, unknown):
		return errors.New("the client certificate is not signed by the cluster's authority")
	case err != nil:
		return fmt.Errorf("the client certificate does not verify: %w", err)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Conn takes a connection that was accepted and returns when there is nothing
// left of it to do here: it was refused, or is the API's, or the Handler's, or,
// if it is framed, has carried its last stream.
//
// When ctx is done, what is not in use ends: a handshake, a framed connection
// between two streams. A stream is the Handler's: Conn waits for it to be closed
// or reset, and is bounded in what it does after that.
func (s *Server) Conn(ctx context.Context, c net.Conn) {
	s.once.Do(s.init)
	sock := &socket{Conn: c, mute: true}
	facts := connFacts(c)
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
	a.Facts.TLS = tlsFacts(&state, leaf)
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
	a.Facts.Tunnel = Protocol
	s.frames(ctx, newLink(conn, sock), a)
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

// connFacts returns what is known of a connection before its first byte.
func connFacts(c net.Conn) api.Facts {
	f := api.Facts{Listener: c.LocalAddr().String()}
	if from, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		f.IP, f.Port = from.Addr().Unmap().String(), int(from.Port())
	}
	return f
}

// tlsFacts returns what a handshake told; leaf is the client's certificate if that
// was verified.
func tlsFacts(state *tls.ConnectionState, leaf *x509.Certificate) *api.TLSFacts {
	f := &api.TLSFacts{
		SNI:     serverName(state.ServerName),
		ALPN:    state.NegotiatedProtocol,
		Version: strings.TrimPrefix(tls.VersionName(state.Version), "TLS "),
	}
	if leaf == nil {
		return f
	}
	sum := sha256.Sum256(leaf.Raw)
	f.ClientCertificate = &api.ClientCertificate{
		Subject: leaf.Subject.String(),
		Issuer:  leaf.Issuer.String(),
		Serial:  leaf.SerialNumber.Text(16),
		SHA256:  hex.EncodeToString(sum[:]),
		DNS:     leaf.DNSNames,
	}
	for _, u := range leaf.URIs {
		f.ClientCertificate.URIs = append(f.ClientCertificate.URIs, u.String())
	}
	return f
}
