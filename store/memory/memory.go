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

// epoch is that of every Store: what it holds is never restored.
const epoch = 1

// A Store is a [store.Store] in memory. Nothing in it is durable.
type Store struct {
	life    sync.RWMutex // read-locked by what is under way; Close keeps it locked
	closing sync.Once
	closed  chan struct{}

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
		closed: make(chan struct{}),
		turn:   make(chan struct{}, 1),
		tail:   store.NewTail(api.Revision{Epoch: epoch}, changes),
		marks:  map[string][]byte{},
	}
	s.state.Store(&state{objects: iradix.New[store.Record](), revision: api.Revision{Epoch: epoch}})
	return s
}

// View implements store.Store.
func (s *Store) View(ctx context.Context, f func(store.Reader) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
	return f(s.state.Load())
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, actor string, f func(store.Tx) error) (api.Revision, error) {
	if err := s.enter(ctx); err != nil {
		return api.Revision{}, err
	}
	defer s.life.RUnlock()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return api.Revision{}, ctx.Err()
	}
	defer func() { <-s.turn }()

	base := s.state.Load()
	tx := store.NewPending(base)
	if err := f(tx); err != nil {
		return api.Revision{}, err
	}
	changes := tx.Changes()
	if len(changes) == 0 {
		return base.revision, nil
	}
	next, commit := base.apply(changes)
	commit.At, commit.Actor = time.Now().UTC().Truncate(time.Microsecond), actor
	s.state.Store(next)
	s.tail.Append(commit)
	return next.revision, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, from api.Revision) iter.Seq2[store.Commit, error] {
	return func(yield func(store.Commit, error) bool) {
		from := from // a sequence may be ranged over again
		if from == (api.Revision{}) {
			from.Epoch = epoch
		}
		for ctx.Err() == nil {
			commits, grown, ok := s.tail.After(from)
			if s.isClosed() {
				yield(store.Commit{}, store.ErrClosed)
				return
			}
			if !ok {
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
			case <-s.closed:
			case <-ctx.Done():
			}
		}
	}
}

// SetMark implements store.Store.
func (s *Store) SetMark(ctx context.Context, name string, value []byte) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.life.RUnlock()
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
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.life.RUnlock()
	s.marksMu.Lock()
	defer s.marksMu.Unlock()
	return bytes.Clone(s.marks[name]), nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.closing.Do(func() {
		close(s.closed)
		s.life.Lock()
	})
	return nil
}

// enter holds Close off until life is unlocked, unless it is too late.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// Only Close ever locks it, so it cannot be had once Close was called.
	if s.isClosed() || !s.life.TryRLock() {
		return store.ErrClosed
	}
	return nil
}

func (s *Store) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// A state is all Objects at a revision; it never changes.
type state struct {
	objects  *iradix.Tree[store.Record]
	revision api.Revision
}

// apply returns the next state and the commit that leads to it.
func (s *state) apply(changes []store.Change) (*state, store.Commit) {
	next := &state{revision: api.Revision{Epoch: s.revision.Epoch, Number: s.revision.Number + 1}}
	txn := s.objects.Txn()
	for i := range changes {
		c := &changes[i]
		c.Revision = next.revision
		if c.Deleted {
			txn.Delete(path(c.Key))
		} else {
			txn.Insert(path(c.Key), c.Record)
		}
	}
	next.objects = txn.Commit()
	return next, store.Commit{Revision: next.revision, Changes: changes}
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
	return func(yield func(store.Record, error) bool) {
		it := s.objects.Root().Iterator()
		it.SeekPrefix(prefix(group, kind))
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
