package server

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"cardea/api"
	"cardea/store"
)

// settings is the ClusterConfig as it stands, for rooms that need a part of it
// and no store.
type settings struct {
	store store.Store

	mu      sync.Mutex
	config  *api.ClusterConfig
	reached api.Revision
	moved   chan struct{} // closed, and made anew, when reached moves
}

func newSettings(st store.Store) *settings {
	return &settings{store: st, config: new(api.ClusterConfig), moved: make(chan struct{})}
}

// run follows the store until ctx is done.
func (s *settings) run(ctx context.Context) error {
	for {
		if err := s.load(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for c, err := range s.store.Watch(ctx, s.revision()) {
			if errors.Is(err, store.ErrCompacted) {
				break
			} else if err != nil {
				return err
			}
			for _, x := range c.Changes {
				if x.Key.Kind == api.KindClusterConfig {
					if err := s.load(ctx); err != nil {
						return err
					}
				}
			}
			s.set(nil, c.Revision)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (s *settings) load(ctx context.Context) error {
	return s.store.View(ctx, func(r store.Reader) error {
		c, err := store.Get[*api.ClusterConfig](r, api.Key{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName})
		if api.HasCode(err, api.CodeNotFound) {
			c, err = new(api.ClusterConfig), nil // before the first start
		}
		if err == nil {
			s.set(c, r.Revision())
		}
		return err
	})
}

// set notes how far the store was followed, and the config if it is not nil.
func (s *settings) set(c *api.ClusterConfig, at api.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c != nil {
		s.config = c
	}
	if at.Compare(s.reached) > 0 {
		s.reached = at
		close(s.moved)
		s.moved = make(chan struct{})
	}
}

func (s *settings) revision() api.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reached
}

// await returns when the settings are those of that revision or a later one.
func (s *settings) await(ctx context.Context, rev api.Revision) error {
	for {
		s.mu.Lock()
		reached, moved := s.reached, s.moved
		s.mu.Unlock()
		if reached.Compare(rev) >= 0 {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *settings) current() *api.ClusterConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config
}

// hosts is ClusterConfig.spec.dns.hosts.
func (s *settings) hosts() map[string][]string { return s.current().Spec.DNS.Hosts }

// allow is ClusterConfig.spec.upstream.allow.
func (s *settings) allow() []netip.Prefix {
	var list []netip.Prefix
	for _, a := range s.current().Spec.Upstream.Allow {
		if p, err := netip.ParsePrefix(a); err == nil { // validated when it was written
			list = append(list, p)
		}
	}
	return list
}
