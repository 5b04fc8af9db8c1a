// Command proxy measures Cardea's relay beside HAProxy and nginx, in one run, on
// one machine: bytes, new connections, latency and idle memory on the plain path,
// and new connections on the path of Sessions.
//
//	go run ./bench/proxy [-rounds 5] [-time 3s] [-rows bytes,conns,latency,idle,tls] [-idle 9000]
//
// Every proxy is a process of its own, configured as users do: Cardea by apply,
// with its log on; HAProxy with two threads and a log to a socket; nginx with two
// workers and a log. Where there are four cores, proxies run on the first two and
// the load, with the upstreams, on the others.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"cardea/bench/rig"
)

func main() {
	rounds := flag.Int("rounds", 5, "rounds")
	each := flag.Duration("time", 3*time.Second, "how long each measurement lasts")
	rows := flag.String("rows", "bytes,conns,latency,idle,tls", "what to measure")
	idle := flag.Int("idle", 9000, "connections of the row idle")
	pinned := flag.Bool("pinned", false, "the load runs on its own cores already")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, *rounds, *each, strings.Split(*rows, ","), *idle, *pinned)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, each time.Duration, rows []string, idle int, pinned bool) (err error) {
	prefix, done, err := rig.Pin(ctx, pinned)
	if done || err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cardea-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r, err := rig.New(dir, each, prefix)
	if err != nil {
		return err
	}
	defer r.Close()
	b := &bench{Rig: r}
	defer func() { err = errors.Join(err, b.stop(ctx)) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	fmt.Printf("%d rounds of %s; %s\n", rounds, each, r.Where())
	for _, row := range []struct {
		name, title string
		units       []string
		targets     []*rig.Target
		measure     rig.Measure
	}{
		{"idle", fmt.Sprintf("%d idle connections, of processes that have done nothing else", idle), []string{"KiB each", "descriptors each"}, b.fresh(), r.Idle(idle)},
		{"bytes", "bytes up, 8 streams", []string{"GB/s", "CPU s/GB"}, b.plain, r.Bytes},
		{"conns", "new connections (connect, 1 byte there and back, close), 64 callers", []string{"1/s", "CPU µs each"}, b.plain, r.Conns(64)},
		{"latency", "64 bytes there and back on open connections", []string{"p50 µs, 1 conn", "p50 µs, 64 conns", "1/s, 64 conns"}, b.plain, r.Latency},
		{"tls", "new connections with client certificates, 32 callers", []string{"1/s", "CPU µs each"}, b.secure, r.Conns(32)},
	} {
		if !slices.Contains(rows, row.name) {
			continue
		}
		n := rounds
		if row.name == "idle" {
			n = 1 // what a process once took it does not give back
		}
		if err := rig.Table(ctx, n, row.title, row.units, row.targets, row.measure); err != nil {
			return err
		}
	}
	return b.verify(ctx)
}
