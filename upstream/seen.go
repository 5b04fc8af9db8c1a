package upstream

import (
	"sync"
	"time"

	"cardea/api"
)

// maxSeen is the number of Objects of which one condition is remembered.
const maxSeen = 16384

// conditions are how it stands with one thing of the upstreams of Objects, as last
// seen.
type conditions struct {
	mu   sync.Mutex
	rows map[api.Key]*condition
}

// A condition is that of one Object.
type condition struct {
	mu        sync.Mutex
	value     api.StatusCondition
	forgotten bool // it is no row any more
}

// set makes the condition what it is now; one that stays as it was keeps its Since. It
// fails if it was forgotten.
func (c *condition) set(status, reason, words string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v := &c.value; v.Status != status {
		v.Status, v.Since = status, time.Now().UTC()
	}
	c.value.Reason, c.value.Message = reason, words
	return !c.forgotten
}

// set remembers a condition, and returns its row. Where there are too many Objects, any
// of them is forgotten until it is seen again.
func (s *conditions) set(k api.Key, kind string, ok bool, reason, words string) *condition {
	status := "True"
	if !ok {
		status = "False"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.rows[k]
	if c == nil {
		if s.rows == nil {
			s.rows = map[api.Key]*condition{}
		}
		for k, other := range s.rows {
			if len(s.rows) < maxSeen {
				break
			}
			other.mu.Lock()
			other.forgotten = true
			other.mu.Unlock()
			delete(s.rows, k)
		}
		c = &condition{value: api.StatusCondition{Type: kind}}
		s.rows[k] = c
	}
	c.set(status, reason, words)
	return c
}

// get returns what is remembered of an Object, nil if that is nothing.
func (s *conditions) get(k api.Key) *api.StatusCondition {
	s.mu.Lock()
	c := s.rows[k]
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.value
	return &v
}

// Verification returns whether the certificate of the upstream of an Object was
// verified when it was seen last, as the condition UpstreamVerified. It is nil if
// there was no handshake with it in this process.
func (d *Dialer) Verification(object api.Key) *api.StatusCondition { return d.verified.get(object) }

// Reachable returns whether the last dial for an Object came to a connection, as the
// condition UpstreamReachable: since when it has been so and, if it did not, why. It
// is nil before the first dial in this process. Dials that were given up because who
// asked had gone do not count, nor do those that found no place.
func (d *Dialer) Reachable(object api.Key) *api.StatusCondition { return d.reached.get(object) }

// unreached remembers that a dial came to nothing; but not one that found no place: that
// says of the upstream that it has connections.
func (d *Dialer) unreached(object api.Key, e *Error) {
	if e.Reason == Limit {
		return
	}
	d.reached.set(object, api.ConditionUpstreamReachable, false, e.Reason, e.Words)
}

// reached remembers that a dial came to a connection.
func (p *place) reached(d *Dialer, object api.Key) {
	if c := p.ending.Load(); c != nil && object == p.object && c.set("True", "CONNECTED", "") {
		return
	}
	c := d.reached.set(object, api.ConditionUpstreamReachable, true, "CONNECTED", "")
	if object == p.object {
		p.ending.Store(c)
	}
}
