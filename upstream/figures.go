package upstream

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"cardea/api"
)

// maxFigures is the number of endpoints that are counted apart.
const maxFigures = 16384

// EndpointStats are the figures of one endpoint of an Object.
type EndpointStats struct {
	// Object and Endpoint (HOST:PORT) say which; both are empty in the figures of all
	// that are too many to be counted apart.
	Object   api.Key
	Endpoint string
	Dialled  int64            // connections that were made
	Failed   map[string]int64 // attempts that failed, by reason
	Retries  int64            // attempts because another endpoint had failed
}

type figureKey struct {
	object   api.Key
	endpoint string
}

// figures count the attempts to reach endpoints.
type figures struct {
	mu   sync.Mutex
	rows map[figureKey]*EndpointStats
}

// count counts an attempt, which failed with that Error, nil if it did not.
func (f *figures) count(object api.Key, endpoint string, retry bool, failure *Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := figureKey{object, endpoint}
	row := f.rows[k]
	if row == nil && len(f.rows) >= maxFigures {
		k = figureKey{}
		row = f.rows[k]
	}
	if row == nil {
		row = &EndpointStats{Object: k.object, Endpoint: k.endpoint, Failed: map[string]int64{}}
		if f.rows == nil {
			f.rows = map[figureKey]*EndpointStats{}
		}
		f.rows[k] = row
	}
	if retry {
		row.Retries++
	}
	if failure == nil {
		row.Dialled++
	} else {
		row.Failed[failure.Reason]++
	}
}

// Stats returns the figures of all endpoints that were dialled, in the order of
// their Objects.
func (d *Dialer) Stats() []EndpointStats {
	d.figures.mu.Lock()
	defer d.figures.mu.Unlock()
	list := make([]EndpointStats, 0, len(d.figures.rows))
	for _, row := range d.figures.rows {
		r := *row
		r.Failed = maps.Clone(row.Failed)
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b EndpointStats) int {
		return cmp.Or(cmp.Compare(a.Object.Kind, b.Object.Kind), cmp.Compare(a.Object.Namespace, b.Object.Namespace),
			cmp.Compare(a.Object.Name, b.Object.Name), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return list
}
