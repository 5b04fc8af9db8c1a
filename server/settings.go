package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"cardea/api"
	"cardea/audit/journal"
	"cardea/ingress"
	"cardea/store"
)

// settings is the ClusterConfig as it stands, for rooms that need a part of it
// and no store. It tells the log how it is to be kept, and the public ports which
// ones they are.
type settings struct {
	store   store.Store
	journal *journal.Journal
	public  *ingress.Public

	services map[string]*api.Service // the public ones; run's alone

	mu      sync.Mutex
	config  *api.ClusterConfig // nil before the first
	reached api.Revision
	moved   chan struct{} // closed, and made anew, when reached moves; nil if nobody waits
}

// run follows the store until ctx is done.
func (s *settings) run(ctx context.Context) error {
	for ctx.Err() == nil {
		at, err := s.load(ctx)
		if err == nil {
			err = s.follow(ctx, at)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
	return nil
}

// load reads everything, and returns the revision that it is of.
func (s *settings) load(ctx context.Context) (at api.Revision, err error) {
	config, services := new(api.ClusterConfig), map[string]*api.Service{}
	err = s.store.View(ctx, func(r store.Reader) error {
		at = r.Revision()
		c, err := store.Get[*api.ClusterConfig](r, api.Key{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName})
		switch {
		case err == nil:
			config = c
		case !api.HasCode(err, api.CodeNotFound): // it is missing before the first start
			return err
		}
		for rec, err := range r.List(api.GroupCore, api.KindService) {
			if err != nil {
				return err
			}
			if err := public(services, rec, false); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return at, err
	}
	s.services = services
	s.apply(ctx, config, true, at)
	return at, nil
}

// follow takes over what changes after a revision.
func (s *settings) follow(ctx context.Context, from api.Revision) error {
	for c, err := range s.store.Watch(ctx, from) {
		if err != nil {
			return err
		}
		var config *api.ClusterConfig
		ports := false
		for _, x := range c.Changes {
			switch x.Key.Kind {
			case api.KindClusterConfig:
				config = new(api.ClusterConfig)
				if err := json.Unmarshal(x.JSON, config); err != nil {
					return fmt.Errorf("server: decode %s: %w", x.Key, err)
				}
			case api.KindService:
				_, was := s.services[x.Key.Name]
				if err := public(s.services, x.Record, x.Deleted); err != nil {
					return err
				}
				_, is := s.services[x.Key.Name]
				ports = ports || was || is
			}
		}
		s.apply(ctx, config, ports, c.Revision)
	}
	return nil
}

// public notes a Service that has a public port, or that it has none.
func public(services map[string]*api.Service, rec store.Record, deleted bool) error {
	delete(services, rec.Key.Name)
	if deleted {
		return nil
	}
	svc := new(api.Service)
	if err := json.Unmarshal(rec.JSON, svc); err != nil {
		return fmt.Errorf("server: decode %s: %w", rec.Key, err)
	}
	if svc.Spec.IsPublic {
		services[rec.Key.Name] = svc
	}
	return nil
}

// apply puts into force what was read, and then says how far the store was
// followed. A nil config stays as it is.
func (s *settings) apply(ctx context.Context, config *api.ClusterConfig, ports bool, at api.Revision) {
	if config != nil {
		s.journal.Configure(config.Spec.Audit)
	}
	if ports {
		s.public.Set(ctx, slices.Collect(maps.Values(s.services)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if config != nil {
		s.config = config
	}
	s.reached = at
	if s.moved != nil {
		close(s.moved)
		s.moved = nil
	}
}

// await returns when the settings are those of that revision or a later one.
func (s *settings) await(ctx context.Context, rev api.Revision) error {
	for {
		s.mu.Lock()
		if s.reached.Compare(rev) >= 0 {
			s.mu.Unlock()
			return nil
		}
		if s.moved == nil {
			s.moved = make(chan struct{})
		}
		moved := s.moved
		s.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// spec returns ClusterConfig.spec.
func (s *settings) spec() *api.ClusterConfigSpec {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.config == nil {
		return new(api.ClusterConfigSpec)
	}
	return &s.config.Spec
}

// hosts is ClusterConfig.spec.dns.hosts.
func (s *settings) hosts() map[string][]string { return s.spec().DNS.Hosts }

// forbidInsecure is ClusterConfig.spec.upstream.forbidInsecureSkipVerify.
func (s *settings) forbidInsecure() bool { return s.spec().Upstream.ForbidInsecureSkipVerify }

// collector is ClusterConfig.spec.collector.
func (s *settings) collector() *api.Collector { return s.spec().Collector }

// allow is ClusterConfig.spec.upstream.allow.
func (s *settings) allow() []netip.Prefix {
	var list []netip.Prefix
	for _, a := range s.spec().Upstream.Allow {
		if p, err := netip.ParsePrefix(a); err == nil { // validated when it was written
			list = append(list, p)
		}
	}
	return list
}

// revision returns how far the store was followed.
func (s *settings) revision() api.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reached
}
