package local

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"sync/atomic"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"cardea/api"
	"cardea/store"
)

// A snapshot is the state of the store at one revision, compiled for decisions.
// It never changes: the next one shares with it what did not change.
type snapshot struct {
	revision api.Revision
	// basis is the revision of the latest commit that changed anything but
	// Sessions: what was found out of a Session and a Service holds as long as the
	// Session stays the same and the basis does. Entries are shared only with
	// snapshots of the same history, so a revision says enough.
	basis api.Revision
	rules
	routes
	subjects
}

// rules is the layer that changes when an administrator changes something.
type rules struct {
	policies   tree[*policyEntry]
	services   tree[*serviceEntry]
	namespaces tree[*entry[*api.Namespace]]
	cluster    *clusterEntry // nil if there is none
}

// subjects is the layer that changes when people come and go.
type subjects struct {
	users    tree[*entry[*api.User]]
	groups   tree[*entry[*api.Group]]
	devices  tree[*entry[*api.Device]]
	sessions tree[*sessionEntry] // by name
	byUID    tree[*sessionEntry]
}

// A tree is a persistent map from names: a change copies a path.
type tree[T any] struct{ *iradix.Tree[T] }

func (t tree[T]) get(name string) (T, bool) {
	if t.Tree == nil {
		var none T
		return none, false
	}
	return t.Root().Get([]byte(name))
}

func (t *tree[T]) put(name string, v T) {
	if t.Tree == nil {
		t.Tree = iradix.New[T]()
	}
	t.Tree, _, _ = t.Insert([]byte(name), v)
}

func (t *tree[T]) remove(name string) {
	if t.Tree != nil {
		t.Tree, _, _ = t.Delete([]byte(name))
	}
}

// all yields names and values, in the order of the names.
func (t tree[T]) all() iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		if t.Tree == nil {
			return
		}
		for i := t.Root().Iterator(); ; {
			k, v, ok := i.Next()
			if !ok || !yield(string(k), v) {
				return
			}
		}
	}
}

// names returns the names in order.
func (t tree[T]) names() (names []string) {
	for name := range t.all() {
		names = append(names, name)
	}
	return names
}

func (t tree[T]) len() int {
	if t.Tree == nil {
		return 0
	}
	return t.Len()
}

// An attachee is what an Object that policies are attached to has in common with
// the others, for a decision.
type attachee struct {
	key      api.Key
	ref      api.Ref
	attached []attachment
	// err is set if the Object cannot be read. Its rules are then unknown, so
	// whatever depends on it is denied.
	err error
}

type entry[T api.Object] struct {
	attachee
	object T
}

// A serviceEntry is a Service or, if foreign, an Object that stands for one: ref
// and key are then its own.
type serviceEntry struct {
	entry[*api.Service]
	id        string // tells it from all others: the name of a Service, the key of another Object
	namespace string // the Namespace that it is in
	foreign   bool
	removed   time.Time // when it was deleted, if it was
	cut       bool      // its connections end with it

	limits      api.Limits
	config      *api.ServiceConfig // of the requests that no rule matches; nil if there is none
	configRules []configRule
	base        atomic.Pointer[plan] // see snapshot.base
	anonymous   atomic.Pointer[plan] // the latest of those who have no Session
}

// isAnonymous reports whether the Service has a port for those who have no Session.
func (s *serviceEntry) isAnonymous() bool {
	return s.object.Spec.IsPublic && s.object.Spec.IsAnonymous
}

// isOpen reports whether it lets in everybody whom no rule refuses.
func (s *serviceEntry) isOpen() bool {
	return s.isAnonymous() && !s.object.Spec.Authorization.EnableAnonymous
}

type sessionEntry struct {
	entry[*api.Session]
	plans plans
}

type clusterEntry struct {
	entry[*api.ClusterConfig]
	region api.Ref
}

type policyEntry struct {
	rules *ruleSet // nil if it is disabled
	err   error
}

// load returns the snapshot of what is in the store now.
func load(ctx context.Context, st store.Store, c *compiler) (s *snapshot, err error) {
	err = st.View(ctx, func(r store.Reader) error {
		if s, err = newSnapshot(r, c); err == nil {
			err = s.withRoutes(r, c)
		}
		return err
	})
	return s, err
}

// newSnapshot returns the snapshot of a state, but for what connections are routed
// to.
func newSnapshot(r store.Reader, c *compiler) (*snapshot, error) {
	s := &snapshot{revision: r.Revision(), basis: r.Revision()}
	for _, kind := range []string{api.KindClusterConfig, api.KindPolicy, api.KindNamespace, api.KindGroup,
		api.KindUser, api.KindService, api.KindDevice, api.KindSession} {
		if err := s.read(r, c, api.GroupCore, kind); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// withRoutes adds what newSnapshot leaves out.
func (s *snapshot) withRoutes(r store.Reader, c *compiler) error {
	return s.read(r, c, api.GroupAmbassador, api.KindTCPMapping)
}

// read adds all Objects of a kind.
func (s *snapshot) read(r store.Reader, c *compiler, group, kind string) error {
	for rec, err := range r.List(group, kind) {
		if err != nil {
			return err
		}
		s.apply(store.Change{Record: rec}, c, time.Time{})
	}
	return nil
}

// next returns the snapshot after a commit.
func (s *snapshot) next(commit store.Commit, c *compiler) *snapshot {
	n := *s
	n.revision = commit.Revision
	for _, change := range commit.Changes {
		n.apply(change, c, commit.At)
	}
	n.forget(commit.At)
	return &n
}

// apply changes a snapshot that nobody else sees yet.
func (s *snapshot) apply(change store.Change, c *compiler, at time.Time) {
	if isRoute(change.Key) {
		s.applyRoute(change, c, at)
	}
	if change.Key.Group != api.GroupCore {
		return
	}
	switch name := change.Key.Name; change.Key.Kind {
	case api.KindClusterConfig:
		switch {
		case name != api.ClusterConfigName:
		case change.Deleted:
			s.cluster = nil
		default:
			s.cluster = newClusterEntry(c, change)
		}
	case api.KindPolicy:
		set(&s.policies, c, change, newPolicyEntry)
	case api.KindService:
		set(&s.services, c, change, newServiceEntry)
	case api.KindNamespace:
		set(&s.namespaces, c, change, newEntry[*api.Namespace])
	case api.KindUser:
		set(&s.users, c, change, newEntry[*api.User])
	case api.KindGroup:
		set(&s.groups, c, change, newEntry[*api.Group])
	case api.KindDevice:
		set(&s.devices, c, change, newEntry[*api.Device])
	case api.KindSession:
		if old, ok := s.sessions.get(name); ok {
			s.byUID.remove(old.ref.UID)
		}
		set(&s.sessions, c, change, newSessionEntry)
		if e, ok := s.sessions.get(name); ok {
			s.byUID.put(e.ref.UID, e)
		}
		return
	default:
		return
	}
	s.basis = s.revision
}

// set puts what a change makes under its name, or removes it.
func set[T any](t *tree[T], c *compiler, change store.Change, make func(*compiler, store.Change) T) {
	if change.Deleted {
		t.remove(change.Key.Name)
		return
	}
	t.put(change.Key.Name, make(c, change))
}

// decode returns the Object of a change. One that cannot be read is empty but
// for its name, beside the error.
func decode[T api.Object](c *compiler, change store.Change) (T, error) {
	kind, _ := api.KindIn(change.Key.Group, change.Key.Kind)
	o := kind.New().(T)
	err := json.Unmarshal(change.JSON, o)
	if err != nil {
		err = fmt.Errorf("%s %s cannot be read: %w", change.Key.Kind, change.Key.Name, err)
		c.log.Error("policy: an object in the store cannot be read; what depends on it is denied", "object", change.Key.String(), "error", err)
		o = kind.New().(T)
		o.Header().Metadata = api.Metadata{Namespace: change.Key.Namespace, Name: change.Key.Name, UID: change.UID}
	}
	o.Default()
	return o, err
}

func newEntry[T api.Object](c *compiler, change store.Change) *entry[T] {
	o, err := decode[T](c, change)
	return &entry[T]{
		attachee: attachee{key: change.Key, ref: o.Header().Ref(), attached: c.attachments(api.AuthorizationOf(o), change.Key), err: err},
		object:   o,
	}
}

func newServiceEntry(c *compiler, change store.Change) *serviceEntry {
	name := change.Key.Name
	e := &serviceEntry{entry: *newEntry[*api.Service](c, change), id: name, namespace: api.NamespaceOf(name)}
	e.limits = limitsOf(e.object.Spec.Limits)
	e.config, e.configRules = c.configs(e.object)
	return e
}

// defaultPending is how long a connection waits for another to end.
const defaultPending = 5 * time.Second

func limitsOf(l *api.ServiceLimits) api.Limits {
	if l == nil {
		return api.Limits{}
	}
	limits := api.Limits{
		Connections: l.Connections, ConnectionsPerSession: l.ConnectionsPerSession, Pending: l.PendingConnections,
		Idle: l.IdleTimeout.Or(0), HalfClose: l.HalfCloseTimeout.Or(0), Duration: l.MaxDuration.Or(0),
		Bytes: int64(l.MaxBytes), Upload: int64(l.UploadBytesPerSecond), Download: int64(l.DownloadBytesPerSecond),
	}
	if limits.Pending > 0 {
		limits.PendingTimeout = l.PendingTimeout.Or(defaultPending)
	}
	return limits
}

func newSessionEntry(c *compiler, change store.Change) *sessionEntry {
	return &sessionEntry{entry: *newEntry[*api.Session](c, change)}
}

func newClusterEntry(c *compiler, change store.Change) *clusterEntry {
	e := newEntry[*api.ClusterConfig](c, change)
	return &clusterEntry{entry: *e, region: api.Ref{
		APIVersion: api.Version, Kind: api.KindRegion, Name: "default", UID: e.object.Status.RegionUID,
	}}
}

func newPolicyEntry(c *compiler, change store.Change) *policyEntry {
	p, err := decode[*api.Policy](c, change)
	if err != nil || p.Spec.IsDisabled {
		return &policyEntry{err: err}
	}
	return &policyEntry{rules: c.rules(&p.Spec, source{policy: change.Key.Name})}
}
