package rig

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// table measures every Target in every round and shows a table.
func (r *Rig) table(ctx context.Context, row Row) error {
	got, err := r.rounds(ctx, row)
	if err != nil {
		return err
	}
	rival := max(slices.IndexFunc(row.Targets, func(t *Target) bool { return t.Rival }), 0)
	bare := -1
	if row.Added {
		bare = slices.IndexFunc(row.Targets, func(t *Target) bool { return t.PID == 0 })
	}
	head := []string{""}
	for _, u := range row.Units {
		head = append(head, u)
		if !isShare(u) {
			head = append(head, "×")
		}
	}
	var lines [][]string
	for i, t := range row.Targets {
		line := []string{t.Name}
		for u, unit := range row.Units {
			mid, spread := median(got[i][u])
			if isShare(unit) {
				line = append(line, figure(mid))
				continue
			}
			less := make([]float64, len(got[i][u])) // nothing, or what it is without a proxy
			if bare >= 0 {
				less = got[bare][u]
			}
			said := figure(mid)
			if len(got[i][u]) > 1 {
				said += fmt.Sprintf(" ±%.0f %%", spread)
			}
			line = append(line, said, ratio(got[i][u], got[rival][u], less))
		}
		lines = append(lines, line)
	}
	of := ""
	if bare >= 0 {
		of = fmt.Sprintf(", of what is more than %q", row.Targets[bare].Name)
	}
	r.Show(row.Name, row.Title, fmt.Sprintf("× is the ratio to %s%s.", row.Targets[rival].Name, of), head, lines)
	return nil
}

// isShare reports whether figures of a unit have no ratios: they may well be nothing.
func isShare(unit string) bool { return strings.HasSuffix(unit, "%") }

// rounds returns the figures of each Target, unit and round.
func (r *Rig) rounds(ctx context.Context, row Row) ([][][]float64, error) {
	rounds, n := r.Rounds, len(row.Targets)
	if row.Once {
		rounds = 1
	}
	got := make([][][]float64, n)
	for i := range got {
		got[i] = make([][]float64, len(row.Units))
	}
	for round := range rounds {
		for i := range n {
			i = (i + round) % n // nobody is always the first
			t := row.Targets[i]
			v, err := r.once(ctx, row, t)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.Name, err)
			}
			for u := range row.Units {
				got[i][u] = append(got[i][u], v[u])
			}
		}
	}
	return got, nil
}

// ratio says how v is to base, round by round, each without less: the median and, of
// several rounds, the least and the most.
func ratio(v, base, less []float64) string {
	var all []float64
	for i := range v {
		if own, other := v[i]-less[i], base[i]-less[i]; own > 0 && other > 0 {
			all = append(all, own/other)
		}
	}
	if len(all) == 0 {
		return "–"
	}
	mid, _ := median(all)
	if len(all) == 1 {
		return fmt.Sprintf("%.2f", mid)
	}
	return fmt.Sprintf("%.2f (%.2f–%.2f)", mid, slices.Min(all), slices.Max(all))
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
	mid = (v[(len(v)-1)/2] + v[len(v)/2]) / 2
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
