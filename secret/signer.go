package secret

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"cardea/api"
	"cardea/store"
)

// The types of PEM block (RFC 7468) that the value of a signer consists of.
const (
	pemKey         = "PRIVATE KEY" // PKCS #8
	pemCertificate = "CERTIFICATE"
)

// maxChain is the most certificates that may stand beside a key.
const maxChain = 16

// Signer returns the private key that the Secret of that name holds, and the
// certificates beside it, that of the key first. The value is PEM: one PRIVATE
// KEY (PKCS #8) and any number of CERTIFICATEs up to 16. It is NOT_FOUND if
// there is no such Secret.
func (k *Keeper) Signer(r store.Reader, name string) (crypto.Signer, []*x509.Certificate, error) {
	s, err := store.Get[*api.Secret](r, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: name})
	if err != nil {
		return nil, nil, err
	}
	value, err := k.open(s)
	if err != nil {
		return nil, nil, err
	}
	defer clear(value)
	key, chain, err := parse(value)
	if err != nil {
		return nil, nil, fmt.Errorf("secret: Secret %q %w", name, err)
	}
	return key, chain, nil
}

// SealSigner makes key, with the certificates beside it, the value of s. It
// seals what [Keeper.Signer] opens; s needs its uid.
func (k *Keeper) SealSigner(s *api.Secret, key crypto.Signer, chain ...*x509.Certificate) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("secret: a key of type %T cannot be kept", key)
	}
	defer clear(der)
	// Room for all of it, so that no copy stays behind where the buffer grew.
	size := 2*len(der) + 128
	for _, c := range chain {
		size += 2*len(c.Raw) + 128
	}
	value := bytes.NewBuffer(make([]byte, 0, size))
	defer func() { clear(value.Bytes()) }()
	err = pem.Encode(value, &pem.Block{Type: pemKey, Bytes: der})
	for _, c := range chain {
		err = errors.Join(err, pem.Encode(value, &pem.Block{Type: pemCertificate, Bytes: c.Raw}))
	}
	if err != nil {
		return err
	}
	return k.seal(s, value.Bytes())
}

// parse reads the value of a signer. Its errors complete "Secret NAME …", and
// wrap none of a parser: those quote what they read.
func parse(value []byte) (crypto.Signer, []*x509.Certificate, error) {
	var key crypto.Signer
	var chain []*x509.Certificate
	for rest := value; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch {
		case b.Type == pemKey && key == nil:
			parsed, err := x509.ParsePKCS8PrivateKey(b.Bytes)
			clear(b.Bytes)
			signer, ok := parsed.(crypto.Signer)
			if err != nil || !ok {
				return nil, nil, errors.New("has a private key that is not PKCS #8, or cannot sign")
			}
			key = signer
		case b.Type == pemCertificate && len(chain) < maxChain:
			c, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, nil, errors.New("has a certificate that cannot be parsed")
			}
			chain = append(chain, c)
		default:
			clear(b.Bytes)
			return nil, nil, fmt.Errorf("must hold one PRIVATE KEY (PKCS #8, PEM), at most %d CERTIFICATEs, and nothing else", maxChain)
		}
	}
	if key == nil {
		return nil, nil, errors.New("holds no PRIVATE KEY (PKCS #8, PEM)")
	}
	if len(chain) > 0 {
		public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
		if !ok || !public.Equal(chain[0].PublicKey) {
			return nil, nil, errors.New("has a first certificate that is not that of the private key")
		}
	}
	return key, chain, nil
}
