package store

import (
	"bytes"
	"cmp"
	"iter"
	"slices"
	"strings"

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

// List implements Reader: it merges what was written into what is below.
func (p *Pending) List(group, kind string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		var own []pendingEntry // copies: the loop may write
		for k, e := range p.entries {
			if k.Group == group && (kind == "" || k.Kind == kind) {
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
		for r, err := range p.base.List(group, kind) {
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
	switch {
	case r.Key.Kind == "" || r.Key.Name == "":
		return api.Errorf(api.CodeInvalid, "an Object needs a kind and a name, not %q and %q", r.Key.Kind, r.Key.Name)
	case strings.Contains(r.Key.Group+r.Key.Kind+r.Key.Namespace+r.Key.Name, "\x00"):
		return api.Errorf(api.CodeInvalid, "the key of an Object must not contain NUL: %q", r.Key)
	case len(r.JSON) > MaxObject:
		return api.Errorf(api.CodeInvalid, "%s %q has %d bytes, more than %d", r.Key.Kind, r.Key.Name, len(r.JSON), MaxObject)
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

// compareKeys is the order of List.
func compareKeys(a, b api.Key) int {
	return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
