package tls_test

import (
	"context"
	stdtls "crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
	"cardea/wire/frame"
)

// as makes the certificate that of a Session.
func as(uid string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.URIs = []*url.URL{{Scheme: "cardea", Host: domain, Path: "/session/" + uid}}
	}
}

// links counts those of Sessions as OnBacks tells.
type links struct {
	mu      sync.Mutex
	now     map[string]int
	changed chan struct{}
}

func newLinks() *links { return &links{now: map[string]int{}, changed: make(chan struct{}, 1)} }

func (l *links) set(session string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now[session] = n
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// await waits until ok says so of the number of a Session's links.
func (l *links) await(t *testing.T, session string, ok func(n int) bool) {
	t.Helper()
	for {
		l.mu.Lock()
		n := l.now[session]
		l.mu.Unlock()
		if ok(n) {
			return
		}
		select {
		case <-l.changed:
		case <-t.Context().Done():
			t.Fatalf("there are %d links", n)
		case <-time.After(time.Minute):
			t.Fatalf("there are %d links", n)
		}
	}
}

func some(n int) bool { return n > 0 }
func none(n int) bool { return n == 0 }

// listen runs a Listener until the end of the test, or until stop.
func listen(t testing.TB, l *tls.Listener) (stop func()) {
	t.Helper()
	if l.Log == nil {
		l.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// backDialer opens streams to a Session that serves.
type backDialer struct {
	*tls.Server
	session string
}

func (d backDialer) Dial(ctx context.Context, service string) (net.Conn, error) {
	c, err := d.DialBack(ctx, d.session, service)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return c, err
}

// A reverse link is a road, with the device as its house.
func TestReverseRoad(t *testing.T) {
	tunneltest.Run(t, func(t *testing.T, h tunnel.Handler) tunnel.Dialer {
		g := serve(t, &tls.Server{Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf})
		listen(t, &tls.Listener{
			Dialer: g.dialer(t, always(g.ca.Session(as("s-1")))),
			Handle: func(target string, conn net.Conn) {
				h.Arrive(api.Arrival{
					Service: api.ServiceName(target), Conn: conn, Facts: api.Facts{Tunnel: tls.ServeProtocol},
					Evidence: api.Evidence{Kind: api.EvidenceCertificate, Data: []byte("the gateway's")},
				})
			},
		})
		return backDialer{g.Server, "s-1"}
	})
}

// echo is a device that echoes, and says which one it is first.
func echo(name string) func(string, net.Conn) {
	return func(target string, conn net.Conn) {
		defer conn.Close()
		if conn.(tunnel.Teller).Verdict(ok) == nil {
			io.WriteString(conn, name+" "+target+"\n")
			io.Copy(conn, conn)
		}
	}
}

func TestReverseLinks(t *testing.T) {
	l := newLinks()
	g := serve(t, &tls.Server{Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, OnBacks: l.set})
	stop := map[string]func(){}
	for _, uid := range []string{"s-1", "s-2"} {
		stop[uid] = listen(t, &tls.Listener{Dialer: g.dialer(t, always(g.ca.Session(as(uid)))), Handle: echo(uid)})
	}
	hear := func(uid string) net.Conn {
		t.Helper()
		c, err := g.DialBack(t.Context(), uid, "web.default/main")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.(tunnel.Conn).Reset("the test is over") })
		want := uid + " web.default/main\n"
		b := make([]byte, len(want))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
			t.Fatalf("%q, %v; want %q", b, err, want)
		}
		return c
	}
	l.await(t, "s-1", func(n int) bool { return n == 2 }) // those that wait
	var held []net.Conn
	for range 50 { // more than ever wait
		held = append(held, hear("s-1"), hear("s-2"))
	}
	if n := g.Backs("s-1"); n < 50 {
		t.Errorf("%d links carry 50 streams", n)
	}
	stop["s-1"]()
	for i, c := range held {
		if i%2 == 0 { // of s-1
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the stream of a device that has left ends with %v", err)
			}
			c.Close()
			continue
		}
		c.(tunnel.Conn).CloseWrite()
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
	}
	l.await(t, "s-1", none)
	l.await(t, "s-2", func(n int) bool { return n <= 16 }) // what waits for the next burst
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := g.DialBack(ctx, "s-1", "web.default/main"); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("a device that has left is reached: %v", err)
	}
	hear("s-2").Close()
}

// Who serves is found again when the gateway has been away, and waited for.
func TestListenerComesBack(t *testing.T) {
	l := newLinks()
	s := &tls.Server{Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, OnBacks: l.set}
	g := serve(t, s)
	d := g.dialer(t, always(g.ca.Session(as("s-1"))))
	var refuse atomic.Bool
	d.Net = func(ctx context.Context, network, address string) (net.Conn, error) {
		if refuse.Load() {
			return nil, syscall.ECONNREFUSED
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	listen(t, &tls.Listener{Dialer: d, Handle: echo("s-1")})
	l.await(t, "s-1", some)
	refuse.Store(true)
	g.DropSession("s-1")
	l.await(t, "s-1", none)
	dialled := make(chan error, 1)
	go func() {
		c, err := g.DialBack(t.Context(), "s-1", "web")
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	refuse.Store(false)
	if err := <-dialled; err != nil {
		t.Error(err)
	}
}

// A Session that has ended has nothing any more, and gets nothing.
func TestDropSession(t *testing.T) {
	l := newLinks()
	var dead atomic.Bool
	h := tunneltest.NewHouse()
	pipes := make(chan tunnel.Pipe, 1)
	over := make(chan error, 1)
	g := serve(t, &tls.Server{
		Handler: h, Session: tunneltest.SessionOf, OnBacks: l.set,
		Alive: func(leaf *x509.Certificate) bool {
			uid, _ := tunneltest.SessionOf(leaf)
			return uid != "s-1" || !dead.Load()
		},
		Pipe: func(_ context.Context, _ *x509.Certificate, p tunnel.Pipe) {
			pipes <- p
			_, err := p.Receive(make([]byte, 1))
			over <- err
		},
	})
	for _, uid := range []string{"s-1", "s-2"} {
		listen(t, &tls.Listener{Dialer: g.dialer(t, always(g.ca.Session(as(uid)))), Handle: echo(uid)})
	}
	c, err := g.DialBack(t.Context(), "s-1", "web")
	if err != nil {
		t.Fatal(err)
	}
	other, err := g.DialBack(t.Context(), "s-2", "web")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	d := g.dialer(t, always(g.ca.Session(as("s-1"))))
	p, err := d.Pipe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	<-pipes
	dead.Store(true)
	g.DropSession("s-1")
	_, err = io.Copy(io.Discard, c)
	var reset *tunnel.ResetError
	if !errors.As(err, &reset) || reset.Reason != "the Session has ended" {
		t.Errorf("its stream ends with %v", err)
	}
	c.Close()
	if err := <-over; err == nil {
		t.Error("its pipe goes on")
	}
	if _, err := p.Receive(make([]byte, 1)); err == nil {
		t.Error("its pipe goes on at the client")
	}
	l.await(t, "s-1", none)
	if _, err := d.Pipe(t.Context()); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("a pipe of a Session that has ended: %v", err)
	}
	for r := range h.Refusals {
		if strings.Contains(r.Words, "is not there any more") && r.Facts.TLS.ALPN == tls.PacketsProtocol {
			break
		}
	}
	io.WriteString(other, "still there")
	if _, err := io.ReadFull(other, make([]byte, len("s-2 web\nstill there"))); err != nil {
		t.Errorf("the stream of another Session: %v", err)
	}
}

// When the server leaves, reverse links and pipes end, but for a stream that is open.
func TestLeaveWithReverseLinks(t *testing.T) {
	l := newLinks()
	g := serve(t, &tls.Server{
		Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, OnBacks: l.set,
		Pipe: func(_ context.Context, _ *x509.Certificate, p tunnel.Pipe) { p.Receive(make([]byte, 1)) },
	})
	var left atomic.Bool
	d := g.dialer(t, always(g.ca.Session(as("s-1"))))
	d.Net = func(ctx context.Context, network, address string) (net.Conn, error) {
		if left.Load() {
			return nil, syscall.ECONNREFUSED
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	listen(t, &tls.Listener{Dialer: d, Handle: echo("s-1")})
	c, err := g.DialBack(t.Context(), "s-1", "web")
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Pipe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	left.Store(true)
	g.Leave()
	if _, err := p.Receive(make([]byte, 1)); err == nil {
		t.Error("the pipe goes on")
	}
	l.await(t, "s-1", func(n int) bool { return n == 1 })
	c.(tunnel.Conn).CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "s-1 web\n" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	l.await(t, "s-1", none)
}

// The new protocols let in whom cardea/1 does, and are served at its name only.
func TestWhoMayServe(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{
		Handler: h, Session: tunneltest.SessionOf,
		Pipe: func(context.Context, *x509.Certificate, tunnel.Pipe) { t.Error("a stranger has a pipe") },
	})
	refused := func(t *testing.T, words string) {
		t.Helper()
		kind, _, r := outcome(t, g, h, nil)
		if kind != "refused" || r.Reason != api.ReasonHandshake || !strings.Contains(r.Words, words) {
			t.Errorf("%s: %+v; want %q", kind, r, words)
		}
	}
	for _, protocol := range []string{tls.PacketsProtocol, tls.ServeProtocol} {
		for words, cert := range badCertificates(g, t) {
			t.Run(protocol+"/"+words, func(t *testing.T) {
				c, err := g.handshake(t, tls.GatewayName(domain), []string{protocol}, cert)
				if err == nil { // in TLS 1.3 the client learns it later
					_, err = c.Read(make([]byte, 1))
				}
				if err == nil || err == io.EOF {
					t.Errorf("the client reads: %v", err)
				}
				refused(t, words)
			})
		}
		t.Run(protocol+"/no Session", func(t *testing.T) {
			c, err := g.handshake(t, tls.GatewayName(domain), []string{protocol}, g.ca.Session(func(c *x509.Certificate) { c.URIs = nil }))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the client reads")
			}
			refused(t, "is not that of a Session")
		})
		for _, name := range []string{"api.cardea.internal", "", "nats.svc.cardea.internal"} {
			t.Run(protocol+"/at "+name, func(t *testing.T) {
				if _, err := g.handshake(t, name, []string{"http/1.1", protocol}, g.ca.Session()); err == nil {
					t.Error("it is served")
				}
				refused(t, "nothing is served")
			})
		}
	}
	if n := g.Backs("s-1"); n != 0 {
		t.Errorf("%d reverse links are left", n)
	}
	t.Run("the Dialer is told", func(t *testing.T) {
		d := g.dialer(t, always(tunneltest.NewAuthority(t).Session()))
		if _, err := d.Pipe(t.Context()); !api.HasCode(err, api.CodeUnauthenticated) {
			t.Errorf("%v; want UNAUTHENTICATED", err)
		}
		refused(t, "not signed")
	})
	t.Run("where there are none", func(t *testing.T) {
		g := serve(t, &tls.Server{Handler: tunneltest.NewHouse()})
		for _, protocol := range []string{tls.PacketsProtocol, tls.ServeProtocol} {
			if _, err := g.handshake(t, tls.GatewayName(domain), []string{protocol}, g.ca.Session()); err == nil {
				t.Errorf("%s is served", protocol)
			}
		}
	})
}

// A device that breaks the rules, or is silent, loses its link and nobody else's.
func TestHostileDevice(t *testing.T) {
	l := newLinks()
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{
		Handler: h, Session: tunneltest.SessionOf, OnBacks: l.set, Limits: tls.Limits{Handshake: time.Second, Backs: 3},
	})
	device := func(t *testing.T, first ...[]byte) *speaker {
		t.Helper()
		c, err := g.handshake(t, tls.GatewayName(domain), []string{tls.ServeProtocol}, g.ca.Session(as("evil")))
		if err != nil {
			t.Fatal(err)
		}
		s := &speaker{Conn: c, frames: frame.NewReader(c), t: t}
		s.hear(frame.TypeHello)
		s.say(first...)
		return s
	}
	for name, first := range map[string][]byte{
		"silence":            nil,
		"OPEN for HELLO":     open("web"),
		"garbage":            []byte("GET / HTTP/1.1\r\n\r\n"),
		"a version not ours": frame.AppendHello(nil, frame.Hello{Version: 2}),
	} {
		t.Run(name, func(t *testing.T) {
			s := device(t, first)
			for {
				if _, err := s.frames.Next(); err != nil {
					break
				}
			}
			l.await(t, "evil", none)
			if r := <-h.Refusals; r.Reason != api.ReasonHandshake {
				t.Errorf("%+v", r)
			}
		})
	}
	for name, x := range map[string]struct{ idle, asked []byte }{
		"OPEN of its own":     {idle: open("web")},
		"DATA of its own":     {idle: data("x")},
		"bytes for verdict":   {asked: data("x")},
		"reset for verdict":   {asked: frame.AppendReset(nil, "no")},
		"unknown for verdict": {asked: []byte{99, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			s := device(t, hello, x.idle)
			if x.idle == nil {
				done := make(chan error, 1)
				go func() {
					_, err := g.DialBack(t.Context(), "evil", "web")
					done <- err
				}()
				s.hear(frame.TypeOpen)
				s.say(x.asked)
				if err := <-done; !api.HasCode(err, api.CodeUnavailable) {
					t.Errorf("DialBack: %v; want UNAVAILABLE", err)
				}
			}
			l.await(t, "evil", none)
		})
	}
	verdict := frame.AppendVerdict(nil, frame.Verdict{Code: frame.CodeOK})
	for name, x := range map[string]struct{ idle, asked []byte }{
		"no verdict":                        {},
		"half a verdict":                    {asked: verdict[:3]},
		"half a verdict before it is asked": {idle: verdict[:4]},
	} {
		t.Run(name, func(t *testing.T) {
			s := device(t, hello, x.idle)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				_, err := g.DialBack(ctx, "evil", "web")
				done <- err
			}()
			s.hear(frame.TypeOpen)
			s.say(x.asked)
			cancel()
			if err := <-done; !api.HasCode(err, api.CodeUnavailable) {
				t.Errorf("DialBack: %v", err)
			}
			l.await(t, "evil", none)
			s.Write(verdict) // which comes too late for anything
			if _, err := s.frames.Next(); err == nil {
				t.Error("the link goes on")
			}
		})
	}
	t.Run("nobody waits any more", func(t *testing.T) {
		s := device(t, hello)
		l.await(t, "evil", some)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.DialBack(gone, "evil", "web"); !api.HasCode(err, api.CodeUnavailable) {
			t.Errorf("DialBack: %v", err)
		}
		s.Close()
		l.await(t, "evil", none)
	})
	t.Run("too many", func(t *testing.T) {
		all := []*speaker{}
		for range 3 {
			all = append(all, device(t, hello))
		}
		l.await(t, "evil", func(n int) bool { return n == 3 })
		for range 7 {
			c, err := g.handshake(t, tls.GatewayName(domain), []string{tls.ServeProtocol}, g.ca.Session(as("evil")))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("one more is let in")
			}
			<-h.Refusals
		}
		if n := g.Backs("evil"); n != 3 {
			t.Errorf("there are %d links", n)
		}
		for _, s := range all {
			s.Close()
		}
		l.await(t, "evil", none)
	})
}

// A device that says nothing has no more links than one that serves, and does not count as
// one; what it has is given up in time.
func TestSilentLinks(t *testing.T) {
	h := tunneltest.NewHouse()
	l := newLinks()
	g := serve(t, &tls.Server{Handler: h, Session: tunneltest.SessionOf, OnBacks: l.set, Limits: tls.Limits{Backs: 3}})
	dial := func() *speaker {
		t.Helper()
		c, err := g.handshake(t, tls.GatewayName(domain), []string{tls.ServeProtocol}, g.ca.Session(as("evil")))
		if err != nil {
			t.Fatal(err)
		}
		return &speaker{Conn: c, frames: frame.NewReader(c), t: t}
	}
	var silent []*speaker
	for range 3 {
		s := dial()
		s.hear(frame.TypeHello)
		silent = append(silent, s)
	}
	for range 5 {
		s := dial()
		if _, err := s.frames.Next(); err == nil {
			t.Error("one more is let in")
		}
		if r := <-h.Refusals; !strings.Contains(r.Words, "as many connections that serve, and carry nothing, as it may") {
			t.Errorf("%+v", r)
		}
	}
	if n := g.Backs("evil"); n != 0 {
		t.Errorf("%d links can carry something", n)
	}
	g.DropSession("evil") // which they are of
	for _, s := range silent {
		if _, err := s.frames.Next(); err == nil {
			t.Error("a link of a Session that has ended goes on")
		}
		<-h.Refusals
	}
	s := dial()
	s.hear(frame.TypeHello)
	s.say(hello)
	l.await(t, "evil", some)
	s.Close()
	l.await(t, "evil", none)
}

// However much a gateway asks for, a device carries no more than it may.
func TestListenerIsBounded(t *testing.T) {
	l := newLinks()
	g := serve(t, &tls.Server{Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, OnBacks: l.set})
	listen(t, &tls.Listener{Dialer: g.dialer(t, always(g.ca.Session(as("s-1")))), Handle: echo("s-1"), Links: 4})
	var held []net.Conn
	for range 4 {
		c, err := g.DialBack(t.Context(), "s-1", "web")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := g.DialBack(ctx, "s-1", "web"); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("a fifth: %v", err)
	}
	if n := g.Backs("s-1"); n != 4 {
		t.Errorf("there are %d links", n)
	}
	held[0].(tunnel.Conn).Reset("enough")
	c, err := g.DialBack(t.Context(), "s-1", "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(held[1:], c) {
		c.(tunnel.Conn).Reset("enough")
	}
}

// Links that the device has lost, which the gateway does not know yet, are gone round.
func TestStaleReverseLink(t *testing.T) {
	l := newLinks()
	g := serve(t, &tls.Server{Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, OnBacks: l.set})
	var mu sync.Mutex
	var made []net.Conn
	d := g.dialer(t, always(g.ca.Session(as("s-1"))))
	d.Net = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		mu.Lock()
		defer mu.Unlock()
		made = append(made, c)
		return c, err
	}
	listen(t, &tls.Listener{Dialer: d, Handle: echo("s-1")})
	l.await(t, "s-1", func(n int) bool { return n == 2 })
	for range 5 {
		mu.Lock()
		lost := slices.Clone(made)
		made = nil
		mu.Unlock()
		for _, c := range lost {
			c.Close()
		}
		c, err := g.DialBack(t.Context(), "s-1", "web")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// A link that has waited for long is as good as a new one, and a stream lasts. Those of
// many that wait that are not needed are given up.
func TestReverseLinkLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := tunneltest.NewAuthority(t)
		cert := certificate(ca)
		s := &tls.Server{
			Handler: tunneltest.NewHouse(), Domain: domain, ClientCAs: ca.Pool, Session: tunneltest.SessionOf, Log: slog.New(slog.DiscardHandler),
			Certificate: func(*stdtls.ClientHelloInfo) (*stdtls.Certificate, error) { return cert, nil },
		}
		ctx, stop := context.WithCancel(t.Context())
		var served sync.WaitGroup
		d := &tls.Dialer{Address: "gateway", Domain: domain, Roots: ca.Pool(), Net: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			served.Go(func() { s.Conn(ctx, far) })
			return near, nil
		}}
		session := ca.Session()
		d.Certificate = func(context.Context) (*stdtls.Certificate, error) { return session, nil }
		l := &tls.Listener{Dialer: d, Handle: func(target string, conn net.Conn) { go echo("s-1")(target, conn) }, Log: slog.New(slog.DiscardHandler)}
		served.Go(func() { l.Run(ctx) })

		for range 3 {
			var held []net.Conn
			for range 10 {
				c, err := s.DialBack(ctx, "s-1", "web")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, len("s-1 web\n"))); err != nil {
					t.Fatal(err)
				}
				held = append(held, c)
			}
			time.Sleep(time.Minute)
			for _, c := range held {
				if _, err := io.WriteString(c, "late"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
					t.Fatal(err)
				}
				c.Close()
			}
			time.Sleep(10 * time.Minute)
			if n := s.Backs("s-1"); n != 2 {
				t.Errorf("%d links wait after ten minutes", n)
			}
		}
		stop()
		served.Wait()
		d.Close()
	})
}
