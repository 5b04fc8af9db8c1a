package cert

import (
	"context"
	"crypto"
	"crypto/x509"
	"time"

	"github.com/google/uuid"

	"cardea/api"
	"cardea/secret"
	"cardea/store"
)

// keys are the cluster's own, each in a Secret that nobody can delete.
type keys struct {
	store  store.Store
	keeper *secret.Keeper
	now    func() time.Time
}

// signer returns what the Secret of that name holds. If there is none, it keeps
// there what generate returns: a key, and its certificate unless that is nil.
// Transactions happen one after the other, so all callers get what the first one
// made.
func (k keys) signer(ctx context.Context, name, description string, generate func() (crypto.Signer, *x509.Certificate, error)) (key crypto.Signer, chain []*x509.Certificate, err error) {
	err = k.store.View(ctx, func(r store.Reader) (err error) {
		key, chain, err = k.keeper.Signer(r, name)
		return err
	})
	if !api.HasCode(err, api.CodeNotFound) {
		return key, chain, err
	}
	_, err = k.store.Update(ctx, "system", func(tx store.Tx) (err error) {
		if key, chain, err = k.keeper.Signer(tx, name); !api.HasCode(err, api.CodeNotFound) {
			return err
		}
		var cert *x509.Certificate
		if key, cert, err = generate(); err != nil {
			return err
		}
		if cert != nil {
			chain = []*x509.Certificate{cert}
		}
		rec, err := k.record(name, description, key, chain)
		if err != nil {
			return err
		}
		return tx.Put(rec)
	})
	return key, chain, err
}

// record returns a new Secret of the system, sealed, as it is stored.
func (k keys) record(name, description string, key crypto.Signer, chain []*x509.Certificate) (store.Record, error) {
	uid, err := uuid.NewRandom()
	if err != nil {
		return store.Record{}, err
	}
	version, err := uuid.NewV7()
	if err != nil {
		return store.Record{}, err
	}
	now := k.now().UTC()
	s := &api.Secret{Head: api.Head{Metadata: api.Metadata{
		Name: name, Description: description, IsSystem: true,
		UID: uid.String(), ResourceVersion: version.String(), CreatedAt: now, UpdatedAt: now,
	}}}
	s.Default()
	if err := k.keeper.SealSigner(s, key, chain...); err != nil {
		return store.Record{}, err
	}
	return store.Encode(s)
}
