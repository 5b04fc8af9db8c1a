// Package secret keeps the values of Secrets. It is the only room that turns a
// stored Secret into its value, and it hands out what the value is for (a
// signer, a client certificate) rather than the value itself.
//
// A value is sealed with AES-256-GCM under a key that HKDF-SHA-256 (RFC 5869)
// derives, for each Secret, from the keeper's key and the Secret's uid. The
// ciphertext is bound to kind, field and uid: a row that was altered in the
// store, or copied into another Secret, does not open. The keeper's key is never
// in the store.
//
// The key can be replaced (see [Keeper.Rotate]); what the old one sealed stays
// readable at each moment, whatever crashes.
//
// No error of this package holds any part of a value, nor what a parser says of
// one.
package secret

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"cardea/api"
)

// A Keeper seals and opens the values of Secrets. It may be used from any number
// of goroutines.
type Keeper struct {
	path     string // of the key file; "" if there is none
	ring     atomic.Pointer[ring]
	changing sync.Mutex // held by who replaces keys, from the first step to the last
}

// A ring is the keys of a Keeper. It does not change.
type ring struct {
	current *sealKey            // seals
	byID    map[string]*sealKey // open: current, and those that it replaced
}

// New returns a Keeper for a key of [KeySize] random bytes. It keeps a copy.
func New(key []byte) (*Keeper, error) {
	current, err := newSealKey(key)
	if err != nil {
		return nil, err
	}
	k := new(Keeper)
	k.ring.Store(&ring{current: current, byID: map[string]*sealKey{current.id: current}})
	return k, nil
}

// KeyID names the key that seals, and tells nothing of it.
func (k *Keeper) KeyID() string { return k.ring.Load().current.id }

// String returns the key's id, so that no format verb prints the key.
func (k *Keeper) String() string { return "secret.Keeper(" + k.KeyID() + ")" }

// GoString does as String.
func (k *Keeper) GoString() string { return k.String() }

// Seal moves the value of s from Data to Status, sealed: it sets Sealed, KeyID
// and SHA256, overwrites Data.ValueBytes and sets Data to nil. s needs its uid.
// One whose value is sealed already, and that brings no new one, stays as it is.
//
// Status.SHA256 is the HMAC-SHA-256 of the value under a key of this Secret:
// equal for equal values of one Secret, and without meaning across Secrets.
//
// Whoever stores s seals it in the transaction that stores it. So a key that is
// being replaced is not used any more once everything was sealed anew.
func (k *Keeper) Seal(s *api.Secret) error {
	if s.Data == nil && len(s.Status.Sealed) > 0 {
		return nil
	}
	var value []byte
	if s.Data != nil {
		value = s.Data.Bytes()
	}
	if len(value) == 0 {
		return fmt.Errorf("secret: Secret %q has no value", s.Metadata.Name)
	}
	defer clear(value)
	return k.seal(s, value)
}

// seal makes value that of s.
func (k *Keeper) seal(s *api.Secret, value []byte) error {
	uid := s.Metadata.UID
	if uid == "" {
		return fmt.Errorf("secret: Secret %q has no uid to be sealed to", s.Metadata.Name)
	}
	s.Status, s.Data = k.ring.Load().current.seal(uid, value), nil
	return nil
}

// open returns the value of s. The caller clears it.
func (k *Keeper) open(s *api.Secret) ([]byte, error) {
	sealed, uid, name := s.Status.Sealed, s.Metadata.UID, s.Metadata.Name
	if len(sealed) == 0 {
		return nil, fmt.Errorf("secret: Secret %q has no sealed value", name)
	}
	r := k.ring.Load()
	key := r.byID[s.Status.KeyID]
	switch {
	case key == nil:
		return nil, fmt.Errorf("secret: Secret %q is sealed under the key %.16q and this is %s: start with the key file that belongs to this store", name, s.Status.KeyID, r.current.id)
	case sealed[0] != version:
		return nil, fmt.Errorf("secret: Secret %q is sealed in a format (%d) that this version does not know", name, sealed[0])
	}
	value, err := key.aead(uid).Open(nil, nil, sealed[1:], binding(uid))
	if err != nil {
		return nil, fmt.Errorf("secret: Secret %q does not open: it was altered in the store, or copied from another Secret", name)
	}
	return value, nil
}

// turn makes key the one that seals; those before it still open.
func (k *Keeper) turn(key *sealKey) {
	byID := maps.Clone(k.ring.Load().byID)
	byID[key.id] = key
	k.ring.Store(&ring{current: key, byID: byID})
}
