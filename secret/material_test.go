package secret

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/store"
)

// newKubernetes returns a Secret of Kubernetes with values.
func newKubernetes(namespace, name string, values map[string]string) *api.KubernetesSecret {
	s := &api.KubernetesSecret{Type: "kubernetes.io/tls", Data: map[string][]byte{}}
	for k, v := range values {
		s.Data[k] = []byte(v)
	}
	s.Metadata.Namespace, s.Metadata.Name, s.Metadata.UID, s.Metadata.ResourceVersion = namespace, name, "uid-"+namespace+"-"+name, "1"
	s.Default()
	return s
}

// addKubernetes seals a Secret of Kubernetes and stores it.
func addKubernetes(ctx context.Context, st store.Store, k *Keeper, s *api.KubernetesSecret) error {
	_, err := st.Update(ctx, "test", func(tx store.Tx) error {
		if err := k.SealKubernetes(s); err != nil {
			return err
		}
		rec, err := store.Encode(s)
		if err != nil {
			return err
		}
		return tx.Put(rec)
	})
	return err
}

func kubernetesKey(namespace, name string) api.Key {
	return api.Key{Group: api.GroupKubernetes, Kind: api.KindSecret, Namespace: namespace, Name: name}
}

// A testCA signs certificates and revocation lists.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB, name string) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{key: key}
	ca.cert = ca.sign(t, nil, key.Public(), name, 1, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	})
	return ca
}

func (ca *testCA) sign(t testing.TB, by *x509.Certificate, public crypto.PublicKey, name string, serial int64, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour)}
	if change != nil {
		change(template)
	}
	if by == nil {
		by = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, public, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leaf returns a certificate and its key.
func (ca *testCA) leaf(t testing.TB, name string, serial int64) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ca.sign(t, ca.cert, key.Public(), name, serial, nil), key
}

// list returns a revocation list.
func (ca *testCA) list(t testing.TB, change func(*x509.RevocationList), serials ...int64) *x509.RevocationList {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: noon.Add(-time.Hour), NextUpdate: noon.Add(time.Hour)}
	for _, n := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: noon.Add(-time.Minute)})
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func listPEM(l *x509.RevocationList) string { return block(pemRevocation, l.Raw) }

// trusts tells whether a certificate verifies against CAs.
func trusts(m *Material, c *x509.Certificate) bool {
	if m.CAs == nil {
		return false
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: m.CAs, CurrentTime: noon, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// The values of a Secret of Kubernetes, by whatever names, and what comes of them.
func TestMaterialOfKubernetes(t *testing.T) {
	ca, other := newCA(t, "our CA"), newCA(t, "another CA")
	leaf, key := ca.leaf(t, "db.corp", 7)
	sibling, _ := ca.leaf(t, "web.corp", 8)
	othersLeaf, _ := other.leaf(t, "db.corp", 8)
	cert, private, root := certPEM(leaf), pkcs8(t, key), certPEM(ca.cert)
	yes, no := true, false
	for name, c := range map[string]struct {
		values         map[string]string
		certificate    bool
		ours, anothers bool // whose leaves are trusted
		lists          int
		required       *bool
	}{
		"kubernetes.io/tls":        {map[string]string{"tls.crt": cert, "tls.key": private}, true, false, false, 0, nil},
		"with chain":               {map[string]string{"tls.crt": cert + root, "tls.key": private}, true, true, false, 0, nil},
		"cert-manager":             {map[string]string{"tls.crt": cert, "tls.key": private, "ca.crt": certPEM(other.cert)}, true, false, true, 0, nil},
		"Istio":                    {map[string]string{"cert-chain.pem": cert, "key.pem": private, "root-cert.pem": root}, true, true, false, 0, nil},
		"ACME":                     {map[string]string{"tls.crt": cert, "user.key": private}, true, false, false, 0, nil},
		"a CA in tls.crt":          {map[string]string{"tls.crt": root}, false, true, false, 0, nil},
		"a CA beside its own":      {map[string]string{"tls.crt": root, "ca.crt": certPEM(other.cert)}, false, true, false, 0, nil},
		"a CA with its key":        {map[string]string{"tls.crt": root, "tls.key": pkcs8(t, ca.key)}, true, true, false, 0, nil},
		"a CA in ca.crt":           {map[string]string{"ca.crt": root}, false, true, false, 0, nil},
		"both":                     {map[string]string{"ca.crt": root, "root-cert.pem": certPEM(other.cert)}, false, true, true, 0, nil},
		"a revocation list":        {map[string]string{"crl.pem": listPEM(ca.list(t, nil)) + listPEM(other.list(t, nil))}, false, false, false, 2, nil},
		"required":                 {map[string]string{"tls.crt": root, "cert_required": "true\n"}, false, true, false, 0, &yes},
		"not required":             {map[string]string{"tls.crt": root, "cert_required": "False"}, false, true, false, 0, &no},
		"a key alone beside a CA":  {map[string]string{"ca.crt": root, "user.key": private}, false, true, false, 0, nil},
		"parameters and a trailer": {map[string]string{"tls.crt": cert + "\n# bye\n", "tls.key": block("EC PARAMETERS", []byte{6, 0}) + private}, true, false, false, 0, nil},
	} {
		u := newUses(t)
		if err := addKubernetes(t.Context(), u.Store, u.Keeper, newKubernetes("default", "x", c.values)); err != nil {
			t.Fatal(err)
		}
		k := kubernetesKey("default", "x")
		m, err := u.Material(t.Context(), &api.Material{Secret: &k}, "TCPMapping/default/db", "db.corp")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if (m.Certificate != nil) != c.certificate || trusts(m, sibling) != c.ours || trusts(m, othersLeaf) != c.anothers || len(m.CRLs) != c.lists || !reflect.DeepEqual(m.CertRequired, c.required) || m.Version == "" {
			t.Errorf("%s: %+v, trusts ours %v, another's %v", name, m, trusts(m, sibling), trusts(m, othersLeaf))
		}
		if m.Certificate != nil {
			if _, err := x509.MarshalPKCS8PrivateKey(m.Certificate.PrivateKey); err == nil {
				t.Errorf("%s: the key itself was handed out", name)
			}
		}
	}
}

// Every error names the Secret, and tells nothing of its values.
func TestMaterialRefuses(t *testing.T) {
	ca := newCA(t, "our CA")
	leaf, key := ca.leaf(t, "db.corp", 7)
	_, another := ca.leaf(t, "db.corp", 8)
	delta := ca.list(t, func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
	})
	for name, c := range map[string]struct {
		values map[string]string
		words  string
	}{
		"another's key":    {map[string]string{"tls.crt": certPEM(leaf), "tls.key": pkcs8(t, another)}, "belongs to none of its certificates"},
		"nothing":          {map[string]string{}, "no certificate, CA or revocation list"},
		"something else":   {map[string]string{"password": canary}, "no certificate, CA or revocation list"},
		"a key alone":      {map[string]string{"tls.key": pkcs8(t, key)}, "no certificate, CA or revocation list"},
		"text":             {map[string]string{"tls.crt": canary, "tls.key": canary}, "no certificate, CA or revocation list"},
		"a broken cert":    {map[string]string{"tls.crt": block(pemCertificate, []byte(canary))}, "cannot be parsed"},
		"a broken key":     {map[string]string{"tls.crt": certPEM(leaf), "tls.key": block(pemKey, []byte(canary))}, "cannot be read"},
		"an encrypted key": {map[string]string{"tls.crt": certPEM(leaf), "tls.key": block("ENCRYPTED PRIVATE KEY", []byte(canary))}, "openssl pkey"},
		"a broken list":    {map[string]string{"crl.pem": block(pemRevocation, []byte(canary))}, "cannot be parsed"},
		"no list":          {map[string]string{"crl.pem": canary}, "crl.pem"},
		"a delta":          {map[string]string{"crl.pem": listPEM(delta)}, "critical extension"},
		"perhaps":          {map[string]string{"tls.crt": certPEM(ca.cert), "cert_required": canary}, "true or false in cert_required"},
		"too many":         {map[string]string{"tls.crt": strings.Repeat(certPEM(leaf), maxChain+1), "tls.key": pkcs8(t, key)}, "more than 16"},
		"far too many":     {map[string]string{"ca.crt": strings.Repeat(certPEM(ca.cert), maxCAs+1)}, "more than 1024"},
	} {
		u := newUses(t)
		if err := addKubernetes(t.Context(), u.Store, u.Keeper, newKubernetes("default", "x", c.values)); err != nil {
			t.Fatal(err)
		}
		k := kubernetesKey("default", "x")
		m, err := u.Material(t.Context(), &api.Material{Secret: &k}, "", "")
		if err == nil {
			t.Errorf("%s: %+v", name, m)
			continue
		}
		noCanary(t, err)
		if !strings.Contains(err.Error(), c.words) || !strings.Contains(err.Error(), `Kubernetes Secret "default/x"`) {
			t.Errorf("%s: error is %v, want %q", name, err, c.words)
		}
	}
	u := newUses(t)
	for _, k := range []api.Key{kubernetesKey("default", "gone"), kubernetesKey("", "gone"), {Group: api.GroupCore, Kind: api.KindSecret, Name: "gone"}} {
		if _, err := u.Material(t.Context(), &api.Material{Secret: &k}, "", ""); err == nil || !strings.Contains(err.Error(), "there is no") || !strings.Contains(err.Error(), "gone") {
			t.Errorf("%s: error is %v", k, err)
		}
	}
	// A Secret of the same name and another Namespace, or of ours, is another one.
	if err := addKubernetes(t.Context(), u.Store, u.Keeper, newKubernetes("other", "gone", map[string]string{"ca.crt": certPEM(ca.cert)})); err != nil {
		t.Fatal(err)
	}
	k := kubernetesKey("default", "gone")
	if _, err := u.Material(t.Context(), &api.Material{Secret: &k}, "", ""); err == nil {
		t.Error("found in another Namespace")
	}
}

// Of a Secret of ours all PEM is used, where it may be.
func TestMaterialOfOurs(t *testing.T) {
	ca := newCA(t, "our CA")
	leaf, key := ca.leaf(t, "db.corp", 7)
	expired := ca.sign(t, ca.cert, key.Public(), "old", 9, func(c *x509.Certificate) { c.NotAfter = noon.Add(-time.Minute) })
	u := newUses(t)
	bind := func(b api.SecretBinding) func(*api.Secret) { return func(s *api.Secret) { s.Spec.Bind = &b } }
	u.add(t, "all", pkcs8(t, key)+certPEM(ca.cert)+listPEM(ca.list(t, nil))+certPEM(leaf))
	u.add(t, "old", certPEM(expired)+pkcs8(t, key))
	u.add(t, "system", certPEM(ca.cert), func(s *api.Secret) { s.Metadata.IsSystem = true })
	u.add(t, "bound", certPEM(ca.cert), bind(api.SecretBinding{Services: []string{"TCPMapping/default/db", "web"}, Hosts: []string{"db.corp"}}))
	get := func(name, service, host string) (*Material, error) {
		return u.Material(t.Context(), &api.Material{Secret: &api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: name}}, service, host)
	}
	m, err := get("all", "web.default", "db.corp")
	if err != nil || m.Certificate == nil || !m.Certificate.Leaf.Equal(leaf) || !trusts(m, leaf) || len(m.CRLs) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if again, err := get("all", "web.default", "db.corp"); err != nil || again != m {
		t.Errorf("made again: %v", err)
	}
	u.add(t, "all", certPEM(ca.cert), func(s *api.Secret) { s.Metadata.ResourceVersion = "2" })
	if other, err := get("all", "web.default", "db.corp"); err != nil || other.Version == m.Version || other.Certificate != nil {
		t.Errorf("after a change: %+v, %v", other, err)
	}
	if m, err := get("old", "", ""); err != nil || m.Certificate == nil {
		t.Errorf("an expired certificate: %v", err)
	}
	for _, c := range []struct {
		name, service, host string
		words               string
	}{
		{"bound", "TCPMapping/default/db", "db.corp", ""}, {"bound", "web.default", "db.corp", ""}, {"bound", "", "", ""},
		{"bound", "TCPMapping/other/db", "db.corp", "bound"}, {"bound", "web.default", "x.corp", "bound"}, {"bound", "", "db.corp", "bound"},
		{"system", "web.default", "db.corp", "the cluster's own"}, {"system", "", "", "the cluster's own"},
	} {
		if _, err := get(c.name, c.service, c.host); (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A Material is made once for each content, and another content has another Version.
func TestMaterialIsKept(t *testing.T) {
	ca := newCA(t, "our CA")
	u := newUses(t)
	s := newKubernetes("default", "x", map[string]string{"ca.crt": certPEM(ca.cert)})
	k := kubernetesKey("default", "x")
	get := func() *Material {
		t.Helper()
		m, err := u.Material(t.Context(), &api.Material{Secret: &k}, "", "")
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	put := func(s *api.KubernetesSecret) {
		t.Helper()
		if err := addKubernetes(t.Context(), u.Store, u.Keeper, s); err != nil {
			t.Fatal(err)
		}
	}
	put(s)
	first := get()
	if get() != first {
		t.Error("made again")
	}
	next := newKubernetes("default", "x", map[string]string{"tls.crt": certPEM(newCA(t, "another").cert)})
	next.Metadata.ResourceVersion = "2"
	put(next)
	if second := get(); second == first || second.Version == first.Version {
		t.Error("a new content is not seen")
	}
	if n := len(u.materials.rows); n != 1 {
		t.Errorf("%d contents of one Secret are kept", n)
	}
}

func TestMaterialOfFiles(t *testing.T) {
	ca := newCA(t, "our CA")
	leaf, key := ca.leaf(t, "db.corp", 7)
	_, another := ca.leaf(t, "db.corp", 8)
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	chain, private := write("tls.crt", certPEM(leaf)+certPEM(ca.cert)), write("tls.key", pkcs8(t, key))
	u := newUses(t)
	get := func(chain, key string) (*Material, error) {
		return u.Material(t.Context(), &api.Material{Chain: chain, Key: key}, "TCPMapping/default/db", "db.corp")
	}
	m, err := get(chain, private)
	if err != nil || m.Certificate == nil || !m.Certificate.Leaf.Equal(leaf) || len(m.Certificate.Certificate) != 2 || !trusts(m, leaf) {
		t.Fatalf("%+v, %v", m, err)
	}
	if again, err := get(chain, private); err != nil || again != m {
		t.Errorf("made again: %v", err)
	}
	if both, err := get(write("both.pem", pkcs8(t, key)+certPEM(leaf)), ""); err != nil || both.Certificate == nil {
		t.Errorf("key and certificate in one: %v", err)
	}
	if lists, err := get(write("crl.pem", listPEM(ca.list(t, nil))), ""); err != nil || len(lists.CRLs) != 1 || lists.CAs != nil {
		t.Errorf("a revocation list: %v", err)
	}
	fresh, freshKey := ca.leaf(t, "db.corp", 9)
	write("tls.crt", certPEM(fresh))
	write("tls.key", pkcs8(t, freshKey))
	if next, err := get(chain, private); err != nil || next.Version == m.Version || !next.Certificate.Leaf.Equal(fresh) {
		t.Errorf("after the files changed: %v", err)
	}
	for name, c := range map[string]struct{ chain, key, words string }{
		"none":          {"", "", "no file is named"},
		"missing":       {filepath.Join(dir, "gone"), "", "no such file"},
		"a directory":   {dir, "", "not a regular file"},
		"too large":     {write("large", strings.Repeat(canary, maxFile/len(canary)+1)), "", "larger than"},
		"text":          {write("text", canary), "", "no certificate, CA or revocation list"},
		"another's key": {chain, write("other.key", pkcs8(t, another)), "belongs to none of its certificates"},
		"a broken key":  {chain, write("bad.key", block(pemKey, []byte(canary))), "cannot be read"},
	} {
		_, err := get(c.chain, c.key)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		noCanary(t, err)
		if !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: error is %v, want %q", name, err, c.words)
		}
	}
}

// A certificate of RSA serves the key exchange of old suites too.
func TestMaterialDecrypts(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := certificateOf(key, []*x509.Certificate{newCA(t, "our CA").cert})
	if _, ok := c.PrivateKey.(crypto.Decrypter); !ok {
		t.Error("it does not decrypt")
	}
	if _, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey); err == nil {
		t.Error("the key itself was handed out")
	}
}

func TestUnrevoked(t *testing.T) {
	root, other := newCA(t, "root"), newCA(t, "root") // of one name
	middleKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	middle := &testCA{key: middleKey}
	middle.cert = root.sign(t, root.cert, middleKey.Public(), "middle", 20, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	})
	leaf, _ := middle.leaf(t, "db.corp", 7)
	long := []*x509.Certificate{leaf, middle.cert, root.cert}
	direct, _ := root.leaf(t, "web.corp", 8)
	short := []*x509.Certificate{direct, root.cert}
	outdated := func(l *x509.RevocationList) { l.NextUpdate = noon.Add(-time.Minute) }
	early := func(l *x509.RevocationList) { l.ThisUpdate = noon.Add(time.Minute) }
	for name, c := range map[string]struct {
		lists  []*x509.RevocationList
		chains [][]*x509.Certificate
		words  string // "" is good
	}{
		"no lists":             {nil, [][]*x509.Certificate{short}, ""},
		"an empty list":        {[]*x509.RevocationList{root.list(t, nil)}, [][]*x509.Certificate{short}, ""},
		"on it":                {[]*x509.RevocationList{root.list(t, nil, 7, 8)}, [][]*x509.Certificate{short}, "it is revoked"},
		"another on it":        {[]*x509.RevocationList{root.list(t, nil, 7)}, [][]*x509.Certificate{short}, ""},
		"a namesake's":         {[]*x509.RevocationList{other.list(t, nil)}, [][]*x509.Certificate{short}, "no revocation list"},
		"a namesake's, on it":  {[]*x509.RevocationList{root.list(t, nil), other.list(t, nil, 8)}, [][]*x509.Certificate{short}, ""},
		"outdated":             {[]*x509.RevocationList{root.list(t, outdated)}, [][]*x509.Certificate{short}, "outdated"},
		"outdated, on it":      {[]*x509.RevocationList{root.list(t, outdated, 8)}, [][]*x509.Certificate{short}, "it is revoked"},
		"two, one outdated":    {[]*x509.RevocationList{root.list(t, outdated), root.list(t, nil)}, [][]*x509.Certificate{short}, ""},
		"of tomorrow":          {[]*x509.RevocationList{root.list(t, early)}, [][]*x509.Certificate{short}, "no revocation list"},
		"a long chain":         {[]*x509.RevocationList{root.list(t, nil), middle.list(t, nil)}, [][]*x509.Certificate{long}, ""},
		"the leaf is on it":    {[]*x509.RevocationList{root.list(t, nil), middle.list(t, nil, 7)}, [][]*x509.Certificate{long}, "db.corp"},
		"the issuer is on it":  {[]*x509.RevocationList{root.list(t, nil, 20), middle.list(t, nil)}, [][]*x509.Certificate{long}, "middle"},
		"one list is missing":  {[]*x509.RevocationList{middle.list(t, nil)}, [][]*x509.Certificate{long}, "no revocation list"},
		"one of two is good":   {[]*x509.RevocationList{middle.list(t, nil)}, [][]*x509.Certificate{long, {leaf, middle.cert}}, ""},
		"none of two is good":  {[]*x509.RevocationList{middle.list(t, nil, 7)}, [][]*x509.Certificate{long, {leaf, middle.cert}}, "it is revoked"},
		"a list, and no chain": {[]*x509.RevocationList{root.list(t, nil)}, nil, "no chain"},
	} {
		m := &Material{CRLs: c.lists}
		for range 2 { // the second finds what the first remembered
			err := m.Unrevoked(c.chains, noon)
			if (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v, want %q", name, err, c.words)
			}
			if errors.Is(err, ErrRevoked) != strings.Contains(fmt.Sprint(err), "it is revoked") {
				t.Errorf("%s: %v is ErrRevoked: %v", name, err, errors.Is(err, ErrRevoked))
			}
		}
	}
	if err := (*Material)(nil).Unrevoked(nil, noon); err != nil {
		t.Error(err)
	}
}

// Values of Kubernetes are sealed like ours, and to their Secret.
func TestSealKubernetes(t *testing.T) {
	ca := newCA(t, "our CA")
	leaf, key := ca.leaf(t, "db.corp", 7)
	k := newKeeper(t, 1)
	s := newKubernetes("default", "x", map[string]string{"tls.crt": certPEM(leaf), "tls.key": pkcs8(t, key), "note": canary})
	s.StringData = map[string]string{"more": canary}
	given := s.Data["note"]
	if err := k.SealKubernetes(s); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(given, []byte("canary")) {
		t.Error("the value was not overwritten")
	}
	stored, err := json.Marshal(s)
	if err != nil || s.HasData() || bytes.Contains(stored, []byte("canary")) {
		t.Errorf("it is stored as %s (%v)", stored, err)
	}
	st := s.Status
	if !slices.Equal(st.Keys, []string{"more", "note", "tls.crt", "tls.key"}) || st.KeyID != k.KeyID() || len(st.SHA256) != 64 {
		t.Errorf("the status is %+v", st)
	}
	if c := st.Certificate; c == nil || c.Subject != "CN=db.corp" || !slices.Equal(c.DNS, []string{"db.corp"}) || !c.HasKey || !c.NotAfter.Equal(leaf.NotAfter) || len(c.SHA256) != 64 {
		t.Errorf("the certificate is told of as %+v", st.Certificate)
	}
	values, err := k.openKubernetes(s)
	if err != nil || string(values["more"]) != canary || string(values["note"]) != canary || len(values) != 4 {
		t.Errorf("it opens to %v, %v", values, err)
	}
	if err := k.SealKubernetes(s); err != nil || !bytes.Equal(s.Status.Sealed, st.Sealed) {
		t.Errorf("sealed again without values: %v", err)
	}
	Describe(s)
	if !reflect.DeepEqual(s.Status, st) {
		t.Errorf("described without values: %+v", s.Status)
	}

	// The same values have the same hash, and what is sealed is no other Secret's.
	same := newKubernetes("default", "x", map[string]string{"tls.crt": certPEM(leaf), "tls.key": pkcs8(t, key), "note": canary, "more": canary})
	if err := k.SealKubernetes(same); err != nil || same.Status.SHA256 != st.SHA256 {
		t.Errorf("the same values have the hash %s (%v)", same.Status.SHA256, err)
	}
	other := newKubernetes("default", "y", nil)
	other.Status = st
	if _, err := k.openKubernetes(other); err == nil {
		t.Error("opened as another Secret")
	}
	ours := newSecret("x", s.Metadata.UID, "")
	ours.Status.Sealed, ours.Status.KeyID = st.Sealed, st.KeyID
	if _, err := k.open(ours); err == nil {
		t.Error("opened as a Secret of ours with the same uid")
	}
	ours.Data = &api.SecretData{Value: "{}"}
	if err := k.Seal(ours); err != nil {
		t.Fatal(err)
	}
	s.Status.Sealed = ours.Status.Sealed
	if _, err := k.openKubernetes(s); err == nil {
		t.Error("a value of ours opened as values of Kubernetes")
	}

	none := newKubernetes("default", "z", nil)
	none.Data = nil
	if err := k.SealKubernetes(none); err != nil || len(none.Status.Sealed) == 0 {
		t.Errorf("a Secret without values: %v", err)
	}
	nobody := newKubernetes("default", "z", nil)
	nobody.Metadata.UID = ""
	if err := k.SealKubernetes(nobody); err == nil || !strings.Contains(err.Error(), "default/z") {
		t.Errorf("a Secret without uid: %v", err)
	}
}

// A rotation of the key carries the Secrets of Kubernetes.
func TestRotateKubernetes(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	k := openAt(t, dir)
	s := newKubernetes("default", "x", map[string]string{"note": canary})
	if err := addKubernetes(t.Context(), st, k, s); err != nil {
		t.Fatal(err)
	}
	if err := add(t.Context(), st, k, "db", canary+"db"); err != nil {
		t.Fatal(err)
	}
	before := k.KeyID()
	// A crash between the two, and the next start.
	if _, err := k.Rotate(t.Context(), &faulty{st, 0}); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	k = openAt(t, dir)
	if err := k.Reseal(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if names := files(t, dir); !slices.Equal(names, []string{"seal.key"}) || k.KeyID() == before {
		t.Errorf("the files are %v", names)
	}
	readable(t, st, openAt(t, dir), 1)
	if err := st.View(t.Context(), func(r store.Reader) error {
		got, err := store.Get[*api.KubernetesSecret](r, kubernetesKey("default", "x"))
		if err != nil {
			return err
		}
		values, err := k.openKubernetes(got)
		if err != nil || string(values["note"]) != canary || got.Status.KeyID != k.KeyID() || got.Metadata.ResourceVersion != "1" || !slices.Equal(got.Status.Keys, []string{"note"}) {
			t.Errorf("%+v opens to %v, %v", got.Status, values, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// What an older version stored without telling of its certificate is told of after a
// rotation.
func TestRotateDescribes(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	k := openAt(t, dir)
	s := newSecret("old", "uid-old", certPEM(newCA(t, "our CA").cert))
	if err := k.Seal(s); err != nil {
		t.Fatal(err)
	}
	s.Status.Certificate = nil
	if _, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
		rec, err := store.Encode(s)
		if err != nil {
			return err
		}
		return tx.Put(rec)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Rotate(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if err := st.View(t.Context(), func(r store.Reader) error {
		got, err := store.Get[*api.Secret](r, s.Key())
		if err == nil && got.Status.Certificate == nil {
			t.Error("the certificate is still not told of")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestDescribeValue(t *testing.T) {
	ca := newCA(t, "our CA")
	leaf, key := ca.leaf(t, "db.corp", 7)
	_, another := ca.leaf(t, "db.corp", 8)
	for name, c := range map[string]struct {
		value   string
		subject string // "" is nothing
		hasKey  bool
	}{
		"text":                 {canary, "", false},
		"a key":                {pkcs8(t, key), "", false},
		"a certificate":        {certPEM(leaf), "CN=db.corp", false},
		"with its key":         {certPEM(ca.cert) + certPEM(leaf) + pkcs8(t, key), "CN=db.corp", true},
		"with another key":     {certPEM(leaf) + pkcs8(t, another), "CN=db.corp", false},
		"with something else":  {certPEM(leaf) + block("DH PARAMETERS", nil), "CN=db.corp", false},
		"a broken certificate": {block(pemCertificate, []byte(canary)), "", false},
	} {
		got := DescribeValue([]byte(c.value))
		if (got == nil) != (c.subject == "") || got != nil && (got.Subject != c.subject || got.HasKey != c.hasKey) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	s := newSecret("db", "uid-1", certPEM(leaf)+pkcs8(t, key))
	if err := newKeeper(t, 1).Seal(s); err != nil || s.Status.Certificate == nil || !s.Status.Certificate.HasKey {
		t.Errorf("sealed: %+v, %v", s.Status, err)
	}
}

// Whatever stands in the values of a Secret, they make a Material or an error that
// tells nothing of them; and quickly.
func FuzzMaterial(f *testing.F) {
	ca := newCA(f, "our CA")
	leaf, key := ca.leaf(f, "db.corp", 7)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(certPEM(leaf)), []byte(block(pemKey, der)), []byte(listPEM(ca.list(f, nil, 7))), []byte("true"))
	f.Add([]byte(certPEM(ca.cert)), []byte{}, []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, cert, key, list, required []byte) {
		values := map[string][]byte{"tls.crt": cert, "tls.key": key, "crl.pem": list, "cert_required": required}
		m, err := complete("x", "1", func(m *Material) error { return m.addKubernetes(values) })
		if (m == nil) == (err == nil) {
			t.Fatalf("%+v, %v", m, err)
		}
		s := &api.KubernetesSecret{Data: values}
		Describe(s)
		if m != nil && m.Certificate != nil && (s.Status.Certificate == nil || !s.Status.Certificate.HasKey) {
			t.Fatal("a certificate with its key that is not told of")
		}
		if m != nil && m.Certificate != nil {
			m.Unrevoked([][]*x509.Certificate{{m.Certificate.Leaf, ca.cert}}, noon)
			if _, ok := m.Certificate.PrivateKey.(crypto.Signer); !ok || len((&tls.Config{Certificates: []tls.Certificate{*m.Certificate}}).Certificates) != 1 {
				t.Fatal("no signer")
			}
		}
	})
}
