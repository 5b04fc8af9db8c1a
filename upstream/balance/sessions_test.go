package balance

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"cardea/api"
)

// sessions are the targets of an endpoint that so many Sessions serve.
func sessions(uids ...string) (list []Spec) {
	for _, uid := range uids {
		list = append(list, Spec{Session: uid, Name: uid, Host: "db:1 (user a)", Group: "db:1 (user a)", Weight: 1, Share: 1, Until: forever()})
	}
	return list
}

// With Fewest, as many connections as there may be are never more than one apart while
// none ends, and who has fewest is always next.
func TestFewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "sessions")
		var uids []string
		for i := range n {
			uids = append(uids, fmt.Sprint(i))
		}
		s := newSet(Rules{Fewest: true}, sessions(uids...)...)
		var live []*Target
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if len(live) > 0 && rapid.IntRange(0, 2).Draw(t, "end") == 0 {
				i := rapid.IntRange(0, len(live)-1).Draw(t, "which")
				live[i].Release(1, false)
				live = append(live[:i], live[i+1:]...)
				continue
			}
			least := 1 << 30
			for _, x := range s.Targets() {
				least = min(least, x.conns)
			}
			x, what := take(s)
			if what != Taken || x.conns != least+1 {
				t.Fatalf("took %v, which had %d connections when another had %d", what, x.conns-1, least)
			}
			live = append(live, x)
		}
	})
	// Equals take turns, although none is ever busy.
	s := newSet(Rules{Fewest: true}, sessions("a", "b", "c")...)
	got := map[string]int{}
	for range 9 {
		x, _ := take(s)
		got[x.Session]++
		x.Release(1, false)
	}
	if got["a"] != 3 || got["b"] != 3 || got["c"] != 3 {
		t.Errorf("the turns are %v", got)
	}
}

func TestSessionsComeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := Rules{Fewest: true, Ejection: &api.Ejection{Failures: 1, MaxPercent: 100}}
		s := newSet(rules, sessions("a", "b")...)
		states := func() string {
			list, _, _ := s.Status()
			var out string
			for _, x := range list {
				out += fmt.Sprintf("%s %s %d, ", x.At, x.State, x.Connections)
			}
			return out
		}
		for range 2 {
			x, _ := take(s)
			if x.Session == "a" {
				x.Failed("it is silent")
			}
		}
		if got := states(); got != "session a EJECTED 0, session b HEALTHY 1, " {
			t.Errorf("it stands so: %s", got)
		}
		// What stays is as it was; what goes and comes begins anew, but for what it has.
		s.Update(sessions("a", "b"), rules)
		if got := states(); got != "session a EJECTED 0, session b HEALTHY 1, " {
			t.Errorf("then so: %s", got)
		}
		s.Update(sessions("b"), rules)
		s.Update(nil, rules)
		if _, what := take(s); what != Unhealthy {
			t.Errorf("without any: %v", what)
		}
		time.Sleep(time.Second)
		s.Update(sessions("b", "a"), rules)
		if got := states(); got != "session b HEALTHY 1, session a HEALTHY 0, " {
			t.Errorf("at last: %s", got)
		}
	})
}

// A client is sent to the same Session each time, whatever the others do.
func TestSourceHashOfSessions(t *testing.T) {
	s := newSet(Rules{Balance: api.BalanceSourceHash, Fewest: true}, sessions("a", "b", "c", "d")...)
	whose := func(i int) string {
		x, _ := s.Take(time.Now(), &Query{Client: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})})
		x.Release(1, false)
		return x.Session
	}
	had, got := map[int]string{}, map[string]bool{}
	for i := range 200 {
		had[i] = whose(i)
		got[had[i]] = true
	}
	if len(got) != 4 {
		t.Errorf("only %v are used", got)
	}
	s.Update(sessions("a", "c", "d"), Rules{Balance: api.BalanceSourceHash, Fewest: true})
	for i := range 200 {
		if now := whose(i); had[i] != "b" && now != had[i] {
			t.Fatalf("a client of %s was sent to %s", had[i], now)
		}
	}
}
