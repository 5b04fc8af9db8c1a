package tls_test

import (
	"bytes"
	"context"
	stdtls "crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/ingress"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
	wirehello "cardea/wire/hello"
)

// port is a port at which a Terminator ends TLS.
type port struct {
	*tunneltest.House
	tls.Terminator
	addr         string
	ca           *tunneltest.Authority
	config       atomic.Pointer[stdtls.Config]
	front        func(net.Conn) net.Conn // what the Terminator is given; nil is the connection
	certificates chan *x509.Certificate  // one for each Arrival; nil for none
}

// terminate opens a port whose certificate is of an authority of its own. edit may
// change what is needed before the first connection; it may be nil.
func terminate(t *testing.T, host string, edit func(*port, *stdtls.Config)) *port {
	t.Helper()
	p := &port{House: tunneltest.NewHouse(), ca: tunneltest.NewAuthority(t), certificates: make(chan *x509.Certificate, 1000)}
	config := &stdtls.Config{MinVersion: stdtls.VersionTLS12, Certificates: []stdtls.Certificate{*certificate(p.ca)}}
	if edit != nil {
		edit(p, config)
	}
	p.config.Store(config)
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	l := &ingress.Listener{Listener: ln, Log: slog.New(slog.DiscardHandler), Handle: p.take}
	ctx, stop := context.WithCancel(context.Background()) // t.Context ends before the cleanups
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *port) take(ctx context.Context, c net.Conn) {
	if p.front != nil {
		c = p.front(c)
	}
	conn, facts, leaf, err := p.Accept(ctx, c, p.config.Load())
	if err != nil {
		reason := err.(interface{ Reason() api.ReasonType }).Reason()
		p.Refused(api.Refusal{Reason: reason, Words: err.Error(), Facts: api.Facts{TLS: facts}})
		return
	}
	p.certificates <- leaf
	p.Arrive(api.Arrival{Conn: conn, Facts: api.Facts{TLS: facts}})
}

// dial returns both ends of a connection, once the handshake is over for both.
func (p *port) dial(t *testing.T, config *stdtls.Config) (*stdtls.Conn, tunnel.Conn, *api.TLSFacts) {
	t.Helper()
	c, err := stdtls.Dial("tcp", p.addr, config)
	if err != nil {
		t.Fatal(err)
	}
	a := <-p.Arrivals
	t.Cleanup(func() {
		c.NetConn().Close()
		a.Conn.(tunnel.Conn).Reset("the test is over")
	})
	return c, a.Conn.(tunnel.Conn), a.Facts.TLS
}

// anyone is a client that trusts everybody and takes tickets.
func anyone() *stdtls.Config {
	return &stdtls.Config{InsecureSkipVerify: true, ClientSessionCache: stdtls.NewLRUClientSessionCache(1)}
}

// ahead is a connection of which the hello was read ahead.
type ahead struct {
	net.Conn
	unread io.Reader
	hello  *wirehello.Hello
}

func (a *ahead) NetConn() net.Conn          { return a.Conn }
func (a *ahead) Hello() *wirehello.Hello    { return a.hello }
func (a *ahead) Read(p []byte) (int, error) { return a.unread.Read(p) }

// readAhead reads the hello of a connection.
func readAhead(c net.Conn) net.Conn {
	var p wirehello.Parser
	var read, b [4096]byte
	at, state := 0, wirehello.NeedMore
	for state == wirehello.NeedMore {
		n, err := c.Read(b[:])
		if err != nil {
			break
		}
		at += copy(read[at:], b[:n])
		state, _ = p.Feed(b[:n])
	}
	h := p.Hello()
	return &ahead{Conn: c, unread: io.MultiReader(bytes.NewReader(read[:at]), c), hello: &h}
}

func TestTerminate(t *testing.T) {
	own := func(protocols ...string) func(*port, *stdtls.Config) {
		return func(_ *port, c *stdtls.Config) { c.NextProtos = protocols }
	}
	for _, test := range []struct {
		name   string
		edit   func(*port, *stdtls.Config)
		client *stdtls.Config
		want   api.TLSFacts
	}{
		{"a name", nil, &stdtls.Config{ServerName: "Web.Example.com"}, api.TLSFacts{SNI: "web.example.com", Version: "1.3"}},
		{"read ahead", func(p *port, _ *stdtls.Config) { p.front = readAhead }, &stdtls.Config{ServerName: "Web.Example.com", NextProtos: []string{"x"}},
			api.TLSFacts{SNI: "web.example.com", ALPN: "x", Version: "1.3"}},
		{"no name, TLS 1.2", nil, &stdtls.Config{MaxVersion: stdtls.VersionTLS12}, api.TLSFacts{Version: "1.2"}},
		{"TLS 1.2 where nothing else is spoken", func(_ *port, c *stdtls.Config) { c.MaxVersion = stdtls.VersionTLS12 }, &stdtls.Config{}, api.TLSFacts{Version: "1.2"}},
		{"its protocol", nil, &stdtls.Config{NextProtos: []string{"postgresql", "x"}}, api.TLSFacts{ALPN: "postgresql", Version: "1.3"}},
		{"our protocol", own("x"), &stdtls.Config{NextProtos: []string{"postgresql", "x"}}, api.TLSFacts{ALPN: "x", Version: "1.3"}},
	} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(test.name+" at "+host, func(t *testing.T) {
				p := terminate(t, host, test.edit)
				config := test.client.Clone()
				config.InsecureSkipVerify = true
				c, house, facts := p.dial(t, config)
				if *facts != test.want {
					t.Errorf("%+v", facts)
				}
				if leaf := <-p.certificates; leaf != nil {
					t.Error("a certificate from nowhere")
				}
				c.Write([]byte("question"))
				c.CloseWrite()
				if got, err := io.ReadAll(house); string(got) != "question" || err != nil {
					t.Errorf("the house reads %q, %v", got, err)
				}
				house.Write([]byte("answer"))
				house.Close()
				if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
					t.Errorf("the client reads %q, %v", got, err)
				}
			})
		}
	}
}

func TestTerminatedThatIsCutIsAReset(t *testing.T) {
	for name, front := range map[string]func(net.Conn) net.Conn{"bare": nil, "read ahead": readAhead} {
		t.Run(name, func(t *testing.T) {
			p := terminate(t, "127.0.0.1", func(p *port, _ *stdtls.Config) { p.front = front })
			c, house, _ := p.dial(t, anyone())
			c.NetConn().Close() // no close_notify
			if _, err := house.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the house reads %v", err)
			}
			c, house, _ = p.dial(t, anyone())
			house.Reset("REVOKED")
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the client reads %v", err)
			}
		})
	}
}

func TestTerminatorRefuses(t *testing.T) {
	p := terminate(t, "127.0.0.1", func(p *port, _ *stdtls.Config) { p.Limit = 50 * time.Millisecond })
	for say, words := range map[string]string{
		"":                         "no complete handshake in time",
		"GET / HTTP/1.1\r\n\r\n\r": "not TLS",
	} {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, say)
		if got, _ := io.ReadAll(c); len(got) > 0 {
			t.Errorf("the peer learns %q", got)
		}
		c.Close()
		if r := <-p.Refusals; r.Reason != api.ReasonHandshake || r.Words != words || r.Facts.TLS != nil {
			t.Errorf("%+v", r)
		}
	}
	for words, edit := range map[string]func(*stdtls.Config){
		"application protocols":      func(c *stdtls.Config) { c.NextProtos = []string{"ours"} },
		"unsupported versions":       func(c *stdtls.Config) { c.MaxVersion = stdtls.VersionTLS12 },
		"no certificates configured": func(c *stdtls.Config) { c.Certificates = nil },
		"the row says no": func(c *stdtls.Config) {
			c.VerifyConnection = func(stdtls.ConnectionState) error { return errors.New("the row says no") }
		},
	} {
		p := terminate(t, "127.0.0.1", func(_ *port, c *stdtls.Config) { edit(c) })
		client := &stdtls.Config{InsecureSkipVerify: true, MinVersion: stdtls.VersionTLS13, ServerName: "A.example", NextProtos: []string{"theirs"}}
		if c, err := stdtls.Dial("tcp", p.addr, client); err == nil { // in TLS 1.3 the client learns it later
			c.Close()
		}
		r := <-p.Refusals
		if r.Reason != api.ReasonHandshake || !strings.Contains(r.Words, words) || r.Facts.TLS == nil || *r.Facts.TLS != (api.TLSFacts{SNI: "a.example", ALPN: "theirs"}) {
			t.Errorf("%s: %+v, %+v", words, r, r.Facts.TLS)
		}
	}
}

// TestTwoReadings: nobody gets through a row that he was not sent to because
// somebody read another hello.
func TestTwoReadings(t *testing.T) {
	for name, read := range map[string]wirehello.Hello{
		"another name":      {SNI: "b.example", ALPN: []string{"x"}},
		"no name":           {ALPN: []string{"x"}},
		"another protocol":  {SNI: "a.example", ALPN: []string{"y"}},
		"no protocol":       {SNI: "a.example"},
		"another protocol ": {SNI: "a.example", ALPN: []string{"x", "y"}},
	} {
		p := terminate(t, "127.0.0.1", func(p *port, _ *stdtls.Config) {
			p.front = func(c net.Conn) net.Conn { return &ahead{Conn: c, unread: c, hello: &read} }
		})
		seen := &recorder{}
		var err error
		if seen.Conn, err = net.Dial("tcp", p.addr); err != nil {
			t.Fatal(err)
		}
		config := &stdtls.Config{InsecureSkipVerify: true, ServerName: "a.example", NextProtos: []string{"x"}}
		if err := stdtls.Client(seen, config).Handshake(); err == nil || len(seen.got) > 0 {
			t.Errorf("%s: %v, and the client learns %x", name, err, seen.got)
		}
		seen.Close()
		if r := <-p.Refusals; !strings.Contains(r.Words, "in two ways") || r.Facts.TLS.SNI != "a.example" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestCertificatesOfClients(t *testing.T) {
	p := terminate(t, "127.0.0.1", nil)
	stranger := tunneltest.NewAuthority(t).Session()
	for _, test := range []struct {
		name     string
		mode     stdtls.ClientAuthType
		shows    *stdtls.Certificate
		verified bool
		words    string // of the refusal
	}{
		{"none is asked for", stdtls.NoClientCert, p.ca.Session(), false, ""},
		{"none is shown", stdtls.VerifyClientCertIfGiven, nil, false, ""},
		{"a good one", stdtls.VerifyClientCertIfGiven, p.ca.Session(), true, ""},
		{"a good one that is required", stdtls.RequireAndVerifyClientCert, p.ca.Session(), true, ""},
		{"one that nobody verifies", stdtls.RequireAnyClientCert, stranger, false, ""},
		{"one of a stranger", stdtls.VerifyClientCertIfGiven, stranger, false, "unknown authority"},
		{"none, but it is required", stdtls.RequireAndVerifyClientCert, nil, false, "didn't provide a certificate"},
	} {
		for _, version := range []uint16{stdtls.VersionTLS12, stdtls.VersionTLS13} {
			config := p.config.Load().Clone()
			config.ClientAuth, config.ClientCAs = test.mode, p.ca.Pool()
			p.config.Store(config)
			client := anyone()
			client.MaxVersion = version
			if test.shows != nil {
				client.GetClientCertificate = func(*stdtls.CertificateRequestInfo) (*stdtls.Certificate, error) { return test.shows, nil }
			}
			if test.words != "" {
				if c, err := stdtls.Dial("tcp", p.addr, client); err == nil {
					c.Close()
				}
				if r := <-p.Refusals; !strings.Contains(r.Words, test.words) {
					t.Errorf("%s: %+v", test.name, r)
				}
				continue
			}
			_, _, facts := p.dial(t, client)
			leaf := <-p.certificates
			if (leaf != nil) != test.verified || (facts.ClientCertificate != nil) != test.verified {
				t.Errorf("%s: %v, %+v", test.name, leaf != nil, facts)
			}
			if test.verified && (!bytes.Equal(leaf.Raw, test.shows.Certificate[0]) || facts.ClientCertificate.Subject != "CN=alice") {
				t.Errorf("%s: %+v", test.name, facts)
			}
		}
	}
}

// TestTerminatedIsResumed shows when sessions are resumed, and that resuming one
// opens nothing that a handshake would not.
func TestTerminatedIsResumed(t *testing.T) {
	for _, version := range []uint16{stdtls.VersionTLS12, stdtls.VersionTLS13} {
		t.Run(stdtls.VersionName(version), func(t *testing.T) {
			var calls atomic.Int64
			var forbidden atomic.Bool
			p := terminate(t, "127.0.0.1", nil)
			certificates := p.config.Load().Certificates
			another := func() *stdtls.Config {
				return &stdtls.Config{
					Certificates: certificates, ClientAuth: stdtls.VerifyClientCertIfGiven, ClientCAs: p.ca.Pool(),
					VerifyConnection: func(stdtls.ConnectionState) error {
						calls.Add(1)
						if forbidden.Load() {
							return errors.New("revoked")
						}
						return nil
					},
				}
			}
			p.config.Store(another())
			session := p.ca.Session()
			client := anyone()
			client.MaxVersion = version
			client.GetClientCertificate = func(*stdtls.CertificateRequestInfo) (*stdtls.Certificate, error) { return session, nil }
			dial := func(what string, resumed bool) {
				t.Helper()
				c, house, facts := p.dial(t, client)
				house.Write([]byte("x")) // with which a ticket comes
				io.ReadFull(c, make([]byte, 1))
				if got := c.ConnectionState().DidResume; got != resumed {
					t.Errorf("%s: resumed %v", what, got)
				}
				if leaf := <-p.certificates; leaf == nil || !bytes.Equal(leaf.Raw, session.Certificate[0]) || facts.ClientCertificate == nil {
					t.Errorf("%s: it is not known whose it is", what)
				}
			}
			dial("the first", false)
			dial("the second", true)
			if calls.Load() != 2 {
				t.Errorf("VerifyConnection is called %d times", calls.Load())
			}
			p.config.Store(another())
			dial("the first of another config", false)
			dial("the second of another config", true)
			forbidden.Store(true)
			c, err := stdtls.Dial("tcp", p.addr, client)
			if err == nil { // in TLS 1.3 the client learns it later
				_, err = c.Read(make([]byte, 1))
				if !c.ConnectionState().DidResume {
					t.Error("not resumed: this shows nothing")
				}
				c.Close()
			}
			if r := <-p.Refusals; err == nil || !strings.Contains(r.Words, "revoked") {
				t.Errorf("%v, %+v", err, r)
			}
			forbidden.Store(false)
			config := another()
			config.SessionTicketsDisabled = true
			p.config.Store(config)
			dial("without tickets", false)
			dial("without tickets", false)
		})
	}
}

// wire counts the records that are written to a connection.
type wire struct {
	net.Conn
	mu      sync.Mutex
	written []byte
}

func (w *wire) NetConn() net.Conn { return w.Conn }

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written = append(w.written, p...)
	return w.Conn.Write(p)
}

func (w *wire) records() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for b := w.written; len(b) >= 5; n++ {
		b = b[5+int(binary.BigEndian.Uint16(b[3:])):]
	}
	return n
}

// TestTicketComesWithTheAnswer shows that a client has nothing to read before the
// house says something.
func TestTicketComesWithTheAnswer(t *testing.T) {
	for _, mode := range []stdtls.ClientAuthType{stdtls.NoClientCert, stdtls.RequestClientCert} {
		var records [2][]int // without tickets, with them
		for i, tickets := range []bool{false, true} {
			var w *wire
			p := terminate(t, "127.0.0.1", func(p *port, c *stdtls.Config) {
				c.SessionTicketsDisabled, c.ClientAuth = !tickets, mode
				p.front = func(c net.Conn) net.Conn { w = &wire{Conn: c}; return w }
			})
			c, house, _ := p.dial(t, anyone())
			records[i] = append(records[i], w.records())
			house.Write([]byte("answer"))
			records[i] = append(records[i], w.records())
			house.Close()
			records[i] = append(records[i], w.records())
			if got, err := io.ReadAll(c); string(got) != "answer" || err != nil {
				t.Errorf("the client reads %q, %v", got, err)
			}
		}
		before := records[0][0]
		if !slices.Equal(records[0], []int{before, before + 1, before + 2}) || !slices.Equal(records[1], []int{before, before + 2, before + 3}) {
			t.Errorf("records after the handshake, the answer and the end: %v without tickets, %v with them", records[0], records[1])
		}
	}
}

// TestWhoOnlyWritesLosesNothing closes a connection on which the client has written
// more than the house has room for, and read nothing.
func TestWhoOnlyWritesLosesNothing(t *testing.T) {
	for _, version := range []uint16{stdtls.VersionTLS12, stdtls.VersionTLS13} {
		p := terminate(t, "127.0.0.1", func(p *port, c *stdtls.Config) {
			c.ClientAuth = stdtls.RequestClientCert // a ticket then comes behind all that the client reads
			p.front = func(c net.Conn) net.Conn { c.(*net.TCPConn).SetReadBuffer(64 << 10); return c }
		})
		client := anyone()
		client.MaxVersion = version
		c, house, _ := p.dial(t, client)
		c.NetConn().(*net.TCPConn).SetWriteBuffer(1 << 20)
		sent := bytes.Repeat([]byte("all of it "), 25_000)
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if got, err := io.ReadAll(house); !bytes.Equal(got, sent) || err != nil {
			t.Errorf("%s: %d of %d bytes, %v", stdtls.VersionName(version), len(got), len(sent), err)
		}
	}
}

// TestOpenSSLResumes resumes a session with a client that is not ours.
func TestOpenSSLResumes(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("there is no openssl here")
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(version, func(t *testing.T) {
			p := terminate(t, "127.0.0.1", nil)
			file := filepath.Join(t.TempDir(), "session")
			for i, args := range [][]string{{"-sess_out", file}, {"-sess_in", file}} {
				cmd := exec.CommandContext(t.Context(), openssl, append([]string{"s_client", "-connect", p.addr, "-servername", "a.example", version, "-ign_eof"}, args...)...)
				in, err := cmd.StdinPipe() // which stays open
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				cmd.Stdout = &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				house := (<-p.Arrivals).Conn
				house.Write([]byte("hello to you\n"))
				house.Close()
				cmd.Wait() // its status tells nothing
				in.Close()
				if !strings.Contains(out.String(), "hello to you") || strings.Contains(out.String(), "Reused, TLSv1") != (i == 1) {
					t.Errorf("connection %d:\n%s", i, out.String())
				}
			}
		})
	}
}
