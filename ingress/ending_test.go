package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/secret"
)

// shop is a site with one row that ends TLS for shop.example.
type shop struct {
	*site
	port  int
	terms api.Termination
}

func newShop(t *testing.T) *shop {
	s := &shop{site: newSite(t).run(), port: freePort(t)}
	s.put("cert", &secret.Material{Certificate: s.pki.leaf("shop.example"), Version: "1"})
	s.put("ca", &secret.Material{CAs: s.pki.pool, Version: "1"})
	s.terms = api.Termination{Certificate: &api.Material{Chain: "cert", Key: "key"}}
	return s
}

// open puts the row into force, with what edit makes of its terms.
func (s *shop) open(edit func(*api.Termination)) {
	if edit != nil {
		edit(&s.terms)
	}
	r := foreign("shop", 0, api.Bind{Address: "127.0.0.1", Port: s.port}, api.Match{SNI: "shop.example"})
	terms := s.terms
	r.Terminate = &terms
	s.force(Input{Foreign: api.Routes{Routes: []api.Route{r, foreign("rest", 0, api.Bind{Address: "127.0.0.1", Port: s.port}, api.Match{})}}})
}

// visit makes a handshake, and returns what the client sees of it, and the Arrival if
// there is one. In TLS 1.3 the client learns by its first read that it was refused.
func (s *shop) visit(config *tls.Config) (tls.ConnectionState, *api.Arrival, error) {
	s.t.Helper()
	config.ServerName, config.RootCAs = "shop.example", s.pki.pool
	conn, err := net.Dial("tcp", at("127.0.0.1", s.port))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	c := tls.Client(conn, config)
	if err := c.Handshake(); err != nil {
		r := <-s.refusals
		if r.Reason != api.ReasonHandshake && r.Reason != api.ReasonRouteRefused || r.Facts.TLS == nil || r.Facts.TLS.SNI != "shop.example" {
			s.t.Errorf("%+v", r)
		}
		return tls.ConnectionState{}, nil, err
	}
	select {
	case a := <-s.arrivals:
		a.Conn.Write([]byte("x")) // the tickets come with it
		c.Read(make([]byte, 1))
		a.Conn.Close()
		return c.ConnectionState(), &a, nil
	case r := <-s.refusals:
		if r.Reason != api.ReasonHandshake || r.Facts.TLS == nil || r.Facts.TLS.SNI != "shop.example" {
			s.t.Errorf("%+v", r)
		}
		_, err := c.Read(make([]byte, 1))
		return c.ConnectionState(), nil, err
	}
}

// alert returns the alert that an error is about, and fails if it is none.
func alert(t *testing.T, err error) string {
	t.Helper()
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" {
		return "no alert: " + errText(err)
	}
	return strings.TrimPrefix(remote.Err.Error(), "tls: ")
}

func errText(err error) string {
	if err == nil {
		return "nil"
	}
	return err.Error()
}

func TestTerms(t *testing.T) {
	client := func(s *shop) []tls.Certificate { return []tls.Certificate{*s.pki.leaf("client")} }
	for _, x := range []struct {
		name   string
		terms  func(*api.Termination)
		config func(s *shop) *tls.Config
		alert  string
		check  func(t *testing.T, state tls.ConnectionState, a *api.Arrival)
	}{
		{"plain", nil, nil, "", func(t *testing.T, state tls.ConnectionState, a *api.Arrival) {
			if f := a.Facts.TLS; f.SNI != "shop.example" || f.Version != "1.3" || f.ClientCertificate != nil || a.Service != "" || a.Route.Object != mapping("shop") || a.Evidence.Kind != api.EvidenceAnonymous {
				t.Errorf("%+v %+v", a, f)
			}
		}},
		{"a newer version is wanted", func(x *api.Termination) { x.MinVersion = "v1.3" }, func(*shop) *tls.Config { return &tls.Config{MaxVersion: tls.VersionTLS12} }, "protocol version not supported", nil},
		{"an older version is wanted", func(x *api.Termination) { x.MaxVersion = "v1.2" }, func(*shop) *tls.Config { return &tls.Config{MinVersion: tls.VersionTLS13} }, "protocol version not supported", nil},
		{"TLS 1.0", func(x *api.Termination) { x.MinVersion = "v1.0" }, func(*shop) *tls.Config {
			return &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10}
		}, "", func(t *testing.T, state tls.ConnectionState, a *api.Arrival) {
			if a.Facts.TLS.Version != "1.0" {
				t.Errorf("%+v", a.Facts.TLS)
			}
		}},
		{"TLS 1.1 where nobody asked for it", nil, func(*shop) *tls.Config {
			return &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
		}, "protocol version not supported", nil},
		{"no common suite", func(x *api.Termination) {
			x.MaxVersion, x.CipherSuites = "v1.2", []string{"ECDHE-ECDSA-AES256-GCM-SHA384"}
		}, func(*shop) *tls.Config {
			return &tls.Config{CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
		}, "handshake failure", nil},
		{"the suite", func(x *api.Termination) {
			x.MaxVersion, x.CipherSuites = "v1.2", []string{"ECDHE-ECDSA-AES256-GCM-SHA384"}
		}, nil, "", func(t *testing.T, state tls.ConnectionState, a *api.Arrival) {
			if state.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 {
				t.Errorf("%x", state.CipherSuite)
			}
		}},
		{"no common curve", func(x *api.Termination) { x.Curves = []string{"P-384"} }, func(*shop) *tls.Config { return &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}} }, "handshake failure", nil},
		{"the curve", func(x *api.Termination) { x.Curves = []string{"P-384"} }, nil, "", func(t *testing.T, state tls.ConnectionState, a *api.Arrival) {
			if state.CurveID != tls.CurveP384 {
				t.Errorf("%v", state.CurveID)
			}
		}},
		{"ALPN of the server's choice", func(x *api.Termination) { x.ALPN = []string{"b", "a"} }, func(*shop) *tls.Config { return &tls.Config{NextProtos: []string{"a", "b"}} }, "", func(t *testing.T, state tls.ConnectionState, a *api.Arrival) {
			if state.NegotiatedProtocol != "b" || a.Facts.TLS.ALPN != "b" {
				t.Errorf("%q, %+v", state.NegotiatedProtocol, a.Facts.TLS)
			}
		}},
		{"ALPN of the client's choice", nil, func(*shop) *tls.Config { return &tls.Config{NextProtos: []string{"a", "b"}} }, "", func(t *testing.T, state tls.ConnectionState, a *api.Arrival) {
			if state.NegotiatedProtocol != "a" {
				t.Errorf("%q", state.NegotiatedProtocol)
			}
		}},
		{"no common ALPN", func(x *api.Termination) { x.ALPN = []string{"b"} }, func(*shop) *tls.Config { return &tls.Config{NextProtos: []string{"a"}} }, "no application protocol", nil},
		{"no certificate, TLS 1.3", func(x *api.Termination) {
			x.ClientCA, x.RequireClientCertificate = &api.Material{Chain: "ca"}, true
		}, nil, "certificate required", nil},
		{"no certificate, TLS 1.2", func(x *api.Termination) {
			x.ClientCA, x.RequireClientCertificate = &api.Material{Chain: "ca"}, true
		}, func(*shop) *tls.Config { return &tls.Config{MaxVersion: tls.VersionTLS12} }, "handshake failure", nil},
		{"no certificate, which is good", func(x *api.Termination) { x.ClientCA = &api.Material{Chain: "ca"} }, nil, "", func(t *testing.T, state tls.ConnectionState, a *api.Arrival) {
			if a.Facts.TLS.ClientCertificate != nil {
				t.Errorf("%+v", a.Facts.TLS)
			}
		}},
		{"a certificate", func(x *api.Termination) {
			x.ClientCA, x.RequireClientCertificate = &api.Material{Chain: "ca"}, true
		}, func(s *shop) *tls.Config { return &tls.Config{Certificates: client(s)} }, "", func(t *testing.T, state tls.ConnectionState, a *api.Arrival) {
			if c := a.Facts.TLS.ClientCertificate; c == nil || c.Subject != "CN=client" || a.Evidence.Kind != api.EvidenceAnonymous {
				t.Errorf("%+v", a)
			}
		}},
		{"a certificate of somebody else", func(x *api.Termination) { x.ClientCA = &api.Material{Chain: "ca"} }, func(s *shop) *tls.Config {
			other := newPKI(s.t).leaf("client")
			return &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return other, nil }}
		}, "unknown certificate authority", nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := newShop(t)
			s.open(x.terms)
			config := &tls.Config{}
			if x.config != nil {
				config = x.config(s)
			}
			state, a, err := s.visit(config)
			switch {
			case x.alert != "":
				if got := alert(t, err); got != x.alert {
					t.Errorf("the client sees %s", got)
				}
			case err != nil || a == nil:
				t.Errorf("%v", err)
			default:
				x.check(t, state, a)
			}
		})
	}
}

// A Secret can say that certificates are required, and can say that they are not.
func TestCertRequired(t *testing.T) {
	s := newShop(t)
	for _, required := range []bool{true, false} {
		s.put("ca", &secret.Material{CAs: s.pki.pool, CertRequired: &required, Version: time.Now().String()})
		s.open(func(x *api.Termination) {
			x.ClientCA, x.RequireClientCertificate = &api.Material{Chain: "ca"}, !required
		})
		if _, a, _ := s.visit(&tls.Config{}); (a == nil) != required {
			t.Errorf("required %v: %v", required, a)
		}
	}
}

func TestRevoked(t *testing.T) {
	s := newShop(t)
	good, bad := s.pki.leaf("good"), s.pki.leaf("bad")
	crl := func(next time.Time, revoked ...*tls.Certificate) {
		s.put("crl", &secret.Material{CRLs: []*x509.RevocationList{s.pki.crl(next, revoked...)}, Version: time.Now().String()})
		s.open(func(x *api.Termination) {
			x.ClientCA, x.CRL = &api.Material{Chain: "ca"}, &api.Material{Chain: "crl"}
		})
	}
	come := func(c *tls.Certificate) error {
		_, a, err := s.visit(&tls.Config{Certificates: []tls.Certificate{*c}})
		if (a == nil) != (err != nil) {
			t.Errorf("%v, %v", a, err)
		}
		return err
	}
	soon := time.Now().Add(time.Hour)
	crl(soon, bad)
	if err := come(good); err != nil {
		t.Error(err)
	}
	if got := alert(t, come(bad)); got != "bad certificate" {
		t.Errorf("revoked: %s", got)
	}
	crl(soon)
	if err := come(bad); err != nil {
		t.Errorf("not revoked any more: %v", err)
	}
	crl(time.Now().Add(-time.Minute))
	if err := come(good); err == nil {
		t.Error("a list that is out of date lets in")
	}
	if c := s.Status(mapping("shop")).Condition(api.ConditionResolved); c == nil || c.Status != "False" || c.Reason != "EXPIRED" || !strings.Contains(c.Message, "in file crl is out of date since") {
		t.Errorf("condition: %+v", c)
	}
}

// A TLS session is resumed while nothing that it hangs on changes; who is resumed is
// looked at again.
func TestResumption(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			s := newShop(t)
			client := s.pki.leaf("client")
			crl := func(revoked ...*tls.Certificate) {
				s.put("crl", &secret.Material{CRLs: []*x509.RevocationList{s.pki.crl(time.Now().Add(time.Hour), revoked...)}, Version: time.Now().String()})
			}
			crl()
			s.open(func(x *api.Termination) {
				x.ClientCA, x.CRL = &api.Material{Chain: "ca"}, &api.Material{Chain: "crl"}
			})
			cache := tls.NewLRUClientSessionCache(10)
			come := func() (resumed, in bool) {
				t.Helper()
				state, a, _ := s.visit(&tls.Config{ClientSessionCache: cache, MaxVersion: version, Certificates: []tls.Certificate{*client}})
				return state.DidResume, a != nil && a.Facts.TLS.ClientCertificate != nil
			}
			expect := func(what string, resumes bool) {
				t.Helper()
				if resumed, in := come(); resumed != resumes || !in {
					t.Errorf("%s: resumed %v, in %v", what, resumed, in)
				}
			}
			expect("the first time", false)
			expect("the second time", true)
			s.open(nil)
			expect("after a table that changes nothing", true)
			row := s.table.Load().of[mapping("shop")][0]
			old := row.ending.Load().current.Load()
			row.ending.Load().current.Store(&agreement{config: old.config, cert: old.cert, cas: old.cas, key: old.key, since: old.since.Add(-ticketKeyTime)})
			expect("a day later, when the key of the tickets is another", true)
			expect("and again", true)
			s.put("cert", &secret.Material{Certificate: s.pki.leaf("shop.example"), Version: "2"})
			s.open(nil)
			expect("after another certificate", false)
			expect("again", true)
			s.put("ca", &secret.Material{CAs: s.pki.pool, Version: "2"})
			s.open(nil)
			expect("after another CA", false)
			expect("again", true)
			s.open(func(x *api.Termination) { x.Curves = []string{"X25519"} })
			expect("after other terms", false)
			expect("again", true)
			crl(s.pki.leaf("other"))
			s.open(nil)
			expect("after another revocation list", false)
			expect("again", true)
			crl(client)
			s.open(nil)
			if _, in := come(); in {
				t.Error("a revoked client is let in")
			}
			// Though nothing new was made of what changed, who is resumed is verified.
			crl()
			s.open(nil)
			expect("not revoked any more", false)
			e := s.table.Load().of[mapping("shop")][0].ending.Load()
			e.crl = &secret.Material{CRLs: []*x509.RevocationList{s.pki.crl(time.Now().Add(time.Hour), client)}}
			if _, in := come(); in {
				t.Error("a resumed session of a revoked client is let in")
			}
		})
	}
}

// A row that cannot be served refuses, says why, and serves once it can; others do
// not notice.
func TestMissingMaterial(t *testing.T) {
	s := newShop(t)
	for name, break_ := range map[string]func(x *api.Termination){
		"no certificate": func(x *api.Termination) { x.Certificate.Chain = "gone" },
		"no key":         func(x *api.Termination) { x.Certificate.Chain = "ca" },
		"no CA":          func(x *api.Termination) { x.ClientCA = &api.Material{Chain: "cert"} },
		"no list":        func(x *api.Termination) { x.CRL = &api.Material{Chain: "ca"} },
		"nothing":        func(x *api.Termination) { x.Certificate = nil },
	} {
		s.terms = api.Termination{Certificate: &api.Material{Chain: "cert", Key: "key"}}
		s.open(break_)
		c := s.dial(at("127.0.0.1", s.port), helloOf(t, &tls.Config{ServerName: "shop.example"})...)
		r := s.refusal(c, api.ReasonRouteRefused, "TCPMapping/ns/shop: ")
		if *r.Object != (api.Ref{APIVersion: "getambassador.io/v3alpha1", Kind: "TCPMapping", Namespace: "ns", Name: "shop"}) || *r.Route != (api.LogRoute{Listener: at("127.0.0.1", s.port), Match: "sni shop.example"}) || !r.Anonymous {
			t.Errorf("%+v %+v", r.Object, r.Route)
		}
		if status, message := condition(t, s.Status(mapping("shop")), api.ConditionResolved); status != "False" || message == "" {
			t.Errorf("%s: %q %s", name, status, message)
		}
		if a := s.Ask(api.RouteQuestion{Port: s.port, SNI: "shop.example"}); !strings.Contains(a.Refused, "lacks something") {
			t.Errorf("%s: %+v", name, a)
		}
		s.dial(at("127.0.0.1", s.port), 'x')
		if a := s.arrival(); a.Route.Object != mapping("rest") {
			t.Errorf("%+v", a)
		}
	}
	s.terms = api.Termination{Certificate: &api.Material{Chain: "late", Key: "key"}}
	s.open(nil)
	s.put("late", &secret.Material{Certificate: s.pki.leaf("shop.example"), Version: "1"})
	s.reload(context.Background()) // it is a file
	if _, a, err := s.visit(&tls.Config{}); a == nil {
		t.Error(err)
	}
	if status, message := condition(t, s.Status(mapping("shop")), api.ConditionResolved); status == "False" {
		t.Error(message)
	}
	s.put("late", nil) // it is being replaced
	for _, again := range []func(){func() { s.reload(context.Background()) }, func() { s.open(nil) }} {
		again()
		if _, a, err := s.visit(&tls.Config{}); a == nil {
			t.Error(err)
		}
		if status, message := condition(t, s.Status(mapping("shop")), api.ConditionResolved); status != "False" || !strings.Contains(message, "what was read before is in use") {
			t.Errorf("%q %s", status, message)
		}
	}
}

// Services with isTLS: the certificate of a Session makes its client that Session.
func TestSessions(t *testing.T) {
	s := newSite(t).run()
	port, asks := freePort(t), freePort(t)
	s.set(public("a.ns", port, local, ended()), public("b.ns", asks, local, ended(), func(x *api.ServiceSpec) { x.IsAnonymous = false }))
	session := s.pki.leaf("session")
	come := func(port int, c *tls.Certificate) error {
		config := &tls.Config{ServerName: "anything", RootCAs: s.pki.pool, VerifyConnection: func(state tls.ConnectionState) error {
			return state.PeerCertificates[0].VerifyHostname("a.ns.svc.cardea.internal")
		}, InsecureSkipVerify: true}
		if c != nil {
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c, nil }
		}
		conn, err := tls.Dial("tcp", at("127.0.0.1", port), config)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
		}
		return err
	}
	if err := come(port, nil); err != nil {
		t.Fatal(err)
	}
	if a := s.arrival(); a.Service != "a.ns" || a.Evidence.Kind != api.EvidenceAnonymous || a.Evidence.Data != nil || a.Facts.TLS.SNI != "anything" {
		t.Errorf("%+v", a)
	}
	for _, p := range []int{port, asks} {
		if err := come(p, session); err != nil {
			t.Fatal(err)
		}
		if a := s.arrival(); a.Evidence.Kind != api.EvidenceCertificate || string(a.Evidence.Data) != string(session.Leaf.Raw) || a.Facts.TLS.ClientCertificate.Subject != "CN=session" {
			t.Errorf("%+v", a)
		}
	}
	come(asks, nil)
	if r := s.refusal(nil, api.ReasonHandshake, "the client shows no certificate"); r.Object.Name != "b.ns" || r.Anonymous || r.Route.Match != "any server name" || r.Route.Listener != at("127.0.0.1", asks) {
		t.Errorf("%+v", r)
	}
	come(port, newPKI(t).leaf("session"))
	if r := s.refusal(nil, api.ReasonHandshake, "the client's certificate does not verify: certificate signed by unknown authority"); r.Object.Name != "a.ns" || !r.Anonymous {
		t.Errorf("%+v", r)
	}
	if r := s.Stats().Listeners; len(r) != 2 || r[0].Refused[api.ReasonHandshake]+r[1].Refused[api.ReasonHandshake] != 2 {
		t.Errorf("%+v", r)
	}
	if a := s.Ask(api.RouteQuestion{Port: asks}); a.TLS != "TLS ends here, with a certificate of the cluster for b.ns.svc.cardea.internal; the client must show the certificate of a Session" {
		t.Errorf("%q", a.TLS)
	}
}

// A handshake that fails is told in words that say whose certificate is meant.
func TestWordsOfHandshakes(t *testing.T) {
	s := newShop(t)
	expired := s.pki.until(time.Now().Add(-time.Minute), "late")
	for _, x := range []struct {
		name   string
		terms  func(*api.Termination)
		config *tls.Config
		words  string
	}{
		{"an old client", nil, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "the client offers only TLS 1.0 to 1.1"},
		{"one version", func(x *api.Termination) { x.MinVersion = "v1.3" }, &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12}, "the client offers only TLS 1.2"},
		{"no trust", func(x *api.Termination) { x.MinVersion = "" }, &tls.Config{RootCAs: x509.NewCertPool()}, "the client hung up during the handshake: bad certificate"},
		{"nothing shown", func(x *api.Termination) {
			x.ClientCA, x.RequireClientCertificate = &api.Material{Chain: "ca"}, true
		}, &tls.Config{}, "the client shows no certificate"},
		{"an expired certificate", nil, &tls.Config{Certificates: []tls.Certificate{*expired}}, "the client's certificate does not verify: certificate has expired"},
	} {
		s.open(x.terms)
		conn, err := net.Dial("tcp", at("127.0.0.1", s.port))
		if err != nil {
			t.Fatal(err)
		}
		x.config.ServerName = "shop.example"
		if x.config.RootCAs == nil {
			x.config.RootCAs = s.pki.pool
		}
		tls.Client(conn, x.config).Handshake()
		r := <-s.refusals
		conn.Close()
		if r.Reason != api.ReasonHandshake || !strings.HasPrefix(r.Words, x.words) || r.Object.Name != "shop" || r.Route.Match != "sni shop.example" {
			t.Errorf("%s: %+v", x.name, r)
		}
	}
	overload := denial{api.ReasonOverload, "local error: tls: bad record MAC"}
	if d := new(visit).explain(overload).(denial); d != (denial{api.ReasonOverload, "the client hung up during the handshake"}) {
		t.Errorf("%+v", d)
	}
	if err := errors.New("no complete handshake in time"); new(visit).explain(err) != err {
		t.Error("words that say enough were changed")
	}
	if words := versions([]uint16{0x1a1a, 0x0300}); words != "versions that are not TLS 1.0 to 1.3" {
		t.Error(words)
	}
}

// What has expired is told, and goes on serving; what is about to is noted.
func TestExpired(t *testing.T) {
	s := newShop(t)
	day := 24 * time.Hour
	show := func(end time.Time) *api.RouteStatus {
		s.put("cert", &secret.Material{Certificate: s.pki.until(end, "shop.example"), Version: end.String()})
		s.open(nil)
		return s.Status(mapping("shop"))
	}
	if x := show(time.Now().Add(15 * day)); x.Condition(api.ConditionResolved) != nil || len(x.Notes) != 0 {
		t.Errorf("%+v", x)
	}
	soon := time.Now().Add(13 * day)
	if x := show(soon); x.Condition(api.ConditionResolved) != nil || len(x.Notes) != 1 || x.Notes[0] != "the certificate in file cert expires on "+soon.UTC().Format(time.RFC3339) {
		t.Errorf("%+v", x)
	}
	end := time.Now().Add(-time.Minute)
	x := show(end)
	c := x.Condition(api.ConditionResolved)
	if c == nil || c.Status != "False" || c.Reason != "EXPIRED" || c.Message != "the certificate in file cert expired on "+end.UTC().Format(time.RFC3339)+": clients refuse it" || len(x.Notes) != 0 {
		t.Errorf("%+v", x)
	}
	if a := s.Ask(api.RouteQuestion{Port: s.port, SNI: "shop.example"}); a.Refused != "" {
		t.Error(a.Refused)
	}
	state, a, err := s.visit(&tls.Config{Time: func() time.Time { return end.Add(-time.Minute) }})
	if a == nil || !state.HandshakeComplete {
		t.Errorf("it serves no more: %v", err)
	}
	// It is asked what is so now, not what was so when it was loaded.
	e := s.table.Load().of[mapping("shop")][0].ending.Load()
	var early, told api.RouteStatus
	if e.tell(&early, end.Add(-15*day)); len(early.Conditions)+len(early.Notes) != 0 {
		t.Errorf("%+v", early)
	}
	told.Set(api.ConditionResolved, false, "NO_SECRET", "the table's own words", noon)
	if e.tell(&told, time.Now()); told.Conditions[0].Message != "the table's own words" {
		t.Errorf("%+v", told)
	}
}

// A Secret that is bound to one Service does not serve another, though both name it.
func TestBoundCertificate(t *testing.T) {
	s := newSite(t)
	cert := &secret.Material{Certificate: s.pki.leaf("x"), Version: "1"}
	s.Material = func(_ context.Context, m *api.Material) (*secret.Material, error) {
		if m.Service != "mine.ns" {
			return nil, errors.New("it is bound, and not for " + m.Service)
		}
		return cert, nil
	}
	s.run()
	port := freePort(t)
	secret := func(x *api.ServiceSpec) { x.Public.Certificate = &api.PublicCertificate{FromSecret: "cert"} }
	s.force(Input{Services: []*api.Service{public("mine.ns", port, local, ended("mine.x"), secret), public("other.ns", port, local, ended("other.x"), secret)},
		Secrets: map[string]*api.CertificateFacts{"cert": {HasKey: true}}})
	if status, message := condition(t, s.Status(service("mine.ns")), api.ConditionResolved); status != "True" {
		t.Error(message)
	}
	if status, message := condition(t, s.Status(service("other.ns")), api.ConditionResolved); status != "False" || message != "Secret/cert: it is bound, and not for other.ns" {
		t.Errorf("%q %s", status, message)
	}
	s.refusal(s.dial(at("127.0.0.1", port), helloOf(t, &tls.Config{ServerName: "other.x"})...), api.ReasonRouteRefused, "it is bound")
}

// The log of the process names an Object that refuses, and what it lacks, once.
func TestComplaints(t *testing.T) {
	s := newShop(t)
	var log bytes.Buffer
	s.Log = slog.New(slog.NewTextHandler(&log, nil))
	said := func() string {
		defer log.Reset()
		return log.String()
	}
	lacks := func(words string) {
		r := foreign("shop", 0, api.Bind{Address: "127.0.0.1", Port: s.port}, api.Match{SNI: "a"})
		other := r
		other.Match.SNI = "b"
		for _, x := range []*api.Route{&r, &other} {
			x.Terminate, x.Refused = &api.Termination{}, words
		}
		s.force(Input{Foreign: api.Routes{Routes: []api.Route{r, other}}})
	}
	for _, words := range []string{"Secret/ns/one is not there", "Secret/ns/two is not there"} {
		lacks(words)
		if got := said(); strings.Count(got, "a route refuses its connections") != 1 || !strings.Contains(got, `object=TCPMapping/ns/shop error="`+words+`"`) {
			t.Errorf("%s", got)
		}
		lacks(words)
		s.reload(context.Background())
		if got := said(); got != "" {
			t.Errorf("again: %s", got)
		}
	}
	s.open(nil)
	lacks("Secret/ns/two is not there")
	if got := said(); strings.Count(got, "two is not there") != 1 {
		t.Errorf("after it was there: %s", got)
	}
}
