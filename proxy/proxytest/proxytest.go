// Package proxytest is what every mode owes to the Gate, as a test. A mode's own
// tests are about its protocol; these are about the promises that hold for all:
// a stranger never dials and learns nothing; a Decider that fails denies; an
// unrelated write asks nobody again; revoked means reset; every START has one
// END; closing leaves no goroutine.
package proxytest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
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

	inLine bool // connections are carried without a goroutine
	tells  bool // the road of those can tell a verdict; that of all others can
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

// Messages is Say for modes that carry datagrams as they are.
func Messages(c *Client, r *bufio.Reader, line string) (string, error) {
	line += "\n"
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(line))), line...)); err != nil {
		return "", err
	}
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(r, b)
	return strings.TrimSuffix(string(b), "\n"), err
}

// Run checks a mode. Each case runs in a bubble: its time is fake, and it leaks
// no goroutine or the bubble fails it.
func Run(t *testing.T, s Subject) {
	run(t, s)
	if s.isTCP() {
		s.inLine = true
		t.Run("in line", func(t *testing.T) { run(t, s) })
		s.tells = true
		t.Run("in line, told", func(t *testing.T) { run(t, s) })
	}
}

// isTCP reports whether connections are carried as those of TCP are, to which foreign
// Objects lead too.
func (s Subject) isTCP() bool { return s.Mode.Opaque && !s.Mode.Datagrams }

// run is Run for one of the ways on which connections go.
func run(t *testing.T, s Subject) {
	in := func(name string, f func(*testing.T, *World)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, s.start(t, 0)) })
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
			if v, ok := c.Verdict(); ok && v.Code != api.VerdictOK {
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
		if end.Info.Flow().CloseReason != string(relay.ClientClosed) || end.Common.EndedAt.IsZero() || *end.Info.Flow().ReceivedBytes < 6 || *end.Info.Flow().SentBytes < 6 {
			t.Errorf("END = %+v", end.Info.Flow())
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
			v, told := c.Verdict()
			if told && who == "bob" && (v.Code != api.VerdictDenied || v.DecisionID == "" || v.Words != "ask the owner") {
				t.Errorf("a Session was told %+v", v)
			}
			if told && who != "bob" && v != (api.Verdict{Code: api.VerdictDenied}) {
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
		w.failDials(errors.New("connection refused"))
		c := w.Connect("ann")
		go io.WriteString(c, "hello\n")
		wantReset(t, c)
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.Flow(); tcp.CloseReason != string(relay.DialFailed) || tcp.Error != "connection refused" {
			t.Errorf("END = %+v", tcp)
		}
		if v, ok := c.Verdict(); ok && v.Code != api.VerdictUnavailable {
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
		if end.Info.Flow().Type != api.LogEnd || end.Info.Flow().CloseReason != string(relay.Revoked) || end.Common.UserRef.Name != "user-ann" {
			t.Errorf("END = %+v %+v", end.Info.Flow(), end.Common)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.ends) != 1 || !errors.Is(w.ends[0], syscall.ECONNRESET) {
			t.Errorf("the upstreams saw %v, want one reset", w.ends)
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
		if log := wantLog(t, w, api.LogStart, api.LogEnd); log[1].Entry.Info.Flow().CloseReason != string(relay.Revoked) {
			t.Errorf("END = %+v", log[1].Entry.Info.Flow())
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
	in("a caller without a name is served where everybody may, and logged so", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.public = new(true) })
		c := w.ConnectFrom("192.0.2.9")
		r := bufio.NewReader(c)
		if got, err := s.Say(c, r, "hello"); err != nil || got != "hello" {
			t.Fatalf("read %q, %v", got, err)
		}
		if live := w.Gate.List(); len(live) != 1 || live[0].Session != "" || live[0].Source != "192.0.2.9:4711" || live[0].Tunnel != "public" {
			t.Errorf("live = %+v", live)
		}
		c.Reset("done")
		for _, rec := range wantLog(t, w, api.LogStart, api.LogEnd) {
			c := rec.Entry.Common
			if rec.Metadata.ActorRef != nil || c.SessionRef != nil || c.UserRef != nil || c.IsAuthenticated || !c.IsAuthorized || !c.IsAnonymous || !c.IsPublic {
				t.Errorf("%s = %+v", rec.Entry.Info.Flow().Type, c)
			}
		}
	})
	in("a caller without a name is asked about by its evidence again, and cut", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.public = new(true) })
		c := w.ConnectFrom("192.0.2.9")
		r := bufio.NewReader(c)
		s.Say(c, r, "hello")
		w.Decider.Set(func(*Decider) {}, anyone)
		synctest.Wait()
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Fatalf("after a change that allows: read %q, %v", got, err)
		}
		w.Decider.Set(func(d *Decider) { d.public = new(false) }, anyone)
		wantReset(t, c)
		synctest.Wait()
		recs, _ := w.Journal.Connections()
		if end := recs[len(recs)-1].Entry; end.Info.Flow().CloseReason != string(relay.Revoked) || !end.Common.IsAnonymous {
			t.Errorf("END = %+v %+v", end.Info.Flow(), end.Common)
		}
	})
	in("a caller without a name who may not is reset and told nothing", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.public = new(false) })
		c := w.ConnectFrom("192.0.2.9")
		wantReset(t, c)
		log := wantLog(t, w, api.LogDenied)
		if c := log[0].Entry.Common; w.Dials() != 0 || c.IsAuthenticated || c.IsAuthorized || !c.IsPublic || !c.IsAnonymous || log[0].Metadata.ActorRef != nil {
			t.Errorf("dials %d, DENIED = %+v", w.Dials(), c)
		}
		if v, ok := c.Verdict(); ok && v != (api.Verdict{Code: api.VerdictDenied}) {
			t.Errorf("it was told %+v", v)
		}
	})
	in("an ALLOW without a Session is refused, unless it says that nobody asked", func(t *testing.T, w *World) {
		for _, alter := range []func(*api.Decision){
			func(d *api.Decision) { d.Subject.Session = nil },
			func(d *api.Decision) { d.Subject.IsAnonymous = true }, // beside a Session
		} {
			w.Decider.Set(func(d *Decider) { d.alter = alter })
			wantReset(t, w.Connect("ann"))
		}
		for _, rec := range wantLog(t, w, api.LogDenied, api.LogDenied) {
			if rec.Entry.Common.Reason.Type != api.ReasonError {
				t.Errorf("reason = %+v", rec.Entry.Common.Reason)
			}
		}
		if w.Dials() != 0 {
			t.Errorf("dialled %d times", w.Dials())
		}
	})
	in("an answer about another caller does not stand", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		w.Decider.Set(func(d *Decider) {
			d.alter = func(d *api.Decision) { d.Subject.Session = &api.Ref{Kind: api.KindSession, Name: "eve", UID: "eve"} }
		}, session("ann"))
		wantReset(t, c)
	})
	in("the Device is in the log and in the list", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		if live := w.Gate.List(); len(live) != 1 || live[0].Device != "device-ann" {
			t.Errorf("live = %+v", live)
		}
		c.Reset("done")
		for _, rec := range wantLog(t, w, api.LogStart, api.LogEnd) {
			if d := rec.Entry.Common.DeviceRef; d == nil || d.Name != "device-ann" {
				t.Errorf("deviceRef = %+v", d)
			}
		}
	})
	in("a Session has no more connections to a Service than it may", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.limits.ConnectionsPerSession, d.users["eve"] = 2, true })
		first, _ := open(t, w)
		open(t, w)
		third := w.Connect("ann")
		wantReset(t, third)
		if v, ok := third.Verdict(); ok && (v.Code != api.VerdictUnavailable || v.DecisionID == "" || !strings.Contains(v.Words, "as many connections")) {
			t.Errorf("it was told %+v", v)
		}
		log := wantLog(t, w, api.LogStart, api.LogStart, api.LogDenied)
		if r := log[2].Entry.Common.Reason; r.Type != api.ReasonLimit || !strings.Contains(r.Words, "spec.limits.connectionsPerSession is 2") {
			t.Errorf("reason = %+v", r)
		}
		other := w.Connect("eve")
		if got, err := s.Say(other, bufio.NewReader(other), "hello"); err != nil || got != "hello" {
			t.Errorf("another Session: read %q, %v", got, err)
		}
		first.Reset("done")
		synctest.Wait()
		open(t, w)
	})
	in("a Session has no more connections in all than it may, but where a Service says how many", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.users["eve"] = true })
		first, _ := open(t, w)
		speak := func(who, service string) {
			t.Helper()
			c := w.ConnectTo(who, service)
			if got, err := s.Say(c, bufio.NewReader(c), "hello"); err != nil || got != "hello" {
				t.Errorf("%s to %s: read %q, %v", who, service, got, err)
			}
		}
		another := "svc.default"
		if s.Mode.Opaque { // else there is no Handler for another
			another = "another.default"
		}
		for range perSession - 1 {
			speak("ann", another)
		}
		more := w.Connect("ann")
		wantReset(t, more)
		if v, ok := more.Verdict(); ok && (v.Code != api.VerdictUnavailable || v.DecisionID == "" || !strings.Contains(v.Words, "as many connections as one may have")) {
			t.Errorf("it was told %+v", v)
		}
		synctest.Wait()
		log, _ := w.Journal.Connections()
		if r := log[len(log)-1].Entry.Common.Reason; r.Type != api.ReasonLimit || !strings.HasPrefix(r.Words, fmt.Sprintf("the Session has %d live connections, and %[1]d is the most", perSession)) {
			t.Errorf("reason = %+v", r)
		}
		speak("eve", "svc.default")
		w.Decider.Set(func(d *Decider) { d.limits.ConnectionsPerSession = perSession + 1 }, session("eve"))
		speak("ann", "svc.default")
		w.Decider.Set(func(d *Decider) { d.limits.ConnectionsPerSession = 0 }, session("eve"))
		wantReset(t, w.Connect("ann"))
		first.Reset("done")
		synctest.Wait()
		wantReset(t, w.Connect("ann")) // one was beyond
	})
	in("a Service has no more connections than it may, and keeps those that it has", func(t *testing.T, w *World) {
		c, r := open(t, w) // without a limit
		w.Decider.Set(func(d *Decider) { d.limits.Connections, d.users["eve"] = 1, true }, session("ann"))
		wantReset(t, w.Connect("eve"))
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Errorf("read %q, %v", got, err)
		}
		if n := w.figures("svc.default").Live; n != 1 {
			t.Errorf("%d connections are counted", n)
		}
	})
	in("callers without a name are counted by their address", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.public, d.limits.ConnectionsPerSession = new(true), 1 })
		for _, ip := range []string{"192.0.2.9", "192.0.2.10"} {
			c := w.ConnectFrom(ip)
			if got, err := s.Say(c, bufio.NewReader(c), "hello"); err != nil || got != "hello" {
				t.Errorf("%s: read %q, %v", ip, got, err)
			}
		}
		c := w.ConnectFrom("192.0.2.9")
		wantReset(t, c)
		if v, ok := c.Verdict(); ok && v != (api.Verdict{Code: api.VerdictDenied}) {
			t.Errorf("it was told %+v", v)
		}
	})
	in("what came to nothing is not counted", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.limits.Connections = 1 })
		for _, fail := range []func(error){w.failDials, w.Journal.Fail} {
			fail(errors.New("no"))
			for range 3 {
				c := w.Connect("ann")
				go io.WriteString(c, "hello\n")
				wantReset(t, c)
				synctest.Wait()
			}
			fail(nil)
		}
		if n := w.figures("svc.default").Live; n != 0 {
			t.Errorf("%d connections are counted", n)
		}
		open(t, w)
	})
	if s.Mode.Opaque { // the others look after themselves
		in("the limits of the decision bound what is carried, and follow it", func(t *testing.T, w *World) {
			w.Decider.Set(func(d *Decider) { d.limits.Idle = time.Hour })
			c, r := open(t, w)
			time.Sleep(59 * time.Minute)
			if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
				t.Fatalf("within the limit: read %q, %v", got, err)
			}
			begin := time.Now()
			w.Decider.Set(func(d *Decider) { d.limits.Idle = time.Minute }, session("ann"))
			wantReset(t, c)
			if d := time.Since(begin); d < time.Minute || d > time.Minute+time.Second {
				t.Errorf("cut after %v", d)
			}
			log := wantLog(t, w, api.LogStart, api.LogEnd)
			if tcp := log[1].Entry.Info.Flow(); tcp.CloseReason != string(relay.IdleTimeout) {
				t.Errorf("END = %+v", tcp)
			}
		})
	}
	runPending(t, s)
	runWays(t, s)
	if s.isTCP() {
		runRoutes(t, s)
	}
	in("stopping lets what is live go on for the grace, and nobody new in", func(t *testing.T, _ *World) {
		w := s.start(t, time.Minute)
		w.Decider.Set(func(d *Decider) { d.users["eve"], d.users["joe"] = true, true })
		c, r := open(t, w)
		revoked, leaves := w.Connect("eve"), w.Connect("joe")
		s.Say(revoked, bufio.NewReader(revoked), "hello")
		s.Say(leaves, bufio.NewReader(leaves), "hello")
		begin := time.Now()
		w.stop()
		synctest.Wait()
		wantReset(t, w.Connect("ann"))
		time.Sleep(40 * time.Second) // longer than a lease
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Fatalf("within the grace: read %q, %v", got, err)
		}
		w.Decider.Set(func(d *Decider) { d.users["eve"] = false }, session("eve"))
		wantReset(t, revoked)
		leaves.Reset("done")
		wantReset(t, c)
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("cut %v after the end was asked for", d)
		}
		w.Stop()
		if n := w.Gate.Stats(); n.Live != 0 || n.Held != 0 || n.TurnedAway != 1 || n.Ends[relay.Drained] != 1 || n.Ends[relay.Revoked] != 1 {
			t.Errorf("stats = %+v", n)
		}
		_, types := w.Journal.Connections()
		ends := 0
		for _, typ := range types {
			if typ == api.LogEnd {
				ends++
			}
		}
		if ends != 3 {
			t.Errorf("log = %v", types)
		}
	})
	in("stopping does not wait longer than for the last one", func(t *testing.T, _ *World) {
		w := s.start(t, time.Hour)
		c, _ := open(t, w)
		begin := time.Now()
		w.stop()
		time.Sleep(time.Second)
		c.Reset("done")
		w.Stop()
		if d := time.Since(begin); d != time.Second {
			t.Errorf("it took %v", d)
		}
	})
	in("a slow log delays no cut", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		w.Decider.Set(func(d *Decider) { d.users["eve"] = true })
		other := w.Connect("eve")
		s.Say(other, bufio.NewReader(other), "hello")
		w.Journal.Fail(errors.New("disk full"))
		c.Reset("done") // its END is owed, and will be tried again and again
		synctest.Wait()
		w.Journal.Delay(20 * time.Second)
		time.Sleep(5 * time.Second)
		begin := time.Now()
		w.Decider.Set(func(d *Decider) { d.users["eve"] = false }, session("eve"))
		wantReset(t, other)
		if d := time.Since(begin); d != 0 {
			t.Errorf("it took %v", d)
		}
		w.Journal.Fail(nil)
		w.Journal.Delay(0)
		time.Sleep(time.Minute)
		wantLog(t, w, api.LogStart, api.LogStart, api.LogEnd, api.LogEnd)
		if n := w.Gate.Stats().Owed; n != 0 {
			t.Errorf("%d records are owed", n)
		}
	})
	in("figures", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		open(t, w)
		wantReset(t, w.Connect("bob"))
		w.Decider.Set(func(*Decider) {}, session("ann"))
		synctest.Wait()
		c.Reset("done")
		synctest.Wait()
		n := w.Gate.Stats()
		if n.Live != 1 || n.Held < 1 || n.Arrivals != 3 || n.Renewals != 2 || n.Received < 6 || n.Sent < 6 ||
			n.Decisions[proxy.Decided{Effect: api.Allow, Reason: api.ReasonPolicyMatch}] < 2 || n.Decisions[proxy.Decided{Effect: api.Deny, Reason: api.ReasonPolicyMatch}] != 1 {
			t.Errorf("stats = %+v", n)
		}
		if f := w.figures("svc.default"); f.Live != 1 || len(f.Ends) != 1 || f.Received != n.Received || f.Sent != n.Sent {
			t.Errorf("figures = %+v", f)
		}
		w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann"))
		synctest.Wait()
		if n := w.Gate.Stats(); n.Live != 0 || n.Held != 0 || n.Cuts[api.ReasonPolicyMatch] != 1 || n.Ends[relay.Revoked] != 1 {
			t.Errorf("after a cut: stats = %+v", n)
		}
		if f := w.figures("svc.default"); f.Live != 0 || f.Ends[relay.Revoked] != 1 {
			t.Errorf("after a cut: figures = %+v", f)
		}
	})
	in("the Service is told to who dials", func(t *testing.T, w *World) {
		open(t, w)
		w.mu.Lock()
		defer w.mu.Unlock()
		service := api.Key{Group: api.GroupCore, Kind: api.KindService, Name: "svc.default"}
		if to := w.dialled; to.Service != service.Name || to.Object != service || to.Config.Upstream.URL != "tcp://upstream:1" ||
			to.Facts.IP != "192.0.2.1" || to.ConnectionID != w.Gate.List()[0].ID {
			t.Errorf("dialled for %+v", to)
		}
	})
	in("what there is to tell of the way is in the END", func(t *testing.T, w *World) {
		for _, report := range []api.DialReport{{}, {Retries: 2}, {Verified: new(false), Words: "unknown authority"}, {Verified: new(true)}} {
			w.mu.Lock()
			w.report = report
			w.mu.Unlock()
			c, _ := open(t, w)
			c.Reset("done")
			synctest.Wait()
			recs, _ := w.Journal.Connections()
			start, end := recs[len(recs)-2].Entry.Common.Route, recs[len(recs)-1].Entry.Common.Route
			if start != nil || (end == nil) != (report == (api.DialReport{})) {
				t.Errorf("of %+v: START says %+v and END %+v", report, start, end)
			}
			if want := (api.LogRoute{Retries: report.Retries, UpstreamVerified: report.Verified, UpstreamWords: report.Words}); end != nil && *end != want {
				t.Errorf("END says %+v, want %+v", end, want)
			}
		}
	})
	in("what there is to tell of a way that led nowhere is in the END", func(t *testing.T, w *World) {
		w.mu.Lock()
		w.report = api.DialReport{Retries: 1}
		w.mu.Unlock()
		w.failDials(errors.New("connection refused"))
		c := w.Connect("ann")
		go io.WriteString(c, "hello\n")
		wantReset(t, c)
		if r := wantLog(t, w, api.LogStart, api.LogEnd)[1].Entry.Common.Route; r == nil || r.Retries != 1 {
			t.Errorf("END says %+v", r)
		}
	})
	in("a config that changed, and keeps its name, touches nobody", func(t *testing.T, w *World) {
		c, r := open(t, w)
		w.Decider.Set(func(d *Decider) { d.parent = "other" }, session("ann"))
		synctest.Wait()
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Errorf("read %q, %v", got, err)
		}
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
	in("connections are no flows, also while they begin", func(t *testing.T, w *World) {
		var draining sync.WaitGroup
		draining.Go(func() {
			for range 1000 {
				w.Gate.DrainFlows("memory")
			}
		})
		open(t, w)
		draining.Wait()
		if len(w.Gate.List()) != 1 {
			t.Error("a connection was cut as a flow")
		}
	})
	in("the end of a tunnel ends what came by it", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		if w.Gate.DrainTunnel("another"); len(w.Gate.List()) != 1 {
			t.Fatal("what came by another tunnel was cut")
		}
		w.Gate.DrainTunnel("memory")
		wantReset(t, c)
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.Flow(); tcp.CloseReason != string(relay.Drained) {
			t.Errorf("END = %+v", tcp)
		}
	})
	in("a client that leaves its tunnel leaves no connection", func(t *testing.T, w *World) {
		ann, _ := open(t, w)
		w.Gate.LeaveTunnel("ann", "another")
		w.Gate.LeaveTunnel("somebody", "memory")
		if len(w.Gate.List()) != 1 {
			t.Fatal("what is another's, or came by another tunnel, was cut")
		}
		w.Gate.LeaveTunnel("ann", "memory")
		wantReset(t, ann)
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.Flow(); tcp.CloseReason != string(relay.ClientReset) {
			t.Errorf("END = %+v", tcp)
		}
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
		if tcp := log[1].Entry.Info.Flow(); tcp.CloseReason != string(relay.Revoked) || tcp.Error != "ended by root" {
			t.Errorf("END = %+v", tcp)
		}
	})
	in("stopping resets what is live and writes its END", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		w.Stop()
		wantReset(t, c)
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.Flow(); tcp.CloseReason != string(relay.Drained) {
			t.Errorf("END = %+v", tcp)
		}
		wantReset(t, w.Connect("ann"))
		if turned := w.Turned(); len(turned) != 1 || turned[0].Reason != api.ReasonDrained || turned[0].Facts.IP != "192.0.2.1" {
			t.Errorf("refusals = %+v", turned)
		}
	})
	in("a client that goes away ends the upstream", func(t *testing.T, w *World) {
		c, _ := open(t, w)
		c.Reset("gone")
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if tcp := log[1].Entry.Info.Flow(); s.Mode.Opaque && tcp.CloseReason != string(relay.ClientReset) {
			t.Errorf("END = %+v", tcp)
		}
	})
}
