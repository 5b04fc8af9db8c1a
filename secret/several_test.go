package secret

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/store"
)

// get returns the Secret of that name.
func get(t *testing.T, st store.Store, name string) (s *api.Secret) {
	t.Helper()
	if err := st.View(t.Context(), func(r store.Reader) (err error) {
		s, err = store.Get[*api.Secret](r, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: name})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// meet opens a Secret, as a process does that follows the store. It may be overtaken
// by the next rotation.
func meet(t *testing.T, st store.Store, k *Keeper) {
	t.Helper()
	if err := st.View(t.Context(), func(r store.Reader) error {
		s, err := store.Get[*api.Secret](r, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: "first"})
		if err == nil {
			k.open(s)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// What one process has sealed under a new key another one opens, and from then on
// seals under it too: also if the key was replaced more than once.
func TestTwoProcesses(t *testing.T) {
	for rotations := 1; rotations <= 2; rotations++ {
		dir := t.TempDir()
		st := newStore(t)
		newest := openAt(t, dir)
		if err := add(t.Context(), st, newest, "a", canary+"a"); err != nil {
			t.Fatal(err)
		}
		older := openAt(t, dir)
		before := get(t, st, "a")
		for range rotations {
			if _, err := newest.Rotate(t.Context(), st); err != nil {
				t.Fatal(err)
			}
		}
		if older.KeyID() == newest.KeyID() {
			t.Fatal("the older one knows the new key before it needs it")
		}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { readable(t, st, older, 1) })
		}
		all.Wait()
		if value, err := older.open(before); err != nil || string(value) != canary+"a" {
			t.Errorf("what was read before the rotation opens to %q, %v", value, err)
		}
		if err := add(t.Context(), st, older, "b", canary+"b"); err != nil {
			t.Fatal(err)
		}
		if id := get(t, st, "b").Status.KeyID; id != newest.KeyID() {
			t.Errorf("the older one seals under %s, the newest under %s", id, newest.KeyID())
		}
		digest := []byte("digest")
		id, mac := older.Authenticate("backup", digest)
		if err := newest.Authentic("backup", id, digest, mac); err != nil {
			t.Error(err)
		}
		readable(t, st, openAt(t, dir), 2)
		if names := files(t, dir); !slices.Equal(names, []string{"seal.key"}) {
			t.Errorf("the files are %v", names)
		}
	}
}

// Who has not met the new key yet does not seal under the old one, which may be gone,
// and does not rotate.
func TestOlderDoesNotSealUnderAKeyThatIsGone(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	newest, older := openAt(t, dir), openAt(t, dir)
	if err := add(t.Context(), st, newest, "a", canary+"a"); err != nil {
		t.Fatal(err)
	}
	if _, err := newest.Rotate(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if err := add(t.Context(), st, older, "b", canary+"b"); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("sealed: %v, want CONFLICT", err)
	}
	if _, err := older.Rotate(t.Context(), st); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("rotated: %v, want CONFLICT", err)
	}
	readable(t, st, older, 1)
	if err := add(t.Context(), st, older, "b", canary+"b"); err != nil {
		t.Error(err)
	}
	if _, err := older.Rotate(t.Context(), st); err != nil {
		t.Error(err)
	}
	readable(t, st, newest, 2)
	readable(t, st, openAt(t, dir), 2)
}

// While a rotation is half done the key before stands beside the new one, which is
// proof enough to seal under that.
func TestOlderSealsDuringARotation(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	newest, older := openAt(t, dir), openAt(t, dir)
	if err := add(t.Context(), st, newest, "a", canary+"a"); err != nil {
		t.Fatal(err)
	}
	if _, err := newest.Rotate(t.Context(), &faulty{st, 0}); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	if err := add(t.Context(), st, older, "b", canary+"b"); err != nil {
		t.Fatal(err)
	}
	if id := get(t, st, "b").Status.KeyID; id != newest.KeyID() {
		t.Errorf("the older one seals under %s, the newest under %s", id, newest.KeyID())
	}
	readable(t, st, newest, 2)
}

// A foreign key file is not taken for a new key, whatever cannot be opened.
func TestForeignKeyFileIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	k := openAt(t, dir)
	if err := add(t.Context(), st, k, "a", canary+"a"); err != nil {
		t.Fatal(err)
	}
	if err := add(t.Context(), st, newKeeper(t, 9), "x", canary); err != nil {
		t.Fatal(err)
	}
	id := k.KeyID()
	path := filepath.Join(dir, "seal.key")
	if err := os.WriteFile(path, []byte(strings.Repeat("f", KeySize)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := k.open(get(t, st, "x")); err == nil {
		t.Error("opened what nobody has the key of")
	}
	if err := add(t.Context(), st, k, "b", canary+"b"); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("sealed: %v, want CONFLICT", err)
	}
	if k.KeyID() != id {
		t.Error("the foreign key was taken")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := add(t.Context(), st, k, "b", canary+"b"); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("sealed: %v", err)
	}
	if value, err := k.open(get(t, st, "a")); err != nil || string(value) != canary+"a" {
		t.Errorf("what it sealed opens to %q, %v", value, err)
	}
}

// The files are not read for each value of an unknown key, and are again after a
// while.
func TestUnknownKeysAreLookedForOnceASecond(t *testing.T) {
	dir := t.TempDir()
	k := openAt(t, dir)
	path := filepath.Join(dir, "seal.key")
	synctest.Test(t, func(t *testing.T) {
		late := newKeeper(t, 5).ring.Load().current
		if key, err := k.key(late.id); key != nil || err != nil {
			t.Fatalf("found %v, %v", key, err)
		}
		if err := os.WriteFile(path+"."+late.id, late.bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(missedFor - 1)
		if key, _ := k.key(late.id); key != nil {
			t.Error("looked for again at once")
		}
		time.Sleep(1)
		if key, err := k.key(late.id); key == nil || err != nil {
			t.Errorf("not looked for again: %v", err)
		}

		for i := range 2 * maxMissed {
			k.key(fmt.Sprintf("%016x", i))
		}
		if n := len(k.missed); n > maxMissed {
			t.Errorf("%d unknown keys are remembered", n)
		}
		other := newKeeper(t, 6).ring.Load().current
		if err := os.WriteFile(path+"."+other.id, other.bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(missedFor)
		if key, err := k.key(other.id); key == nil || err != nil {
			t.Errorf("unknown ones keep out a known one: %v", err)
		}
	})
}

// Two processes rotate and write at once: one does after the other, and every value
// opens, also while they do.
func TestRotateOfTwo(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	both := []*Keeper{openAt(t, dir), openAt(t, dir)}
	const writers, each = 2, 40
	if err := add(t.Context(), st, both[0], "first", canary+"first"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for p, k := range both {
		for w := range writers {
			all.Go(func() {
				for i := range each {
					name := fmt.Sprintf("s%d-%d-%d", p, w, i)
					for {
						err := add(t.Context(), st, k, name, canary+name)
						if err == nil {
							break
						}
						if !api.HasCode(err, api.CodeConflict) {
							t.Error(err)
							return
						}
						meet(t, st, k)
					}
				}
			})
		}
		for range 3 {
			all.Go(func() {
				if _, err := k.Rotate(t.Context(), st); err != nil && !api.HasCode(err, api.CodeConflict) {
					t.Error(err)
				}
				if err := k.Reseal(t.Context(), st); err != nil && !api.HasCode(err, api.CodeConflict) {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	const n = 1 + 2*writers*each
	for _, k := range append(both, openAt(t, dir)) {
		readable(t, st, k, n)
	}
	if err := both[0].Reseal(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	readable(t, st, openAt(t, dir), n)
	if names := files(t, dir); !slices.Equal(names, []string{"seal.key"}) {
		t.Errorf("the files are %v", names)
	}
}

// Who cannot have the directory waits, as long as its caller does.
func TestRotateWaits(t *testing.T) {
	dir := t.TempDir()
	k := openAt(t, dir)
	release, err := lockDir(t.Context(), filepath.Join(dir, "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	before := k.KeyID()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Rotate(ctx, newStore(t)); !errors.Is(err, context.Canceled) || k.KeyID() != before {
		t.Errorf("rotated while another process did: %v", err)
	}
	release()
	if _, err := k.Rotate(t.Context(), newStore(t)); err != nil || k.KeyID() == before {
		t.Errorf("not rotated: %v", err)
	}
}
