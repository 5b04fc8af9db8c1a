package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"

	"cardea/api"
	"cardea/wire/pgstart"
	"cardea/wire/proxyproto"
)

// client is what is known of a client that has ended its TLS here.
func client() *api.Facts {
	return &api.Facts{IP: "192.0.2.7", Port: 40001, Listener: "198.51.100.1:443", TLS: &api.TLSFacts{SNI: "db.corp", ALPN: "postgresql", Version: "1.3",
		ClientCertificate: &api.ClientCertificate{Subject: `CN=alice\, the first+OU=x,O=Corp`}}}
}

// The upstream is told who the client is, before TLS and before a request for TLS.
func TestProxyHeader(t *testing.T) {
	ca := newIssuer(t, "our CA")
	own := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, nil, "127.0.0.1")}}
	passed := client()
	passed.TLS = &api.TLSFacts{SNI: "db.corp", ALPN: "h2"}
	six := &api.Facts{IP: "2001:db8::7", Port: 40001, Listener: "198.51.100.1:443"}
	for name, c := range map[string]struct {
		version api.ProxyVersion
		facts   *api.Facts
		want    string // of version 1
		header  proxyproto.Header
	}{
		"v1":           {api.ProxyV1, client(), "PROXY TCP4 192.0.2.7 198.51.100.1 40001 443\r\n", proxyproto.Header{}},
		"v1, IPv6":     {api.ProxyV1, six, "PROXY TCP6 2001:db8::7 ::ffff:198.51.100.1 40001 443\r\n", proxyproto.Header{}},
		"v1, Unix":     {api.ProxyV1, &api.Facts{Listener: "/run/x.sock"}, "PROXY UNKNOWN\r\n", proxyproto.Header{}},
		"v1, nobody":   {api.ProxyV1, nil, "PROXY UNKNOWN\r\n", proxyproto.Header{}},
		"v2, nobody":   {api.ProxyV2, nil, "", proxyproto.Header{Local: true}},
		"v2, no TLS":   {api.ProxyV2, &api.Facts{IP: "192.0.2.7", Port: 1, Listener: "198.51.100.1:443"}, "", proxyproto.Header{}},
		"v2, passed":   {api.ProxyV2, passed, "", proxyproto.Header{Authority: "db.corp"}},
		"v2, our TLS":  {api.ProxyV2, client(), "", proxyproto.Header{Authority: "db.corp", ALPN: "postgresql", SSL: &proxyproto.SSL{TLS: true, CertificateNow: true, CertificateSession: true, Verified: true, Version: "TLSv1.3", CommonName: "alice, the first"}}},
		"v2, no names": {api.ProxyV2, &api.Facts{IP: "192.0.2.7", Listener: "who:knows"}, "", proxyproto.Header{}},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				var mu sync.Mutex
				var line string
				var header *proxyproto.Header
				port := accepts(t, "127.0.0.1:0", func(conn net.Conn) {
					r := bufio.NewReader(conn)
					mu.Lock()
					if c.version == api.ProxyV1 {
						line, _ = r.ReadString('\n')
					} else {
						for n := 1; header == nil && n < proxyproto.MaxV2; n++ {
							b, err := r.Peek(n)
							if err != nil {
								break
							}
							header, _, _ = proxyproto.Parse(b)
							if header != nil {
								r.Discard(n)
							}
						}
					}
					mu.Unlock()
					rest := &readFrom{conn, r}
					if secure {
						greeting(own)(rest)
					} else {
						io.WriteString(rest, "hello")
						io.ReadAll(rest)
						io.WriteString(rest, "bye")
					}
				})
				cfg := config("tcp://127.0.0.1:" + port)
				if secure {
					cfg.TLS = &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}}
				}
				cfg.Upstream.ProxyProtocol = c.version
				to := destination("db.default", cfg)
				to.Facts, to.ConnectionID = c.facts, "conn-1"
				conn, _, err := newDialer().Dial(t.Context(), to)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, ok := conn.(*net.TCPConn); ok == secure {
					t.Errorf("the connection is a %T", conn)
				}
				converses(t, conn)
				mu.Lock()
				defer mu.Unlock()
				if c.version == api.ProxyV1 {
					if line != c.want {
						t.Errorf("the header is %q, want %q", line, c.want)
					}
					return
				}
				want := c.header
				if want.Version = 2; !want.Local {
					want.UniqueID = "conn-1"
				}
				if header == nil {
					t.Fatal("no header")
				}
				if !want.Local && (header.Source.Addr().String() != c.facts.IP || int(header.Source.Port()) != c.facts.Port) {
					t.Errorf("the source is %s", header.Source)
				}
				if c.facts != nil && strings.HasPrefix(c.facts.Listener, "198") && header.Destination.String() != c.facts.Listener {
					t.Errorf("the destination is %s", header.Destination)
				}
				got := *header
				got.Source, got.Destination = want.Source, want.Destination
				if !reflect.DeepEqual(got, want) {
					t.Errorf("the header is %+v (%+v), want %+v", got, got.SSL, want)
				}
			})
		}
	}
}

// readFrom is a connection whose first bytes were read ahead.
type readFrom struct {
	net.Conn
	r *bufio.Reader
}

func (r *readFrom) Read(p []byte) (int, error) { return r.r.Read(p) }

// postgres is a server that answers SSLRequest with one byte, and goes on.
func postgres(answer string, then func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		ask := make([]byte, 8)
		if _, err := io.ReadFull(c, ask); err != nil {
			return
		}
		if p, err := pgstart.Parse(ask); err != nil || p.Kind != pgstart.SSLRequest {
			return
		}
		io.WriteString(c, answer)
		then(c)
	}
}

// TLS is asked for as PostgreSQL does, whether we speak it or the client does.
func TestStartTLS(t *testing.T) {
	ca := newIssuer(t, "our CA")
	server := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, nil, "127.0.0.1")}}
	asking := func(port string, own bool) *api.ServiceConfig {
		cfg := config("tcp://127.0.0.1:" + port)
		cfg.Upstream.StartTLS = api.StartTLSPostgres
		if own {
			cfg.TLS = &api.UpstreamTLS{TrustedCAs: []string{ca.pem()}}
		}
		return cfg
	}
	d := newDialer()
	port := accepts(t, "127.0.0.1:0", postgres("S", greeting(server)))
	converses(t, dial(t, d, asking(port, true)))

	// The bytes behind the answer are the client's to read.
	c := dial(t, d, asking(port, false))
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("the connection is a %T", c)
	}
	passed := tls.Client(c, &tls.Config{RootCAs: ca.pool(), ServerName: "127.0.0.1"})
	hello := make([]byte, 5)
	if _, err := io.ReadFull(passed, hello); err != nil || string(hello) != "hello" {
		t.Errorf("read %q, %v", hello, err)
	}
	eager := accepts(t, "127.0.0.1:0", postgres("Shello", func(c net.Conn) { io.ReadAll(c); io.WriteString(c, "bye") }))
	converses(t, dial(t, d, asking(eager, false)))

	for name, x := range map[string]struct {
		serve  func(net.Conn)
		reason string
		words  string
	}{
		"no TLS":   {postgres("N", func(c net.Conn) { io.Copy(io.Discard, c) }), UpstreamTLS, "ssl = on"},
		"an error": {postgres("E\x00\x00\x00\x10SFATAL\x00", func(c net.Conn) { io.Copy(io.Discard, c) }), UpstreamTLS, "with an error"},
		"SSH":      {func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400\r\n"); io.Copy(io.Discard, c) }, UpstreamTLS, `with "H"`},
		"gone":     {func(c net.Conn) { io.ReadFull(c, make([]byte, 8)) }, DialFailed, "ended the connection"},
		"mute":     {func(c net.Conn) { io.Copy(io.Discard, c) }, DialTimeout, "no answer to the request for TLS"},
	} {
		for _, own := range []bool{false, true} {
			cfg := asking(accepts(t, "127.0.0.1:0", x.serve), own)
			if x.reason == DialTimeout {
				ms := 100
				cfg.Upstream.ConnectTimeout = &api.Duration{Milliseconds: &ms}
			}
			_, err := dialTo(d, t.Context(), "db.default", cfg)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Reason != x.reason || !strings.Contains(e.Words, x.words) {
				t.Errorf("%s: error is %v, want %s with %q", name, err, x.reason, x.words)
			}
		}
	}
	// Who gives up is not held.
	ctx, cancel := context.WithCancel(t.Context())
	port = accepts(t, "127.0.0.1:0", func(c net.Conn) { io.ReadFull(c, make([]byte, 8)); cancel(); io.Copy(io.Discard, c) })
	if _, err := dialTo(d, ctx, "db.default", asking(port, true)); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestCommonName(t *testing.T) {
	for subject, want := range map[string]string{
		"": "", "CN=a": "a", "O=x,CN=a": "a", `OU=CN\=b,CN=a`: "a", `CN=a\,CN\=b`: "a,CN=b", "O=x+CN=a": "a", "CN=": "", `CN=\`: `\`, "C=DE": "",
	} {
		if got := commonName(subject); got != want {
			t.Errorf("%s: %q, want %q", subject, got, want)
		}
	}
}
