package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/secret"
	"cardea/store"
	"cardea/store/backup"
)

// at returns how to run a cluster in dir.
func at(dir string) Config {
	return Config{DataDir: dir, Listen: "127.0.0.1:0", Metrics: "127.0.0.1:0", Version: "test", Log: slog.New(slog.DiscardHandler)}
}

// while runs the cluster of a directory for as long as do takes.
func while(t *testing.T, cfg Config, do func(*house)) {
	t.Helper()
	h, err := open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ready := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- errors.Join(h.run(ctx, func(Ready) { close(ready) }), h.close()) }()
	select {
	case <-ready:
		do(h)
		stop()
		err = <-done
	case err = <-done:
	}
	stop()
	if err != nil {
		t.Fatal(err)
	}
}

// recorded returns the words of what the log says that the system did by itself.
func recorded(t *testing.T, h *house) (words []string) {
	t.Helper()
	for rec, err := range h.journal.Records(t.Context(), audit.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		if c := rec.Entry.Common; c.Reason != nil && c.Reason.Type == api.ReasonSystem {
			words = append(words, c.Reason.Words)
		}
	}
	return words
}

// A restore leaves a record of what it put back, in the log of the place.
func TestRestoreIsRecorded(t *testing.T) {
	cfg := at(t.TempDir())
	var file bytes.Buffer
	while(t, cfg, func(h *house) {
		if err := h.backup(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
	})
	done, err := Restore(t.Context(), cfg, bytes.NewReader(file.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	while(t, cfg, func(h *house) {
		want := fmt.Sprintf("cardea restore, by the owner of the data: %d resources as of revision %s, from the backup of %s; what was written since is gone",
			done.Objects, done.Backup, done.At.UTC().Format(time.RFC3339))
		if got := recorded(t, h); len(got) != 1 || got[0] != want {
			t.Errorf("the log says %q, want %q", got, want)
		}
		if r, err := h.journal.Verify(t.Context()); err != nil || len(r.Findings) > 0 {
			t.Errorf("the log is not whole: %+v, %v", r, err)
		}
	})
}

// What somebody without the keys writes into a backup is not restored, although he
// makes it whole; nor is the backup of another time, unless its key is there.
func TestRestoreRefusesWhatNobodyVouchesFor(t *testing.T) {
	cfg := at(t.TempDir())
	key := filepath.Join(cfg.DataDir, keyFile)
	var file bytes.Buffer
	var old []byte
	var oldID string
	while(t, cfg, func(h *house) {
		if err := h.backup(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
		oldID = h.keeper.KeyID()
		var err error
		if old, err = os.ReadFile(key); err != nil {
			t.Fatal(err)
		}
		if _, err := h.rotate(t.Context(), "seal"); err != nil {
			t.Fatal(err)
		}
	})
	good := file.Bytes()
	end := bytes.LastIndexByte(good[:len(good)-1], '\n') + 1
	forged := bytes.Replace(good[:end], []byte(`"kind":"User"`), []byte(`"kind":"User","uid":"forged"`), 1)
	if bytes.Equal(forged, good[:end]) {
		t.Fatal("there is no User to forge")
	}
	forged = append(forged, bytes.Replace(good[end:],
		fmt.Appendf(nil, "%x", sha256.Sum256(good[:end])), fmt.Appendf(nil, "%x", sha256.Sum256(forged)), 1)...)

	restore := func(file []byte) error {
		_, err := Restore(t.Context(), cfg, bytes.NewReader(file))
		return err
	}
	if err := restore(good); !errors.Is(err, secret.ErrUnknownKey) || !strings.Contains(err.Error(), "keys/") {
		t.Errorf("without the key of that time: %v", err)
	}
	if err := os.WriteFile(key+"."+oldID, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := restore(forged); !errors.Is(err, backup.ErrInvalid) {
		t.Errorf("what was forged: %v", err)
	}
	while(t, cfg, func(h *house) {
		if got := recorded(t, h); len(got) != 0 {
			t.Errorf("something was restored: %q", got)
		}
	})
	if err := os.WriteFile(key+"."+oldID, old, 0o600); err != nil { // the start has removed it
		t.Fatal(err)
	}
	if err := restore(good); err != nil {
		t.Errorf("with the key of that time: %v", err)
	}
}

// The log is opened with what the ClusterConfig says of it: opened with the
// defaults, it would delete what is to be kept for longer.
func TestTheLogIsOpenedWithItsRetention(t *testing.T) {
	cfg := at(t.TempDir())
	while(t, cfg, func(h *house) {
		_, err := h.store.Update(t.Context(), "test", func(tx store.Tx) error {
			c, err := store.Get[*api.ClusterConfig](tx, api.Key{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName})
			if err != nil {
				return err
			}
			days := 3650
			c.Spec.Audit = api.ClusterAudit{Durability: api.DurabilityDisk, Retention: &api.AuditRetention{MaxAge: &api.Duration{Days: &days}, MaxSizeMegabytes: 20_000}}
			rec, err := store.Encode(c)
			if err != nil {
				return err
			}
			return tx.Put(rec)
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err := journalConfig(t.Context(), cfg, logDir, h.authority, h.store)
		if err != nil {
			t.Fatal(err)
		}
		if c.Retention.Age != 3650*24*time.Hour || c.Retention.Size != 20_000<<20 || c.Durability != api.DurabilityDisk {
			t.Errorf("%+v, %s", c.Retention, c.Durability)
		}
	})
}
