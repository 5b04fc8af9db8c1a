// Package client is a User's end of the roads: it logs in, keeps a Session on
// this machine, and reaches Services with it.
//
// A home is a directory that holds one Session: two homes are two people. A
// [Client] opens connections to Services, for Go programs; [Ports] makes Services
// appear at local ports, for every other program; a [Daemon] does so in the
// background and [Control] tells it what to do.
//
// The Session's key is made here and never leaves the home. Its certificate is
// renewed at half of its life by whoever looks at it first.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cardea/api"
	"cardea/rpc"
	"cardea/tunnel"
	tunneltls "cardea/tunnel/tls"
)

// A Client acts for the Session of a home. Its zero value acts for that of the
// person who runs the program; set fields before the first use. End it with
// [Client.Close].
//
// It follows the home: after another login there, or a renewal by another
// process, it acts for the Session that is there now.
type Client struct {
	Home string           // the directory; "" is cardea in the user's configuration directory, as for the command line
	Log  *slog.Logger     // nil is silence
	Now  func() time.Time // nil is time.Now

	mu    sync.Mutex
	home  string // Home, or what stands for it; "" before
	seen  stamp  // of the home when it was last read
	login *login // as it was then; nil before
}

var _ tunnel.Dialer = (*Client)(nil)

// Open returns a Client of a home that has a Session; the error says what to do
// if it has none.
func Open(ctx context.Context, home string) (*Client, error) {
	c := &Client{Home: home}
	_, err := c.current(ctx)
	return c, err
}

// Dial opens a connection to a Service, SERVICE or SERVICE.NAMESPACE, as
// [tunnel.Dialer] says.
func (c *Client) Dial(ctx context.Context, service string) (net.Conn, error) {
	l, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	return l.dialer.Dial(ctx, service)
}

// API returns a client of the cluster's API that acts for the Session. It is to
// be asked for again after another login.
func (c *Client) API(ctx context.Context) (*rpc.Client, error) {
	l, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	return l.api, nil
}

// Session returns what the home knows of its Session.
func (c *Client) Session(ctx context.Context) (Session, error) {
	l, err := c.current(ctx)
	if err != nil {
		return Session{}, err
	}
	return Session{
		Address: l.Address, Domain: l.Domain, CASHA256: l.fingerprint(), User: l.User, Session: l.Session,
		CertificateNotAfter: l.certificate().Leaf.NotAfter,
	}, nil
}

// Logout ends the Session, with its connections, and forgets it. If the cluster
// cannot be told, the error says so and the Session stays; one that the cluster
// does not know any more is forgotten.
func (c *Client) Logout(ctx context.Context) error {
	l, err := c.current(ctx)
	if err != nil {
		return err
	}
	err = l.api.Do(ctx, http.MethodPost, "/api/logout", nil, nil)
	if err != nil && !api.HasCode(err, api.CodeUnauthenticated) {
		return err
	}
	return forget(ctx, l.home)
}

// Forget removes the Session from a home, and tells nobody: in the cluster it
// lives on until it expires.
func Forget(ctx context.Context, home string) error { return forget(ctx, home) }

// Close gives up the connections that are not in use. Those to Services that are
// open go on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.login != nil {
		c.login.close()
		c.login = nil
		c.seen = stamp{}
	}
	return nil
}

// current returns the home's login as it stands.
func (c *Client) current(ctx context.Context) (*login, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.findHome(); err != nil {
		return nil, err
	}
	seen, err := look(c.home)
	if err != nil {
		return nil, err
	}
	if c.login != nil && seen == c.seen {
		return c.login, nil
	}
	s, seen, err := load(ctx, c.home)
	if err != nil {
		return nil, err
	}
	if c.login != nil && c.login.same(s) && c.login.trusts(s) {
		c.login.renewed(s.certificate)
	} else {
		if c.login != nil {
			c.login.close()
		}
		c.login = c.open(s)
	}
	c.seen = seen
	return c.login, nil
}

// findHome sets the directory of the Session, once: from then on home may be read by anyone.
func (c *Client) findHome() error {
	if c.home != "" {
		return nil
	}
	if c.Home != "" {
		c.home = c.Home
		return nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return fmt.Errorf("there is no directory for the Session: %w", err)
	}
	c.home = filepath.Join(dir, "cardea")
	return nil
}

// open prepares what it takes to act for a Session.
func (c *Client) open(s *state) *login {
	l := &login{state: *s, home: c.home, log: c.Log, now: c.Now, book: new(book)}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if l.now == nil {
		l.now = time.Now
	}
	l.api = newAPI(l.book, s.Address, s.Domain, s.roots, l.fresh)
	l.dialer = &tunneltls.Dialer{Address: s.Address, Domain: s.Domain, Roots: s.roots, Certificate: l.fresh, Net: l.book.DialContext}
	return l
}

// connectTimeout bounds a TCP connection to the cluster, and its TLS handshake.
const connectTimeout = 10 * time.Second

// newAPI returns a client of the API at an address that b knows, which has to prove by roots
// that it is the API of domain. A nil certificate shows none.
func newAPI(b *book, address, domain string, roots *x509.CertPool, certificate func(context.Context) (*tls.Certificate, error)) *rpc.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: tunneltls.APIName(domain)}
	if certificate != nil {
		// Not Certificates: those are held back when they have expired, and an
		// expired one can be renewed.
		config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return certificate(info.Context())
		}
	}
	transport := &http.Transport{
		DialContext:         b.DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: connectTimeout,
		IdleConnTimeout:     time.Minute,
	}
	return &rpc.Client{
		HTTP: &http.Client{
			Transport:     named{transport, config.ServerName},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Base: "https://" + address,
	}
}

// named sends requests to the address that their URL says, for the host of a
// name: words about a failure then name what a person typed.
type named struct {
	*http.Transport
	host string
}

func (n named) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Host = n.host
	return n.Transport.RoundTrip(r)
}
