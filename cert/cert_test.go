package cert_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/cert"
	"cardea/identity"
	"cardea/identity/certificate"
	"cardea/secret"
	"cardea/store"
	"cardea/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	domain = "cardea.internal"
	uid    = "0b9f3a52-2c5e-4c6b-9a0e-3f6f0f3f7a11"
)

// A clock that a test sets.
type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

func newClock() *clock { return &clock{time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func keeper(t testing.TB) *secret.Keeper {
	t.Helper()
	k, err := secret.New(bytes.Repeat([]byte{7}, secret.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newStore(t testing.TB) store.Store {
	t.Helper()
	st := memory.New()
	t.Cleanup(func() { st.Close() })
	return st
}

func open(t testing.TB, st store.Store, c *clock) *cert.Authority {
	t.Helper()
	a, err := cert.Open(t.Context(), st, keeper(t), domain, c.now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func stored(t *testing.T, st store.Store, name string) (s *api.Secret) {
	t.Helper()
	if err := st.View(t.Context(), func(r store.Reader) (err error) {
		s, err = store.Get[*api.Secret](r, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: name})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCA(t *testing.T) {
	c := newClock()
	st := newStore(t)
	a := open(t, st, c)
	roots := a.Roots()
	if len(roots) != 1 {
		t.Fatalf("%d roots", len(roots))
	}
	ca := roots[0]
	if ca.Subject.CommonName != "Cardea CA "+domain || !ca.IsCA || ca.MaxPathLen != 0 || !ca.MaxPathLenZero ||
		ca.PublicKeyAlgorithm != x509.ECDSA || ca.KeyUsage != x509.KeyUsageCertSign {
		t.Errorf("the CA is %+v", ca)
	}
	if years := ca.NotAfter.Sub(c.t).Hours() / 24 / 365; years != 10 {
		t.Errorf("the CA is valid for %v years", years)
	}
	if ca.SerialNumber.Sign() != 1 || ca.SerialNumber.BitLen() < 64 {
		t.Errorf("serial number %v is not random", ca.SerialNumber)
	}
	sum := sha256.Sum256(ca.Raw)
	if a.Fingerprint() != hex.EncodeToString(sum[:]) {
		t.Errorf("fingerprint is %s", a.Fingerprint())
	}
	s := stored(t, st, "cluster-ca")
	if !s.Metadata.IsSystem || s.Metadata.UID == "" || s.Metadata.ResourceVersion == "" || !s.Metadata.CreatedAt.Equal(c.t) || s.Data != nil {
		t.Errorf("the Secret is %+v", s)
	}
	var p api.Problems
	if s.Validate(&p); p.Err() != nil {
		t.Error(p.Err())
	}
}

// Whoever opens a store gets the CA that is there, also when all open it at once.
func TestOneCAPerStore(t *testing.T) {
	c := newClock()
	st := newStore(t)
	prints, journals := make([]string, 8), make([]crypto.Signer, 8)
	var all sync.WaitGroup
	for i := range prints {
		all.Go(func() {
			a, err := cert.Open(t.Context(), st, keeper(t), domain, c.now)
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = a.Fingerprint()
			if journals[i], err = a.JournalSigner(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for i := range prints {
		if prints[i] != prints[0] || !journals[0].(ed25519.PrivateKey).Equal(journals[i]) {
			t.Fatalf("the %d-th got another CA or another key", i)
		}
	}
	if again := open(t, st, c); again.Fingerprint() != prints[0] {
		t.Error("opened again, and the CA is another")
	}
	if other := open(t, newStore(t), c); other.Fingerprint() == prints[0] {
		t.Error("another store has the same CA")
	}
}

func TestJournalSigner(t *testing.T) {
	st := newStore(t)
	a := open(t, st, newClock())
	key, err := a.JournalSigner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	msg := []byte("head")
	sig, err := key.Sign(rand.Reader, msg, crypto.Hash(0))
	if err != nil || !ed25519.Verify(key.Public().(ed25519.PublicKey), msg, sig) {
		t.Errorf("the key does not sign: %v", err)
	}
	if s := stored(t, st, "journal-key"); !s.Metadata.IsSystem {
		t.Error("the Secret journal-key can be deleted")
	}
}

func TestOpenRefuses(t *testing.T) {
	c := newClock()
	for _, d := range []string{"", "Cardea.internal", "cardea..internal", ".internal", "internal.", "a b", "-a.b", strings.Repeat("a", 64)} {
		if _, err := cert.Open(t.Context(), newStore(t), keeper(t), d, c.now); err == nil {
			t.Errorf("the domain %q was taken", d)
		}
	}

	st := newStore(t)
	open(t, st, c)
	other, err := secret.New(bytes.Repeat([]byte{8}, secret.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Open(t.Context(), st, other, domain, c.now); err == nil || !strings.Contains(err.Error(), "key file") {
		t.Errorf("with another key file: %v; want an error, and never a new CA", err)
	}

	late := newClock()
	late.advance(10*365*24*time.Hour + time.Second)
	if _, err := cert.Open(t.Context(), st, keeper(t), domain, late.now); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after ten years: %v", err)
	}

	// A key without a certificate in the CA's place.
	if _, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
		s, err := store.Get[*api.Secret](tx, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: "cluster-ca"})
		if err != nil {
			return err
		}
		_, key, _ := ed25519.GenerateKey(rand.Reader)
		if err := keeper(t).SealSigner(s, key); err != nil {
			return err
		}
		rec, err := store.Encode(s)
		if err != nil {
			return err
		}
		return tx.Put(rec)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Open(t.Context(), st, keeper(t), domain, c.now); err == nil || !strings.Contains(err.Error(), "cluster-ca") {
		t.Errorf("a CA without a certificate: %v", err)
	}
}

// addr is a connection's local address, and nothing else of it.
type addr struct {
	net.Conn
	local net.Addr
}

func (a addr) LocalAddr() net.Addr { return a.local }

func TestServerCertificate(t *testing.T) {
	c := newClock()
	a := open(t, newStore(t), c)
	tcp := func(s string) net.Addr {
		t.Helper()
		ap, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return ap
	}
	cases := []struct {
		sni   string
		local net.Addr
		want  []string // names and addresses; nil is an error
	}{
		{"api.cardea.internal", nil, []string{"api.cardea.internal"}},
		{"API.Cardea.Internal", nil, []string{"api.cardea.internal"}},
		{"gateway.cardea.internal", nil, []string{"gateway.cardea.internal"}},
		{"nats.svc.cardea.internal", nil, []string{"*.svc.cardea.internal"}},
		{"nats.default.svc.cardea.internal", nil, []string{"*.default.svc.cardea.internal"}},
		{"no-such.no-such.svc.cardea.internal", nil, []string{"*.no-such.svc.cardea.internal"}},
		{"", tcp("127.0.0.1:8443"), []string{"api.cardea.internal", "127.0.0.1"}},
		{"", tcp("[::1]:8443"), []string{"api.cardea.internal", "::1"}},
		{"", tcp("[::ffff:10.0.0.7]:8443"), []string{"api.cardea.internal", "10.0.0.7"}},
		{"", tcp("[fe80::1%1]:8443"), []string{"api.cardea.internal", "fe80::1"}},
		{"", &net.UnixAddr{Name: "/run/x", Net: "unix"}, []string{"api.cardea.internal"}},
		{"", nil, []string{"api.cardea.internal"}},
		{"cardea.internal", nil, nil},
		{"svc.cardea.internal", nil, nil},
		{".svc.cardea.internal", nil, nil},
		{"a.b.c.svc.cardea.internal", nil, nil},
		{"a..svc.cardea.internal", nil, nil},
		{"*.default.svc.cardea.internal", nil, nil},
		{"a.*.svc.cardea.internal", nil, nil},
		{"other.cardea.internal", nil, nil},
		{"apicardea.internal", nil, nil},
		{"x.api.cardea.internal", nil, nil},
		{"api.cardea.internal.", nil, nil},
		{"api.example.com", nil, nil},
		{"nats.svc.example.com", nil, nil},
		{"nats.svc", nil, nil},
		{"\u212a.svc.cardea.internal", nil, nil}, // the Kelvin sign, whose lower case is k
		{"127.0.0.1", nil, nil},
		{strings.Repeat("a", 64) + ".svc.cardea.internal", nil, nil},
	}
	for _, tc := range cases {
		got, err := a.ServerCertificate(&tls.ClientHelloInfo{ServerName: tc.sni, Conn: addr{local: tc.local}})
		if tc.want == nil {
			if err == nil {
				t.Errorf("%q: got a certificate for %v", tc.sni, got.Leaf.DNSNames)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.sni, err)
			continue
		}
		names := slices.Clone(got.Leaf.DNSNames)
		for _, ip := range got.Leaf.IPAddresses {
			names = append(names, ip.String())
		}
		if !slices.Equal(names, tc.want) {
			t.Errorf("%q at %v: names are %v, want %v", tc.sni, tc.local, names, tc.want)
		}
		if len(got.Certificate) != 2 || !bytes.Equal(got.Certificate[1], a.Roots()[0].Raw) {
			t.Errorf("%q: the chain does not end in the CA", tc.sni)
		}
		if _, err := got.Leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: c.t.Add(-time.Minute), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			t.Errorf("%q: %v", tc.sni, err)
		}
	}
	if _, err := a.ServerCertificate(&tls.ClientHelloInfo{}); err != nil {
		t.Errorf("a hello without name and connection: %v", err)
	}
}

func TestServerCertificateIsKeptAndRenewed(t *testing.T) {
	c := newClock()
	a := open(t, newStore(t), c)
	get := func(name string) *tls.Certificate {
		t.Helper()
		got, err := a.ServerCertificate(&tls.ClientHelloInfo{ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		if left := got.Leaf.NotAfter.Sub(c.t); left < 12*time.Hour || left > 24*time.Hour {
			t.Fatalf("the certificate is valid for %v", left)
		}
		return got
	}
	first := get("a.one.svc.cardea.internal")
	c.advance(12 * time.Hour)
	if get("b.one.svc.cardea.internal") != first {
		t.Error("two Services of a Namespace have different certificates")
	}
	c.advance(time.Second)
	second := get("a.one.svc.cardea.internal")
	if second == first {
		t.Error("not renewed at half of its life")
	}
	if get("a.one.svc.cardea.internal") != second {
		t.Error("the renewed certificate is not kept")
	}
	c.advance(-48 * time.Hour)
	if get("a.one.svc.cardea.internal") == second {
		t.Error("not replaced when the clock was set back")
	}
	// A stranger asks for many names: what is used stays, the rest is forgotten.
	api := get("api.cardea.internal")
	forgotten := get("x.first.svc.cardea.internal")
	for i := range 300 {
		get(fmt.Sprintf("x.n%d.svc.cardea.internal", i))
		if get("api.cardea.internal") != api {
			t.Fatalf("forgot a certificate that is used, after %d others", i)
		}
	}
	if get("x.first.svc.cardea.internal") == forgotten {
		t.Error("kept more than 256 certificates")
	}
}

// A public port's certificate is for the Service's own name and for those of other
// domains, never for another name of the cluster.
func TestNamesOfAPublicPort(t *testing.T) {
	const own = "web.ns.svc.cardea.internal"
	c := newClock()
	a := open(t, newStore(t), c)
	plain, err := a.NameCertificate(own)
	if err != nil || !slices.Equal(plain.Leaf.DNSNames, []string{own}) {
		t.Fatalf("%v, %v", plain, err)
	}
	both, err := a.NameCertificate("Web.ns.svc.cardea.internal", "*.example.org", "a_b.example.com")
	if err != nil || !slices.Equal(both.Leaf.DNSNames, []string{own, "*.example.org", "a_b.example.com"}) {
		t.Fatalf("%v, %v", both, err)
	}
	for _, name := range []string{own, "x.example.org", "a_b.example.com"} {
		if _, err := both.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: a.Pool(), CurrentTime: c.t}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if again, _ := a.NameCertificate(own); again != plain {
		t.Error("the certificate for one name is not kept")
	}
	if again, _ := a.NameCertificate(own, "*.example.org", "a_b.example.com"); again != both {
		t.Error("the certificate for more names is not kept")
	}
	for _, more := range []string{"api.cardea.internal", "other.ns.svc.cardea.internal", "*.svc.cardea.internal", "*.cardea.internal", "cardea.internal", "*", "*.*.x", "", "a..b", "Upper.x", "a b"} {
		if got, err := a.NameCertificate(own, "www.example.com", more); err == nil {
			t.Errorf("%q: %v", more, got.Leaf.DNSNames)
		}
	}
	for _, name := range []string{"api.cardea.internal", "www.example.com", "", "*.ns.svc.cardea.internal"} {
		if _, err := a.NameCertificate(name, "www.example.com"); err == nil {
			t.Errorf("a certificate for %q", name)
		}
	}
}

func TestServerCertificateConcurrently(t *testing.T) {
	a := open(t, newStore(t), newClock())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 100 {
				if _, err := a.ServerCertificate(&tls.ClientHelloInfo{ServerName: fmt.Sprintf("x.n%d.svc.cardea.internal", i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// newCSR returns a CSR of the kind that a device makes.
func newCSR(t testing.TB, key any, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSessionCertificate(t *testing.T) {
	c := newClock()
	a := open(t, newStore(t), c)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	evil := &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "api." + domain},
		DNSNames:    []string{"api." + domain},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		URIs:        []*url.URL{certificate.SessionURI("another")},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}, // a CA
		},
	}
	v := &certificate.Verifier{Roots: a.Pool}
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "Ed25519": ed} {
		der, hash, err := a.SessionCertificate(newCSR(t, key, evil), uid, 0, c.t.Add(24*time.Hour))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo); hash != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: the hash is not that of the certificate's key", name)
		}
		if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(leaf.PublicKey) {
			t.Errorf("%s: the certificate is for another key", name)
		}
		if leaf.IsCA || len(leaf.DNSNames)+len(leaf.IPAddresses) > 0 || leaf.Subject.CommonName != "" ||
			len(leaf.URIs) != 1 || leaf.URIs[0].String() != "cardea://session/"+uid ||
			!slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
			t.Errorf("%s: the CSR decided what the certificate says: %+v", name, leaf)
		}
		if !leaf.NotBefore.Equal(c.t.Add(-5*time.Minute)) || !leaf.NotAfter.Equal(c.t.Add(4*time.Hour)) {
			t.Errorf("%s: valid from %v to %v", name, leaf.NotBefore, leaf.NotAfter)
		}
		if leaf.SerialNumber.BitLen() < 64 {
			t.Errorf("%s: serial number %v", name, leaf.SerialNumber)
		}
		claim, err := v.Verify(api.Evidence{Kind: api.EvidenceCertificate, Data: der}, c.t)
		if want := (identity.Claim{SessionUID: uid, KeySHA256: hash}); err != nil || claim != want {
			t.Errorf("%s: it proves %+v, %v; want %+v", name, claim, err, want)
		}
	}
}

func TestSessionCertificateEndsWithTheSession(t *testing.T) {
	c := newClock()
	a := open(t, newStore(t), c)
	csr := newCSR(t, ecKey(t, elliptic.P256()), &x509.CertificateRequest{})
	der, _, err := a.SessionCertificate(csr, uid, 0, c.t.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil || !leaf.NotAfter.Equal(c.t.Add(time.Hour)) {
		t.Errorf("valid until %v (%v), and the Session ends at %v", leaf.NotAfter, err, c.t.Add(time.Hour))
	}
	if _, _, err := a.SessionCertificate(csr, uid, 0, c.t); err == nil {
		t.Error("issued for a Session that has ended")
	}
	for _, bad := range []string{"", "A", "a/b", "a?b", strings.Repeat("a", 65)} {
		if _, _, err := a.SessionCertificate(csr, bad, 0, c.t.Add(time.Hour)); err == nil {
			t.Errorf("issued for the uid %q", bad)
		}
	}
	ca := a.Roots()[0].NotAfter
	c.t = ca.Add(-time.Hour)
	if der, _, err = a.SessionCertificate(csr, uid, 0, ca.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil || !leaf.NotAfter.Equal(ca) {
		t.Errorf("valid until %v (%v), and its CA until %v", leaf.NotAfter, err, ca)
	}
}

func TestCSRRefuses(t *testing.T) {
	a := open(t, newStore(t), newClock())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := newCSR(t, ecKey(t, elliptic.P256()), &x509.CertificateRequest{})
	flipped := slices.Clone(good)
	flipped[len(flipped)-1] ^= 1
	// Another's key under one's own signature.
	stolen := slices.Clone(good)
	other := newCSR(t, ecKey(t, elliptic.P256()), &x509.CertificateRequest{})
	parsed, err := x509.ParseCertificateRequest(good)
	if err != nil {
		t.Fatal(err)
	}
	otherParsed, err := x509.ParseCertificateRequest(other)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(stolen, parsed.RawSubjectPublicKeyInfo)
	copy(stolen[at:], otherParsed.RawSubjectPublicKeyInfo)
	for name, csr := range map[string][]byte{
		"nothing":        nil,
		"text":           []byte("-----BEGIN CERTIFICATE REQUEST-----"),
		"RSA":            newCSR(t, rsaKey, &x509.CertificateRequest{}),
		"P-521":          newCSR(t, ecKey(t, elliptic.P521()), &x509.CertificateRequest{}),
		"P-224":          newCSR(t, ecKey(t, elliptic.P224()), &x509.CertificateRequest{}),
		"a flipped bit":  flipped,
		"more behind it": append(slices.Clone(good), 0),
		"cut short":      good[:len(good)-1],
		"another's key":  stolen,
		"too large":      newCSR(t, ecKey(t, elliptic.P256()), &x509.CertificateRequest{DNSNames: slices.Repeat([]string{strings.Repeat("a", 60)}, 200)}),
	} {
		der, hash, err := a.SessionCertificate(csr, uid, 0, time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
		if !api.HasCode(err, api.CodeInvalid) || der != nil || hash != "" {
			t.Errorf("%s: %x, %q, %v; want INVALID", name, der, hash, err)
		}
	}
}

// A client that pins the CA reaches the API by name and by address, proves its
// Session, and is refused a name that is not the cluster's.
func TestHandshake(t *testing.T) {
	c := &clock{time.Now()}
	a := open(t, newStore(t), c)
	key := ecKey(t, elliptic.P256())
	der, hash, err := a.SessionCertificate(newCSR(t, key, &x509.CertificateRequest{}), uid, 0, c.t.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: a.ServerCertificate, ClientAuth: tls.RequestClientCert})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	defer l.Close()
	peers := make(chan []*x509.Certificate, 1)
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			server := conn.(*tls.Conn)
			if server.HandshakeContext(t.Context()) == nil {
				peers <- server.ConnectionState().PeerCertificates
			}
			conn.Close()
		}
	})
	client := func(name string) error {
		d := tls.Dialer{Config: &tls.Config{
			RootCAs: a.Pool(), ServerName: name,
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		}}
		conn, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		peer := <-peers
		if len(peer) != 1 {
			return errors.New("the client's certificate did not arrive")
		}
		v := &certificate.Verifier{Roots: a.Pool}
		claim, err := v.Verify(api.Evidence{Kind: api.EvidenceCertificate, Data: peer[0].Raw}, time.Now())
		if err == nil && claim != (identity.Claim{SessionUID: uid, KeySHA256: hash}) {
			err = fmt.Errorf("claim is %+v", claim)
		}
		return err
	}
	for _, name := range []string{"", "127.0.0.1", "api.cardea.internal", "gateway.cardea.internal", "nats.default.svc.cardea.internal"} {
		if err := client(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := client("example.com"); err == nil {
		t.Error("a certificate for example.com")
	}
}

func FuzzParseCSR(f *testing.F) {
	f.Add(newCSR(f, ecKey(f, elliptic.P256()), &x509.CertificateRequest{}))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(newCSR(f, ed, &x509.CertificateRequest{}))
	f.Fuzz(func(t *testing.T, der []byte) {
		key, hash, err := cert.ParseCSR(der)
		if err != nil {
			if key != nil || hash != "" || !api.HasCode(err, api.CodeInvalid) {
				t.Fatalf("%v, %q beside %v", key, hash, err)
			}
			return
		}
		spki, err := x509.MarshalPKIXPublicKey(key)
		if sum := sha256.Sum256(spki); err != nil || hash != hex.EncodeToString(sum[:]) {
			t.Fatalf("the hash %q is not that of the key", hash)
		}
	})
}

func FuzzServerName(f *testing.F) {
	f.Add("nats.default.svc.cardea.internal")
	f.Add("api.cardea.internal")
	a := open(f, newStore(f), newClock())
	f.Fuzz(func(t *testing.T, sni string) {
		c, err := a.ServerCertificate(&tls.ClientHelloInfo{ServerName: sni})
		if err == nil && sni != "" && c.Leaf.VerifyHostname(sni) != nil {
			t.Fatalf("%q got a certificate for %v", sni, c.Leaf.DNSNames)
		}
	})
}
