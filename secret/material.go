package secret

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"cardea/api"
	"cardea/store"
)

// maxFile is the size in bytes of the largest file of certificates.
const maxFile = 4 << 20

// A Material is what TLS is spoken with: what one Secret, or some files, hold.
type Material struct {
	Certificate *tls.Certificate // with its key, which stays here: a crypto.Signer; nil if there is none
	CAs         *x509.CertPool   // nil if there are none
	CRLs        []*x509.RevocationList
	// CertRequired is what a Secret says of client certificates, nil if it says nothing.
	CertRequired *bool
	Version      string // another one when the content is

	once  sync.Once
	lists []*revocations // what CRLs say
}

// Material returns what the Secret or the files hold that m names, for a Service
// (its full name, or KIND/NAMESPACE/NAME of a foreign Object) to use with a host.
//
// A Secret of Kubernetes has a certificate in tls.crt with its key in tls.key (or
// cert-chain.pem with key.pem; user.key is a key too), revocation lists in crl.pem,
// and "true" or "false" in cert_required. Its CAs are tls.crt if the first
// certificate there is a CA; else root-cert.pem and ca.crt; else tls.crt all the
// same. A Secret of ours, and files, have PEM of any of them, and each certificate
// is a CA too.
//
// Expired certificates are no error. A key that does not fit its certificate is
// one, and so is a Secret of which nothing can be used.
//
// A Secret of ours must not be bound to other Services or hosts than those given; at
// a listener, where both are empty, bindings say nothing.
func (u *Uses) Material(ctx context.Context, m *api.Material, service, host string) (*Material, error) {
	switch {
	case m.Secret == nil:
		return u.fromFiles(m)
	case m.Secret.Group == api.GroupKubernetes:
		return u.fromKubernetes(ctx, *m.Secret)
	}
	var out *Material
	err := u.get(ctx, m.Secret.Name, service, host, func(r store.Reader, s *api.Secret) (err error) {
		out, err = u.materials.get(s.Metadata.UID, s.Metadata.ResourceVersion, func() (*Material, error) {
			value, err := u.Keeper.open(s)
			if err != nil {
				return nil, err
			}
			defer clear(value)
			return complete(titleOf(s.Key()), versionOf(s), func(m *Material) error { return m.add(value, nil) })
		})
		return err
	})
	return out, err
}

// versionOf names the content of a Secret.
func versionOf(o api.Object) string {
	m := &o.Header().Metadata
	return m.UID + "/" + m.ResourceVersion
}

// fromKubernetes does so for a Secret of Kubernetes.
func (u *Uses) fromKubernetes(ctx context.Context, k api.Key) (m *Material, err error) {
	k.Kind = api.KindSecret
	err = u.Store.View(ctx, func(r store.Reader) error {
		rec, err := r.Get(k)
		if api.HasCode(err, api.CodeNotFound) {
			return fmt.Errorf("secret: there is no %s", strings.TrimPrefix(titleOf(k), "the "))
		}
		if err != nil {
			return err
		}
		// The revision of the commit says more than the resourceVersion, and reading it
		// takes no decoding of the values, which are many bytes.
		m, err = u.materials.get(rec.UID, rec.Revision.String(), func() (*Material, error) {
			s, err := store.Get[*api.KubernetesSecret](r, k)
			if err != nil {
				return nil, err
			}
			values, err := u.Keeper.openKubernetes(s)
			if err != nil {
				return nil, err
			}
			defer clearAll(values)
			return complete(titleOf(k), versionOf(s), func(m *Material) error { return m.addKubernetes(values) })
		})
		return err
	})
	return m, err
}

// fromFiles does so for files. They are read each time, and parsed when they have
// changed.
func (u *Uses) fromFiles(m *api.Material) (*Material, error) {
	chain, err := readFile(m.Chain)
	if err != nil {
		return nil, err
	}
	defer clear(chain)
	var key []byte
	if m.Key != "" {
		if key, err = readFile(m.Key); err != nil {
			return nil, err
		}
		defer clear(key)
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%d ", len(chain))
	hash.Write(chain)
	hash.Write(key)
	version := hex.EncodeToString(hash.Sum(nil))
	return u.materials.get(m.Chain+"\x00"+m.Key, version, func() (*Material, error) {
		title := fmt.Sprintf("the file %q", m.Chain)
		if m.Key != "" {
			title += fmt.Sprintf(" with its key %q", m.Key)
		}
		return complete(title, version, func(out *Material) error { return out.add(chain, key) })
	})
}

// readFile returns what a file of PEM holds.
func readFile(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("secret: no file is named")
	}
	// What is no regular file may block who opens it.
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("secret: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("secret: %s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("secret: %w", err)
	case len(b) > maxFile:
		return nil, fmt.Errorf("secret: %s is larger than %d bytes", path, maxFile)
	}
	return b, nil
}

// complete makes a Material that fill fills. An error of fill completes the title.
func complete(title, version string, fill func(*Material) error) (*Material, error) {
	m := &Material{Version: version}
	err := fill(m)
	if err == nil && m.Certificate == nil && m.CAs == nil && len(m.CRLs) == 0 {
		err = errors.New("has no certificate, CA or revocation list")
	}
	if err != nil {
		return nil, fmt.Errorf("secret: %s %w", title, err)
	}
	return m, nil
}

// add takes all that PEM and the key of it have, which may be nil.
func (m *Material) add(text, key []byte) error {
	var b bundle
	for _, t := range [][]byte{text, key} {
		if err := b.add(t); err != nil {
			return err
		}
	}
	m.CAs, m.CRLs = pool(b.certs), b.lists
	return m.own(&b)
}

// own takes the certificate of the key, if both are there.
func (m *Material) own(b *bundle) error {
	if b.key == nil || len(b.certs) == 0 {
		return nil
	}
	chain, err := b.chain()
	if err != nil {
		return err
	}
	m.Certificate = certificateOf(b.key, chain)
	return nil
}

// addKubernetes takes the values of a Secret of Kubernetes.
func (m *Material) addKubernetes(values map[string][]byte) error {
	cert, key := ownOf(values)
	var own, roots, lists bundle
	for _, x := range []struct {
		b    *bundle
		text []byte
	}{{&own, cert}, {&own, key}, {&roots, values[keyIstioRoot]}, {&roots, values[keyCA]}, {&lists, values[keyCRL]}} {
		if err := x.b.add(x.text); err != nil {
			return err
		}
	}
	if err := m.own(&own); err != nil {
		return err
	}
	switch isCA := len(own.certs) > 0 && own.certs[0].IsCA; {
	case isCA, len(roots.certs) == 0:
		m.CAs = pool(own.certs)
	default:
		m.CAs = pool(roots.certs)
	}
	if m.CRLs = lists.lists; len(values[keyCRL]) > 0 && len(m.CRLs) == 0 {
		return fmt.Errorf("has no revocation list (PEM, X509 CRL) in %s", keyCRL)
	}
	if text := bytes.TrimSpace(values[keyCertRequired]); len(text) > 0 {
		required, err := strconv.ParseBool(strings.ToLower(string(text)))
		if err != nil {
			return fmt.Errorf("must have true or false in %s", keyCertRequired)
		}
		m.CertRequired = &required
	}
	return nil
}

// pool returns certificates as CAs, nil if there are none.
func pool(certs []*x509.Certificate) *x509.CertPool {
	if len(certs) == 0 {
		return nil
	}
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}
