package secret

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Open returns the Keeper of the key file at path, and makes the file if there
// is none. Several processes may do so at once: all get the same key. The file
// holds [KeySize] bytes and must not be accessible to anybody but its owner.
// Beside it may stand files PATH.ID with keys that it replaced.
//
// Whoever loses the file loses the values of all Secrets.
func Open(path string) (*Keeper, error) {
	k, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("secret: the key file: %w", err)
	}
	return k, nil
}

func open(path string) (*Keeper, error) {
	r, err := readRing(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = create(path); err == nil {
			r, err = readRing(path)
		}
	}
	if err != nil {
		return nil, err
	}
	k := &Keeper{path: path}
	k.ring.Store(r)
	return k, nil
}

// readRing returns the keys in the key file and in those beside it.
func readRing(path string) (*ring, error) {
	for {
		current, err := read(path)
		if err != nil {
			return nil, err
		}
		r := &ring{current: current, byID: map[string]*sealKey{current.id: current}}
		ids, err := replaced(path)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			old, err := read(path + "." + id)
			if errors.Is(err, fs.ErrNotExist) {
				continue // nothing needs it any more
			}
			if err != nil {
				return nil, err
			}
			if old.id != id {
				return nil, fmt.Errorf("%s.%s holds the key %s and not %s: restore it from a copy", path, id, old.id, id)
			}
			r.byID[id] = old
		}
		// If it was replaced meanwhile, it may stand where it was not looked for.
		again, err := read(path)
		if err != nil {
			return nil, err
		}
		if again.id == current.id {
			return r, nil
		}
	}
}

// replaced returns the ids of the keys that stand beside the key file.
func replaced(path string) (ids []string, err error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if b, err := hex.DecodeString(id); ok && err == nil && len(b) == 8 {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// read returns the key in the file at path.
func read(path string) (*sealKey, error) {
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
	defer clear(key)
	if _, err := io.ReadFull(f, key); err != nil {
		return nil, err
	}
	return newSealKey(key)
}

// create makes a key file at path unless one is there.
func create(path string) error {
	_, err := write(path, func(whole string) error {
		if err := os.Link(whole, path); !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
	return err
}

// write makes a new key and a file of it, which place gives its name. The key is
// written and synced under another name first: the file has its name only once
// it is whole, whatever crashes and whoever else creates it.
func write(path string, place func(whole string) error) (*sealKey, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // O_EXCL, mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // if it is there still
	b := make([]byte, KeySize)
	defer clear(b)
	rand.Read(b) // never fails
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := place(f.Name()); err != nil {
		return nil, err
	}
	key, err := newSealKey(b)
	return key, errors.Join(err, syncDir(path))
}

// lockPause is for how long whoever wants a lock that another has waits.
const lockPause = 20 * time.Millisecond

// lockDir locks the directory that path is in against all others who do so, of this
// process or another, until release or the end of the process. It waits for them.
func lockDir(ctx context.Context, path string) (release func(), err error) {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { d.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", d.Name(), err)
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			d.Close()
			return nil, ctx.Err()
		}
	}
}

// syncDir makes durable what names there are beside path.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
