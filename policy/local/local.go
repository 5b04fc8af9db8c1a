// Package local is the Decider of one process: it answers from a compiled
// snapshot of a store, which it keeps up to date by following the store. A
// decision loads one pointer, takes no lock and touches no store.
//
// What connections are routed to may also be an Object of another system: it is
// decided about as a Service that is open to everyone, but that a DENY of the
// ClusterConfig or of the Namespace of its name refuses. Once it is deleted, its
// connections may go on for a while.
//
// Conditions are CEL over the structs of package api, statically typed and
// three-valued: what cannot be told is unknown, which never allows, and denies
// where a DENY depends on it. Check reports what is wrong with conditions when
// they are written.
package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/identity"
	"cardea/policy"
	"cardea/store"
)

// A Decider decides from a snapshot of a Store. It answers while Run runs.
type Decider struct {
	Store    store.Store
	Identity identity.Verifier
	Log      *slog.Logger
	// Lease is how long an answer holds if nobody can be asked; 0 is 30 seconds.
	Lease time.Duration
	// RouteNamespace is the namespace of foreign Objects that name none, "default" if
	// it is "": the rules of the Namespace of ours of that name apply to them.
	RouteNamespace string
	// Now is the clock for requests that do not say when they are; nil is time.Now.
	Now func() time.Time

	current   atomic.Pointer[snapshot] // nil when there is none that may answer
	judgments judgments

	compilerOnce sync.Once
	compiles     *compiler // see compiler

	mu      sync.Mutex
	news    chan struct{} // closed when anything below, or current, changes
	stopped bool
	// history holds the latest Changes, as far as their keys fit into
	// historySize; those up to floor are forgotten.
	history []api.Change
	keys    int
	floor   api.Revision
}

var (
	_ policy.Decider   = (*Decider)(nil)
	_ policy.Explainer = (*Decider)(nil)
)

const (
	defaultLease = 30 * time.Second
	heartbeat    = time.Second
	// historySize bounds what is remembered for followers: keys, and one for
	// each Change. Whoever is further behind asks everything again.
	historySize = 16 << 10
)

var (
	errNoSnapshot = errors.New("policy: the snapshot is not loaded")
	errStopped    = errors.New("policy: the decider has stopped")
)

// Run loads a snapshot and follows the store, until ctx is done; then it returns
// nil. It returns an error if the store fails. After it there are no decisions.
func (d *Decider) Run(ctx context.Context) error {
	d.update(func() { d.stopped = false })
	defer d.update(func() { d.stopped = true; d.current.Store(nil) })
	c := d.compiler()
	for last := new(snapshot); ; {
		s, err := load(ctx, d.Store, c)
		if err == nil {
			s.inherit(last, d.instant(&api.Request{}))
			d.update(func() {
				d.current.Store(s)
				d.history, d.keys, d.floor = nil, 0, s.revision
			})
			last, err = d.follow(ctx, s, c)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrCompacted):
			// What is there may be of an epoch that is gone: no answer is better.
			d.update(func() { d.current.Store(nil) })
			d.Log.Warn("policy: the store's history does not reach back; loading everything again")
		default:
			return fmt.Errorf("policy: the store failed: %w", err)
		}
	}
}

// follow brings the snapshot up to date, commit by commit. It returns the last one.
func (d *Decider) follow(ctx context.Context, s *snapshot, c *compiler) (*snapshot, error) {
	for commit, err := range d.Store.Watch(ctx, s.revision) {
		if err != nil {
			return s, err
		}
		s = s.next(commit, c)
		change := api.Change{Revision: commit.Revision, Keys: keysOf(commit)}
		d.update(func() {
			d.current.Store(s)
			d.history = append(d.history, change)
			d.keys += 1 + len(change.Keys)
			for d.keys > historySize && len(d.history) > 0 {
				d.floor = d.history[0].Revision
				d.keys -= 1 + len(d.history[0].Keys)
				d.history[0] = api.Change{}
				d.history = d.history[1:]
			}
		})
	}
	return s, errors.New("the watch ended")
}

// keysOf returns what a commit changed, each key once.
func keysOf(commit store.Commit) []api.Key {
	keys := make([]api.Key, 0, len(commit.Changes))
	seen := make(map[api.Key]bool, len(commit.Changes))
	for _, c := range commit.Changes {
		if !seen[c.Key] {
			seen[c.Key] = true
			keys = append(keys, c.Key)
		}
	}
	return keys
}

// update changes what mu guards and wakes those who wait for it.
func (d *Decider) update(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
	if d.news != nil {
		close(d.news)
		d.news = nil
	}
}

// nextUpdate returns what the next update closes; mu is held.
func (d *Decider) nextUpdate() <-chan struct{} {
	if d.news == nil {
		d.news = make(chan struct{})
	}
	return d.news
}

// Ready waits until there is a snapshot to answer from.
func (d *Decider) Ready(ctx context.Context) error { return d.Await(ctx, api.Revision{}) }

// Await waits until every decision is made on data of that revision or later.
// It returns an error if ctx is done, or Run ends, before that.
func (d *Decider) Await(ctx context.Context, r api.Revision) error {
	for {
		d.mu.Lock()
		s, stopped, news := d.current.Load(), d.stopped, d.nextUpdate()
		d.mu.Unlock()
		switch {
		case s != nil && s.revision.Compare(r) >= 0:
			return nil
		case stopped:
			return errStopped
		}
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Decide implements policy.Decider. It does not wait: before the first snapshot,
// and while everything is loaded again, it returns an error, and policy.ErrBehind
// if the snapshot is older than r.AtLeast.
func (d *Decider) Decide(_ context.Context, r api.Request) (api.Decision, error) {
	s, err := d.snapshot(r.AtLeast)
	if err != nil {
		return api.Decision{}, err
	}
	return d.decide(s, &r), nil
}

// Propose decides as Decide would if the state were that of a Reader: what a
// transaction is about to commit. It reads all of it.
func (d *Decider) Propose(_ context.Context, of store.Reader, r api.Request) (api.Decision, error) {
	s, err := newSnapshot(of, d.compiler())
	if err == nil && r.Route != nil {
		err = s.withRoutes(of, d.compiler())
	}
	if err != nil {
		return api.Decision{}, err
	}
	return d.decide(s, &r), nil
}

// compiler returns the one that compiles for all snapshots.
func (d *Decider) compiler() *compiler {
	d.compilerOnce.Do(func() {
		d.compiles = newCompiler(d.Log)
		d.compiles.routeNamespace = cmp.Or(d.RouteNamespace, d.compiles.routeNamespace)
	})
	return d.compiles
}

// decide answers from what was kept if it can, and else makes the decision.
func (d *Decider) decide(s *snapshot, r *api.Request) api.Decision {
	r.Now = d.instant(r)
	who, err := d.identify(r)
	if err == nil {
		if kept := s.kept(&who, r); kept != nil {
			again := *kept
			again.ID, again.Revision = api.NewID(), s.revision
			return again
		}
	}
	j := d.open(s, r)
	defer d.judgments.put(j)
	if j.admit(who, err) {
		j.judge()
	}
	return j.finish()
}

// instant returns the one instant of a decision.
func (d *Decider) instant(r *api.Request) time.Time {
	switch {
	case !r.Now.IsZero():
		return r.Now
	case d.Now != nil:
		return d.Now()
	}
	return time.Now()
}

// identify returns who asks, as far as the request can prove it.
func (d *Decider) identify(r *api.Request) (caller, error) {
	switch {
	case r.Route != nil:
		return caller{anonymous: true}, nil
	case r.Session != "":
		return caller{Claim: identity.Claim{SessionUID: r.Session}}, nil
	case r.Evidence.Kind == api.EvidenceAnonymous:
		return caller{anonymous: true}, nil
	}
	claim, err := d.Identity.Verify(r.Evidence, r.Now)
	return caller{Claim: claim}, err
}

// snapshot returns the one to answer from.
func (d *Decider) snapshot(atLeast api.Revision) (*snapshot, error) {
	s := d.current.Load()
	switch {
	case s == nil:
		return nil, errNoSnapshot
	case s.revision.Compare(atLeast) < 0:
		return nil, policy.ErrBehind
	}
	return s, nil
}

// open begins a decision; r says when it is.
func (d *Decider) open(s *snapshot, r *api.Request) *judgment {
	j := d.judgments.get(s, r)
	j.decision.Lease = cmp.Or(d.Lease, defaultLease)
	j.locate()
	return j
}

// Changes implements policy.Decider. It begins with a Change of everything if
// the Changes after from are not remembered, and so it goes on for whoever falls
// too far behind. While there is no snapshot there is no heartbeat either. Its
// error says that Run has ended.
func (d *Decider) Changes(ctx context.Context, from api.Revision) iter.Seq2[api.Change, error] {
	return func(yield func(api.Change, error) bool) {
		beat := time.NewTimer(heartbeat)
		defer beat.Stop()
		for {
			d.mu.Lock()
			s, stopped, news := d.current.Load(), d.stopped, d.nextUpdate()
			change, ok := d.after(s, from)
			d.mu.Unlock()
			if !ok && !stopped {
				select {
				case <-ctx.Done():
					return
				case <-news:
					continue
				case <-beat.C:
				}
				if s == nil {
					beat.Reset(heartbeat)
					continue
				}
				change.Revision = s.revision
			}
			switch {
			case ctx.Err() != nil:
				return
			case !ok && stopped:
				yield(api.Change{}, errStopped)
				return
			case !yield(change, nil):
				return
			}
			if ok {
				from = change.Revision
			}
			beat.Reset(heartbeat)
		}
	}
}

// after returns the first Change after a revision, if there is one; mu is held.
func (d *Decider) after(s *snapshot, from api.Revision) (api.Change, bool) {
	if s == nil {
		return api.Change{}, false
	}
	if from.Compare(d.floor) < 0 {
		return api.Change{Revision: s.revision, All: true}, true
	}
	i, found := slices.BinarySearchFunc(d.history, from, func(c api.Change, r api.Revision) int { return c.Revision.Compare(r) })
	if found {
		i++
	}
	if i == len(d.history) {
		return api.Change{}, false
	}
	return d.history[i], true
}
