package secret

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"cardea/api"
	"cardea/store"
)

// What one transaction of Reseal seals anew, at most: others wait for it.
const (
	resealCount = 500
	resealBytes = 16 << 20
)

// actor is who seals anew, for the history of the store.
const actor = "system"

// Rotate makes a new key, seals every Secret of st under it, those of Kubernetes
// too, and removes the key before. A crash at any point leaves all values readable,
// and Reseal finishes what was begun. The answer names the new key.
//
// One process at a time does so, or Reseal; others wait. It is a CONFLICT if another
// one has replaced the key and this Keeper has not met the new one yet.
//
// Backups of the store that were made before need the key file of that time.
func (k *Keeper) Rotate(ctx context.Context, st store.Store) (api.RotateResponse, error) {
	if k.path == "" {
		return api.RotateResponse{}, errors.New("secret: make a new key: this one has no file to be kept in")
	}
	release, err := lockDir(ctx, k.path)
	if err != nil {
		return api.RotateResponse{}, fmt.Errorf("secret: make a new key: %w", err)
	}
	defer release()
	key, err := k.replace()
	if err != nil {
		return api.RotateResponse{}, fmt.Errorf("secret: make a new key: %w", err)
	}
	return api.RotateResponse{What: "seal", KeyID: key.id}, k.reseal(ctx, st)
}

// replace makes a new key and its file. The file of the one before gets another
// name first, so that at no time there is a key without a file.
func (k *Keeper) replace() (*sealKey, error) {
	before, err := k.sealing()
	if err != nil {
		return nil, err
	}
	if err := os.Link(k.path, k.path+"."+before.id); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := syncDir(k.path); err != nil {
		return nil, err
	}
	key, err := write(k.path, func(whole string) error { return os.Rename(whole, k.path) })
	if err != nil {
		return nil, err
	}
	k.turning.Lock()
	defer k.turning.Unlock()
	k.turn(&ring{current: key, byID: map[string]*sealKey{key.id: key}})
	return key, nil
}

// Reseal seals under the key all Secrets of st that were sealed under one that it
// replaced, and then removes the keys that nothing needs any more. It does
// nothing if there is no such key, so it may be called at each start. A Secret
// that does not open stays as it is, and is told of in the error; its key stays
// too.
//
// A Secret that is sealed anew keeps its resourceVersion, as its value is the
// same.
func (k *Keeper) Reseal(ctx context.Context, st store.Store) error {
	if len(k.ring.Load().byID) == 1 {
		return nil
	}
	release, err := lockDir(ctx, k.path)
	if err != nil {
		return fmt.Errorf("secret: seal anew: %w", err)
	}
	defer release()
	return k.reseal(ctx, st)
}

// reseal does what Reseal does. Its caller has locked the directory of the key file.
func (k *Keeper) reseal(ctx context.Context, st store.Store) error {
	current, err := k.sealing()
	if err != nil {
		return fmt.Errorf("secret: seal anew: %w", err)
	}
	var broken error
	for more := true; more; {
		if _, err := st.Update(ctx, actor, func(tx store.Tx) (err error) {
			more, broken, err = k.resealSome(tx, current)
			return err
		}); err != nil {
			return fmt.Errorf("secret: seal anew: %w", err)
		}
	}
	return errors.Join(broken, k.forget(ctx, st))
}

// A stored is an Object of a store that has a sealed value.
type stored struct {
	object api.Object
	vault  vault
}

// all yields every Object of a store that has a sealed value. After an error it
// ends.
func all(r store.Reader) iter.Seq2[stored, error] {
	return func(yield func(stored, error) bool) {
		for s, err := range store.All[*api.Secret](r, api.KindSecret) {
			if err != nil {
				yield(stored{}, err)
				return
			}
			if !yield(stored{s, vaultOf(s)}, nil) {
				return
			}
		}
		for s, err := range store.AllIn[*api.KubernetesSecret](r, api.GroupKubernetes, api.KindSecret) {
			if err != nil {
				yield(stored{}, err)
				return
			}
			if !yield(stored{s, vaultOfKubernetes(s)}, nil) {
				return
			}
		}
	}
}

// resealSome seals some Secrets anew under the key current. It reports whether there may be more, and
// those that do not open.
func (k *Keeper) resealSome(tx store.Tx, current *sealKey) (more bool, broken, err error) {
	count, size := 0, 0
	for s, err := range all(tx) {
		if err != nil {
			return false, nil, err
		}
		if *s.vault.keyID == current.id {
			continue
		}
		value, err := k.take(s.vault)
		if err != nil {
			broken = errors.Join(broken, err)
			continue
		}
		s.vault.put(current, value)
		if ours, ok := s.object.(*api.Secret); ok { // older versions did not tell
			ours.Status.Certificate = DescribeValue(value)
		}
		clear(value)
		rec, err := store.Encode(s.object)
		if err != nil {
			return false, nil, err
		}
		if err := tx.Put(rec); err != nil {
			return false, nil, err
		}
		count, size = count+1, size+len(rec.JSON)
		if count == resealCount || size >= resealBytes {
			return true, broken, nil
		}
	}
	return false, broken, nil
}

// forget removes the keys under which no Secret of st is sealed. Values are
// sealed within transactions, which come one after the other: none that comes
// after the last of reseal uses an old key.
func (k *Keeper) forget(ctx context.Context, st store.Store) error {
	used := map[string]bool{}
	err := st.View(ctx, func(v store.Reader) error {
		for s, err := range all(v) {
			if err != nil {
				return err
			}
			used[*s.vault.keyID] = true
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("secret: look which keys are used: %w", err)
	}
	k.turning.Lock() // not before: who is in a transaction may wait for it
	defer k.turning.Unlock()
	r := k.ring.Load()
	// What a crash left of making a key may be a second name of one that goes.
	gone, err := filepath.Glob(escape(k.path) + ".new-*")
	if err != nil {
		return err
	}
	left := maps.Clone(r.byID)
	for id, key := range r.byID {
		if key != r.current && !used[id] {
			delete(left, id)
			gone = append(gone, k.path+"."+id)
		}
	}
	k.ring.Store(&ring{current: r.current, byID: left})
	for _, file := range gone {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("secret: remove a key that nothing uses: %w", err)
		}
	}
	return syncDir(k.path)
}

// escape makes a path a pattern of itself.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
