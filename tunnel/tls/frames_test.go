package tls_test

import (
	"bytes"
	"context"
	stdtls "crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
	"cardea/wire/frame"
)

// speaker is a client of cardea/1 that says what a test wants.
type speaker struct {
	*stdtls.Conn
	frames *frame.Reader
	t      *testing.T
}

func (g *gateway) speak(t *testing.T) *speaker {
	t.Helper()
	c, err := g.handshake(t, tls.GatewayName(domain), []string{tls.Protocol}, g.ca.Session())
	if err != nil {
		t.Fatal(err)
	}
	return &speaker{Conn: c, frames: frame.NewReader(c), t: t}
}

func (s *speaker) say(frames ...[]byte) {
	s.t.Helper()
	if _, err := s.Write(bytes.Join(frames, nil)); err != nil {
		s.t.Error(err)
	}
}

// hear reads a frame of a type, of DATA the payload too.
func (s *speaker) hear(want frame.Type) (frame.Frame, string) {
	s.t.Helper()
	f, err := s.frames.Next()
	if err != nil || f.Type != want {
		s.t.Fatalf("heard %v, %v; want %v", f.Type, err, want)
	}
	b := make([]byte, s.frames.Left())
	for n := 0; n < len(b); {
		m, err := s.frames.Data(b[n:])
		if err != nil {
			s.t.Fatal(err)
		}
		n += m
	}
	return f, string(b)
}

// silence reads the end of the connection.
func (s *speaker) silence() {
	s.t.Helper()
	if f, err := s.frames.Next(); err == nil {
		s.t.Errorf("heard %v; want the end of the connection", f.Type)
	}
}

var hello = frame.AppendHello(nil, frame.Hello{Version: 1})

func open(service string) []byte {
	b, err := frame.AppendOpen(nil, frame.Open{Service: service, TraceID: "t-1"})
	if err != nil {
		panic(err)
	}
	return b
}

func data(s string) []byte { return frame.AppendData(nil, []byte(s)) }

var eof, done = frame.AppendEOF(nil), frame.AppendDone(nil)

func tell(t *testing.T, a api.Arrival, v api.Verdict) tunnel.Conn {
	t.Helper()
	if err := a.Conn.(tunnel.Teller).Verdict(v); err != nil {
		t.Error(err)
	}
	return a.Conn.(tunnel.Conn)
}

var ok = api.Verdict{Code: api.VerdictOK}

func TestEarlyDataIsDiscardedOnRefusal(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	c := g.speak(t)
	c.say(hello, open("nats"), data("too"), data("early"), eof)
	c.hear(frame.TypeHello)
	tell(t, <-h.Arrivals, api.Verdict{Code: api.VerdictDenied, DecisionID: "d-1", Words: "no"}).Close()
	if f, _ := c.hear(frame.TypeVerdict); f.Verdict != (frame.Verdict{Code: "DENIED", DecisionID: "d-1", Words: "no"}) {
		t.Errorf("%+v", f.Verdict)
	}
	// The same connection carries the next stream, and none of those bytes.
	c.say(done, open("pg.prod"), data("in time"), eof)
	a := <-h.Arrivals
	if a.Service != "pg.prod" || a.Facts.Tunnel != "cardea/1" || len(a.Evidence.Data) == 0 {
		t.Errorf("%+v", a)
	}
	conn := tell(t, a, ok)
	if got, err := io.ReadAll(conn); err != nil || string(got) != "in time" {
		t.Errorf("%q, %v", got, err)
	}
	conn.Write([]byte("answer"))
	conn.Close()
	c.hear(frame.TypeVerdict)
	if _, got := c.hear(frame.TypeData); got != "answer" {
		t.Errorf("%q", got)
	}
	c.hear(frame.TypeEOF)
	c.hear(frame.TypeDone)
	c.say(done)
}

func TestEvidenceIsThatOfEachOpen(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	c := g.speak(t)
	c.say(hello)
	c.hear(frame.TypeHello)
	var first api.Arrival
	for i := range 3 {
		c.say(open("nats"))
		a := <-h.Arrivals
		if i == 0 {
			first = a
		}
		if a.Evidence.Kind != api.EvidenceCertificate || !bytes.Equal(a.Evidence.Data, first.Evidence.Data) || a.Facts != first.Facts {
			t.Errorf("Arrival %d differs: %+v", i, a)
		}
		tell(t, a, api.Verdict{Code: api.VerdictDenied}).Close()
		c.hear(frame.TypeVerdict)
		c.say(done)
	}
}

func TestResetIsAcknowledged(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	c := g.speak(t)
	c.say(hello, open("nats"))
	c.hear(frame.TypeHello)

	// By the client.
	conn := tell(t, <-h.Arrivals, ok)
	c.hear(frame.TypeVerdict)
	c.say(data("half"), frame.AppendReset(nil, "gone"))
	var reset *tunnel.ResetError
	if _, err := io.ReadAll(conn); !errors.As(err, &reset) || reset.Reason != "gone" {
		t.Errorf("read: %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("write: %v", err)
	}
	conn.Close()
	c.hear(frame.TypeDone)

	// By the house, while the client goes on for a moment.
	c.say(open("nats"))
	conn = tell(t, <-h.Arrivals, ok)
	c.hear(frame.TypeVerdict)
	conn.Reset("REVOKED")
	if f, _ := c.hear(frame.TypeReset); f.Reason != "REVOKED" {
		t.Errorf("reason %q", f.Reason)
	}
	c.say(data("under way"), eof, done)

	// By both at once.
	c.say(open("nats"))
	conn = tell(t, <-h.Arrivals, ok)
	c.hear(frame.TypeVerdict)
	c.say(frame.AppendReset(nil, "mine"))
	conn.Reset("yours")
	if f, err := c.frames.Next(); err != nil || f.Type != frame.TypeReset && f.Type != frame.TypeDone {
		t.Errorf("%v, %v; want RESET or DONE", f.Type, err)
	}

	// Before the verdict.
	c.say(open("nats"), frame.AppendReset(nil, "too slow"))
	conn = tell(t, <-h.Arrivals, ok)
	if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d, %v", n, err)
	}
	conn.Close()
	c.hear(frame.TypeVerdict)
	c.hear(frame.TypeDone)

	c.say(open("last")) // and it is still good
	if a := <-h.Arrivals; a.Service != "last.default" {
		t.Errorf("Service %q", a.Service)
	} else {
		a.Conn.Close()
	}
	c.hear(frame.TypeReset) // closed without a verdict
}

func TestVersion(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	c := g.speak(t)
	c.say(frame.AppendHello(nil, frame.Hello{Version: 7}))
	if f, _ := c.hear(frame.TypeHello); f.Hello.Version != 1 {
		t.Errorf("version %d", f.Hello.Version)
	}
	c.Close()
	<-h.Refusals
	c = g.speak(t)
	c.say(frame.AppendHello(nil, frame.Hello{Version: 0}))
	c.hear(frame.TypeReset)
	c.silence()
	<-h.Refusals
}

func TestProtocolErrorsBeforeOpen(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	for name, in := range map[string][]byte{
		"OPEN first":         open("nats"),
		"DATA first":         data("x"),
		"HTTP":               []byte("GET / HTTP/1.1\r\n\r\n"),
		"HELLO twice":        append(hello[:len(hello):len(hello)], hello...),
		"DONE after HELLO":   append(hello[:len(hello):len(hello)], done...),
		"nothing at all":     nil,
		"HELLO and no more":  hello,
		"HELLO cut short":    hello[:4],
		"an unknown frame":   {9, 0, 0},
		"a frame too long":   {1, 0xff, 0xff},
		"OPEN that is wrong": append(hello[:len(hello):len(hello)], 2, 0, 2, 9, 9),
	} {
		t.Run(name, func(t *testing.T) {
			c := g.speak(t)
			c.Write(in)
			c.CloseWrite()
			kind, _, r := outcome(t, g, h, nil)
			if kind != "refused" || r.Facts.TLS == nil || r.Facts.TLS.ClientCertificate == nil {
				t.Errorf("%s: %+v", kind, r)
			}
		})
	}
}

// TestWhatCutsAStream shows that a stream whose connection breaks or talks
// nonsense is reset, whatever it had carried.
func TestWhatCutsAStream(t *testing.T) {
	for name, cut := range map[string]func(*speaker){
		"close_notify without EOF": func(c *speaker) { c.CloseWrite() },
		"FIN":                      func(c *speaker) { c.NetConn().Close() },
		"RST":                      func(c *speaker) { c.NetConn().(*net.TCPConn).SetLinger(0); c.NetConn().Close() },
		"HELLO":                    func(c *speaker) { c.say(hello) },
		"OPEN":                     func(c *speaker) { c.say(open("nats")) },
		"VERDICT":                  func(c *speaker) { c.say(frame.AppendVerdict(nil, frame.Verdict{Code: "OK"})) },
		"DONE":                     func(c *speaker) { c.say(done) },
		"unknown frame":            func(c *speaker) { c.say([]byte{9, 0, 0}) },
		"empty DATA":               func(c *speaker) { c.say([]byte{4, 0, 0}) },
	} {
		t.Run(name, func(t *testing.T) {
			h := tunneltest.NewHouse()
			g := serve(t, &tls.Server{Handler: h})
			c := g.speak(t)
			c.say(hello, open("nats"), data("hello"))
			conn := tell(t, <-h.Arrivals, ok)
			if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			cut(c)
			for range 2 {
				if n, err := conn.Read(make([]byte, 1)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("read %d, %v; want a reset", n, err)
				}
			}
			conn.Close()
			<-g.accepted
		})
	}
}

// TestWhatCutsAHalfClosedStream is the same for a client that has sent EOF.
func TestWhatCutsAHalfClosedStream(t *testing.T) {
	for name, cut := range map[string]func(*speaker){
		"RESET":        func(c *speaker) { c.say(frame.AppendReset(nil, "gone")) },
		"close_notify": func(c *speaker) { c.CloseWrite() },
		"FIN":          func(c *speaker) { c.NetConn().Close() },
		"RST":          func(c *speaker) { c.NetConn().(*net.TCPConn).SetLinger(0); c.NetConn().Close() },
		"DATA":         func(c *speaker) { c.say(data("more")) },
		"EOF":          func(c *speaker) { c.say(eof) },
		"DONE":         func(c *speaker) { c.say(done) },
	} {
		t.Run(name, func(t *testing.T) {
			h := tunneltest.NewHouse()
			g := serve(t, &tls.Server{Handler: h})
			c := g.speak(t)
			c.say(hello, open("nats"), eof)
			conn := tell(t, <-h.Arrivals, ok)
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err != io.EOF {
				t.Fatalf("read %d, %v; want the end of file", n, err)
			}
			waited := make(chan error, 1)
			go func() { waited <- conn.(tunnel.Watcher).WaitReset() }()
			cut(c)
			if err := <-waited; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("waited: %v; want a reset", err)
			}
			if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("write: %v; want a reset", err)
			}
			conn.Close()
			c.Close()
			<-g.accepted
		})
	}
}

// TestNothingToWaitFor has the peer end its direction while a reset is waited for:
// the wait ends, and the connection is as good as before.
func TestNothingToWaitFor(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	c := g.speak(t)
	c.say(hello)
	c.hear(frame.TypeHello)
	for range 3 {
		c.say(open("nats"), eof)
		conn := tell(t, <-h.Arrivals, ok)
		c.hear(frame.TypeVerdict)
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err != io.EOF {
			t.Fatalf("read %d, %v; want the end of file", n, err)
		}
		waited := make(chan error, 1)
		go func() { waited <- conn.(tunnel.Watcher).WaitReset() }()
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		c.hear(frame.TypeEOF)
		c.say(done)
		if err := <-waited; err != nil {
			t.Errorf("waited: %v; want nil", err)
		}
		conn.Close()
		c.hear(frame.TypeDone)
	}
}

// counting returns a Net that counts connections and keeps the last.
func counting() (func(context.Context, string, string) (net.Conn, error), *atomic.Int64, *atomic.Pointer[net.TCPConn]) {
	n, last := new(atomic.Int64), new(atomic.Pointer[net.TCPConn])
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			n.Add(1)
			last.Store(c.(*net.TCPConn))
		}
		return c, err
	}, n, last
}

// house that admits everybody and echoes.
type echoHouse struct{ *tunneltest.House }

func (h echoHouse) Arrive(a api.Arrival) {
	h.Arrivals <- a
	go func() {
		c := a.Conn.(tunnel.Conn)
		if v, ok := c.(tunnel.Teller); ok {
			v.Verdict(api.Verdict{Code: api.VerdictOK})
		}
		io.Copy(c, c)
		c.CloseWrite()
		c.Close()
	}()
}

func exchange(t *testing.T, d tunnel.Dialer) {
	t.Helper()
	c, err := d.Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("hello"))
	c.(tunnel.Conn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestPool(t *testing.T) {
	h := echoHouse{tunneltest.NewHouse()}
	g := serve(t, &tls.Server{Handler: h})
	cert := atomic.Pointer[stdtls.Certificate]{}
	cert.Store(g.ca.Session())
	d := g.dialer(t, cert.Load)
	var dials *atomic.Int64
	var last *atomic.Pointer[net.TCPConn]
	d.Net, dials, last = counting()

	exchange(t, d)
	settled(t, d)
	for range 20 {
		exchange(t, d)
		settled(t, d)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections for 21 streams, one after the other", n)
	}

	// A stream that was reset gives its connection back too, at either end.
	c, err := d.Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	c.(tunnel.Conn).Reset("cancelled")
	settled(t, d)
	exchange(t, d)
	settled(t, d)
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections after a reset", n)
	}

	// One that has died meanwhile is replaced.
	last.Load().Close()
	exchange(t, d)
	settled(t, d)
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections after the pooled one has died, want 2", n)
	}

	// A new certificate makes a new connection.
	cert.Store(g.ca.Session(func(c *x509.Certificate) { c.Subject.CommonName = "alice, renewed" }))
	exchange(t, d)
	if n := dials.Load(); n != 3 {
		t.Errorf("%d connections after the certificate has changed, want 3", n)
	}
	var subject string
	for len(h.Arrivals) > 0 {
		subject = (<-h.Arrivals).Facts.TLS.ClientCertificate.Subject
	}
	if !strings.Contains(subject, "renewed") {
		t.Errorf("the last stream was %s", subject)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.Dial(t.Context(), "echo"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial after Close: %v", err)
	}
}

// settled waits until a Dialer has brought its streams to their end.
func settled(t *testing.T, d *tls.Dialer) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for d.Settling() > 0 {
		if time.Now().After(deadline) {
			t.Fatal("a stream does not come to its end")
		}
		runtime.Gosched()
	}
}

func TestRefusalKeepsTheConnection(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	d := g.dialer(t, always(g.ca.Session()))
	var dials *atomic.Int64
	d.Net, dials, _ = counting()
	for range 5 {
		go func() {
			a := <-h.Arrivals
			a.Conn.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictDenied})
			a.Conn.(tunnel.Conn).Reset("POLICY")
		}()
		if _, err := d.Dial(t.Context(), "nats"); !api.HasCode(err, api.CodePermissionDenied) {
			t.Fatal(err)
		}
		settled(t, d)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections for 5 refusals", n)
	}
}

// TestManyDialsAtOnce: a gateway resets who comes when it has as many handshakes as it may,
// so many connections that are asked for at once are made one after the other.
func TestManyDialsAtOnce(t *testing.T) {
	const many = 100
	h := echoHouse{tunneltest.NewHouse()}
	g := serve(t, &tls.Server{Handler: h})
	d := g.dialer(t, always(g.ca.Session()))
	var under, most atomic.Int32
	came, held := make(chan struct{}, many), make(chan struct{})
	d.Net = func(ctx context.Context, network, address string) (net.Conn, error) {
		n := under.Add(1)
		defer under.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		came <- struct{}{}
		<-held
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	go func() {
		for range many {
			<-h.Arrivals
		}
	}()
	errs := make(chan error, many)
	for range many {
		go func() {
			c, err := d.Dial(t.Context(), "echo")
			if err == nil {
				c.Close()
			}
			errs <- err
		}()
	}
	for range 32 {
		<-came
	}
	late, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(late, "echo"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that may not wait: %v", err)
	}
	close(held)
	for range many {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := most.Load(); n != 32 {
		t.Errorf("%d were made at once", n)
	}
}

// TestResumption shows that a resumed TLS session is the Session's as before, and
// that its certificate is verified again.
func TestResumption(t *testing.T) {
	h := echoHouse{tunneltest.NewHouse()}
	g := serve(t, &tls.Server{Handler: h})
	var trusted atomic.Pointer[x509.CertPool]
	trusted.Store(g.ca.Pool())
	g.ClientCAs = trusted.Load
	cert := g.ca.Session()
	cache := stdtls.NewLRUClientSessionCache(1)
	dial := func() *speaker {
		config := g.client(tls.GatewayName(domain), []string{tls.Protocol}, cert)
		config.ClientSessionCache = cache
		c := stdtls.Client(g.connect(t), config)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return &speaker{Conn: c, frames: frame.NewReader(c), t: t}
	}
	for i := range 2 {
		c := dial()
		if got := c.ConnectionState().DidResume; got != (i == 1) {
			t.Errorf("connection %d: resumed %v", i, got)
		}
		c.say(hello, open("echo"))
		c.hear(frame.TypeHello)
		if a := <-h.Arrivals; !bytes.Equal(a.Evidence.Data, cert.Certificate[0]) || a.Facts.TLS.ClientCertificate.Subject != "CN=alice" {
			t.Errorf("connection %d: %+v", i, a)
		}
		c.hear(frame.TypeVerdict)
		c.Close()
	}
	trusted.Store(tunneltest.NewAuthority(t).Pool())
	c := dial()
	if !c.ConnectionState().DidResume {
		t.Error("not resumed: this test shows nothing")
	}
	c.Write(hello)
	c.silence()
	if r := <-h.Refusals; !strings.Contains(r.Words, "not signed by the cluster's authority") {
		t.Errorf("%+v", r)
	}
}

// TestGraceful shows what the end of ctx ends: what is not in use.
func TestGraceful(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})

	idle := g.speak(t)
	idle.say(hello, open("nats"))
	idle.hear(frame.TypeHello)
	tell(t, <-h.Arrivals, api.Verdict{Code: api.VerdictDenied}).Close()
	idle.hear(frame.TypeVerdict)
	idle.say(done)

	busy := g.speak(t)
	busy.say(hello, open("nats"))
	busy.hear(frame.TypeHello)
	conn := tell(t, <-h.Arrivals, ok)
	busy.hear(frame.TypeVerdict)

	fresh := g.speak(t)
	fresh.say(hello)
	fresh.hear(frame.TypeHello)

	g.stop()
	idle.silence()
	fresh.silence()
	if r := <-h.Refusals; r.Reason != api.ReasonOverload || r.Words != "the server is stopping" {
		t.Errorf("%+v", r)
	}
	busy.say(data("still there"), eof)
	if got, err := io.ReadAll(conn); err != nil || string(got) != "still there" {
		t.Errorf("%q, %v", got, err)
	}
	conn.Write([]byte("to the end"))
	conn.Close()
	if _, got := busy.hear(frame.TypeData); got != "to the end" {
		t.Errorf("%q", got)
	}
	busy.hear(frame.TypeEOF)
	busy.hear(frame.TypeDone)
	busy.silence()
	for range 3 {
		<-g.accepted
	}
}

// Another process takes connections from now on: those without a stream are closed, and
// the others after theirs; who has just come is served, once.
func TestLeave(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	stream := func(c *speaker) tunnel.Conn {
		c.say(open("nats"))
		conn := tell(t, <-h.Arrivals, ok)
		c.hear(frame.TypeVerdict)
		return conn
	}
	end := func(c *speaker, conn tunnel.Conn) {
		conn.Close()
		c.hear(frame.TypeEOF)
		c.say(eof, done)
		c.hear(frame.TypeDone)
	}
	var idle, busy, fresh *speaker
	for _, c := range []**speaker{&idle, &busy, &fresh} {
		*c = g.speak(t)
		(*c).say(hello)
		(*c).hear(frame.TypeHello)
	}
	end(idle, stream(idle))
	conn := stream(busy)
	for g.Stats().Idle == 0 {
		runtime.Gosched() // it is about to be idle
	}

	g.Leave()
	idle.silence()
	busy.say(data("still there"))
	if _, err := io.ReadFull(conn, make([]byte, len("still there"))); err != nil {
		t.Error(err)
	}
	end(busy, conn)
	busy.silence()
	end(fresh, stream(fresh))
	fresh.silence()

	late := g.speak(t) // it waited in the queue
	late.say(hello)
	late.hear(frame.TypeHello)
	end(late, stream(late))
	late.silence()
	for range 4 {
		<-g.accepted
	}
}

// However the end of idle connections meets new streams, no Dial fails.
func TestLeaveLosesNoStream(t *testing.T) {
	for range 20 {
		g := serve(t, &tls.Server{Handler: echoHouse{tunneltest.NewHouse()}})
		d := g.dialer(t, always(g.ca.Session()))
		exchange(t, d)
		settled(t, d)
		left := make(chan struct{})
		go func() {
			defer close(left)
			g.Leave()
		}()
		exchange(t, d)
		<-left
	}
}

func TestIdleLimit(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h, Limits: tls.Limits{Idle: 1}})
	var all [2]*speaker
	for i := range all {
		c := g.speak(t)
		c.say(hello, open("nats"))
		c.hear(frame.TypeHello)
		tell(t, <-h.Arrivals, api.Verdict{Code: api.VerdictDenied}).Close()
		c.hear(frame.TypeVerdict)
		c.say(done)
		all[i] = c
		if i == 0 {
			for g.Stats().Idle == 0 {
				runtime.Gosched() // it is about to be idle
			}
		}
	}
	all[1].silence()
	all[0].say(open("nats"))
	(<-h.Arrivals).Conn.Close()
}

func TestIdleTime(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h, Limits: tls.Limits{IdleTime: time.Millisecond}})
	c := g.speak(t)
	c.say(hello, open("nats"))
	c.hear(frame.TypeHello)
	tell(t, <-h.Arrivals, api.Verdict{Code: api.VerdictDenied}).Close()
	c.hear(frame.TypeVerdict)
	c.say(done)
	c.silence()
}

func TestDialErrors(t *testing.T) {
	g := serve(t, &tls.Server{Handler: tunneltest.NewHouse()})
	session := always(g.ca.Session())
	for name, test := range map[string]struct {
		edit func(*tls.Dialer)
		want string
	}{
		"nobody listens":   {func(d *tls.Dialer) { d.Address = "127.0.0.1:1" }, "cannot reach the gateway"},
		"another cluster":  {func(d *tls.Dialer) { d.Roots = tunneltest.NewAuthority(t).Pool() }, "no TLS with the gateway"},
		"another domain":   {func(d *tls.Dialer) { d.Domain = "example.com" }, "no TLS with the gateway"},
		"no roots":         {func(d *tls.Dialer) { d.Roots = nil }, "no root certificates"},
		"no certificate":   {func(d *tls.Dialer) { d.Certificate = failing }, "not logged in"},
		"impossible names": {func(d *tls.Dialer) {}, "255 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			d := g.dialer(t, session)
			test.edit(d)
			service := "nats"
			if name == "impossible names" {
				service = strings.Repeat("n", 300)
			}
			if _, err := d.Dial(t.Context(), service); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("dial: %v; want %q", err, test.want)
			}
		})
	}
}

func failing(context.Context) (*stdtls.Certificate, error) { return nil, errors.New("not logged in") }

// TestConnectionThatTheServerHasClosed shows that a pooled connection that the
// server has closed meanwhile costs nothing but a new one.
func TestConnectionThatTheServerHasClosed(t *testing.T) {
	h := echoHouse{tunneltest.NewHouse()}
	g := serve(t, &tls.Server{Handler: h, Limits: tls.Limits{IdleTime: time.Millisecond}})
	d := g.dialer(t, always(g.ca.Session()))
	var dials *atomic.Int64
	d.Net, dials, _ = counting()
	for range 3 {
		exchange(t, d)
		settled(t, d)
		<-g.accepted // closed
	}
	if n := dials.Load(); n != 3 {
		t.Errorf("%d connections for 3 streams", n)
	}
}

// TestSlowReaderGetsAll shows that what was written before Close arrives, however
// late the peer reads it.
func TestSlowReaderGetsAll(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	c := g.speak(t)
	c.say(hello, open("nats"), eof)
	c.hear(frame.TypeHello)
	conn := tell(t, <-h.Arrivals, ok)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	written := make(chan bool)
	go func() {
		defer close(written)
		if _, err := conn.Write(sent); err != nil {
			t.Error(err)
		}
		conn.Close()
	}()
	g.stop()
	c.hear(frame.TypeVerdict)
	var got []byte
	for len(got) < len(sent) {
		_, part := c.hear(frame.TypeData)
		got = append(got, part...)
	}
	if !bytes.Equal(got, sent) {
		t.Error("what arrived is not what was sent")
	}
	c.hear(frame.TypeEOF)
	<-written
}
