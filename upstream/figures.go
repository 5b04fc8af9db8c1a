package upstream

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

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
	Retries  int64            // attempts because another endpoint, or address, had failed
}

type figureKey struct {
	object   api.Key
	endpoint string
}

// A figure is that of one endpoint.
type figure struct {
	dialled, retries atomic.Int64

	mu     sync.Mutex
	failed map[string]int64
}

// figures count the attempts to reach endpoints.
type figures struct {
	mu   sync.Mutex
	rows map[figureKey]*figure
}

// row returns the figure of an endpoint.
func (f *figures) row(object api.Key, endpoint string) *figure {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := figureKey{object, endpoint}
	row := f.rows[k]
	if row == nil && len(f.rows) >= maxFigures {
		k = figureKey{}
		row = f.rows[k]
	}
	if row == nil {
		row = &figure{failed: map[string]int64{}}
		if f.rows == nil {
			f.rows = map[figureKey]*figure{}
		}
		f.rows[k] = row
	}
	return row
}

// count counts an attempt, which failed with that Error, nil if it did not.
func (f *figure) count(retry bool, failure *Error) {
	if retry {
		f.retries.Add(1)
	}
	if failure == nil {
		f.dialled.Add(1)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed[failure.Reason]++
}

// count counts an attempt at a Host of the place.
func (p *place) count(d *Dialer, object api.Key, host string, retry bool, failure *Error) {
	if object == (api.Key{}) {
		return // nobody's
	}
	if row, ok := p.figures.Load(host); ok && object == p.object {
		row.(*figure).count(retry, failure)
		return
	}
	row := d.figures.row(object, host)
	if object == p.object {
		p.figures.Store(host, row)
	}
	row.count(retry, failure)
}

// Stats returns the figures of all endpoints that were dialled, in the order of
// their Objects.
func (d *Dialer) Stats() []EndpointStats {
	d.figures.mu.Lock()
	defer d.figures.mu.Unlock()
	list := make([]EndpointStats, 0, len(d.figures.rows))
	for k, row := range d.figures.rows {
		row.mu.Lock()
		list = append(list, EndpointStats{k.object, k.endpoint, row.dialled.Load(), maps.Clone(row.failed), row.retries.Load()})
		row.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b EndpointStats) int {
		return cmp.Or(byKey(a.Object, b.Object), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	return list
}

// byKey is the order of Objects.
func byKey(a, b api.Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
