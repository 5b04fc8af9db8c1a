package rig

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// A Target is one proxy, in one configuration.
type Target struct {
	Name  string
	PID   PID   // 0 is no proxy at all
	With  []PID // what else belongs to it: its CPU counts too
	Rival bool  // whom the others are compared with
	// Echo opens a connection to an upstream that sends back what it gets; Sink one to
	// an upstream that takes what it gets, and counts it.
	Echo, Sink Dial
	// Resumes is whether handshakes of TLS must be resumed: if the connections tell,
	// anything else is an error.
	Resumes bool
	// Fresh starts the same proxy again for a Row that can measure a process only once,
	// and says how it is ended.
	Fresh func(context.Context) (t *Target, end func() error, err error)
	// Held, if it is there, is called by a Measure when the proxy holds most.
	Held func() error

	// Profilers are how those of its processes are reached, by names, that are
	// bench/profile; their CPU is profiled if Options say so.
	Profilers map[string]Dial
}

// A Measure returns one figure for each unit of its row.
type Measure func(context.Context, *Target) ([]float64, error)

// A Row is a table of what one Measure says of several Targets.
type Row struct {
	Name, Title string
	Units       []string
	Targets     []*Target
	Measure     Measure
	// Once is set if a process can be measured only once: what it took it does not
	// give back.
	Once bool
	// Added is set if ratios are of what is more than the figure without a proxy.
	Added bool
}

// Measure measures every Row that is wanted.
func (r *Rig) Measure(ctx context.Context, rows ...Row) error {
	for _, row := range rows {
		if !r.Wants(row.Name) {
			continue
		}
		if row.Targets = r.of(row.Targets); len(row.Targets) == 0 {
			continue
		}
		if err := r.table(ctx, row); err != nil {
			return fmt.Errorf("%s: %w", row.Name, err)
		}
	}
	return nil
}

// table measures every Target in every round and prints a table.
func (r *Rig) table(ctx context.Context, row Row) error {
	rounds, n := r.Rounds, len(row.Targets)
	if row.Once {
		rounds = 1
	}
	got := make([][][]float64, n) // target, unit, round
	for i := range got {
		got[i] = make([][]float64, len(row.Units))
	}
	for round := range rounds {
		for i := range n {
			i = (i + round) % n // nobody is always the one after the same other
			t := row.Targets[i]
			v, err := r.once(ctx, row, t)
			if err != nil {
				return fmt.Errorf("%s: %w", t.Name, err)
			}
			for u := range row.Units {
				got[i][u] = append(got[i][u], v[u])
			}
		}
	}
	const wide = 34
	fmt.Printf("\n== %s: %s ==\n%-*s", row.Name, row.Title, wide, "")
	for _, u := range row.Units {
		fmt.Printf("  %22s", u)
	}
	fmt.Println()
	rival := max(slices.IndexFunc(row.Targets, func(t *Target) bool { return t.Rival }), 0)
	bare := slices.IndexFunc(row.Targets, func(t *Target) bool { return t.PID == 0 })
	for i, t := range row.Targets {
		fmt.Printf("%-*s", wide, t.Name)
		for u := range row.Units {
			mid, spread := median(got[i][u])
			base, _ := median(got[rival][u])
			own := mid
			if row.Added && bare >= 0 {
				less, _ := median(got[bare][u])
				own, base = own-less, base-less
			}
			ratio := "–"
			if base > 0 && own > 0 {
				ratio = fmt.Sprintf("%.2f×", own/base)
			}
			fmt.Printf("  %9s ±%2.0f%% %8s", figure(mid), spread, ratio)
		}
		fmt.Println()
	}
	of := ""
	if row.Added && bare >= 0 {
		of = fmt.Sprintf(", of what is more than %q", row.Targets[bare].Name)
	}
	fmt.Printf("(× is the ratio to %s%s)\n", row.Targets[rival].Name, of)
	return nil
}

// once measures one Target once.
func (r *Rig) once(ctx context.Context, row Row, t *Target) ([]float64, error) {
	if row.Once && t.Fresh != nil {
		fresh, end, err := t.Fresh(ctx)
		if err != nil {
			return nil, err
		}
		v, err := r.profiled(ctx, row.Name, fresh, row.Measure)
		return v, errors.Join(err, end())
	}
	return r.profiled(ctx, row.Name, t, row.Measure)
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
