// Command l4 measures Cardea's routing table beside HAProxy and nginx stream, with
// equal settings, in one run on one machine: mappings that leave bytes as they are,
// TLS ended and begun, routing by SNI without ending TLS, PROXY headers in and out,
// 10,000 mappings on one port, and a change of one of these.
//
//	go run ./bench/l4 [-rounds 5] [-time 3s] [-rows bytes,conns,…] [-mappings 10000]
//
// Cardea is configured by apply, as users do, and its log is on: at the end it must
// verify, and have an END for each connection that was opened. HAProxy has two
// threads and logs to a socket; nginx has two workers and a log. Where there are
// four cores, proxies run on the first two and the load, with the upstreams, on the
// others.
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
	rows := flag.String("rows", "", "what to measure, by the names of the rows; all if left out")
	mappings := flag.Int("mappings", 10_000, "how many mappings the large port has")
	pinned := flag.Bool("pinned", false, "the load runs on its own cores already")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *rounds, *each, *rows, *mappings, *pinned); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, each time.Duration, rows string, mappings int, pinned bool) (err error) {
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
	b := &bench{Rig: r, mappings: mappings, targets: map[string][]*rig.Target{}}
	defer func() { err = errors.Join(err, b.stop(ctx)) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	fmt.Printf("%d rounds of %s; %s\n", rounds, each, r.Where())
	perSecond, perGB := []string{"1/s", "CPU µs each"}, []string{"GB/s", "CPU s/GB"}
	for _, row := range []struct {
		name, title string
		units       []string
		targets     []*rig.Target
		measure     rig.Measure
	}{
		{"bytes", "a mapping: bytes up, 8 streams", perGB, b.targets["bare"], r.Bytes},
		{"conns", "a mapping: new connections (connect, 1 byte there and back, close), 64 callers", perSecond, b.targets["bare"], r.Conns(64)},
		{"full", "TLS ended: full handshakes (1.3, ECDSA P-256, X25519), 32 callers", perSecond, b.targets["full"], r.Conns(32)},
		{"resumed", "TLS ended: resumed handshakes, 32 callers", perSecond, b.targets["resumed"], r.Conns(32)},
		{"ended", "TLS ended: bytes up, 8 streams", perGB, b.targets["full"], r.Bytes},
		{"begun", "TLS begun: new connections, verified, not resumed, 32 callers", perSecond, b.targets["begun"], r.Conns(32)},
		{"begun-bytes", "TLS begun: bytes up, 8 streams", perGB, b.targets["begun"], r.Bytes},
		{"proxy-in", "PROXY v2 in: new connections, 64 callers", perSecond, b.targets["proxy-in"], r.Conns(64)},
		{"proxy-out", "PROXY v2 out: new connections, 64 callers", perSecond, b.targets["proxy-out"], r.Conns(64)},
		{"sni", fmt.Sprintf("by SNI, TLS left as it is, 1 and %d names: new connections, 64 callers", mappings), perSecond, b.targets["sni"], r.Conns(64)},
		{"change", fmt.Sprintf("one of %d names led elsewhere, every 300 ms; 1,000 new connections a second meanwhile", mappings), []string{"in force, p50 ms", "quiet p99 µs", "changing p99 µs"}, b.targets["change"], b.change},
	} {
		if rows != "" && !slices.Contains(strings.Split(rows, ","), row.name) {
			continue
		}
		if err := rig.Table(ctx, rounds, row.title, row.units, row.targets, row.measure); err != nil {
			return err
		}
	}
	return b.verify(ctx)
}
