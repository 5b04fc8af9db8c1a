package server

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"cardea/api"
	"cardea/relay"
)

// A serving leads connections to the Sessions that serve upstreams (upstream.user). It is
// the Dialer's upstream.Serving, and holds to the right to serve as the Gate does to that
// of callers: it is decided before each connection, and for as long as a Session may have
// some, again whenever something has changed of what the decision was made from. Where
// that is lost the connections are cut.
//
// That goes on while a process that another one has replaced still has connections.
type serving struct {
	directory
	may     func(ctx context.Context, e errand, atLeast api.Revision) (api.Decision, error)
	changes func(ctx context.Context, from api.Revision) iter.Seq2[api.Change, error]
	dial    func(ctx context.Context, session, target string) (net.Conn, error)
	// lost cuts what a Session carries that may not serve any more, for words.
	lost func(e errand, name, words string)

	mu     sync.Mutex
	seen   api.Revision // of the last Change
	rights map[errand]*right
	hang   map[api.Key]map[*right]struct{} // by what they were decided from
	wary   map[*right]struct{}             // those that are looked at each second
}

// A directory has of an upstream.Serving what asks nobody.
type directory interface {
	Sessions(service, user string) []string
	Name(session string) string
}

// An errand is what a Session may be sent: connections to a config of a Service.
type errand struct{ session, service, config string }

// A right is a decision that is held: that a Session may serve.
type right struct {
	errand
	name     string // of the Session
	decision api.Decision
	answered time.Time // until when it is known to hold, if there is doubt
	doubt    bool      // something has changed since, and it could not be decided again
}

func newServing(n *network) *serving {
	return &serving{
		directory: n, changes: n.decider.Changes, dial: n.tunnels.DialBack, lost: n.shun,
		may: func(ctx context.Context, e errand, atLeast api.Revision) (api.Decision, error) {
			return n.control.MayServe(ctx, e.session, e.service, e.config, atLeast)
		},
	}
}

// shun cuts what goes through a Session to what it may not serve any more.
func (n *network) shun(e errand, name, words string) {
	o := api.Key{Group: api.GroupCore, Kind: api.KindService, Name: e.service}
	cut := n.gate.Shun(o, e.config, api.ServedAt(name), relay.Revoked, words)
	n.cfg.Log.Warn(words, "config", e.config, "connections", cut)
}

// Sessions returns the Sessions of a User that serve a Service and can be reached.
func (n *network) Sessions(service, user string) (uids []string) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for uid, o := range n.sessions {
		if o.Status.UserRef.Name == user && slices.Contains(o.Status.Connection.Serves, service) && n.tunnels.Backs(uid) > 0 {
			uids = append(uids, uid)
		}
	}
	return uids
}

// Name returns what a Session is called.
func (n *network) Name(session string) string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if o := n.sessions[session]; o != nil {
		return o.Metadata.Name
	}
	return session
}

// Dial implements upstream.Serving.
func (s *serving) Dial(ctx context.Context, session, target string) (net.Conn, error) {
	e := errand{session: session}
	e.service, e.config, _ = strings.Cut(target, "/")
	r, err := s.hold(ctx, e)
	if err != nil {
		return nil, err
	}
	conn, err := s.dial(ctx, session, target)
	if err != nil {
		return nil, err
	}
	if !s.holds(r) { // it was lost meanwhile, perhaps
		if _, err := s.hold(ctx, e); err != nil {
			relay.Reset(conn, relay.Revoked)
			return nil, err
		}
	}
	return conn, nil
}

// hold decides whether a Session may serve, and holds to that from then on.
func (s *serving) hold(ctx context.Context, e errand) (*right, error) {
	for {
		s.mu.Lock()
		seen := s.seen
		s.mu.Unlock()
		d, err := s.may(ctx, e, seen)
		if err != nil {
			return nil, fmt.Errorf("it could not be decided whether it may serve %s: %w", e.service, err)
		}
		if !d.Allowed() {
			return nil, api.Errorf(api.CodeUnavailable, "it may not serve %s any more: %s", e.service, d.Words)
		}
		if r := s.keep(e, d); r != nil {
			return r, nil
		}
	}
}

// keep holds a decision that was just made; nil if a change was told since.
func (s *serving) keep(e errand, d api.Decision) *right {
	name := s.Name(e.session)
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.Revision.Compare(s.seen) < 0 {
		return nil
	}
	if s.rights == nil {
		s.rights, s.hang, s.wary = map[errand]*right{}, map[api.Key]map[*right]struct{}{}, map[*right]struct{}{}
	}
	r := s.rights[e]
	if r == nil {
		r = &right{errand: e, name: name}
		s.rights[e] = r
	}
	s.enter(r, d)
	return r
}

// enter makes a decision the one that a right is. mu must be held.
func (s *serving) enter(r *right, d api.Decision) {
	s.leave(r)
	r.decision, r.doubt = d, false
	for _, k := range d.DependsOn {
		if s.hang[k] == nil {
			s.hang[k] = map[*right]struct{}{}
		}
		s.hang[k][r] = struct{}{}
	}
	if d.TimeBound || !d.Until.IsZero() {
		s.wary[r] = struct{}{}
	}
}

// leave takes a right out of the indices. mu must be held.
func (s *serving) leave(r *right) {
	for _, k := range r.decision.DependsOn {
		if delete(s.hang[k], r); len(s.hang[k]) == 0 {
			delete(s.hang, k)
		}
	}
	delete(s.wary, r)
}

// drop forgets a right. mu must be held.
func (s *serving) drop(r *right) {
	s.leave(r)
	delete(s.rights, r.errand)
}

// holds tells whether a right is still held.
func (s *serving) holds(r *right) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rights[r.errand] == r
}

// links is told how many reverse links a Session has: without one it carries nothing.
func (s *serving) links(session string, n int) {
	if n > 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for e, r := range s.rights {
		if e.session == session {
			s.drop(r)
		}
	}
}

// run decides again about what has changed, until ctx is done.
func (s *serving) run(ctx context.Context) error {
	for ctx.Err() == nil {
		for c, err := range s.changes(ctx, s.revision()) {
			if err != nil {
				break
			}
			for _, r := range s.touched(c) {
				s.again(ctx, r, c.Revision)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

func (s *serving) revision() api.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// touched returns the rights that are to be decided again after a Change. One without
// Keys comes each second: then it is those about which there is doubt, or that end by the
// clock.
func (s *serving) touched(c api.Change) []*right {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.All || c.Revision.Compare(s.seen) > 0 {
		s.seen = c.Revision
	}
	if c.All {
		return slices.Collect(maps.Values(s.rights))
	}
	all := map[*right]struct{}{}
	for _, k := range c.Keys {
		maps.Copy(all, s.hang[k])
	}
	if len(c.Keys) == 0 {
		now := time.Now()
		for r := range s.wary {
			if d := &r.decision; r.doubt || d.TimeBound || !now.Before(d.Until) {
				all[r] = struct{}{}
			}
		}
	}
	return slices.Collect(maps.Keys(all))
}

// again decides about a right once more, and cuts what the Session carries if it is lost:
// by a DENY, or when nothing can be decided for as long as the last answer holds.
func (s *serving) again(ctx context.Context, r *right, atLeast api.Revision) {
	asked := time.Now()
	d, err := s.may(ctx, r.errand, atLeast)
	if ctx.Err() != nil {
		return
	}
	lost := err == nil && !d.Allowed()
	s.mu.Lock()
	switch {
	case s.rights[r.errand] != r, err == nil && d.Revision.Compare(r.decision.Revision) < 0:
		s.mu.Unlock()
		return // it was dropped, or decided on later data, meanwhile
	case err != nil:
		if !r.doubt { // until now it held
			r.doubt, r.answered, s.wary[r] = true, asked, struct{}{}
		}
		lost = asked.Sub(r.answered) > r.decision.Lease
		d.Words = err.Error()
	case !lost:
		s.enter(r, d)
	}
	if lost {
		s.drop(r)
	}
	s.mu.Unlock()
	if lost {
		s.lost(r.errand, r.name, fmt.Sprintf("Session %s may not serve %s any more: %s", r.name, r.service, d.Words))
	}
}
