package socks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/proxy"

	"cardea/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a proxy at an address of loopback, and what it was asked to dial.
type world struct {
	Server
	address string
	asked   chan string
	log     *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start serves a proxy that connects to nothing but upstream, after change.
func start(t *testing.T, upstream string, change func(*Server)) *world {
	t.Helper()
	w := &world{asked: make(chan string, 100), log: new(syncBuffer)}
	var relays sync.WaitGroup
	w.Server = Server{
		Dial: func(ctx context.Context, host string, port int) (net.Conn, error) {
			w.asked <- net.JoinHostPort(host, strconv.Itoa(port))
			return new(net.Dialer).DialContext(ctx, "tcp", upstream)
		},
		Relay: func(client, upstream net.Conn) {
			relays.Go(func() {
				var both sync.WaitGroup
				pass := func(to, from net.Conn) {
					io.Copy(to, from)
					to.(*net.TCPConn).CloseWrite()
				}
				both.Go(func() { pass(upstream, client) })
				both.Go(func() { pass(client, upstream) })
				both.Wait()
				client.Close()
				upstream.Close()
			})
		},
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	if change != nil {
		change(&w.Server)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		relays.Wait()
	})
	return w
}

// greeter is an upstream that answers each line with "hello LINE".
func greeter(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				for {
					var line string
					if _, err := fmt.Fscanln(c, &line); err != nil {
						return
					}
					fmt.Fprintf(c, "hello %s\n", line)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return l.Addr().String()
}

// refusing returns a Dial that fails.
func refusing(err error) func(*Server) {
	return func(s *Server) {
		s.Dial = func(context.Context, string, int) (net.Conn, error) { return nil, err }
	}
}

func greet(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "you\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello you\n" {
		t.Errorf("read %q (%v)", got, err)
	}
}

func TestSOCKS5(t *testing.T) {
	w := start(t, greeter(t), nil)
	d, err := proxy.SOCKS5("tcp", w.address, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"nats:4222", "web.default:80", "100.64.0.20:80", "[fd00:1:2::14]:5432"} {
		c, err := d.Dial("tcp", to)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		greet(t, c)
		c.Close()
		if got := <-w.asked; got != to {
			t.Errorf("asked for %s, dialled %s", to, got)
		}
	}
}

func TestConnect(t *testing.T) {
	w := start(t, greeter(t), nil)
	for _, to := range []string{"nats:4222", "[fd00:1:2::14]:5432"} {
		c, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: test\r\n\r\n", to, to)
		const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
		got := make([]byte, len(ok))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != ok {
			t.Fatalf("read %q (%v)", got, err)
		}
		greet(t, c)
		c.Close()
		if got := <-w.asked; got != to {
			t.Errorf("asked for %s, dialled %s", to, got)
		}
	}
}

// talk sends text to the proxy, half-closes, and returns all that it answers.
func talk(t *testing.T, w *world, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", w.address)
	if errors.Is(err, syscall.ECONNRESET) { // an answer too, and a quick one
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, text)
	c.(*net.TCPConn).CloseWrite()
	got, _ := io.ReadAll(c)
	return string(got)
}

const hello = "\x05\x01\x00"

func TestWhatIsRefused(t *testing.T) {
	const nowhere = "\x00\x01\x00\x00\x00\x00\x00\x00" // RSV, 0.0.0.0:0
	for _, tt := range []struct{ name, send, want string }{
		{"SOCKS4", "\x04\x01\x00\x50\x01\x02\x03\x04\x00", ""},
		{"TLS", "\x16\x03\x01\x02\x00", ""},
		{"a lower case letter", "connect a:1 HTTP/1.1\r\n\r\n", ""},
		{"SOCKS5 with a password alone", "\x05\x01\x02", "\x05\xff"},
		{"SOCKS5 without methods", "\x05\x00", "\x05\xff"},
		{"BIND", hello + "\x05\x02\x00\x01\x01\x02\x03\x04\x00\x50", "\x05\x00\x05\x07" + nowhere},
		{"no command", hello + "\x05\x09\x00\x01\x01\x02\x03\x04\x00\x50", "\x05\x00\x05\x07" + nowhere},
		{"UDP where there is none", hello + "\x05\x03\x00\x01\x01\x02\x03\x04\x00\x50", "\x05\x00\x05\x07" + nowhere},
		{"no address type", hello + "\x05\x01\x00\x02\x01\x02\x03\x04\x00\x50", "\x05\x00\x05\x08" + nowhere},
		{"port 0", hello + "\x05\x01\x00\x01\x01\x02\x03\x04\x00\x00", "\x05\x00\x05\x01" + nowhere},
		{"an empty name", hello + "\x05\x01\x00\x03\x00\x00\x50", "\x05\x00\x05\x04" + nowhere},
		{"a name with a space", hello + "\x05\x01\x00\x03\x03a b\x00\x50", "\x05\x00\x05\x04" + nowhere},
		{"another version inside", hello + "\x04\x01\x00\x01\x01\x02\x03\x04\x00\x50", "\x05\x00\x05\x01" + nowhere},
		{"a torn request", hello + "\x05\x01\x00\x03\x09nat", "\x05\x00"},
		{"GET", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "405 Method Not Allowed"},
		{"GET of a proxy", "GET http://nats/ HTTP/1.1\r\nHost: nats\r\n\r\n", "405 Method Not Allowed"},
		{"POST of a page", "POST / HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nContent-Length: 28\r\n\r\nCONNECT nats:4222 HTTP/1.1\r\n", "403 Forbidden"},
		{"CONNECT of a page", "CONNECT nats:4222 HTTP/1.1\r\nHost: nats\r\nOrigin: null\r\n\r\n", "403 Forbidden"},
		{"fetch", "OPTIONS / HTTP/1.1\r\nHost: x\r\nSec-Fetch-Mode: cors\r\n\r\n", "403 Forbidden"},
		{"CONNECT without a port", "CONNECT nats HTTP/1.1\r\nHost: nats\r\n\r\n", "400 Bad Request"},
		{"CONNECT to port 0", "CONNECT nats:0 HTTP/1.1\r\nHost: nats\r\n\r\n", "400 Bad Request"},
		{"CONNECT that does not wait", "CONNECT nats:4222 HTTP/1.1\r\nHost: nats\r\n\r\nhello", "400 Bad Request"},
		{"CONNECT with a body", "CONNECT nats:4222 HTTP/1.1\r\nHost: nats\r\nContent-Length: 5\r\n\r\n", "400 Bad Request"},
		{"no HTTP", "NICK somebody\r\nUSER x\r\n\r\n", "400 Bad Request"},
		{"a long header", "CONNECT nats:4222 HTTP/1.1\r\nX: " + strings.Repeat("x", maxRequest) + "\r\n\r\n", "400 Bad Request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := start(t, "127.0.0.1:1", nil)
			got := talk(t, w, tt.send)
			if strings.Contains(tt.want, " ") {
				got, _, _ = strings.Cut(strings.TrimPrefix(got, "HTTP/1.1 "), "\r\n")
			}
			if got != tt.want {
				t.Errorf("answered %q, want %q", got, tt.want)
			}
			if len(w.asked) > 0 {
				t.Errorf("dialled %s", <-w.asked)
			}
		})
	}
}

func TestWhatAClientIsTold(t *testing.T) {
	denied := api.Errorf(api.CodePermissionDenied, "you may not use nats")
	denied.Hint = "ask ops"
	for _, tt := range []struct {
		err   error
		reply byte
		http  string
		words string
	}{
		{denied, replyNotAllowed, "403", "you may not use nats"},
		{api.Errorf(api.CodeNotFound, "no Service nats"), replyHost, "502", "no Service nats"},
		{api.Errorf(api.CodeUnavailable, "the upstream is down"), replyFailed, "502", "the upstream is down"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, replyRefused, "502", "no connection"},
		{syscall.ENETUNREACH, replyNetwork, "502", "no connection"},
		{&net.DNSError{Err: "no such host"}, replyHost, "502", "no connection"},
		{context.DeadlineExceeded, replyExpired, "504", "no connection"},
		{errors.New("secret detail"), replyFailed, "502", "no connection"},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			w := start(t, "", refusing(tt.err))
			got := talk(t, w, hello+"\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50")
			if len(got) < 4 || got[3] != tt.reply {
				t.Errorf("SOCKS5 answers %x, want the reply %d", got, tt.reply)
			}
			got = talk(t, w, "CONNECT nats:4222 HTTP/1.1\r\nHost: nats\r\n\r\n")
			if !strings.HasPrefix(got, "HTTP/1.1 "+tt.http) || !strings.Contains(got, tt.words) || strings.Contains(got, "secret") {
				t.Errorf("HTTP answers %q", got)
			}
		})
	}
}

func TestAdmit(t *testing.T) {
	w := start(t, greeter(t), func(s *Server) {
		s.Admit = func(net.Conn) error { return errors.New("it comes from uid 7") }
	})
	if got := talk(t, w, hello); got != "" {
		t.Errorf("a stranger is told %q", got)
	}
	if !strings.Contains(w.log.String(), "uid 7") {
		t.Errorf("the log does not say who: %s", w.log)
	}
}

// TestTheEndOfServe ends it under a client that has not asked, and one whose Dial
// hangs.
func TestTheEndOfServe(t *testing.T) {
	dialling := make(chan struct{})
	w := start(t, "", func(s *Server) {
		s.Dial = func(ctx context.Context, _ string, _ int) (net.Conn, error) {
			close(dialling)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	for _, text := range []string{hello, hello + "\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50"} {
		c, err := net.Dial("tcp", w.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, text)
	}
	<-dialling
	// What start cleans up, and goleak, see to the rest.
}

func TestAnHTTPClientByCONNECT(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { io.WriteString(rw, "at "+r.Host) })}
	go web.Serve(l)
	t.Cleanup(func() { web.Close() })
	w := start(t, l.Addr().String(), nil)
	for name, args := range map[string][]string{
		"CONNECT": {"--proxytunnel", "--proxy", "http://" + w.address},
		"SOCKS5":  {"--socks5-hostname", w.address},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath("curl"); err != nil {
				t.Skip("needs curl")
			}
			out, err := exec.Command("curl", append(args, "-sS", "--noproxy", "", "http://web.default/")...).CombinedOutput()
			if err != nil || string(out) != "at web.default" {
				t.Errorf("curl says %q (%v)", out, err)
			}
		})
	}
	t.Run("Go", func(t *testing.T) {
		tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "socks5h", Host: w.address})}
		defer tr.CloseIdleConnections()
		r, err := (&http.Client{Transport: tr}).Get("http://web.default/")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != "at web.default" {
			t.Errorf("read %q (%v)", b, err)
		}
	})
}

// packets serves a proxy whose datagrams to each host are answered, by an upstream of
// their own, with "HOST:PORT says DATAGRAM".
func packets(t *testing.T, change func(*Server)) *world {
	t.Helper()
	var upstreams sync.WaitGroup
	w := start(t, "", func(s *Server) {
		s.DialPackets = func(_ context.Context, host string, port int) (net.Conn, error) {
			near, far := net.Pipe() // a Write is a Read, as with datagrams
			upstreams.Go(func() {
				defer far.Close()
				b := make([]byte, maxPacket)
				for {
					n, err := far.Read(b)
					if err != nil {
						return
					}
					fmt.Fprintf(far, "%s says %s", net.JoinHostPort(host, strconv.Itoa(port)), b[:n])
				}
			})
			return near, nil
		}
		if change != nil {
			change(s)
		}
	})
	t.Cleanup(upstreams.Wait)
	return w
}

// associate returns a client's socket that is connected to the one that was opened for
// it, and the connection that asked for it.
func associate(t *testing.T, w *world) (*net.UDPConn, net.Conn) {
	t.Helper()
	c, err := net.Dial("tcp", w.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, hello+"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
	b := make([]byte, 12)
	if _, err := io.ReadFull(c, b); err != nil || !bytes.HasPrefix(b, []byte("\x05\x00\x05\x00\x00\x01")) {
		t.Fatalf("answered %x (%v)", b, err)
	}
	host, port, err := readAddress(bytes.NewReader(b[5:]))
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(netip.MustParseAddr(host), uint16(port))
	return knock(t, at), c
}

func knock(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

func ask(t *testing.T, u *net.UDPConn, host string, port int, text string) {
	t.Helper()
	if _, err := u.Write(append(appendAddress([]byte{0, 0, 0}, host, port), text...)); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, u *net.UDPConn) string {
	t.Helper()
	b := make([]byte, maxPacket)
	n, err := u.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	host, port, payload, ok := parsePacket(b[:n])
	if !ok || !strings.HasPrefix(string(payload), net.JoinHostPort(host, strconv.Itoa(port))) {
		t.Errorf("%q is not from %s:%d", payload, host, port)
	}
	return string(payload)
}

func TestDatagrams(t *testing.T) {
	w := packets(t, nil)
	u, _ := associate(t, w)
	for _, to := range []string{"dns", "dns.other", "100.64.0.20", "fd00:1:2::14", "dns"} {
		ask(t, u, to, 53, "ping")
		if got, want := hear(t, u), net.JoinHostPort(to, "53")+" says ping"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestDatagramsThatAreNone(t *testing.T) {
	w := packets(t, nil)
	u, _ := associate(t, w)
	for _, bad := range []string{
		"", "\x00", "\x00\x00\x00", "\x00\x00\x01\x03\x03dns\x00\x35ping", "\x00\x01\x00\x03\x03dns\x00\x35ping",
		"\x00\x00\x00\x02\x03dns\x00\x35ping", "\x00\x00\x00\x03\x09dns", "\x00\x00\x00\x03\x03dns\x00\x00ping",
	} {
		u.Write([]byte(bad))
	}
	ask(t, u, "dns", 53, "after all that")
	if got := hear(t, u); got != "dns:53 says after all that" {
		t.Errorf("the first answer is %q", got)
	}
}

func TestDatagramsOfAnother(t *testing.T) {
	w := packets(t, nil)
	u, _ := associate(t, w)
	ask(t, u, "dns", 53, "mine")
	hear(t, u)
	other := knock(t, u.RemoteAddr().(*net.UDPAddr).AddrPort())
	ask(t, other, "dns", 53, "another's")
	ask(t, u, "dns", 53, "mine again")
	if got := hear(t, u); got != "dns:53 says mine again" {
		t.Errorf("the answer is %q", got)
	}
	t.Run("refused", func(t *testing.T) {
		w := packets(t, func(s *Server) {
			s.AdmitPackets = func(netip.AddrPort, netip.AddrPort) error { return errors.New("it comes from uid 7") }
		})
		u, c := associate(t, w)
		ask(t, u, "dns", 53, "x")
		// The socket is read until the connection that asked for it is closed.
		for !strings.Contains(w.log.String(), "uid 7") {
			ask(t, u, "dns", 53, "x")
		}
		c.Close()
	})
}

func TestDatagramsEndWithTheirConnection(t *testing.T) {
	w := packets(t, nil)
	u, c := associate(t, w)
	ask(t, u, "dns", 53, "x")
	hear(t, u)
	c.Close()
	for { // ECONNREFUSED, once the socket is closed
		if _, err := u.Write([]byte("x")); err != nil {
			return
		}
	}
}

func TestTooManyFlows(t *testing.T) {
	var flows atomic.Int32
	t.Cleanup(func() { // when the proxy has ended
		if n := flows.Load(); n != maxFlows {
			t.Errorf("there were %d flows, want %d", n, maxFlows)
		}
	})
	w := packets(t, func(s *Server) {
		dial := s.DialPackets
		s.DialPackets = func(ctx context.Context, host string, port int) (net.Conn, error) {
			flows.Add(1)
			return dial(ctx, host, port)
		}
	})
	u, _ := associate(t, w)
	for n := range maxFlows {
		ask(t, u, "dns", 1+n, "x")
		hear(t, u)
	}
	for n := range maxFlows {
		ask(t, u, "dns", 1000+n, "x")
	}
	ask(t, u, "dns", 1, "still there")
	if got := hear(t, u); got != "dns:1 says still there" {
		t.Errorf("got %q", got)
	}
}

// FuzzRequest lets a client say anything: the proxy neither panics nor dials what no
// host can be named.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(hello + "\x05\x01\x00\x03\x04nats\x10\x7e"))
	f.Add([]byte("CONNECT nats:4222 HTTP/1.1\r\nHost: nats\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nOrigin: x\r\n\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) == 0 {
			return
		}
		c := &memory{Reader: bytes.NewReader(text[1:])}
		p := protocol(text[0])
		if p == nil {
			return
		}
		want, err := p.request(c, text[0])
		if err == nil && !want.packets && (!isHost(want.host) || want.port < 1 || want.port > 65535) {
			t.Errorf("%q asks for %q %d", text, want.host, want.port)
		}
	})
}

// FuzzPacket: what is a datagram of a client is that again when it is written.
func FuzzPacket(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03\x03dns\x00\x35ping"))
	f.Add([]byte("\x00\x00\x00\x01\x01\x02\x03\x04\x00\x35"))
	f.Add([]byte("\x00\x00\x00\x03\x03::000"))
	f.Fuzz(func(t *testing.T, p []byte) {
		host, port, payload, ok := parsePacket(p)
		if !ok {
			return
		}
		again := append(appendAddress([]byte{0, 0, 0}, host, port), payload...)
		if h, n, b, ok := parsePacket(again); !ok || h != host || n != port || !bytes.Equal(b, payload) {
			t.Errorf("%x: %s %d, and then %s %d (%v)", p, host, port, h, n, ok)
		}
	})
}

// memory is a connection whose other end has said all that it will.
type memory struct {
	io.Reader
	net.Conn
}

func (m *memory) Read(b []byte) (int, error)  { return m.Reader.Read(b) }
func (m *memory) Write(b []byte) (int, error) { return len(b), nil }
