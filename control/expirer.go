package control

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/store"
)

// An Expirer deletes Sessions and Credentials when they expire. What they allowed
// has ended by then without it: that is decided by their time, not by their being
// there.
type Expirer struct {
	Store store.Store
	// Audit takes a record of each deletion before it is committed, so it must not
	// wait for the Store.
	Audit audit.Log
	Log   *slog.Logger
	Now   func() time.Time
}

// maxExpired is how much is deleted in one transaction.
const maxExpired = 256

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
			for keys := range slices.Chunk(due.passed(e.Now()), maxExpired) {
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
		var recs []*api.AccessLog
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
			if err := discard(tx, o, e.Now()); err != nil {
				return err
			}
			rec, err := systemRecord(e.Now(), verbDelete, "expired", o, nil)
			if err != nil {
				return err
			}
			recs = append(recs, rec)
		}
		if len(recs) == 0 {
			return nil
		}
		return e.Audit.Append(ctx, recs...) // what cannot be recorded does not happen
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

// systemRecord returns the record of what the system did to an Object by itself,
// and why, in words. It has no actor. before or after may be nil.
func systemRecord(now time.Time, verb, words string, before, after api.Object) (*api.AccessLog, error) {
	o := after
	if o == nil {
		o = before
	}
	a := about(verb, o.Header().Key())
	info := &api.APIInfo{Verb: a.Verb, Kind: a.Kind, Name: a.Name}
	var err, err2 error
	info.Before, err = encode(before)
	info.After, err2 = encode(after)
	service := &api.Ref{APIVersion: api.Version, Kind: api.KindService, Name: api.APIService}
	rec := audit.New(now)
	rec.Metadata.TargetRef = service
	rec.Entry.Common = api.AccessLogCommon{
		StartedAt: now, EndedAt: now, IsAuthorized: true, Status: api.StatusAllowed, Mode: api.ModeAPI,
		Reason: &api.LogReason{Type: api.ReasonSystem, Words: words}, Facts: &api.Facts{API: &a}, ServiceRef: service,
	}
	rec.Entry.Info.API = info
	return rec, errors.Join(err, err2)
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
			o, err := store.Decode(ch.Record)
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
