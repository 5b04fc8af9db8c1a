package dns

import (
	"container/list"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxKept is the number of answers that are kept, maxKeptBytes the memory that they
	// take at most, and maxKeptSize the size of one.
	maxKept      = 10_000
	maxKeptBytes = 8 << 20
	maxKeptSize  = 16 << 10
	// entryOverhead is about what an answer takes beside its text and its name.
	entryOverhead = 300
	// mostTTL is for how long an answer is kept if nothing else is said, mostNegative
	// that there is none (RFC 2308, section 5), and failureTTL that nobody could
	// tell (RFC 9520).
	mostTTL      = time.Hour
	mostNegative = 5 * time.Minute
	failureTTL   = time.Second
)

// A cache keeps the answers that were used last. The zero value is empty.
type cache struct {
	kept  map[question]*list.Element // of *kept
	order list.List                  // the one that was used last is the first
	bytes int
}

// A kept answer is a message as it came, or why none came.
type kept struct {
	question question
	text     []byte
	err      error
	since    time.Time
	until    time.Time
}

func (k *kept) size() int { return entryOverhead + len(k.text) + len(k.question.name) }

// message returns the answer with what is left of its times to live.
func (k *kept) message(now time.Time) (*dns.Msg, error) {
	if k.err != nil {
		return nil, k.err
	}
	m := new(dns.Msg)
	if err := m.Unpack(k.text); err != nil {
		return nil, err
	}
	age := uint32(now.Sub(k.since) / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(h.Ttl, age)
		}
	}
	return m, nil
}

// get returns the answer to a question, nil if there is none that holds.
func (c *cache) get(q question, now time.Time) *kept {
	e := c.kept[q]
	if e == nil {
		return nil
	}
	k := e.Value.(*kept)
	if !now.Before(k.until) {
		c.remove(e)
		return nil
	}
	c.order.MoveToFront(e)
	return k
}

// put keeps what a flight found, for as long as it says and for most at most. m is its
// message, if there is one.
func (c *cache) put(q question, f *flight, m *dns.Msg, most time.Duration, now time.Time) {
	holds := failureTTL
	if f.err == nil {
		holds = min(lifetime(m), most)
	}
	if holds <= 0 || len(f.text) > maxKeptSize {
		return
	}
	if e := c.kept[q]; e != nil {
		c.remove(e)
	}
	if c.kept == nil {
		c.kept = map[question]*list.Element{}
	}
	k := &kept{q, f.text, f.err, now, now.Add(holds)}
	c.kept[q] = c.order.PushFront(k)
	c.bytes += k.size()
	for len(c.kept) > maxKept || c.bytes > maxKeptBytes {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(e *list.Element) {
	k := c.order.Remove(e).(*kept)
	delete(c.kept, k.question)
	c.bytes -= k.size()
}

func (c *cache) clear() { *c = cache{} }

// lifetime returns for how long a message holds: as long as its shortest record. That
// there is nothing holds as its SOA record says, and is not kept without one.
func lifetime(m *dns.Msg) time.Duration {
	least, hasSOA := 24*mostTTL, false
	for _, rr := range m.Answer {
		least = min(least, seconds(rr.Header().Ttl))
	}
	for _, rr := range m.Ns {
		least = min(least, seconds(rr.Header().Ttl))
		if soa, ok := rr.(*dns.SOA); ok {
			least, hasSOA = min(least, seconds(soa.Minttl), mostNegative), true
		}
	}
	if !hasSOA && (m.Rcode == dns.RcodeNameError || len(m.Answer) == 0) {
		return 0
	}
	return least
}

// seconds returns a time to live. What is no number of 31 bits is 0 (RFC 2181, section
// 8).
func seconds(n uint32) time.Duration {
	if n > 1<<31-1 {
		return 0
	}
	return time.Duration(n) * time.Second
}
