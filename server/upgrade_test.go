package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
)

// What is cut of a process that was replaced is spread over the last tenth of its time.
func TestPace(t *testing.T) {
	p := pace{total: time.Hour}
	live := 600
	for at, want := range map[time.Duration]int{0: 600, 53 * time.Minute: 600} {
		if n := p.cut(at, live); live-n != want {
			t.Errorf("at %s %d are cut", at, n)
		}
	}
	most := 0
	for at := 54 * time.Minute; at < time.Hour; at += time.Second {
		n := p.cut(at, live)
		live -= n
		most = max(most, n)
		if even := 600 * (time.Hour - at).Seconds() / 360; float64(live) > even+2 || float64(live) < even-2 {
			t.Fatalf("at %s there are %d left, at an even pace %.0f", at, live, even)
		}
	}
	if live -= p.cut(time.Hour, live); live != 0 || most > 3 {
		t.Errorf("%d are left, at most %d were cut at once", live, most)
	}
	none := pace{}
	if n := none.cut(0, 7); n != 7 {
		t.Errorf("without a time %d of 7 are cut", n)
	}
}

// Who waits at an entrance that is left is let in by whoever else has it.
func TestEntrance(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mine := newEntrance(l)
	f, err := mine.file()
	if err != nil {
		t.Fatal(err)
	}
	l, err = net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	theirs := newEntrance(l)
	come := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	serve := func(e *entrance, says string) (ended chan error) {
		ended = make(chan error, 1)
		go func() {
			for {
				c, err := e.Accept()
				if err != nil {
					ended <- err
					return
				}
				io.WriteString(c, says)
				c.Close()
			}
		}()
		return ended
	}
	served := func(c net.Conn, by string) {
		t.Helper()
		if b, err := io.ReadAll(c); err != nil || string(b) != by {
			t.Errorf("served by %q, %v; want %s", b, err, by)
		}
		c.Close()
	}
	gone := serve(mine, "mine")
	mine.open()
	served(come(), "mine")
	mine.pause()
	paused := come()
	mine.resume()
	served(paused, "mine")
	mine.leave()
	waits := come()
	served2 := serve(theirs, "theirs")
	theirs.open()
	served(waits, "theirs")
	served(come(), "theirs")
	select {
	case err := <-gone:
		t.Errorf("who accepts ends when the entrance is left: %v", err)
	default:
	}
	mine.Close()
	theirs.Close()
	for _, ended := range []chan error{gone, served2} {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	if err := newEntrance(l).Close(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// A reacher stands for what a process makes of the store.
type reacher struct {
	mu      sync.Mutex
	told    []api.Revision
	reached progress
	slow    chan struct{} // unless it is nil nothing is reached before it is closed
}

// relation returns a kin whose process does that.
func relation(name string, r rank, x *reacher) *kin {
	k := newKin("", nil, relative{PID: int(name[len(name)-1]), Journal: name}, tasks{
		written: func(rev api.Revision) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.told = append(x.told, rev)
		},
		reach: func(ctx context.Context, rev api.Revision) error {
			if x.slow != nil {
				select {
				case <-x.slow:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			x.reached.advance(rev)
			return nil
		},
		busy: func(string) bool { return false }, live: func() int { return 7 },
		list: func() []api.Connection { return []api.Connection{{ID: name}} },
		kill: func(id, _ string) bool { return id == name }, stop: func() {},
	}, slog.New(slog.DiscardHandler))
	k.rank = r
	return k
}

// A write is acknowledged when older processes have reached it, too, but none of them
// holds it up for long.
func TestKin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		ctx, stop := context.WithCancel(t.Context())
		theirs := &reacher{slow: make(chan struct{})}
		newest, older := relation("log.1", rankNewest, new(reacher)), relation("log", rankOlder, theirs)
		newest.expect([]string{"log"})
		var talking sync.WaitGroup
		talking.Go(func() { newest.converse(ctx, a, false) })
		talking.Go(func() { older.converse(ctx, b, true) })
		synctest.Wait()

		wait := func(k *kin, rev api.Revision) time.Duration {
			begun := time.Now()
			k.await(ctx, rev, nil)
			return time.Since(begun)
		}
		rev := func(n uint64) api.Revision { return api.Revision{Epoch: 1, Number: n} }
		if d := wait(newest, rev(1)); d != kinTimeout {
			t.Errorf("one that does not follow is waited for %s", d)
		}
		if d := wait(newest, rev(2)); d != 0 {
			t.Errorf("and %s the next time", d)
		}
		close(theirs.slow)
		time.Sleep(kinTimeout + kinBeat)
		if d := wait(newest, rev(3)); d >= kinBeat {
			t.Errorf("one that follows again takes %s", d)
		}
		if got := theirs.reached.revision(); got != rev(3) {
			t.Errorf("it has reached %s", got)
		}
		if !slices.Contains(theirs.told, rev(3)) {
			t.Error("it was not told that there is something to read")
		}
		if d := wait(older, rev(4)); d >= kinBeat || newest.seen.revision().Compare(rev(3)) < 0 {
			t.Errorf("what an older one writes takes %s", d)
		}
		if processes, connections := newest.older(); processes != 1 || connections != 7 {
			t.Errorf("%d older processes with %d connections", processes, connections)
		}
		if processes, _ := older.older(); processes != 0 {
			t.Errorf("the older one takes %d for older ones", processes)
		}
		var all []api.Connection
		ask(ctx, newest, askConns, nil, func(_ *other, list []api.Connection) { all = append(all, list...) })
		if len(all) != 1 || all[0].ID != "log" || all[0].Process != os.Getpid() || !all[0].Draining {
			t.Errorf("it has %+v", all)
		}
		a.Close()
		talking.Wait()
		if d := wait(newest, rev(5)); d != 0 {
			t.Errorf("one that has gone is waited for %s", d)
		}
		if processes, _ := newest.older(); processes != 0 {
			t.Errorf("%d older processes", processes)
		}
		stop()
	})
}

// Three generations wait for each other, and not in a circle.
func TestKinOfThree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		newest := relation("log.2", rankNewest, new(reacher))
		var talking sync.WaitGroup
		var older []*kin
		var reached []*reacher
		for i := range 2 {
			a, b := net.Pipe()
			x := new(reacher)
			k := relation(journalName(i), rankOlder, x)
			talking.Go(func() { newest.converse(ctx, a, false) })
			talking.Go(func() { k.converse(ctx, b, true) })
			older, reached = append(older, k), append(reached, x)
		}
		synctest.Wait()
		for n, k := range slices.Concat(older, []*kin{newest}) {
			rev := api.Revision{Epoch: 1, Number: uint64(n + 1)}
			begun := time.Now()
			k.await(ctx, rev, nil)
			if d := time.Since(begun); d != 0 {
				t.Errorf("a write by process %d takes %s", n, d)
			}
			for i, x := range reached {
				if k != older[i] && x.reached.revision().Compare(rev) < 0 {
					t.Errorf("what process %d writes process %d has not reached", n, i)
				}
			}
		}
		stop()
		talking.Wait()
	})
}

// A write does not wait for a process that was expected and has gone before it came.
func TestKinForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		newest := relation("log.1", rankNewest, new(reacher))
		newest.expect([]string{"log"})
		var looking, group sync.WaitGroup
		begun := time.Now()
		looking.Go(func() { newest.look(ctx, &group) })
		newest.await(ctx, api.Revision{Epoch: 1, Number: 1}, nil)
		if d := time.Since(begun); d > kinLook {
			t.Errorf("it is waited for %s", d)
		}
		stop()
		looking.Wait()
	})
}

// A process departs when the next one has answered it, and stays when that one has ended.
func TestKinDepart(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k := relation("log", rankNewest, new(reacher))
	k.entry = newEntrance(l)
	k.move(relative{PID: 7})
	ended := make(chan struct{})
	close(ended)
	if err := k.depart(t.Context(), ended); err == nil || !k.is(rankOlder) {
		t.Error("it departs, and the next one has ended")
	}
	if k.become(); !k.is(rankNewest) || len(k.others) != 0 {
		t.Errorf("it does not stay: %v", k.others)
	}
	k.move(relative{PID: 7})
	k.meet(newestKey, relative{PID: 7, Journal: "log.1"}, nil)
	if err := k.depart(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// The journals of a data directory are told from what else is there.
func TestJournalsIn(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"log", "log.2", "log.10", "log.1", "log.01", "log.x", "log.-1", "logs", "keys"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	got, err := journalsIn(dir)
	if want := []string{"log", "log.1", "log.2", "log.10"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	cfg := Config{DataDir: dir, Store: "postgres://x"}
	seen := map[string]bool{}
	for _, name := range got {
		for range 2 {
			instance, err := instanceOf(cfg, name)
			if err != nil {
				t.Fatal(err)
			}
			seen[instance] = true
		}
	}
	if len(seen) != len(got) {
		t.Errorf("the instances of %v are %v", got, seen)
	}
	for i, name := range got {
		want := "up"
		if i > 0 {
			want = fmt.Sprint("up-", name[len("log."):])
		}
		if instance, err := instanceOf(Config{DataDir: dir}, name); err != nil || instance != want {
			t.Errorf("%s: %s, %v", name, instance, err)
		}
	}
}

// One process is raised at a time, and none by one that was replaced.
func TestSuccession(t *testing.T) {
	s := new(succession)
	if err := s.begin(); err == nil {
		t.Error("begun before the process serves")
	}
	s.end(false)
	if err := s.begin(); err != nil {
		t.Fatal(err)
	}
	if err := s.begin(); err == nil {
		t.Error("two at a time")
	}
	s.end(false)
	if err := s.begin(); err != nil {
		t.Error(err)
	}
	s.end(true)
	for range 2 {
		if err := s.begin(); err == nil || err.Error() != string(succeedOver) {
			t.Error(err)
		}
	}
}
