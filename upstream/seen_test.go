package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
)

// A condition that changes tells since when, and not everything is remembered.
func TestConditionChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s conditions
		k := api.Key{Name: "a"}
		start := time.Now()
		for i, step := range []struct {
			ok    bool
			words string
			since int // minutes
		}{{true, "", 0}, {true, "", 0}, {false, "x", 2}, {false, "y", 2}, {true, "", 4}} {
			s.set(k, "X", step.ok, "R", step.words)
			c := s.get(k)
			if c.Message != step.words || !c.Since.Equal(start.Add(time.Duration(step.since)*time.Minute)) || (c.Status == "True") != step.ok || c.Type != "X" || c.Reason != "R" {
				t.Errorf("step %d: %+v", i, c)
			}
			time.Sleep(time.Minute)
		}
		row := s.set(k, "X", true, "R", "")
		for i := range 2 * maxSeen {
			s.set(api.Key{Name: fmt.Sprint(i)}, "X", true, "R", "")
		}
		if n := len(s.rows); n != maxSeen {
			t.Errorf("%d Objects are remembered", n)
		}
		if known := s.get(k) != nil; known != row.set("True", "R", "") {
			t.Errorf("it is remembered: %v", known)
		}
	})
}

// Whoever looks at an Object sees what came of the last dial, and since when.
func TestReachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDialer()
		answer := error(syscall.ECONNREFUSED)
		d.connect = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			if answer == context.Canceled { // the upstream hangs
				<-ctx.Done()
				return nil, ctx.Err()
			}
			if answer != nil {
				return nil, answer
			}
			c, _ := net.Pipe()
			return c, nil
		}
		to := mapping("80", nil)
		to.Config.TLS = nil
		d.Hosts = named("db.corp", "192.0.2.1")
		if c := d.Reachable(to.Object); c != nil {
			t.Errorf("before all: %+v", c)
		}
		start := time.Now()
		for i, step := range []struct {
			answer error
			status string
			words  string
			since  int // minutes
		}{
			{syscall.ECONNREFUSED, "False", "nothing listens there; start the upstream, or correct service", 0},
			{syscall.EHOSTUNREACH, "False", "no route", 0},
			{nil, "True", "", 2},
			{context.Canceled, "True", "", 2}, // the client has gone
			{syscall.ECONNREFUSED, "False", "db.corp:80: ", 4},
		} {
			answer = step.answer
			ctx, cancel := context.WithCancel(t.Context())
			if answer == context.Canceled {
				time.AfterFunc(time.Millisecond, cancel)
			}
			if conn, _, err := d.Dial(ctx, to); (err == nil) != (answer == nil) {
				t.Fatal(err)
			} else if err == nil {
				conn.Close()
			}
			cancel()
			c := d.Reachable(to.Object)
			if c == nil || c.Type != api.ConditionUpstreamReachable || c.Status != step.status || !strings.Contains(c.Message, step.words) || (step.words == "") != (c.Message == "") ||
				c.Since.Sub(start).Round(time.Minute) != time.Duration(step.since)*time.Minute {
				t.Errorf("step %d: %+v", i, c)
			}
			time.Sleep(time.Minute)
		}
		if c := d.Reachable(api.Key{Name: "another"}); c != nil {
			t.Errorf("of another Object: %+v", c)
		}
	})
}
