package rig

import (
	"context"
	"crypto/tls"
	"encoding/binary"
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

// PerGB returns the units of Bytes.
func PerGB() []string { return []string{"GB/s", "CPU s/GB", "machine s/GB"} }

// PerConn returns the units of Conns.
func PerConn() []string { return []string{"1/s", "CPU µs each", "machine µs each"} }

// Bytes measures GB/s and CPU seconds per GB, of the proxy and of the whole machine
// (load and upstreams too, and whatever else runs), of 8 streams up.
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
	before, used := r.Up.taken.Load(), From(t)
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
	own, all := used.Per(gb)
	return []float64{gb / took.Seconds(), own.Seconds(), all.Seconds()}, err
}

// Conns returns a Measure of new connections a second and CPU µs for each, of the
// proxy and of the whole machine: connect, a byte there and back, close. Before, each
// caller has one that does not count: what is kept for the next connection is there.
func (r *Rig) Conns(callers int) Measure {
	return func(ctx context.Context, t *Target) ([]float64, error) {
		_, endAll, err := open(ctx, t, callers)
		if err != nil {
			return nil, err
		}
		endAll()
		var n, told, resumed atomic.Int64
		used := From(t)
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
		own, all := used.Per(float64(n.Load()))
		return []float64{float64(n.Load()) / took.Seconds(), micros(own), micros(all)}, err
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

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// size is that of the messages of Closed and Paced.
const size = 64

// open opens connections to the upstream that sends back what it gets.
func open(ctx context.Context, t *Target, n int) (conns []net.Conn, end func(), err error) {
	end = func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for range n {
		c, err := t.Echo(ctx)
		if err != nil {
			end()
			return nil, nil, fmt.Errorf("connection %d: %w", len(conns)+1, err)
		}
		conns = append(conns, c)
		if err := PingPong(c, make([]byte, 1)); err != nil {
			end()
			return nil, nil, fmt.Errorf("connection %d: %w", len(conns), err)
		}
	}
	return conns, end, nil
}

// Closed returns a Measure of the median time there and back in µs, on so many
// connections, for each number: the next message is sent when the last is back.
func (r *Rig) Closed(many ...int) Measure { return r.closed([]float64{0.5}, many) }

// Tails is Closed with the 99th percentile beside each median.
func (r *Rig) Tails(many ...int) Measure { return r.closed([]float64{0.5, 0.99}, many) }

func (r *Rig) closed(quantiles []float64, many []int) Measure {
	return func(ctx context.Context, t *Target) (figures []float64, err error) {
		for _, n := range many {
			conns, end, err := open(ctx, t, n)
			if err != nil {
				return nil, err
			}
			times, buffers := make([][]time.Duration, n), make([][size]byte, n)
			_, err = r.during(ctx, n, func(_ context.Context, i int) error {
				begin := time.Now()
				err := PingPong(conns[i], buffers[i][:])
				times[i] = append(times[i], time.Since(begin))
				return err
			})
			end()
			if err != nil {
				return nil, err
			}
			all := slices.Concat(times...)
			for _, q := range quantiles {
				figures = append(figures, quantile(all, q))
			}
		}
		return figures, nil
	}
}

// quantile returns one in µs.
func quantile(d []time.Duration, q float64) float64 {
	slices.Sort(d)
	return micros(d[min(int(q*float64(len(d))), len(d)-1)])
}

// A Pace is how many connections have together so many messages a second.
type Pace struct{ Conns, Rate int }

// Paced returns a Measure of the median time there and back in µs for each Pace, of
// messages that are sent when they are due, whatever became of those before. It
// counts from when a message was due.
func (r *Rig) Paced(paces ...Pace) Measure {
	return func(ctx context.Context, t *Target) (p50 []float64, err error) {
		for _, p := range paces {
			v, err := r.pace(ctx, t, p)
			if err != nil {
				return nil, err
			}
			p50 = append(p50, v)
		}
		return p50, nil
	}
}

func (r *Rig) pace(ctx context.Context, t *Target, p Pace) (float64, error) {
	conns, end, err := open(ctx, t, p.Conns)
	if err != nil {
		return 0, err
	}
	defer end()
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(r.Each + 30*time.Second))
	}
	each := max(int(r.Each.Seconds()*float64(p.Rate))/p.Conns, 1)
	times, failed := make([][]time.Duration, p.Conns), make([]error, p.Conns+1)
	begin := time.Now()
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() {
			b := make([]byte, size)
			for range each {
				if _, err := io.ReadFull(c, b); err != nil {
					failed[i] = err
					return
				}
				// A message says when it was due.
				times[i] = append(times[i], time.Since(begin)-time.Duration(binary.LittleEndian.Uint64(b)))
			}
		})
	}
	all.Go(func() {
		b := make([]byte, size)
		failed[p.Conns] = eachDue(each*p.Conns, time.Second/time.Duration(p.Rate), begin, func(k int, due time.Duration) error {
			binary.LittleEndian.PutUint64(b, uint64(due))
			_, err := conns[k%p.Conns].Write(b)
			return err
		})
	})
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		return 0, err
	}
	return quantile(slices.Concat(times...), 0.5), nil
}

// Idle returns a Measure of the resident KiB of each of many connections that do
// nothing, after a byte there and back and again after each has carried a MiB both
// ways, and of the descriptors of each. It needs a process that has done nothing.
func (r *Rig) Idle(many int) Measure {
	return func(ctx context.Context, t *Target) ([]float64, error) {
		memory, files := t.PID.Resident(), t.PID.Descriptors()
		each := func() float64 {
			select { // as idle connections are, and not as those that have just come
			case <-time.After(r.Each):
			case <-ctx.Done():
			}
			return max(float64(t.PID.Resident()-memory)/1024/float64(many), 0)
		}
		conns, end, err := open(ctx, t, many)
		if err != nil {
			return nil, err
		}
		defer end()
		first, descriptors := each(), float64(t.PID.Descriptors()-files)/float64(many)
		if err := carry(conns); err != nil {
			return nil, err
		}
		second := each()
		if t.Held != nil {
			if err := t.Held(); err != nil {
				return nil, err
			}
		}
		return []float64{first, second, descriptors}, ctx.Err()
	}
}

// carry carries a MiB there and back on each connection, on a few at a time.
func carry(conns []net.Conn) error {
	const callers, chunk = 8, 64 << 10
	var next atomic.Int64
	failed := make([]error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			b := make([]byte, chunk)
			for n := next.Add(1); int(n) <= len(conns) && failed[i] == nil; n = next.Add(1) {
				for range (1 << 20) / chunk {
					if failed[i] = PingPong(conns[n-1], b); failed[i] != nil {
						break
					}
				}
			}
		})
	}
	all.Wait()
	return errors.Join(failed...)
}
