// Package secret keeps the values of Secrets. It is the only room that turns a
// stored Secret into its value, and it hands out what the value is for (a
// signer) rather than the value itself.
//
// A value is sealed with AES-256-GCM under a key that HKDF-SHA-256 (RFC 5869)
// derives, for each Secret, from the keeper's key and the Secret's uid. The
// ciphertext is bound to kind, field and uid: a row that was altered in the
// store, or copied into another Secret, does not open. The keeper's key is never
// in the store.
//
// No error of this package holds any part of a value, nor what a parser says of
// one.
package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"cardea/api"
)

// KeySize is the size in bytes of a keeper's key.
const KeySize = 32

// version is the first byte of every sealed value: it says how the rest was
// made. Behind it stand a nonce of 96 random bits, the ciphertext and its tag.
const version = 1

// A Keeper seals and opens the values of Secrets. It may be used from any number
// of goroutines.
type Keeper struct {
	key []byte
	id  string
}

// New returns a Keeper for a key of [KeySize] random bytes. It keeps a copy.
func New(key []byte) (*Keeper, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("secret: a key must have %d bytes, this one has %d", KeySize, len(key))
	}
	k := &Keeper{key: append([]byte(nil), key...)}
	k.id = hex.EncodeToString(k.derive("key id", "", 8))
	return k, nil
}

// Open returns the Keeper of the key file at path, and makes the file if there
// is none. Several processes may do so at once: all get the same key. The file
// holds [KeySize] bytes and must not be accessible to anybody but its owner.
//
// Whoever loses the file loses the values of all Secrets.
func Open(path string) (*Keeper, error) {
	key, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = create(path); err == nil {
			key, err = read(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("secret: the key file: %w", err)
	}
	defer clear(key)
	return New(key)
}

// read returns the key in the file at path.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s is accessible to others (mode %04o): run chmod 600 on it", path, info.Mode().Perm())
	case info.Size() != KeySize:
		return nil, fmt.Errorf("%s has %d bytes and not %d: restore it from a copy", path, info.Size(), KeySize)
	}
	key := make([]byte, KeySize)
	_, err = io.ReadFull(f, key)
	return key, err
}

// create makes a key file at path unless one is there. The key is written and
// synced under another name first: the file has its name only once it is whole,
// whatever crashes and whoever else creates it.
func create(path string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // O_EXCL, mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	key := make([]byte, KeySize)
	defer clear(key)
	rand.Read(key) // never fails
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// KeyID names the key, and tells nothing of it.
func (k *Keeper) KeyID() string { return k.id }

// String returns the key's id, so that no format verb prints the key.
func (k *Keeper) String() string { return "secret.Keeper(" + k.id + ")" }

// GoString does as String.
func (k *Keeper) GoString() string { return k.String() }

// derive returns n bytes that are good for one purpose and one Secret only.
func (k *Keeper) derive(purpose, uid string, n int) []byte {
	b, err := hkdf.Key(sha256.New, k.key, []byte(uid), "cardea secret 1 "+purpose, n)
	if err != nil {
		panic("secret: " + err.Error()) // only for an n beyond 8160
	}
	return b
}

// aead returns the cipher for the value of the Secret of that uid.
func (k *Keeper) aead(uid string) cipher.AEAD {
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
func binding(uid string) []byte { return []byte(api.KindSecret + "\x00data\x00" + uid) }

// Seal moves the value of s from Data to Status, sealed: it sets Sealed, KeyID
// and SHA256, overwrites Data.ValueBytes and sets Data to nil. s needs its uid.
// One whose value is sealed already, and that brings no new one, stays as it is.
//
// Status.SHA256 is the HMAC-SHA-256 of the value under a key of this Secret:
// equal for equal values of one Secret, and without meaning across Secrets.
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
	mac := hmac.New(sha256.New, k.derive("hash", uid, 32))
	mac.Write(value)
	s.Status = api.SecretStatus{
		Sealed: k.aead(uid).Seal([]byte{version}, nil, value, binding(uid)),
		KeyID:  k.id,
		SHA256: hex.EncodeToString(mac.Sum(nil)),
	}
	s.Data = nil
	return nil
}

// open returns the value of s. The caller clears it.
func (k *Keeper) open(s *api.Secret) ([]byte, error) {
	sealed, uid, name := s.Status.Sealed, s.Metadata.UID, s.Metadata.Name
	switch {
	case len(sealed) == 0:
		return nil, fmt.Errorf("secret: Secret %q has no sealed value", name)
	case s.Status.KeyID != k.id:
		return nil, fmt.Errorf("secret: Secret %q is sealed under the key %.16q and this is %s: start with the key file that belongs to this store", name, s.Status.KeyID, k.id)
	case sealed[0] != version:
		return nil, fmt.Errorf("secret: Secret %q is sealed in a format (%d) that this version does not know", name, sealed[0])
	}
	value, err := k.aead(uid).Open(nil, nil, sealed[1:], binding(uid))
	if err != nil {
		return nil, fmt.Errorf("secret: Secret %q does not open: it was altered in the store, or copied from another Secret", name)
	}
	return value, nil
}
