package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// A Key is a private or a public key of WireGuard: X25519 (RFC 7748). It never prints:
// see [Key.Text].
type Key [32]byte

// NewKey draws a private key.
func NewKey() Key {
	var k Key
	rand.Read(k[:])
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// ParseKey reads a key as Text writes it. The key of zeros is none.
func ParseKey(s string) (Key, error) {
	var k Key
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(k) || strings.ContainsAny(s, "\r\n") { // never quote it: it may be a private one
		return Key{}, fmt.Errorf("a WireGuard key is 32 bytes in base64, 44 characters")
	}
	if copy(k[:], b); k.IsZero() {
		return Key{}, fmt.Errorf("the WireGuard key is zero")
	}
	return k, nil
}

// Public returns the public key of a private one.
func (k Key) Public() Key {
	p, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic(err) // only the length can be wrong
	}
	return Key(p.PublicKey().Bytes())
}

// IsZero reports whether there is no key.
func (k Key) IsZero() bool { return k == Key{} }

// Text is the key in base64. Whoever calls it knows whether the key is a public one.
func (k Key) Text() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String says nothing: the key may be a private one.
func (Key) String() string { return "(key)" }

// GoString says nothing, as String.
func (Key) GoString() string { return "(key)" }

// hex is the key as the device wants it.
func (k Key) hex() string { return hex.EncodeToString(k[:]) }
