package control

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"cardea/api"
	"cardea/store"
)

// An Expirer deletes Sessions and Credentials when they expire. What they allowed
// has ended by then without it: that is decided by their time, not by their being
// there.
type Expirer struct {
	Store store.Store
	Log   *slog.Logger
	Now   func() time.Time
}

// maxWait is how long the Expirer waits before it looks at the clock again, which
// may have been set.
const maxWait = time.Second

// Run deletes what expires until ctx is done, and returns nil then; an error
// means that the store cannot be followed.
func (e *Expirer) Run(ctx context.Context) error {
	for {
		err := e.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrCompacted) {
			return fmt.Errorf("expire Sessions and Credentials: %w", err)
		}
	}
}

// follow lists what will expire and goes on from there, until the store says that
// it must be listed again, or ctx is done.
func (e *Expirer) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()

	due := deadlines{at: map[api.Key]time.Time{}}
	var from api.Revision
	err := e.Store.View(ctx, func(r store.Reader) error {
		from = r.Revision()
		for _, kind := range []string{api.KindSession, api.KindCredential} {
			for o, err := range store.All[api.Object](r, kind) {
				if err != nil {
					return err
				}
				due.set(o.Header().Key(), expiry(o))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}

	commits := make(chan store.Commit)
	ended := make(chan error, 1)
	watching.Go(func() {
		for commit, err := range e.Store.Watch(ctx, from) {
			if err != nil {
				ended <- err
				return
			}
			select {
			case commits <- commit:
			case <-ctx.Done():
				return
			}
		}
	})
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return err
		case commit := <-commits:
			if err := due.see(commit); err != nil {
				return err
			}
		case <-timer.C:
			if keys := due.passed(e.Now()); len(keys) > 0 {
				e.expire(ctx, keys, &due)
			}
		}
		if at, ok := due.next(); ok {
			timer.Reset(min(maxWait, at.Sub(e.Now())))
		} else {
			timer.Stop()
		}
	}
}

// expire deletes those of keys that have expired. If it fails they are due again
// after a while.
func (e *Expirer) expire(ctx context.Context, keys []api.Key, due *deadlines) {
	_, err := e.Store.Update(ctx, actorSystem, func(tx store.Tx) error {
		for _, k := range keys {
			o, err := stored(tx, k)
			if err != nil {
				return err
			}
			if o == nil {
				continue
			}
			if at := expiry(o); at.IsZero() || e.Now().Before(at) {
				continue // it was prolonged; the watch says so too
			}
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		e.Log.Debug("expired", "objects", keys)
		return
	}
	if ctx.Err() == nil {
		e.Log.Error("what has expired cannot be deleted; it will be tried again", "error", err)
	}
	for _, k := range keys {
		due.set(k, e.Now().Add(maxWait))
	}
}

// expiry returns when o expires, and zero if it does not. The Credential of the
// system stays: it tells that root has logged in.
func expiry(o api.Object) time.Time {
	switch o := o.(type) {
	case *api.Session:
		return o.Spec.ExpiresAt
	case *api.Credential:
		if !o.Metadata.IsSystem {
			return o.Spec.ExpiresAt
		}
	}
	return time.Time{}
}

// deadlines knows which Objects expire when.
type deadlines struct {
	at map[api.Key]time.Time
	// queue has every entry of at, and old ones that at no longer says.
	queue deadlineQueue
}

type deadline struct {
	key api.Key
	at  time.Time
}

// set says when an Object expires; never, if at is zero.
func (d *deadlines) set(k api.Key, at time.Time) {
	switch {
	case at.IsZero():
		delete(d.at, k)
	case !d.at[k].Equal(at):
		d.at[k] = at
		heap.Push(&d.queue, deadline{k, at})
	}
}

// see takes over what a commit says.
func (d *deadlines) see(c store.Commit) error {
	for _, ch := range c.Changes {
		if k := ch.Key; k.Group != api.GroupCore || k.Kind != api.KindSession && k.Kind != api.KindCredential {
			continue
		}
		var at time.Time
		if !ch.Deleted {
			o, err := decode(ch.Record)
			if err != nil {
				return err
			}
			at = expiry(o)
		}
		d.set(ch.Key, at)
	}
	return nil
}

// next returns when the next Object expires, and false if none will.
func (d *deadlines) next() (time.Time, bool) {
	for len(d.queue) > 0 {
		first := d.queue[0]
		if at, ok := d.at[first.key]; ok && at.Equal(first.at) {
			return at, true
		}
		heap.Pop(&d.queue)
	}
	return time.Time{}, false
}

// passed takes out and returns what has expired at now.
func (d *deadlines) passed(now time.Time) (keys []api.Key) {
	for {
		at, ok := d.next()
		if !ok || now.Before(at) {
			return keys
		}
		k := heap.Pop(&d.queue).(deadline).key
		delete(d.at, k)
		keys = append(keys, k)
	}
}

// deadlineQueue implements heap.Interface: the earliest first.
type deadlineQueue []deadline

func (q deadlineQueue) Len() int { return len(q) }
func (q deadlineQueue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at)
}
func (q deadlineQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *deadlineQueue) Push(x any)   { *q = append(*q, x.(deadline)) }
func (q *deadlineQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}
