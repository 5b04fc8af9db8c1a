// Package proxytest is what every mode owes to the Gate, as a test. A mode's own
// tests are about its protocol; these are about the promises that hold for all:
// a stranger never dials and learns nothing; a Decider that fails denies; an
// unrelated write asks nobody again; revoked means reset; every START has one
// END; closing leaves no goroutine.
package proxytest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/proxy"
	"cardea/relay"
)

// A Subject is a mode under test, and how a client speaks to it before an
// upstream that echoes lines.
type Subject struct {
	Mode    proxy.Mode
	Service *api.Service // named svc.default
	// Say sends one line and returns the answer; it must equal what was sent.
	Say func(c *Client, r *bufio.Reader, line string) (string, error)
}

// Lines is Say for modes that carry lines as they are.
func Lines(c *Client, r *bufio.Reader, line string) (string, error) {
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	s, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	return s[:len(s)-1], nil
}

// Run checks a mode. Each case runs in a bubble: its time is fake, and it leaks
// no goroutine or the bubble fails it.
func Run(t *testing.T, s Subject) {
	in := func(name string, f func(*testing.T, *World)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, Start(t, s.Mode, s.Service)) })
		})
	}
	// open connects ann and has one exchange.
	open := func(t *testing.T, w *World) (*Client, *bufio.Reader) {
		t.Helper()
		c := w.Connect("ann")
		r := bufio.NewReader(c)
		if got, err := s.Say(c, r, "hello"); err != nil || got != "hello" {
			t.Fatalf("an allowed client read %q, %v", got, err)
		}
		return c, r
	}
	wantLog := func(t *testing.T, w *World, want ...api.LogType) []*api.AccessLog {
		t.Helper()
		synctest.Wait()
		recs, got := w.Journal.Connections()
		if !slices.Equal(got, want) {
			t.Fatalf("log = %v, want %v", got, want)
		}
		return recs
	}
	wantReset := func(t *testing.T, c io.Reader) {
		t.Helper()
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the client saw %v, want a reset", err)
		}
	}

	in("an allowed client is served and logged", func(t *testing.T, w *World) {
		c, r := open(t, w)
		if s.Mode.Opaque { // the others speak for themselves
			if v := c.Verdict(); v.Code != api.VerdictOK {
				t.Fatalf("verdict = %+v", v)
			}
		}
		c.CloseWrite()
		if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
			t.Fatalf("after the end: %q, %v", rest, err)
		}
		c.Close()
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		start, end := log[0].Entry.Common, log[1].Entry
		if start.ConnectionID == "" || start.ConnectionID != end.Common.ConnectionID || log[0].Metadata.ID == log[1].Metadata.ID {
			t.Errorf("ids of START and END: %q %q, %q %q", start.ConnectionID, end.Common.ConnectionID, log[0].Metadata.ID, log[1].Metadata.ID)
		}
		if !start.IsAuthenticated || !start.IsAuthorized || start.Facts.IP != "192.0.2.1" || start.DecisionID == "" {
			t.Errorf("START = %+v", start)
		}
		if end.Info.TCP.CloseReason != string(relay.ClientClosed) || end.Common.EndedAt.IsZero() || *end.Info.TCP.ReceivedBytes < 6 || *end.Info.TCP.SentBytes < 6 {
			t.Errorf("END = %+v", end.Info.TCP)
		}
		if n := len(w.Gate.List()); n != 0 {
			t.Errorf("%d connections are still in the registry", n)
		}
	})
	for _, who := range []string{"", "bob", "nobody-knows"} {
		in(fmt.Sprintf("%q is refused and never dials", who), func(t *testing.T, w *World) {
			c := w.Connect(who)
			go io.WriteString(c, "hello\n")
			wantReset(t, c)
			log := wantLog(t, w, api.LogDenied)
			if w.Dials() != 0 {
				t.Errorf("dialled %d times", w.Dials())
			}
			if c := log[0].Entry.Common; c.IsAuthorized || c.Status != api.StatusDenied || c.IsAuthenticated != (who == "bob") {
				t.Errorf("DENIED = %+v", c)
			}
			v := c.Verdict()
			if who == "bob" && (v.Code != api.VerdictDenied || v.DecisionID == "" || v.Words != "ask the owner") {
				t.Errorf("a Session was told %+v", v)
			}
			if who != "bob" && v != (api.Verdict{Code: api.VerdictDenied}) {
				t.Errorf("a stranger was told %+v", v)
			}
		})
	}
	in("a Decider that fails denies, also beside an ALLOW", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.err = errBroken })
		c := w.Connect("ann")
		wantReset(t, c)
		log := wantLog(t, w, api.LogDenied)
		if w.Dials() != 0 || log[0].Entry.Common.Reason.Type != api.ReasonError {
			t.Errorf("dials %d, reason %+v", w.Dials(), log[0].Entry.Common.Reason)
		}
	})
	in("a log that cannot be written lets nobody in", func(t *testing.T, w *World) {
		w.Journal.Fail(errors.New("disk full"))
		c := w.Connect("ann")
		wantReset(t, c)
		w.Journal.Fail(nil)
		wantLog(t, w)
		if w.Dials() != 0 || len(w.Gate.List()) != 0 {
			t.Errorf("dials %d, live %v", w.Dials(), w.Gate.List())
		}
	})
	in("an END that the log could not take is written when it can", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		w.Journal.Fail(errors.New("disk full"))
		c.Reset("done")
		time.Sleep(10 * time.Second)
		wantLog(t, w, api.LogStart)
		w.Journal.Fail(nil)
		time.Sleep(2 * time.Second)
		wantLog(t, w, api.LogStart, api.LogEnd)
	})
	in("an upstream that cannot be reached is told and logged", func(t *testing.T, w *World) {
		w.mu.Lock()
		w.dialErr = errors.New("connection refused")
		w.mu.Unlock()
		c := w.Connect("ann")
		go io.WriteString(c, "hello\n")
		wantReset(t, c)
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.TCP; tcp.CloseReason != string(relay.DialFailed) || tcp.Error != "connection refused" {
			t.Errorf("END = %+v", tcp)
		}
		if v := c.Verdict(); v.Code != api.VerdictUnavailable {
			t.Errorf("verdict = %+v", v)
		}
	})
	in("a mode that is not served here is not carried blindly", func(t *testing.T, w *World) {
		c := w.ConnectTo("ann", "other-mode.default")
		go io.WriteString(c, "hello\n")
		wantReset(t, c)
		wantLog(t, w, api.LogStart, api.LogEnd)
		if w.Dials() != 0 {
			t.Errorf("dialled %d times", w.Dials())
		}
	})
	in("an unrelated write asks nobody again", func(t *testing.T, w *World) {
		c, r := open(t, w)
		before := w.Decider.Asked()
		for range 100 {
			w.Decider.Set(func(*Decider) {}, api.Key{Kind: api.KindUser, Name: "somebody-else"})
		}
		time.Sleep(10 * time.Minute) // twenty leases, prolonged by heartbeats
		if n := w.Decider.Asked() - before; n != 0 {
			t.Errorf("%d decisions were made", n)
		}
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Errorf("read %q, %v", got, err)
		}
	})
	in("a change that still allows leaves the connection alone", func(t *testing.T, w *World) {
		c, r := open(t, w)
		before := w.Decider.Asked()
		w.Decider.Set(func(*Decider) {}, session("ann"))
		synctest.Wait()
		if n := w.Decider.Asked() - before; n != 1 {
			t.Errorf("%d decisions were made, want 1", n)
		}
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Errorf("read %q, %v", got, err)
		}
	})
	in("revoked means reset, at once, and only what was revoked", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.users["eve"] = true })
		c, _ := open(t, w)
		other := w.Connect("eve")
		or := bufio.NewReader(other)
		s.Say(other, or, "hello")
		now := time.Now()
		w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann"))
		wantReset(t, c)
		if d := time.Since(now); d != 0 {
			t.Errorf("it took %v", d)
		}
		if got, err := s.Say(other, or, "still there"); err != nil || got != "still there" {
			t.Errorf("the other one read %q, %v", got, err)
		}
		synctest.Wait()
		log, _ := w.Journal.Connections()
		end := log[len(log)-1].Entry
		if end.Info.TCP.Type != api.LogEnd || end.Info.TCP.CloseReason != string(relay.Revoked) || end.Common.UserRef.Name != "user-ann" {
			t.Errorf("END = %+v %+v", end.Info.TCP, end.Common)
		}
		w.mu.Lock()
		up := w.upstream[0]
		w.mu.Unlock()
		if _, err := up.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) && err == nil {
			t.Errorf("the upstream saw %v, want a reset", err)
		}
	})
	in("revoked while it is being dialled", func(t *testing.T, w *World) {
		w.mu.Lock()
		w.dialGate = make(chan struct{})
		w.mu.Unlock()
		c := w.Connect("ann")
		go io.WriteString(c, "hello\n")
		synctest.Wait()
		w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann"))
		wantReset(t, c)
		if log := wantLog(t, w, api.LogStart, api.LogEnd); log[1].Entry.Info.TCP.CloseReason != string(relay.Revoked) {
			t.Errorf("END = %+v", log[1].Entry.Info.TCP)
		}
	})
	in("a change between the decision and its registration is not missed", func(t *testing.T, w *World) {
		once := true
		w.Decider.Set(func(d *Decider) {
			d.onDecide = func() {
				if !once {
					return
				}
				once = false
				w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann"))
				// The change is worked through before the decision is registered.
				time.Sleep(time.Millisecond)
			}
		})
		c := w.Connect("ann")
		go io.WriteString(c, "hello\n")
		wantReset(t, c)
		synctest.Wait()
		if w.Dials() != 0 {
			t.Errorf("dialled %d times", w.Dials())
		}
	})
	in("an error of the Decider cuts nobody whose lease runs, and the end of the lease does", func(t *testing.T, w *World) {
		c, r := open(t, w)
		w.Decider.Set(func(d *Decider) { d.err = errBroken }, session("ann"))
		time.Sleep(25 * time.Second)
		if len(w.Gate.List()) != 1 {
			t.Fatal("it was cut within the lease")
		}
		if s.Mode.Opaque { // for others the next unit of work is a first decision, and an error denies it
			if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
				t.Fatalf("within the lease: read %q, %v", got, err)
			}
		}
		time.Sleep(10 * time.Second)
		wantReset(t, c)
	})
	in("a Decider that comes back within the lease costs nobody a connection", func(t *testing.T, w *World) {
		c, r := open(t, w)
		w.Decider.Set(func(d *Decider) { d.err = errBroken }, session("ann"))
		time.Sleep(20 * time.Second)
		w.Decider.Set(func(d *Decider) { d.err = nil })
		time.Sleep(5 * time.Minute)
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Fatalf("read %q, %v", got, err)
		}
	})
	in("a Decider whose changes do not get through is asked before the lease ends", func(t *testing.T, w *World) {
		c, r := open(t, w)
		w.Decider.Set(func(d *Decider) { d.deaf = true })
		time.Sleep(5 * time.Minute)
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Fatalf("read %q, %v", got, err)
		}
		w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann"))
		time.Sleep(31 * time.Second)
		wantReset(t, c)
	})
	in("an expiry cuts at its instant", func(t *testing.T, w *World) {
		end := time.Now().Add(90*time.Second + 300*time.Millisecond)
		w.Decider.Set(func(d *Decider) { d.until = end })
		c, _ := open(t, w)
		wantReset(t, c)
		if late := time.Since(end); late < 0 || late > 10*time.Millisecond {
			t.Errorf("cut %v after the expiry", late)
		}
	})
	in("what reads the clock is asked each second", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.bound = true })
		c, _ := open(t, w)
		before := w.Decider.Asked()
		time.Sleep(10*time.Second + time.Millisecond)
		if n := w.Decider.Asked() - before; n < 9 || n > 11 {
			t.Errorf("asked %d times in ten seconds", n)
		}
		w.Decider.mu.Lock()
		w.Decider.users["ann"] = false // nobody tells of it: time itself has changed it
		w.Decider.mu.Unlock()
		time.Sleep(1100 * time.Millisecond)
		wantReset(t, c)
	})
	in("another config cuts", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		w.Decider.Set(func(d *Decider) { d.config = "host-1" }, session("ann"))
		wantReset(t, c)
		synctest.Wait()
		log, _ := w.Journal.Connections()
		if r := log[len(log)-1].Entry.Common.Reason; r.Type != api.ReasonConfig {
			t.Errorf("reason = %+v", r)
		}
	})
	in("a Service that was made again is another one", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		w.Decider.Set(func(d *Decider) { d.service = "another" }, session("ann"))
		wantReset(t, c)
	})
	in("kill ends one connection", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		live := w.Gate.List()
		if len(live) != 1 || live[0].User != "user-ann" || live[0].Source != "192.0.2.1:4711" || live[0].ReceivedBytes < 6 {
			t.Fatalf("live = %+v", live)
		}
		if w.Gate.Kill("no-such", "root") || !w.Gate.Kill(live[0].ID, "root") {
			t.Fatal("kill did not tell which exists")
		}
		wantReset(t, c)
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.TCP; tcp.CloseReason != string(relay.Revoked) || tcp.Error != "ended by root" {
			t.Errorf("END = %+v", tcp)
		}
	})
	in("stopping resets what is live and writes its END", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		w.Stop()
		wantReset(t, c)
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.TCP; tcp.CloseReason != string(relay.Drained) {
			t.Errorf("END = %+v", tcp)
		}
		wantReset(t, w.Connect("ann"))
	})
	in("a client that goes away ends the upstream", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		c.Reset("gone")
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.TCP; s.Mode.Opaque && tcp.CloseReason != string(relay.ClientReset) {
			t.Errorf("END = %+v", tcp)
		}
	})
}
