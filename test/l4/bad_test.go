package l4_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/test/cluster"
)

var crowd = flag.Int("crowd", 1000, "how many connections one client of TestCrowd opens")

// startCluster starts a cluster that ends with the test. args are further flags of up.
func startCluster(t *testing.T, listen string, args ...string) *cluster.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	bin, err := cluster.Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster.Cluster{Bin: bin, Dir: dir, Listen: listen, Args: args}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("the cluster ended with: %v", err)
		}
	})
	return c
}

// onEachEngine runs a test with a cluster of each engine, one after the other.
func onEachEngine(t *testing.T, f func(*testing.T, *cluster.Cluster)) {
	bin, err := cluster.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	engines, err := cluster.Engines(t.Context(), bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range engines {
		// What the private network holds from the start has the collector let more lie
		// about than is looked for here.
		args := []string{"--network", "off"}
		if e != "" {
			args = append(args, "--engine", e)
		}
		t.Run(e, func(t *testing.T) {
			f(t, startCluster(t, fmt.Sprintf("127.0.0.1:%d", freePort(t)), args...))
		})
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	p, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newEndpoint starts an endpoint that ends with the test. It has a port that nobody
// listens to if kind is "".
func newEndpoint(t *testing.T, kind string, number int) *endpoint {
	t.Helper()
	e := &endpoint{kind: kind, number: number, address: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	if kind == "" {
		return e
	}
	if err := e.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.kill)
	return e
}

// A door is the public port of a Service, and what stands behind it.
type door struct {
	t       *testing.T
	cluster *cluster.Cluster
	name    string
	port    int
}

// open makes a Service of endpoints. upstream and limits are further fields of those
// parts of its spec.
func open(t *testing.T, c *cluster.Cluster, name, upstream, limits string, endpoints ...*endpoint) *door {
	t.Helper()
	d := &door{t, c, name, freePort(t)}
	d.apply(upstream, limits, endpoints...)
	return d
}

func (d *door) apply(upstream, limits string, endpoints ...*endpoint) {
	d.t.Helper()
	var list []string
	for _, e := range endpoints {
		list = append(list, fmt.Sprintf("{url: \"tcp://%s\"%s}", e.address, e.more))
	}
	if err := d.cluster.Apply(d.t.Context(), fmt.Sprintf("---\nkind: Service\nmetadata: {name: %s}\nspec:\n  mode: TCP\n  port: %d\n  isPublic: true\n  isAnonymous: true\n  limits: {connectionsPerSecond: 1000000%s}\n  config: {upstream: {loadbalance: {endpoints: [%s]}%s}}\n",
		d.name, d.port, limits, strings.Join(list, ", "), upstream)); err != nil {
		d.t.Fatal(err)
	}
}

// checked is a health check that is quick, and asks a question.
const checked = `, health: {check: {interval: {milliseconds: 100}, timeout: {milliseconds: 300}, unhealthyAfter: 1, healthyAfter: 1, send: "?", expect: "!"}}`

// A visit is a connection that was tried.
type visit struct {
	conn   net.Conn // nil if there never was one
	from   int      // its port
	number int      // of the endpoint that answered
	err    error
}

func (v visit) close() {
	if v.conn != nil {
		v.conn.(*net.TCPConn).SetLinger(0) // the test must not run out of ports
		v.conn.Close()
	}
}

// visit opens a connection, and has an answer unless it fails.
func (d *door) visit() (v visit) {
	if v.conn, v.from, v.err = dial(d.port); v.err == nil {
		v.number, v.err = say(v.conn)
	}
	return v
}

// say has an answer.
func say(c net.Conn) (number int, err error) {
	c.SetDeadline(time.Now().Add(time.Minute))
	b := []byte{255}
	if _, err := c.Write(b); err != nil {
		return 0, err
	}
	_, err = io.ReadFull(c, b)
	return int(b[0]), err
}

// succeeds visits once, and returns who answered.
func (d *door) succeeds() int {
	d.t.Helper()
	v := d.visit()
	defer v.close()
	if v.err != nil {
		d.t.Fatalf("a connection to %s: %v", d.name, v.err)
	}
	return v.number
}

// fails visits once, and returns what the log says of the end of the connection.
func (d *door) fails() *api.AccessLog {
	d.t.Helper()
	v := d.visit()
	defer v.close()
	if v.err == nil {
		d.t.Fatalf("a connection to %s is answered by %d", d.name, v.number)
	}
	if !errors.Is(v.err, syscall.ECONNRESET) && !errors.Is(v.err, syscall.EPIPE) {
		d.t.Errorf("a connection to %s ended with %v, not a reset", d.name, v.err)
	}
	return d.last(v)
}

// last waits for the END of a connection, or its DENIED, and returns it.
func (d *door) last(v visit) *api.AccessLog {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, err := d.cluster.Run(d.t.Context(), "root", nil, "logs", "--service", d.name, "-o", "json")
		if err != nil {
			d.t.Fatal(err)
		}
		var found *api.AccessLog
		for line := range strings.Lines(out) {
			var rec api.AccessLog
			if err := json.Unmarshal([]byte(line), &rec); err != nil {
				d.t.Fatal(err)
			}
			if tcp, f := rec.Entry.Info.TCP, rec.Entry.Common.Facts; tcp != nil && tcp.Type != api.LogStart && f != nil && f.Port == v.from {
				found = &rec
			}
		}
		if found != nil {
			return found
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("the log of %s has no end of the connection from port %d", d.name, v.from)
		}
	}
}

// wants checks how a connection ended.
func wants(t *testing.T, rec *api.AccessLog, reasons ...string) {
	t.Helper()
	tcp := rec.Entry.Info.TCP
	for _, r := range reasons {
		if tcp.CloseReason == r {
			return
		}
	}
	t.Errorf("%s ended with %s (%s), want %v", tcp.Type, tcp.CloseReason, tcp.Error, reasons)
}

// becomes waits until the endpoints are in those states, in order.
func (d *door) becomes(states ...api.HealthState) {
	d.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		out, err := d.cluster.Run(d.t.Context(), "root", nil, "get", "service", d.name, "-o", "json")
		if err != nil {
			d.t.Fatal(err)
		}
		var s api.Service
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			d.t.Fatal(err)
		}
		same := len(s.Status.Endpoints) == len(states)
		for i := 0; same && i < len(states); i++ {
			same = s.Status.Endpoints[i].State == states[i]
		}
		if same {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("the endpoints of %s are %+v, want %v", d.name, s.Status.Endpoints, states)
		}
	}
}

// Endpoints that are bad in every way: who comes is told soon, the log says why, and
// whoever is good gets the connections.
func TestBadEndpoints(t *testing.T) {
	onEachEngine(t, func(t *testing.T, c *cluster.Cluster) {
		t.Run("all down", func(t *testing.T) {
			d := open(t, c, "down", "", "", newEndpoint(t, "", 0), newEndpoint(t, "", 1))
			wants(t, d.fails(), "DIAL_FAILED")
			d.apply(checked, "", newEndpoint(t, "", 0), newEndpoint(t, "", 1))
			d.becomes(api.HealthUnhealthy, api.HealthUnhealthy)
			wants(t, d.fails(), "UNHEALTHY")
		})
		t.Run("flapping", func(t *testing.T) {
			e := newEndpoint(t, steady, 3)
			d := open(t, c, "flapping", checked, "", e)
			for range 3 {
				d.becomes(api.HealthHealthy)
				if got := d.succeeds(); got != 3 {
					t.Errorf("%d answers", got)
				}
				e.kill()
				d.becomes(api.HealthUnhealthy)
				wants(t, d.fails(), "UNHEALTHY", "DIAL_FAILED")
				if err := e.start(); err != nil {
					t.Fatal(err)
				}
			}
			d.becomes(api.HealthHealthy)
			d.succeeds()
		})
		t.Run("black hole", func(t *testing.T) {
			hole, good := newEndpoint(t, blackHole, 0), newEndpoint(t, steady, 1)
			d := open(t, c, "hole", ", connectTimeout: {milliseconds: 500}", "", hole)
			wants(t, d.fails(), "DIAL_TIMEOUT")
			d.apply(", connectTimeout: {seconds: 4}", "", hole, good)
			for range 4 { // the hole has its turns
				if got := d.succeeds(); got != 1 {
					t.Errorf("%d answers", got)
				}
			}
		})
		t.Run("slow to accept", func(t *testing.T) {
			d := open(t, c, "slow", "", "", newEndpoint(t, slow, 2))
			if got := d.succeeds(); got != 2 {
				t.Errorf("%d answers", got)
			}
		})
		t.Run("silent", func(t *testing.T) {
			mute, good := newEndpoint(t, silent, 0), newEndpoint(t, steady, 1)
			d := open(t, c, "silent", "", ", idleTimeout: {milliseconds: 300}", mute)
			wants(t, d.fails(), "IDLE_TIMEOUT")
			d.apply(checked, "", mute, good)
			d.becomes(api.HealthUnhealthy, api.HealthHealthy)
			for range 4 {
				if got := d.succeeds(); got != 1 {
					t.Errorf("%d answers", got)
				}
			}
		})
		t.Run("resets at once", func(t *testing.T) {
			d := open(t, c, "resets", ", health: {ejection: {failures: 3, time: {minutes: 10}}}", "", newEndpoint(t, resets, 0), newEndpoint(t, steady, 1))
			failed := 0
			for range 20 {
				v := d.visit()
				v.close()
				if v.err != nil {
					failed++
					d.last(v) // its end counts from here on
				}
			}
			// Where the reset came before the connection was taken for made, another
			// endpoint was tried.
			if failed > 3 {
				t.Errorf("%d of 20 connections failed, and 3 that fail put an endpoint out", failed)
			}
			d.becomes(api.HealthEjected, api.HealthHealthy)
		})
		t.Run("stops while it serves", func(t *testing.T) {
			e := newEndpoint(t, steady, 4)
			d := open(t, c, "stops", strings.Replace(checked, "health: {", "health: {closeOnUnhealthy: true, ", 1), "", e)
			d.becomes(api.HealthHealthy)
			v := d.visit()
			defer v.close()
			if v.err != nil {
				t.Fatal(v.err)
			}
			e.cmd.Process.Signal(syscall.SIGSTOP)
			if _, err := v.conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection to an endpoint that does not serve any more: %v", err)
			}
			wants(t, d.last(v), "UNHEALTHY")
			e.cmd.Process.Signal(syscall.SIGCONT)
			d.becomes(api.HealthHealthy)
			d.succeeds()
		})
		t.Run("a check that hangs", func(t *testing.T) {
			// Ten checks begin each second and none would end for a minute: they must not
			// pile up.
			d := open(t, c, "hangs", `, health: {check: {interval: {milliseconds: 100}, timeout: {minutes: 1}, send: "?", expect: "!"}}`, "", newEndpoint(t, silent, 0))
			before := descriptors(t, c)
			<-time.After(2 * time.Second) // the time of twenty checks
			if after := descriptors(t, c); after > before+8 {
				t.Errorf("%d descriptors, and before twenty checks %d", after, before)
			}
			conn, _, err := dial(d.port)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		})
		t.Run("a queue that overflows", func(t *testing.T) {
			e := newEndpoint(t, steady, 5)
			d := open(t, c, "queue", "", ", connections: 1, pendingConnections: 1, pendingTimeout: {seconds: 30}", e)
			first := d.visit()
			defer first.close()
			if first.err != nil {
				t.Fatal(first.err)
			}
			// Of the next two one waits, and one is too much.
			visits := make(chan visit, 2)
			for range 2 {
				go func() { visits <- d.visit() }()
			}
			refused := <-visits
			defer refused.close()
			if refused.err == nil {
				t.Fatal("three connections of one that may be, and one that may wait")
			}
			if rec := d.last(refused); rec.Entry.Info.TCP.Type != api.LogDenied {
				t.Errorf("the log has a %s", rec.Entry.Info.TCP.Type)
			}
			first.close()
			waited := <-visits
			defer waited.close()
			if waited.err != nil {
				t.Errorf("the connection that waited for a place: %v", waited.err)
			}
		})
		t.Run("no place at the endpoint", func(t *testing.T) {
			e := newEndpoint(t, steady, 6)
			e.more = ", maxConnections: 1"
			d := open(t, c, "places", ", connectTimeout: {seconds: 1}", "", e)
			first := d.visit()
			defer first.close()
			if first.err != nil {
				t.Fatal(first.err)
			}
			wants(t, d.fails(), "LIMIT", "DIAL_TIMEOUT")
			first.close()
			d.last(first) // its place is free when it has ended
			if got := d.succeeds(); got != 6 {
				t.Errorf("%d answers", got)
			}
		})
		if out, err := c.Run(t.Context(), "root", nil, "logs", "verify"); err != nil {
			t.Errorf("logs verify: %v\n%s", err, out)
		}
	})
}

// A client that opens thousands of connections has them, unless there is a limit for
// one client, and takes nothing from others for long: what they took is given back
// when they end.
func TestCrowd(t *testing.T) {
	onEachEngine(t, func(t *testing.T, c *cluster.Cluster) {
		e := newEndpoint(t, steady, 7)
		many := open(t, c, "many", "", "", e)
		few := open(t, c, "few", "", ", connectionsPerSession: 50", e)
		many.succeeds()
		memory, files := resident(t, c), descriptors(t, c)

		visits := make([]visit, 0, *crowd)
		leave := func() {
			for _, v := range visits {
				v.close()
			}
		}
		defer leave()
		for i := range *crowd {
			v := many.visit()
			visits = append(visits, v)
			if v.err != nil {
				t.Fatalf("connection %d: %v", i+1, v.err)
			}
		}
		most := resident(t, c)
		if now := descriptors(t, c) - files; now < 2*(*crowd-10) {
			t.Errorf("%d connections, and %d descriptors more", *crowd, now)
		}
		for i, v := range visits {
			if _, err := say(v.conn); err != nil {
				t.Fatalf("connection %d of those that wait: %v", i+1, err)
			}
		}
		if many.succeeds() != 7 {
			t.Error("somebody else gets no answer")
		}
		refused := 0
		for range 200 {
			v := few.visit()
			visits = append(visits, v)
			if v.err != nil {
				refused++
			}
		}
		if refused != 150 {
			t.Errorf("%d of 200 connections are refused, where a client may have 50", refused)
		}
		leave()

		// Everything is given back: descriptors when the connections end, memory when
		// connections that come later have had the collector run.
		for deadline := time.Now().Add(5 * time.Minute); ; {
			many.succeeds()
			left, held := descriptors(t, c)-files, resident(t, c)
			if left < 50 && held-memory < max((most-memory)*3/4, 16<<20) {
				t.Logf("%d connections took %.1f KiB each; %.1f MiB are left of %.1f", *crowd, float64(most-memory)/1024/float64(*crowd), float64(held-memory)/(1<<20), float64(most-memory)/(1<<20))
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("of %d connections that have ended %d descriptors and %d KiB are left; they took %d KiB", *crowd, left, (held-memory)>>10, (most-memory)>>10)
			}
			<-time.After(10 * time.Millisecond)
		}
	})
}

// descriptors returns how many the server has open.
func descriptors(t *testing.T, c *cluster.Cluster) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.PID()))
	if err != nil {
		t.Skipf("skipped: %v; it takes Linux", err)
	}
	return len(files)
}

// resident returns the server's resident bytes.
func resident(t *testing.T, c *cluster.Cluster) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.PID()))
	if err != nil {
		t.Skipf("skipped: %v; it takes Linux", err)
	}
	var size, pages int64
	if _, err := fmt.Fscan(bytes.NewReader(b), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
