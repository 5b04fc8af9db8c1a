package cert

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"cardea/api"
	"cardea/store"
)

// The Secrets of the journal's keys.
const (
	journalSecret    = "journal-key"
	oldJournalSecret = "journal-keys-old" // the public keys that signed before
)

const journalWords = "The key that signs the heads of the journal."

// JournalSigner returns the Ed25519 key that signs the heads of the journal, and
// makes it at first use. All that use one store get the same key.
func (a *Authority) JournalSigner(ctx context.Context) (crypto.Signer, error) {
	key, _, err := a.keys.signer(ctx, journalSecret, journalWords, newJournalKey)
	if err == nil {
		_, err = journalPublic(key)
	}
	if err != nil {
		return nil, journalError(err)
	}
	return key, nil
}

// JournalKeys returns the public keys that have signed heads of the journal before
// the one of JournalSigner: those heads stay good.
func (a *Authority) JournalKeys(ctx context.Context) (keys []ed25519.PublicKey, err error) {
	err = a.keys.store.View(ctx, func(r store.Reader) error {
		keys, err = a.oldJournalKeys(r)
		return err
	})
	if err != nil {
		return nil, journalError(err)
	}
	return keys, nil
}

// RotateAudit makes a new key for the heads of the journal and returns it. The
// public key of the one before joins JournalKeys.
func (a *Authority) RotateAudit(ctx context.Context) (crypto.Signer, api.RotateResponse, error) {
	var key crypto.Signer
	_, err := a.keys.store.Update(ctx, actor, func(tx store.Tx) error {
		old, err := a.oldJournalKeys(tx)
		if err != nil {
			return err
		}
		switch before, _, err := a.keys.keeper.Signer(tx, journalSecret); {
		case api.HasCode(err, api.CodeNotFound): // nothing was signed yet
		case err != nil:
			return err
		default:
			public, err := journalPublic(before)
			if err != nil {
				return err
			}
			s, err := a.keys.get(tx, oldJournalSecret, "The public keys that signed heads of the journal before.")
			if err != nil {
				return err
			}
			if err := a.keys.keeper.SealPublicKeys(s, append(old, public)...); err != nil {
				return err
			}
			if err := put(tx, s); err != nil {
				return err
			}
		}
		if key, _, err = newJournalKey(); err != nil {
			return err
		}
		return a.keys.put(tx, journalSecret, journalWords, key)
	})
	if err != nil {
		return nil, api.RotateResponse{}, journalError(err)
	}
	public, err := journalPublic(key)
	if err != nil {
		return nil, api.RotateResponse{}, journalError(err)
	}
	sum := sha256.Sum256(public)
	return key, api.RotateResponse{What: "audit", KeyID: hex.EncodeToString(sum[:8])}, nil
}

// oldJournalKeys returns the public keys that are kept.
func (a *Authority) oldJournalKeys(r store.Reader) ([]ed25519.PublicKey, error) {
	keys, err := a.keys.keeper.PublicKeys(r, oldJournalSecret)
	if api.HasCode(err, api.CodeNotFound) {
		return nil, nil
	}
	return keys, err
}

func newJournalKey() (crypto.Signer, *x509.Certificate, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, nil, err
}

func journalPublic(key crypto.Signer) (ed25519.PublicKey, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, errors.New("it is not Ed25519")
	}
	return public, nil
}

func journalError(err error) error {
	return fmt.Errorf("cert: the key of the journal, Secret %s: %w", journalSecret, err)
}
