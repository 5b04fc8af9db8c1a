// Package serve tests upstreams that are served by devices, with all that is real of the
// way there: the gateway's choice among Sessions, reverse links over TLS, devices that are
// processes of their own and can be killed, and TCP on both sides.
package serve

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	stdtls "crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/client"
	"cardea/ingress"
	"cardea/tunnel/tls"
	"cardea/upstream"
)

const domain = "cardea.internal"

func TestMain(m *testing.M) {
	if text := os.Getenv("SERVE_TEST_DEVICE"); text != "" {
		if err := serveAs(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A device is what the process of a device is told.
type device struct {
	Gateway string // HOST:PORT
	CA      []byte // PEM
	Session []byte // PEM: certificate and key
	Serves  []api.ServedService
}

// serveAs is the process of a device: it serves until it is killed.
func serveAs(text string) error {
	var d device
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		return err
	}
	cert, err := stdtls.X509KeyPair(d.Session, d.Session)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.CA)
	log := slog.New(slog.DiscardHandler)
	s := &client.Server{Log: log}
	s.Set(d.Serves)
	l := &tls.Listener{Log: log, Handle: s.Handle, Dialer: &tls.Dialer{Address: d.Gateway, Domain: domain, Roots: roots,
		Certificate: func(context.Context) (*stdtls.Certificate, error) { return &cert, nil }}}
	var all sync.WaitGroup
	all.Go(func() { s.Run(context.Background()) })
	all.Go(func() { l.Run(context.Background()) })
	all.Wait()
	return nil
}

// A gateway is a tls.Server that devices serve through, and the Dialer that chooses among
// them. It is the Dialer's upstream.Serving.
type gateway struct {
	t       *testing.T
	tls     *tls.Server
	dialer  *upstream.Dialer
	address string
	ca      *x509.Certificate
	key     *ecdsa.PrivateKey

	mu    sync.Mutex
	links map[string]int // by Session
	came  chan struct{}  // closed when links has changed
}

func newGateway(t *testing.T) *gateway {
	g := &gateway{t: t, links: map[string]int{}, came: make(chan struct{})}
	g.ca, g.key = g.issue(nil, nil, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	leaf, key := g.issue(g.ca, g.key, func(c *x509.Certificate) { c.DNSNames = []string{tls.GatewayName(domain)} })
	own := &stdtls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
	pool := x509.NewCertPool()
	pool.AddCert(g.ca)
	log := slog.New(slog.DiscardHandler)
	g.tls = &tls.Server{
		Domain: domain, Log: log, ClientCAs: func() *x509.CertPool { return pool },
		Certificate: func(*stdtls.ClientHelloInfo) (*stdtls.Certificate, error) { return own, nil },
		API:         func(c *stdtls.Conn) { c.Close() },
		Handler:     nobody{},
		Session:     func(leaf *x509.Certificate) (string, bool) { return path.Base(leaf.URIs[0].Path), true },
		OnBacks:     g.counted,
	}
	g.dialer = &upstream.Dialer{
		Hosts: func() map[string][]string { return nil }, Allow: func() []netip.Prefix { return nil }, Own: func() []netip.AddrPort { return nil },
		Log: log, Serving: g,
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.address = l.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	in := &ingress.Listener{Listener: l, Log: log, Handle: g.tls.Conn}
	go func() { done <- in.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g
}

// issue makes a certificate that edit may change.
func (g *gateway) issue(ca *x509.Certificate, by *ecdsa.PrivateKey, edit func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	g.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	edit(c)
	if ca == nil {
		ca, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), by)
	if err != nil {
		g.t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		g.t.Fatal(err)
	}
	return c, key
}

// device starts the process of a device, which serves that until the test is over, and
// waits for its links.
func (g *gateway) device(session string, serves ...api.ServedService) *exec.Cmd {
	g.t.Helper()
	leaf, key := g.issue(g.ca, g.key, func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "cardea", Host: domain, Path: "/session/" + session}}
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		g.t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	text, err := json.Marshal(device{g.address, block("CERTIFICATE", g.ca.Raw), append(block("CERTIFICATE", leaf.Raw), block("PRIVATE KEY", der)...), serves})
	if err != nil {
		g.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SERVE_TEST_DEVICE="+string(text))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	g.until(func() bool { return g.links[session] >= 2 })
	return cmd
}

// until waits until something is so of the links.
func (g *gateway) until(is func() bool) {
	g.t.Helper()
	patience := time.After(time.Minute)
	for {
		g.mu.Lock()
		ok, came := is(), g.came
		g.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-came:
		case <-patience:
			g.t.Fatal("the links did not come")
		}
	}
}

// counted is told by the tls.Server how many links a Session has.
func (g *gateway) counted(session string, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.links[session] = n; n == 0 {
		delete(g.links, session)
	}
	close(g.came)
	g.came = make(chan struct{})
}

// Sessions implements upstream.Serving: all are of one User.
func (g *gateway) Sessions(service, user string) (list []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for s := range g.links {
		list = append(list, s)
	}
	return list
}

// Name implements upstream.Serving.
func (g *gateway) Name(session string) string { return session }

// Dial implements upstream.Serving.
func (g *gateway) Dial(ctx context.Context, session, target string) (net.Conn, error) {
	return g.tls.DialBack(ctx, session, target)
}

type nobody struct{}

func (nobody) Arrive(a api.Arrival) { a.Conn.Close() }
func (nobody) Refused(api.Refusal)  {}

// to is the destination of a Service db.default whose upstream the User devices serves.
func to(url string) api.Destination {
	return api.Destination{Service: "db.default", Object: api.Key{Group: api.GroupCore, Kind: api.KindService, Name: "db.default"},
		Config: &api.ServiceConfig{Name: api.DefaultConfig, Upstream: api.Upstream{URL: url, User: "devices"}}}
}

// serving is what a device is told of it.
func serving(url string) api.ServedService {
	return api.ServedService{Service: "db.default", Config: api.DefaultConfig, URL: url}
}

// sessionOf returns the Session that a connection goes through.
func sessionOf(c net.Conn) string {
	return strings.TrimPrefix(c.RemoteAddr().String(), "session ")
}

// states returns how it stands with each Session.
func (g *gateway) states() (list []string) {
	for _, e := range g.dialer.Endpoints(to("").Object) {
		list = append(list, e.Address+" "+string(e.State))
	}
	slices.Sort(list)
	return list
}
