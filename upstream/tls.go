package upstream

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/secret"
)

// maxTickets is the number of TLS sessions of a config that can be resumed.
const maxTickets = 16

// A session is how TLS is spoken on one connection.
type session struct {
	address string // HOST:PORT, for words
	name    string // that the upstream must prove
	secret  string // what holds our certificate, for words; "" if there is none
	foreign bool   // words name the fields of a TCPMapping and its TLSContext
	check   bool   // it is a check that asks
	config  *tls.Config
	asked   atomic.Bool // the upstream has asked for our certificate
	verdict *verdict    // nil until its certificate was looked at
}

// A verdict is what came of looking at an upstream's certificate.
type verdict struct {
	verified bool
	err      error // why not
}

// reason returns that of the condition UpstreamVerified.
func (v *verdict) reason() string {
	if v.verified {
		return "Verified"
	}
	return "NotVerified"
}

// errInsecure is the verdict where nobody looks.
var errInsecure = errors.New("tls.insecureSkipVerify")

// ingredients are what TLS with an upstream is made of. As long as they are the
// same, sessions are resumed: nobody is whom we would not verify now, nor as whom we
// are not now.
type ingredients struct {
	tls     *api.UpstreamTLS
	older   *api.ClientCertificateSource
	own     *tls.Certificate // nil for none
	ca, crl *secret.Material // nil for none
	report  bool             // an upstream that does not verify is reported only
}

// hash is the same for ingredients that are the same in other places.
func (in *ingredients) hash() ([32]byte, error) {
	list := []any{in.tls, in.older, in.report}
	if in.own != nil {
		list = append(list, in.own.Certificate)
	}
	for _, m := range []*secret.Material{in.ca, in.crl} {
		if m != nil {
			list = append(list, m.Version)
		}
	}
	text, err := json.Marshal(list)
	return sha256.Sum256(text), err
}

// session works out how TLS is spoken with what a source stands for. Its errors
// complete "HOST:PORT: …".
func (d *Dialer) session(ctx context.Context, to api.Destination, p *place, from *source) (*session, error) {
	t := target{to, from.name}
	s := &session{address: from.address(), name: from.name, foreign: to.Object.Group == api.GroupAmbassador}
	in := ingredients{tls: t.Config.TLS, older: t.Config.ClientCertificate}
	terms := cmp.Or(in.tls, new(api.UpstreamTLS))
	// Behind a name of SRV records stands the domain that they are of, which is the
	// one to be proved (RFC 6125, section 1.5).
	s.name = withoutService(strings.TrimSuffix(cmp.Or(terms.ServerName, s.name), "."))
	if terms.InsecureSkipVerify && (d.ForbidInsecure == nil || d.ForbidInsecure()) {
		return nil, errors.New("tls.insecureSkipVerify is forbidden by spec.upstream.forbidInsecureSkipVerify of the ClusterConfig: list the upstream's CA in spec.config.tls.trustedCAs instead")
	}
	in.report = terms.Verification == api.VerificationReport && (d.RequireVerification == nil || !d.RequireVerification())
	var err error
	if in.own, err = d.own(ctx, s, t); err != nil {
		return nil, fmt.Errorf("our client certificate: %w", err)
	}
	if in.ca, err = d.material(ctx, terms.CA, t); err == nil && in.ca != nil && in.ca.CAs == nil {
		err = fmt.Errorf("%s has no certificate of a CA", terms.CA)
	}
	if err != nil {
		return nil, fmt.Errorf("the CA of the upstream: %w", err)
	}
	if in.crl, err = d.material(ctx, terms.CRL, t); err == nil && in.crl != nil && len(in.crl.CRLs) == 0 {
		err = fmt.Errorf("%s has no revocation list", terms.CRL)
	}
	if err != nil {
		return nil, fmt.Errorf("the revocation lists: %w", err)
	}
	config, fresh, err := p.config(in)
	if err != nil {
		return nil, err
	}
	if terms.InsecureSkipVerify && fresh {
		d.Log.Warn("an upstream is not verified (tls.insecureSkipVerify)", "service", t.Service, "config", t.Config.Name, "address", s.address)
	}
	s.config = config.Clone()
	s.config.ServerName = s.name
	s.config.VerifyConnection = func(state tls.ConnectionState) error {
		s.verdict = in.judge(state, s.name, config.RootCAs)
		if s.verdict.verified || config.InsecureSkipVerify {
			return nil
		}
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: s.verdict.err}
	}
	s.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		s.asked.Store(true)
		return cmp.Or(in.own, new(tls.Certificate)), nil
	}
	return s, nil
}

// A target is a destination, and the host of the URL that leads there.
type target struct {
	api.Destination
	name string
}

// own returns the certificate that the upstream is shown, nil if it is shown none.
func (d *Dialer) own(ctx context.Context, s *session, t target) (*tls.Certificate, error) {
	from := t.Config.Certificate()
	switch {
	case from != nil && d.Certificate == nil:
		return nil, errors.New("this process has no Secrets to take it from")
	case from != nil:
		s.secret = fmt.Sprintf("Secret %q", from.FromSecret)
		return d.Certificate(ctx, from.FromSecret, t.Service, t.name)
	case t.Config.TLS == nil || t.Config.TLS.Own == nil:
		return nil, nil
	}
	own := t.Config.TLS.Own
	s.secret = own.String()
	m, err := d.material(ctx, own, t)
	if err == nil && m.Certificate == nil {
		err = fmt.Errorf("%s has no certificate with its private key", own)
	}
	if err != nil {
		return nil, err
	}
	return m.Certificate, nil
}

// material returns what m names, nil if it is nil.
func (d *Dialer) material(ctx context.Context, m *api.Material, t target) (*secret.Material, error) {
	switch {
	case m == nil:
		return nil, nil
	case d.Material == nil:
		return nil, errors.New("this process has no Secrets to take it from")
	}
	return d.Material(ctx, m, t.Service, t.name)
}

// config returns what TLS is spoken with, but for the name, and whether that is
// fresh. It is the same as before, and TLS sessions are resumed with it, as long as
// what it was made of is the same.
func (p *place) config(in ingredients) (_ *tls.Config, fresh bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tls != nil && p.from == in {
		return p.tls, false, nil
	}
	of, err := in.hash()
	if err != nil {
		return nil, false, err
	}
	if p.tls != nil && p.made == of {
		p.from = in
		return p.tls, false, nil
	}
	c := &tls.Config{
		InsecureSkipVerify: in.report || in.tls != nil && in.tls.InsecureSkipVerify,
		ClientSessionCache: tls.NewLRUClientSessionCache(maxTickets),
	}
	if c.RootCAs, err = in.roots(); err != nil {
		return nil, false, err
	}
	var terms api.TLSTerms
	if in.tls != nil {
		terms, c.NextProtos = in.tls.TLSTerms, in.tls.ALPN
	}
	if c.MinVersion, c.MaxVersion, c.CipherSuites, c.CurvePreferences, err = terms.Resolve(); err != nil {
		return nil, false, fmt.Errorf("TLS: %w", err)
	}
	p.from, p.made, p.tls = in, of, c
	return c, true, nil
}

// roots returns the CAs that an upstream is verified against, and nil if they are
// those of the system.
func (in *ingredients) roots() (*x509.CertPool, error) {
	var list []string
	pool := x509.NewCertPool()
	if in.ca != nil {
		pool = in.ca.CAs.Clone()
	}
	if t := in.tls; t != nil {
		list = t.TrustedCAs
		if t.AppendToSystemPool {
			var err error
			if pool, err = x509.SystemCertPool(); err != nil {
				return nil, fmt.Errorf("the CAs of this machine cannot be read, and spec.config.tls.appendToSystemPool asks for them: %w", err)
			}
		}
	}
	if in.older != nil {
		list = slices.Concat(list, in.older.TrustedCAs)
	}
	if len(list) == 0 && in.ca == nil {
		return nil, nil
	}
	for i, text := range list {
		if !pool.AppendCertsFromPEM([]byte(text)) {
			return nil, fmt.Errorf("number %d of trustedCAs is no certificate (PEM)", i+1)
		}
	}
	return pool, nil
}

// judge looks at the certificate that an upstream has shown, in this handshake or in
// the one before a session that is resumed. Where it must be verified crypto/tls has
// done that; the revocation lists are left.
func (in *ingredients) judge(state tls.ConnectionState, name string, roots *x509.CertPool) *verdict {
	now := time.Now()
	if in.tls != nil && in.tls.InsecureSkipVerify {
		return &verdict{err: errInsecure}
	}
	chains := state.VerifiedChains
	if in.report {
		options := x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now, Intermediates: x509.NewCertPool()}
		for _, c := range state.PeerCertificates[1:] {
			options.Intermediates.AddCert(c)
		}
		var err error
		if chains, err = state.PeerCertificates[0].Verify(options); err != nil {
			return &verdict{err: err}
		}
	}
	if err := in.crl.Unrevoked(chains, now); err != nil {
		return &verdict{err: err}
	}
	return &verdict{verified: true}
}

// words says why the certificate of the upstream is not verified, "" if it is.
func (s *session) words() string {
	if s.verdict == nil || s.verdict.verified {
		return ""
	}
	return s.distrust(s.verdict.err)
}

// handshake makes of a connection one that speaks TLS, or closes it.
func (s *session) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	c := &secureConn{socket: &socket{conn}, session: s}
	c.Conn = tls.Client(c.socket, s.config)
	if err := c.HandshakeContext(ctx); err != nil {
		if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			s.verdict = &verdict{err: e.Err}
		}
		conn.Close()
		return nil, err
	}
	return c, nil
}
