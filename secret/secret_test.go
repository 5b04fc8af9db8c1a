package secret

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/store"
)

const canary = "canary-7b1f"

func newKeeper(t testing.TB, fill byte) *Keeper {
	t.Helper()
	k, err := New(bytes.Repeat([]byte{fill}, KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newSecret(name, uid, value string) *api.Secret {
	s := &api.Secret{Data: &api.SecretData{Value: value}}
	s.Default()
	s.Metadata.Name, s.Metadata.UID = name, uid
	return s
}

// noCanary fails if an error tells the value, in any of its likely forms.
func noCanary(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("want an error")
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%q"} {
		if s := fmt.Sprintf(verb, err); strings.Contains(s, canary) {
			t.Errorf("the error tells the value: %s", s)
		}
	}
}

func TestSealOpen(t *testing.T) {
	k := newKeeper(t, 1)
	for _, data := range []api.SecretData{{Value: canary}, {ValueBytes: []byte(canary)}} {
		s := newSecret("db", "uid-1", "")
		given := data.ValueBytes
		s.Data = &data
		if err := k.Seal(s); err != nil {
			t.Fatal(err)
		}
		if s.Data != nil {
			t.Error("Data is still there")
		}
		if bytes.Contains(given, []byte("canary")) {
			t.Error("valueBytes were not overwritten")
		}
		stored, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(stored, []byte("canary")) || bytes.Contains(s.Status.Sealed, []byte("canary")) {
			t.Errorf("the stored Secret tells its value: %s", stored)
		}
		if len(s.Status.SHA256) != 64 || s.Status.KeyID != k.KeyID() {
			t.Errorf("status is %+v", s.Status)
		}
		value, err := newKeeper(t, 1).open(s)
		if err != nil || string(value) != canary {
			t.Errorf("open: %q, %v", value, err)
		}
	}
}

// The hash tells whether the value of one Secret changed, and nothing about two.
func TestHash(t *testing.T) {
	hash := func(k *Keeper, uid, value string) string {
		s := newSecret("db", uid, value)
		if err := k.Seal(s); err != nil {
			t.Fatal(err)
		}
		return s.Status.SHA256
	}
	k := newKeeper(t, 1)
	base := hash(k, "uid-1", canary)
	if hash(k, "uid-1", canary) != base {
		t.Error("the same value in the same Secret has another hash")
	}
	if hash(k, "uid-1", canary+"!") == base {
		t.Error("another value has the same hash")
	}
	if hash(k, "uid-2", canary) == base {
		t.Error("the same value in another Secret has the same hash")
	}
	if hash(newKeeper(t, 2), "uid-1", canary) == base {
		t.Error("another keeper makes the same hash")
	}
}

func TestSealTwice(t *testing.T) {
	k := newKeeper(t, 1)
	s := newSecret("db", "uid-1", canary)
	if err := k.Seal(s); err != nil {
		t.Fatal(err)
	}
	first := s.Status
	if err := k.Seal(s); err != nil || !bytes.Equal(s.Status.Sealed, first.Sealed) {
		t.Errorf("a sealed Secret without a new value must stay as it is: %v", err)
	}
	s.Data = &api.SecretData{Value: canary}
	if err := k.Seal(s); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(s.Status.Sealed, first.Sealed) {
		t.Error("sealed twice to the same bytes: the nonce is not random")
	}
}

func TestSealRefuses(t *testing.T) {
	k := newKeeper(t, 1)
	noUID := newSecret("db", "", canary)
	if err := k.Seal(noUID); err == nil || noUID.Status.Sealed != nil {
		t.Error("sealed a Secret that has no uid")
	} else {
		noCanary(t, err)
	}
	for _, d := range []*api.SecretData{nil, {}} {
		s := newSecret("db", "uid-1", "")
		s.Data = d
		if err := k.Seal(s); err == nil {
			t.Error("sealed a Secret that has no value")
		}
	}
}

func TestAnyFlippedBitFails(t *testing.T) {
	k := newKeeper(t, 1)
	s := newSecret("db", "uid-1", canary)
	if err := k.Seal(s); err != nil {
		t.Fatal(err)
	}
	sealed := s.Status.Sealed
	for i := range len(sealed) * 8 {
		s.Status.Sealed = slices.Clone(sealed)
		s.Status.Sealed[i/8] ^= 1 << (i % 8)
		_, err := k.open(s)
		noCanary(t, err)
	}
	for n := range len(sealed) {
		s.Status.Sealed = sealed[:n]
		_, err := k.open(s)
		noCanary(t, err)
	}
	s.Status.Sealed = append(slices.Clone(sealed), 0)
	_, err := k.open(s)
	noCanary(t, err)
}

func TestSwappedOrRenamedFails(t *testing.T) {
	k := newKeeper(t, 1)
	a, b := newSecret("aa", "uid-1", canary), newSecret("bb", "uid-2", canary+"-b")
	if err := k.Seal(a); err != nil {
		t.Fatal(err)
	}
	if err := k.Seal(b); err != nil {
		t.Fatal(err)
	}
	a.Status, b.Status = b.Status, a.Status
	for _, s := range []*api.Secret{a, b} {
		_, err := k.open(s)
		noCanary(t, err)
		if !strings.Contains(err.Error(), "copied") {
			t.Errorf("the error does not say what may have happened: %v", err)
		}
	}
	a.Status, b.Status = b.Status, a.Status
	a.Metadata.UID = "uid-3"
	_, err := k.open(a)
	noCanary(t, err)
}

func TestWrongKey(t *testing.T) {
	s := newSecret("db", "uid-1", canary)
	if err := newKeeper(t, 1).Seal(s); err != nil {
		t.Fatal(err)
	}
	other := newKeeper(t, 2)
	_, err := other.open(s)
	noCanary(t, err)
	if !strings.Contains(err.Error(), "key file") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	s.Status.KeyID = other.KeyID() // and if somebody pretends
	_, err = other.open(s)
	noCanary(t, err)
}

func TestKeeperDoesNotPrintItsKey(t *testing.T) {
	k, err := New([]byte("canary-7b1f-canary-7b1f-canary-7"))
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		s := fmt.Sprintf(verb, k)
		if strings.Contains(s, "canary") || strings.Contains(s, "99, 97, 110") || strings.Contains(s, "0x63") {
			t.Errorf("%s prints %s", verb, s)
		}
	}
	if _, err := New([]byte("short")); err == nil {
		t.Error("New took a short key")
	}
}

func TestOpenMakesOneKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret.key")
	ids := make([]string, 16)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			if k, err := Open(path); err != nil {
				t.Error(err)
			} else {
				ids[i] = k.KeyID()
			}
		})
	}
	all.Wait()
	if slices.Sort(ids); ids[0] == "" || ids[0] != ids[len(ids)-1] {
		t.Errorf("different keys: %v", ids)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v (%v), want the key file only", entries, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() != KeySize {
		t.Errorf("the key file is %v (%v)", info, err)
	}
	other, err := Open(filepath.Join(t.TempDir(), "secret.key"))
	if err != nil || other.KeyID() == ids[0] {
		t.Errorf("a second file has the same key (%v)", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cases := []struct{ path, words string }{
		{write("readable", KeySize, 0o644), "chmod 600"},
		{write("group", KeySize, 0o640), "chmod 600"},
		{write("short", KeySize-1, 0o600), "has 31 bytes"},
		{write("empty", 0, 0o600), "has 0 bytes"},
		{write("long", KeySize+1, 0o600), "has 33 bytes"},
		{dir, "not a regular file"},
		{filepath.Join(dir, "no", "such"), "no such file"},
	}
	for _, c := range cases {
		if _, err := Open(c.path); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: error is %v, want %q in it", c.path, err, c.words)
		}
	}
}

// oneSecret is a store.Reader of one Secret.
type oneSecret struct {
	store.Reader // what is not called
	s            *api.Secret
}

func (o oneSecret) Get(k api.Key) (store.Record, error) {
	if k != o.s.Key() {
		return store.Record{}, api.NotFound(k)
	}
	b, err := json.Marshal(o.s)
	return store.Record{Key: k, UID: o.s.Metadata.UID, JSON: b}, err
}

func certificate(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(nil, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<32, 0)},
		&x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func keys(t *testing.T) (*ecdsa.PrivateKey, ed25519.PrivateKey) {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ec, ed
}

func TestSigner(t *testing.T) {
	k := newKeeper(t, 1)
	ec, ed := keys(t)
	cert := certificate(t, ec)

	s := newSecret("ca", "uid-1", "old value")
	if err := k.SealSigner(s, ec, cert); err != nil {
		t.Fatal(err)
	}
	if s.Data != nil {
		t.Error("the old value is still there")
	}
	got, chain, err := k.Signer(oneSecret{s: s}, "ca")
	if err != nil || !ec.Equal(got) || len(chain) != 1 || !chain[0].Equal(cert) {
		t.Errorf("got %T, %d certificates, %v", got, len(chain), err)
	}

	s = newSecret("journal", "uid-2", "")
	if err := k.SealSigner(s, ed); err != nil {
		t.Fatal(err)
	}
	if got, chain, err := k.Signer(oneSecret{s: s}, "journal"); err != nil || !ed.Equal(got) || chain != nil {
		t.Errorf("got %T, %v, %v", got, chain, err)
	}
	if _, _, err := k.Signer(oneSecret{s: s}, "other"); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("error is %v, want NOT_FOUND", err)
	}
	if err := k.SealSigner(newSecret("xx", "", ""), ed); err == nil {
		t.Error("sealed a signer to no uid")
	}
}

// A value that is no signer is refused in words that tell nothing of it.
func TestSignerRefuses(t *testing.T) {
	k := newKeeper(t, 1)
	ec, ed := keys(t)
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	pkcs8 := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	cert := block("CERTIFICATE", certificate(t, ec).Raw)
	for name, value := range map[string]string{
		"text":              canary,
		"another block":     block(canary, []byte(canary)),
		"an encrypted key":  block("ENCRYPTED PRIVATE KEY", []byte(canary)),
		"a broken key":      block(pemKey, []byte(canary)),
		"two keys":          block(pemKey, pkcs8(ec)) + block(pemKey, pkcs8(ed)),
		"a broken cert":     block(pemKey, pkcs8(ec)) + block(pemCertificate, []byte(canary)),
		"another's cert":    block(pemKey, pkcs8(ed)) + cert,
		"no key":            cert,
		"too many certs":    block(pemKey, pkcs8(ec)) + strings.Repeat(cert, maxChain+1),
		"a header in a key": "-----BEGIN PRIVATE KEY-----\n" + canary + ": " + canary + "\n\nAAAA\n-----END PRIVATE KEY-----\n",
	} {
		s := newSecret("ca", "uid-1", value)
		if err := k.Seal(s); err != nil {
			t.Fatal(err)
		}
		_, _, err := k.Signer(oneSecret{s: s}, "ca")
		if err == nil {
			t.Errorf("%s: taken for a signer", name)
			continue
		}
		noCanary(t, err)
	}
}

// Whatever the value, a Secret opens to what was sealed, and reading it as a
// signer gives a signer or an error.
func FuzzSeal(f *testing.F) {
	f.Add([]byte(canary))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	k := newKeeper(f, 1)
	f.Fuzz(func(t *testing.T, value []byte) {
		want := bytes.Clone(value)
		s := newSecret("db", "uid-1", "")
		s.Data.ValueBytes = value
		if err := k.Seal(s); err != nil {
			if len(want) > 0 {
				t.Fatal(err)
			}
			return
		}
		got, err := k.open(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("open: %q, %v", got, err)
		}
		if key, _, err := k.Signer(oneSecret{s: s}, "db"); (key == nil) == (err == nil) {
			t.Fatalf("signer %v, error %v: want one of the two", key, err)
		}
	})
}

// What stands in the store as sealed may be anything.
func FuzzOpen(f *testing.F) {
	k := newKeeper(f, 1)
	s := newSecret("db", "uid-1", canary)
	if err := k.Seal(s); err != nil {
		f.Fatal(err)
	}
	f.Add(s.Status.Sealed)
	f.Add([]byte{version})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		s := newSecret("db", "uid-1", "")
		s.Data, s.Status = nil, api.SecretStatus{Sealed: sealed, KeyID: k.KeyID()}
		if value, err := k.open(s); err == nil && string(value) != canary {
			t.Fatal("opened what was never sealed")
		}
	})
}
