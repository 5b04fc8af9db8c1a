package secret

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The types of PEM block (RFC 7468) that are read and written here.
const (
	pemKey         = "PRIVATE KEY" // PKCS #8
	pemCertificate = "CERTIFICATE"
	pemPublic      = "PUBLIC KEY"
	pemRevocation  = "X509 CRL"
)

const (
	// maxChain is the most certificates that may stand beside a key.
	maxChain = 16
	// maxCAs is the most certificates, and the most revocation lists, of anything.
	maxCAs = 1024
)

// A bundle is what PEM blocks hold, each kind in the order in which it stands.
type bundle struct {
	key   crypto.Signer
	certs []*x509.Certificate
	lists []*x509.RevocationList
	other bool // there are blocks of other types
}

// add adds the blocks of a text. Its errors complete "Secret NAME …", and wrap none
// of a parser: those quote what they read.
func (b *bundle) add(text []byte) error {
	for rest := text; ; {
		var p *pem.Block
		if p, rest = pem.Decode(rest); p == nil {
			return nil
		}
		switch {
		case (p.Type == pemCertificate || p.Type == pemRevocation) && len(b.certs)+len(b.lists) == maxCAs:
			return fmt.Errorf("has more than %d certificates and revocation lists", maxCAs)
		case p.Type == pemCertificate:
			c, err := x509.ParseCertificate(p.Bytes)
			if err != nil {
				return errors.New("has a certificate that cannot be parsed")
			}
			b.certs = append(b.certs, c)
		case p.Type == pemRevocation:
			l, err := parseList(p.Bytes)
			if err != nil {
				return err
			}
			b.lists = append(b.lists, l)
		case p.Type == "EC PARAMETERS": // openssl ecparam writes them before the key, which says them too
		case strings.HasSuffix(p.Type, pemKey):
			k, err := parseKey(p)
			clear(p.Bytes)
			if err != nil {
				return err
			}
			if b.key != nil {
				return errors.New("has more than one private key")
			}
			b.key = k
		default:
			b.other = true
		}
	}
}

// chain returns the certificates, if there are any: that of the key, then that of
// its issuer, and so on; what is left comes last, as it was.
func (b *bundle) chain() ([]*x509.Certificate, error) {
	switch {
	case len(b.certs) == 0:
		return nil, nil
	case len(b.certs) > maxChain:
		return nil, fmt.Errorf("has more than %d certificates beside its private key", maxChain)
	}
	at := b.own()
	if at < 0 {
		return nil, errors.New("has a private key that belongs to none of its certificates")
	}
	var chain []*x509.Certificate
	for left := slices.Clone(b.certs); ; {
		last := left[at]
		chain, left = append(chain, last), slices.Delete(left, at, at+1)
		at = slices.IndexFunc(left, func(c *x509.Certificate) bool { return string(c.RawSubject) == string(last.RawIssuer) })
		if at < 0 {
			return append(chain, left...), nil
		}
	}
}

// own returns which of the certificates is that of the key, -1 if none is.
func (b *bundle) own() int {
	if b.key == nil {
		return -1
	}
	public, ok := b.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return slices.IndexFunc(b.certs, func(c *x509.Certificate) bool { return ok && public.Equal(c.PublicKey) })
}

// parse reads a private key and its certificates, PEM in any order. The
// certificates that come back begin with that of the key, if there are any, each
// followed by that of its issuer as far as they are there.
func parse(value []byte) (crypto.Signer, []*x509.Certificate, error) {
	var b bundle
	if err := b.add(value); err != nil {
		return nil, nil, err
	}
	switch {
	case b.other || len(b.lists) > 0:
		return nil, nil, errors.New("must hold one PRIVATE KEY and CERTIFICATEs, PEM, and nothing else")
	case b.key == nil:
		return nil, nil, errors.New("has no private key (PEM)")
	}
	chain, err := b.chain()
	return b.key, chain, err
}

// parseKey reads a private key in one of the usual forms.
func parseKey(b *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch {
	case b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["Proc-Type"] != "":
		return nil, errors.New("has a private key that is encrypted; store it without: openssl pkey -in FILE")
	case b.Type == pemKey:
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case b.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(b.Bytes)
	case b.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	default:
		return nil, errors.New("has a private key of a form that is not known; write it as PKCS #8: openssl pkey -in FILE")
	}
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("has a private key that cannot be read, or cannot sign")
	}
	return signer, nil
}
