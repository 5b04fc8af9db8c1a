package journal

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// KeyID returns the name by which heads call the key that signed them: the first
// 16 hexadecimal digits of its SHA-256.
func KeyID(k ed25519.PublicKey) string {
	sum := sha256.Sum256(k)
	return hex.EncodeToString(sum[:8])
}

// A keyring is the key that signs, and those whose heads are accepted.
type keyring struct {
	mu    sync.Mutex
	now   crypto.Signer
	known []ed25519.PublicKey // that of now among them
}

// set makes s the key that signs, and earlier known beside those that are.
func (r *keyring) set(s crypto.Signer, earlier []ed25519.PublicKey) error {
	if s == nil {
		return errors.New("a signer is required")
	}
	key, ok := s.Public().(ed25519.PublicKey)
	if !ok {
		return fmt.Errorf("the signer has a key of type %T; it must be Ed25519", s.Public())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = s
	for _, k := range append(slices.Clone(earlier), key) {
		if !slices.ContainsFunc(r.known, func(o ed25519.PublicKey) bool { return o.Equal(k) }) {
			r.known = append(slices.Clip(r.known), k) // who has the old slice keeps it
		}
	}
	return nil
}

func (r *keyring) signer() crypto.Signer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *keyring) keys() []ed25519.PublicKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known
}
