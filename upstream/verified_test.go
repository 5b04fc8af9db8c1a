package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/secret"
)

// mapping is a TCPMapping whose upstream is spoken TLS with.
func mapping(port string, t *api.UpstreamTLS) api.Destination {
	return api.Destination{
		Service: "TCPMapping/default/db", Object: api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Namespace: "default", Name: "db"},
		Config: secured("tcp://db.corp:"+port, t),
	}
}

// fromFile is a Material by name.
func fromFile(name string) *api.Material { return &api.Material{Chain: name} }

// An upstream that does not verify is reported, unless that is to be more.
func TestReport(t *testing.T) {
	ca := newIssuer(t, "our CA")
	cas := map[string]*secret.Material{"ca": {CAs: ca.pool(), Version: "1"}}
	report := func(m *api.Material) *api.UpstreamTLS {
		return &api.UpstreamTLS{CA: m, Verification: api.VerificationReport}
	}
	for name, c := range map[string]struct {
		cert  tls.Certificate
		tls   *api.UpstreamTLS
		words string // why it does not verify
	}{
		"good":           {ca.issue(t, nil, "db.corp"), report(fromFile("ca")), ""},
		"unknown issuer": {ca.issue(t, nil, "db.corp"), report(nil), "unknown authority"},
		"another name":   {ca.issue(t, nil, "web.corp"), report(fromFile("ca")), `is for "web.corp", not for "db.corp"`},
		"expired": {ca.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "db.corp"), report(fromFile("ca")),
			"expired on"},
	} {
		t.Run(name, func(t *testing.T) {
			port := accepts(t, "127.0.0.1:0", greeting(&tls.Config{Certificates: []tls.Certificate{c.cert}}))
			d := newDialer()
			d.Hosts = named("db.corp", "127.0.0.1")
			d.Material = func(_ context.Context, m *api.Material, service, host string) (*secret.Material, error) {
				if service != "TCPMapping/default/db" || host != "db.corp" {
					t.Errorf("asked for %s for %s at %s", m, service, host)
				}
				return cas[m.Chain], nil
			}
			to := mapping(port, c.tls)
			if got := d.Verification(to.Object); got != nil {
				t.Errorf("before all: %+v", got)
			}
			for i := range 2 { // the second resumes the session
				conn, r, err := d.Dial(t.Context(), to)
				if err != nil {
					t.Fatal(err)
				}
				converses(t, conn)
				if did := conn.(*secureConn).ConnectionState().DidResume; did != (i == 1 && name != "expired") {
					t.Errorf("connection %d: resumed %v", i, did)
				}
				conn.Close()
				if r.Verified == nil || *r.Verified != (c.words == "") || !strings.Contains(r.Words, c.words) || (c.words == "") != (r.Words == "") {
					t.Errorf("connection %d: the report is %v, %q; want %q", i, r.Verified, r.Words, c.words)
				}
				if strings.Contains(r.Words, "spec.config") {
					t.Errorf("the words name a Service's field: %s", r.Words)
				}
			}
			got := d.Verification(to.Object)
			if got == nil || (got.Status == "True") != (c.words == "") || !strings.Contains(got.Message, c.words) || got.Type != api.ConditionUpstreamVerified || got.Since.IsZero() {
				t.Errorf("the condition is %+v", got)
			}
			// Nobody is resumed who would not be let in anew.
			strict := true
			d.RequireVerification = func() bool { return strict }
			conn, r, err := d.Dial(t.Context(), to)
			e, failed := errors.AsType[*Error](err)
			if failed != (c.words != "") || failed && (e.Reason != UpstreamTLS || !strings.Contains(e.Words, c.words)) {
				t.Errorf("where all must verify: %v", err)
			}
			if !failed {
				conn.Close()
				if r.Verified == nil || !*r.Verified {
					t.Errorf("where all must verify: %+v", r)
				}
			}
			before := d.Verification(to.Object)
			if strict = false; before.Since != got.Since {
				t.Errorf("the condition changed: %+v", before)
			}
			if conn, _, err = d.Dial(t.Context(), to); err != nil {
				t.Fatalf("and back: %v", err)
			}
			conn.Close()
		})
	}
}

// insecureSkipVerify is told of as what it is.
func TestInsecureReport(t *testing.T) {
	ca := newIssuer(t, "our CA")
	port := accepts(t, "127.0.0.1:0", greeting(&tls.Config{Certificates: []tls.Certificate{ca.issue(t, nil, "other")}}))
	d := newDialer()
	d.ForbidInsecure = func() bool { return false }
	c, r, err := d.Dial(t.Context(), destination("db.default", secured("tls://127.0.0.1:"+port, &api.UpstreamTLS{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r.Verified == nil || *r.Verified || !strings.Contains(r.Words, "insecureSkipVerify") {
		t.Errorf("the report is %+v", r)
	}
}

// What a foreign Object names is used: certificate, CA, revocation lists.
func TestMaterials(t *testing.T) {
	ca := newIssuer(t, "our CA")
	good, revoked, mine := ca.issue(t, nil, "db.corp"), ca.issue(t, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(66) }, "db.corp"), ca.issue(t, nil)
	list := func(until time.Time, serials ...int64) []*x509.RevocationList {
		template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: until}
		for _, n := range serials {
			template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: time.Now().Add(-time.Minute)})
		}
		der, err := x509.CreateRevocationList(rand.Reader, template, ca.cert, ca.key)
		if err != nil {
			t.Fatal(err)
		}
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.RevocationList{l}
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	materials := map[string]*secret.Material{
		"ca": {CAs: ca.pool(), Version: "1"}, "own": {Certificate: &mine, Version: "1"}, "crl": {CRLs: list(tomorrow, 66), Version: "1"},
		"old crl": {CRLs: list(time.Now().Add(-time.Minute)), Version: "1"}, "empty": {Version: "1"},
	}
	asked := make(chan []byte, 10)
	serve := func(cert tls.Certificate) string {
		return accepts(t, "127.0.0.1:0", greeting(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert,
			VerifyConnection: func(s tls.ConnectionState) error {
				var got []byte
				if len(s.PeerCertificates) > 0 {
					got = s.PeerCertificates[0].Raw
				}
				asked <- got
				return nil
			}}))
	}
	goodPort, revokedPort := serve(good), serve(revoked)
	for name, c := range map[string]struct {
		port  string
		tls   api.UpstreamTLS
		own   []byte
		words string // of the Error
	}{
		"all":            {goodPort, api.UpstreamTLS{CA: fromFile("ca"), Own: fromFile("own"), CRL: fromFile("crl")}, mine.Certificate[0], ""},
		"no certificate": {goodPort, api.UpstreamTLS{CA: fromFile("ca")}, nil, ""},
		"revoked":        {revokedPort, api.UpstreamTLS{CA: fromFile("ca"), CRL: fromFile("crl")}, nil, "it is revoked"},
		"an old list":    {goodPort, api.UpstreamTLS{CA: fromFile("ca"), CRL: fromFile("old crl")}, nil, "is outdated"},
		"no CA there":    {goodPort, api.UpstreamTLS{CA: fromFile("own")}, nil, "file own has no certificate of a CA"},
		"no own there":   {goodPort, api.UpstreamTLS{CA: fromFile("ca"), Own: fromFile("ca")}, nil, "file ca has no certificate with its private key"},
		"no list there":  {goodPort, api.UpstreamTLS{CA: fromFile("ca"), CRL: fromFile("ca")}, nil, "file ca has no revocation list"},
		"nothing there":  {goodPort, api.UpstreamTLS{CA: fromFile("gone")}, nil, "there is no gone"},
		"odd terms":      {goodPort, api.UpstreamTLS{CA: fromFile("ca"), TLSTerms: api.TLSTerms{CipherSuites: []string{"XYZ"}}}, nil, "XYZ"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDialer()
			d.Hosts = named("db.corp", "127.0.0.1")
			d.Material = func(_ context.Context, m *api.Material, _, _ string) (*secret.Material, error) {
				if got := materials[m.Chain]; got != nil {
					return got, nil
				}
				return nil, fmt.Errorf("there is no %s", m.Chain)
			}
			conn, _, err := d.Dial(t.Context(), mapping(c.port, &c.tls))
			if e, failed := errors.AsType[*Error](err); failed != (c.words != "") || failed && (e.Reason != UpstreamTLS || !strings.Contains(e.Words, c.words)) {
				t.Fatalf("error is %v, want %q", err, c.words)
			}
			if err != nil {
				for len(asked) > 0 {
					<-asked
				}
				return
			}
			converses(t, conn)
			conn.Close()
			if got := <-asked; !bytes.Equal(got, c.own) {
				t.Errorf("the upstream was shown %d bytes", len(got))
			}
		})
	}

	// Where it is only reported, a revoked one is too. And a new list ends sessions.
	d := newDialer()
	d.Hosts = named("db.corp", "127.0.0.1")
	current := &secret.Material{CRLs: list(tomorrow), Version: "1"}
	d.Material = func(_ context.Context, m *api.Material, _, _ string) (*secret.Material, error) {
		if m.Chain == "crl" {
			return current, nil
		}
		return materials[m.Chain], nil
	}
	for _, verification := range []api.Verification{api.VerificationReport, api.VerificationRequire} {
		current = &secret.Material{CRLs: list(tomorrow), Version: "1"}
		to := mapping(revokedPort, &api.UpstreamTLS{CA: fromFile("ca"), CRL: fromFile("crl"), Verification: verification})
		for _, want := range []bool{false, true} { // resumed
			conn, r, err := d.Dial(t.Context(), to)
			if err != nil || !*r.Verified {
				t.Fatal(err, r)
			}
			converses(t, conn)
			if got := conn.(*secureConn).ConnectionState().DidResume; got != want {
				t.Errorf("%s: resumed %v, want %v", verification, got, want)
			}
			conn.Close()
			<-asked
		}
		current = &secret.Material{CRLs: list(tomorrow, 66), Version: "2"}
		conn, r, err := d.Dial(t.Context(), to)
		if (err == nil) != (verification == api.VerificationReport) {
			t.Fatalf("%s: %v", verification, err)
		}
		if err == nil {
			if *r.Verified || !strings.Contains(r.Words, "revoked") || conn.(*secureConn).ConnectionState().DidResume {
				t.Errorf("the report is %+v", r)
			}
			conn.Close()
			<-asked
		}
	}
}

// The terms of TLS are kept to, and the protocols are offered.
func TestTerms(t *testing.T) {
	ca := newIssuer(t, "our CA")
	cas := []string{ca.pem()}
	certs := []tls.Certificate{ca.issue(t, nil, "127.0.0.1")}
	saw := make(chan *tls.ClientHelloInfo, 1)
	config := &tls.Config{Certificates: certs, MinVersion: tls.VersionTLS10, NextProtos: []string{"b", "a"}}
	config.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		saw <- info
		return nil, nil
	}
	port := accepts(t, "127.0.0.1:0", greeting(config))
	terms := api.TLSTerms{MinVersion: "v1.0", MaxVersion: "v1.2", CipherSuites: []string{"ECDHE-ECDSA-AES128-SHA"}, Curves: []string{"P-384"}}
	c := dial(t, newDialer(), secured("tls://127.0.0.1:"+port, &api.UpstreamTLS{TrustedCAs: cas, ALPN: []string{"a", "c"}, TLSTerms: terms}))
	info, state := <-saw, c.(*secureConn).ConnectionState()
	if state.NegotiatedProtocol != "a" || state.Version != tls.VersionTLS12 || state.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA || state.CurveID != tls.CurveP384 {
		t.Errorf("negotiated %+v", state)
	}
	if fmt.Sprint(info.SupportedProtos, len(info.CipherSuites), info.SupportedCurves) != fmt.Sprint([]string{"a", "c"}, 1, []tls.CurveID{tls.CurveP384}) {
		t.Errorf("offered %v, %v, %v", info.SupportedProtos, info.CipherSuites, info.SupportedCurves)
	}
	old := accepts(t, "127.0.0.1:0", greeting(&tls.Config{Certificates: certs, MinVersion: tls.VersionTLS13}))
	_, err := dialTo(newDialer(), t.Context(), "db.default", secured("tls://127.0.0.1:"+old, &api.UpstreamTLS{TrustedCAs: cas, TLSTerms: terms}))
	if err == nil || !strings.Contains(err.Error(), "no TLS from TLS 1.0 to TLS 1.2") {
		t.Errorf("error is %v", err)
	}
}

// Who reports is in the way of nobody: without TLS there is no verdict.
func TestNoVerdict(t *testing.T) {
	_, port := listen(t, "127.0.0.1:0")
	d := newDialer()
	c, r, err := d.Dial(t.Context(), destination("db.default", config("tcp://127.0.0.1:"+port)))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, ok := c.(*net.TCPConn); !ok || r != (api.DialReport{Hold: r.Hold}) {
		t.Errorf("a %T, %+v", c, r)
	}
}
