package ingress

import (
	"iter"

	"cardea/api"
)

// Destinations yields where the table leads by itself: the members that are foreign
// Objects. Those of Services the decision says.
func (t *Table) Destinations() iter.Seq[api.Destination] {
	return func(yield func(api.Destination) bool) {
		for _, row := range t.rows {
			for _, m := range row.Members {
				if m.Config == nil {
					continue
				}
				if !yield(api.Destination{Service: m.Object.String(), Object: m.Object, Config: m.Config}) {
					return
				}
			}
		}
	}
}
