package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"cardea/api"
	"cardea/cert"
	"cardea/control"
	"cardea/identity"
	"cardea/policy/local"
	"cardea/secret"
	"cardea/store"
	"cardea/store/backup"
	"cardea/store/memory"
)

// What is done with the data of a cluster that does not run.

// Recover returns a token that logs root in, once, for whoever owns the data of a
// cluster that does not run, and what it changed. reset is that of
// [control.Server.Recover]. What it does is in the log.
func Recover(ctx context.Context, cfg Config, reset bool) (done control.Recovery, err error) {
	if _, err := os.Stat(filepath.Join(cfg.DataDir, keyFile)); err != nil {
		return done, fmt.Errorf("there is no cluster in %s: %w", cfg.DataDir, err)
	}
	lock, err := openDataDir(cfg.DataDir)
	if err != nil {
		return done, err
	}
	defer lock.Close()
	if err := checkWhole(cfg); err != nil {
		return done, err
	}
	keeper, err := secret.Open(filepath.Join(cfg.DataDir, keyFile))
	if err != nil {
		return done, err
	}
	st, err := openStore(ctx, cfg)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	domain, err := domainOf(ctx, st)
	if err != nil {
		return done, err
	}
	authority, err := cert.Open(ctx, st, keeper, domain, time.Now)
	if err != nil {
		return done, err
	}
	log, err := openJournal(ctx, cfg, authority, st)
	if err != nil {
		return done, err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- log.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	decider := &local.Decider{Store: st, Identity: identity.Any{}, Log: cfg.Log}
	c := &control.Server{Store: st, Audit: log, Proposed: decider.Propose, Log: cfg.Log, Now: time.Now}
	return c.Recover(ctx, reset)
}

// A Restored says what a backup has put in place.
type Restored struct {
	Objects  int
	Backup   api.Revision // of the backup
	Revision api.Revision // now
}

// Restore replaces all that a cluster knows, which must not run, by what a backup
// has. It makes the data directory if there is none, but not its keys: without
// those of the cluster that was backed up, its Secrets, the CA among them, could
// not be read.
func Restore(ctx context.Context, cfg Config, r io.ReadSeeker) (done Restored, err error) {
	whole, err := backup.Verify(ctx, r)
	if err != nil {
		return done, err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return done, err
	}
	key := filepath.Join(cfg.DataDir, keyFile)
	if _, err := os.Stat(key); err != nil {
		return done, fmt.Errorf("%s is missing: without the keys/ of the cluster that was backed up its Secrets cannot be read; copy them there first", key)
	}
	lock, err := openDataDir(cfg.DataDir)
	if err != nil {
		return done, err
	}
	defer lock.Close()
	keeper, err := secret.Open(key)
	if err != nil {
		return done, err
	}
	// Tried in memory first: what cannot be read must not take the place of what
	// can, nor leave an empty store.
	if err := readable(ctx, keeper, whole.Domain, r); err != nil {
		return done, err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return done, err
	}
	st, err := openStore(ctx, cfg)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	sum, err := backup.Restore(ctx, st, r, "restore")
	return Restored{Objects: sum.Objects, Backup: sum.Revision, Revision: sum.Restored}, err
}

// A WholeBackup says what is in a backup that is whole.
type WholeBackup struct {
	Objects  int
	Revision api.Revision
}

// CheckBackup reads a backup to its end, and says what is in it or wrong with it.
func CheckBackup(ctx context.Context, r io.Reader) (WholeBackup, error) {
	sum, err := backup.Verify(ctx, r)
	return WholeBackup{sum.Objects, sum.Revision}, err
}

// CheckData says what is wrong with a data directory, and what is right.
func CheckData(dir string) (checks []api.HealthCheck) {
	add := func(name string, err error, words, hint string) {
		c := api.HealthCheck{Name: name, OK: err == nil, Words: words, Hint: hint}
		if err != nil {
			c.Words = err.Error()
		}
		checks = append(checks, c)
	}
	i, err := os.Stat(dir)
	if err == nil && i.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("%s can be read by others (mode %#o)", dir, i.Mode().Perm())
	}
	add("data directory", err, dir, "chmod 700 "+dir)
	if i == nil {
		return checks
	}
	add("data", checkParts(dir), "all parts are there", "")
	key := filepath.Join(dir, keyFile)
	if k, err := os.Stat(key); err == nil {
		var open error
		if k.Mode().Perm()&0o077 != 0 {
			open = fmt.Errorf("%s can be read by others (mode %#o)", key, k.Mode().Perm())
		}
		add("key of Secrets", open, "keep a copy elsewhere: without it no backup can be read", "chmod 600 "+key)
	}
	free, err := freeSpace(dir)
	if err == nil && free < leastFree {
		err = fmt.Errorf("%d MiB are left on its disk", free>>20)
	}
	add("disk", err, fmt.Sprintf("%d MiB are free", free>>20), "make room, or lower ClusterConfig spec.audit.retention: without room for the log nobody gets in")
	return checks
}

// leastFree is how many bytes a disk should have left.
const leastFree = 256 << 20

// checkParts is checkWhole for a directory of which the store is not known.
func checkParts(dir string) error {
	if err := checkWhole(Config{DataDir: dir}); err == nil {
		return nil
	}
	return checkWhole(Config{DataDir: dir, Store: "elsewhere"})
}

// domainOf returns the domain of the cluster that a store holds.
func domainOf(ctx context.Context, st store.Store) (domain string, err error) {
	err = st.View(ctx, func(r store.Reader) error {
		c, err := store.Get[*api.ClusterConfig](r, api.Key{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName})
		if err == nil {
			domain = c.Status.Domain
		}
		return err
	})
	return domain, err
}

// readable reports whether the keys of this place open the Secrets of a backup: if
// they open the CA, they are the ones.
func readable(ctx context.Context, keeper *secret.Keeper, domain string, r io.Reader) error {
	st := memory.New()
	defer st.Close()
	if _, err := backup.Restore(ctx, st, r, "restore"); err != nil {
		return err
	}
	if _, err := cert.Open(ctx, st, keeper, domain, time.Now); err != nil {
		return fmt.Errorf("the keys/ of the data directory are not those of the cluster that was backed up: %w", err)
	}
	return nil
}
