package upstream

import (
	"sync"
	"time"

	"cardea/api"
)

// maxVerified is the number of Objects of which it is remembered whether their
// upstreams verify.
const maxVerified = 16384

// verifications are what is known of the certificates of the upstreams of Objects.
type verifications struct {
	mu   sync.Mutex
	rows map[api.Key]api.StatusCondition
}

// set remembers what came of the last handshake. Where there are too many Objects,
// any of them is forgotten until its next handshake.
func (v *verifications) set(k api.Key, ok bool, words string, now time.Time) {
	next := api.StatusCondition{Type: api.ConditionUpstreamVerified, Status: "True", Reason: "Verified", Message: words}
	if !ok {
		next.Status, next.Reason = "False", "NotVerified"
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	last, known := v.rows[k]
	if known && last.Status == next.Status && last.Message == next.Message {
		return
	}
	if next.Since = now.UTC(); known && last.Status == next.Status {
		next.Since = last.Since
	}
	if v.rows == nil {
		v.rows = map[api.Key]api.StatusCondition{}
	}
	for other := range v.rows {
		if known || len(v.rows) < maxVerified {
			break
		}
		delete(v.rows, other)
	}
	v.rows[k] = next
}

// Verification returns whether the certificate of the upstream of an Object was
// verified when it was seen last, as the condition UpstreamVerified. It is nil if
// there was no handshake with it in this process.
func (d *Dialer) Verification(object api.Key) *api.StatusCondition {
	d.verified.mu.Lock()
	defer d.verified.mu.Unlock()
	if c, ok := d.verified.rows[object]; ok {
		return &c
	}
	return nil
}
