package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// KeySize is the size in bytes of a keeper's key.
const KeySize = 32

// version is the first byte of every sealed value: it says how the rest was
// made. Behind it stand a nonce of 96 random bits, the ciphertext and its tag.
const version = 1

// A sealKey seals and opens values.
type sealKey struct {
	bytes []byte
	id    string // names it, and tells nothing of it
}

// newSealKey returns a key of KeySize random bytes, of which it keeps a copy.
func newSealKey(b []byte) (*sealKey, error) {
	if len(b) != KeySize {
		return nil, fmt.Errorf("secret: a key must have %d bytes, this one has %d", KeySize, len(b))
	}
	k := &sealKey{bytes: append([]byte(nil), b...)}
	k.id = hex.EncodeToString(k.derive("key id", "", 8))
	return k, nil
}

// derive returns n bytes that are good for one purpose and one Secret only.
func (k *sealKey) derive(purpose, uid string, n int) []byte {
	b, err := hkdf.Key(sha256.New, k.bytes, []byte(uid), "cardea secret 1 "+purpose, n)
	if err != nil {
		panic("secret: " + err.Error()) // only for an n beyond 8160
	}
	return b
}

// aead returns the cipher for the value of the Secret of that uid.
func (k *sealKey) aead(uid string) cipher.AEAD {
	key := k.derive("seal", uid, 32)
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("secret: " + err.Error()) // only for a key of the wrong size
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("secret: " + err.Error()) // only for a block of the wrong size
	}
	return a
}

// binding is the additional data: what a sealed value belongs to. The uid comes
// last, so that no two of them read the same.
func binding(kind, uid string) []byte { return []byte(kind + "\x00data\x00" + uid) }

// seal returns value, sealed for the Object of that kind and uid, and a keyed hash
// of it in hex.
func (k *sealKey) seal(kind, uid string, value []byte) (sealed []byte, hash string) {
	mac := hmac.New(sha256.New, k.derive("hash", uid, 32))
	mac.Write(value)
	return k.aead(uid).Seal([]byte{version}, nil, value, binding(kind, uid)), hex.EncodeToString(mac.Sum(nil))
}
