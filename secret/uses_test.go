package secret

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/store"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newUses returns Uses of an empty store at noon.
func newUses(t testing.TB) *Uses {
	return &Uses{Keeper: newKeeper(t, 1), Store: newStore(t), Now: func() time.Time { return noon }}
}

func (u *Uses) add(t *testing.T, name, value string, change ...func(*api.Secret)) {
	t.Helper()
	if err := add(t.Context(), u.Store, u.Keeper, name, value, change...); err != nil {
		t.Fatal(err)
	}
}

// A chain is a certificate with its key and its issuers.
type chain struct {
	key                      crypto.Signer
	leaf, intermediate, root *x509.Certificate
}

func newChain(t *testing.T, key crypto.Signer) chain {
	t.Helper()
	issue := func(name string, public crypto.PublicKey, parent *x509.Certificate, by crypto.Signer) *x509.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour)}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	rootKey, _ := keys(t)
	betweenKey, _ := keys(t)
	c := chain{key: key}
	c.root = issue("root", rootKey.Public(), nil, rootKey)
	c.intermediate = issue("between", betweenKey.Public(), c.root, rootKey)
	c.leaf = issue("leaf", key.Public(), c.intermediate, betweenKey)
	return c
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func certPEM(c *x509.Certificate) string { return block("CERTIFICATE", c.Raw) }

func pkcs8(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", der)
}

// forms returns keys of each kind, and how openssl writes them.
func forms(t *testing.T) map[string]struct {
	key crypto.Signer
	pem string
} {
	t.Helper()
	type form = struct {
		key crypto.Signer
		pem string
	}
	ec, ed := keys(t)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]form{
		"ECDSA":        {ec, pkcs8(t, ec)},
		"Ed25519":      {ed, pkcs8(t, ed)},
		"RSA":          {rs, pkcs8(t, rs)},
		"EC key":       {ec, block("EC PARAMETERS", []byte{6, 0}) + block("EC PRIVATE KEY", sec1)},
		"RSA PKCS #1":  {rs, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs))},
		"with a story": {ec, "Bag Attributes\n  friendlyName: x\n" + pkcs8(t, ec)},
	}
}

// The key may be of any kind, and stand anywhere.
func TestCertificateForms(t *testing.T) {
	for name, f := range forms(t) {
		c := newChain(t, f.key)
		parts := []string{f.pem, certPEM(c.leaf), certPEM(c.intermediate), certPEM(c.root)}
		for i, order := range [][]int{{0, 1, 2, 3}, {1, 2, 3, 0}, {3, 2, 0, 1}, {2, 1, 0, 3}} {
			u := newUses(t)
			var value strings.Builder
			for _, p := range order {
				value.WriteString(parts[p])
			}
			u.add(t, "mine", value.String())
			got, err := u.Certificate(t.Context(), "mine", "db.default", "db.corp")
			if err != nil {
				t.Errorf("%s, order %d: %v", name, i, err)
				continue
			}
			want := [][]byte{c.leaf.Raw, c.intermediate.Raw, c.root.Raw}
			if !got.Leaf.Equal(c.leaf) || !slices.EqualFunc(got.Certificate, want, bytes.Equal) {
				t.Errorf("%s, order %d: the chain is not leaf, intermediate, root", name, i)
			}
			signer, ok := got.PrivateKey.(crypto.Signer)
			if !ok || !f.key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(signer.Public()) {
				t.Errorf("%s, order %d: the key is a %T", name, i, got.PrivateKey)
			}
		}
	}
}

// What is handed out signs, and is not the key.
func TestCertificateKeepsItsKey(t *testing.T) {
	for name, f := range forms(t) {
		c := newChain(t, f.key)
		u := newUses(t)
		u.add(t, "mine", f.pem+certPEM(c.leaf))
		got, err := u.Certificate(t.Context(), "mine", "db.default", "db.corp")
		if err != nil {
			t.Fatal(err)
		}
		switch got.PrivateKey.(type) {
		case *ecdsa.PrivateKey, *rsa.PrivateKey:
			t.Errorf("%s: the key itself was handed out", name)
		}
		if _, err := x509.MarshalPKCS8PrivateKey(got.PrivateKey); err == nil {
			t.Errorf("%s: what was handed out can be written down", name)
		}
		var forbidden []string
		if ec, ok := f.key.(*ecdsa.PrivateKey); ok {
			b, err := ec.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			forbidden = append(forbidden, hex.EncodeToString(b), base64.StdEncoding.EncodeToString(b), new(big.Int).SetBytes(b).String(), fmt.Sprint(b)[1:40])
		}
		if ed, ok := f.key.(interface{ Seed() []byte }); ok {
			forbidden = append(forbidden, hex.EncodeToString(ed.Seed()), fmt.Sprint(ed.Seed())[1:40])
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s"} {
			text := fmt.Sprintf(verb, got.PrivateKey) + fmt.Sprintf(verb, got)
			for _, no := range forbidden {
				if strings.Contains(text, no) {
					t.Errorf("%s: %s prints the key", name, verb)
				}
			}
		}
		if b, err := json.Marshal(got.PrivateKey); err == nil && len(b) > 2 {
			t.Errorf("%s: JSON of the key is %s", name, b)
		}
		// It does what TLS asks of it, with each version.
		server := newChain(t, f.key)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			shake(t, got, tls.Certificate{Certificate: [][]byte{server.leaf.Raw}, PrivateKey: server.key}, version)
		}
	}
}

// shake makes a handshake in which the client proves c.
func shake(t *testing.T, c *tls.Certificate, server tls.Certificate, version uint16) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = conn.(*tls.Conn).Handshake()
			conn.Close()
		}
		done <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*c}}) // it is the client who is looked at
	if err == nil {
		conn.Close()
	}
	if served := <-done; err != nil || served != nil {
		t.Errorf("%s: %v, %v", tls.VersionName(version), err, served)
	}
}

// Every error says which Secret, what is wrong, and nothing of the value.
func TestCertificateRefuses(t *testing.T) {
	ec, ed := keys(t)
	c := newChain(t, ec)
	other := newChain(t, ed)
	key := pkcs8(t, ec)
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": canary}, Bytes: []byte(canary)})
	aged := func(from, to time.Time) string {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to}
		der, err := x509.CreateCertificate(rand.Reader, template, template, ec.Public(), ec)
		if err != nil {
			t.Fatal(err)
		}
		return block("CERTIFICATE", der)
	}
	bind := func(b api.SecretBinding) func(*api.Secret) { return func(s *api.Secret) { s.Spec.Bind = &b } }
	for name, x := range map[string]struct {
		value  string
		words  string
		change func(*api.Secret)
	}{
		"text":                {canary, "has no private key", nil},
		"no certificate":      {key, "has no certificate", nil},
		"no key":              {certPEM(c.leaf), "has no private key", nil},
		"another's key":       {key + certPEM(other.leaf), "belongs to none of its certificates", nil},
		"two keys":            {key + pkcs8(t, ed) + certPEM(c.leaf), "more than one private key", nil},
		"an encrypted key":    {block("ENCRYPTED PRIVATE KEY", []byte(canary)) + certPEM(c.leaf), "openssl pkey", nil},
		"an old one":          {string(encrypted) + certPEM(c.leaf), "openssl pkey", nil},
		"a broken key":        {block("PRIVATE KEY", []byte(canary)) + certPEM(c.leaf), "cannot be read", nil},
		"a broken EC key":     {block("EC PRIVATE KEY", []byte(canary)), "cannot be read", nil},
		"a broken RSA key":    {block("RSA PRIVATE KEY", []byte(canary)), "cannot be read", nil},
		"a key for agreement": {x25519(t), "cannot sign", nil},
		"a broken cert":       {key + block("CERTIFICATE", []byte(canary)), "cannot be parsed", nil},
		"too many":            {key + strings.Repeat(certPEM(c.leaf), maxChain+1), "more than 16", nil},
		"something else":      {key + certPEM(c.leaf) + block(canary, nil), "nothing else", nil},
		"expired":             {key + aged(noon.Add(-2*time.Hour), noon.Add(-time.Second)), "expired on 2026-03-01T11:59:59Z", nil},
		"not yet":             {key + aged(noon.Add(time.Second), noon.Add(time.Hour)), "not valid before 2026-03-01T12:00:01Z", nil},
		"another Service":     {key + certPEM(c.leaf), "bound", bind(api.SecretBinding{Services: []string{"web"}})},
		"another host":        {key + certPEM(c.leaf), `"db.corp"`, bind(api.SecretBinding{Hosts: []string{"web.corp"}})},
		"the cluster's own":   {key + certPEM(c.leaf), "the cluster's own", func(s *api.Secret) { s.Metadata.IsSystem = true }},
	} {
		u := newUses(t)
		if x.change == nil {
			x.change = func(*api.Secret) {}
		}
		u.add(t, "mine", x.value, x.change)
		got, err := u.Certificate(t.Context(), "mine", "db.default", "db.corp")
		if err == nil || got != nil {
			t.Errorf("%s: got a certificate", name)
			continue
		}
		noCanary(t, err)
		if !strings.Contains(err.Error(), x.words) || !strings.Contains(err.Error(), `Secret "mine"`) {
			t.Errorf("%s: error is %v, want %q", name, err, x.words)
		}
	}
	u := newUses(t)
	if _, err := u.Certificate(t.Context(), "mine", "db.default", "db.corp"); err == nil || !strings.Contains(err.Error(), `there is no Secret "mine"`) {
		t.Errorf("error is %v", err)
	}
	u.add(t, "mine", key+certPEM(c.leaf), bind(api.SecretBinding{Services: []string{"db", "x.y"}, Hosts: []string{"DB.corp"}}))
	if _, err := u.Certificate(t.Context(), "mine", "db.default", "db.corp"); err != nil {
		t.Errorf("bound to this Service and host: %v", err)
	}
}

func x25519(t *testing.T) string {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pkcs8(t, k)
}

// A certificate is made once for each content, and what is checked is checked
// each time.
func TestCertificateIsKept(t *testing.T) {
	ec, ed := keys(t)
	c, d := newChain(t, ec), newChain(t, ed)
	u := newUses(t)
	u.add(t, "mine", pkcs8(t, ec)+certPEM(c.leaf))
	get := func() (*tls.Certificate, error) { return u.Certificate(t.Context(), "mine", "db.default", "db.corp") }
	first, err := get()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := get(); err != nil || again != first {
		t.Errorf("made again: %v", err)
	}
	u.add(t, "mine", pkcs8(t, ed)+certPEM(d.leaf), func(s *api.Secret) { s.Metadata.ResourceVersion = "2" })
	if second, err := get(); err != nil || !second.Leaf.Equal(d.leaf) {
		t.Errorf("after the Secret was changed: %v", err)
	}
	u.add(t, "mine", pkcs8(t, ed)+certPEM(d.leaf), func(s *api.Secret) {
		s.Metadata.ResourceVersion, s.Spec.Bind = "3", &api.SecretBinding{Services: []string{"web"}}
	})
	if _, err := get(); err == nil {
		t.Error("a binding that came later does not count")
	}
	u.add(t, "mine", pkcs8(t, ed)+certPEM(d.leaf), func(s *api.Secret) { s.Metadata.ResourceVersion = "4" })
	if _, err := get(); err != nil {
		t.Error(err)
	}
	u.Now = func() time.Time { return noon.Add(2 * time.Hour) }
	if _, err := get(); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("one that is kept does not expire: %v", err)
	}
	u.Now = func() time.Time { return noon }
	if _, err := u.Store.Update(t.Context(), "test", func(tx store.Tx) error {
		return tx.Delete(api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: "mine"})
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := get(); err == nil {
		t.Error("a Secret that was deleted is used")
	}
	if n := len(u.certificates.rows); n != 1 {
		t.Errorf("%d contents of one Secret are kept", n)
	}
	for i := range maxCached + 10 {
		u.certificates.keep(fmt.Sprint(i), "1", first)
	}
	if n := len(u.certificates.rows); n > maxCached {
		t.Errorf("%d certificates are kept", n)
	}
}

func TestCertificateConcurrently(t *testing.T) {
	ec, _ := keys(t)
	c := newChain(t, ec)
	u := newUses(t)
	for i := range 4 {
		u.add(t, fmt.Sprintf("mine%d", i), pkcs8(t, ec)+certPEM(c.leaf))
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 20 {
				got, err := u.Certificate(t.Context(), fmt.Sprintf("mine%d", i%4), "db.default", "db.corp")
				if err != nil {
					t.Error(err)
					return
				}
				sum := sha256.Sum256([]byte("x"))
				if _, err := got.PrivateKey.(crypto.Signer).Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

func TestText(t *testing.T) {
	for value, want := range map[string]string{
		"Bearer abc":                    "Bearer abc",
		"abc\n":                         "abc",
		"abc\r\n":                       "abc",
		"schlüssel":                     "schlüssel",
		canary + "\n\n":                 "",
		canary + "\nEvil: 1":            "",
		canary + "\x00":                 "",
		canary + "\xff":                 "",
		"\n":                            "",
		strings.Repeat(canary, maxText): "",
	} {
		u := newUses(t)
		u.add(t, "header", value)
		got, err := u.Text(t.Context(), "header", "otel.corp")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.40q: %q, %v", value, got, err)
		}
		if err != nil {
			noCanary(t, err)
			if !strings.Contains(err.Error(), `"header"`) {
				t.Errorf("error is %v", err)
			}
		}
	}
	for name, c := range map[string]struct {
		bind api.SecretBinding
		ok   bool
	}{
		"the host":     {api.SecretBinding{Hosts: []string{"otel.corp"}}, true},
		"another host": {api.SecretBinding{Hosts: []string{"web.corp"}}, false},
		"Services":     {api.SecretBinding{Services: []string{"web"}}, false},
	} {
		u := newUses(t)
		u.add(t, "header", canary, func(s *api.Secret) { s.Spec.Bind = &c.bind })
		got, err := u.Text(t.Context(), "header", "otel.corp")
		if (err == nil) != c.ok || (got == canary) != c.ok {
			t.Errorf("bound to %s: %v", name, err)
		}
	}
	u := newUses(t)
	_, err := u.Text(t.Context(), "header", "otel.corp")
	if err == nil || !strings.Contains(err.Error(), `there is no Secret "header"`) {
		t.Errorf("error is %v", err)
	}
}

// Whatever is said to be PEM gives a key with its certificates, the first of them
// its own, or an error; and quickly.
func FuzzPEM(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(block("PRIVATE KEY", der) + block("CERTIFICATE", cert)))
	f.Add([]byte(block("CERTIFICATE", cert) + block("CERTIFICATE", cert) + block("PRIVATE KEY", der)))
	f.Add([]byte("-----BEGIN EC PARAMETERS-----\n-----END EC PARAMETERS-----\n"))
	f.Fuzz(func(t *testing.T, value []byte) {
		key, chain, err := parse(value)
		if (key == nil) == (err == nil) || err != nil && chain != nil {
			t.Fatalf("key %v, %d certificates, %v", key, len(chain), err)
		}
		if err == nil && len(chain) > 0 && !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(chain[0].PublicKey) {
			t.Fatal("the first certificate is not that of the key")
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("Bearer abc\n"))
	f.Fuzz(func(t *testing.T, value []byte) {
		text, err := parseText(value)
		if err == nil && (text == "" || strings.ContainsAny(text, "\r\n\x00")) {
			t.Fatalf("%q", text)
		}
	})
}
