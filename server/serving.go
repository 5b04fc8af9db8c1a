package server

import (
	"context"
	"fmt"
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
	*network

	mu     sync.Mutex
	seen   api.Revision // of the last Change
	rights map[errand]*right
	hang   map[api.Key]map[*right]struct{} // by what they were decided from
	wary   map[*right]struct{}             // those that are looked at each second
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
	return &serving{network: n, rights: map[errand]*right{}, hang: map[api.Key]map[*right]struct{}{}, wary: map[*right]struct{}{}}
}

// Sessions implements upstream.Serving.
func (s *serving) Sessions(service, user string) (uids []string) {
	n := s.network
	n.mu.RLock()
	defer n.mu.RUnlock()
	for uid, o := range n.sessions {
		if o.Status.UserRef.Name == user && slices.Contains(o.Status.Connection.Serves, service) && n.tunnels.Backs(uid) > 0 {
			uids = append(uids, uid)
		}
	}
	return uids
}

// Name implements upstream.Serving.
func (s *serving) Name(session string) string {
	n := s.network
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
	conn, err := s.tunnels.DialBack(ctx, session, target)
	if err != nil {
		return nil, err
	}
	if !s.holds(r) { // it was lost meanwhile
		relay.Reset(conn, relay.Revoked)
		return nil, api.Errorf(api.CodeUnavailable, "Session %s may not serve %s any more", r.name, r.service)
	}
	return conn, nil
}

// hold decides whether a Session may serve, and holds to that from then on.
func (s *serving) hold(ctx context.Context, e errand) (*right, error) {
	for {
		s.mu.Lock()
		seen := s.seen
		s.mu.Unlock()
		d, err := s.control.MayServe(ctx, e.session, e.service, e.config, seen)
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
		for c, err := range s.decider.Changes(ctx, s.revision()) {
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
	d, err := s.control.MayServe(ctx, r.session, r.service, r.config, atLeast)
	if ctx.Err() != nil {
		return
	}
	lost := err == nil && !d.Allowed()
	s.mu.Lock()
	switch {
	case s.rights[r.errand] != r: // dropped meanwhile
		s.mu.Unlock()
		return
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
		s.cut(r, d.Words)
	}
}

// cut ends the connections that go through a Session which may not serve any more.
func (s *serving) cut(r *right, why string) {
	words := fmt.Sprintf("Session %s may not serve %s any more: %s", r.name, r.service, why)
	o := api.Key{Group: api.GroupCore, Kind: api.KindService, Name: r.service}
	n := s.gate.Shun(o, r.config, api.ServedAt(r.name), relay.Revoked, words)
	s.cfg.Log.Warn(words, "config", r.config, "connections", n)
}
