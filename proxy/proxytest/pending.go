package proxytest

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
)

// runPending checks what becomes of connections that wait for others to end.
func runPending(t *testing.T, s Subject) {
	limits := api.Limits{Connections: 1, Pending: 2, PendingTimeout: 5 * time.Second}
	in := func(name string, f func(*testing.T, *World)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := s.start(t, time.Minute)
				w.Decider.Set(func(d *Decider) {
					d.limits = limits
					for _, u := range []string{"eve", "joe", "kim"} {
						d.users[u] = true
					}
				})
				f(t, w)
			})
		})
	}
	// come lets somebody connect and say hello; it returns what tells of the answer.
	come := func(w *World, who string) (*Client, chan error) {
		c, served := w.Connect(who), make(chan error, 1)
		go func() {
			got, err := s.Say(c, bufio.NewReader(c), "hello")
			if err == nil && got != "hello" {
				err = errors.New("read " + got)
			}
			served <- err
		}()
		synctest.Wait()
		return c, served
	}
	// is reports what has become of one who came: "served", "refused" or "waits".
	is := func(served chan error) string {
		synctest.Wait()
		select {
		case err := <-served:
			served <- err
			if err == nil {
				return "served"
			} else if errors.Is(err, syscall.ECONNRESET) {
				return "refused"
			}
			return err.Error()
		default:
			return "waits"
		}
	}
	want := func(t *testing.T, served chan error, want string) {
		t.Helper()
		if got := is(served); got != want {
			t.Errorf("it is: %s, want: %s", got, want)
		}
	}
	denial := func(t *testing.T, w *World) *api.AccessLog {
		t.Helper()
		synctest.Wait()
		recs, _ := w.Journal.Connections()
		if last := recs[len(recs)-1]; last.Entry.Info.Flow().Type == api.LogDenied {
			return last
		}
		t.Fatalf("the last record is not DENIED: %+v", recs[len(recs)-1].Entry.Info.Flow())
		return nil
	}

	in("one connection too many waits for its turn", func(t *testing.T, w *World) {
		first, a := come(w, "ann")
		want(t, a, "served")
		_, b := come(w, "eve")
		time.Sleep(2 * time.Second)
		want(t, b, "waits")
		if n := w.Gate.Stats(); n.Waiting != 1 || n.Live != 1 || w.Dials() != 1 || len(w.Gate.List()) != 1 {
			t.Errorf("stats = %+v", n)
		}
		first.Reset("done")
		want(t, b, "served")
		if n := w.Gate.Stats(); n.Waiting != 0 || n.Live != 1 {
			t.Errorf("stats = %+v", n)
		}
	})
	in("those that wait come in order, one for each place, and nobody overtakes them", func(t *testing.T, w *World) {
		first, _ := come(w, "ann")
		second, b := come(w, "eve")
		_, c := come(w, "joe")
		first.Reset("done")
		want(t, b, "served")
		_, d := come(w, "kim")
		want(t, b, "served")
		want(t, c, "waits")
		want(t, d, "waits")
		second.Reset("done")
		want(t, c, "served")
		want(t, d, "waits")
	})
	in("no more wait than may", func(t *testing.T, w *World) {
		come(w, "ann")
		come(w, "eve")
		come(w, "joe")
		c, d := come(w, "kim")
		want(t, d, "refused")
		if r := denial(t, w).Entry.Common.Reason; r.Type != api.ReasonLimit || !strings.Contains(r.Words, "spec.limits.connections is 1; 2 wait of at most 2") {
			t.Errorf("reason = %+v", r)
		}
		if v, ok := c.Verdict(); ok && (v.Code != api.VerdictUnavailable || !strings.Contains(v.Words, "as many connections")) {
			t.Errorf("it was told %+v", v)
		}
	})
	in("nobody waits longer than he may, and he leaves his place in the queue", func(t *testing.T, w *World) {
		first, _ := come(w, "ann")
		waits, b := come(w, "eve")
		time.Sleep(3 * time.Second)
		_, c := come(w, "joe")
		time.Sleep(2*time.Second - time.Millisecond)
		want(t, b, "waits")
		time.Sleep(time.Millisecond)
		want(t, b, "refused")
		want(t, c, "waits")
		if r := denial(t, w).Entry.Common.Reason; r.Type != api.ReasonLimit || !strings.HasPrefix(r.Words, "waited 5s in vain: the Service has 1 live connection") {
			t.Errorf("reason = %+v", r)
		}
		if v, ok := waits.Verdict(); ok && v.Code != api.VerdictUnavailable {
			t.Errorf("it was told %+v", v)
		}
		first.Reset("done")
		want(t, c, "served")
	})
	in("whose turn has come is decided about anew, and whoever may not makes room", func(t *testing.T, w *World) {
		first, _ := come(w, "ann")
		_, b := come(w, "eve")
		_, c := come(w, "joe")
		w.Decider.Set(func(d *Decider) { d.users["eve"] = false }, session("eve"))
		want(t, b, "waits")
		first.Reset("done")
		want(t, b, "refused")
		if r := denialOf(t, w, "eve"); r.Type != api.ReasonPolicyMatch {
			t.Errorf("reason = %+v", r)
		}
		want(t, c, "served")
	})
	in("whose client has gone makes room", func(t *testing.T, w *World) {
		first, _ := come(w, "ann")
		gone, _ := come(w, "eve")
		_, c := come(w, "joe")
		gone.Reset("gone")
		first.Reset("done")
		want(t, c, "served")
	})
	in("a higher limit lets those in who wait", func(t *testing.T, w *World) {
		come(w, "ann")
		_, b := come(w, "eve")
		_, c := come(w, "joe")
		w.Decider.Set(func(d *Decider) { d.limits.Connections = 2 }, session("ann"))
		want(t, b, "served")
		want(t, c, "waits")
		w.Decider.Set(func(d *Decider) { d.limits = api.Limits{} }, session("ann"))
		want(t, c, "served")
	})
	in("who has as many as he may does not wait for another", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.limits.ConnectionsPerSession = 1 })
		come(w, "ann")
		_, b := come(w, "ann")
		want(t, b, "refused")
	})
	in("nobody waits for a server that stops", func(t *testing.T, w *World) {
		first, _ := come(w, "ann")
		_, b := come(w, "eve")
		w.stop()
		want(t, b, "refused")
		if r := denial(t, w).Entry.Common.Reason; r.Type != api.ReasonDrained {
			t.Errorf("reason = %+v", r)
		}
		first.Reset("done")
	})
	in("a log that fails when the turn has come makes room", func(t *testing.T, w *World) {
		first, _ := come(w, "ann")
		_, b := come(w, "eve")
		w.Journal.Fail(errors.New("disk full"))
		first.Reset("done")
		want(t, b, "refused")
		w.Journal.Fail(nil)
		time.Sleep(2 * time.Second)
		_, c := come(w, "joe")
		want(t, c, "served")
	})
	if s.isTCP() {
		in("a connection to a foreign Object waits too", func(t *testing.T, w *World) {
			first := w.ConnectBy(routed("db", limits), "192.0.2.9")
			synctest.Wait()
			c := w.ConnectBy(routed("db", limits), "192.0.2.10")
			other := w.ConnectBy(routed("other", limits), "192.0.2.10")
			synctest.Wait()
			if n := w.Gate.Stats(); n.Waiting != 1 || n.Live != 2 {
				t.Errorf("stats = %+v", n)
			}
			first.Reset("done")
			if got, err := s.Say(c, bufio.NewReader(c), "hello"); err != nil || got != "hello" {
				t.Errorf("read %q, %v", got, err)
			}
			late := w.ConnectBy(routed("db", limits), "192.0.2.11")
			if _, err := io.Copy(io.Discard, late); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the late one saw %v", err)
			}
			if r := denial(t, w).Entry.Common.Reason; !strings.Contains(r.Words, "the TCPMapping has 1 live connection, and its limit of connections is 1") {
				t.Errorf("reason = %+v", r)
			}
			other.Reset("done")
		})
	}
}

// denialOf returns why the Session of that uid was refused.
func denialOf(t *testing.T, w *World, uid string) *api.LogReason {
	t.Helper()
	recs, _ := w.Journal.Connections()
	for _, rec := range recs {
		if s := rec.Entry.Common.SessionRef; s != nil && s.UID == uid && rec.Entry.Info.Flow().Type == api.LogDenied {
			return rec.Entry.Common.Reason
		}
	}
	t.Fatalf("%s was not refused", uid)
	return nil
}
