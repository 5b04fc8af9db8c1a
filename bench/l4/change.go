package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"cardea/api"
	"cardea/bench/rig"
	"cardea/client"
	"cardea/manifest"
)

// applyAPI applies documents by the API, as apply does, without a new process.
func applyAPI(ctx context.Context, root *client.Client, yaml string) error {
	docs, found := manifest.Decode("bench", []byte(yaml))
	if err := found.Err(); err != nil {
		return err
	}
	var req api.ApplyRequest
	for _, d := range docs {
		req.Documents = append(req.Documents, d.JSON)
	}
	a, err := root.API(ctx)
	if err != nil {
		return err
	}
	return a.Do(ctx, http.MethodPost, "/api/apply", req, new(api.ApplyResponse))
}

// The load of the row change: so many callers, each of which opens a connection
// that often.
const (
	steady      = 8
	steadyEvery = 8 * time.Millisecond
	changeEvery = 300 * time.Millisecond
)

// change measures how long a change of the last name takes to be in force, from
// sending it to the end of the first connection that goes where it leads (median,
// ms), and the 99th percentile of the time that new connections of the other names
// take, in µs: in a quiet time, and while changes are made.
func (b *bench) change(ctx context.Context, t *rig.Target) ([]float64, error) {
	quiet, err := b.steadily(ctx, t, func(ctx context.Context) error { <-ctx.Done(); return nil })
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	to := b.Up.Echo
	busy, err := b.steadily(ctx, t, func(ctx context.Context) error {
		every := time.NewTicker(changeEvery)
		defer every.Stop()
		for {
			if to == b.Up.Echo {
				to = b.other
			} else {
				to = b.Up.Echo
			}
			begin := time.Now()
			if err := b.changers[t](context.WithoutCancel(ctx), to); err != nil {
				return err
			}
			if err := b.until(ctx, t, to); err != nil {
				return err
			}
			took = append(took, time.Since(begin))
			select {
			case <-ctx.Done():
				return nil
			case <-every.C:
			}
		}
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(took)
	return []float64{float64(took[len(took)/2].Microseconds()) / 1000, micros(quiet), micros(busy)}, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// until returns when a new connection of the last name goes where it must. A signal
// that reaches a proxy while it reloads may be lost: it is sent again.
func (b *bench) until(ctx context.Context, t *rig.Target, to string) error {
	const patience, again = time.Minute, 5 * time.Second
	begin := time.Now()
	sent := begin
	for time.Since(begin) < patience {
		if time.Since(sent) > again {
			sent = time.Now()
			if err := b.changers[t](context.WithoutCancel(ctx), to); err != nil {
				return err
			}
		}
		c, err := b.last[t](context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		hello := b.hellos[b.mappings-1]
		back := bytes.Clone(hello)
		err = rig.PingPong(c, back)
		c.Close()
		if err != nil {
			return err
		}
		if elsewhere := !bytes.Equal(hello, back); elsewhere == (to == b.other) {
			return nil
		}
	}
	return errors.New("a change is not in force after a minute")
}

// steadily opens connections at a fixed rate while f runs, for as long as a
// measurement lasts, and returns the 99th percentile of the time that one takes,
// from when it was due.
func (b *bench) steadily(ctx context.Context, t *rig.Target, f func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, b.Each)
	defer cancel()
	var mu sync.Mutex
	var times []time.Duration
	var failed error
	var all sync.WaitGroup
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = errors.Join(failed, err)
		cancel()
	}
	begin := time.Now()
	for i := range steady {
		all.Go(func() {
			due := begin.Add(time.Duration(i) * steadyEvery / steady)
			for ctx.Err() == nil {
				time.Sleep(time.Until(due))
				c, err := t.Echo(context.WithoutCancel(ctx))
				if err != nil {
					fail(fmt.Errorf("a new connection: %w", err))
					return
				}
				took := time.Since(due)
				c.Close()
				mu.Lock()
				times = append(times, took)
				mu.Unlock()
				due = due.Add(steadyEvery)
			}
		})
	}
	all.Go(func() {
		if err := f(ctx); err != nil {
			fail(err)
		}
	})
	all.Wait()
	slices.Sort(times)
	if failed != nil || len(times) == 0 {
		return 0, errors.Join(failed, ctx.Err())
	}
	return times[len(times)*99/100], nil
}
