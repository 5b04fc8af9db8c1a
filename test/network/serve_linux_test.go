package network_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"cardea/test/cluster"
	"cardea/test/network/lab"
)

// failover is how long new connections may fail after a device that serves has died.
const failover = 2 * time.Second

// served is a Service at port 7 whose upstream are the Sessions of devices, and the
// right of those to serve it.
const served = `---
kind: Policy
metadata: {name: may-serve}
spec:
  rules: [{effect: ALLOW, condition: {match: 'ctx.service.metadata.name == "api.cardea" && ctx.request.api.verb == "serve"'}}]
---
kind: User
metadata: {name: devices}
spec:
  type: WORKLOAD
  groups: [group-1]
  authorization: {policies: [may-serve]}
---
kind: Service
metadata: {name: served}
spec:
  mode: TCP
  port: 7
  config: {upstream: {url: "tcp://127.0.0.1:9000", user: devices}}
  authorization:
    inlinePolicies:
      - spec:
          rules: [{effect: ALLOW, condition: {match: '"group-1" in ctx.user.spec.groups'}}]
`

// TestServing has two devices behind a NAT be the upstream of a Service, and kills one
// under load.
func TestServing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{Clients: 3}, served)
	var devices []*process
	for _, h := range w.Clients[:2] {
		listen(t, h, 9000, func(c net.Conn) {
			io.WriteString(c, h.Name+"\n")
			cluster.EchoBack(c)
		})
		devices = append(devices, w.login(h, "devices").connect("--serve", "served"))
	}
	alice := w.login(w.Clients[2], "alice")
	alice.connect()
	v4, _ := w.at("served")

	// call is a connection, and the device at its other end.
	type call struct {
		net.Conn
		to string
	}
	open := func() (c call, err error) {
		if c.Conn, err = talk(t, alice.host, v4); err != nil {
			return c, err
		}
		c.SetDeadline(time.Now().Add(patience))
		b := make([]byte, len(w.Clients[0].Name)+1)
		if _, err = io.ReadFull(c, b); err != nil {
			c.Close()
		}
		c.to = strings.TrimSpace(string(b))
		return c, err
	}
	held := map[string][]call{}
	w.until("both devices serve", func() error {
		c, err := open()
		if err != nil {
			return err
		}
		if held[c.to] = append(held[c.to], c); len(held) < 2 {
			return fmt.Errorf("only %s does", c.to)
		}
		return nil
	})
	for range 20 {
		c, err := open()
		if err != nil {
			t.Fatal(err)
		}
		held[c.to] = append(held[c.to], c)
	}
	for name, calls := range held {
		if len(calls) < 5 {
			t.Errorf("%s serves %d of %d connections", name, len(calls), len(held[w.Clients[0].Name])+len(held[w.Clients[1].Name]))
		}
	}

	var loading sync.WaitGroup
	var mu sync.Mutex
	var failed []time.Time
	succeeded, after := 0, 0
	var died time.Time
	over := make(chan struct{})
	for range 4 {
		loading.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				begun := time.Now()
				c, err := open()
				if err == nil {
					err = say(c, "load", patience)
					c.Close()
				}
				mu.Lock()
				switch {
				case err != nil:
					failed = append(failed, begun)
				case !died.IsZero() && begun.After(died.Add(failover)):
					after++
				default:
					succeeded++
				}
				mu.Unlock()
			}
		})
	}
	end := sync.OnceFunc(func() {
		close(over)
		loading.Wait()
	})
	defer end()
	count := func(n *int, want int) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			if *n < want {
				return fmt.Errorf("%d of %d", *n, want)
			}
			return nil
		}
	}
	w.until("there is load", count(&succeeded, 100))
	mu.Lock()
	died = time.Now()
	mu.Unlock()
	devices[0].Process.Kill()
	w.until("new connections go on", count(&after, 200))
	end()
	early := 0
	for _, at := range failed {
		switch {
		case at.Before(died):
			// It may have been under way when the device died.
			if died.Sub(at) > time.Second {
				t.Errorf("a connection failed %v before a device died", died.Sub(at))
			}
		case at.After(died.Add(failover)):
			t.Errorf("a connection failed that was begun %v after the device had died", at.Sub(died))
		default:
			early++
		}
	}
	t.Logf("%d connections failed that were begun in the %v after the device had died, and %d succeeded later", early, failover, after)
	for _, c := range held[w.Clients[1].Name] {
		if err := say(c, "still here", patience); err != nil {
			t.Errorf("a connection to the device that lives: %v", err)
		}
	}
	for _, c := range held[w.Clients[0].Name] {
		c.SetDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("a connection to the device that is dead says %d bytes", n)
		} else if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Error("a connection to the device that is dead is open")
		}
	}
}

// TestServedURL changes the URL of what a device serves: it refuses until it is asked
// anew, unless it agrees to any. Who may not serve does not.
func TestServedURL(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{Clients: 3}, served)
	for i, h := range w.Clients[:2] {
		for port := range uint16(2) {
			listen(t, h, 9000+port, func(c net.Conn) { fmt.Fprintf(c, "%d-%d", i, port) })
		}
	}
	careful, bold := w.login(w.Clients[0], "devices"), w.login(w.Clients[1], "devices")
	careful.connect("--serve", "served")
	alice := w.login(w.Clients[2], "alice")
	alice.connect()
	v4, _ := w.at("served")
	answer := func() (string, error) {
		c, err := talk(t, alice.host, v4)
		if err != nil {
			return "", err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		b, err := io.ReadAll(c)
		return string(b), err
	}
	answers := func(want string) {
		t.Helper()
		w.until("the answer is of "+want, func() error {
			if got, err := answer(); got != want {
				return fmt.Errorf("it is %q (%v)", got, err)
			}
			return nil
		})
	}
	answers("0-0")
	w.apply(strings.ReplaceAll(served, ":9000", ":9001"))
	w.until("the device says that it refuses", func() error {
		serves := careful.place().Serves
		if len(serves) != 1 || serves[0].Problem == "" {
			return fmt.Errorf("status says %+v", serves)
		}
		return nil
	})
	if got, err := answer(); got != "" {
		t.Errorf("the URL has changed, nobody has agreed, and the answer is %q (%v)", got, err)
	}
	bold.connect("--serve-all", "--serve-any-url")
	answers("1-1")
	w.apply(served)
	w.until("the new URL is taken, and the old one again", func() error {
		seen := map[string]bool{}
		for range 8 {
			got, err := answer()
			if err != nil {
				return err
			}
			seen[got] = true
		}
		if len(seen) != 2 || !seen["0-0"] || !seen["1-0"] {
			return fmt.Errorf("answers are %v", seen)
		}
		return nil
	})
	// alice is of group-1, and may use it; she may not serve it.
	mallory := w.login(w.Clients[2], "mallory")
	out, err := mallory.command("connect", "--serve", "served").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "served") {
		t.Errorf("mallory serves what is of devices: %v\n%s", err, out)
	}
}
