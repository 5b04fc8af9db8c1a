package rig

import (
	"context"
	"fmt"
	"net"
	"slices"
)

// A Target is one proxy, in one configuration.
type Target struct {
	Name  string
	PID   PID  // 0 is no proxy at all
	Rival bool // whom the others are compared with
	// Echo opens a connection to an upstream that sends back what it gets; Sink one to
	// an upstream that takes what it gets, and counts it.
	Echo, Sink func(context.Context) (net.Conn, error)
	// Resumes is whether handshakes of TLS must be resumed: if the connections tell,
	// anything else is an error.
	Resumes bool
}

// A Measure returns one figure for each unit of its table.
type Measure func(context.Context, *Target) ([]float64, error)

// Table measures every target in every round and prints a table.
func Table(ctx context.Context, rounds int, title string, units []string, targets []*Target, measure Measure) error {
	got := make([][][]float64, len(targets)) // target, unit, round
	for i := range got {
		got[i] = make([][]float64, len(units))
	}
	for range rounds {
		for i, t := range targets {
			v, err := measure(ctx, t)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", title, t.Name, err)
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
		fmt.Printf("%-34s", t.Name)
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
	fmt.Printf("(× is the ratio to %s)\n", targets[rival(targets)].Name)
	return nil
}

// rival returns the target that ratios are to.
func rival(targets []*Target) int {
	return max(slices.IndexFunc(targets, func(t *Target) bool { return t.Rival }), 0)
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
