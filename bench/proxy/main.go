// Command proxy measures Cardea's relay beside HAProxy and nginx, in one run, on
// one machine: bytes, new connections, latency and idle memory on the plain path,
// and new connections on the path of Sessions.
//
//	go run ./bench/proxy [-rounds 5] [-time 3s] [-rows bytes,conns,latency,idle,tls] [-idle 9000]
//
// Every proxy is a process of its own, configured as users do: Cardea by apply,
// with its log on; HAProxy with two threads and a log to a socket; nginx with two
// workers and a log. Where there are four cores, proxies run on the first two and
// the load, with the upstreams, on the others. Rounds are interleaved: each
// round measures every proxy once. What is printed are medians, and the spread
// from the least to the most in percent of the median.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"
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
	taskset, lookErr := exec.LookPath("taskset")
	split := lookErr == nil && (pinned || runtime.NumCPU() >= 4)
	if split && !pinned { // begin again on the cores of the load
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, taskset, append([]string{"-c", "2,3", self, "-pinned"}, os.Args[1:]...)...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		return cmd.Run()
	}
	var prefix []string
	if split {
		prefix = []string{taskset, "-c", "0,1"}
	}

	dir, err := os.MkdirTemp("", "cardea-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	up, err := newUpstreams()
	if err != nil {
		return err
	}
	defer up.close()
	b := &bench{dir: dir, prefix: prefix, up: up, each: each, idle: idle}
	defer func() { err = errors.Join(err, b.stop(ctx)) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	fmt.Printf("%d rounds of %s; ", rounds, each)
	if split {
		fmt.Println("proxies on cores 0 and 1, load and upstreams on 2 and 3")
	} else {
		fmt.Println("proxies, load and upstreams share all cores")
	}
	for _, r := range []struct {
		name, title string
		unit        []string
		targets     []*target
		measure     func(context.Context, *target) ([]float64, error)
	}{
		{"idle", fmt.Sprintf("%d idle connections, of processes that have done nothing else", idle), []string{"KiB each", "descriptors each"}, b.fresh(), b.idleMemory},
		{"bytes", "bytes up, 8 streams", []string{"GB/s", "CPU s/GB"}, b.plain(), b.bytes},
		{"conns", "new connections (connect, 1 byte there and back, close), 64 callers", []string{"1/s", "CPU µs each"}, b.plain(), b.conns},
		{"latency", "64 bytes there and back on open connections", []string{"p50 µs, 1 conn", "p50 µs, 64 conns", "1/s, 64 conns"}, b.plain(), b.latency},
		{"tls", "new connections with client certificates, 32 callers", []string{"1/s", "CPU µs each"}, b.secure(), b.tlsConns},
	} {
		if !slices.Contains(rows, r.name) {
			continue
		}
		n := rounds
		if r.name == "idle" {
			n = 1 // what a process once took it does not give back
		}
		if err := table(ctx, n, r.title, r.unit, r.targets, r.measure); err != nil {
			return err
		}
	}
	return b.verify(ctx)
}

// table measures every target in every round and prints a table.
func table(ctx context.Context, rounds int, title string, units []string, targets []*target, measure func(context.Context, *target) ([]float64, error)) error {
	got := make([][][]float64, len(targets)) // target, unit, round
	for i := range got {
		got[i] = make([][]float64, len(units))
	}
	for range rounds {
		for i, t := range targets {
			v, err := measure(ctx, t)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", title, t.name, err)
			}
			for u := range units {
				got[i][u] = append(got[i][u], v[u])
			}
		}
	}
	fmt.Printf("\n== %s ==\n%-34s", title, "")
	for _, u := range units {
		fmt.Printf("  %22s", u)
	}
	fmt.Println()
	for i, t := range targets {
		fmt.Printf("%-34s", t.name)
		for u := range units {
			mid, spread := median(got[i][u])
			ratio := "–"
			if base, _ := median(got[rival(targets)][u]); base > 0 && mid > 0 {
				ratio = fmt.Sprintf("%.2f×", mid/base)
			}
			fmt.Printf("  %9s ±%2.0f%% %8s", figure(mid), spread, ratio)
		}
		fmt.Println()
	}
	fmt.Printf("(× is the ratio to %s)\n", targets[rival(targets)].name)
	return nil
}

// rival returns the target that ratios are to.
func rival(targets []*target) int {
	return max(slices.IndexFunc(targets, func(t *target) bool { return t.rival }), 0)
}

func median(v []float64) (mid, spread float64) {
	v = slices.Sorted(slices.Values(v))
	mid = v[len(v)/2]
	if mid > 0 {
		spread = (v[len(v)-1] - v[0]) / mid * 50
	}
	return mid, spread
}

func figure(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
