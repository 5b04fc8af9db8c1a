package ingress

import (
	"crypto/tls"
	"fmt"
	"maps"
	"slices"

	"cardea/api"
)

// Summary says what the table in force comes to: its listeners, each with how many
// routes it has and why it is not open, if so, and how many Objects were to be part of it and are not.
func (r *Router) Summary() (listeners []string, notInForce int) {
	t := r.table.Load()
	if t == nil {
		return nil, 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, bind := range slices.SortedFunc(maps.Keys(t.listeners), compareBinds) {
		routes := "routes"
		n := len(t.listeners[bind].rows)
		if n == 1 {
			routes = "route"
		}
		words := fmt.Sprintf("%v (%d %s)", bind, n, routes)
		if d := r.doors[bind]; d == nil || d.listener == nil {
			words += ", not open"
			if d != nil {
				words += ": " + d.condition.Message
			}
		}
		listeners = append(listeners, words)
	}
	for _, s := range t.status {
		if c := s.Condition(api.ConditionAccepted); c != nil && c.Status == "False" {
			notInForce++
		}
	}
	return listeners, notInForce
}

// PublicCertificate returns the certificate of a public Service that is reached, at
// the cluster's own port, by a name of its public.hosts. It is nil for every other
// name.
func (r *Router) PublicCertificate(sni string) (*tls.Certificate, error) {
	t := r.table.Load()
	if t == nil {
		return nil, nil
	}
	service, pattern, ok := t.public.find(api.FoldName(sni))
	if !ok {
		return nil, nil
	}
	for _, row := range t.of[api.Key{Group: api.GroupCore, Kind: api.KindService, Name: service}] {
		if row.Match.SNI != pattern {
			continue
		}
		e := row.ending.Load()
		switch {
		case e == nil || e.flaw != "":
			return nil, fmt.Errorf("the certificate of %s cannot be had", service)
		case e.own != nil:
			return e.own, nil
		default:
			return e.cluster(e.terms.ClusterName, e.terms.ClusterHosts...)
		}
	}
	return nil, nil
}
