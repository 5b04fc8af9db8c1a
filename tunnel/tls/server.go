package tls

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
	// Certificate returns the server's certificate for a hello.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// ClientCAs returns who signs the certificates of Sessions, as it stands.
	ClientCAs func() *x509.CertPool
	// API is given connections to the API, after the handshake. If the client
	// has presented a certificate, its key is proved but it is not verified. The
	// connection is API's from then on; API returns at once.
	API    func(*tls.Conn)
	Log    *slog.Logger
	Limits Limits

	once       sync.Once
	sorting    *tls.Config // for the hello
	apiConfig  *tls.Config
	framed     *tls.Config
	raw        *tls.Config
	handshakes chan struct{} // one token for each under way
	idle       atomic.Int64  // framed connections that wait for their next stream
}

// Limits bound what strangers and idle clients can hold. Zero is the default.
type Limits struct {
	Handshakes int           // under way at once; 256. Others wait
	Handshake  time.Duration // from the accept to the end of the handshake, and from there to the first OPEN; 10 s, one second while half of Handshakes are taken
	Idle       int           // framed connections without a stream; 4096. Beyond that they are closed when their stream ends
	IdleTime   time.Duration // of one; 5 minutes
}

func (l Limits) withDefaults() Limits {
	if l.Handshakes <= 0 {
		l.Handshakes = 256
	}
	if l.Handshake <= 0 {
		l.Handshake = 10 * time.Second
	}
	if l.Idle <= 0 {
		l.Idle = 4096
	}
	if l.IdleTime <= 0 {
		l.IdleTime = 5 * time.Minute
	}
	return l
}

// hurried is the time for a handshake while half of all that may be are under
// way: a few peers that send nothing cannot keep everybody out for long.
const hurried = time.Second

func (s *Server) init() {
	s.Limits = s.Limits.withDefaults()
	s.handshakes = make(chan struct{}, s.Limits.Handshakes)
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
	s.raw.NextProtos, s.raw.SessionTicketsDisabled = nil, true // see the package comment
	s.sorting = &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: s.configFor}
}

// errNotServed ends the handshake of a client that wants something else.
var errNotServed = errors.New("nothing is served under this server name and protocol")

// configFor sorts a connection by its hello. Until then its socket is mute.
func (s *Server) configFor(info *tls.ClientHelloInfo) (*tls.Config, error) {
	sock := info.Conn.(*socket)
	sock.hello = sort(info, s.Domain)
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
	if sock.hello.alpn == "" {
		return s.raw, nil
	}
	c := s.raw.Clone()
	c.NextProtos = []string{sock.hello.alpn}
	return c, nil
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
	conn, err := s.handshake(ctx, sock)
	if err != nil {
		if sock.hello.seen {
			facts.TLS = &api.TLSFacts{SNI: sock.hello.sni, ALPN: sock.hello.alpn}
		}
		s.refuse(facts, err)
		c.Close()
		return
	}
	state := conn.ConnectionState()
	if sock.hello.form == formAPI {
		s.API(conn)
		return
	}
	leaf := state.PeerCertificates[0]
	facts.TLS = tlsFacts(&state, leaf)
	a := api.Arrival{Facts: facts, Evidence: api.Evidence{Kind: api.EvidenceCertificate, Data: leaf.Raw}}
	if sock.hello.form == formRaw {
		a.Facts.Tunnel = RawName
		a.Service = api.ServiceName(sock.hello.service)
		a.Conn = &raw{Conn: conn, socket: sock}
		s.Handler.Arrive(a)
		return
	}
	a.Facts.Tunnel = Protocol
	s.frames(ctx, newLink(conn, sock), a)
}

// An overload is an error that says that a limit of the process was met.
type overload struct{ error }

// refuse reports a connection that ended before there was an Arrival.
func (s *Server) refuse(facts api.Facts, err error) {
	r := api.Refusal{Facts: facts, Reason: api.ReasonHandshake, Words: words(err)}
	if _, ok := err.(overload); ok {
		r.Reason = api.ReasonOverload
	}
	s.Handler.Refused(r)
}

// words says for the log why a handshake failed.
func words(err error) string {
	var header tls.RecordHeaderError
	var remote *net.OpError
	switch {
	case errors.As(err, &header):
		return "not TLS"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "no complete handshake in time"
	case errors.As(err, &remote) && remote.Op == "remote error":
		return "the client ended the handshake: " + remote.Err.Error()
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the client went away before the handshake was complete"
	}
	w := strings.TrimPrefix(err.Error(), "tls: ")
	return w[:min(len(w), 200)]
}

var errStopping = overload{errors.New("the server is stopping")}

// handshake returns the TLS connection over sock once its peer has proved what
// its form asks for.
func (s *Server) handshake(ctx context.Context, sock *socket) (*tls.Conn, error) {
	limit := s.Limits.Handshake
	wait := time.NewTimer(limit)
	defer wait.Stop()
	select {
	case s.handshakes <- struct{}{}:
		defer func() { <-s.handshakes }()
	case <-wait.C:
		return nil, overload{errors.New("too many handshakes at once")}
	case <-ctx.Done():
		return nil, errStopping
	}
	if len(s.handshakes) > cap(s.handshakes)/2 {
		limit = min(limit, hurried)
	}

	if err := sock.SetDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	conn := tls.Server(sock, s.sorting)
	err := conn.HandshakeContext(context.WithoutCancel(ctx)) // stop does it without a goroutine
	if !stop() {
		return nil, errStopping
	}
	if err != nil {
		return nil, err
	}
	return conn, sock.SetDeadline(time.Time{})
}

// connFacts returns what is known of a connection before its first byte.
func connFacts(c net.Conn) api.Facts {
	f := api.Facts{Listener: c.LocalAddr().String()}
	if from, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		f.IP, f.Port = from.Addr().Unmap().String(), int(from.Port())
	}
	return f
}

func tlsFacts(state *tls.ConnectionState, leaf *x509.Certificate) *api.TLSFacts {
	sum := sha256.Sum256(leaf.Raw)
	f := &api.TLSFacts{
		SNI:     strings.ToLower(state.ServerName),
		ALPN:    state.NegotiatedProtocol,
		Version: strings.TrimPrefix(tls.VersionName(state.Version), "TLS "),
		ClientCertificate: &api.ClientCertificate{
			Subject: leaf.Subject.String(),
			Issuer:  leaf.Issuer.String(),
			Serial:  leaf.SerialNumber.Text(16),
			SHA256:  hex.EncodeToString(sum[:]),
			DNS:     leaf.DNSNames,
		},
	}
	for _, u := range leaf.URIs {
		f.ClientCertificate.URIs = append(f.ClientCertificate.URIs, u.String())
	}
	return f
}
