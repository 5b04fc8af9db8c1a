package store

import (
	"bytes"
	"cmp"
	"context"
	"iter"
	"slices"
	"unicode/utf8"

	"cardea/api"
)

// A Pending is the Tx that implementations hand out. It keeps what a
// transaction writes in memory, over the state that the transaction began with,
// so that one that fails leaves nothing to undo, and so that all
// implementations agree on what a transaction changed.
type Pending struct {
	base    Reader
	entries map[api.Key]*pendingEntry
	written []*pendingEntry // in the order in which they first were
}

// A pendingEntry is one Object before and after; nil is absent.
type pendingEntry struct {
	key         api.Key
	before, now *Record
	written     bool
}

// NewPending returns a transaction over base, which must not change while it is
// used.
func NewPending(base Reader) *Pending {
	return &Pending{base: base, entries: map[api.Key]*pendingEntry{}}
}

// Changes returns what the transaction changed in effect; see [Commit]. Whoever
// commits it sets their Revision.
func (p *Pending) Changes() []Change {
	var cs []Change
	for _, e := range p.written {
		same := e.before != nil && e.now != nil && e.before.UID == e.now.UID
		if e.before != nil && !same {
			cs = append(cs, Change{Record: *e.before, Deleted: true})
		}
		if e.now != nil && !(same && bytes.Equal(e.before.JSON, e.now.JSON)) {
			cs = append(cs, Change{Record: *e.now})
		}
	}
	return cs
}

// Revision implements Reader: it is that of the state below.
func (p *Pending) Revision() api.Revision { return p.base.Revision() }

// Get implements Reader.
func (p *Pending) Get(k api.Key) (Record, error) {
	e, ok := p.entries[k]
	switch {
	case !ok:
		return p.base.Get(k)
	case e.now == nil:
		return Record{}, api.NotFound(k)
	}
	return *e.now, nil
}

// List implements Reader.
func (p *Pending) List(group, kind string) iter.Seq2[Record, error] {
	return p.merge(p.base.List(group, kind), func(k api.Key) bool {
		return k.Group == group && (kind == "" || k.Kind == kind)
	})
}

// ListAfter implements Reader.
func (p *Pending) ListAfter(after api.Key) iter.Seq2[Record, error] {
	return p.merge(p.base.ListAfter(after), func(k api.Key) bool {
		return k.Group == after.Group && k.Kind == after.Kind && compareKeys(k, after) > 0
	})
}

// All implements Reader.
func (p *Pending) All() iter.Seq2[Record, error] {
	return p.merge(p.base.All(), func(api.Key) bool { return true })
}

// merge yields below, with what was written under the keys that match.
func (p *Pending) merge(below iter.Seq2[Record, error], match func(api.Key) bool) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var own []pendingEntry // copies: the loop may write
		for k, e := range p.entries {
			if match(k) {
				own = append(own, *e)
			}
		}
		slices.SortFunc(own, func(a, b pendingEntry) int { return compareKeys(a.key, b.key) })

		// next yields the first of own, unless it was deleted.
		next := func() bool {
			e := own[0]
			own = own[1:]
			return e.now == nil || yield(*e.now, nil)
		}
		for r, err := range below {
			if err != nil {
				yield(Record{}, err)
				return
			}
			for len(own) > 0 && compareKeys(own[0].key, r.Key) < 0 {
				if !next() {
					return
				}
			}
			var more bool
			if len(own) > 0 && own[0].key == r.Key {
				more = next()
			} else {
				more = yield(r, nil)
			}
			if !more {
				return
			}
		}
		for len(own) > 0 {
			if !next() {
				return
			}
		}
	}
}

// Put implements Tx.
func (p *Pending) Put(r Record) error {
	if err := check(r); err != nil {
		return err
	}
	e, err := p.entry(r.Key)
	if err != nil {
		return err
	}
	if e.now != nil && e.now.UID != r.UID {
		return api.Errorf(api.CodeConflict, "%s %q exists already", r.Key.Kind, r.Key.Name)
	}
	r.Revision = api.Revision{}
	p.write(e, &r)
	return nil
}

// Delete implements Tx.
func (p *Pending) Delete(k api.Key) error {
	e, err := p.entry(k)
	if err != nil {
		return err
	}
	if e.now == nil {
		return api.NotFound(k)
	}
	p.write(e, nil)
	return nil
}

func (p *Pending) write(e *pendingEntry, now *Record) {
	e.now = now
	if !e.written {
		e.written = true
		p.written = append(p.written, e)
	}
}

// entry returns the entry of k, made from the state below if there is none.
func (p *Pending) entry(k api.Key) (*pendingEntry, error) {
	if e, ok := p.entries[k]; ok {
		return e, nil
	}
	e := &pendingEntry{key: k}
	r, err := p.base.Get(k)
	switch {
	case err == nil:
		e.before, e.now = &r, &r
	case !api.HasCode(err, api.CodeNotFound):
		return nil, err
	}
	p.entries[k] = e
	return e, nil
}

// check reports what is wrong with a Record that is to be stored.
func check(r Record) error {
	k := r.Key
	switch key := k.Group + k.Kind + k.Namespace + k.Name; {
	case k.Kind == "" || k.Name == "":
		return api.Errorf(api.CodeInvalid, "an Object needs a kind and a name, not %q and %q", k.Kind, k.Name)
	case len(key) > MaxKey:
		return api.Errorf(api.CodeInvalid, "the key of an Object has %d bytes, more than %d: %.100q…", len(key), MaxKey, k)
	case !IsText(key):
		return api.Errorf(api.CodeInvalid, "the key of an Object must be UTF-8 without NUL: %q", k)
	case len(r.UID) > MaxKey || !IsText(r.UID):
		return api.Errorf(api.CodeInvalid, "the uid of %s %q must be UTF-8 without NUL of at most %d bytes", k.Kind, k.Name, MaxKey)
	case len(r.JSON) > MaxObject:
		return api.Errorf(api.CodeInvalid, "%s %q has %d bytes, more than %d", k.Kind, k.Name, len(r.JSON), MaxObject)
	case !utf8.Valid(r.JSON) || bytes.IndexByte(r.JSON, 0) >= 0:
		return api.Errorf(api.CodeInvalid, "%s %q is not UTF-8 without NUL", k.Kind, k.Name)
	}
	return nil
}

// Checked yields, for implementations of Renew, what all yields, until something
// is wrong with it or ctx is done: then the error, last.
func Checked(ctx context.Context, all iter.Seq2[Record, error]) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var last api.Key // before all others: it has no kind
		for r, err := range all {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil {
				err = check(r)
			}
			if err == nil && compareKeys(last, r.Key) >= 0 {
				err = api.Errorf(api.CodeInvalid, "%s comes after %s: Objects must be in order, each once", r.Key, last)
			}
			if err != nil {
				yield(Record{}, err)
				return
			}
			last, r.Revision = r.Key, api.Revision{}
			if !yield(r, nil) {
				return
			}
		}
	}
}

// compareKeys is the order of List.
func compareKeys(a, b api.Key) int {
	return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
