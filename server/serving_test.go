package server

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
)

// A judge decides who may serve, and tells of changes. It is all that a serving asks.
type judge struct {
	mu        sync.Mutex
	revision  uint64
	may       map[errand]bool
	mute      bool // nothing can be decided
	bound     bool // decisions read the clock
	tell      chan api.Change
	meanwhile func() // once, while a connection is made
	cut       []string
	conns     []net.Conn
}

const lease = 10 * time.Second

func (j *judge) Sessions(string, string) []string { return nil }
func (j *judge) Name(session string) string       { return session + "-name" }

func (j *judge) key(service string) api.Key {
	return api.Key{Group: api.GroupCore, Kind: api.KindService, Name: service}
}

func (j *judge) decide(_ context.Context, e errand, _ api.Revision) (api.Decision, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.mute {
		return api.Decision{}, errors.New("nobody answers")
	}
	d := api.Decision{Revision: api.Revision{Number: j.revision}, Effect: api.Deny, Words: "no rule matches", Lease: lease, DependsOn: []api.Key{j.key(e.service)}, TimeBound: j.bound}
	if j.may[e] {
		d.Effect = api.Allow
	}
	return d, nil
}

func (j *judge) changes(ctx context.Context, _ api.Revision) iter.Seq2[api.Change, error] {
	return func(yield func(api.Change, error) bool) {
		for {
			var c api.Change
			select {
			case c = <-j.tell:
			case <-time.After(time.Second):
				j.mu.Lock()
				c.Revision.Number = j.revision
				j.mu.Unlock()
			case <-ctx.Done():
				return
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

func (j *judge) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	j.mu.Lock()
	j.conns = append(j.conns, far)
	do := j.meanwhile
	j.meanwhile = nil
	j.mu.Unlock()
	if do != nil {
		do()
	}
	return near, nil
}

func (j *judge) lost(e errand, name, words string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.cut = append(j.cut, e.session+" "+e.service+"/"+e.config+": "+words)
}

// set changes who may serve, and tells of it.
func (j *judge) set(e errand, may bool) {
	j.mu.Lock()
	j.may[e] = may
	j.revision++
	c := api.Change{Revision: api.Revision{Number: j.revision}, Keys: []api.Key{j.key(e.service)}}
	j.mu.Unlock()
	j.tell <- c
	synctest.Wait()
}

// took returns what was cut since the last call.
func (j *judge) took() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := j.cut
	j.cut = nil
	return out
}

// holding runs a serving, in a bubble, that may send one errand.
func holding(t *testing.T, test func(t *testing.T, s *serving, j *judge, e errand)) {
	synctest.Test(t, func(t *testing.T) {
		e := errand{"s-1", "db.default", "default"}
		j := &judge{may: map[errand]bool{e: true}, tell: make(chan api.Change)}
		s := &serving{directory: j, may: j.decide, changes: j.changes, dial: j.dial, lost: j.lost}
		ctx, cancel := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() {
			if err := s.run(ctx); err != nil {
				t.Error(err)
			}
		})
		test(t, s, j, e)
		cancel()
		run.Wait()
		for _, c := range j.conns {
			c.Close()
		}
	})
}

func dialOf(s *serving, e errand) error {
	_, err := s.Dial(context.Background(), e.session, api.ServeTarget(e.service, e.config))
	return err
}

func TestRightToServe(t *testing.T) {
	holding(t, func(t *testing.T, s *serving, j *judge, e errand) {
		other := errand{"s-2", e.service, e.config}
		j.may[other] = true
		for _, e := range []errand{e, e, other} {
			if err := dialOf(s, e); err != nil {
				t.Fatal(err)
			}
		}
		j.set(errand{"s-1", "web.default", "default"}, true) // nothing of it
		time.Sleep(time.Hour)
		if cut := j.took(); len(cut) != 0 {
			t.Errorf("cut were %q", cut)
		}
		j.set(e, false)
		want := []string{"s-1 db.default/default: Session s-1-name may not serve db.default any more: no rule matches"}
		if cut := j.took(); !slices.Equal(cut, want) {
			t.Errorf("cut were %q, want %q", cut, want)
		}
		if err := dialOf(s, e); !api.HasCode(err, api.CodeUnavailable) || !strings.Contains(err.Error(), "may not serve db.default any more: no rule matches") {
			t.Errorf("dialled: %v", err)
		}
		// What is not held is not cut again, and what comes back is held again.
		j.set(e, true)
		j.set(e, false)
		j.set(e, true)
		if err := dialOf(s, e); err != nil || len(j.took()) != 0 {
			t.Errorf("dialled: %v", err)
		}
		s.links(e.session, 0)
		j.set(e, false)
		if cut := j.took(); len(cut) != 0 {
			t.Errorf("a Session that carries nothing loses %q", cut)
		}
	})
}

// The right is lost while the device is being asked for the connection.
func TestRightToServeIsLostMeanwhile(t *testing.T) {
	holding(t, func(t *testing.T, s *serving, j *judge, e errand) {
		j.meanwhile = func() { j.set(e, false) }
		if err := dialOf(s, e); !api.HasCode(err, api.CodeUnavailable) {
			t.Errorf("dialled: %v", err)
		}
		if _, err := j.conns[0].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the connection is there: %v", err)
		}
		// And comes back, or was only forgotten.
		j.set(e, true)
		j.meanwhile = func() { s.links(e.session, 0) }
		if err := dialOf(s, e); err != nil {
			t.Error(err)
		}
		j.took()
		j.set(e, false)
		if cut := j.took(); len(cut) != 1 {
			t.Errorf("cut were %q", cut)
		}
	})
}

// No answer is none: what is held is held for as long as the last one was good for.
func TestRightToServeInDoubt(t *testing.T) {
	holding(t, func(t *testing.T, s *serving, j *judge, e errand) {
		if err := dialOf(s, e); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		for _, long := range []bool{false, true} {
			j.mu.Lock()
			j.mute = true
			j.mu.Unlock()
			j.set(e, true)
			if err := dialOf(s, e); err == nil {
				t.Error("dialled what nobody has allowed")
			}
			time.Sleep(lease - time.Second/2)
			if cut := j.took(); len(cut) != 0 {
				t.Errorf("cut were %q", cut)
			}
			if long {
				time.Sleep(2 * time.Second)
				if cut := j.took(); len(cut) != 1 || !strings.Contains(cut[0], "nobody answers") {
					t.Errorf("cut were %q", cut)
				}
				break
			}
			j.mu.Lock()
			j.mute = false
			j.mu.Unlock()
			time.Sleep(time.Hour)
		}
	})
}

// A right that hangs on the clock is looked at each second.
func TestRightToServeByTheClock(t *testing.T) {
	holding(t, func(t *testing.T, s *serving, j *judge, e errand) {
		j.bound = true
		if err := dialOf(s, e); err != nil {
			t.Fatal(err)
		}
		j.mu.Lock()
		j.may[e] = false // without a word
		j.mu.Unlock()
		time.Sleep(1100 * time.Millisecond)
		if cut := j.took(); len(cut) != 1 {
			t.Errorf("cut were %q", cut)
		}
	})
}
