package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/journal"
	"cardea/cert"
	"cardea/control"
	"cardea/identity"
	"cardea/netif"
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
	st, err := openStore(ctx, cfg, true)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	err = record(ctx, cfg, keeper, st, func(log *journal.Journal) (err error) {
		decider := &local.Decider{Store: st, Identity: identity.Any{}, Log: cfg.Log}
		c := &control.Server{Store: st, Audit: log, Proposed: decider.Propose, Log: cfg.Log, Now: time.Now}
		done, err = c.Recover(ctx, reset)
		return err
	})
	return done, err
}

// record opens the log of the cluster that a store holds, for as long as do takes.
func record(ctx context.Context, cfg Config, keeper *secret.Keeper, st *runningStore, do func(*journal.Journal) error) (err error) {
	config, err := configOf(ctx, st)
	if err != nil {
		return err
	}
	authority, err := cert.Open(ctx, st, keeper, config.Status.Domain, time.Now)
	if err != nil {
		return err
	}
	log, _, err := openJournal(ctx, cfg, authority, st)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- log.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	return do(log.Journal)
}

// A Restored says what a backup has put in place.
type Restored struct {
	Objects  int
	Backup   api.Revision // of the backup
	At       time.Time    // when that was written
	Revision api.Revision // now
}

// Restore replaces all that a cluster knows, which must not run, by what a backup
// has. It makes the data directory if there is none, but not its keys: without
// those of the cluster that was backed up, its Secrets, the CA among them, could
// not be read, nor could be told who wrote it. What it does is in the log.
func Restore(ctx context.Context, cfg Config, r io.ReadSeeker) (done Restored, err error) {
	whole, err := backup.Verify(ctx, r, nil) // first, as it is the most likely to be wrong
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
	st, err := openStore(ctx, cfg, true)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	sum, err := backup.Restore(ctx, st, r, "restore", keeper)
	if err != nil {
		return done, err
	}
	done = Restored{Objects: sum.Objects, Backup: sum.Revision, At: sum.At, Revision: sum.Restored}
	// From here on nothing is to be cut short: it is restored, and the log has to
	// say so.
	err = record(context.WithoutCancel(ctx), cfg, keeper, st, func(log *journal.Journal) error {
		return log.Append(context.WithoutCancel(ctx), restoration(time.Now(), done))
	})
	if err != nil {
		return done, fmt.Errorf("the resources are restored, and the log does not say so: %w", err)
	}
	return done, nil
}

// restoration is the record of what was restored.
func restoration(now time.Time, done Restored) *api.AccessLog {
	service := &api.Ref{APIVersion: api.Version, Kind: api.KindService, Name: api.APIService}
	rec := audit.New(now)
	rec.Metadata.TargetRef = service
	rec.Entry.Common = api.AccessLogCommon{
		StartedAt: now, EndedAt: now, IsAuthorized: true, Status: api.StatusAllowed, Mode: api.ModeAPI, Revision: done.Revision,
		Reason: &api.LogReason{Type: api.ReasonSystem, Words: fmt.Sprintf(
			"cardea restore, by the owner of the data: %d resources as of revision %s, from the backup of %s; what was written since is gone",
			done.Objects, done.Backup, done.At.UTC().Format(time.RFC3339))},
		Facts: &api.Facts{API: &api.APIFacts{Verb: verbRestore}}, ServiceRef: service,
	}
	rec.Entry.Info.API = &api.APIInfo{Verb: verbRestore}
	return rec
}

// verbRestore is what the log calls a restore.
const verbRestore = "restore"

// A WholeBackup says what is in a backup that is whole.
type WholeBackup struct {
	Objects  int
	Revision api.Revision
}

// CheckBackup reads a backup to its end, and says what is in it or wrong with it.
// Who wrote it only the keys of the cluster tell: see [Restore].
func CheckBackup(ctx context.Context, r io.Reader) (WholeBackup, error) {
	sum, err := backup.Verify(ctx, r, nil)
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
	if inUse(dir) { // what there is of the private network, it says itself
		return checks
	}
	words := "the gateway can have a network interface here"
	if err := netif.Able(tunInterface); err != nil {
		words = fmt.Sprintf("the gateway goes through a stack of its own (userspace), which is slower: %v", err)
	}
	add("network interface", nil, words, "")
	words = fmt.Sprintf("%d/udp is free", wireguardPort)
	if err := freePort(wireguardPort); err != nil {
		words = fmt.Sprintf("the gateway takes another one that is free, or that of --wireguard-port, which firewalls have to let through: %v", err)
	}
	add("WireGuard's port", nil, words, "")
	return checks
}

// freePort reports why a port of UDP cannot be opened.
func freePort(port int) error {
	c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("another program has %d/udp (find it with: ss -uanp 'sport = :%d')", port, port)
	}
	if err != nil {
		return err
	}
	return c.Close()
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

// configOf returns the ClusterConfig of the cluster that a store holds, never nil.
func configOf(ctx context.Context, st store.Store) (*api.ClusterConfig, error) {
	config := new(api.ClusterConfig)
	err := st.View(ctx, func(r store.Reader) error {
		c, err := store.Get[*api.ClusterConfig](r, api.Key{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName})
		if err == nil {
			config = c
		}
		return err
	})
	return config, err
}

// readable reports whether the keys of this place vouch for a backup, and open its
// Secrets: if they open the CA, they open all.
func readable(ctx context.Context, keeper *secret.Keeper, domain string, r io.Reader) error {
	st := memory.New()
	defer st.Close()
	_, err := backup.Restore(ctx, st, r, "restore", keeper)
	if err == nil {
		_, err = cert.Open(ctx, st, keeper, domain, time.Now)
	} else if !errors.Is(err, secret.ErrUnknownKey) {
		return err
	}
	if err != nil {
		return fmt.Errorf("the keys/ of the data directory are not those of the cluster that was backed up, or not those of that time: %w", err)
	}
	return nil
}
