package proxy

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"cardea/api"
)

// nobody has connections yet.
func nobody(string) map[caller]int { return map[caller]int{} }

// Whatever comes, waits, gives up and leaves: there are never more than may be, those
// who wait come in order and as soon as there is room, and in the end nobody counts.
func TestCrowds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := crowds{}
		c := crowd{service: "svc", kind: api.KindService}
		limits := api.Limits{Connections: 3, Pending: 4}
		live := 0
		var waiting []*waiter // the first is next
		called := func() (w *waiter) {
			for len(waiting) > 0 {
				select {
				case <-waiting[0].turn:
					w, waiting = waiting[0], waiting[1:]
					return w
				default:
					return nil
				}
			}
			return nil
		}
		var kept []*waiter // whose turn has come
		look := func() {
			for w := called(); w != nil; w = called() {
				kept = append(kept, w)
			}
			for _, w := range waiting {
				select {
				case <-w.turn:
					t.Fatal("one was overtaken")
				default:
				}
			}
			if limit := limits.Connections; len(waiting) > 0 && (limit == 0 || live+len(kept) < limit) {
				t.Fatalf("%d live, %d called, %d wait, and there may be %d", live, len(kept), len(waiting), limit)
			}
		}
		for range rapid.IntRange(0, 100).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"come", "come", "come", "enter", "leave", "give up", "decline", "limit"}).Draw(t, "step") {
			case "come":
				room := limits.Connections == 0 || live+len(kept) < limits.Connections
				err := m.admit(c, limits, nil, nobody)
				switch waits, ok := errors.AsType[*waitError](err); {
				case ok && !room && len(waiting) < limits.Pending:
					waiting = append(waiting, waits.waiter)
				case err == nil && room:
					live++
				case err == nil || ok || room || len(waiting) < limits.Pending:
					t.Fatalf("came with %d live, %d called, %d waiting: %v", live, len(kept), len(waiting), err)
				}
			case "enter":
				if len(kept) > 0 {
					if err := m.admit(c, limits, kept[0], nobody); err != nil {
						t.Fatalf("whose turn has come: %v", err)
					}
					m.giveUp(kept[0]) // has no effect any more
					kept, live = kept[1:], live+1
				}
			case "leave":
				if live > 0 {
					m.leave(c)
					live--
				}
			case "give up":
				if len(waiting) > 0 {
					i := rapid.IntRange(0, len(waiting)-1).Draw(t, "who")
					m.giveUp(waiting[i])
					waiting = append(waiting[:i:i], waiting[i+1:]...)
				}
			case "decline":
				if len(kept) > 0 {
					m.giveUp(kept[0])
					kept = kept[1:]
				}
			case "limit":
				limits.Connections = rapid.IntRange(0, 5).Draw(t, "connections")
				if n := m[c.service]; n != nil {
					n.bound(limits.Connections)
				}
			}
			look()
		}
		for len(waiting)+len(kept)+live > 0 {
			for ; live > 0; live-- {
				m.leave(c)
			}
			look()
			for _, w := range kept {
				m.giveUp(w)
			}
			kept = nil
			look()
		}
		if len(m) != 0 {
			t.Fatalf("%d crowds are left", len(m))
		}
	})
}

// One connection is not several.
func TestFullWords(t *testing.T) {
	m := crowds{}
	c := crowd{service: "svc", kind: api.KindService}
	limits := api.Limits{Connections: 2, ConnectionsPerSession: 1}
	if err := m.admit(c, limits, nil, nobody); err != nil {
		t.Fatal(err)
	}
	want := "the source address has 1 live connection to the Service, and spec.limits.connectionsPerSession is 1"
	if err := m.admit(c, limits, nil, nobody); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	c.caller.name = "another"
	m.admit(c, limits, nil, nobody)
	c.caller.name = "one more"
	want = "the Service has 2 live connections, and spec.limits.connections is 2"
	if err := m.admit(c, limits, nil, nobody); err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
