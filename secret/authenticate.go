package secret

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
)

// ErrUnknownKey is in the error of Authentic if the key is not one of this Keeper.
var ErrUnknownKey = errors.New("the key that vouches for it is not here")

// Authenticate vouches for something by its digest, which should be a
// cryptographic hash: mac is the HMAC-SHA-256 of the digest under a key that is
// derived from the one that seals now, for this purpose alone. keyID names that
// one. Only who has it can make mac, or check it.
func (k *Keeper) Authenticate(purpose string, digest []byte) (keyID string, mac []byte) {
	current, err := k.sealing()
	if err != nil {
		current = k.ring.Load().current // it can vouch as long as it is kept
	}
	return current.id, current.authenticate(purpose, digest)
}

// Authentic returns nil if keyID and mac are what Authenticate returned for the
// same purpose and digest, of this Keeper or of one whose key stands beside its
// own (see [Open]).
func (k *Keeper) Authentic(purpose, keyID string, digest, mac []byte) error {
	key, err := k.key(keyID)
	if err != nil {
		return fmt.Errorf("%w: it is %.16q: the key file: %w", ErrUnknownKey, keyID, err)
	}
	if key == nil {
		return fmt.Errorf("%w: it is %.16q, and this is %s", ErrUnknownKey, keyID, k.KeyID())
	}
	if !hmac.Equal(mac, key.authenticate(purpose, digest)) {
		return fmt.Errorf("the key %s does not vouch for it: it was altered, or written by somebody else", keyID)
	}
	return nil
}

// authenticate returns the HMAC of a digest for a purpose.
func (k *sealKey) authenticate(purpose string, digest []byte) []byte {
	key := k.derive("authenticate "+purpose, "", sha256.Size)
	defer clear(key)
	mac := hmac.New(sha256.New, key)
	mac.Write(digest)
	return mac.Sum(nil)
}
