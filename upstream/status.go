package upstream

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"cardea/api"
	"cardea/upstream/balance"
)

// A TargetStats is how it stands with one address of an endpoint of an Object.
type TargetStats struct {
	Object api.Key
	api.EndpointStatus
}

// Targets returns how it stands with the addresses of all endpoints that were dialled
// or are checked, in the order of their Objects; at most as many as Stats tells apart.
func (d *Dialer) Targets() []TargetStats {
	d.mu.RLock()
	var list []TargetStats
	for _, p := range d.places {
		if p.object == (api.Key{}) {
			continue
		}
		for _, s := range p.status() {
			list = append(list, TargetStats{p.object, s})
		}
	}
	d.mu.RUnlock()
	slices.SortFunc(list, func(a, b TargetStats) int {
		return cmp.Or(byKey(a.Object, b.Object), cmp.Compare(a.Config, b.Config), cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Address, b.Address))
	})
	return list[:min(len(list), maxFigures)]
}

// placesOf returns the places of an Object in the order of their names.
func (d *Dialer) placesOf(k api.Key) []*place {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.SortedFunc(slices.Values(d.objects[k]), func(a, b *place) int { return cmp.Compare(a.name, b.name) })
}

// Endpoints returns how it stands with the endpoints of an Object, as far as they are
// known in this process: those that were dialled, or are checked.
func (d *Dialer) Endpoints(k api.Key) (list []api.EndpointStatus) {
	for _, p := range d.placesOf(k) {
		list = append(list, p.status()...)
	}
	return list
}

// status returns how it stands with the targets.
func (p *place) status() (list []api.EndpointStatus) {
	p.follow()
	all, _, _ := p.set.Status()
	for _, s := range all {
		list = append(list, p.statusOf(s))
	}
	return list
}

func (p *place) statusOf(s balance.Status) api.EndpointStatus {
	return api.EndpointStatus{Config: p.name, Endpoint: s.Group, Address: s.At, State: s.State, Since: s.Since.UTC(), Words: s.Words,
		Weight: s.Weight, Backup: s.Backup, Connections: s.Connections}
}

// Healthy returns whether the endpoints of an Object serve, as the condition
// UpstreamHealthy: of each of its configs one at least. It is nil if none of the configs
// says how that is found out.
func (d *Dialer) Healthy(k api.Key) *api.StatusCondition {
	var c *api.StatusCondition
	var words []string
	for _, p := range d.placesOf(k) {
		if s := p.shape.Load(); s == nil || !s.rules.Checked && s.rules.Ejection == nil {
			continue
		}
		p.follow()
		all, serving, since := p.set.Status()
		if c == nil {
			c = &api.StatusCondition{Type: api.ConditionUpstreamHealthy, Status: "True", Reason: "SERVING"}
		}
		if !serving {
			c.Status, c.Reason = "False", "NO_ENDPOINT"
		}
		if since.After(c.Since) {
			c.Since = since.UTC()
		}
		for _, s := range all {
			if s.State.Serves() {
				continue
			}
			if c.Status == "True" {
				c.Reason = "SOME_ENDPOINTS"
			}
			words = append(words, fmt.Sprintf("%s is %s: %s", nameOf(s.Host, s.At), s.State, s.Words))
		}
		words = append(words, p.unserved()...)
	}
	if c == nil {
		return nil
	}
	if more := len(words) - maxWords; more > 0 {
		words = append(words[:maxWords], fmt.Sprintf("and %d more", more))
	}
	c.Message = strings.Join(words, "; ")
	return c
}

// nameOf returns the Host of a target, with where it is if that says more.
func nameOf(host, at string) string {
	if at != host {
		return host + " (" + at + ")"
	}
	return host
}

// unhealthy says for a person why none of the endpoints serves.
func (p *place) unhealthy() string {
	list, _, _ := p.set.Status()
	var words []string
	for _, s := range list[:min(len(list), maxWords)] {
		words = append(words, nameOf(s.Host, s.At)+": "+cmp.Or(s.Words, strings.ToLower(string(s.State))))
	}
	if more := len(list) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	words = append(words, p.unserved()...)
	if len(list) == 0 {
		return strings.Join(words, "; ")
	}
	return fmt.Sprintf("none of %d endpoints serves: %s", len(list), strings.Join(words, "; "))
}

// endpoints says for a person which the endpoints are.
func (p *place) endpoints() string {
	var list []string
	for _, e := range p.shape.Load().ends {
		list = append(list, e.Address())
	}
	return listed(list)
}

// full says for a person that there is no place for who has tried those.
func (p *place) full(tried []*balance.Target) string {
	full, spare := p.set.Full(tried)
	words := "no endpoint has a place (maxConnections)" // they have one now
	switch {
	case len(full) == 1:
		words = full[0] + " has as many connections as it may (maxConnections)"
	case len(full) > 1:
		words = listed(full) + ": all have as many connections as they may (maxConnections)"
	}
	if len(full) > 0 && len(spare) > 0 {
		words += "; kept for when none of these serves: " + listed(spare)
	}
	return words
}

// listed returns the first of a list, and how many more there are.
func listed(list []string) string {
	if more := len(list) - maxWords; more > 0 {
		list = append(list[:maxWords:maxWords], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}
