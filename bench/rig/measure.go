package rig

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cardea/tunnel"
)

// PingPong sends bytes and reads as many.
func PingPong(c net.Conn, b []byte) error {
	c.SetDeadline(time.Now().Add(30 * time.Second)) // an error is a failure of what follows
	defer c.SetDeadline(time.Time{})
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

// during runs n callers until the time is over, and returns the first error. Each
// calls f again and again.
func (r *Rig) during(ctx context.Context, n int, f func(ctx context.Context, caller int) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Each)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	var failed error
	begin := time.Now()
	for i := range n {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := f(ctx, i); err != nil {
					if ctx.Err() == nil {
						mu.Lock()
						failed = errors.Join(failed, err)
						mu.Unlock()
						cancel()
					}
					return
				}
			}
		})
	}
	all.Wait()
	return time.Since(begin), failed
}

// Bytes measures GB/s and CPU seconds per GB, of 8 streams up.
func (r *Rig) Bytes(ctx context.Context, t *Target) ([]float64, error) {
	const streams = 8
	conns := make([]net.Conn, streams)
	for i := range conns {
		c, err := t.Sink(ctx)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		conns[i] = c
	}
	chunk := make([]byte, 256<<10)
	before, cpu := r.Up.taken.Load(), t.PID.CPU()
	took, err := r.during(ctx, streams, func(ctx context.Context, i int) error {
		deadline, _ := ctx.Deadline()
		conns[i].SetWriteDeadline(deadline)
		_, err := conns[i].Write(chunk)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
		return err
	})
	gb := float64(r.Up.taken.Load()-before) / 1e9
	return []float64{gb / took.Seconds(), (t.PID.CPU() - cpu).Seconds() / gb}, err
}

// Conns returns a Measure of new connections a second and CPU µs for each: connect,
// a byte there and back, close.
func (r *Rig) Conns(callers int) Measure {
	return func(ctx context.Context, t *Target) ([]float64, error) {
		var n, told, resumed atomic.Int64
		cpu := t.PID.CPU()
		took, err := r.during(ctx, callers, func(ctx context.Context, _ int) error {
			c, err := t.Echo(context.WithoutCancel(ctx))
			if err != nil {
				return err
			}
			defer c.Close()
			if err := PingPong(c, make([]byte, 1)); err != nil {
				return err
			}
			if s, ok := c.(interface{ ConnectionState() tls.ConnectionState }); ok {
				told.Add(1)
				if s.ConnectionState().DidResume {
					resumed.Add(1)
				}
			}
			n.Add(1)
			return end(c)
		})
		if all := told.Load(); all > 100 && (resumed.Load() > all/2) != t.Resumes {
			err = errors.Join(err, fmt.Errorf("%d of %d handshakes were resumed", resumed.Load(), all))
		}
		return []float64{float64(n.Load()) / took.Seconds(), float64((t.PID.CPU() - cpu).Microseconds()) / float64(n.Load())}, err
	}
}

// end ends a connection as its kind must be ended.
func end(c net.Conn) error {
	if tcp, ok := c.(interface{ SetLinger(int) error }); ok {
		return tcp.SetLinger(0) // the load must not run out of ports; both see the end
	}
	if s, ok := c.(tunnel.Conn); ok { // ended as it should be, or it goes into no pool
		if err := s.CloseWrite(); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, s)
		return err
	}
	return nil
}

// Latency measures the median time there and back of one connection in µs, of 64,
// and how many 64 do a second.
func (r *Rig) Latency(ctx context.Context, t *Target) ([]float64, error) {
	one, _, err := r.pings(ctx, t, 1)
	if err != nil {
		return nil, err
	}
	many, rate, err := r.pings(ctx, t, 64)
	return []float64{one, many, rate}, err
}

func (r *Rig) pings(ctx context.Context, t *Target, n int) (p50, rate float64, err error) {
	conns, times := make([]net.Conn, n), make([][]time.Duration, n)
	for i := range conns {
		if conns[i], err = t.Echo(ctx); err != nil {
			return 0, 0, err
		}
		defer conns[i].Close()
	}
	buffers := make([][64]byte, n)
	took, err := r.during(ctx, n, func(_ context.Context, i int) error {
		begin := time.Now()
		err := PingPong(conns[i], buffers[i][:])
		times[i] = append(times[i], time.Since(begin))
		return err
	})
	all := slices.Concat(times...)
	slices.Sort(all)
	return float64(all[len(all)/2].Nanoseconds()) / 1000, float64(len(all)) / took.Seconds(), err
}

// Idle returns a Measure of the resident KiB and the descriptors that each of many
// idle connections takes.
func (r *Rig) Idle(many int) Measure {
	return func(ctx context.Context, t *Target) ([]float64, error) {
		memory, files := t.PID.Resident(), t.PID.Descriptors()
		conns := make([]net.Conn, 0, many)
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		for range many {
			c, err := t.Echo(ctx)
			if err != nil {
				return nil, fmt.Errorf("connection %d: %w", len(conns)+1, err)
			}
			conns = append(conns, c)
			if err := PingPong(c, make([]byte, 1)); err != nil {
				return nil, fmt.Errorf("connection %d: %w", len(conns), err)
			}
		}
		n := float64(many)
		return []float64{max(float64(t.PID.Resident()-memory)/1024/n, 0), float64(t.PID.Descriptors()-files) / n}, nil
	}
}
