package local

import (
	"time"

	"cardea/api"
	"cardea/store"
)

// routes is the layer of the Objects of other systems that connections are routed
// to. Each is an entry that stands for a Service which is public and open to
// everyone: what depends on it hangs on the entry, and goes with it.
type routes struct {
	mappings tree[*serviceEntry] // by routeName
	gone     tree[*serviceEntry] // those that were deleted, and may have connections
}

const (
	// defaultDrain is how long connections outlast what they were routed to, if the
	// ClusterConfig does not say.
	defaultDrain = 10 * time.Minute
	// maxGone is how many deleted Objects are remembered without a look at whether
	// that has a point.
	maxGone = 1000
)

// routeName is the name of an Object in a tree; no name has a zero byte.
func routeName(k api.Key) string { return k.Namespace + "\x00" + k.Name }

// isRoute reports whether requests for Objects like that of k are decided.
func isRoute(k api.Key) bool {
	return k.Group == api.GroupAmbassador && k.Kind == api.KindTCPMapping
}

// find returns the entry of an Object, or of one that was deleted.
func (r *routes) find(k api.Key) (*serviceEntry, bool) {
	if !isRoute(k) {
		return nil, false
	}
	name := routeName(k)
	if e, ok := r.mappings.get(name); ok {
		return e, true
	}
	return r.gone.get(name)
}

// applyRoute is snapshot.apply for what isRoute; at is when it happened.
func (s *snapshot) applyRoute(change store.Change, c *compiler, at time.Time) {
	name := routeName(change.Key)
	old, ok := s.mappings.get(name)
	switch {
	case !change.Deleted:
		s.mappings.put(name, newRouteEntry(c, change))
		s.gone.remove(name)
	case ok:
		s.mappings.remove(name)
		s.gone.put(name, old.asRemoved(at))
	}
}

// drain is how long connections to what was deleted may go on.
func (s *snapshot) drain() time.Duration {
	if s.cluster == nil {
		return defaultDrain
	}
	return s.cluster.object.Spec.Routing.DrainTime.Or(defaultDrain)
}

// forget forgets what was deleted and has no connections any more, if it is much.
func (s *snapshot) forget(now time.Time) {
	if s.gone.len() <= maxGone {
		return
	}
	drain := s.drain()
	for name, e := range s.gone.all() {
		if e.cut || now.Sub(e.removed) > drain {
			s.gone.remove(name)
		}
	}
}

// inherit takes over, into a snapshot that was loaded, what was deleted since the
// one before it.
func (s *snapshot) inherit(before *snapshot, now time.Time) {
	for name, e := range before.gone.all() {
		s.gone.put(name, e)
	}
	for name, e := range before.mappings.all() {
		s.gone.put(name, e.asRemoved(now))
	}
	for name := range s.mappings.all() {
		s.gone.remove(name)
	}
}

// newRouteEntry returns the entry of a TCPMapping. What rules see as the Service is
// called NAME.NAMESPACE and bears the labels of the TCPMapping.
func newRouteEntry(c *compiler, change store.Change) *serviceEntry {
	m, err := decode[*api.TCPMapping](c, change)
	s := &api.Service{Spec: api.ServiceSpec{Mode: api.ModeTCP, IsPublic: true, IsAnonymous: true}}
	e := &serviceEntry{id: change.Key.String(), namespace: change.Key.Namespace, foreign: true, cut: api.OnRemovalCut(m)}
	if e.namespace == "" {
		e.namespace = c.routeNamespace
	}
	s.Default()
	s.Metadata = m.Metadata
	s.Metadata.Name += "." + e.namespace
	if m.Spec.Port != nil {
		s.Spec.Port = *m.Spec.Port
	}
	e.entry = entry[*api.Service]{attachee: attachee{key: change.Key, ref: m.Ref(), err: err}, object: s}
	return e
}

// asRemoved returns the entry of an Object that was deleted.
func (s *serviceEntry) asRemoved(at time.Time) *serviceEntry {
	return &serviceEntry{entry: s.entry, id: s.id, namespace: s.namespace, foreign: true, cut: s.cut, removed: at}
}

// locateRoute looks up the foreign Object that is asked for.
func (j *judgment) locateRoute() {
	k := *j.request.Route
	j.dependsOn = append(j.dependsOn, k)
	if e, ok := j.find(k); ok {
		j.use(e)
	}
}

// admitRoute checks that the foreign Object is there, or that its connections may
// outlast it. Nobody is asked who he is.
func (j *judgment) admitRoute() bool {
	j.decision.Subject.IsAnonymous = true
	e := j.service
	switch {
	case e == nil:
		return j.deny(api.ReasonNoRoute, "there is no "+j.request.Route.String())
	case e.removed.IsZero():
		j.place = &e.anonymous
		return true
	case e.cut:
		return j.deny(api.ReasonRouteRemoved, e.id+" was deleted, and its annotation "+api.AnnotationPrefix+api.AnnotationOnRemoval+" says cut")
	}
	end := e.removed.Add(j.drain())
	if !j.now.Before(end) {
		return j.deny(api.ReasonRouteRemoved, e.id+" was deleted, and its connections were drained until "+end.UTC().Format(time.RFC3339))
	}
	j.decision.Until = end
	return true
}
