package proxytest

import (
	"bufio"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/relay"
)

// runWays checks what is the same for connections that a goroutine runs and for those
// that are carried in line, and what only the latter have.
func runWays(t *testing.T, s Subject) {
	in := func(name string, f func(*testing.T, *World)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, s.start(t, time.Second)) })
		})
	}
	open := func(t *testing.T, w *World) (*Client, *bufio.Reader) {
		t.Helper()
		c := w.Connect("ann")
		r := bufio.NewReader(c)
		if got, err := s.Say(c, r, "hello"); err != nil || got != "hello" {
			t.Fatalf("an allowed client read %q, %v", got, err)
		}
		return c, r
	}
	ends := func(t *testing.T, w *World) []*api.AccessLog {
		t.Helper()
		synctest.Wait()
		recs, types := w.Journal.Connections()
		if !slices.Equal(types, []api.LogType{api.LogStart, api.LogEnd}) {
			t.Fatalf("log = %v", types)
		}
		return recs
	}
	wantReset := func(t *testing.T, c io.Reader) {
		t.Helper()
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the client saw %v, want a reset", err)
		}
	}
	service := api.Key{Group: api.GroupCore, Kind: api.KindService, Name: "svc.default"}
	// at is where the only live connection leads.
	at := func(w *World) netip.AddrPort {
		if s.inLine {
			return upstreamAt(0)
		}
		return netip.AddrPort{} // a pipe has none
	}

	// Every way to end a connection from outside, in every state that it can be in.
	unhealthy := func(w *World) int {
		return w.Gate.Shun(service, api.DefaultConfig, at(w).String(), relay.Unhealthy, "it does not answer")
	}
	cuts := []struct {
		name   string
		do     func(*World)
		reason relay.Reason
	}{
		{"revoked", func(w *World) { w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann")) }, relay.Revoked},
		{"killed", func(w *World) {
			for _, c := range w.Gate.List() {
				w.Gate.Kill(c.ID, "root")
			}
		}, relay.Revoked},
		{"drained", func(w *World) { w.stop(); time.Sleep(2 * time.Second) }, relay.Drained},
		{"unhealthy", func(w *World) { unhealthy(w); w.open() }, relay.Unhealthy},
		{"all at once", func(w *World) {
			id := w.Gate.List()[0].ID
			w.Gate.Kill(id, "root")
			unhealthy(w)
			w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann"))
			w.stop()
		}, relay.Revoked},
	}
	for _, cut := range cuts {
		if !s.inLine && cut.reason == relay.Unhealthy {
			continue // the upstream has no address: package proxy tests it
		}
		in("relaying: "+cut.name, func(t *testing.T, w *World) {
			c, _ := open(t, w)
			cut.do(w)
			wantReset(t, c)
			if tcp := ends(t, w)[1].Entry.Info.Flow(); tcp.CloseReason != string(cut.reason) {
				t.Errorf("END = %+v", tcp)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.ends) != 1 || !errors.Is(w.ends[0], syscall.ECONNRESET) {
				t.Errorf("the upstream saw %v", w.ends)
			}
		})
		in("connecting: "+cut.name, func(t *testing.T, w *World) {
			w.dialGate = make(chan struct{})
			c := w.Connect("ann")
			go io.WriteString(c, "hello\n")
			synctest.Wait()
			cut.do(w)
			wantReset(t, c)
			if tcp := ends(t, w)[1].Entry.Info.Flow(); tcp.CloseReason != string(cut.reason) || *tcp.ReceivedBytes != 0 {
				t.Errorf("END = %+v", tcp)
			}
		})
	}
	in("the place at the upstream is given back, with what there is to tell of it", func(t *testing.T, w *World) {
		last := func() release {
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			p := w.holds[len(w.holds)-1]
			if len(p.released) == 0 {
				return release{-1, false}
			}
			return p.released[0]
		}
		c, _ := open(t, w)
		if got := last(); got.sent != -1 {
			t.Errorf("while it is live: %+v", got)
		}
		c.Reset("done")
		if got := last(); s.Mode.Opaque && got != (release{6, false}) {
			t.Errorf("a client that goes: %+v", got)
		}
		c, _ = open(t, w)
		w.Gate.Kill(w.Gate.List()[0].ID, "root")
		if got := last(); s.Mode.Opaque && got != (release{6, false}) {
			t.Errorf("a cut: %+v", got)
		}
		wantReset(t, c)
		w.breaks = true
		c, _ = open(t, w)
		s.Say(c, bufio.NewReader(c), "break")
		wantReset(t, c)
		if got := last(); got != (release{6, true}) {
			t.Errorf("an upstream that breaks off: %+v", got)
		}
	})
	if !s.Mode.Opaque {
		return
	}
	in("limits on bytes are those of the decision", func(t *testing.T, w *World) {
		want := relay.Limits{Idle: time.Hour, HalfClose: time.Minute, Duration: 2 * time.Hour, Bytes: 1 << 30, Upload: 1 << 20, Download: 2 << 20}
		w.Decider.Set(func(d *Decider) {
			d.limits = api.Limits{Idle: want.Idle, HalfClose: want.HalfClose, Duration: want.Duration, Bytes: want.Bytes, Upload: want.Upload, Download: want.Download}
		})
		open(t, w)
		w.Decider.Set(func(d *Decider) { d.limits.Bytes, d.limits.Upload = 1<<40, 0 }, session("ann"))
		synctest.Wait()
		more := want
		more.Bytes, more.Upload = 1<<40, 0
		w.mu.Lock()
		defer w.mu.Unlock()
		if !slices.Equal(w.limits, []relay.Limits{want, more}) {
			t.Errorf("the engine was given %+v", w.limits)
		}
	})
	if s.isTCP() {
		in("limits on bytes are those of the table", func(t *testing.T, w *World) {
			c := w.ConnectBy(routed("db", api.Limits{Bytes: 100, Upload: 1 << 20, Download: 2 << 20}), "192.0.2.9")
			s.Say(c, bufio.NewReader(c), "hello")
			w.mu.Lock()
			defer w.mu.Unlock()
			if !slices.Equal(w.limits, []relay.Limits{{Bytes: 100, Upload: 1 << 20, Download: 2 << 20}}) {
				t.Errorf("the engine was given %+v", w.limits)
			}
		})
	}
	in("a START that cannot be kept lets no byte through, and there is no END", func(t *testing.T, w *World) {
		w.Journal.FailKeep(errors.New("disk full"))
		c := w.Connect("ann")
		go io.WriteString(c, "hello\n")
		wantReset(t, c)
		if v, ok := c.Verdict(); ok && (v.Code != api.VerdictUnavailable || v.Words == "") {
			t.Errorf("it was told %+v", v)
		}
		synctest.Wait()
		if n := w.Gate.Stats(); n.Live != 0 || n.Held != 0 || n.Unlogged != 1 || len(n.Ends) != 0 || n.Decisions != nil || n.Received != 0 {
			t.Errorf("stats = %+v", n)
		}
		if f := w.figures("svc.default"); f.Live != 0 || len(f.Ends) != 0 {
			t.Errorf("figures = %+v", f)
		}
		w.Journal.FailKeep(nil)
		time.Sleep(time.Second)
		if recs, _ := w.Journal.Connections(); len(recs) != 0 {
			t.Errorf("log = %+v", recs[0].Entry.Info.Flow())
		}
		for _, err := range w.ends {
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the upstream saw %v", err)
			}
		}
		open(t, w)
	})
	if s.inLine {
		runInLine(t, s, in)
	}
}

// runInLine checks what only connections have that are carried in line.
func runInLine(t *testing.T, s Subject, in func(string, func(*testing.T, *World))) {
	serve := func(t *testing.T, w *World) *Client {
		t.Helper()
		c := w.Connect("ann")
		if got, err := s.Say(c, bufio.NewReader(c), "hello"); err != nil || got != "hello" {
			t.Fatalf("an allowed client read %q, %v", got, err)
		}
		return c
	}
	last := func(w *World) *api.AccessLog {
		synctest.Wait()
		recs := w.Journal.Records()
		return recs[len(recs)-1]
	}
	count := func(t *testing.T, w *World, dialled, reached int) {
		t.Helper()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.dials != dialled || w.reached != reached {
			t.Errorf("%d were dialled, and %d connected by the engine", w.dials, w.reached)
		}
	}
	const unanswered = "the Service does not answer; its administrator finds the reason in the log"
	tells := func(t *testing.T, c *Client, code api.VerdictCode, words string) {
		t.Helper()
		if v, ok := c.Verdict(); ok && (v.Code != code || v.Words != words || v.DecisionID == "") {
			t.Errorf("it was told %+v", v)
		}
	}
	in("Arrive decides and begins START before it returns", func(t *testing.T, w *World) {
		w.dialGate = make(chan struct{})
		w.Connect("ann")
		if n := w.Gate.Stats(); n.Live != 1 || w.Journal.Begun() != 1 || len(w.Gate.List()) != 1 {
			t.Errorf("stats = %+v", n)
		}
		c := w.Connect("bob")
		if n := w.Gate.Stats(); n.Decisions[denied] != 1 {
			t.Errorf("stats = %+v", n)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("bob saw %v", err)
		}
		close(w.dialGate)
		synctest.Wait()
		count(t, w, 0, 1)
	})
	in("the next address is tried, and told of", func(t *testing.T, w *World) {
		w.addresses, w.failing = 3, 2
		c := serve(t, w)
		tells(t, c, api.VerdictOK, "")
		if live := w.Gate.List(); live[0].Upstream != upstreamAt(2).String() {
			t.Errorf("live = %+v", live)
		}
		if n := w.Gate.Shun(api.Key{Group: api.GroupCore, Kind: api.KindService, Name: "svc.default"}, api.DefaultConfig, upstreamAt(1).String(), relay.Unhealthy, "slow"); n != 0 {
			t.Errorf("%d connections were cut that lead elsewhere", n)
		}
		c.Reset("done")
		if e := last(w).Entry.Common; e.Upstream != upstreamAt(2).String() || e.Route.Retries != 2 {
			t.Errorf("END = %+v, %+v", e, e.Route)
		}
	})
	in("an address that becomes unhealthy while it is connected to is left for the next", func(t *testing.T, w *World) {
		w.addresses, w.dialGate = 2, make(chan struct{})
		c := w.Connect("ann")
		synctest.Wait()
		if n := w.Gate.Shun(api.Key{Group: api.GroupCore, Kind: api.KindService, Name: "svc.default"}, api.DefaultConfig, upstreamAt(0).String(), relay.Unhealthy, "down"); n != 0 {
			t.Errorf("%d were cut", n)
		}
		time.Sleep(5*time.Second + time.Millisecond) // it does not answer
		w.open()
		if got, err := s.Say(c, bufio.NewReader(c), "hello"); err != nil || got != "hello" {
			t.Errorf("read %q, %v", got, err)
		}
	})
	in("there is no address left", func(t *testing.T, w *World) {
		w.addresses, w.failing = 2, 2
		c := w.Connect("ann")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("it saw %v", err)
		}
		tells(t, c, api.VerdictUnavailable, unanswered)
		if e := last(w).Entry; e.Info.Flow().CloseReason != string(relay.DialFailed) || e.Info.Flow().Error != "connection refused" || e.Common.Upstream != upstreamAt(1).String() {
			t.Errorf("END = %+v", e.Info.Flow())
		}
	})
	in("nobody answers in time", func(t *testing.T, w *World) {
		w.dialGate = make(chan struct{})
		c := w.Connect("ann")
		begin := time.Now()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || time.Since(begin) != 5*time.Second {
			t.Errorf("it saw %v after %v", err, time.Since(begin))
		}
		tells(t, c, api.VerdictUnavailable, unanswered)
		if tcp := last(w).Entry.Info.Flow(); tcp.CloseReason != string(relay.DialTimeout) {
			t.Errorf("END = %+v", tcp)
		}
	})
	in("a preface goes first", func(t *testing.T, w *World) {
		w.preface = "from "
		c := w.Connect("ann")
		r := bufio.NewReader(c)
		io.WriteString(c, "hello\n")
		if got, err := r.ReadString('\n'); err != nil || got != "from 192.0.2.250:50000\n" {
			t.Errorf("the upstream was sent %q, %v", got, err)
		}
	})
	in("what has no Plan is dialled", func(t *testing.T, w *World) {
		w.noPlan = true
		serve(t, w).Reset("done")
		count(t, w, 1, 0)
		if e := last(w).Entry; e.Info.Flow().CloseReason != string(relay.ClientReset) {
			t.Errorf("END = %+v", e.Info.Flow())
		}
	})
	in("what has no Plan is cut while it is dialled", func(t *testing.T, w *World) {
		w.noPlan, w.dialGate = true, make(chan struct{})
		c := w.Connect("ann")
		synctest.Wait()
		w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann"))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("it saw %v", err)
		}
		if tcp := last(w).Entry.Info.Flow(); tcp.CloseReason != string(relay.Revoked) {
			t.Errorf("END = %+v", tcp)
		}
	})
	in("what the engine does not take is dialled", func(t *testing.T, w *World) {
		w.refusesSockets = true
		serve(t, w)
		count(t, w, 1, 0)
	})
	in("a log that is slow is not waited for in line", func(t *testing.T, w *World) {
		w.Journal.SetSlow(true)
		w.Journal.Delay(time.Second)
		begin := time.Now()
		w.Connect("eve") // whom nobody knows
		w.Connect("ann")
		if d := time.Since(begin); d != 0 {
			t.Errorf("Arrive took %v", d)
		}
		time.Sleep(3 * time.Second)
		count(t, w, 1, 0)
	})
	in("whose turn comes later is in the place that he got when he came", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) {
			d.limits = api.Limits{Connections: 1, Pending: 2, PendingTimeout: time.Hour}
		})
		first := serve(t, w)
		second, third := w.Connect("ann"), w.Connect("ann") // one right after the other
		if n := w.Gate.Stats().Waiting; n != 2 {
			t.Errorf("%d wait", n)
		}
		for i, c := range []*Client{second, third} {
			first.Reset("done")
			if got, err := s.Say(c, bufio.NewReader(c), "hello"); err != nil || got != "hello" {
				t.Fatalf("number %d read %q, %v", i+2, got, err)
			}
			if n := w.Gate.Stats().Waiting; n != 1-i {
				t.Errorf("%d wait", n)
			}
			first = c
		}
		count(t, w, 2, 1)
	})
	in("a cut between the decision and the connection", func(t *testing.T, w *World) {
		for range 200 {
			w.Decider.Set(func(d *Decider) { d.users["ann"] = true }, session("ann"))
			synctest.Wait()
			c := w.Connect("ann")
			w.Decider.Set(func(d *Decider) { d.users["ann"] = false }, session("ann"))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("it saw %v", err)
			}
		}
		synctest.Wait()
		starts := map[string]int{}
		for _, rec := range w.Journal.Records() {
			switch tcp := rec.Entry.Info.Flow(); tcp.Type {
			case api.LogStart:
				starts[rec.Entry.Common.ConnectionID]++
			case api.LogEnd:
				starts[rec.Entry.Common.ConnectionID]--
				if tcp.CloseReason != string(relay.Revoked) {
					t.Errorf("END = %+v", tcp)
				}
			}
		}
		for id, n := range starts {
			if n != 0 {
				t.Errorf("%s has %d STARTs more than ENDs", id, n)
			}
		}
		if len(starts) == 0 || w.Gate.Stats().Live != 0 {
			t.Errorf("%d connections are in the log, and %d are live", len(starts), w.Gate.Stats().Live)
		}
	})
	in("who it is is told to who connects", func(t *testing.T, w *World) {
		serve(t, w)
		if to := w.dialled; to.Service != "svc.default" || to.Config.Upstream.URL != "tcp://upstream:1" || to.Facts.IP != "192.0.2.1" || !strings.Contains(to.ConnectionID, "-") {
			t.Errorf("it was told %+v", to)
		}
	})
}
