package store

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"cardea/api"
)

// tailStep is how many commits a watcher takes from a Tail at once.
const tailStep = 64

// A Tail holds the latest commits of a store without a gap, bounded, and wakes
// those who wait for more. A watcher holds no place in it, so that a slow one
// keeps nothing alive.
type Tail struct {
	limit int

	mu      sync.Mutex
	at      api.Revision // of the latest commit
	commits []Commit     // numbered without a gap; the last is at
	changes int          // in commits
	grown   chan struct{}
	looked  time.Time // when a watcher last had a look at the medium, for all of them
}

// NewTail returns the Tail of a store whose latest commit is at. It holds the
// latest commit and those before it, as long as they have together no more
// than limit changes.
func NewTail(at api.Revision, limit int) *Tail {
	return &Tail{limit: limit, at: at, grown: make(chan struct{})}
}

// Append adds a commit and wakes those who wait. If it does not follow the one
// before, because somebody else wrote to the same store, those before are
// forgotten.
func (t *Tail) Append(c Commit) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Revision.Compare(t.at) <= 0 {
		return // Skip was told before
	}
	if (c.Revision != api.Revision{Epoch: t.at.Epoch, Number: t.at.Number + 1}) {
		t.commits, t.changes = nil, 0
	}
	t.at = c.Revision
	t.commits = append(t.commits, c)
	t.changes += len(c.Changes)
	for t.changes > t.limit && len(t.commits) > 1 {
		t.changes -= len(t.commits[0].Changes)
		t.commits[0] = Commit{} // for the collector
		t.commits = t.commits[1:]
	}
	t.wake()
}

// Skip says that the latest commit is at, and that the Tail does not have it.
func (t *Tail) Skip(at api.Revision) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at.Compare(t.at) <= 0 {
		return
	}
	t.at, t.commits, t.changes = at, nil, 0
	t.wake()
}

// wake is called with mu held.
func (t *Tail) wake() {
	close(t.grown)
	t.grown = make(chan struct{})
}

// After returns the first commits after from, none if from is the latest, and a
// channel that is closed at the next Append. It is not ok if the Tail does not
// reach back to from, or not forward to it.
func (t *Tail) After(from api.Revision) (commits []Commit, grown <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	missing := t.at.Number - from.Number // wraps round if from is ahead
	if from.Epoch != t.at.Epoch || missing > uint64(len(t.commits)) {
		return nil, t.grown, false
	}
	commits = t.commits[len(t.commits)-int(missing):]
	return slices.Clone(commits[:min(len(commits), tailStep)]), t.grown, true
}

// mayLook reports whether it is for the caller to look at the medium: nobody has for
// every.
func (t *Tail) mayLook(every time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if now.Sub(t.looked) < every {
		return false
	}
	t.looked = now
	return true
}

// Follow is the Watch of a store on a medium that others write to as well. It
// takes commits from the Tail if that has them. Otherwise it calls read, which
// returns the first commits after a revision, none if there are no more. One of all
// watchers does so every poll, and wakes the others if there is something; each does
// once closed is. An error of read ends it.
func (t *Tail) Follow(ctx context.Context, from api.Revision, poll time.Duration, closed <-chan struct{},
	read func(from api.Revision) ([]Commit, error)) iter.Seq2[Commit, error] {
	return func(yield func(Commit, error) bool) {
		from := from     // a sequence may be ranged over again
		trusted := false // whether the Tail may be believed that there is no more
		for ctx.Err() == nil {
			commits, grown, ok := t.After(from)
			if !ok || !trusted {
				var err error
				commits, err = read(from)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					yield(Commit{}, err)
					return
				}
				trusted = true
				if n := len(commits); n > 0 {
					t.Skip(commits[n-1].Revision)
				}
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
			timer := time.NewTimer(poll)
			select {
			case <-grown:
			case <-timer.C:
				trusted = !t.mayLook(poll) // another process may have written
			case <-closed:
				trusted = false // reading says so
			case <-ctx.Done():
			}
			timer.Stop()
		}
	}
}
