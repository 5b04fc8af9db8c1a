package proxy

import (
	"sync"
	"sync/atomic"

	"cardea/relay"
)

// Counted names what Figures are of: a Service by its full name, a foreign Object by
// NAMESPACE/NAME or what it wants to be called. Other is all that came when there
// were very many names.
type Counted struct {
	Kind string
	Name string
}

// Other is the name of Figures that are of no Object in particular.
func Other() Counted { return Counted{Name: "other"} }

// Figures are those of the connections to an Object.
type Figures struct {
	Live     int
	Ends     map[relay.Reason]int64 // that ended, by how
	Received int64                  // bytes from clients, of those that ended
	Sent     int64                  // bytes to clients, of those that ended
}

// maxCounted bounds the names of figures: they are kept until the process ends, so
// that counters only grow.
const maxCounted = 10_000

// figures holds those of all Objects.
type figures struct {
	mu sync.Mutex
	of map[Counted]*figure
}

type figure struct {
	live, received, sent atomic.Int64
	ends                 tally[relay.Reason]
}

// get returns the figure of a name.
func (f *figures) get(k Counted) *figure {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.of[k]
	if x == nil && len(f.of) >= maxCounted {
		k = Other()
		x = f.of[k]
	}
	if x == nil {
		if f.of == nil {
			f.of = map[Counted]*figure{}
		}
		x = new(figure)
		f.of[k] = x
	}
	return x
}

// all returns the figures as they stand.
func (f *figures) all() map[Counted]Figures {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[Counted]Figures, len(f.of))
	for k, x := range f.of {
		all[k] = Figures{Live: int(x.live.Load()), Ends: x.ends.all(), Received: x.received.Load(), Sent: x.sent.Load()}
	}
	return all
}

// end counts the end of a connection.
func (x *figure) end(r relay.Reason, received, sent int64) {
	x.live.Add(-1)
	x.ends.add(r, 1)
	x.received.Add(received)
	x.sent.Add(sent)
}
