// Package memory is a store that lives as long as its process: for tests and
// throw-away clusters.
//
// The state is a persistent tree. A reader holds the root that it began with; a
// writer copies the paths that it changes. Nobody waits for a reader.
package memory

import (
	"bytes"
	"context"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"cardea/api"
	"cardea/store"
)

// DefaultHistory is how many changes New keeps for watchers.
const DefaultHistory = 100_000

// firstEpoch is that of a new Store.
const firstEpoch = 1

// A Store is a [store.Store] in memory. Nothing in it is durable.
type Store struct {
	life *store.Life

	turn  chan struct{} // holds a token while a transaction runs
	state atomic.Pointer[state]
	tail  *store.Tail

	marksMu sync.Mutex
	marks   map[string][]byte
}

var _ store.Store = (*Store)(nil)

// New returns an empty Store.
func New() *Store { return NewKeeping(DefaultHistory) }

// NewKeeping returns an empty Store that keeps the latest commits for watchers,
// as long as they have together no more than that many changes.
func NewKeeping(changes int) *Store {
	s := &Store{
		life:  store.NewLife(),
		turn:  make(chan struct{}, 1),
		tail:  store.NewTail(api.Revision{Epoch: firstEpoch}, changes),
		marks: map[string][]byte{},
	}
	s.state.Store(&state{objects: iradix.New[store.Record](), revision: api.Revision{Epoch: firstEpoch}})
	return s
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, f func(store.Reader) error) error {
	if err := s.life.Enter(ctx); err != nil {
		return err
	}
	defer s.life.Leave()
	return f(s.state.Load())
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, actor string, f func(store.Tx) error) (api.Revision, error) {
	return s.write(ctx, actor, func(base *state) (*state, []store.Change, error) {
		tx := store.NewPending(base)
		if err := f(tx); err != nil {
			return nil, nil, err
		}
		changes := tx.Changes()
		if len(changes) == 0 {
			return base, nil, nil
		}
		next := &state{objects: base.objects, revision: base.revision}
		return next, next.apply(changes), nil
	})
}

// Renew implements store.Store.
func (s *Store) Renew(ctx context.Context, actor string, all iter.Seq2[store.Record, error]) (api.Revision, error) {
	return s.write(ctx, actor, func(base *state) (*state, []store.Change, error) {
		var changes []store.Change
		for r, err := range store.Checked(ctx, all) {
			if err != nil {
				return nil, nil, err
			}
			changes = append(changes, store.Change{Record: r})
		}
		next := &state{objects: iradix.New[store.Record](), revision: base.revision}
		next.revision.Epoch++
		if len(changes) == 0 {
			return next, nil, nil
		}
		return next, next.apply(changes), nil
	})
}

// write makes what f returns the state, and a commit of the changes that lead to
// it, if there are any.
func (s *Store) write(ctx context.Context, actor string, f func(*state) (*state, []store.Change, error)) (api.Revision, error) {
	if err := s.life.Enter(ctx); err != nil {
		return api.Revision{}, err
	}
	defer s.life.Leave()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return api.Revision{}, ctx.Err()
	}
	defer func() { <-s.turn }()

	next, changes, err := f(s.state.Load())
	if err != nil {
		return api.Revision{}, err
	}
	s.state.Store(next)
	if len(changes) == 0 {
		s.tail.Skip(next.revision)
	} else {
		at := time.Now().UTC().Truncate(time.Microsecond)
		s.tail.Append(store.Commit{Revision: next.revision, At: at, Actor: store.ActorText(actor), Changes: changes})
	}
	return next.revision, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, from api.Revision) iter.Seq2[store.Commit, error] {
	return func(yield func(store.Commit, error) bool) {
		from := from // a sequence may be ranged over again
		if from == (api.Revision{}) {
			from.Epoch = s.state.Load().revision.Epoch
		}
		for ctx.Err() == nil {
			commits, grown, ok := s.tail.After(from)
			select {
			case <-s.life.Closed():
				yield(store.Commit{}, store.ErrClosed)
				return
			default:
			}
			if !ok && from != s.state.Load().revision { // which may be ahead of the tail for a moment
				yield(store.Commit{}, store.ErrCompacted)
				return
			}
			for _, c := range commits {
				if ctx.Err() != nil || !yield(c, nil) {
					return
				}
				from = c.Revision
			}
			if len(commits) > 0 {
				continue
			}
			select {
			case <-grown:
			case <-s.life.Closed():
			case <-ctx.Done():
			}
		}
	}
}

// SetMark implements store.Store.
func (s *Store) SetMark(ctx context.Context, name string, value []byte) error {
	if err := s.life.Enter(ctx); err != nil {
		return err
	}
	defer s.life.Leave()
	if err := store.CheckMark(name, value); err != nil {
		return err
	}
	s.marksMu.Lock()
	defer s.marksMu.Unlock()
	if len(value) == 0 {
		delete(s.marks, name)
	} else {
		s.marks[name] = bytes.Clone(value)
	}
	return nil
}

// Mark implements store.Store.
func (s *Store) Mark(ctx context.Context, name string) ([]byte, error) {
	if err := s.life.Enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.Leave()
	s.marksMu.Lock()
	defer s.marksMu.Unlock()
	return bytes.Clone(s.marks[name]), nil
}

// Close implements store.Store.
func (s *Store) Close() error { return s.life.End(func() error { return nil }) }

// A state is all Objects at a revision; it never changes.
type state struct {
	objects  *iradix.Tree[store.Record]
	revision api.Revision
}

// apply makes a state that nobody else has yet the next one, and returns changes
// with its revision.
func (s *state) apply(changes []store.Change) []store.Change {
	s.revision.Number++
	txn := s.objects.Txn()
	for i := range changes {
		c := &changes[i]
		c.Revision = s.revision
		if c.Deleted {
			txn.Delete(path(c.Key))
		} else {
			txn.Insert(path(c.Key), c.Record)
		}
	}
	s.objects = txn.Commit()
	return changes
}

// Revision implements store.Reader.
func (s *state) Revision() api.Revision { return s.revision }

// Get implements store.Reader.
func (s *state) Get(k api.Key) (store.Record, error) {
	r, ok := s.objects.Get(path(k))
	if !ok {
		return store.Record{}, api.NotFound(k)
	}
	return r, nil
}

// List implements store.Reader.
func (s *state) List(group, kind string) iter.Seq2[store.Record, error] {
	return s.under(prefix(group, kind))
}

// ListAfter implements store.Reader.
func (s *state) ListAfter(k api.Key) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		it := s.objects.Root().Iterator()
		it.SeekLowerBound(path(k))
		for _, r, ok := it.Next(); ok && r.Key.Group == k.Group && r.Key.Kind == k.Kind; _, r, ok = it.Next() {
			if r.Key != k && !yield(r, nil) {
				return
			}
		}
	}
}

// All implements store.Reader.
func (s *state) All() iter.Seq2[store.Record, error] { return s.under(nil) }

// under yields the Objects whose path begins with prefix.
func (s *state) under(prefix []byte) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		it := s.objects.Root().Iterator()
		it.SeekPrefix(prefix)
		for _, r, ok := it.Next(); ok; _, r, ok = it.Next() {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// path is where an Object is in the tree: its key with NUL between the parts,
// which no part contains, so that the order of paths is that of the parts.
func path(k api.Key) []byte {
	return []byte(strings.Join([]string{k.Group, k.Kind, k.Namespace, k.Name}, "\x00"))
}

// prefix is what the paths of a group and kind begin with.
func prefix(group, kind string) []byte {
	if kind == "" {
		return []byte(group + "\x00")
	}
	return []byte(group + "\x00" + kind + "\x00")
}
