package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"cardea/api"
	"cardea/control"
	"cardea/ingress"
	"cardea/store"
)

// routing keeps the routing table what the store says, and tells which upstreams are
// to be asked whether they serve. It follows the store, and makes a new table of all
// that is in force whenever something of it has changed: changes that come while a
// table is being made go into the next one together.
type routing struct {
	store    store.Store
	router   *ingress.Router
	watch    func([]api.Destination) // is told all whose health is to be known
	options  control.RoutingOptions
	progress // of the table in force

	mu      sync.Mutex
	objects objects       // as the store has them
	changed api.Revision  // when they last did
	read    api.Revision  // how far the store was read
	work    chan struct{} // wakes the builder

	table *ingress.Table // in force; the builder's alone
	still sync.Mutex     // held while no table may be put into force
}

// objects are those that the routing table is made of, and Services of whose upstreams it
// is to be known whether they serve.
type objects map[api.Key]api.Object

func newRouting(st store.Store, r *ingress.Router, watch func([]api.Destination), o control.RoutingOptions) *routing {
	return &routing{store: st, router: r, watch: watch, options: o, objects: objects{}, work: make(chan struct{}, 1)}
}

// run follows the store, and makes tables, until ctx is done.
func (r *routing) run(ctx context.Context) error {
	var building sync.WaitGroup
	defer building.Wait()
	building.Go(func() { r.build(ctx) })
	for ctx.Err() == nil {
		at, err := r.load(ctx)
		if err == nil {
			err = r.follow(ctx, at)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
	return nil
}

// load reads everything, and returns the revision that it is of.
func (r *routing) load(ctx context.Context) (at api.Revision, err error) {
	all := objects{}
	err = r.store.View(ctx, func(rd store.Reader) error {
		at = rd.Revision()
		for _, k := range api.Kinds() {
			if !control.IsRouting(api.Key{Group: k.APIGroup(), Kind: k.Name}) {
				continue
			}
			for rec, err := range rd.List(k.APIGroup(), k.Name) {
				if err != nil {
					return err
				}
				if _, err := all.take(rec, false); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return at, err
	}
	r.change(at, func() bool { r.objects = all; return true })
	return at, nil
}

// follow takes over what changes after a revision.
func (r *routing) follow(ctx context.Context, from api.Revision) error {
	for c, err := range r.store.Watch(ctx, from) {
		if err != nil {
			return err
		}
		var failed error
		r.change(c.Revision, func() (changed bool) {
			for _, x := range c.Changes {
				matters, err := r.objects.take(x.Record, x.Deleted)
				if err != nil {
					failed = err
				}
				changed = changed || matters
			}
			return changed
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}

// take notes an Object, or that it is gone, and reports whether that matters: a
// Service without a public port, of whose upstream nobody is to know whether it serves,
// does not.
func (o objects) take(rec store.Record, deleted bool) (matters bool, err error) {
	_, was := o[rec.Key]
	delete(o, rec.Key)
	if deleted || !control.IsRouting(rec.Key) {
		return was, nil
	}
	x, err := store.Decode(rec)
	if err != nil {
		return was, fmt.Errorf("server: %w", err)
	}
	if s, ok := x.(*api.Service); ok && !s.Spec.IsPublic && len(watched(s)) == 0 {
		return was, nil
	}
	o[rec.Key] = x
	return true, nil
}

// change does what a commit says, and wakes the builder if that changes the table.
func (r *routing) change(at api.Revision, do func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	idle := r.revision() == r.read // the table is of all that was read
	r.read = at
	if do() {
		r.changed = at
	} else if idle {
		r.reach(at) // this, too, does not change it
		return
	}
	select {
	case r.work <- struct{}{}:
	default: // it knows
	}
}

// hold lets no other table come into force until release: writes that need one are
// acknowledged after that.
func (r *routing) hold() (release func()) {
	r.still.Lock()
	return r.still.Unlock
}

// build makes a table of what was read whenever that has changed, until ctx is done.
func (r *routing) build(ctx context.Context) {
	var made api.Revision // of the last change that is in the table
	for {
		select {
		case <-r.work:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		var all control.RoutingObjects
		var asked []api.Destination
		at, changed := r.read, r.changed
		if changed != made {
			for _, o := range r.objects {
				s, isService := o.(*api.Service)
				if isService {
					asked = append(asked, watched(s)...)
				}
				if !isService || s.Spec.IsPublic {
					all.Add(o)
				}
			}
		}
		r.mu.Unlock()
		if changed != made {
			opt := r.options
			opt.Now = time.Now()
			r.table, made = control.Compile(all, opt, r.table), changed
			r.still.Lock()
			r.router.Set(ctx, r.table)
			r.still.Unlock()
			for d := range r.table.Destinations() {
				if isWatched(d.Config) {
					asked = append(asked, d)
				}
			}
			r.watch(asked)
		}
		r.reach(at)
	}
}

// watched returns the destinations of a Service of whose endpoints it is to be known
// whether they serve.
func watched(s *api.Service) (list []api.Destination) {
	if s.Spec.IsDisabled {
		return nil
	}
	for name := range s.ConfigNames() {
		if c := s.EffectiveConfig(name); isWatched(c) {
			list = append(list, api.Destination{Service: s.Metadata.Name, Object: s.Key(), Config: c})
		}
	}
	return list
}

// isWatched reports whether it is to be known of the endpoints of a config whether they
// serve: they are asked, or are Sessions, which come and go.
func isWatched(c *api.ServiceConfig) bool {
	return c.IsServed() || c.Upstream.Health != nil && c.Upstream.Health.Check != nil
}

// Below returns what reports whether a file is below one of the directories, when all
// symbolic links are followed.
func Below(dirs []string) func(string) bool {
	if len(dirs) == 0 {
		return nil
	}
	return func(path string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool {
			dir, there := resolve(filepath.Clean(dir))
			path, whole := resolve(path)
			rel, err := filepath.Rel(dir, path)
			return there && whole && err == nil && filepath.IsAbs(path) && rel != ".." && !strings.HasPrefix(rel, "../")
		})
	}
}

// resolve returns a path without symbolic links, of which the end may not be there
// yet. It is not ok if it leads through a link to nowhere.
func resolve(path string) (resolved string, ok bool) {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved, true
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return path, false
	}
	parent := filepath.Dir(path)
	if parent == path {
		return path, true
	}
	resolved, ok = resolve(parent)
	return filepath.Join(resolved, filepath.Base(path)), ok
}
