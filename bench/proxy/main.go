// Command proxy measures Cardea beside HAProxy and nginx, in one run, on one machine,
// with each of its engines: bytes, new connections, latency and idle memory, through
// a mapping, through a public Service with a policy, and on the path of Sessions.
//
//	go run ./bench/proxy [-rows bytes,conns,…] [-targets cardea,…] [-idle 9000] [-quick] [-profile DIR]
//
// Every proxy is a process of its own, configured as users do: Cardea by apply, with
// its log on, which must be whole at the end and have an END for each connection;
// HAProxy with two threads and a log to a socket; nginx with two workers and a log.
// Where there are four cores, proxies run on the first two and the load, with the
// upstreams, on the others.
package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"

	"cardea/bench/rig"
)

func main() {
	o := rig.Flags(rig.Usual(), "idle", "session-idle", "bytes", "conns", "latency", "rate", "session-conns", "session-bytes", "session-latency")
	idle := flag.Int("idle", 9000, "connections of the rows idle and session-idle")
	rig.Main(o, func(ctx context.Context, r *rig.Rig) error { return measure(ctx, r, *idle) })
}

func measure(ctx context.Context, r *rig.Rig, idle int) error {
	b := &bench{Rig: r}
	defer b.close()
	if err := b.start(ctx); err != nil {
		return err
	}
	having := func(list []*rig.Target, f func(*rig.Target) bool) []*rig.Target {
		return slices.DeleteFunc(slices.Clone(list), func(t *rig.Target) bool { return !f(t) })
	}
	// What splices is no different when it is idle; and of the ways to begin a Session's
	// connections one is enough when they have begun.
	resting := func(t *rig.Target) bool { return t.PID != 0 && !strings.Contains(t.Name, "splice") }
	begun := having(b.secure, func(t *rig.Target) bool { return t.Sink != nil })
	units := []string{"KiB each", "KiB, 1 MiB later", "descriptors each"}
	return r.Measure(ctx,
		rig.Row{Name: "idle", Title: fmt.Sprintf("%d idle connections, of processes that have done nothing else", idle),
			Units: units, Targets: having(b.plain, resting), Measure: r.Idle(idle), Once: true},
		rig.Row{Name: "session-idle", Title: fmt.Sprintf("%d idle connections with client certificates", idle),
			Units: units, Targets: begun, Measure: r.Idle(idle), Once: true},
		rig.Row{Name: "bytes", Title: "bytes up, 8 streams", Units: rig.PerGB(), Targets: b.plain, Measure: r.Bytes},
		rig.Row{Name: "conns", Title: "new connections (connect, 1 byte there and back, close), 64 callers",
			Units: rig.PerConn(), Targets: b.plain, Measure: r.Conns(64)},
		rig.Row{Name: "latency", Title: "64 bytes there and back, the next when the last is back",
			Units: []string{"p50 µs, 1 conn", "p50 µs, 64 conns"}, Targets: b.plain, Measure: r.Closed(1, 64), Added: true},
		rig.Row{Name: "rate", Title: "64 bytes there and back at a fixed rate, from when they were due",
			Units: []string{"p50 µs, 1 at 1,000/s", "p50 µs, 64 at 10,000/s"}, Targets: b.plain, Measure: r.Paced(rig.Pace{Conns: 1, Rate: 1000}, rig.Pace{Conns: 64, Rate: 10_000}), Added: true},
		rig.Row{Name: "session-conns", Title: "new connections with client certificates, 32 callers",
			Units: rig.PerConn(), Targets: b.secure, Measure: r.Conns(32)},
		rig.Row{Name: "session-bytes", Title: "bytes up with client certificates, 8 streams", Units: rig.PerGB(), Targets: begun, Measure: r.Bytes},
		rig.Row{Name: "session-latency", Title: "64 bytes there and back with client certificates, the next when the last is back",
			Units: []string{"p50 µs, 1 conn", "p50 µs, 64 conns"}, Targets: begun, Measure: r.Closed(1, 64)},
	)
}
