package secret

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"cardea/api"
	"cardea/store"
)

// maxText is the size in bytes of the largest text value.
const maxText = 16 << 10

// Uses hands out what the Secrets of a store are for. Each use is checked against
// the Secret as it is stored now: that it is there, and that its binding allows
// it. Its fields must not change. It may be used from any number of goroutines.
type Uses struct {
	Keeper *Keeper
	Store  store.Store
	Now    func() time.Time

	certificates cache[*tls.Certificate] // by uid and resourceVersion
	materials    cache[*Material]
}

// Certificate returns the client certificate that the Secret of that name holds,
// to be shown on behalf of a Service (its full name) to a host. Its key stays
// here: PrivateKey is a [crypto.Signer] and nothing else. The value is PEM: a
// private key, its certificate, and those of its issuers, in any order.
//
// An error says which Secret, and what is wrong with it.
func (u *Uses) Certificate(ctx context.Context, name, service, host string) (c *tls.Certificate, err error) {
	err = u.get(ctx, name, service, host, func(r store.Reader, s *api.Secret) (err error) {
		c, err = u.certificates.get(s.Metadata.UID, s.Metadata.ResourceVersion, func() (*tls.Certificate, error) {
			return u.certificate(r, name)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	now := u.Now()
	switch leaf := c.Leaf; {
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("secret: the certificate in Secret %q expired on %s: store a new one", name, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("secret: the certificate in Secret %q is not valid before %s: compare the clock of this machine", name, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return c, nil
}

// Text returns the value of the Secret of that name, one line of text, to be sent
// to a host: a header of a collector. A Secret that is bound to Services is for
// those only.
func (u *Uses) Text(ctx context.Context, name, host string) (text string, err error) {
	err = u.get(ctx, name, "", host, func(r store.Reader, _ *api.Secret) error {
		return u.Keeper.use(r, name, func(_ *api.Secret, value []byte) (err error) {
			text, err = parseText(value)
			return err
		})
	})
	return text, err
}

// parseText reads a value as one line of text. A line end is no part of it: files
// have one.
func parseText(value []byte) (string, error) {
	line := bytes.TrimSuffix(bytes.TrimSuffix(value, []byte("\n")), []byte("\r"))
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	switch {
	case len(line) == 0 || len(line) > maxText:
		return "", fmt.Errorf("must hold 1 to %d bytes of text", maxText)
	case !utf8.Valid(line) || bytes.ContainsFunc(line, control):
		return "", errors.New("must hold one line of text")
	}
	return string(line), nil
}

// get calls f with the Secret of that name, if it may be used. Without Service and
// host, bindings are not looked at.
func (u *Uses) get(ctx context.Context, name, service, host string, f func(store.Reader, *api.Secret) error) error {
	return u.Store.View(ctx, func(r store.Reader) error {
		s, err := store.Get[*api.Secret](r, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: name})
		switch {
		case api.HasCode(err, api.CodeNotFound):
			return fmt.Errorf("secret: there is no Secret %q", name)
		case err != nil:
			return err
		case s.Metadata.IsSystem:
			return fmt.Errorf("secret: Secret %q is the cluster's own, and for nobody else", name)
		case (service != "" || host != "") && !s.Spec.Bind.Allows(service, host):
			return fmt.Errorf("secret: Secret %q is bound (spec.bind) and not to be used for %s", name, purpose(service, host))
		}
		return f(r, s)
	})
}

func purpose(service, host string) string {
	if service == "" {
		return fmt.Sprintf("host %q", host)
	}
	return fmt.Sprintf("Service %s at host %q", service, host)
}

// certificate makes a client certificate of a Secret's value.
func (u *Uses) certificate(r store.Reader, name string) (c *tls.Certificate, err error) {
	err = u.Keeper.use(r, name, func(_ *api.Secret, value []byte) error {
		key, chain, err := parse(value)
		if err != nil {
			return err
		}
		if len(chain) == 0 {
			return errors.New("has no certificate (PEM) beside its private key")
		}
		c = certificateOf(key, chain)
		return nil
	})
	return c, err
}

// certificateOf returns a certificate whose key cannot be reached.
func certificateOf(key crypto.Signer, chain []*x509.Certificate) *tls.Certificate {
	c := &tls.Certificate{PrivateKey: signer{key.Public(), key.Sign}, Leaf: chain[0]}
	if d, ok := key.(crypto.Decrypter); ok { // the RSA key exchange of old suites needs it
		c.PrivateKey = decrypter{signer{key.Public(), key.Sign}, d.Decrypt}
	}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}

// A signer signs with a key that nobody can reach through it, nor print.
type signer struct {
	public crypto.PublicKey
	sign   func(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// Public implements crypto.Signer.
func (s signer) Public() crypto.PublicKey { return s.public }

// Sign implements crypto.Signer.
func (s signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.sign(rand, digest, opts)
}

// A decrypter is a signer whose key decrypts too.
type decrypter struct {
	signer
	decrypt func(rand io.Reader, msg []byte, opts crypto.DecrypterOpts) ([]byte, error)
}

// Decrypt implements crypto.Decrypter.
func (d decrypter) Decrypt(rand io.Reader, msg []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	return d.decrypt(rand, msg, opts)
}
