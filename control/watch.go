package control

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"cardea/api"
	"cardea/rpc"
	"cardea/store"
)

const (
	// lookInterval is how often the right to watch is decided again while nothing
	// happens.
	lookInterval = time.Second
	// syncInterval is how often a watcher hears that nothing happened.
	syncInterval = 15 * time.Second
)

// A watcher tells one caller of the Objects of a kind that he may see, as they
// change and as his rights do.
type watcher struct {
	*call
	who   api.Ref
	kind  api.Kind
	which selection
	// caughtUp is the revision up to which changes are of before the watch began.
	caughtUp api.Revision
	at       api.Revision // up to which everything was told
	// shown has the key of each Object that is in view, and the revision of what was
	// told of it, zero if that was before the watch.
	shown map[api.Key]api.Revision
	right api.Decision // to watch the kind as a whole
	// isTimed is set if something was decided by the clock.
	isTimed bool
}

// watch answers GET /api/{group}/{version}/{kind}?watch=true.
func (c *call) watch(who api.Ref, kind api.Kind, which selection, q map[string]string) error {
	if q["limit"] != "" || q["after"] != "" {
		return api.Errorf(api.CodeInvalid, "the query parameters limit and after are not for watch=true")
	}
	var from api.Revision
	if text := q["revision"]; text != "" {
		if err := from.UnmarshalText([]byte(text)); err != nil {
			return api.Errorf(api.CodeInvalid, "the query parameter revision must be EPOCH.NUMBER, as a list has it")
		}
	}
	w := &watcher{call: c, who: who, kind: kind, which: which, at: from, shown: map[api.Key]api.Revision{}}
	if err := w.begin(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(c.r.Context())
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	commits, ended := make(chan store.Commit), make(chan error, 1)
	from = w.at
	following.Go(func() {
		for commit, err := range c.Store.Watch(ctx, from) {
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
	// Whether history reaches back that far is known by the first commit.
	var first []store.Commit
	if w.at != w.caughtUp {
		select {
		case commit := <-commits:
			first = append(first, commit)
		case err := <-ended:
			if errors.Is(err, store.ErrCompacted) {
				return listAgain("history does not reach back to that revision")
			}
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	rpc.Lines(c.w, w.events(ctx, first, commits, ended), c.Log)
	return nil
}

func listAgain(why string) error {
	e := api.Errorf(api.CodeConflict, "%s", why)
	e.Hint = "list again, and watch from the revision of the list"
	return e
}

// begin decides whether the caller may watch at all, and finds out what he sees.
// Commits that pass meanwhile are followed like those before the watch.
func (w *watcher) begin() error {
	done, err := w.readers.take(w.r.Context(), w.who.UID)
	if err != nil {
		return err
	}
	defer done()
	now, err := w.settled()
	if err != nil {
		return err
	}
	knows := w.at != (api.Revision{}) // the caller has a list
	if !knows {
		w.at = now
	}
	if _, err := w.decideRight(); err != nil {
		return err
	}
	err = w.Store.View(w.r.Context(), func(r store.Reader) error {
		w.caughtUp = r.Revision()
		if knows {
			if err := w.checkRights(r); err != nil {
				return err
			}
		}
		for rec, err := range r.List(w.kind.APIGroup(), w.kind.Name) {
			if err != nil {
				return err
			}
			if o, err := w.view(rec); err != nil {
				return err
			} else if o != nil {
				w.shown[rec.Key] = api.Revision{}
			}
		}
		return nil
	})
	if err == nil && len(w.shown) == 0 {
		_, err = w.may(verbWatch, keyIn(w.kind, "", ""))
	}
	return err
}

// checkRights reports that the rights of the caller have changed since the revision
// of his list: what was in view then is not known.
func (w *watcher) checkRights(r store.Reader) error {
	for _, k := range w.right.DependsOn {
		rec, err := r.Get(k)
		if api.HasCode(err, api.CodeNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if rec.Revision.Compare(w.at) > 0 {
			return listAgain("what you may see has changed since that revision")
		}
	}
	return nil
}

// decideRight decides again on the kind as a whole. It reports whether what the
// caller may see can have changed, other than by what a commit names.
func (w *watcher) decideRight() (changed bool, err error) {
	before := w.right.Allowed()
	if w.right, err = w.sees(verbWatch, keyIn(w.kind, "", "")); err != nil {
		return false, err
	}
	if isNobody(w.right.Reason) {
		return false, stranger()
	}
	w.isTimed = w.isTimed || w.right.TimeBound
	return w.isTimed || before != w.right.Allowed(), nil
}

// mayView reports whether the caller may see the Object of that key.
func (w *watcher) mayView(k api.Key) (bool, error) {
	d, err := w.sees(verbWatch, k)
	w.isTimed = w.isTimed || d.TimeBound
	return d.Allowed(), err
}

// view returns the Object of a Record, nil if it is not in view: the caller may
// not see it, or did not ask for it.
func (w *watcher) view(rec store.Record) (api.Object, error) {
	if may, err := w.mayView(rec.Key); err != nil || !may {
		return nil, err
	}
	o, err := store.Decode(rec)
	if err != nil || !w.which.has(o) {
		return nil, err
	}
	return o, nil
}

// events yields what there is to tell until the caller has gone, may watch no
// longer, or history is lost. It ends without an error: who wants more watches
// again from the revision that was told last.
func (w *watcher) events(ctx context.Context, first []store.Commit, commits <-chan store.Commit, ended <-chan error) iter.Seq2[api.WatchEvent, error] {
	return func(yield func(api.WatchEvent, error) bool) {
		tell := func(events []api.WatchEvent, err error) bool {
			for _, e := range events {
				if !yield(e, nil) {
					return false
				}
			}
			if err != nil {
				w.Log.Debug("a watch ended", "error", err)
			}
			return err == nil
		}
		synced := func() []api.WatchEvent { return []api.WatchEvent{{Type: api.WatchSynced, Revision: w.at}} }
		if len(first) > 0 {
			if !tell(w.follow(ctx, first[0])) {
				return
			}
		}
		if !tell(synced(), nil) {
			return
		}
		tick := time.NewTicker(lookInterval)
		defer tick.Stop()
		for silent := time.Duration(0); ; {
			select {
			case <-ctx.Done():
				return
			case err := <-ended:
				tell(nil, err)
				return
			case commit := <-commits:
				if !tell(w.follow(ctx, commit)) || !tell(synced(), nil) {
					return
				}
				silent = 0
			case <-tick.C:
				if !tell(w.look(ctx, false)) {
					return
				}
				if silent += lookInterval; silent >= syncInterval {
					if silent = 0; !tell(synced(), nil) {
						return
					}
				}
			}
		}
	}
}

// follow returns what a commit changes of what is in view.
func (w *watcher) follow(ctx context.Context, commit store.Commit) (events []api.WatchEvent, err error) {
	// It is decided on nothing older than the commit.
	if err := w.Await(ctx, commit.Revision); err != nil {
		return nil, err
	}
	isOfRight := slices.ContainsFunc(commit.Changes, func(c store.Change) bool { return slices.Contains(w.right.DependsOn, c.Key) })
	for _, c := range commit.Changes {
		if c.Key.Group != w.kind.APIGroup() || c.Key.Kind != w.kind.Name {
			continue
		}
		e, err := w.change(c, commit.Revision)
		if err != nil {
			return nil, err
		}
		if e != nil {
			events = append(events, *e)
		}
	}
	w.at = commit.Revision
	more, err := w.look(ctx, isOfRight)
	return append(events, more...), err
}

// change returns what a change of one Object is to the caller, nil if nothing.
func (w *watcher) change(c store.Change, at api.Revision) (*api.WatchEvent, error) {
	known, isShown := w.shown[c.Key]
	if isShown && known.Compare(at) >= 0 {
		return nil, nil // told already
	}
	o, err := w.view(c.Record)
	switch {
	case err != nil:
		return nil, err
	case o != nil && c.Deleted:
		delete(w.shown, c.Key)
		return event(api.WatchDeleted, o, at)
	case o != nil:
		w.shown[c.Key] = at
		return event(api.WatchPut, w.present(o), at)
	case isShown:
		delete(w.shown, c.Key)
		return outOfView(c.Record, at)
	case at.Compare(w.caughtUp) <= 0:
		// It may have been in view before the watch, and is not any more.
		if may, err := w.mayView(c.Key); err != nil || !may {
			return nil, err
		}
		return outOfView(c.Record, at)
	}
	return nil, nil
}

// look decides again whether the caller may watch; if it can make a difference,
// on each Object too, and returns what comes into view or goes out of it.
func (w *watcher) look(ctx context.Context, isOfRight bool) (events []api.WatchEvent, err error) {
	changed, err := w.decideRight()
	if err != nil {
		return nil, err
	}
	if changed || isOfRight {
		if events, err = w.compare(ctx); err != nil {
			return nil, err
		}
	}
	if !w.right.Allowed() && len(w.shown) == 0 {
		_, err = w.may(verbWatch, keyIn(w.kind, "", "")) // records that the right is lost
	}
	return events, err
}

// compare returns how what the caller may see differs from what he was shown.
func (w *watcher) compare(ctx context.Context) (events []api.WatchEvent, err error) {
	done, err := w.readers.take(ctx, w.who.UID)
	if err != nil {
		return nil, err
	}
	defer done()
	err = w.Store.View(ctx, func(r store.Reader) error {
		for rec, err := range r.List(w.kind.APIGroup(), w.kind.Name) {
			if err != nil {
				return err
			}
			_, isShown := w.shown[rec.Key]
			o, err := w.view(rec)
			if err != nil {
				return err
			}
			var e *api.WatchEvent
			switch {
			case o != nil && !isShown:
				w.shown[rec.Key] = rec.Revision
				e, err = event(api.WatchPut, w.present(o), w.at)
			case o == nil && isShown:
				delete(w.shown, rec.Key)
				e, err = outOfView(rec, w.at)
			}
			if err != nil {
				return err
			}
			if e != nil {
				events = append(events, *e)
			}
		}
		return nil
	})
	return events, err
}

func event(t api.WatchType, o api.Object, at api.Revision) (*api.WatchEvent, error) {
	b, err := encode(o)
	return &api.WatchEvent{Type: t, Object: b, Revision: at}, err
}

// outOfView says that an Object is not in view any more, without telling what it
// has become.
func outOfView(rec store.Record, at api.Revision) (*api.WatchEvent, error) {
	head := blank(rec.Key).Header()
	head.Metadata.UID = rec.UID
	b, err := json.Marshal(head)
	return &api.WatchEvent{Type: api.WatchDeleted, Object: b, Revision: at}, err
}
