package balance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"cardea/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// forever is a time until when names are resolved.
func forever() time.Time { return time.Unix(1<<40, 0) }

// address is that of the nth endpoint.
func address(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), 80)
}

// spec is the nth endpoint, with a weight.
func spec(n, weight int) Spec {
	at := address(n)
	return Spec{Addr: at, Host: at.String(), Group: at.String(), Weight: weight, Share: 1, Until: forever()}
}

// specs are so many endpoints.
func specs(n int) (list []Spec) {
	for i := range n {
		list = append(list, spec(i+1, 1))
	}
	return list
}

func newSet(rules Rules, list ...Spec) *Set {
	s := New(time.Now, 0, nil)
	s.Update(list, rules)
	return s
}

// number returns which endpoint a target is.
func number(t *Target) int {
	b := t.Addr.Addr().As4()
	return int(b[2])<<8 + int(b[3])
}

// take takes a target for a connection that has tried others.
func take(s *Set, tried ...*Target) (*Target, Outcome) {
	return s.Take(time.Now(), &Query{Tried: tried})
}

// took fails unless that is the next target, and ends its connection.
func took(t *testing.T, s *Set, want ...int) {
	t.Helper()
	var got []int
	for range want {
		x, what := take(s)
		if what != Taken {
			t.Fatalf("took %v, then %v", got, what)
		}
		got = append(got, number(x))
		x.Release(1, false)
	}
	if !slices.Equal(got, want) {
		t.Errorf("took %v, want %v", got, want)
	}
}

// at returns the target of the nth endpoint.
func at(s *Set, n int) *Target {
	for _, t := range s.Targets() {
		if t.Addr == address(n) {
			return t
		}
	}
	return nil
}

// state returns that of the nth endpoint.
func state(s *Set, n int) api.HealthState {
	list, _, _ := s.Status()
	for _, x := range list {
		if x.At == address(n).String() {
			return x.State
		}
	}
	return ""
}

// Over a cycle each has exactly its share, and is never far from it on the way.
func TestRoundRobinShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 20), 1, 12).Draw(t, "weights")
		var list []Spec
		sum := 0
		for i, w := range weights {
			sum += w
			parts := rapid.IntRange(1, 4).Draw(t, "addresses")
			for j := range parts {
				x := spec(100*i+j, w)
				x.Group = fmt.Sprint(i)
				list = append(list, x)
			}
		}
		s := newSet(Rules{}, list...)
		got := map[string]int{}
		each := map[string]int{}
		const cycles = 12 // of which every number of addresses is a part
		for k := 1; k <= cycles*sum; k++ {
			x, _ := take(s)
			x.Release(1, false)
			got[x.Group]++
			each[x.Host]++
			for i, w := range weights {
				if d := float64(got[fmt.Sprint(i)]) - float64(k*w)/float64(sum); d < -4 || d > 4 {
					t.Fatalf("after %d turns of %v: %v", k, weights, got)
				}
			}
		}
		for i, w := range weights {
			if got[fmt.Sprint(i)] != cycles*w {
				t.Fatalf("%v came to %v", weights, got)
			}
		}
		for _, x := range list {
			parts := 0
			for _, o := range list {
				if o.Group == x.Group {
					parts++
				}
			}
			if each[x.Host]*parts != got[x.Group] {
				t.Fatalf("%d addresses of %s: %v", parts, x.Group, each)
			}
		}
	})
}

// Turns go on over changes that keep the addresses.
func TestTurnsGoOn(t *testing.T) {
	s := newSet(Rules{}, specs(3)...)
	took(t, s, 1, 2)
	s.Update(specs(3), Rules{})
	took(t, s, 3)
	list := specs(4)
	slices.Reverse(list)
	s.Update(list, Rules{})
	took(t, s, 4, 3, 2, 1)
}

// Fewer connections for its weight come first, of two that are drawn.
func TestLeastConnections(t *testing.T) {
	s := newSet(Rules{Balance: api.BalanceLeastConnections}, spec(1, 1), spec(2, 3))
	for range 400 { // of two both are drawn each time
		take(s)
	}
	list, _, _ := s.Status()
	if a, b := list[0].Connections, list[1].Connections; a != 100 || b != 300 {
		t.Errorf("%d and %d connections, want 100 and 300", a, b)
	}
	s = newSet(Rules{Balance: api.BalanceLeastConnections}, specs(10)...)
	source := rand.New(rand.NewPCG(1, 2))
	s.chance = source.Int64N
	for range 10000 {
		take(s)
	}
	list, _, _ = s.Status()
	for _, x := range list { // two choices: within a few (log log n) of the mean
		if x.Connections < 990 || x.Connections > 1010 {
			t.Errorf("%s has %d connections of 10000", x.At, x.Connections)
		}
	}
}

// A client comes to the same target, in proportion to the weights; if one comes or
// goes only its clients move.
func TestSourceHash(t *testing.T) {
	rules := Rules{Balance: api.BalanceSourceHash}
	clients := func(s *Set) map[netip.Addr]int {
		out := map[netip.Addr]int{}
		for i := range 20000 {
			c := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			for range 2 {
				x, _ := s.Take(time.Now(), &Query{Client: c})
				x.Release(1, false)
				if had, known := out[c]; known && had != number(x) {
					t.Fatalf("%s goes to %d, and to %d", c, had, number(x))
				}
				out[c] = number(x)
			}
		}
		return out
	}
	s := newSet(rules, spec(1, 1), spec(2, 1), spec(3, 2))
	before := clients(s)
	count := map[int]int{}
	for _, n := range before {
		count[n]++
	}
	if count[1] < 4700 || count[1] > 5300 || count[2] < 4700 || count[2] > 5300 || count[3] < 9700 || count[3] > 10300 {
		t.Errorf("the shares are %v of 20000", count)
	}
	for name, c := range map[string]struct {
		list []Spec
		only int // the one whose clients move
	}{
		"one goes":       {[]Spec{spec(1, 1), spec(3, 2)}, 2},
		"one comes":      {[]Spec{spec(4, 1), spec(3, 2), spec(2, 1), spec(1, 1)}, 4},
		"another order":  {[]Spec{spec(3, 2), spec(2, 1), spec(1, 1)}, 0},
		"one gains some": {[]Spec{spec(1, 2), spec(2, 1), spec(3, 2)}, 1},
	} {
		for who, n := range clients(newSet(rules, c.list...)) {
			if n != before[who] && n != c.only && before[who] != c.only {
				t.Fatalf("%s: %s moved from %d to %d", name, who, before[who], n)
			}
		}
	}
	// Who has no address takes turns, and who is refused goes elsewhere.
	took(t, s, 3, 1, 2, 3)
	c := netip.MustParseAddr("10.0.0.1")
	one, _ := s.Take(time.Now(), &Query{Client: c})
	two, _ := s.Take(time.Now(), &Query{Client: c, Tried: []*Target{one}})
	if one == two {
		t.Errorf("%s was tried twice", one.Addr)
	}
}

// Never the same twice for one connection, other Hosts before other addresses of a
// Host, backups last; and all that may be are tried in the end.
func TestRetries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []Spec
		hosts := rapid.IntRange(1, 6).Draw(t, "hosts")
		for h := range hosts {
			backup := h > 0 && rapid.Bool().Draw(t, "backup")
			v6 := rapid.IntRange(0, 3).Draw(t, "IPv6")
			for i := range v6 + rapid.IntRange(1, 4).Draw(t, "IPv4") {
				x := spec(100*h+i, 1)
				if i < v6 {
					x.Addr = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0x20, 14: byte(h), 15: byte(i)}), 80)
				} else if v6 > 0 {
					x.Level = 1
				}
				x.Host, x.Group, x.Backup = fmt.Sprint(h), fmt.Sprint(h), backup
				list = append(list, x)
			}
		}
		rules := Rules{Balance: rapid.SampledFrom([]api.Balance{"", api.BalanceLeastConnections, api.BalanceSourceHash}).Draw(t, "algorithm")}
		s := newSet(rules, list...)
		var tried []*Target
		for {
			hosts, targets := s.Left(tried)
			x, what := s.Take(time.Now(), &Query{Tried: tried, Client: netip.MustParseAddr("10.0.0.1")})
			if what == None {
				if hosts != 0 || targets != 0 {
					t.Fatalf("%d Hosts and %d targets are left, and none is taken", hosts, targets)
				}
				break
			}
			if targets != len(list)-len(tried) || hosts < 1 {
				t.Fatalf("%d Hosts and %d targets are left after %d of %d", hosts, targets, len(tried), len(list))
			}
			if slices.Contains(tried, x) {
				t.Fatalf("%s was tried twice", x.Addr)
			}
			for _, o := range s.Targets() {
				if slices.Contains(tried, o) || o == x {
					continue
				}
				was := func(host string) bool {
					return slices.ContainsFunc(tried, func(t *Target) bool { return t.Host == host })
				}
				if x.spec.Backup && !o.spec.Backup {
					t.Fatalf("a backup is tried before %s", o.Addr)
				}
				if x.spec.Backup == o.spec.Backup && was(x.Host) && !was(o.Host) {
					t.Fatalf("another address of %s is tried before %s", x.Host, o.Host)
				}
			}
			tried = append(tried, x)
		}
		if len(tried) != len(list) {
			t.Fatalf("%d of %d were tried", len(tried), len(list))
		}
		for _, x := range tried {
			x.Drop()
		}
		if !s.Idle() {
			t.Fatal("somebody has connections")
		}
	})
}

// A backup gets connections only while none of the others serves; nobody that a check
// found unhealthy gets any.
func TestBackup(t *testing.T) {
	backup := spec(3, 1)
	backup.Backup = true
	s := newSet(Rules{Checked: true}, spec(1, 1), spec(2, 1), backup)
	took(t, s, 1, 2, 1, 2)
	s.Judge(at(s, 1), false, "down", 1, 1)
	took(t, s, 2, 2)
	s.Judge(at(s, 2), false, "down", 1, 1)
	took(t, s, 3, 3)
	if x, what := take(s, at(s, 3)); what != None {
		t.Errorf("after all: %v, %v", x, what)
	}
	s.Judge(at(s, 3), false, "down", 1, 1)
	if x, what := take(s); what != Unhealthy {
		t.Errorf("where none serves: %v, %v", x, what)
	}
	if _, serving, _ := s.Status(); serving {
		t.Error("it serves")
	}
	s.Judge(at(s, 2), true, "", 1, 1)
	took(t, s, 2, 2)
}

// It takes so many answers in a row, but for the first.
func TestRiseAndFall(t *testing.T) {
	s := newSet(Rules{Checked: true}, specs(2)...)
	one := at(s, 1)
	for i, step := range []struct {
		ok   bool
		want api.HealthState
	}{
		{false, api.HealthUnknown}, {false, api.HealthUnknown}, {true, api.HealthHealthy},
		{false, api.HealthHealthy}, {false, api.HealthHealthy}, {true, api.HealthHealthy}, {false, api.HealthHealthy}, {false, api.HealthHealthy}, {false, api.HealthUnhealthy},
		{true, api.HealthUnhealthy}, {false, api.HealthUnhealthy}, {true, api.HealthUnhealthy}, {true, api.HealthHealthy},
	} {
		if s.Judge(one, step.ok, "words", 2, 3); state(s, 1) != step.want {
			t.Errorf("step %d: %s, want %s", i, state(s, 1), step.want)
		}
	}
	// Nobody asks any more: then it is as good as any.
	for range 3 {
		s.Judge(one, false, "words", 2, 3)
	}
	s.Update(specs(2), Rules{})
	if got := state(s, 1); got != api.HealthHealthy {
		t.Errorf("unchecked it is %s", got)
	}
}

func seconds(n int) *api.Duration { return &api.Duration{Seconds: &n} }

// fail makes so many connections to a target fail.
func fail(t *Target, n int) {
	for range n {
		t.set.mu.Lock()
		t.conns++
		t.group.conns++
		t.set.mu.Unlock()
		t.Failed("refused")
	}
}

func TestEjection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		s := New(time.Now, 0, func(t *Target, from, to api.HealthState, words string) {
			told = append(told, fmt.Sprintf("%d %s %s", number(t), from, to))
		})
		rules := Rules{Ejection: &api.Ejection{Failures: 2, Time: seconds(10)}}
		s.Update(specs(4), rules)
		one := at(s, 1)
		fail(one, 1)
		one.Connected() // a success in between
		fail(one, 1)
		if got := state(s, 1); got != api.HealthHealthy {
			t.Errorf("after a success and a failure: %s", got)
		}
		// It is out for 10 seconds, the next time for 20, and at most for 100.
		for i := range 12 {
			fail(one, 1)
			if i > 0 {
				fail(one, 1)
			}
			out := min(i+1, 10) * 10
			if state(s, 1) != api.HealthEjected {
				t.Fatalf("time %d: it is %s", i, state(s, 1))
			}
			for range 12 {
				if x, _ := take(s); x == one {
					t.Fatal("it is chosen")
				} else {
					x.Drop()
				}
			}
			time.Sleep(time.Duration(out)*time.Second - time.Nanosecond)
			if state(s, 1) != api.HealthEjected {
				t.Fatalf("time %d: it is %s before %d seconds", i, state(s, 1), out)
			}
			time.Sleep(time.Nanosecond)
			if s.Tick(time.Now()); state(s, 1) != api.HealthHealthy {
				t.Fatalf("time %d: it is %s after %d seconds", i, state(s, 1), out)
			}
		}
		if len(told) != 24 || told[0] != "1 HEALTHY EJECTED" || told[1] != "1 EJECTED HEALTHY" {
			t.Errorf("told %v", told)
		}
		// A connection that went well makes it begin anew, as a long time does.
		x, _ := take(s, at(s, 2), at(s, 3), at(s, 4))
		x.Release(1, true)
		fail(one, 2)
		time.Sleep(10 * time.Second)
		if state(s, 1) != api.HealthHealthy {
			t.Errorf("after a success it is out for longer: %s", state(s, 1))
		}
		// Broken off before a byte is a failure, and after one is none.
		two := at(s, 2)
		for _, sent := range []int64{0, 5, 0} {
			x, _ := take(s, at(s, 1), at(s, 3), at(s, 4))
			x.Connected()
			x.Release(sent, true)
		}
		if state(s, 2) != api.HealthHealthy {
			t.Errorf("after a byte it is %s", state(s, 2))
		}
		x, _ = take(s, at(s, 1), at(s, 3), at(s, 4))
		x.Connected() // that a connection can be made does not make up for it
		x.Release(0, true)
		if x != two || state(s, 2) != api.HealthEjected {
			t.Errorf("%d: it is %s", number(x), state(s, 2))
		}
		// A config without ejection has none out.
		s.Update(specs(4), Rules{})
		if state(s, 2) != api.HealthHealthy {
			t.Errorf("without ejection it is %s", state(s, 2))
		}
	})
}

// No more than so many are out, whatever fails; and there is always one to be had.
func TestEjectionIsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "targets")
		percent := rapid.SampledFrom([]int{0, 1, 10, 33, 50, 75, 100}).Draw(t, "percent")
		now := time.Now()
		s := New(func() time.Time { return now }, 0, nil)
		s.Update(specs(n), Rules{Ejection: &api.Ejection{Failures: 1, MaxPercent: percent}})
		if percent == 0 {
			percent = 50
		}
		for range 60 {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				now = now.Add(rapid.SampledFrom([]time.Duration{time.Second, 10 * time.Second}).Draw(t, "time"))
			case 1:
				n = rapid.IntRange(1, 12).Draw(t, "targets")
				s.Update(specs(n), s.rules)
			default:
				x, what := s.Take(now, &Query{})
				if what != Taken {
					t.Fatalf("none can be had: %v", what)
				}
				if rapid.Bool().Draw(t, "fails") {
					x.Failed("x")
				} else {
					x.Release(0, true)
				}
			}
			out := 0
			list, serving, _ := s.Status()
			for _, x := range list {
				if x.State == api.HealthEjected {
					out++
				}
			}
			if out > n*percent/100 || serving != (out < n) {
				t.Fatalf("%d of %d are out, and %d%% may be; serving %v", out, n, percent, serving)
			}
		}
		if !s.Idle() {
			t.Fatal("somebody has connections")
		}
	})
}

// A target that returns gets a tenth of its share, then more and more.
func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rules := Rules{Checked: true, SlowStart: 100 * time.Second}
		s := newSet(rules, spec(1, 3), spec(2, 3))
		for i := range 2 {
			s.Judge(at(s, i+1), true, "", 1, 1)
		}
		took(t, s, 1, 2, 1, 2) // at first there is nothing to be slow about
		share := func() int {
			n := 0
			for range 1000 {
				x, _ := take(s)
				if x.Release(1, false); number(x) == 1 {
					n++
				}
			}
			return n
		}
		s.Judge(at(s, 1), false, "down", 1, 1)
		time.Sleep(time.Hour)
		s.Judge(at(s, 1), true, "", 1, 1)
		for _, want := range []int{91, 355, 500} { // of 1 : 10, 5.5 : 10, 10 : 10
			if got := share(); got < want-3 || got > want+3 {
				t.Errorf("its share is %d of 1000, want %d", got, want)
			}
			time.Sleep(50 * time.Second)
		}
		// So does one that is new, and not at first.
		s.Update([]Spec{spec(1, 3), spec(2, 3), spec(3, 3)}, rules)
		n := 0
		for range 2100 {
			x, _ := take(s)
			if x.Release(1, false); number(x) == 3 {
				n++
			}
		}
		if n < 97 || n > 103 {
			t.Errorf("the share of the new one is %d of 2100, want 100", n)
		}
	})
}

// What is known of an address stays when it comes back, or is named otherwise.
func TestAddressesComeBack(t *testing.T) {
	rules := Rules{Checked: true}
	s := newSet(rules, specs(3)...)
	x, _ := take(s)
	s.Judge(x, false, "down", 1, 1)
	s.Update(specs(3)[1:], rules)
	s.Update(specs(3), rules)
	if list, _, _ := s.Status(); list[0].State != api.HealthUnhealthy || list[0].Connections != 1 {
		t.Errorf("it came back as %+v", list[0])
	}
	list := specs(3)
	list[0].Host, list[0].Group = "db.corp:80", "db.corp:80"
	s.Update(list, rules)
	if list, _, _ := s.Status(); list[0].State != api.HealthUnhealthy || list[0].Connections != 0 {
		t.Errorf("under another name it is %+v", list[0])
	}
	x.Release(1, false)
	if !s.Idle() {
		t.Error("somebody has connections")
	}
	for i := range 10 * maxGone { // and not everything is remembered
		s.Update([]Spec{spec(i+10, 1)}, rules)
	}
	if len(s.gone) > maxGone+1 {
		t.Errorf("%d targets are remembered", len(s.gone))
	}
}

// An address of another level is for when none of the first serves; then it has all of
// the weight.
func TestLevels(t *testing.T) {
	list := specs(3)
	for i := range 2 { // 1 and 2 are addresses of one endpoint
		list[i].Group, list[i].Host, list[i].Level = "a", "a", i
	}
	s := newSet(Rules{Checked: true}, list...)
	took(t, s, 1, 3, 1, 3)
	s.Judge(at(s, 1), false, "down", 1, 1)
	took(t, s, 2, 3, 2, 3)
}

// bounded are endpoints of so many connections each.
func bounded(most ...int) (list []Spec) {
	for i, m := range most {
		x := spec(i+1, 1)
		x.Max = m
		list = append(list, x)
	}
	return list
}

// Who finds no place waits for one, in the order of arrival, for as long as there is
// time.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(Rules{}, bounded(2, 1)...)
		var held []*Target
		for range 3 {
			x, what := take(s)
			if what != Taken {
				t.Fatal(what)
			}
			held = append(held, x)
		}
		if _, what := take(s); what != Full {
			t.Fatalf("the fourth: %v", what)
		}
		var mu sync.Mutex
		var order []int
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				x, what := s.Wait(ctx, &Query{})
				mu.Lock()
				defer mu.Unlock()
				if i == 3 {
					if what != Full {
						t.Errorf("the last one: %v", what)
					}
					return
				}
				if order = append(order, i); what != Taken {
					t.Errorf("%d: %v", i, what)
				}
				held = append(held, x)
			})
			synctest.Wait()
		}
		for range 3 {
			mu.Lock()
			x := held[0]
			held = held[1:]
			mu.Unlock()
			x.Release(1, false)
			synctest.Wait()
		}
		start := time.Now()
		all.Wait()
		if took := time.Since(start); took != time.Minute {
			t.Errorf("the last one waited for %v", took)
		}
		if !slices.Equal(order, []int{0, 1, 2}) {
			t.Errorf("they had their places in the order %v", order)
		}
		// A change of the config may have room, too; and where none serves nobody waits.
		all.Go(func() {
			if _, what := s.Wait(t.Context(), &Query{}); what != Taken {
				t.Errorf("after a change: %v", what)
			}
		})
		synctest.Wait()
		s.Update(bounded(2, 2), Rules{Checked: true})
		all.Wait()
		all.Go(func() {
			if _, what := s.Wait(t.Context(), &Query{}); what != Unhealthy {
				t.Errorf("where none serves: %v", what)
			}
		})
		synctest.Wait()
		for _, x := range s.Targets() {
			s.Judge(x, false, "down", 1, 1)
		}
		all.Wait()
		if len(s.waiting) != 0 {
			t.Errorf("%d wait", len(s.waiting))
		}
	})
}

// A backup is no way around a bound, and another endpoint is.
func TestFull(t *testing.T) {
	list := bounded(1, 1, 0)
	list[2].Backup = true
	s := newSet(Rules{}, list...)
	one, _ := take(s)
	two, _ := take(s)
	if one == two {
		t.Error("one has two")
	}
	if x, what := take(s); what != Full {
		t.Errorf("the third: %v, %v", x, what)
	}
	full, spare := s.Full(nil)
	if !slices.Equal(full, []string{one.Group, two.Group}) || !slices.Equal(spare, []string{list[2].Group}) {
		t.Errorf("full are %q, spare %q", full, spare)
	}
	if full, spare = s.Full([]*Target{one}); !slices.Equal(full, []string{two.Group}) || len(spare) != 1 {
		t.Errorf("for who has tried the first: full are %q, spare %q", full, spare)
	}
	one.Drop()
	if x, what := s.Take(time.Now(), &Query{Sure: true}); what != Stale {
		t.Errorf("what may find no place in the end is sure: %v, %v", x, what)
	}
	if x, what := take(s, two); what != Taken || x != one {
		t.Errorf("after that: %v, %v", x, what)
	}
}

// However many come and go at once, the counts are right, and no bound is passed.
func TestCountsAreExact(t *testing.T) {
	s := newSet(Rules{Ejection: &api.Ejection{Failures: 3}}, bounded(5, 7, 1)...)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			source := rand.New(rand.NewPCG(1, uint64(i)))
			for range 400 {
				x, what := s.Wait(t.Context(), &Query{})
				if what != Taken {
					t.Error(what)
					return
				}
				list, _, _ := s.Status()
				for i, most := range []int{5, 7, 1} {
					if n := list[i].Connections; n < 0 || n > most {
						t.Errorf("%s has %d connections", list[i].At, n)
					}
				}
				switch source.IntN(4) {
				case 0:
					x.Failed("x")
				case 1:
					x.Drop()
				default:
					x.Connected()
					x.Release(source.Int64N(2), source.IntN(2) == 0)
				}
			}
		})
	}
	all.Wait()
	list, _, _ := s.Status()
	for _, x := range list {
		if x.Connections != 0 {
			t.Errorf("%s has %d connections", x.At, x.Connections)
		}
	}
	if !s.Idle() {
		t.Error("somebody has connections")
	}
}

// Names that are not resolved are told of, and nothing is taken.
func TestStale(t *testing.T) {
	unknown := Spec{Host: "db.corp:80", Group: "db.corp:80", Weight: 1, Share: 1}
	s := newSet(Rules{}, unknown, spec(2, 1))
	now := time.Now()
	if s.Fresh(now) {
		t.Error("all names are resolved")
	}
	for range 2 {
		if x, what := s.Take(now, &Query{}); what != Stale || x.Host != "db.corp:80" {
			t.Fatalf("%v, %v", x, what)
		}
	}
	if x, what := s.Take(now, &Query{Known: []string{"db.corp:80"}}); what != Taken || x.Addr.IsValid() {
		t.Errorf("%v, %v", x, what)
	}
	if x, what := s.Take(now, &Query{Sure: true}); what != Stale {
		t.Errorf("%v, %v", x, what)
	}
	known := spec(1, 1)
	known.Host, known.Group, known.Until = "db.corp:80", "db.corp:80", now.Add(time.Second)
	s.Update([]Spec{known, spec(2, 1)}, Rules{})
	if x, what := s.Take(now, &Query{Sure: true}); what != Taken || !s.Fresh(now) {
		t.Errorf("%v, %v", x, what)
	}
	if x, what := s.Take(now.Add(time.Second), &Query{Sure: true}); what != Stale || s.Fresh(now.Add(time.Second)) {
		t.Errorf("%v, %v", x, what)
	}
}

func BenchmarkTake(b *testing.B) {
	for _, algorithm := range []api.Balance{api.BalanceRoundRobin, api.BalanceLeastConnections, api.BalanceSourceHash} {
		for _, n := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("%s/%d", algorithm, n), func(b *testing.B) {
				s := newSet(Rules{Balance: algorithm}, specs(n)...)
				now := time.Now()
				q := &Query{Client: netip.MustParseAddr("10.0.0.1")}
				for b.Loop() {
					t, _ := s.Take(now, q)
					t.Release(1, false)
				}
			})
		}
	}
}
