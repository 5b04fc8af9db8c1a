package cert_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/cert"
	"cardea/secret"
	"cardea/store"
	"cardea/store/memory"
)

// running is an Authority that runs in a bubble, and what it says.
func running(t *testing.T, st store.Store, k *secret.Keeper) (a *cert.Authority, said *bytes.Buffer, stop func() error) {
	t.Helper()
	a, err := cert.Open(t.Context(), st, k, domain, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	said = new(bytes.Buffer)
	a.Log = slog.New(slog.NewTextHandler(said, nil))
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()
	synctest.Wait()
	return a, said, func() error { cancel(); return <-ran }
}

// rewrite seals the cluster's CA anew by another Keeper.
func rewrite(t *testing.T, st store.Store, from, to *secret.Keeper) {
	t.Helper()
	if _, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
		s, err := store.Get[*api.Secret](tx, api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: "cluster-ca"})
		if err != nil {
			return err
		}
		key, chain, err := from.Signer(tx, "cluster-ca")
		if err == nil {
			err = to.SealSigner(s, key, chain...)
		}
		if err != nil {
			return err
		}
		rec, err := store.Encode(s)
		if err != nil {
			return err
		}
		return tx.Put(rec)
	}); err != nil {
		t.Fatal(err)
	}
}

// A CA that cannot be read does not end a process: the one that was there stays, it is
// told of once for each change, and what can be read again counts.
func TestRunGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := memory.New()
		defer st.Close()
		mine := keeper(t)
		foreign, err := secret.New(bytes.Repeat([]byte{8}, secret.KeySize))
		if err != nil {
			t.Fatal(err)
		}
		a, said, stop := running(t, st, mine)
		pinned := a.Fingerprint()
		told := func(want int) {
			t.Helper()
			synctest.Wait()
			if n := strings.Count(said.String(), "level=ERROR"); n != want {
				t.Errorf("told of %d times, want %d: %s", n, want, said)
			}
		}
		rewrite(t, st, mine, foreign)
		told(1)
		time.Sleep(time.Minute)
		told(1)
		rewrite(t, st, foreign, foreign)
		told(2)
		if a.Fingerprint() != pinned {
			t.Error("the CA is another")
		}
		shows(t, a)

		rewrite(t, st, foreign, mine)
		other, err := cert.Open(t.Context(), st, mine, domain, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		out, err := other.RotateCA(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		told(2)
		if a.Fingerprint() != out.CASHA256 {
			t.Error("what can be read again does not count")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A rotation of the key that seals, by another process with the same key file, is
// followed: then the CA can be rotated there, and that counts here.
func TestRunFollowsTheSeal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seal.key")
	synctest.Test(t, func(t *testing.T) {
		st := memory.New()
		defer st.Close()
		var keepers [2]*secret.Keeper
		for i := range keepers {
			var err error
			if keepers[i], err = secret.Open(path); err != nil {
				t.Fatal(err)
			}
		}
		older, said, stop := running(t, st, keepers[0])
		newest, err := cert.Open(t.Context(), st, keepers[1], domain, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := older.JournalSigner(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := keepers[1].Rotate(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if keepers[0].KeyID() != keepers[1].KeyID() {
			t.Error("the new key is not taken")
		}
		out, err := newest.RotateCA(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if older.Fingerprint() != out.CASHA256 || said.Len() > 0 {
			t.Errorf("the rotation of the CA is not followed: %s", said)
		}
		if _, err := older.JournalSigner(t.Context()); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// What is broken is tried again, also if nothing changes in the store.
func TestRunTriesAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seal.key")
	synctest.Test(t, func(t *testing.T) {
		st := memory.New()
		defer st.Close()
		mine, err := secret.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		key := bytes.Repeat([]byte{8}, secret.KeySize)
		foreign, err := secret.New(key)
		if err != nil {
			t.Fatal(err)
		}
		a, said, stop := running(t, st, mine)
		rewrite(t, st, mine, foreign)
		other, err := cert.Open(t.Context(), st, foreign, domain, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		out, err := other.RotateCA(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if said.Len() == 0 || a.Fingerprint() == out.CASHA256 {
			t.Fatal("read without its key")
		}
		if err := os.WriteFile(path+"."+foreign.KeyID(), key, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if a.Fingerprint() != out.CASHA256 {
			t.Error("not tried again")
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
