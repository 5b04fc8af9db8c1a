package dns

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"io"
	"math/big"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"cardea/api"
)

// A remote is a name server on this machine.
type remote struct {
	api.DNSServer
	connections atomic.Int32
	queries     atomic.Int32
}

// listen starts a name server that answers a query with what answer returns: messages
// to be sent, the first of which answers it on a stream.
func listen(t *testing.T, transport api.DNSTransport, certificate *tls.Certificate, answer func(q *dns.Msg, stream bool) []*dns.Msg) *remote {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	r := &remote{DNSServer: api.DNSServer{Transport: transport, Host: "127.0.0.1", Port: port}}
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	if certificate != nil {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*certificate}})
	}
	done := make(chan struct{}, 2)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.connections.Add(1)
			go func() {
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				defer conn.Close()
				for {
					var size [2]byte
					if _, err := io.ReadFull(conn, size[:]); err != nil {
						return
					}
					text := make([]byte, binary.BigEndian.Uint16(size[:]))
					if len(text) > maxQuery { // the beginning of TLS, say
						return
					}
					if _, err := io.ReadFull(conn, text); err != nil {
						return
					}
					r.queries.Add(1)
					q := new(dns.Msg)
					if q.Unpack(text) != nil {
						return
					}
					replies := answer(q, true)
					if len(replies) == 0 {
						return
					}
					out, _ := replies[0].Pack()
					conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
				}
			}()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		buffer := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buffer)
			if err != nil {
				return
			}
			r.queries.Add(1)
			q := new(dns.Msg)
			if q.Unpack(buffer[:n]) != nil {
				continue
			}
			for _, m := range answer(q, false) {
				out, _ := m.Pack()
				pc.WriteTo(out, from)
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		l.Close()
		pc.Close()
		<-done
		<-done
	})
	return r
}

// reply returns an answer with one address.
func reply(q *dns.Msg, address string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A " + address)
	m.Answer = []dns.RR{rr}
	return m
}

func always(address string) func(*dns.Msg, bool) []*dns.Msg {
	return func(q *dns.Msg, _ bool) []*dns.Msg { return []*dns.Msg{reply(q, address)} }
}

// askRemote asks a server once and returns the addresses that it says, or the error.
func askRemote(t *testing.T, r *resolver, server api.DNSServer) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	m, err := r.query(ctx, server, question{name: "www.example.org.", kind: dns.TypeA})
	if err != nil {
		return err.Error()
	}
	parts := []string{}
	for _, rr := range m.Answer {
		parts = append(parts, rr.(*dns.A).A.String())
	}
	return strings.Join(parts, " ")
}

// newResolver returns one whose connections are closed at the end of the test.
func newResolver(t *testing.T) *resolver {
	r := new(resolver)
	t.Cleanup(func() { r.links.closeBefore(time.Now().Add(time.Hour)) })
	return r
}

func TestDatagrams(t *testing.T) {
	change := func(f func(m *dns.Msg)) func(*dns.Msg) *dns.Msg {
		return func(q *dns.Msg) *dns.Msg { m := reply(q, "192.0.2.66"); f(m); return m }
	}
	strays := map[string]func(q *dns.Msg) *dns.Msg{
		"another id":       change(func(m *dns.Msg) { m.Id++ }),
		"another name":     change(func(m *dns.Msg) { m.Question[0].Name = "evil.example.org." }),
		"another type":     change(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }),
		"another class":    change(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"no question":      change(func(m *dns.Msg) { m.Question = nil }),
		"a query":          change(func(m *dns.Msg) { m.Response = false }),
		"another opcode":   change(func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }),
		"two questions":    change(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"error of another": change(func(m *dns.Msg) { m.Question, m.Rcode, m.Id = nil, dns.RcodeFormatError, m.Id+1 }),
	}
	for name, stray := range strays {
		t.Run(name, func(t *testing.T) {
			few := listen(t, api.DNSDatagram, nil, func(q *dns.Msg, _ bool) []*dns.Msg { return []*dns.Msg{stray(q), reply(q, "192.0.2.1")} })
			if got := askRemote(t, newResolver(t), few.DNSServer); got != "192.0.2.1" || few.connections.Load() != 0 {
				t.Errorf("with one: %s", got)
			}
			many := listen(t, api.DNSDatagram, nil, func(q *dns.Msg, stream bool) (list []*dns.Msg) {
				if stream {
					return []*dns.Msg{reply(q, "192.0.2.2")}
				}
				for range maxStrays {
					list = append(list, stray(q))
				}
				return list
			})
			if got := askRemote(t, newResolver(t), many.DNSServer); got != "192.0.2.2" {
				t.Errorf("with many, over TCP: %s", got)
			}
		})
	}
	t.Run("the same name in other case", func(t *testing.T) {
		s := listen(t, api.DNSDatagram, nil, func(q *dns.Msg, _ bool) []*dns.Msg {
			m := reply(q, "192.0.2.1")
			m.Question[0].Name = "WWW.example.ORG."
			return []*dns.Msg{m}
		})
		if got := askRemote(t, newResolver(t), s.DNSServer); got != "192.0.2.1" {
			t.Errorf("%s", got)
		}
	})
	t.Run("what is too large comes over TCP", func(t *testing.T) {
		s := listen(t, api.DNSDatagram, nil, func(q *dns.Msg, stream bool) []*dns.Msg {
			m := reply(q, "192.0.2.1")
			if m.Truncated = !stream; stream {
				m.Answer = append(m.Answer, m.Answer[0])
			}
			return []*dns.Msg{m}
		})
		if got := askRemote(t, newResolver(t), s.DNSServer); got != "192.0.2.1 192.0.2.1" {
			t.Errorf("%s", got)
		}
	})
	t.Run("who knows no EDNS is asked without", func(t *testing.T) {
		s := listen(t, api.DNSDatagram, nil, func(q *dns.Msg, _ bool) []*dns.Msg {
			if q.IsEdns0() != nil {
				m := new(dns.Msg).SetRcodeFormatError(q)
				return []*dns.Msg{m}
			}
			return []*dns.Msg{reply(q, "192.0.2.1")}
		})
		if got := askRemote(t, newResolver(t), s.DNSServer); got != "192.0.2.1" {
			t.Errorf("%s", got)
		}
	})
	t.Run("ids differ", func(t *testing.T) {
		ids := make(chan uint16, 1)
		s := listen(t, api.DNSDatagram, nil, func(q *dns.Msg, _ bool) []*dns.Msg {
			ids <- q.Id
			return []*dns.Msg{reply(q, "192.0.2.1")}
		})
		seen := map[uint16]bool{}
		for range 20 {
			askRemote(t, newResolver(t), s.DNSServer)
			seen[<-ids] = true
		}
		if len(seen) < 18 {
			t.Errorf("%d different ids in 20 queries", len(seen))
		}
	})
	t.Run("nobody is there", func(t *testing.T) {
		s := listen(t, api.DNSDatagram, nil, always("192.0.2.1"))
		gone := s.DNSServer
		gone.Host = "127.0.0.2"
		if got := askRemote(t, newResolver(t), gone); !strings.Contains(got, "refused") {
			t.Errorf("%s", got)
		}
	})
}

// A connection serves one question after the other; one that the server has closed is
// replaced, and one on which something else was said is not used again.
func TestStreams(t *testing.T) {
	say := always("192.0.2.1")
	s := listen(t, api.DNSTCP, nil, func(q *dns.Msg, stream bool) []*dns.Msg { return say(q, stream) })
	r := newResolver(t)
	for range 5 {
		if got := askRemote(t, r, s.DNSServer); got != "192.0.2.1" {
			t.Fatalf("%s", got)
		}
	}
	if n := s.connections.Load(); n != 1 {
		t.Errorf("%d connections for one after the other", n)
	}
	for _, l := range r.links.idle[s.DNSServer] {
		l.Conn.(*net.TCPConn).CloseWrite() // so that the server closes it
		io.Copy(io.Discard, l.Conn)
	}
	if got := askRemote(t, r, s.DNSServer); got != "192.0.2.1" || s.connections.Load() != 2 {
		t.Errorf("after the server closed it: %s, %d connections", got, s.connections.Load())
	}
	say = func(q *dns.Msg, _ bool) []*dns.Msg { m := reply(q, "192.0.2.66"); m.Id++; return []*dns.Msg{m} }
	if got := askRemote(t, r, s.DNSServer); got != errAnother.Error() || len(r.links.idle[s.DNSServer]) != 0 {
		t.Errorf("another id: %s, %d connections are kept", got, len(r.links.idle[s.DNSServer]))
	}
	say = func(*dns.Msg, bool) []*dns.Msg { return nil }
	if got := askRemote(t, r, s.DNSServer); got != "EOF" {
		t.Errorf("closed without an answer: %s", got)
	}
}

// Connections that nobody uses are closed, the oldest first, and few are kept.
func TestIdleLinks(t *testing.T) {
	var l links
	server := api.DNSServer{Host: "a"}
	var ends []net.Conn
	for range maxLinks + 2 {
		a, b := net.Pipe()
		l.give(server, a)
		ends = append(ends, b)
	}
	closed := func() (n int) {
		for _, c := range ends {
			c.SetReadDeadline(time.Unix(1, 0))
			if _, err := c.Read(make([]byte, 1)); err == io.EOF {
				n++
			}
		}
		return n
	}
	if n := closed(); n != 2 {
		t.Errorf("%d more than may be are closed", n)
	}
	l.idle[server][0].since = time.Now().Add(-time.Hour)
	l.closeBefore(time.Now().Add(-time.Minute))
	if n := closed(); n != 3 || len(l.idle[server]) != maxLinks-1 {
		t.Errorf("%d are closed", n)
	}
	l.closeBefore(time.Now().Add(time.Hour))
	if n := closed(); n != len(ends) || len(l.idle) != 0 {
		t.Errorf("in the end %d are closed", n)
	}
}

// issue returns a certificate of its own authority.
func issue(t *testing.T, names []string, ips []net.IP) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: names, IPAddresses: ips,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

// Over TLS the server proves to be the one that is named; what does not is never asked.
func TestTLS(t *testing.T) {
	byIP, ipRoots := issue(t, nil, []net.IP{net.IPv4(127, 0, 0, 1)})
	byName, nameRoots := issue(t, []string{"localhost"}, nil)
	for name, row := range map[string]struct {
		certificate *tls.Certificate
		roots       *x509.CertPool
		host        string
		want        string
	}{
		"by address":        {byIP, ipRoots, "127.0.0.1", "192.0.2.1"},
		"by name":           {byName, nameRoots, "localhost", "192.0.2.1"},
		"another address":   {byName, nameRoots, "127.0.0.1", "cannot validate certificate"},
		"another name":      {byIP, ipRoots, "localhost", "certificate"},
		"another authority": {byIP, nameRoots, "127.0.0.1", "unknown authority"},
		"the system's":      {byIP, nil, "127.0.0.1", "certificate"},
		"no TLS":            {nil, ipRoots, "127.0.0.1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := listen(t, api.DNSTLS, row.certificate, always("192.0.2.1"))
			s.Host = row.host
			r := newResolver(t)
			r.roots = row.roots
			got := askRemote(t, r, s.DNSServer)
			if refused := row.want != "192.0.2.1"; !strings.Contains(got, row.want) || refused != (s.queries.Load() == 0) || refused == (got == "192.0.2.1") {
				t.Errorf("%s, %d queries", got, s.queries.Load())
			}
		})
	}
}

// From the query of a Session to a name server and back.
func TestThrough(t *testing.T) {
	for _, transport := range []api.DNSTransport{api.DNSDatagram, api.DNSTCP} {
		remote := listen(t, transport, nil, always("192.0.2.1"))
		s := newServer()
		s.Zone = func() *api.FallbackZone { return &api.FallbackZone{Servers: []string{remote.String()}} }
		run(t, s)
		for range 3 {
			if got, want := text(ask(t, s, "guest", query("www.example.org.", dns.TypeA), false)), "NOERROR; www.example.org. 60 IN A 192.0.2.1"; got != want {
				t.Errorf("%s: %s", transport, got)
			}
		}
		if n := remote.queries.Load(); n != 1 {
			t.Errorf("%s: asked %d times", transport, n)
		}
	}
}

// run runs a Server until the test ends. It returns when its fallback can be asked.
func run(t *testing.T, s *Server) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	isRunning := func() bool {
		s.fallback.mu.Lock()
		defer s.fallback.mu.Unlock()
		return s.fallback.running != nil
	}
	for !isRunning() {
		runtime.Gosched()
	}
}
