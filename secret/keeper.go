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
// readable at each moment, whatever crashes. Several processes may have one key file:
// those that have not replaced the key read the file again when they need the new one.
//
// No error of this package holds any part of a value, nor what a parser says of
// one.
package secret

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
)

// A Keeper seals and opens the values of Secrets. It may be used from any number
// of goroutines.
type Keeper struct {
	path    string // of the key file; "" if there is none
	ring    atomic.Pointer[ring]
	turning sync.Mutex           // held by who replaces ring
	missed  map[string]time.Time // when ids of keys were looked for in vain; under turning
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

// Seal moves the value of s from Data to Status, sealed: it sets Sealed, KeyID,
// SHA256 and Certificate, overwrites Data.ValueBytes and sets Data to nil. s needs
// its uid. One whose value is sealed already, and that brings no new one, stays as
// it is.
//
// Status.SHA256 is the HMAC-SHA-256 of the value under a key of this Secret:
// equal for equal values of one Secret, and without meaning across Secrets.
//
// Whoever stores s seals it in the transaction that stores it. So a key that is
// being replaced, here or by another process, is not used any more once everything was
// sealed anew.
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
	if err := k.put(vaultOf(s), value); err != nil {
		return err
	}
	s.Status.Certificate, s.Data = DescribeValue(value), nil
	return nil
}

// SealKubernetes does for a Secret of Kubernetes what Seal does for one of ours:
// its value is the JSON of all its values, and it need not have any. It does what
// [Describe] does, and clears Data and StringData.
func (k *Keeper) SealKubernetes(s *api.KubernetesSecret) error {
	if !s.HasData() && len(s.Status.Sealed) > 0 {
		return nil
	}
	values := s.Values()
	defer clearAll(values)
	value, err := json.Marshal(values)
	if err != nil {
		return err // never: it is a map of bytes
	}
	defer clear(value)
	if err := k.put(vaultOfKubernetes(s), value); err != nil {
		return err
	}
	Describe(s)
	s.Data, s.StringData = nil, nil
	return nil
}

// clearAll overwrites values that were opened.
func clearAll(values map[string][]byte) {
	for _, v := range values {
		clear(v)
	}
}

// A vault is where an Object keeps a sealed value.
type vault struct {
	title  string // for words
	kind   string // sealed values are bound to it, and to the uid
	uid    string
	sealed *[]byte
	keyID  *string
	hash   *string
}

func vaultOf(s *api.Secret) vault {
	return vault{
		title: fmt.Sprintf("Secret %q", s.Metadata.Name), kind: api.KindSecret, uid: s.Metadata.UID,
		sealed: &s.Status.Sealed, keyID: &s.Status.KeyID, hash: &s.Status.SHA256,
	}
}

func vaultOfKubernetes(s *api.KubernetesSecret) vault {
	return vault{
		title: titleOf(s.Key()), kind: api.GroupKubernetes + "/" + api.KindSecret, uid: s.Metadata.UID,
		sealed: &s.Status.Sealed, keyID: &s.Status.KeyID, hash: &s.Status.SHA256,
	}
}

// titleOf returns what errors call a Secret.
func titleOf(k api.Key) string {
	if k.Group != api.GroupKubernetes {
		return fmt.Sprintf("Secret %q", k.Name)
	}
	if k.Namespace != "" {
		return fmt.Sprintf("the Kubernetes Secret %q", k.Namespace+"/"+k.Name)
	}
	return fmt.Sprintf("the Kubernetes Secret %q", k.Name)
}

// put seals a value into a vault.
func (k *Keeper) put(v vault, value []byte) error {
	if v.uid == "" {
		return fmt.Errorf("secret: %s has no uid to be sealed to", v.title)
	}
	current, err := k.sealing()
	if err != nil {
		return err
	}
	v.put(current, value)
	return nil
}

// put seals a value under a key.
func (v vault) put(key *sealKey, value []byte) {
	*v.sealed, *v.hash = key.seal(v.kind, v.uid, value)
	*v.keyID = key.id
}

// open returns the value of s. The caller clears it.
func (k *Keeper) open(s *api.Secret) ([]byte, error) { return k.take(vaultOf(s)) }

// openKubernetes returns the values of s. The caller clears them.
func (k *Keeper) openKubernetes(s *api.KubernetesSecret) (map[string][]byte, error) {
	value, err := k.take(vaultOfKubernetes(s))
	if err != nil {
		return nil, err
	}
	defer clear(value)
	var values map[string][]byte
	if json.Unmarshal(value, &values) != nil { // never: it was authenticated
		return nil, fmt.Errorf("secret: %s holds something else than values", titleOf(s.Key()))
	}
	return values, nil
}

// take returns what is sealed in a vault.
func (k *Keeper) take(v vault) ([]byte, error) {
	sealed := *v.sealed
	if len(sealed) == 0 {
		return nil, fmt.Errorf("secret: %s has no sealed value", v.title)
	}
	key, err := k.key(*v.keyID)
	switch {
	case err != nil:
		return nil, fmt.Errorf("secret: %s is sealed under the key %.16q, which is not known: the key file: %w", v.title, *v.keyID, err)
	case key == nil:
		return nil, fmt.Errorf("secret: %s is sealed under the key %.16q and this is %s: start with the key file that belongs to this store", v.title, *v.keyID, k.KeyID())
	case sealed[0] != version:
		return nil, fmt.Errorf("secret: %s is sealed in a format (%d) that this version does not know", v.title, sealed[0])
	}
	value, err := key.aead(v.uid).Open(nil, nil, sealed[1:], binding(v.kind, v.uid))
	if err != nil {
		return nil, fmt.Errorf("secret: %s does not open: it was altered in the store, or copied from another Secret", v.title)
	}
	return value, nil
}

const (
	// missedFor is for how long a key that is not in the files is not looked for again.
	missedFor = time.Second
	// maxMissed is of how many keys that is known: others are not looked for.
	maxMissed = 64
)

// key returns the key of that id, nil if it is neither known nor in the files. They
// are read again for it, as another process may have made it.
func (k *Keeper) key(id string) (*sealKey, error) {
	if key := k.ring.Load().byID[id]; key != nil || k.path == "" {
		return key, nil
	}
	k.turning.Lock()
	defer k.turning.Unlock()
	if key := k.ring.Load().byID[id]; key != nil {
		return key, nil
	}
	now := time.Now()
	maps.DeleteFunc(k.missed, func(_ string, at time.Time) bool { return now.Sub(at) >= missedFor })
	if _, ok := k.missed[id]; ok || len(k.missed) >= maxMissed {
		return nil, nil
	}
	files, err := readRing(k.path)
	if err == nil && files.byID[id] != nil { // a value shows that they belong to this store
		k.turn(files)
		return files.byID[id], nil
	}
	if k.missed == nil {
		k.missed = map[string]time.Time{}
	}
	k.missed[id] = now
	return nil, err
}

// sealing returns the key in the key file: what another process has replaced must
// not seal any more, as nothing but this Keeper may have it. It is a CONFLICT if the
// file has a key of which nothing shows yet that it replaces one of this Keeper.
func (k *Keeper) sealing() (*sealKey, error) {
	mine := k.ring.Load()
	if k.path == "" {
		return mine.current, nil
	}
	current, err := read(k.path)
	if err != nil {
		return nil, fmt.Errorf("secret: the key file: %w", err)
	}
	if current.id == mine.current.id {
		return mine.current, nil
	}
	k.turning.Lock()
	defer k.turning.Unlock()
	files, err := readRing(k.path)
	if err != nil {
		return nil, fmt.Errorf("secret: the key file: %w", err)
	}
	mine = k.ring.Load()
	if mine.byID[files.current.id] == nil && files.byID[mine.current.id] == nil {
		e := api.Errorf(api.CodeConflict, "secret: the key file %s was changed by somebody else", k.path)
		e.Hint = "if another process has just rotated the key, try again; otherwise restore the file"
		return nil, e
	}
	k.turn(files)
	return files.current, nil
}

// turn makes the current key of a ring the one that seals; those that were known
// before still open. Its caller holds turning.
func (k *Keeper) turn(to *ring) {
	byID := maps.Clone(k.ring.Load().byID)
	maps.Copy(byID, to.byID)
	k.ring.Store(&ring{current: to.current, byID: byID})
}
