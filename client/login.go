package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"cardea/api"
	"cardea/rpc"
	tunneltls "cardea/tunnel/tls"
)

// A Session is what a home knows of its Session.
type Session struct {
	Address             string    `json:"address"` // HOST:PORT of the cluster
	Domain              string    `json:"domain"`
	CASHA256            string    `json:"caSHA256"` // of the cluster's CA certificate (DER), in hex: what Login takes
	User                string    `json:"user"`
	Session             string    `json:"session"`
	CertificateNotAfter time.Time `json:"certificateNotAfter"`
	// State is that of the Session when it was made: with PENDING it waits for an
	// administrator's approval. Only a login tells.
	State api.SessionState `json:"state,omitempty"`
	// ClockSkew is by how much the clock of this machine is ahead of the
	// cluster's. Only a login tells.
	ClockSkew time.Duration `json:"clockSkew,omitempty"`
}

// Login proves a token to the cluster at address, HOST:PORT, and puts the
// Session into the home, in place of one that is there. caSHA256 is the SHA-256
// of the cluster's CA certificate (DER) in hex, colons allowed: the token is sent
// only to whom that CA vouches for.
func Login(ctx context.Context, home, address, token, caSHA256 string) (Session, error) {
	return LoginAs(ctx, home, "", address, token, caSHA256)
}

// LoginAs is [Login] for a token that must be of that User: if it is another's,
// it is not used up, and the error is an [api.Error] of code CONFLICT. With an
// empty user it may be anyone's.
func LoginAs(ctx context.Context, home, user, address, token, caSHA256 string) (Session, error) {
	want, err := fingerprint(caSHA256)
	if err != nil {
		return Session{}, err
	}
	domain, root, err := pin(ctx, address, want)
	if err != nil {
		return Session{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Session{}, err
	}
	csr, err := newCSR(key)
	if err != nil {
		return Session{}, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	if err := canSave(ctx, home); err != nil { // the token may be good only once
		return Session{}, err
	}
	call := newAPI(new(book), address, domain, roots, nil)
	defer call.HTTP.CloseIdleConnections()
	var out api.LoginResponse
	if err := call.Do(ctx, http.MethodPost, "/api/login", api.LoginRequest{Token: token, CSR: csr, User: user}, &out); err != nil {
		return Session{}, err
	}
	s := &state{record: record{Address: address, Domain: out.Domain, User: out.User, Session: out.Session, CA: out.CA}, key: key}
	if err := s.check(out.Certificate); err != nil {
		return Session{}, fmt.Errorf("%s answered the login with what cannot be used: %w", address, err)
	}
	if out.Domain != domain || !s.holds(root) {
		return Session{}, fmt.Errorf("%s answered the login for another cluster than it has proved to be", address)
	}
	if err := save(ctx, home, s); err != nil {
		return Session{}, err
	}
	return Session{
		Address: address, Domain: domain, CASHA256: s.fingerprint(), User: out.User, Session: out.Session, CertificateNotAfter: out.NotAfter,
		State: out.State, ClockSkew: time.Since(out.Now).Truncate(time.Second),
	}, nil
}

// fingerprint reads a SHA-256 as people write it.
func fingerprint(s string) ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil || len(b) != len(sum) {
		return sum, fmt.Errorf("the fingerprint of the CA must be 64 hexadecimal digits, found %.80q", s)
	}
	return [sha256.Size]byte(b), nil
}

// pin connects to address and returns the domain of the cluster there, and its
// CA, which must have that fingerprint.
func pin(ctx context.Context, address string, want [sha256.Size]byte) (domain string, root *x509.Certificate, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", nil, fmt.Errorf("cannot reach %s: %w", address, cause(err))
	}
	defer conn.Close()
	// Nobody is trusted yet, and crypto/tls can verify only with roots: identify
	// does it below, and nothing is sent over this connection.
	t := tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	if err := t.HandshakeContext(ctx); err != nil {
		return "", nil, fmt.Errorf("%s does not answer as a cluster does (TLS 1.3): %w", address, err)
	}
	domain, root, err = identify(t.ConnectionState().PeerCertificates, want)
	if err != nil {
		return "", nil, fmt.Errorf("%s is not the cluster that was meant: %w", address, err)
	}
	return domain, root, nil
}

// identify returns the domain that a chain of certificates proves, by the CA in
// it that has that fingerprint.
func identify(chain []*x509.Certificate, want [sha256.Size]byte) (domain string, root *x509.Certificate, err error) {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		if sha256.Sum256(c.Raw) == want {
			root = c
		}
		between.AddCert(c)
	}
	if root == nil || !root.IsCA {
		found := sha256.Sum256(chain[len(chain)-1].Raw)
		return "", nil, fmt.Errorf("expected a CA certificate with SHA-256 %x, found %x", want, found)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return "", nil, fmt.Errorf("its certificate is not by the CA that it shows: %w", err)
	}
	for _, name := range chain[0].DNSNames {
		if domain, ok := strings.CutPrefix(name, tunneltls.APIName("")); ok {
			return domain, root, nil
		}
	}
	return "", nil, fmt.Errorf("its certificate is not that of an API")
}

// newCSR asks for a certificate of a key: PKCS #10, DER.
func newCSR(key *ecdsa.PrivateKey) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a request for a certificate: %w", err)
	}
	return csr, nil
}

// cause strips what net repeats of an address from an error.
func cause(err error) error {
	if op, ok := err.(*net.OpError); ok && op.Err != nil {
		return op.Err
	}
	return err
}

// A login is a Session in use.
type login struct {
	state // but for certificate, it does not change
	home  string
	log   *slog.Logger
	now   func() time.Time

	book   *book
	api    *rpc.Client
	dialer *tunneltls.Dialer

	mu    sync.Mutex
	again time.Time // when to try to renew again, after a failure

	renewal sync.Mutex // held by who renews
}

const (
	renewTimeout = 15 * time.Second
	// renewAgain is the time between two attempts to renew a certificate that is
	// still valid.
	renewAgain = 30 * time.Second
)

func (l *login) close() {
	l.dialer.Close() // never fails
	l.api.HTTP.CloseIdleConnections()
}

// same reports whether s is the same Session, but for its certificate.
func (l *login) same(s *state) bool {
	return l.Address == s.Address && l.Domain == s.Domain && l.Session == s.Session && l.key.Equal(s.key)
}

// trusts reports whether s trusts the same CAs: after a rotation it does not.
func (l *login) trusts(s *state) bool {
	return slices.EqualFunc(l.CA, s.CA, slices.Equal)
}

// certificate returns the certificate as it stands.
func (l *login) certificate() *tls.Certificate {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.certificate
}

// renewed takes a new certificate into use.
func (l *login) renewed(c *tls.Certificate) {
	l.mu.Lock()
	l.state.certificate, l.again = c, time.Time{}
	l.mu.Unlock()
	l.api.HTTP.CloseIdleConnections() // they have shown the old one
}

// due reports whether the certificate should be renewed now, and whether it can
// be used all the same.
func (l *login) due() (due, usable bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	leaf, now := l.state.certificate.Leaf, l.now()
	usable = now.Before(leaf.NotAfter)
	return !now.Before(halfLife(leaf)) && (!usable || !now.Before(l.again)), usable
}

// backdated is by how much the cluster lets certificates begin early, for clocks
// that are behind.
const backdated = 5 * time.Minute

// halfLife returns when a certificate is to be renewed.
func halfLife(c *x509.Certificate) time.Time {
	issued := c.NotBefore.Add(backdated)
	return issued.Add(c.NotAfter.Sub(issued) / 2)
}

// fresh returns the certificate, renewed if that is due. While one renews,
// others go on with the old one, if it is valid.
func (l *login) fresh(ctx context.Context) (*tls.Certificate, error) {
	due, usable := l.due()
	if !due || usable && !l.renewal.TryLock() {
		return l.certificate(), nil
	}
	if !usable {
		l.renewal.Lock()
	}
	defer l.renewal.Unlock()
	if due, usable = l.due(); !due {
		return l.certificate(), nil
	}
	cert, err := l.renew(ctx)
	if err == nil {
		l.renewed(cert)
		return cert, nil
	}
	if !usable {
		return nil, err
	}
	l.log.Warn("the Session's certificate was not renewed; it is still valid", "until", l.certificate().Leaf.NotAfter.UTC(), "error", err)
	l.mu.Lock()
	l.again = l.now().Add(renewAgain)
	l.mu.Unlock()
	return l.certificate(), nil
}

// renew returns a new certificate: one that another process has got already, or
// one that it asks the cluster for and puts into the home.
func (l *login) renew(ctx context.Context) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	unlock, err := lock(ctx, l.home)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := read(l.home)
	if err != nil {
		return nil, err
	}
	if !l.same(s) {
		return nil, loggedOut("the Session was replaced by another login")
	}
	if l.now().Before(halfLife(s.certificate.Leaf)) {
		return s.certificate, nil
	}
	csr, err := newCSR(l.key)
	if err != nil {
		return nil, err
	}
	old := s.certificate
	call := newAPI(l.book, l.Address, l.Domain, l.roots, func(context.Context) (*tls.Certificate, error) { return old, nil })
	defer call.HTTP.CloseIdleConnections()
	var out api.LoginResponse
	if err := call.Do(ctx, http.MethodPost, "/api/renew", api.RenewRequest{CSR: csr}, &out); err != nil {
		if api.HasCode(err, api.CodeUnauthenticated) {
			return nil, loggedOut("the Session " + l.Session + " has ended")
		}
		return nil, fmt.Errorf("renew the Session's certificate: %w", err)
	}
	// The CAs that we know vouch for those that come: this is how pins follow when
	// the cluster's CA is rotated.
	s.CA = out.CA
	if err := s.check(out.Certificate); err != nil {
		return nil, fmt.Errorf("%s renewed the certificate with one that cannot be used: %w", l.Address, err)
	}
	if err := saveCertificate(l.home, s); err != nil || l.trusts(s) {
		return s.certificate, err
	}
	l.log.Info("the cluster has a new CA", "sha256", s.fingerprint())
	return s.certificate, saveRecord(l.home, s)
}

// loggedOut says that a Session is missing, and what to do.
func loggedOut(words string) *api.Error {
	e := api.Errorf(api.CodeUnauthenticated, "%s", words)
	e.Hint = "log in: cardea login ADDRESS --token TOKEN --ca-sha256 FINGERPRINT"
	return e
}
