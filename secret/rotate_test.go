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

	"cardea/api"
	"cardea/store"
	"cardea/store/memory"
)

// openAt returns the Keeper of the key file in a directory, as a start does.
func openAt(t *testing.T, dir string) *Keeper {
	t.Helper()
	k, err := Open(filepath.Join(dir, "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newStore(t testing.TB) store.Store {
	st := memory.New()
	t.Cleanup(func() { st.Close() })
	return st
}

// add seals a value and stores it, as the API does: in one transaction.
func add(ctx context.Context, st store.Store, k *Keeper, name, value string, change ...func(*api.Secret)) error {
	_, err := st.Update(ctx, "test", func(tx store.Tx) error {
		s := newSecret(name, "uid-"+name, value)
		s.Metadata.ResourceVersion = "1"
		for _, f := range change {
			f(s)
		}
		if err := k.Seal(s); err != nil {
			return err
		}
		rec, err := store.Encode(s)
		if err != nil {
			return err
		}
		return tx.Put(rec)
	})
	return err
}

// readable fails unless every Secret opens to canary and its name.
func readable(t *testing.T, st store.Store, k *Keeper, want int) {
	t.Helper()
	n := 0
	if err := st.View(t.Context(), func(r store.Reader) error {
		for s, err := range store.All[*api.Secret](r, api.KindSecret) {
			if err != nil {
				return err
			}
			n++
			if value, err := k.open(s); err != nil || string(value) != canary+s.Metadata.Name {
				t.Errorf("Secret %s opens to %q, %v", s.Metadata.Name, value, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n != want {
		t.Errorf("%d Secrets, want %d", n, want)
	}
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	k := openAt(t, dir)
	const n = resealCount + 3 // more than one transaction takes
	for i := range n {
		if err := add(t.Context(), st, k, fmt.Sprintf("s%d", i), canary+fmt.Sprintf("s%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	before := k.KeyID()
	out, err := k.Rotate(t.Context(), st)
	if err != nil || out.What != "seal" || out.KeyID != k.KeyID() || out.KeyID == before {
		t.Fatalf("rotated: %+v, %v", out, err)
	}
	readable(t, st, k, n)
	readable(t, st, openAt(t, dir), n)
	if names := files(t, dir); !slices.Equal(names, []string{"seal.key"}) {
		t.Errorf("the files are %v: the old key is still there", names)
	}
	if err := st.View(t.Context(), func(r store.Reader) error {
		s, err := store.Get[*api.Secret](r, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: "s1"})
		if err == nil && (s.Status.KeyID != out.KeyID || s.Metadata.ResourceVersion != "1") {
			t.Errorf("s1 is sealed under %s, version %s", s.Status.KeyID, s.Metadata.ResourceVersion)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := newKeeper(t, 1).Rotate(t.Context(), st); err == nil {
		t.Error("rotated a key that is in no file")
	}
}

// faulty is a Store that fails after some transactions, as a crash makes it.
type faulty struct {
	store.Store
	left int
}

var errCrash = errors.New("crash")

func (f *faulty) Update(ctx context.Context, actor string, do func(store.Tx) error) (api.Revision, error) {
	if f.left--; f.left < 0 {
		return api.Revision{}, errCrash
	}
	return f.Store.Update(ctx, actor, do)
}

// Whatever step a rotation does not survive, the next start reads everything and
// finishes it.
func TestRotateCrashes(t *testing.T) {
	const n = 2*resealCount + 1
	for left := range 3 {
		t.Run(fmt.Sprintf("after %d transactions", left), func(t *testing.T) {
			dir := t.TempDir()
			st := newStore(t)
			k := openAt(t, dir)
			for i := range n {
				if err := add(t.Context(), st, k, fmt.Sprintf("s%d", i), canary+fmt.Sprintf("s%d", i)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := k.Rotate(t.Context(), &faulty{st, left}); !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
			readable(t, st, k, n)
			again := openAt(t, dir)
			readable(t, st, again, n)
			if len(files(t, dir)) != 2 {
				t.Errorf("the files are %v", files(t, dir))
			}
			// It may also be rotated once more, half done as it is.
			if left == 1 {
				if _, err := again.Rotate(t.Context(), &faulty{st, left}); !errors.Is(err, errCrash) {
					t.Fatal(err)
				}
				again = openAt(t, dir)
				readable(t, st, again, n)
			}
			if err := again.Reseal(t.Context(), st); err != nil {
				t.Fatal(err)
			}
			readable(t, st, openAt(t, dir), n)
			if names := files(t, dir); !slices.Equal(names, []string{"seal.key"}) {
				t.Errorf("the files are %v", names)
			}
		})
	}

	t.Run("before the new key has its name", func(t *testing.T) {
		dir := t.TempDir()
		st := newStore(t)
		k := openAt(t, dir)
		if err := add(t.Context(), st, k, "db", canary+"db"); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "seal.key")
		if err := os.Link(path, path+"."+k.KeyID()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".new-1", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		again := openAt(t, dir)
		readable(t, st, again, 1)
		if _, err := again.Rotate(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		readable(t, st, openAt(t, dir), 1)
		if names := files(t, dir); !slices.Equal(names, []string{"seal.key"}) {
			t.Errorf("the files are %v", names)
		}
	})
}

// A Secret that does not open stays, is told of, and does not hold up the rest.
func TestRotateBroken(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	k := openAt(t, dir)
	for _, name := range []string{"aa", "bb", "cc"} {
		if err := add(t.Context(), st, k, name, canary+name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
		s, err := store.Get[*api.Secret](tx, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: "bb"})
		if err != nil {
			return err
		}
		s.Status.Sealed[20] ^= 1
		rec, err := store.Encode(s)
		if err != nil {
			return err
		}
		return tx.Put(rec)
	}); err != nil {
		t.Fatal(err)
	}
	_, err := k.Rotate(t.Context(), st)
	noCanary(t, err)
	if !strings.Contains(err.Error(), `"bb"`) {
		t.Errorf("the error is %v", err)
	}
	if len(files(t, dir)) != 2 {
		t.Errorf("the key of the broken one is gone: %v", files(t, dir))
	}
	if _, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
		return tx.Delete(api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: "bb"})
	}); err != nil {
		t.Fatal(err)
	}
	if err := k.Reseal(t.Context(), st); err != nil {
		t.Error(err)
	}
	readable(t, st, openAt(t, dir), 2)
	if len(files(t, dir)) != 1 {
		t.Errorf("the old key is still there: %v", files(t, dir))
	}
}

// Secrets are written, and keys replaced, at once: nothing is lost.
func TestRotateWhileWriting(t *testing.T) {
	dir := t.TempDir()
	st := newStore(t)
	k := openAt(t, dir)
	var all sync.WaitGroup
	const writers, each = 4, 50
	for w := range writers {
		all.Go(func() {
			for i := range each {
				name := fmt.Sprintf("s%d-%d", w, i)
				if err := add(t.Context(), st, k, name, canary+name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		all.Go(func() {
			if _, err := k.Rotate(t.Context(), st); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	readable(t, st, k, writers*each)
	readable(t, st, openAt(t, dir), writers*each)
	if err := k.Reseal(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	readable(t, st, openAt(t, dir), writers*each)
	if len(files(t, dir)) != 1 {
		t.Errorf("the files are %v", files(t, dir))
	}
}

func TestOpenRefusesKeysOfOtherNames(t *testing.T) {
	dir := t.TempDir()
	k := openAt(t, dir)
	path := filepath.Join(dir, "seal.key")
	if err := os.Link(path, path+".0123456789abcdef"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), k.KeyID()) {
		t.Errorf("error is %v", err)
	}
}

// Whoever put another key file in its place keeps it.
func TestRotateKeepsForeignFile(t *testing.T) {
	dir := t.TempDir()
	k := openAt(t, dir)
	path := filepath.Join(dir, "seal.key")
	foreign := []byte(strings.Repeat("f", KeySize))
	if err := os.WriteFile(path, foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Rotate(t.Context(), newStore(t)); err == nil {
		t.Error("rotated over a key that this Keeper does not know")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != string(foreign) {
		t.Error("the file was overwritten")
	}
}
