package address

import (
	"encoding/json"
	"fmt"

	"cardea/api"
	"cardea/store"
)

// A holder is who has a key.
type holder struct {
	Session string `json:"session"` // uid
}

// TakeKey notes that a WireGuard key is that of a Session, by its uid: a key names one
// peer. If another has it, the error is a CONFLICT.
func TakeKey(tx store.Tx, publicKey, session string) error {
	b, err := json.Marshal(holder{session})
	if err != nil {
		return fmt.Errorf("address: encode a key: %w", err)
	}
	err = tx.Put(store.Record{Key: key(kindKey, publicKey), UID: session, JSON: b})
	if api.HasCode(err, api.CodeConflict) {
		e := api.Errorf(api.CodeConflict, "another Session has that WireGuard key")
		e.Hint = "make a new key: each Session needs its own"
		return e
	}
	return err
}

// ReleaseKey notes that a Session has a key no longer; "" is none.
func ReleaseKey(tx store.Tx, publicKey, session string) error {
	if publicKey == "" {
		return nil
	}
	k := key(kindKey, publicKey)
	rec, err := tx.Get(k)
	switch {
	case api.HasCode(err, api.CodeNotFound) || err == nil && rec.UID != session:
		return nil // it is that of nobody, or of another
	case err != nil:
		return err
	}
	return tx.Delete(k)
}
