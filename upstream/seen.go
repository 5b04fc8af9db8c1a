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
	rows map[api.Key]api.StatusCondition
}

// set remembers a condition; one that stays as it was keeps its Since. Where there are
// too many Objects, any of them is forgotten until it is seen again.
func (s *conditions) set(k api.Key, kind string, ok bool, reason, words string, now time.Time) {
	next := api.StatusCondition{Type: kind, Status: "True", Reason: reason, Message: words}
	if !ok {
		next.Status = "False"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	last, known := s.rows[k]
	if next.Since = last.Since; !known || last.Status != next.Status {
		next.Since = now.UTC()
	}
	if s.rows == nil {
		s.rows = map[api.Key]api.StatusCondition{}
	}
	for other := range s.rows {
		if known || len(s.rows) < maxSeen {
			break
		}
		delete(s.rows, other)
	}
	s.rows[k] = next
}

// get returns what is remembered of an Object, nil if that is nothing.
func (s *conditions) get(k api.Key) *api.StatusCondition {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.rows[k]; ok {
		return &c
	}
	return nil
}

// Verification returns whether the certificate of the upstream of an Object was
// verified when it was seen last, as the condition UpstreamVerified. It is nil if
// there was no handshake with it in this process.
func (d *Dialer) Verification(object api.Key) *api.StatusCondition { return d.verified.get(object) }

// Reachable returns whether the last dial for an Object came to a connection, as the
// condition UpstreamReachable: since when it has been so and, if it did not, why. It
// is nil before the first dial in this process. Dials that were given up because who
// asked had gone do not count.
func (d *Dialer) Reachable(object api.Key) *api.StatusCondition { return d.reached.get(object) }
