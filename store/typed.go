package store

import (
	"encoding/json"
	"fmt"
	"iter"

	"cardea/api"
)

// Encode returns o as it is stored. Key and UID are those of its head; the
// Revision is given by the commit.
func Encode(o api.Object) (Record, error) {
	h := o.Header()
	b, err := json.Marshal(o)
	if err != nil {
		return Record{}, fmt.Errorf("store: encode %s: %w", h.Key(), err)
	}
	return Record{Key: h.Key(), UID: h.Metadata.UID, JSON: b}, nil
}

// Get returns the Object of that key as a T of its own, which the caller may
// write to. Its error is NOT_FOUND if there is none.
func Get[T api.Object](r Reader, k api.Key) (T, error) {
	rec, err := r.Get(k)
	if err != nil {
		var none T
		return none, err
	}
	return decode[T](rec)
}

// Decode returns the Object of a record, one of its own.
func Decode(r Record) (api.Object, error) { return decode[api.Object](r) }

// All calls for each Object of a kind of ours in the order of names, each a T
// of its own. After an error it ends.
func All[T api.Object](r Reader, kind string) iter.Seq2[T, error] {
	return AllIn[T](r, api.GroupCore, kind)
}

// AllIn does so for a kind of any group, in the order of Namespaces, then names.
func AllIn[T api.Object](r Reader, group, kind string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for rec, err := range r.List(group, kind) {
			var o T
			if err == nil {
				o, err = decode[T](rec)
			}
			if !yield(o, err) || err != nil {
				return
			}
		}
	}
}

func decode[T api.Object](r Record) (T, error) {
	var none T
	k, ok := api.KindIn(r.Key.Group, r.Key.Kind)
	if !ok {
		return none, fmt.Errorf("store: decode %s: unknown kind", r.Key)
	}
	o, ok := k.New().(T)
	if !ok {
		return none, fmt.Errorf("store: decode %s: it is not a %T", r.Key, none)
	}
	if err := json.Unmarshal(r.JSON, o); err != nil {
		return none, fmt.Errorf("store: decode %s: %w", r.Key, err)
	}
	return o, nil
}
