package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit/journal"
	"cardea/store"
)

// settings is the ClusterConfig as it stands, for rooms that need a part of it
// and no store. It tells the log how it is to be kept.
type settings struct {
	store   store.Store
	journal *journal.Journal
	progress

	mu      sync.Mutex
	config  *api.ClusterConfig // nil before the first
	allowed []netip.Prefix     // spec.upstream.allow of config
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

// load reads the ClusterConfig, and returns the revision that it is of.
func (s *settings) load(ctx context.Context) (at api.Revision, err error) {
	config := new(api.ClusterConfig)
	err = s.store.View(ctx, func(r store.Reader) error {
		at = r.Revision()
		c, err := store.Get[*api.ClusterConfig](r, api.Key{Group: api.GroupCore, Kind: api.KindClusterConfig, Name: api.ClusterConfigName})
		switch {
		case err == nil:
			config = c
		case !api.HasCode(err, api.CodeNotFound): // it is missing before the first start
			return err
		}
		return nil
	})
	if err == nil {
		s.apply(config, at)
	}
	return at, err
}

// follow takes over what changes after a revision.
func (s *settings) follow(ctx context.Context, from api.Revision) error {
	for c, err := range s.store.Watch(ctx, from) {
		if err != nil {
			return err
		}
		var config *api.ClusterConfig
		for _, x := range c.Changes {
			if x.Key.Kind == api.KindClusterConfig {
				config = new(api.ClusterConfig)
				if err := json.Unmarshal(x.JSON, config); err != nil {
					return fmt.Errorf("server: decode %s: %w", x.Key, err)
				}
			}
		}
		s.apply(config, c.Revision)
	}
	return nil
}

// apply puts into force what was read, and then says how far the store was
// followed. A nil config stays as it is.
func (s *settings) apply(config *api.ClusterConfig, at api.Revision) {
	if config != nil {
		s.journal.Configure(config.Spec.Audit)
	}
	if config != nil {
		var allowed []netip.Prefix
		for _, a := range config.Spec.Upstream.Allow {
			if p, err := netip.ParsePrefix(a); err == nil { // validated when it was written
				allowed = append(allowed, p)
			}
		}
		s.mu.Lock()
		s.config, s.allowed = config, allowed
		s.mu.Unlock()
	}
	s.reach(at)
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

// requireVerification tells whether ClusterConfig.spec.routing.upstreamVerification
// is REQUIRE.
func (s *settings) requireVerification() bool {
	return s.spec().Routing.UpstreamVerification == api.VerificationRequire
}

// routing is ClusterConfig.spec.routing.
func (s *settings) routing() *api.ClusterRouting { return &s.spec().Routing }

// fallbackZone is ClusterConfig.spec.dns.fallbackZone.
func (s *settings) fallbackZone() *api.FallbackZone { return s.spec().DNS.FallbackZone }

// keyRotation is ClusterConfig.spec.gateway.wireguardKeyRotationDuration.
func (s *settings) keyRotation() time.Duration {
	if g := s.spec().Gateway; g != nil {
		return g.WireguardKeyRotationDuration.Or(keyRotation)
	}
	return keyRotation
}

// keyRotation is for how long a Gateway keeps its key if nothing is said.
const keyRotation = 12 * time.Hour

// collector is ClusterConfig.spec.collector.
func (s *settings) collector() *api.Collector { return s.spec().Collector }

// allow is ClusterConfig.spec.upstream.allow.
func (s *settings) allow() []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.allowed
}
