package upstream

import (
	"cardea/api"
	"cardea/upstream/balance"
)

// A Memory is what a process knows of the addresses of a config's endpoints, for the
// process that takes its place: that one sends no connection to where this one knows
// that none should go.
type Memory struct {
	Service string           `json:"service"`
	Object  api.Key          `json:"object"`
	Config  string           `json:"config"`
	Targets []balance.Memory `json:"targets"`
}

// Memories returns what is known.
func (d *Dialer) Memories() (list []Memory) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for k, p := range d.places {
		if p.object == (api.Key{}) {
			continue
		}
		if targets := p.set.Memories(); len(targets) > 0 {
			list = append(list, Memory{k.service, p.object, k.config, targets})
		}
	}
	return list
}

// Recall takes over what another process knows, before anything is dialled or watched.
func (d *Dialer) Recall(list []Memory) {
	for _, m := range list {
		config := api.ServiceConfig{Name: m.Config}
		d.place(&api.Destination{Service: m.Service, Object: m.Object, Config: &config}).set.Recall(m.Targets)
	}
}
