package secret

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
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
// too, and removes the key before. A crash at any point leaves all values readable, and Reseal finishes
// what was begun. The answer names the new key.
//
// Backups of the store that were made before need the key file of that time.
func (k *Keeper) Rotate(ctx context.Context, st store.Store) (api.RotateResponse, error) {
	k.changing.Lock()
	defer k.changing.Unlock()
	if err := k.replace(); err != nil {
		return api.RotateResponse{}, fmt.Errorf("secret: make a new key: %w", err)
	}
	return api.RotateResponse{What: "seal", KeyID: k.KeyID()}, k.reseal(ctx, st)
}

// replace makes a new key and its file. The file of the one before gets another
// name first, so that at no time there is a key without a file.
func (k *Keeper) replace() error {
	if k.path == "" {
		return errors.New("this one has no file to be kept in")
	}
	before, err := read(k.path)
	if err != nil {
		return err
	}
	if k.ring.Load().byID[before.id] == nil {
		return fmt.Errorf("%s was changed by somebody else: start again with it", k.path)
	}
	if err := os.Link(k.path, k.path+"."+before.id); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncDir(k.path); err != nil {
		return err
	}
	key, err := write(k.path, func(whole string) error { return os.Rename(whole, k.path) })
	if err != nil {
		return err
	}
	k.turn(key)
	return nil
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
	k.changing.Lock()
	defer k.changing.Unlock()
	return k.reseal(ctx, st)
}

func (k *Keeper) reseal(ctx context.Context, st store.Store) error {
	if len(k.ring.Load().byID) == 1 {
		return nil
	}
	var broken error
	for more := true; more; {
		if _, err := st.Update(ctx, actor, func(tx store.Tx) (err error) {
			more, broken, err = k.resealSome(tx)
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

// resealSome seals some Secrets anew. It reports whether there may be more, and
// those that do not open.
func (k *Keeper) resealSome(tx store.Tx) (more bool, broken, err error) {
	current := k.KeyID()
	count, size := 0, 0
	for s, err := range all(tx) {
		if err != nil {
			return false, nil, err
		}
		if *s.vault.keyID == current {
			continue
		}
		value, err := k.take(s.vault)
		if err != nil {
			broken = errors.Join(broken, err)
			continue
		}
		err = k.put(s.vault, value)
		if ours, ok := s.object.(*api.Secret); ok { // older versions did not tell
			ours.Status.Certificate = DescribeValue(value)
		}
		clear(value)
		if err != nil {
			return false, nil, err
		}
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
	r := k.ring.Load()
	left := map[string]*sealKey{r.current.id: r.current}
	err := st.View(ctx, func(v store.Reader) error {
		for s, err := range all(v) {
			if err != nil {
				return err
			}
			if key := r.byID[*s.vault.keyID]; key != nil {
				left[key.id] = key
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("secret: look which keys are used: %w", err)
	}
	k.ring.Store(&ring{current: r.current, byID: left})
	if k.path == "" {
		return nil
	}
	// What a crash left of making a key may be a second name of one that goes.
	gone, err := filepath.Glob(escape(k.path) + ".new-*")
	if err != nil {
		return err
	}
	for id := range r.byID {
		if left[id] == nil {
			gone = append(gone, k.path+"."+id)
		}
	}
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
