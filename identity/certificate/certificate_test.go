package certificate_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/identity"
	"cardea/identity/certificate"
	"cardea/identity/identitytest"
)

const uid = "0b9f3a52-2c5e-4c6b-9a0e-3f6f0f3f7a11"

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// ca is an authority of the test.
type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (c ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue returns a certificate by c, or by itself if c has none.
func (c ca) issue(t testing.TB, template *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(1)
	parent := c.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newCA(t testing.TB) ca {
	c := ca{key: newKey(t)}
	c.cert = c.issue(t, &x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: start.Add(-time.Hour), NotAfter: start.Add(24 * time.Hour),
	}, c.key)
	return c
}

// template is that of a good certificate.
func template() *x509.Certificate {
	return &x509.Certificate{
		NotBefore: start, NotAfter: start.Add(4 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{certificate.SessionURI(uid)},
	}
}

func evidence(c *x509.Certificate) api.Evidence {
	return api.Evidence{Kind: api.EvidenceCertificate, Data: c.Raw}
}

func TestVerifier(t *testing.T) {
	c := newCA(t)
	leaf := c.issue(t, template(), newKey(t))
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	pool := c.pool()
	identitytest.Run(t, identitytest.Subject{
		Verifier: &certificate.Verifier{Roots: func() *x509.CertPool { return pool }}, Good: evidence(leaf), At: start,
		Want: identity.Claim{SessionUID: uid, KeySHA256: hex.EncodeToString(sum[:])},
	})
}

func TestValidity(t *testing.T) {
	c := newCA(t)
	pool := c.pool()
	leaf := c.issue(t, template(), newKey(t))
	long := template()
	long.NotAfter = start.Add(48 * time.Hour) // beyond its CA
	outlives := c.issue(t, long, newKey(t))
	cases := []struct {
		name    string
		leaf    *x509.Certificate
		at      time.Duration // since start
		ok      bool
		expired bool
	}{
		{"our clock is six minutes behind", leaf, -6 * time.Minute, false, false},
		{"our clock is five minutes behind", leaf, -5 * time.Minute, true, false},
		{"the first moment", leaf, 0, true, false},
		{"the last moment", leaf, 4 * time.Hour, true, false},
		{"our clock is five minutes ahead", leaf, 4*time.Hour + 5*time.Minute, true, false},
		{"our clock is more than that ahead", leaf, 4*time.Hour + 5*time.Minute + time.Second, false, true},
		{"five minutes after its CA", outlives, 24*time.Hour + 5*time.Minute, true, false},
		{"longer after its CA", outlives, 24*time.Hour + 5*time.Minute + time.Second, false, true},
	}
	warm := &certificate.Verifier{Roots: func() *x509.CertPool { return pool }}
	for _, l := range []*x509.Certificate{leaf, outlives} {
		if _, err := warm.Verify(evidence(l), start); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range cases {
		cold := &certificate.Verifier{Roots: warm.Roots}
		for how, v := range map[string]*certificate.Verifier{"cold": cold, "warm": warm} {
			claim, err := v.Verify(evidence(tc.leaf), start.Add(tc.at))
			if (err == nil) != tc.ok || (claim.SessionUID == uid) != tc.ok {
				t.Errorf("%s, %s: %+v, %v", tc.name, how, claim, err)
			}
			expired, is := errors.AsType[*identity.ExpiredError](err)
			if is != tc.expired || is && expired.Claim.SessionUID != uid {
				t.Errorf("%s, %s: %v; want an ExpiredError of the Session: %v", tc.name, how, err, tc.expired)
			}
			if !tc.ok && !(strings.Contains(err.Error(), "the clocks differ") && strings.Contains(err.Error(), start.Add(tc.at).Format(time.RFC3339))) {
				t.Errorf("%s, %s: %v; want words on the clocks", tc.name, how, err)
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	c, stranger := newCA(t), newCA(t)
	stranger.cert.RawSubject = c.cert.RawSubject
	pool := c.pool()
	v := &certificate.Verifier{Roots: func() *x509.CertPool { return pool }}
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	with := func(change func(*x509.Certificate)) api.Evidence {
		tm := template()
		change(tm)
		return evidence(c.issue(t, tm, newKey(t)))
	}
	good := c.issue(t, template(), newKey(t))
	flipped := slices.Clone(good.Raw)
	flipped[len(flipped)-1] ^= 1
	self := ca{key: newKey(t)}
	cases := map[string]api.Evidence{
		"another CA":       evidence(stranger.issue(t, template(), newKey(t))),
		"signed by itself": evidence(self.issue(t, template(), self.key)),
		"the CA itself":    evidence(c.cert),
		"a flipped bit":    {Kind: api.EvidenceCertificate, Data: flipped},
		"more behind it":   {Kind: api.EvidenceCertificate, Data: append(slices.Clone(good.Raw), 0)},
		"cut short":        {Kind: api.EvidenceCertificate, Data: good.Raw[:len(good.Raw)-1]},
		"empty":            {Kind: api.EvidenceCertificate},
		"too large":        {Kind: api.EvidenceCertificate, Data: bytes.Repeat([]byte{0x30}, 8<<10+1)},
		"another kind":     {Kind: api.EvidenceMemory, Data: good.Raw},
		"no kind":          {Data: good.Raw},
		"for servers": with(func(x *x509.Certificate) {
			x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}),
		"for both": with(func(x *x509.Certificate) {
			x.ExtKeyUsage = append(x.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}),
		"for anything": with(func(x *x509.Certificate) { x.ExtKeyUsage = nil }),
		"a CA below":   with(func(x *x509.Certificate) { x.IsCA, x.BasicConstraintsValid = true, true }),
		"no URI":       with(func(x *x509.Certificate) { x.URIs = nil }),
		"two URIs":     with(func(x *x509.Certificate) { x.URIs = append(x.URIs, certificate.SessionURI("other")) }),
		"one URI twice": with(func(x *x509.Certificate) {
			x.URIs = append(x.URIs, certificate.SessionURI(uid))
		}),
		"another URI":    with(func(x *x509.Certificate) { x.URIs = []*url.URL{uri("spiffe://session/" + uid)} }),
		"a longer URI":   with(func(x *x509.Certificate) { x.URIs = []*url.URL{uri("cardea://session/" + uid + "/x")} }),
		"a DNS name":     with(func(x *x509.Certificate) { x.DNSNames = []string{"api.cardea.internal"} }),
		"an address":     with(func(x *x509.Certificate) { x.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }),
		"a mail address": with(func(x *x509.Certificate) { x.EmailAddresses = []string{"a@example.com"} }),
	}
	for name, ev := range cases {
		for range 2 { // nothing that failed is remembered as good
			claim, err := v.Verify(ev, start)
			if err == nil || claim != (identity.Claim{}) || errors.Is(err, identity.ErrNobody) {
				t.Errorf("%s: %+v, %v; want an error", name, claim, err)
			}
		}
	}
	none := &certificate.Verifier{Roots: func() *x509.CertPool { return nil }}
	if _, err := none.Verify(evidence(good), start); err == nil {
		t.Error("verified against no CA at all")
	}
}

// Once the CA changes, what the old one issued is verified again, and fails.
func TestRootsChange(t *testing.T) {
	a, b := newCA(t), newCA(t)
	pool := a.pool()
	v := &certificate.Verifier{Roots: func() *x509.CertPool { return pool }}
	leaf := a.issue(t, template(), newKey(t))
	if _, err := v.Verify(evidence(leaf), start); err != nil {
		t.Fatal(err)
	}
	pool = b.pool()
	if _, err := v.Verify(evidence(leaf), start); err == nil {
		t.Error("a certificate of a CA that is gone was believed from memory")
	}
}

func TestConcurrentUse(t *testing.T) {
	c := newCA(t)
	pool := c.pool()
	v := &certificate.Verifier{Roots: func() *x509.CertPool { return pool }}
	var leaves []api.Evidence
	for range 8 {
		leaves = append(leaves, evidence(c.issue(t, template(), newKey(t))))
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 200 {
				if _, err := v.Verify(leaves[i%len(leaves)], start); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func FuzzVerify(f *testing.F) {
	c := newCA(f)
	pool := c.pool()
	v := &certificate.Verifier{Roots: func() *x509.CertPool { return pool }}
	leaf := c.issue(f, template(), newKey(f))
	f.Add(leaf.Raw)
	f.Add(c.cert.Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		claim, err := v.Verify(api.Evidence{Kind: api.EvidenceCertificate, Data: der}, start)
		if err == nil && !bytes.Equal(der, leaf.Raw) {
			t.Fatalf("believed what was never issued: %+v", claim)
		}
	})
}

func BenchmarkVerifyAgain(b *testing.B) {
	c := newCA(b)
	pool := c.pool()
	v := &certificate.Verifier{Roots: func() *x509.CertPool { return pool }}
	ev := evidence(c.issue(b, template(), newKey(b)))
	for b.Loop() {
		if _, err := v.Verify(ev, start); err != nil {
			b.Fatal(err)
		}
	}
}
