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

// actor is who writes the cluster's own keys, for the history of the store.
const actor = "system"

// keys are the cluster's own, each in a Secret that nobody can delete.
type keys struct {
	store  store.Store
	keeper *secret.Keeper
	now    func() time.Time
}

func secretKey(name string) api.Key {
	return api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: name}
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
	_, err = k.store.Update(ctx, actor, func(tx store.Tx) (err error) {
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
		return k.put(tx, name, description, key, chain...)
	})
	return key, chain, err
}

// put makes a key and its certificates the value of the Secret of that name.
func (k keys) put(tx store.Tx, name, description string, key crypto.Signer, chain ...*x509.Certificate) error {
	s, err := k.get(tx, name, description)
	if err != nil {
		return err
	}
	if err := k.keeper.SealSigner(s, key, chain...); err != nil {
		return err
	}
	return put(tx, s)
}

// get returns the Secret of that name, to be written again: a new one of the
// system if there is none.
func (k keys) get(tx store.Tx, name, description string) (*api.Secret, error) {
	version, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	now := k.now().UTC()
	s, err := store.Get[*api.Secret](tx, secretKey(name))
	if api.HasCode(err, api.CodeNotFound) {
		var uid uuid.UUID
		if uid, err = uuid.NewRandom(); err == nil {
			s = &api.Secret{Head: api.Head{Metadata: api.Metadata{
				Name: name, Description: description, IsSystem: true, UID: uid.String(), CreatedAt: now,
			}}}
			s.Default()
		}
	}
	if err != nil {
		return nil, err
	}
	s.Metadata.ResourceVersion, s.Metadata.UpdatedAt = version.String(), now
	return s, nil
}

// put writes a Secret.
func put(tx store.Tx, s *api.Secret) error {
	rec, err := store.Encode(s)
	if err != nil {
		return err
	}
	return tx.Put(rec)
}
