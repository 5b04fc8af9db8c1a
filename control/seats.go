package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"cardea/api"
	"cardea/store"
)

// seats are the connect streams of this process. Run follows the store once for all of
// them, and wakes those whose place a commit may change.
type seats struct {
	mu      sync.Mutex
	running bool
	ran     bool             // it has run
	begun   chan struct{}    // closed when it first runs; nil until somebody needs it
	seen    api.Revision     // up to which the store was followed
	of      map[string]*seat // by uid of the Session
	// waiting has who wants to hear of an Object. Of Services that the Sessions of a User
	// may serve, it is under servingKey.
	waiting map[api.Key]map[*seat]struct{}
	// served has the Services that Sessions serve, by User; and servers their Users.
	served  map[string]map[api.Key]struct{}
	servers map[api.Key][]string
}

// A seat is one connect stream.
type seat struct {
	session string        // uid
	wake    chan struct{} // holds a token if something has changed
	refused chan api.NetworkRefusal
	over    chan struct{} // closed when another takes the place, or it is given up
	why     *api.Error    // set before over is closed
	keys    map[api.Key]struct{}
}

// maxRefusals is how many refusals wait for a slow caller; more are dropped.
const maxRefusals = 16

// kindServing is the kind of what servingKey returns; no Object is of it.
const kindServing = "Serving"

// servingKey stands for all Services that Sessions of a User may serve.
func servingKey(user string) api.Key { return api.Key{Kind: kindServing, Name: user} }

// Run follows the store for those who are connected, until ctx is done, and returns nil
// then; an error means that the store cannot be followed. While it does not run, nobody
// can connect.
func (s *Server) Run(ctx context.Context) error {
	for {
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrCompacted) {
			return fmt.Errorf("follow the store for those who are connected: %w", err)
		}
	}
}

// Ready waits until Run lets people connect.
func (s *Server) Ready(ctx context.Context) error {
	select {
	case <-s.seats.ready():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// follow wakes everybody, and then whomever a commit is about.
func (s *Server) follow(ctx context.Context) error {
	servers := map[api.Key][]string{}
	var from api.Revision
	err := s.Store.View(ctx, func(r store.Reader) error {
		from = r.Revision()
		for rec, err := range r.List(api.GroupCore, api.KindService) {
			if err != nil {
				return err
			}
			if users, err := serversOf(rec); err != nil {
				return err
			} else if len(users) > 0 {
				servers[rec.Key] = users
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.seats.begin(from, servers)
	defer s.seats.rest()
	for commit, err := range s.Store.Watch(ctx, from) {
		if err == nil {
			err = s.seats.see(commit)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// serversOf returns the Users whose Sessions serve a Service.
func serversOf(rec store.Record) (users []string, err error) {
	if !bytes.Contains(rec.JSON, []byte(`"user":"`)) {
		return nil, nil // as almost all; to decode them would take long
	}
	o, err := store.Decode(rec)
	if err != nil {
		return nil, err
	}
	s, ok := o.(*api.Service)
	if !ok {
		return nil, nil
	}
	for _, c := range configs(s) {
		for user := range s.EffectiveConfig(c.Name).Servers() {
			users = append(users, user)
		}
	}
	return users, nil
}

// ready returns what is closed when it runs for the first time.
func (x *seats) ready() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.first()
}

// first is begun; mu is held.
func (x *seats) first() chan struct{} {
	if x.begun == nil {
		x.begun = make(chan struct{})
	}
	return x.begun
}

// begin notes a state of the store, and wakes everybody.
func (x *seats) begin(at api.Revision, servers map[api.Key][]string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.ran {
		x.ran = true
		close(x.first())
	}
	x.running, x.seen = true, at
	x.servers, x.served = map[api.Key][]string{}, map[string]map[api.Key]struct{}{}
	for k, users := range servers {
		x.serve(k, users)
	}
	for _, p := range x.of {
		p.poke()
	}
}

// rest notes that the store is followed no longer.
func (x *seats) rest() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.running = false
}

// see wakes whoever waits for something that a commit changes.
func (x *seats) see(commit store.Commit) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.seen = commit.Revision
	for _, c := range commit.Changes {
		x.rouse(c.Key)
		if c.Key.Group != api.GroupCore || c.Key.Kind != api.KindService {
			continue
		}
		var users []string
		if !c.Deleted {
			var err error
			if users, err = serversOf(c.Record); err != nil {
				return err
			}
		}
		for _, u := range append(x.servers[c.Key], users...) {
			x.rouse(servingKey(u))
		}
		x.serve(c.Key, users)
	}
	return nil
}

// serve notes whose Sessions serve a Service; mu is held.
func (x *seats) serve(k api.Key, users []string) {
	for _, u := range x.servers[k] {
		if delete(x.served[u], k); len(x.served[u]) == 0 {
			delete(x.served, u)
		}
	}
	delete(x.servers, k)
	if len(users) == 0 {
		return
	}
	x.servers[k] = users
	for _, u := range users {
		if x.served[u] == nil {
			x.served[u] = map[api.Key]struct{}{}
		}
		x.served[u][k] = struct{}{}
	}
}

// rouse wakes whoever waits for a key; mu is held.
func (x *seats) rouse(k api.Key) {
	for p := range x.waiting[k] {
		p.poke()
	}
}

func (p *seat) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // it knows
	}
}

// enter makes the place of a Session, and ends the one that it had.
func (x *seats) enter(session string) *seat {
	p := &seat{
		session: session, wake: make(chan struct{}, 1), refused: make(chan api.NetworkRefusal, maxRefusals),
		over: make(chan struct{}), keys: map[api.Key]struct{}{},
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.end(session, takenOver())
	if x.of == nil {
		x.of, x.waiting = map[string]*seat{}, map[api.Key]map[*seat]struct{}{}
	}
	x.of[session] = p
	return p
}

func takenOver() *api.Error {
	e := api.Errorf(api.CodeConflict, "another client of this Session has connected")
	e.Hint = "log in on each device: a Session is connected once"
	return e
}

// end ends the place of a Session, if it has one; mu is held.
func (x *seats) end(session string, why *api.Error) {
	if p := x.of[session]; p != nil {
		delete(x.of, session)
		p.why = why
		close(p.over)
	}
}

// giveUp ends the place of a Session, if it has one.
func (x *seats) giveUp(session string, why *api.Error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.end(session, why)
}

// leave forgets a place, which may have been taken over.
func (x *seats) leave(p *seat) {
	x.listen(p, nil, x.now())
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.of[p.session] == p {
		delete(x.of, p.session)
	}
}

// now returns the revision up to which the store was followed, and the zero Revision if
// it is not.
func (x *seats) now() api.Revision {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.running {
		return api.Revision{}
	}
	return x.seen
}

// listen says what a place was made from, at a revision or later: it is woken if that
// changes, or has changed since.
func (x *seats) listen(p *seat, keys map[api.Key]struct{}, at api.Revision) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for k := range p.keys {
		if _, ok := keys[k]; ok {
			continue
		}
		if delete(x.waiting[k], p); len(x.waiting[k]) == 0 {
			delete(x.waiting, k)
		}
	}
	isNew := false
	for k := range keys {
		if _, ok := p.keys[k]; ok {
			continue
		}
		if x.waiting[k] == nil {
			x.waiting[k] = map[*seat]struct{}{}
		}
		x.waiting[k][p] = struct{}{}
		isNew = true
	}
	p.keys = keys
	if isNew && x.seen != at {
		p.poke()
	}
}

// servable returns the Services that Sessions of a User may serve.
func (x *seats) servable(user string) (keys []api.Key) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for k := range x.served[user] {
		keys = append(keys, k)
	}
	return keys
}

// Tell tells a connected Session of a connection that was not let in. If nobody listens,
// or is slow, it is dropped.
func (s *Server) Tell(sessionUID string, r api.NetworkRefusal) {
	s.seats.mu.Lock()
	p := s.seats.of[sessionUID]
	s.seats.mu.Unlock()
	if p == nil {
		return
	}
	select {
	case p.refused <- r:
	default:
	}
}

// Connected returns the Sessions, by uid, whose clients listen to their connect streams.
func (s *Server) Connected() []string {
	s.seats.mu.Lock()
	defer s.seats.mu.Unlock()
	return slices.Collect(maps.Keys(s.seats.of))
}
