package secret

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Only the key that vouched for a digest, and only for that purpose, says that it
// is authentic; also once another has taken its place, as long as it is kept.
func TestAuthenticate(t *testing.T) {
	one, other := newKeeper(t, 1), newKeeper(t, 2)
	digest := sha256.Sum256([]byte("all that there is"))
	id, mac := one.Authenticate("backup", digest[:])
	if err := one.Authentic("backup", id, digest[:], mac); err != nil {
		t.Error(err)
	}
	if id != one.KeyID() {
		t.Errorf("it was vouched for by %s, the key is %s", id, one.KeyID())
	}
	if err := other.Authentic("backup", id, digest[:], mac); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("another Keeper: %v", err)
	}
	for name, err := range map[string]error{
		"another purpose":   one.Authentic("letter", id, digest[:], mac),
		"another digest":    one.Authentic("backup", id, bytes.Repeat([]byte{1}, 32), mac),
		"another mac":       one.Authentic("backup", id, digest[:], append(bytes.Clone(mac[:31]), mac[31]^1)),
		"no mac":            one.Authentic("backup", id, digest[:], nil),
		"the key of others": other.Authentic("backup", other.KeyID(), digest[:], mac),
	} {
		if err == nil || errors.Is(err, ErrUnknownKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAuthenticateAfterRotation(t *testing.T) {
	dir := t.TempDir()
	k := openAt(t, dir)
	digest := sha256.Sum256(nil)
	id, mac := k.Authenticate("backup", digest[:])
	path := filepath.Join(dir, "seal.key")
	copied, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Rotate(t.Context(), newStore(t)); err != nil {
		t.Fatal(err)
	}
	if err := k.Authentic("backup", id, digest[:], mac); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("after the key was removed: %v", err)
	}
	if err := os.WriteFile(path+"."+id, copied, 0o600); err != nil { // from a copy of that time
		t.Fatal(err)
	}
	if err := openAt(t, dir).Authentic("backup", id, digest[:], mac); err != nil {
		t.Errorf("with the key of that time beside that of now: %v", err)
	}
}
