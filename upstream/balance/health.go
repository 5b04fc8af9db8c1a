package balance

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"cardea/api"
)

const (
	defaultFailures = 5
	defaultOut      = 10 * time.Second
	mostTimes       = 10
)

// Connected says that the connection to the target could be made.
func (t *Target) Connected() {
	t.set.mu.Lock()
	defer t.set.mu.Unlock()
	t.proven, t.refused = true, 0
}

// Drop ends a connection that says nothing of the target.
func (t *Target) Drop() {
	s := t.set
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(t)
}

// Failed ends a connection that could not be made; words say why.
func (t *Target) Failed(words string) {
	s := t.set
	s.mu.Lock()
	defer s.mu.Unlock()
	t.proven = false
	t.refused++
	s.failed(t, t.refused+t.broken, words)
	s.end(t)
}

// Release implements api.Hold.
func (t *Target) Release(sent int64, broken bool) {
	s := t.set
	s.mu.Lock()
	defer s.mu.Unlock()
	if broken && sent == 0 {
		t.broken++
		s.failed(t, t.refused+t.broken, "it breaks connections off before it has sent a byte")
	} else {
		t.refused, t.broken, t.times = 0, 0, 0
	}
	s.end(t)
}

// end takes a connection off its target. mu must be held.
func (s *Set) end(t *Target) {
	if t.conns == 0 {
		return
	}
	t.conns--
	t.group.conns--
	if len(s.waiting) > 0 {
		s.serve(s.now())
	}
}

// failed ejects a target if it is the time for that. mu must be held.
func (s *Set) failed(t *Target, failures int, words string) {
	e := s.rules.Ejection
	if e == nil || !t.out.IsZero() || !t.gone.IsZero() || failures < cmp.Or(e.Failures, defaultFailures) {
		return
	}
	out := 0
	for _, o := range s.targets {
		if !o.out.IsZero() {
			out++
		}
	}
	if out >= s.mayBeOut() {
		return
	}
	now := s.now()
	length := e.Time.Or(defaultOut)
	if now.Sub(t.back) > mostTimes*length {
		t.times = 0
	}
	t.times = min(t.times+1, mostTimes)
	length *= time.Duration(t.times)
	s.setting(t, now, func() {
		t.out = now.Add(length)
		t.why = fmt.Sprintf("%d failures in a row, out for %v: %s", failures, length, words)
	})
	s.rebuild(now)
	s.serve(now)
}

// Judge takes the answer of a check to account: ok, or why not. rise and fall are how
// many in a row it takes. It returns the state before and after.
func (s *Set) Judge(t *Target, ok bool, words string, rise, fall int) (from, to api.HealthState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	from = t.state()
	if !t.gone.IsZero() || !s.rules.Checked {
		return from, from
	}
	next := api.HealthHealthy
	need := rise
	if !ok {
		next, need = api.HealthUnhealthy, fall
	}
	if t.verdict == next {
		if t.row = 0; !ok {
			t.words = words
		}
		return from, from
	}
	if t.row++; t.row < need && !(t.verdict == "" && ok) {
		return from, from
	}
	s.setting(t, now, func() {
		if t.verdict == api.HealthUnhealthy {
			t.began = now
		}
		t.verdict, t.row, t.words = next, 0, words
	})
	s.rebuild(now)
	s.serve(now)
	return from, t.state()
}

// Forget forgets what was judged: nobody does any more.
func (s *Set) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for _, t := range slices.Concat(s.targets, s.gone) {
		t.verdict, t.row, t.words, t.since = "", 0, "", now
	}
	s.rebuild(now)
	s.serve(now)
}

// A waiter is a connection that waits for a place.
type waiter struct {
	q    *Query
	got  *Target
	what Outcome
	done chan struct{} // closed when got and what are set
}

// Wait is Take for who waits, until ctx is done, while all are full: in the order in
// which they came. Names are taken as they are. If ctx is done, or too many wait, it is
// Full.
func (s *Set) Wait(ctx context.Context, q *Query) (*Target, Outcome) {
	s.mu.Lock()
	t, what := s.take(s.now(), q)
	if what != Full || len(s.waiting) >= maxWaiting {
		s.mu.Unlock()
		return t, what
	}
	w := &waiter{q: q, what: Full, done: make(chan struct{})}
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting = slices.DeleteFunc(s.waiting, func(o *waiter) bool { return o == w })
	}
	return w.got, w.what // perhaps in the last moment
}

// serve gives places to those who wait for one. mu must be held.
func (s *Set) serve(now time.Time) {
	for i := 0; i < len(s.waiting); {
		w := s.waiting[i]
		t, what := s.take(now, w.q)
		switch {
		case what != Full:
			w.got, w.what = t, what
			s.waiting = slices.Delete(s.waiting, i, i+1)
			close(w.done)
		case len(w.q.Tried) == 0 && w.q.Host == "":
			return // nobody behind finds more, or next to nobody
		default:
			i++
		}
	}
}

// A Memory is how it stands with an address, for a Set of another process to go on
// from.
type Memory struct {
	Addr    netip.AddrPort  `json:"addr"`
	Verdict api.HealthState `json:"verdict,omitempty"`
	Words   string          `json:"words,omitempty"`
	Since   time.Time       `json:"since,omitzero"`
	Out     time.Time       `json:"out,omitzero"` // until when it is ejected
	Why     string          `json:"why,omitempty"`
	Times   int             `json:"times,omitempty"` // ejections in a row
	Proven  bool            `json:"proven,omitempty"`
}

// Memories returns how it stands with the targets of which something is known.
func (s *Set) Memories() (list []Memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.targets {
		if t.Addr.IsValid() && (t.verdict != "" || !t.out.IsZero() || t.proven) {
			list = append(list, Memory{t.Addr, t.verdict, t.words, t.since, t.out, t.why, t.times, t.proven})
		}
	}
	return list
}

// Recall makes the targets that are yet to come begin with how it stood with them. It
// is for a Set that has none yet.
func (s *Set) Recall(list []Memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.updated {
		return
	}
	now := s.now()
	for _, m := range list {
		s.gone = append(s.gone, &Target{
			Addr: m.Addr, set: s, group: new(group), hash: hashOf(Spec{Addr: m.Addr}), gone: now,
			verdict: m.Verdict, words: m.Words, since: m.Since, out: m.Out, why: m.Why, times: m.Times, proven: m.Proven,
		})
	}
}
