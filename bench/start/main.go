// Command start measures how long `cardea up` takes until it serves, the first
// time and with its data there already, and what it holds in memory when idle.
//
//	go run ./bench/start [-rounds 20]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cardea/test/cluster"
)

func main() {
	rounds := flag.Int("rounds", 20, "rounds")
	flag.Parse()
	if err := run(context.Background(), *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int) error {
	dir, err := os.MkdirTemp("", "cardea-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin, err := cluster.Build(ctx, dir)
	if err != nil {
		return err
	}
	var first, again []time.Duration
	var resident string
	for i := range rounds {
		port, err := cluster.FreePort()
		if err != nil {
			return err
		}
		c := &cluster.Cluster{Bin: bin, Dir: filepath.Join(dir, fmt.Sprint(i)), Listen: fmt.Sprintf("127.0.0.1:%d", port)}
		if err := os.Mkdir(c.Dir, 0o700); err != nil {
			return err
		}
		for _, times := range []*[]time.Duration{&first, &again} {
			if err := c.Up(ctx); err != nil {
				return err
			}
			*times = append(*times, c.Took)
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
			if err = errors.Join(err, c.Signal(os.Interrupt)); err != nil {
				return err
			}
			_, rss, _ := strings.Cut(string(status), "VmRSS:")
			rss, _, _ = strings.Cut(rss, "\n")
			resident = strings.TrimSpace(rss)
		}
	}
	fmt.Printf("%-28s p50 %v, max %v\n", "ready, first start", median(first), slices.Max(first))
	fmt.Printf("%-28s p50 %v, max %v\n", "ready, with its data", median(again), slices.Max(again))
	fmt.Printf("%-28s %s\n", "resident when idle", resident)
	return nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2].Round(100 * time.Microsecond)
}
