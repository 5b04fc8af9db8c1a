package upstream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
)

// An issuer is a CA of a test.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T, name string) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:  x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{cert, key}
}

// pem returns the certificate of the CA.
func (i *issuer) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw}))
}

func (i *issuer) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(i.cert)
	return p
}

// issue returns a certificate that is for those names and, unless change says so,
// valid.
func (i *issuer) issue(t *testing.T, change func(*x509.Certificate), names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// accepts serves each connection to a new listener with serve, and returns the
// port.
func accepts(t *testing.T, address string, serve func(net.Conn)) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("no listener at %s: %v", address, err)
	}
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait)
	t.Cleanup(func() { l.Close() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute)) // so that nothing hangs for ever
				serve(c)
			})
		}
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// greeting is a TLS server that says hello to whoever it likes, and then bye when
// they have finished.
func greeting(config *tls.Config) func(net.Conn) {
	return func(c net.Conn) {
		s := tls.Server(c, config)
		defer s.Close()
		if s.Handshake() != nil {
			return
		}
		io.WriteString(s, "hello")
		if _, err := io.ReadAll(s); err == nil {
			io.WriteString(s, "bye")
		}
	}
}

// secured is a config of an upstream with TLS.
func secured(url string, t *api.UpstreamTLS) *api.ServiceConfig {
	return &api.ServiceConfig{Name: "default", Upstream: api.Upstream{URL: url}, TLS: t}
}

func named(name string, addrs ...string) func() map[string][]string {
	return func() map[string][]string { return map[string][]string{name: addrs} }
}

func dial(t *testing.T, d *Dialer, cfg *api.ServiceConfig) net.Conn {
	t.Helper()
	c, err := dialTo(d, t.Context(), "db.default", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// converses fails unless both directions of c carry, each to its end.
func converses(t *testing.T, c net.Conn) {
	t.Helper()
	hello := make([]byte, 5)
	if _, err := io.ReadFull(c, hello); err != nil || string(hello) != "hello" {
		t.Fatalf("read %q, %v", hello, err)
	}
	if err := c.(relay.CloseWriter).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Fatalf("after our end: read %q, %v", b, err)
	}
}

func TestTLS(t *testing.T) {
	ca, other := newIssuer(t, "our CA"), newIssuer(t, "another CA")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := &tls.Config{
			Certificates: []tls.Certificate{ca.issue(t, nil, "db.corp", "127.0.0.1", "::1")},
			MaxVersion:   version,
		}
		v4 := accepts(t, "127.0.0.1:0", greeting(config))
		v6 := accepts(t, "[::1]:0", greeting(config))
		cas := &api.UpstreamTLS{TrustedCAs: []string{other.pem(), ca.pem()}}
		for name, cfg := range map[string]*api.ServiceConfig{
			"a name":                      secured("tcp://db.corp:"+v4, cas),
			"a name with a dot":           secured("tcp://DB.corp.:"+v4, cas),
			"an address of IPv4":          secured("tls://127.0.0.1:"+v4, cas),
			"an address of IPv6":          secured("tls://[::1]:"+v6, cas),
			"another name that is proved": secured("tcp://alias.corp:"+v4, &api.UpstreamTLS{TrustedCAs: cas.TrustedCAs, ServerName: "db.corp"}),
			"beside the system's CAs":     secured("tcp://db.corp:"+v4, &api.UpstreamTLS{TrustedCAs: cas.TrustedCAs, AppendToSystemPool: true}),
			"the older form": {Upstream: api.Upstream{URL: "tcp://db.corp:" + v4},
				ClientCertificate: &api.ClientCertificateSource{FromSecret: "mine", TrustedCAs: []string{ca.pem()}}},
		} {
			t.Run(fmt.Sprintf("%s, %s", tls.VersionName(version), name), func(t *testing.T) {
				d := newDialer()
				d.Hosts = func() map[string][]string {
					return map[string][]string{"db.corp": {"127.0.0.1"}, "alias.corp": {"127.0.0.1"}}
				}
				mine := ca.issue(t, nil)
				d.Certificate = func(context.Context, string, string, string) (*tls.Certificate, error) { return &mine, nil }
				converses(t, dial(t, d, cfg))
			})
		}
	}
}

// What is wrong is told in words that lead out, under the reason UPSTREAM_TLS.
func TestTLSFails(t *testing.T) {
	ca, other := newIssuer(t, "our CA"), newIssuer(t, "another CA")
	shows := func(by *issuer, change func(*x509.Certificate), names ...string) func(net.Conn) {
		return greeting(&tls.Config{Certificates: []tls.Certificate{by.issue(t, change, names...)}})
	}
	many := make([]string, 50)
	for i := range many {
		many[i] = fmt.Sprintf("n%d.corp", i)
	}
	trusting := &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}}
	for name, c := range map[string]struct {
		serve  func(net.Conn)
		tls    *api.UpstreamTLS
		reason string
		words  []string
	}{
		"another name": {shows(ca, nil, "web.corp", "10.0.0.1"), trusting, UpstreamTLS,
			[]string{`is for "web.corp", 10.0.0.1, not for "db.corp"`, "spec.config.tls.serverName"}},
		"many names":       {shows(ca, nil, many...), trusting, UpstreamTLS, []string{`"n4.corp" and 45 more`}},
		"no name":          {shows(ca, nil), trusting, UpstreamTLS, []string{"no subject alternative name"}},
		"another CA":       {shows(other, nil, "db.corp"), trusting, UpstreamTLS, []string{"unknown authority", "another CA", "spec.config.tls.trustedCAs"}},
		"the system's CAs": {shows(ca, nil, "db.corp"), &api.UpstreamTLS{}, UpstreamTLS, []string{"spec.config.tls.trustedCAs"}},
		"expired": {shows(ca, func(c *x509.Certificate) { c.NotAfter = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC) }, "db.corp"), trusting, UpstreamTLS,
			[]string{`("leaf") expired on 2026-03-01T03:00:00Z`}},
		"not yet valid": {shows(ca, func(c *x509.Certificate) {
			c.NotBefore = time.Date(2100, 3, 1, 3, 0, 0, 0, time.UTC)
			c.NotAfter = c.NotBefore.Add(1)
		}, "db.corp"),
			trusting, UpstreamTLS, []string{"not valid before 2100-03-01T03:00:00Z", "clocks"}},
		"one for clients": {shows(ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "db.corp"),
			trusting, UpstreamTLS, []string{"not one for servers"}},
		"an ugly name": {shows(newIssuer(t, "x\n\x1b[31mADMIN"), nil, "db.corp"), trusting, UpstreamTLS, []string{`\n\x1b[31mADMIN`}},
		"no TLS": {func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n"); io.Copy(io.Discard, c) }, trusting, UpstreamTLS,
			[]string{"does not speak TLS", "leave spec.config.tls out"}},
		"goes": {func(c net.Conn) { c.Read(make([]byte, 1)) }, trusting, UpstreamTLS, []string{"ended the connection during the TLS handshake"}},
		"mute": {func(c net.Conn) { io.Copy(io.Discard, c) }, trusting, DialTimeout, []string{"no answer to the TLS handshake within 200ms"}},
		"TLS 1.1": {greeting(&tls.Config{Certificates: []tls.Certificate{ca.issue(t, nil, "db.corp")}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}), trusting, UpstreamTLS,
			[]string{"no TLS 1.2 or later"}},
		"an unknown name": {greeting(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }}), trusting, UpstreamTLS,
			[]string{`does not know the name "db.corp"`, "serverName"}},
		"an upstream that breaks": {greeting(&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("oh") }}), trusting, UpstreamTLS,
			[]string{"refused TLS (internal error)"}},
		"a CA that is none": {shows(ca, nil, "db.corp"), &api.UpstreamTLS{TrustedCAs: []string{ca.pem(), "junk"}}, UpstreamTLS, []string{"number 2 of trustedCAs"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			port := accepts(t, "127.0.0.1:0", c.serve)
			d := newDialer()
			d.Hosts = named("db.corp", "127.0.0.1")
			cfg := secured("tcp://db.corp:"+port, c.tls)
			if c.reason == DialTimeout {
				ms := 200
				cfg.Upstream.ConnectTimeout = &api.Duration{Milliseconds: &ms}
			}
			conn, err := dialTo(d, t.Context(), "db.default", cfg)
			if err == nil {
				conn.Close()
				t.Fatal("connected")
			}
			e, ok := errors.AsType[*Error](err)
			if !ok || e.CloseReason() != c.reason {
				t.Fatalf("error is %#v, want %s", err, c.reason)
			}
			for _, w := range append(c.words, "db.corp:"+port) {
				if !strings.Contains(e.Words, w) {
					t.Errorf("the words are %q, and %q is not in them", e.Words, w)
				}
			}
			if strings.ContainsAny(e.Words, "\n\x1b") || len(e.Words) > 1000 {
				t.Errorf("the words are %d bytes: %q", len(e.Words), e.Words)
			}
		})
	}
}

func TestClientCertificate(t *testing.T) {
	ca, other := newIssuer(t, "our CA"), newIssuer(t, "another CA")
	good, bad := ca.issue(t, nil), other.issue(t, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		port := accepts(t, "127.0.0.1:0", greeting(&tls.Config{
			Certificates: []tls.Certificate{ca.issue(t, nil, "127.0.0.1")}, MaxVersion: version,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool(),
		}))
		for name, c := range map[string]struct {
			cert  *tls.Certificate
			words []string
		}{
			"good":    {&good, nil},
			"foreign": {&bad, []string{"asked for a client certificate", `does not take that of Secret "mine"`}},
			"none":    {nil, []string{"asked for a client certificate", "there is none", "spec.config.tls.clientCertificate.fromSecret"}},
		} {
			t.Run(tls.VersionName(version)+", "+name, func(t *testing.T) {
				d := newDialer()
				cfg := secured("tls://127.0.0.1:"+port, &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}})
				if c.cert != nil {
					cfg.TLS.ClientCertificate = &api.ClientCertificateSource{FromSecret: "mine"}
				}
				d.Certificate = func(_ context.Context, secret, service, host string) (*tls.Certificate, error) {
					if secret != "mine" || service != "db.default" || host != "127.0.0.1" {
						t.Errorf("asked for %q for %q at %q", secret, service, host)
					}
					return c.cert, nil
				}
				conn, err := dialTo(d, t.Context(), "db.default", cfg)
				if err == nil {
					defer conn.Close()
					if c.words == nil {
						converses(t, conn)
						return
					}
					// TLS 1.3: the upstream speaks after we have finished.
					if version == tls.VersionTLS12 {
						t.Error("connected")
					}
					if _, err = conn.Read(make([]byte, 1)); !relay.IsReset(err) {
						t.Errorf("the refusal is no reset: %v", err)
					}
				}
				e, ok := errors.AsType[*Error](err)
				if !ok || e.CloseReason() != UpstreamTLS {
					t.Fatalf("error is %v, want %s", err, UpstreamTLS)
				}
				for _, w := range c.words {
					if !strings.Contains(e.Words, w) {
						t.Errorf("the words are %q, and %q is not in them", e.Words, w)
					}
				}
			})
		}
	}
}

// Where our certificate cannot be had, nobody is connected to.
func TestNoClientCertificate(t *testing.T) {
	d := newDialer()
	d.connect = func(context.Context, netip.AddrPort) (net.Conn, error) {
		t.Error("connected to the upstream")
		return nil, syscall.ECONNREFUSED
	}
	cfg := &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://192.0.2.1:5432"}, ClientCertificate: &api.ClientCertificateSource{FromSecret: "mine"}}
	fails := func(words string) {
		t.Helper()
		_, err := dialTo(d, t.Context(), "db.default", cfg)
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != UpstreamTLS || !strings.Contains(e.Words, words) {
			t.Errorf("error is %v, want %q", err, words)
		}
	}
	fails("no Secrets")
	d.Certificate = func(context.Context, string, string, string) (*tls.Certificate, error) {
		return nil, errors.New(`there is no Secret "mine"`)
	}
	fails(`there is no Secret "mine"`)
}

func TestInsecure(t *testing.T) {
	ca := newIssuer(t, "our CA")
	port := accepts(t, "127.0.0.1:0", greeting(&tls.Config{Certificates: []tls.Certificate{ca.issue(t, nil, "other")}}))
	cfg := secured("tls://127.0.0.1:"+port, &api.UpstreamTLS{InsecureSkipVerify: true})
	var log strings.Builder
	forbidden := false
	d := newDialer()
	d.Log = slog.New(slog.NewTextHandler(&log, nil))
	refuses := func() {
		t.Helper()
		_, err := dialTo(d, t.Context(), "db.default", cfg)
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != UpstreamTLS || !strings.Contains(e.Words, "forbidInsecureSkipVerify") {
			t.Errorf("error is %v", err)
		}
	}
	refuses() // nobody said that it is allowed
	d.ForbidInsecure = func() bool { return forbidden }
	for range 2 {
		converses(t, dial(t, d, cfg))
	}
	if s := log.String(); strings.Count(s, "not verified") != 1 || !strings.Contains(s, "db.default") {
		t.Errorf("the log says %q", s)
	}
	forbidden = true
	refuses()
}

// A TLS session is resumed only by whoever would get it anew.
func TestResumption(t *testing.T) {
	ca, other := newIssuer(t, "our CA"), newIssuer(t, "another CA")
	mine, another := ca.issue(t, nil), ca.issue(t, nil)
	port := accepts(t, "127.0.0.1:0", greeting(&tls.Config{
		Certificates: []tls.Certificate{ca.issue(t, nil, "127.0.0.1")}, ClientAuth: tls.RequestClientCert,
	}))
	d := newDialer()
	own := &mine
	d.Certificate = func(context.Context, string, string, string) (*tls.Certificate, error) { return own, nil }
	config := func(cas ...string) *api.ServiceConfig {
		return secured("tls://127.0.0.1:"+port, &api.UpstreamTLS{TrustedCAs: cas, ClientCertificate: &api.ClientCertificateSource{FromSecret: "mine"}})
	}
	resumed := func(service string, cfg *api.ServiceConfig) bool {
		t.Helper()
		c, err := dialTo(d, t.Context(), service, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		converses(t, c)
		return c.(*secureConn).ConnectionState().DidResume
	}
	for i, step := range []struct {
		change  func()
		service string
		cas     []string
		want    bool
	}{
		{nil, "db.default", []string{ca.pem()}, false},
		{nil, "db.default", []string{ca.pem()}, true},
		{nil, "web.default", []string{ca.pem()}, false},                                   // another Service
		{nil, "db.default", []string{ca.pem(), other.pem()}, false},                       // other CAs
		{nil, "db.default", []string{ca.pem(), other.pem()}, true},                        // those again
		{func() { own = &another }, "db.default", []string{ca.pem(), other.pem()}, false}, // another certificate of ours
	} {
		if step.change != nil {
			step.change()
		}
		if got := resumed(step.service, config(step.cas...)); got != step.want {
			t.Errorf("step %d: resumed %v, want %v", i, got, step.want)
		}
	}
}

// What was cut short never looks finished.
func TestTruncation(t *testing.T) {
	ca := newIssuer(t, "our CA")
	certs := []tls.Certificate{ca.issue(t, nil, "127.0.0.1")}
	trusting := &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		port := accepts(t, "127.0.0.1:0", func(c net.Conn) {
			s := tls.Server(c, &tls.Config{Certificates: certs, MaxVersion: version})
			if s.Handshake() == nil {
				io.WriteString(s, "half")
				c.(*net.TCPConn).CloseWrite() // a FIN, and no close_notify
				io.Copy(io.Discard, c)
			}
		})
		d := newDialer()
		c := dial(t, d, secured("tls://127.0.0.1:"+port, trusting))
		b, err := io.ReadAll(c)
		if string(b) != "half" || !relay.IsReset(err) {
			t.Errorf("%s: read %q, %v; want a reset", tls.VersionName(version), b, err)
		}
	}
}

// Reset is a reset to the upstream, in the middle of a write and after our own end.
func TestReset(t *testing.T) {
	ca := newIssuer(t, "our CA")
	certs := []tls.Certificate{ca.issue(t, nil, "127.0.0.1")}
	saw := make(chan error, 1)
	port := accepts(t, "127.0.0.1:0", func(c net.Conn) {
		s := tls.Server(c, &tls.Config{Certificates: certs})
		s.Handshake()
		io.WriteString(s, "x")
		_, err := io.Copy(io.Discard, s)
		saw <- err
	})
	d := newDialer()
	c := dial(t, d, secured("tls://127.0.0.1:"+port, &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}}))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	relay.Reset(c, relay.Revoked)
	if err := <-saw; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the upstream saw %v, want a reset", err)
	}
	if _, err := c.Read(make([]byte, 1)); !relay.IsReset(err) || !strings.Contains(err.Error(), "REVOKED") {
		t.Errorf("after Reset, Read says %v", err)
	}
	if err := relay.Reset(c, relay.Revoked); err != nil {
		t.Errorf("a second Reset: %v", err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close after Reset: %v", err)
	}
}

// The relay engine keeps its promises over such a connection.
func TestRelayed(t *testing.T) {
	ca := newIssuer(t, "our CA")
	certs := []tls.Certificate{ca.issue(t, nil, "127.0.0.1")}
	server := func(end func(s *tls.Conn, c *net.TCPConn)) string {
		return accepts(t, "127.0.0.1:0", func(c net.Conn) {
			s := tls.Server(c, &tls.Config{Certificates: certs})
			if s.Handshake() != nil {
				return
			}
			if b, err := io.ReadAll(s); err == nil && len(b) > 0 {
				s.Write(bytes.ToUpper(b))
				end(s, c.(*net.TCPConn))
			}
		})
	}
	for name, c := range map[string]struct {
		end    func(s *tls.Conn, c *net.TCPConn)
		reason relay.Reason
		clean  bool
	}{
		"close_notify": {func(s *tls.Conn, _ *net.TCPConn) { s.Close() }, relay.ClientClosed, true},
		"FIN":          {func(_ *tls.Conn, c *net.TCPConn) { c.CloseWrite(); io.Copy(io.Discard, c) }, relay.UpstreamReset, false},
		"RST":          {func(_ *tls.Conn, c *net.TCPConn) { c.SetLinger(0); c.Close() }, relay.UpstreamReset, false},
	} {
		t.Run(name, func(t *testing.T) {
			up := dial(t, newDialer(), secured("tls://127.0.0.1:"+server(c.end), &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}}))
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.SetDeadline(time.Now().Add(time.Minute))
			given, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			engine := relaycopy.New()
			results := make(chan relay.Result, 1)
			engine.Start(relay.Pair{Client: given, Upstream: up}, func(r relay.Result) { results <- r })
			io.WriteString(client, "question")
			client.(*net.TCPConn).CloseWrite()
			b, err := io.ReadAll(client)
			r := <-results
			engine.Wait()
			if r.Reason != c.reason {
				t.Errorf("%s (%v), want %s", r.Reason, r.Err, c.reason)
			}
			if c.clean && (err != nil || string(b) != "QUESTION") || !c.clean && !relay.IsReset(err) {
				t.Errorf("the client read %q, %v", b, err)
			}
		})
	}
}
