package secret

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// The types of PEM block (RFC 7468) that are written here.
const (
	pemKey         = "PRIVATE KEY" // PKCS #8
	pemCertificate = "CERTIFICATE"
	pemPublic      = "PUBLIC KEY"
)

// maxChain is the most certificates that may stand beside a key.
const maxChain = 16

// parse reads a private key and its certificates, PEM in any order. The
// certificates that come back begin with that of the key, if there are any, each
// followed by that of its issuer as far as they are there.
//
// Its errors complete "Secret NAME …", and wrap none of a parser: those quote
// what they read.
func parse(value []byte) (crypto.Signer, []*x509.Certificate, error) {
	var key crypto.Signer
	var certs []*x509.Certificate
	for rest := value; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch {
		case b.Type == pemCertificate && len(certs) < maxChain:
			c, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, nil, errors.New("has a certificate that cannot be parsed")
			}
			certs = append(certs, c)
		case b.Type == pemCertificate:
			return nil, nil, fmt.Errorf("has more than %d certificates", maxChain)
		case b.Type == "EC PARAMETERS": // openssl ecparam writes them before the key, which says them too
		default:
			k, err := parseKey(b)
			clear(b.Bytes)
			if err != nil {
				return nil, nil, err
			}
			if key != nil {
				return nil, nil, errors.New("has more than one private key")
			}
			key = k
		}
	}
	if key == nil {
		return nil, nil, errors.New("has no private key (PEM)")
	}
	if len(certs) == 0 {
		return key, nil, nil
	}
	chain, err := order(key, certs)
	return key, chain, err
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
		return nil, errors.New("must hold one PRIVATE KEY and CERTIFICATEs, PEM, and nothing else")
	}
	signer, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("has a private key that cannot be read, or cannot sign")
	}
	return signer, nil
}

// order sorts certificates: that of key, that of its issuer, and so on; what is
// left comes last, as it was.
func order(key crypto.Signer, certs []*x509.Certificate) ([]*x509.Certificate, error) {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	at := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return ok && public.Equal(c.PublicKey) })
	if at < 0 {
		return nil, errors.New("has a private key that belongs to none of its certificates")
	}
	var chain []*x509.Certificate
	for left := slices.Clone(certs); ; {
		last := left[at]
		chain, left = append(chain, last), slices.Delete(left, at, at+1)
		at = slices.IndexFunc(left, func(c *x509.Certificate) bool { return string(c.RawSubject) == string(last.RawIssuer) })
		if at < 0 {
			return append(chain, left...), nil
		}
	}
}
