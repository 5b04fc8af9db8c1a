package upstream

import (
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

	"cardea/api"
)

// maxTickets is the number of TLS sessions of a config that can be resumed.
const maxTickets = 16

// A session is how TLS is spoken on one connection.
type session struct {
	address string // HOST:PORT, for words
	name    string // that the upstream must prove
	secret  string // that holds our certificate, "" if there is none
	config  *tls.Config
	asked   atomic.Bool // the upstream has asked for our certificate
}

// session works out how TLS is spoken with a target. Its errors complete
// "HOST:PORT: …".
func (d *Dialer) session(ctx context.Context, t target) (*session, error) {
	s := &session{address: t.end.Address(), name: t.end.Host}
	if t.cfg.TLS != nil && t.cfg.TLS.ServerName != "" {
		s.name = t.cfg.TLS.ServerName
	}
	s.name = strings.TrimSuffix(s.name, ".")
	insecure := t.cfg.TLS != nil && t.cfg.TLS.InsecureSkipVerify
	if insecure && (d.ForbidInsecure == nil || d.ForbidInsecure()) {
		return nil, errors.New("tls.insecureSkipVerify is forbidden by spec.upstream.forbidInsecureSkipVerify of the ClusterConfig: list the upstream's CA in spec.config.tls.trustedCAs instead")
	}
	own := new(tls.Certificate) // none
	if from := t.cfg.Certificate(); from != nil {
		if d.Certificate == nil {
			return nil, errors.New("this process has no Secrets to take the client certificate from")
		}
		var err error
		if own, err = d.Certificate(ctx, from.FromSecret, t.service, t.end.Host); err != nil {
			return nil, fmt.Errorf("our client certificate: %w", err)
		}
		s.secret = from.FromSecret
	}
	config, fresh, err := t.place.config(t.cfg, own)
	if err != nil {
		return nil, err
	}
	if insecure && fresh {
		d.Log.Warn("an upstream is not verified (tls.insecureSkipVerify)", "service", t.service, "config", t.cfg.Name, "address", s.address)
	}
	s.config = config.Clone()
	s.config.ServerName = s.name
	s.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		s.asked.Store(true)
		return own, nil
	}
	return s, nil
}

// config returns what TLS is spoken with, but for the name, and whether that is
// fresh. It is the same as before, and TLS sessions are resumed with it, as long as
// what it was made of is the same, our certificate included: nobody is resumed whom
// we would not verify now, nor as whom we are not now.
func (p *place) config(cfg *api.ServiceConfig, own *tls.Certificate) (_ *tls.Config, fresh bool, err error) {
	text, err := json.Marshal([]any{cfg.TLS, cfg.ClientCertificate, own.Certificate})
	if err != nil {
		return nil, false, err
	}
	of := sha256.Sum256(text)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tls != nil && p.made == of {
		return p.tls, false, nil
	}
	roots, err := roots(cfg)
	if err != nil {
		return nil, false, err
	}
	p.made, p.tls = of, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		RootCAs:            roots,
		InsecureSkipVerify: cfg.TLS != nil && cfg.TLS.InsecureSkipVerify,
		ClientSessionCache: tls.NewLRUClientSessionCache(maxTickets),
	}
	return p.tls, true, nil
}

// roots returns the CAs of a config, and nil if they are those of the system.
func roots(cfg *api.ServiceConfig) (*x509.CertPool, error) {
	var list []string
	pool := x509.NewCertPool()
	if t := cfg.TLS; t != nil {
		list = t.TrustedCAs
		if t.AppendToSystemPool {
			var err error
			if pool, err = x509.SystemCertPool(); err != nil {
				return nil, fmt.Errorf("the CAs of this machine cannot be read, and spec.config.tls.appendToSystemPool asks for them: %w", err)
			}
		}
	}
	if c := cfg.ClientCertificate; c != nil {
		list = slices.Concat(list, c.TrustedCAs)
	}
	if len(list) == 0 {
		return nil, nil
	}
	for i, text := range list {
		if !pool.AppendCertsFromPEM([]byte(text)) {
			return nil, fmt.Errorf("number %d of trustedCAs is no certificate (PEM)", i+1)
		}
	}
	return pool, nil
}

// handshake makes of a connection one that speaks TLS, or closes it.
func (s *session) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	c := &secureConn{socket: &socket{conn}, session: s}
	c.Conn = tls.Client(c.socket, s.config)
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}
