package secret

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"cardea/api"
	"cardea/store"
)

// Signer returns the private key that the Secret of that name holds, and the
// certificates beside it, that of the key first: the cluster's own keys, see
// [Keeper.SealSigner]. It is NOT_FOUND if there is no such Secret.
func (k *Keeper) Signer(r store.Reader, name string) (key crypto.Signer, chain []*x509.Certificate, err error) {
	err = k.use(r, name, func(_ *api.Secret, value []byte) (err error) {
		key, chain, err = parse(value)
		return err
	})
	return key, chain, err
}

// PublicKeys returns the public keys that the Secret of that name holds: see
// [Keeper.SealPublicKeys]. It is NOT_FOUND if there is no such Secret.
func (k *Keeper) PublicKeys(r store.Reader, name string) (keys []ed25519.PublicKey, err error) {
	err = k.use(r, name, func(_ *api.Secret, value []byte) error {
		for rest := value; ; {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				return nil
			}
			parsed, err := x509.ParsePKIXPublicKey(b.Bytes)
			key, ok := parsed.(ed25519.PublicKey)
			if b.Type != pemPublic || err != nil || !ok {
				return errors.New("must hold PUBLIC KEYs of Ed25519, PEM, and nothing else")
			}
			keys = append(keys, key)
		}
	})
	return keys, err
}

// use calls f with the value of the Secret of that name, which is overwritten
// when f returns. An error of f completes "Secret NAME …".
func (k *Keeper) use(r store.Reader, name string, f func(s *api.Secret, value []byte) error) error {
	s, err := store.Get[*api.Secret](r, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: name})
	if err != nil {
		return err
	}
	value, err := k.open(s)
	if err != nil {
		return err
	}
	defer clear(value)
	if err := f(s, value); err != nil {
		return fmt.Errorf("secret: Secret %q %w", name, err)
	}
	return nil
}

// SealSigner makes key, with the certificates beside it, the value of s. It
// seals what [Keeper.Signer] opens; s needs its uid.
func (k *Keeper) SealSigner(s *api.Secret, key crypto.Signer, chain ...*x509.Certificate) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("secret: a key of type %T cannot be kept", key)
	}
	defer clear(der)
	blocks := []*pem.Block{{Type: pemKey, Bytes: der}}
	for _, c := range chain {
		blocks = append(blocks, &pem.Block{Type: pemCertificate, Bytes: c.Raw})
	}
	return k.sealPEM(s, blocks)
}

// SealPublicKeys makes keys the value of s. What matters of it is that nobody who
// writes to the store can add one. s needs its uid.
func (k *Keeper) SealPublicKeys(s *api.Secret, keys ...ed25519.PublicKey) error {
	var blocks []*pem.Block
	for _, key := range keys {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return fmt.Errorf("secret: encode a public key: %w", err)
		}
		blocks = append(blocks, &pem.Block{Type: pemPublic, Bytes: der})
	}
	return k.sealPEM(s, blocks)
}

func (k *Keeper) sealPEM(s *api.Secret, blocks []*pem.Block) error {
	// Room for all of it, so that no copy stays behind where the buffer grew.
	size := 0
	for _, b := range blocks {
		size += 2*len(b.Bytes) + 128
	}
	value := bytes.NewBuffer(make([]byte, 0, size))
	defer func() { clear(value.Bytes()) }()
	for _, b := range blocks {
		if err := pem.Encode(value, b); err != nil {
			return err
		}
	}
	return k.seal(s, value.Bytes())
}
