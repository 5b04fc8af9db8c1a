package dns

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"cardea/api"
)

const (
	// patience is for how long the servers of the fallback are asked for one name.
	patience = 5 * time.Second
	// maxTry and minTry bound how long one of them is waited for before the next.
	maxTry = 2 * time.Second
	minTry = 300 * time.Millisecond
	// demotion is for how long a server that did not answer is asked last.
	demotion = 10 * time.Second
	// tellEvery is how often the log is told that a server does not answer, at most, and
	// maxHealth of how many servers it is known.
	tellEvery = time.Minute
	maxHealth = 1000
	// maxFlights is the number of questions that are asked at once, maxWaiting that
	// of the answers that one Session waits for.
	maxFlights = 1000
	maxWaiting = 100
	// fileEvery is how often it is looked whether resolv.conf has changed, and
	// maxServers the number of its servers that are asked.
	fileEvery  = 5 * time.Second
	maxServers = 8
)

// A question is what the fallback is asked: two askers who want different answers ask
// different questions.
type question struct {
	name             string // in lower case, with its final dot
	kind             uint16
	dnssec           bool // signatures are wanted (DO, RFC 3225)
	checkingDisabled bool // unverified data are welcome (CD, RFC 4035)
}

// A resolver asks name servers and keeps what they say. Whoever asks what somebody else
// has just asked waits for the same answer.
type resolver struct {
	log *slog.Logger

	mu      sync.Mutex
	running context.Context // of the queries; nil while there is none
	flying  sync.WaitGroup
	flights map[question]*flight
	waiting map[string]int // by Session
	cache   cache
	asked   []api.DNSServer // those whose answers are in the cache
	health  map[api.DNSServer]*health
	links   links
	machine machine

	// What tests replace.
	roots *x509.CertPool // the system's
	try   func(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error)
}

// A flight is a query that askers wait for.
type flight struct {
	done chan struct{} // closed at its end
	text []byte        // the message
	err  error
}

// run lets queries be made until ctx is done.
func (r *resolver) run(ctx context.Context) error {
	r.mu.Lock()
	r.running = ctx
	r.mu.Unlock()
	tick := time.NewTicker(idleLink / 2)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case now := <-tick.C:
			r.links.closeBefore(now.Add(-idleLink))
		}
	}
	r.mu.Lock()
	r.running = nil
	r.mu.Unlock()
	r.flying.Wait()
	r.links.closeBefore(time.Now().Add(time.Hour))
	return nil
}

// longest returns for how long answers are kept at most.
func longest(zone *api.FallbackZone) time.Duration {
	if zone == nil {
		return mostTTL
	}
	return zone.CacheDuration.Or(mostTTL)
}

// servers returns who is asked: the servers of a zone or, if it has none, those of this
// machine, but for those that are not to be asked.
func (r *resolver) servers(zone *api.FallbackZone, but []netip.Addr) []api.DNSServer {
	var list []api.DNSServer
	if zone != nil && len(zone.Servers) > 0 {
		for _, s := range zone.Servers {
			if server, err := api.ParseDNSServer(s); err == nil {
				list = append(list, server)
			}
		}
	} else {
		r.mu.Lock()
		list = slices.Clone(r.machine.servers(time.Now()))
		r.mu.Unlock()
	}
	return slices.DeleteFunc(list, func(s api.DNSServer) bool {
		addr, err := netip.ParseAddr(s.Host)
		return err == nil && slices.Contains(but, addr.Unmap())
	})
}

// lookup returns the answer to a question, with what is left of its times to live. The
// message is the caller's.
func (r *resolver) lookup(ctx context.Context, session string, servers []api.DNSServer, most time.Duration, q question) (*dns.Msg, error) {
	now := time.Now()
	r.mu.Lock()
	if !slices.Equal(servers, r.asked) {
		r.cache.clear()
		r.asked = slices.Clone(servers)
	}
	if k := r.cache.get(q, now); k != nil {
		r.mu.Unlock()
		return k.message(now)
	}
	f, err := r.fly(session, servers, most, q)
	if err != nil {
		r.mu.Unlock()
		return nil, err
	}
	if r.waiting == nil {
		r.waiting = map[string]int{}
	}
	r.waiting[session]++
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.waiting[session]--; r.waiting[session] == 0 {
			delete(r.waiting, session)
		}
	}()
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, problem{dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "no answer in time"}
	}
	if f.err != nil {
		return nil, f.err
	}
	m := new(dns.Msg)
	return m, m.Unpack(f.text)
}

// fly returns the flight of a question, which begins if there is none. mu is held.
func (r *resolver) fly(session string, servers []api.DNSServer, most time.Duration, q question) (*flight, error) {
	f := r.flights[q]
	switch {
	case r.waiting[session] >= maxWaiting:
		return nil, problem{dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "too many questions of this Session are being asked"}
	case f != nil:
		return f, nil
	case r.running == nil || r.running.Err() != nil:
		return nil, problem{dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady, "the server is starting or stopping"}
	case len(r.flights) >= maxFlights:
		return nil, problem{dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "too many questions of others are being asked"}
	}
	if r.flights == nil {
		r.flights = map[question]*flight{}
	}
	f = &flight{done: make(chan struct{})}
	r.flights[q] = f
	ctx := r.running
	r.flying.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		m, err := r.ask(ctx, servers, q)
		if err == nil {
			m.Compress = true
			f.text, err = m.Pack()
		}
		f.err = err
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.flights, q)
		if slices.Equal(servers, r.asked) {
			r.cache.put(q, f, m, most, time.Now())
		}
		close(f.done)
	})
	return f, nil
}

// ask asks the servers in turn, those last that did not answer lately, until one has an
// answer, if only that there is no such name.
func (r *resolver) ask(ctx context.Context, servers []api.DNSServer, q question) (*dns.Msg, error) {
	order := r.order(servers)
	var failed error
	var mute []api.DNSServer // to be asked once more
	for round := range 2 {
		for i, server := range order {
			tries := len(order) - i
			if round == 0 {
				tries += len(order)
			}
			m, err := r.askOne(ctx, server, tries, q)
			switch {
			case err != nil:
				failed = cmp.Or[error](failed, problem{dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority, fmt.Sprintf("%s: %v", server, err)})
				mute = append(mute, server)
			case m.Rcode == dns.RcodeSuccess, m.Rcode == dns.RcodeNameError:
				return m, nil
			default:
				failed = problem{dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, fmt.Sprintf("%s answered %s", server, dns.RcodeToString[m.Rcode])}
			}
			if ctx.Err() != nil {
				return nil, failed
			}
		}
		order, mute = mute, nil
	}
	return nil, failed
}

// askOne asks one server, with so many tries left, this one included.
func (r *resolver) askOne(ctx context.Context, server api.DNSServer, tries int, q question) (*dns.Msg, error) {
	until, _ := ctx.Deadline()
	part := min(max(time.Until(until)/time.Duration(tries), minTry), maxTry)
	trying, cancel := context.WithTimeout(ctx, part)
	defer cancel()
	try := r.query
	if r.try != nil {
		try = r.try
	}
	m, err := try(trying, server, q)
	if err != nil && trying.Err() != nil {
		err = fmt.Errorf("no answer within %v", part.Round(time.Millisecond))
	}
	r.note(server, err)
	return m, err
}

// health is what is known of a server that did not answer once.
type health struct {
	failed time.Time // when it last did not answer; zero if it has answered since
	told   time.Time // when the log was last told of it
	isDown bool      // that is the last that the log was told
}

// order returns the servers in the order in which they are asked.
func (r *resolver) order(servers []api.DNSServer) []api.DNSServer {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	demoted := func(s api.DNSServer) int {
		if h := r.health[s]; h != nil && now.Sub(h.failed) < demotion {
			return 1
		}
		return 0
	}
	list := slices.Clone(servers)
	slices.SortStableFunc(list, func(a, b api.DNSServer) int { return demoted(a) - demoted(b) })
	return list
}

// note remembers whether a server answered, and tells when that changes, but not each
// time: who asks for names that nobody answers for could fill the log.
func (r *resolver) note(server api.DNSServer, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, now := r.health[server], time.Now()
	switch {
	case r.running == nil || r.running.Err() != nil: // nobody waited for it
	case err != nil:
		if h == nil {
			if len(r.health) >= maxHealth {
				clear(r.health)
			}
			if r.health == nil {
				r.health = map[api.DNSServer]*health{}
			}
			h = new(health)
			r.health[server] = h
		}
		h.failed = now
		if !h.isDown && now.Sub(h.told) >= tellEvery {
			h.isDown, h.told = true, now
			r.log.Warn("dns: a name server does not answer", "server", server.String(), "error", err)
		}
	case h != nil:
		h.failed = time.Time{}
		if h.isDown {
			h.isDown = false
			r.log.Info("dns: a name server answers again", "server", server.String())
		}
	}
}

// A machine knows the name servers of this machine (resolv.conf(5)).
type machine struct {
	path    string // /etc/resolv.conf if it is ""
	checked time.Time
	stamp   time.Time
	size    int64
	list    []api.DNSServer
}

// servers returns them as they are, or were a moment ago.
func (m *machine) servers(now time.Time) []api.DNSServer {
	if !m.checked.IsZero() && now.Sub(m.checked) < fileEvery {
		return m.list
	}
	m.checked = now
	path := cmp.Or(m.path, "/etc/resolv.conf")
	info, err := os.Stat(path)
	if err != nil {
		m.list, m.stamp = nil, time.Time{}
		return nil
	}
	if info.ModTime().Equal(m.stamp) && info.Size() == m.size {
		return m.list
	}
	m.stamp, m.size, m.list = info.ModTime(), info.Size(), nil
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	for _, host := range config.Servers {
		if len(m.list) == maxServers {
			break
		}
		if addr, err := netip.ParseAddr(host); err == nil {
			m.list = append(m.list, api.DNSServer{Transport: api.DNSDatagram, Host: addr.String(), Port: 53})
		}
	}
	return m.list
}
