package upstream

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"cardea/api"
)

const (
	// maxQuestions is the number of questions whose answers are kept.
	maxQuestions = 4096
	// leastTTL and mostTTL bound how long an answer is kept, whatever it says.
	leastTTL = time.Second
	mostTTL  = time.Hour
	// mostNegative is how long it is kept, at most, that there is no answer (RFC 2308).
	mostNegative = 30 * time.Second
	// staleTime is how long an answer serves after its end while DNS fails (RFC 8767),
	// staleWait is how long it is then waited for a better one, and staleRecheck how
	// long after a failure nobody is asked again.
	staleTime    = 5 * time.Minute
	staleWait    = 1800 * time.Millisecond
	staleRecheck = 10 * time.Second
	// familyDelay is how long the addresses of one family wait for those of the other
	// (RFC 8305, section 3, has 50 ms for less at stake: what is missed is missed until
	// the answer ends).
	familyDelay = 250 * time.Millisecond
	// maxRecords is the number of records of an answer that are used.
	maxRecords = 64
)

// A resolver looks names up as this machine is set up to: in /etc/hosts, then with
// the name servers of /etc/resolv.conf. Answers are kept for as long as they say, so
// that a name that changes is followed, and for a while longer if DNS fails. For each
// question at most one query is under way. Without a resolv.conf that can be used the
// system's own resolver is asked, which keeps nothing.
//
// The zero value is ready for use.
type resolver struct {
	hosts  file[map[string][]netip.Addr]
	config file[*dns.ClientConfig]

	mu   sync.Mutex
	rows map[question]*row

	// What tests replace.
	now  func() time.Time // time.Now
	port string           // 53
}

// A question asks for the records of a type that a name has.
type question struct {
	name string // in lower case, with its final dot
	kind uint16 // dns.TypeA, dns.TypeAAAA or dns.TypeSRV
}

// An answer is what is known of a question: its records, or that there are none. It
// does not change.
type answer struct {
	addrs    []netip.Addr
	services []service
	expires  time.Time
}

// A row is a question of the cache.
type row struct {
	answer *answer   // nil if there never was one
	failed time.Time // when it could last not be renewed
	flight *flight   // the query that is under way
}

// A flight is a query that others wait for.
type flight struct {
	done   chan struct{} // closed at its end
	answer *answer
	err    error
	ended  bool // because whoever made it has gone, which says nothing of DNS
}

func (r *resolver) time() time.Time {
	if r.now != nil {
		return r.now()
	}
	return time.Now()
}

// addresses returns the addresses of a name, one at least: what DNS says of the
// families that are wanted, IPv6 before IPv4, or all that /etc/hosts says; and until
// when nobody has to ask again. An answer that ends within ahead is asked for again
// now.
func (r *resolver) addresses(ctx context.Context, host string, families []api.IPFamily, ahead time.Duration) ([]netip.Addr, time.Time, error) {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	now := r.time()
	until := now.Add(fileEvery)
	if addrs := r.hosts.get("/etc/hosts", parseHosts, now)[name]; len(addrs) > 0 {
		return addrs, until, nil
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") { // RFC 6761, section 6.3
		return []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, until, nil
	}
	config := r.config.get("/etc/resolv.conf", parseConfig, now)
	if config == nil {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		return addrs, now, err
	}
	addrs, err := search(config, host, func(name string) ([]netip.Addr, error) {
		addrs, expires, err := r.families(ctx, config, name, families, ahead)
		until = earlier(until, expires)
		return addrs, err
	})
	return addrs, until, err
}

// services returns the SRV records of a name, one at least, and until when, as
// addresses does.
func (r *resolver) services(ctx context.Context, host string, ahead time.Duration) ([]service, time.Time, error) {
	now := r.time()
	until := now.Add(fileEvery)
	config := r.config.get("/etc/resolv.conf", parseConfig, now)
	if config == nil {
		_, list, err := net.DefaultResolver.LookupSRV(ctx, "", "", host)
		return servicesOf(list), now, err
	}
	list, err := search(config, host, func(name string) ([]service, error) {
		a, err := r.lookup(ctx, config, question{name, dns.TypeSRV}, ahead)
		if err != nil {
			return nil, err
		}
		until = earlier(until, r.holds(a))
		return a.services, nil
	})
	return list, until, err
}

// holds returns until when an answer holds: one that is over and is used all the same,
// for the least time.
func (r *resolver) holds(a *answer) time.Time {
	if now := r.time(); !now.Before(a.expires) {
		return now.Add(leastTTL)
	}
	return a.expires
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// search calls look for each name that host may stand for (resolv.conf(5), search
// and ndots) until one has something. The error is the first that is more than that
// there is nothing.
func search[T any](config *dns.ClientConfig, host string, look func(name string) ([]T, error)) ([]T, error) {
	missing := &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	if !isHostName(host) {
		return nil, missing
	}
	var failed error
	for _, name := range config.NameList(strings.ToLower(host)) {
		if len(name) > 254 {
			continue
		}
		if isMetadataName(name) { // by way of the search list
			failed = cmp.Or[error](failed, metadataRefusal())
			continue
		}
		list, err := look(name)
		if len(list) > 0 {
			return list, nil
		}
		if err != nil && failed == nil {
			failed = err
		}
	}
	if failed != nil {
		return nil, failed
	}
	return nil, missing
}

// isHostName tells whether a name has no characters that mean something else to DNS
// libraries.
func isHostName(s string) bool {
	return s != "" && len(s) <= 254 && strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "" && !strings.Contains(s, "..") && s[0] != '.'
}

// families returns the addresses of a full name, and until when.
func (r *resolver) families(ctx context.Context, config *dns.ClientConfig, name string, families []api.IPFamily, ahead time.Duration) ([]netip.Addr, time.Time, error) {
	var kinds []uint16
	if wants(families, api.IPv6) {
		kinds = append(kinds, dns.TypeAAAA)
	}
	if wants(families, api.IPv4) {
		kinds = append(kinds, dns.TypeA)
	}
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		family int
		answer *answer
		err    error
	}
	results := make(chan result, len(kinds))
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for i, kind := range kinds {
		q := question{name, kind}
		if a := r.fresh(q, ahead); a != nil {
			results <- result{i, a, nil}
			continue
		}
		all.Go(func() {
			a, err := r.lookup(ctx, config, q, ahead)
			results <- result{i, a, err}
		})
	}
	var found [2][]netip.Addr
	var failed error
	until := r.time().Add(mostTTL)
	var late <-chan time.Time
	for range kinds {
		var got result
		select {
		case got = <-results:
		case <-late:
			cancel() // it says at once what it has, if anything
			got = <-results
		}
		if got.err != nil {
			failed = cmp.Or(failed, got.err)
			until = earlier(until, r.time().Add(leastTTL))
			continue
		}
		until = earlier(until, r.holds(got.answer))
		if found[got.family] = got.answer.addrs; len(found[got.family]) > 0 {
			late = time.After(familyDelay)
		}
	}
	if out := slices.Concat(found[0], found[1]); len(out) > 0 {
		return out, until, nil
	}
	return nil, until, failed
}

// fresh returns the answer to a question if it is known and does not end within ahead.
func (r *resolver) fresh(q question, ahead time.Duration) *answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if row := r.rows[q]; row != nil {
		return row.fresh(r.time().Add(ahead))
	}
	return nil
}

func (w *row) fresh(now time.Time) *answer {
	if w.answer != nil && now.Before(w.answer.expires) {
		return w.answer
	}
	return nil
}

// stale returns an answer that has ended and is better than none. That there are no
// records is one too: without it the rest of a search list would not be reached.
func (w *row) stale(now time.Time) *answer {
	if a := w.answer; a != nil && now.Before(a.expires.Add(staleTime)) {
		return a
	}
	return nil
}

// lookup returns the answer to a question: the one that is kept, or what the query
// finds that is under way, or what a new one finds. One that ends within ahead is not
// enough.
func (r *resolver) lookup(ctx context.Context, config *dns.ClientConfig, q question, ahead time.Duration) (*answer, error) {
	for {
		r.mu.Lock()
		now := r.time()
		w := r.row(q)
		a, old := w.fresh(now.Add(ahead)), w.stale(now)
		if a == nil && old != nil && now.Before(w.failed.Add(staleRecheck)) {
			a = old
		}
		if a != nil {
			r.mu.Unlock()
			return a, nil
		}
		f := w.flight
		if f == nil {
			f = &flight{done: make(chan struct{})}
			w.flight = f
			r.mu.Unlock()
			return r.fly(ctx, config, q, w, f, old)
		}
		r.mu.Unlock()
		select {
		case <-f.done:
			switch {
			case f.err == nil, !f.ended && old == nil:
				return f.answer, f.err
			case !f.ended:
				return old, nil
			}
		case <-ctx.Done():
			return nil, timedOut(ctx, q.name)
		}
	}
}

// row returns the row of a question, a new one in place of any other if there are too
// many. mu must be held.
func (r *resolver) row(q question) *row {
	w := r.rows[q]
	if w != nil {
		return w
	}
	if r.rows == nil {
		r.rows = map[question]*row{}
	}
	for other := range r.rows {
		if len(r.rows) < maxQuestions {
			break
		}
		delete(r.rows, other) // who waits for its flight has that
	}
	w = new(row)
	r.rows[q] = w
	return w
}

// fly makes the query that others wait for. If it fails, old is the answer, unless
// that is nil.
func (r *resolver) fly(ctx context.Context, config *dns.ClientConfig, q question, w *row, f *flight, old *answer) (*answer, error) {
	asking := ctx
	if old != nil {
		wait := staleWait
		if _, ok := ctx.Deadline(); ok {
			wait = min(wait, left(ctx)/2)
		}
		var cancel context.CancelFunc
		asking, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	f.answer, f.err = r.ask(asking, config, q)
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(f.done)
	w.flight = nil
	if f.err == nil {
		w.answer = f.answer
		return f.answer, nil
	}
	f.ended = ctx.Err() != nil
	if old == nil {
		return nil, f.err
	}
	w.failed = r.time()
	return old, nil
}

// timedOut is the error of a lookup for which there was no time.
func timedOut(ctx context.Context, name string) error {
	return &net.DNSError{UnwrapErr: ctx.Err(), Err: "no answer", Name: strings.TrimSuffix(name, "."), IsTimeout: true}
}
