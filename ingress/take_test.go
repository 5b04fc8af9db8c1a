package ingress

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"

	"cardea/api"
	"cardea/relay"
	"cardea/wire/pgstart"
	"cardea/wire/proxyproto"
)

func proxied(s *api.ServiceSpec) { s.Public.ProxyProtocol = true }

// header writes a PROXY header of version 2 from an address.
func header(t *testing.T, from string, more proxyproto.Header) []byte {
	t.Helper()
	h := more
	h.Version, h.Source, h.Destination = 2, netip.MustParseAddrPort(from), netip.MustParseAddrPort("198.51.100.1:443")
	if h.Source.Addr().Is6() {
		h.Destination = netip.MustParseAddrPort("[2001:db8::ff]:443")
	}
	b, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProxyHeader(t *testing.T) { onRoads(t, testProxyHeader) }

func testProxyHeader(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	bare, named := freePort(t), freePort(t)
	s.set(public("bare.ns", bare, proxied), public("near.ns", named, proxied, through("a.b"), coming("192.0.2.0/24", "2001:db8::/32")), public("any.ns", named, proxied))
	hello := helloOf(t, &tls.Config{ServerName: "a.b"})
	for _, x := range []struct {
		name    string
		port    int
		say     []byte
		want    api.Facts
		service string
	}{
		{"version 1", bare, []byte("PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n"), api.Facts{IP: "192.0.2.7", Port: 1234, Proxy: &api.ProxyFacts{Version: 1, Destination: "198.51.100.1:443"}}, "bare.ns"},
		{"version 2", bare, header(t, "[2001:db8::7]:1234", proxyproto.Header{Authority: "a.b", UniqueID: "\x01\x02", ALPN: "h2", TLVs: []proxyproto.TLV{{Type: 0xe0, Value: "v"}}, SSL: &proxyproto.SSL{TLS: true, Version: "TLSv1.3", CertificateNow: true, Verified: true, CommonName: "me"}}),
			api.Facts{IP: "2001:db8::7", Port: 1234, Proxy: &api.ProxyFacts{Version: 2, Destination: "[2001:db8::ff]:443", Authority: "a.b", ALPN: "h2", UniqueID: "0102", TLSVersion: "TLSv1.3", ClientCertificate: true, CommonName: "me", TLVs: map[string]string{"e0": "76"}}}, "bare.ns"},
		{"before a hello", named, append([]byte("PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n"), hello...), api.Facts{IP: "192.0.2.7", Port: 1234, Proxy: &api.ProxyFacts{Version: 1, Destination: "198.51.100.1:443"}, TLS: &api.TLSFacts{SNI: "a.b"}}, "near.ns"},
		{"before other bytes", named, append(header(t, "192.0.2.7:1234", proxyproto.Header{}), "hello"...), api.Facts{IP: "192.0.2.7", Port: 1234, Proxy: &api.ProxyFacts{Version: 2, Destination: "198.51.100.1:443"}}, "any.ns"},
	} {
		t.Run(x.name, func(t *testing.T) {
			s.t = t
			for _, host := range []string{"127.0.0.1", "::1"} {
				for _, size := range []int{1000, 1} {
					c := s.dial(at(host, x.port))
					go func() {
						for part := range slices.Chunk(x.say, size) {
							c.Write(part)
						}
						c.CloseWrite()
					}()
					a := s.arrival()
					x.want.Listener, x.want.Tunnel, x.want.ProxiedBy = at(host, x.port), "public", host
					if f := a.Facts; f.IP != x.want.IP || f.Port != x.want.Port || f.Listener != x.want.Listener || f.ProxiedBy != host || !equalProxy(f.Proxy, x.want.Proxy) || (f.TLS == nil) != (x.want.TLS == nil) {
						t.Errorf("%+v %+v", f, f.Proxy)
					}
					if a.Service != x.service {
						t.Errorf("arrived at %s", a.Service)
					}
					var got []byte
					if p, ok := a.Conn.(relay.Transparent); ok {
						got = p.Unread()
					}
					rest, err := io.ReadAll(a.Conn)
					header := len(x.say) - len(got) - len(rest)
					if _, n, _ := proxyproto.Parse(x.say); n != header || err != nil {
						t.Errorf("%d bytes are gone, %v", header, err)
					}
				}
			}
		})
	}
	s.t = t
}

func equalProxy(a, b *api.ProxyFacts) bool {
	x, y := *a, *b
	if len(x.TLVs) != len(y.TLVs) || len(x.TLVs) == 1 && x.TLVs["e0"] != y.TLVs["e0"] {
		return false
	}
	return x.Version == y.Version && x.Destination == y.Destination && x.Authority == y.Authority && x.ALPN == y.ALPN && x.UniqueID == y.UniqueID && x.TLSVersion == y.TLSVersion && x.ClientCertificate == y.ClientCertificate && x.CommonName == y.CommonName
}

// A proxy that speaks for itself is the client; one that does not say who the client
// is meets no condition on where it comes from.
func TestProxyWithoutAClient(t *testing.T) { onRoads(t, testProxyWithoutAClient) }

func testProxyWithoutAClient(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	s.set(public("near.ns", port, proxied, coming("127.0.0.0/8")))
	local, err := (&proxyproto.Header{Version: 2, Local: true}).Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := s.dial(at("127.0.0.1", port), local...)
	if f := s.arrival().Facts; f.IP != "127.0.0.1" || f.Port != c.LocalAddr().(*net.TCPAddr).Port || f.ProxiedBy != "" || f.Proxy != nil {
		t.Errorf("%+v", f)
	}
	c = s.dial(at("127.0.0.1", port), []byte("PROXY UNKNOWN\r\n")...)
	if r := s.refusal(c, api.ReasonNoRoute, "none takes a client from somewhere"); r.Facts.ProxiedBy != "127.0.0.1" || r.Facts.IP != "" || r.Facts.Port != 0 {
		t.Errorf("%+v", r.Facts)
	}
}

func TestBadProxyHeaders(t *testing.T) { onRoads(t, testBadProxyHeaders) }

func testBadProxyHeaders(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t)
	s.settings.Store(&api.ClusterRouting{HelloTimeout: milliseconds(300)})
	s.run()
	port := freePort(t)
	s.set(public("a.ns", port, proxied))
	whole := header(t, "192.0.2.7:1234", proxyproto.Header{})
	lies := slices.Clone(whole)
	binary.BigEndian.PutUint16(lies[14:], 65535)
	for name, x := range map[string]struct {
		say   []byte
		end   bool
		words string
	}{
		"none":      {[]byte("GET / HTTP/1.1\r\n"), false, "no PROXY header"},
		"malformed": {[]byte("PROXY TCP4 a b c d\r\n"), false, "malformed"},
		"lies":      {lies, false, "malformed"},
		"cut short": {whole[:20], true, "went away before its header was complete"},
		"slow":      {whole[:20], false, "not complete in time"},
		"nothing":   {nil, false, "not complete in time"},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			c := s.dial(at("127.0.0.1", port), x.say...)
			if x.end {
				c.CloseWrite()
			}
			if r := s.refusal(c, api.ReasonProxyHeader, x.words); r.Object.Name != "a.ns" || r.Route.Listener != (api.Bind{Port: port}).String() || r.Route.Match != "" || !r.Anonymous {
				t.Errorf("%+v", r)
			}
		})
	}
	s.t = t
	for _, trusted := range [][]string{{"192.0.2.0/24"}, {}} {
		s.settings.Store(&api.ClusterRouting{TrustedProxies: trusted})
		c, err := net.Dial("tcp", at("127.0.0.1", port))
		if err == nil { // else it was reset before connect(2) has returned
			c.Close()
		}
		s.refusal(nil, api.ReasonProxyHeader, "127.0.0.1 is not a trusted proxy")
	}
}

// Rates count the client, not the proxy.
func TestRateBehindAProxy(t *testing.T) { onRoads(t, testRateBehindAProxy) }

func testRateBehindAProxy(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	s.set(public("a.ns", port, proxied, func(s *api.ServiceSpec) { s.Limits = &api.ServiceLimits{ConnectionsPerSecond: 1} }))
	from := func(ip string) bool {
		t.Helper()
		c := s.dial(at("127.0.0.1", port), header(t, ip+":1", proxyproto.Header{})...)
		select {
		case a := <-s.arrivals:
			a.Conn.Close()
			return true
		case r := <-s.refusals:
			if r.Reason != api.ReasonLimit || r.Facts.IP != ip {
				t.Errorf("%+v", r)
			}
			c.Close()
			return false
		}
	}
	for from("192.0.2.1") {
	}
	if !from("192.0.2.2") {
		t.Error("one client of a proxy keeps another out")
	}
}

func postgres(s *api.ServiceSpec) { s.Public.StartTLS = api.StartTLSPostgres }

// answer reads the one byte with which a request for TLS is answered.
func answer(t *testing.T, c net.Conn) byte {
	t.Helper()
	b := make([]byte, 1)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b[0]
}

func request(code uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, code)
}

func ssl() []byte    { return pgstart.AppendSSLRequest(nil) }
func gssenc() []byte { return request(1234<<16 | 5680) }

// startup is a StartupMessage of user x.
func startup() []byte {
	body := "\x00\x03\x00\x00user\x00x\x00\x00"
	return append([]byte{0, 0, 0, byte(len(body) + 4)}, body...)
}

func TestPostgres(t *testing.T) { onRoads(t, testPostgres) }

func testPostgres(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port, strict := freePort(t), freePort(t)
	s.set(
		public("db.ns", port, postgres, through("db")), public("ends.ns", port, postgres, ended("ends")), public("web.ns", port, through("web")), public("rest.ns", port),
		public("strict.ns", strict, postgres, ended("ends")),
	)
	say := append(helloOf(t, &tls.Config{ServerName: "db"}), "more"...)
	unread := func(a api.Arrival) string {
		if p, ok := a.Conn.(relay.Transparent); ok {
			return string(p.Unread())
		}
		return ""
	}
	t.Run("SSLRequest", func(t *testing.T) {
		s.t = t
		c := s.dial(at("127.0.0.1", port), ssl()...)
		if got := answer(t, c); got != 'S' {
			t.Fatalf("answer %c", got)
		}
		c.Write(say)
		if a := s.arrival(); a.Service != "db.ns" || a.Facts.TLS.SNI != "db" || unread(a)[:3] != string(say[:3]) {
			t.Errorf("%+v", a)
		}
	})
	t.Run("GSSENCRequest, then SSLRequest, byte by byte", func(t *testing.T) {
		s.t = t
		c := s.dial(at("127.0.0.1", port))
		for _, b := range gssenc() {
			c.Write([]byte{b})
		}
		if got := answer(t, c); got != 'N' {
			t.Fatalf("answer %c", got)
		}
		for _, b := range ssl() {
			c.Write([]byte{b})
		}
		if got := answer(t, c); got != 'S' {
			t.Fatalf("answer %c", got)
		}
		conn := tls.Client(c, &tls.Config{ServerName: "ends", InsecureSkipVerify: true})
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		conn.Write(startup())
		a := s.arrival()
		got := make([]byte, len(startup()))
		if _, err := io.ReadFull(a.Conn, got); err != nil || a.Service != "ends.ns" || string(got) != string(startup()) {
			t.Errorf("%+v, %q, %v", a, got, err)
		}
	})
	t.Run("TLS at once", func(t *testing.T) {
		s.t = t
		s.dial(at("127.0.0.1", port), helloOf(t, &tls.Config{ServerName: "db", NextProtos: []string{"postgresql"}})...)
		if a := s.arrival(); a.Service != "db.ns" {
			t.Errorf("%+v", a)
		}
		s.refusal(s.dial(at("127.0.0.1", port), helloOf(t, &tls.Config{ServerName: "db"})...), api.ReasonNoRoute, "offer the protocol postgresql")
	})
	t.Run("a row that is not PostgreSQL's", func(t *testing.T) {
		s.t = t
		s.dial(at("127.0.0.1", port), helloOf(t, &tls.Config{ServerName: "web"})...)
		if a := s.arrival(); a.Service != "web.ns" {
			t.Errorf("%+v", a)
		}
		for _, sni := range []string{"web", "else"} { // of which the latter would get any bytes
			c := s.dial(at("127.0.0.1", port), ssl()...)
			answer(t, c)
			c.Write(helloOf(t, &tls.Config{ServerName: sni}))
			s.refusal(c, api.ReasonNoRoute, "is not for clients that ask for TLS first")
		}
	})
	t.Run("in the clear", func(t *testing.T) {
		s.t = t
		s.dial(at("127.0.0.1", port), startup()...)
		if a := s.arrival(); a.Service != "rest.ns" || unread(a) != string(startup()) {
			t.Errorf("%+v", a)
		}
		s.dial(at("127.0.0.1", port), []byte("SSH-2.0\r\n")...)
		if a := s.arrival(); a.Service != "rest.ns" || unread(a) != "SSH-2.0\r\n" {
			t.Errorf("%+v", a)
		}
		c := s.dial(at("127.0.0.1", port), gssenc()...)
		answer(t, c)
		c.Write(startup())
		if a := s.arrival(); a.Service != "rest.ns" || unread(a) != string(startup()) {
			t.Errorf("%+v", a)
		}
		s.refusal(s.dial(at("127.0.0.1", strict), startup()...), api.ReasonNoRoute, "takes only TLS")
	})
	t.Run("bad", func(t *testing.T) {
		s.t = t
		// What comes before the answer could be taken for something that came over TLS.
		s.refusal(s.dial(at("127.0.0.1", port), append(ssl(), startup()...)...), api.ReasonHandshake, "bytes behind SSLRequest")
		c := s.dial(at("127.0.0.1", port), ssl()...)
		answer(t, c)
		c.Write(startup())
		s.refusal(c, api.ReasonHandshake, "did not speak it")
		c = s.dial(at("127.0.0.1", port), gssenc()...)
		answer(t, c)
		c.Write(gssenc())
		s.refusal(c, api.ReasonHandshake, "a second GSSENCRequest")
		s.refusal(s.dial(at("127.0.0.1", port), 0, 0, 0, 9, 4, 210, 22, 47, 0), api.ReasonHandshake, "malformed")
	})
	s.t = t
}

// A CancelRequest goes to each upstream where its client has connections; the client
// sees the end when all have seen it.
func TestCancelRequest(t *testing.T) { onRoads(t, testCancelRequest) }

func testCancelRequest(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	s.set(public("db.ns", port, postgres, through("db")))
	cancel := []byte("\x00\x00\x00\x10\x04\xd2\x16\x2e\x00\x00\x00\x07\x01\x02\x03\x04")
	s.refusal(s.dial(at("127.0.0.1", port), cancel...), api.ReasonNoRoute, "a CancelRequest from where there is no connection")

	s.mu.Lock()
	s.upstreams = []api.Arrival{{Service: "db.ns"}, {Route: &api.Routed{Object: mapping("m")}}}
	s.mu.Unlock()
	c := s.dial(at("127.0.0.1", port), cancel...)
	one, two := s.arrival(), s.arrival()
	if one.Service != "db.ns" || two.Route == nil {
		one, two = two, one
	}
	if one.Service != "db.ns" || two.Route.Object != mapping("m") {
		t.Errorf("%+v, %+v", one, two)
	}
	for _, a := range []api.Arrival{one, two} {
		if a.Facts.IP != "127.0.0.1" || a.Evidence.Kind != api.EvidenceAnonymous {
			t.Errorf("%+v", a)
		}
		if got, err := io.ReadAll(a.Conn); string(got) != string(cancel) || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if n, err := a.Conn.Write([]byte("ignored")); n != 7 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	one.Conn.Close()
	one.Conn.Close()
	if _, err := one.Conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := two.Conn.(relay.Resetter).Reset(""); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(c); len(got) != 0 || err != nil {
		t.Errorf("the client sees %q, %v", got, err)
	}
}

// However many clients wait for a server that speaks first, each gets to it: they take
// no places from one another.
func TestManyWaitForTheServer(t *testing.T) { onRoads(t, testManyWaitForTheServer) }

func testManyWaitForTheServer(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t)
	s.arrivals = make(chan api.Arrival, 1000)
	s.settings.Store(&api.ClusterRouting{HelloTimeout: milliseconds(1000)})
	s.Handle = func(a api.Arrival) { s.arrivals <- a }
	s.run()
	port := freePort(t)
	s.set(public("mute.ns", port, func(s *api.ServiceSpec) { s.Limits = &api.ServiceLimits{ConnectionsPerSecond: 1_000_000} }), public("named.ns", port, through("a.example")))
	const many = 3 * 128 // places for strangers
	for range many {
		s.dial(at("127.0.0.1", port))
	}
	for range many {
		if a := s.arrival(); a.Service != "mute.ns" {
			t.Fatalf("%+v", a)
		}
	}
}
