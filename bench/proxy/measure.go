package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cardea/tunnel"
)

// dial opens a connection to the echo Service of a target.
func (t *target) dial(ctx context.Context) (net.Conn, error) {
	if t.pool != nil {
		return t.pool.Dial(ctx, "echo")
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", t.echo)
	if err != nil || t.config == nil {
		return c, err
	}
	s := tls.Client(c, t.config)
	if err := s.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, err
	}
	if t.framed {
		f, err := openFramed(s, "echo")
		if err != nil {
			s.Close()
			return nil, err
		}
		return f, nil
	}
	return s, nil
}

func pingPong(c net.Conn, b []byte) error {
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
func (b *bench) during(ctx context.Context, n int, f func(ctx context.Context, caller int) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, b.each)
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

// bytes returns GB/s and CPU seconds per GB.
func (b *bench) bytes(ctx context.Context, t *target) ([]float64, error) {
	const streams = 8
	conns := make([]net.Conn, streams)
	for i := range conns {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", t.sink)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		conns[i] = c
	}
	chunk := make([]byte, 256<<10)
	before, cpu := b.up.taken.Load(), t.cpu()
	took, err := b.during(ctx, streams, func(ctx context.Context, i int) error {
		deadline, _ := ctx.Deadline()
		conns[i].SetWriteDeadline(deadline)
		_, err := conns[i].Write(chunk)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
		return err
	})
	gb := float64(b.up.taken.Load()-before) / 1e9
	return []float64{gb / took.Seconds(), (t.cpu() - cpu).Seconds() / gb}, err
}

// conns returns new connections a second and CPU µs for each.
func (b *bench) conns(ctx context.Context, t *target) ([]float64, error) {
	return b.connect(ctx, t, 64)
}

func (b *bench) tlsConns(ctx context.Context, t *target) ([]float64, error) {
	return b.connect(ctx, t, 32)
}

func (b *bench) connect(ctx context.Context, t *target, callers int) ([]float64, error) {
	var n, resumed atomic.Int64
	cpu := t.cpu()
	took, err := b.during(ctx, callers, func(ctx context.Context, _ int) error {
		c, err := t.dial(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := pingPong(c, make([]byte, 1)); err != nil {
			return err
		}
		under := c
		if f, ok := c.(*framed); ok {
			under = f.Conn
		}
		if s, ok := under.(*tls.Conn); ok && s.ConnectionState().DidResume {
			resumed.Add(1)
		}
		n.Add(1)
		if tcp, ok := c.(*net.TCPConn); ok {
			tcp.SetLinger(0) // the load must not run out of ports; both see the end
		}
		if s, ok := c.(tunnel.Conn); ok { // ended as it should be, or it goes into no pool
			if err := s.CloseWrite(); err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, s); err != nil {
				return err
			}
		}
		return nil
	})
	if done := n.Load(); t.config != nil && done > 100 && (resumed.Load() > done/2) != t.resume {
		err = errors.Join(err, fmt.Errorf("%d of %d handshakes were resumed", resumed.Load(), done))
	}
	return []float64{float64(n.Load()) / took.Seconds(), float64((t.cpu() - cpu).Microseconds()) / float64(n.Load())}, err
}

// latency returns the median time there and back of one connection, of 64, and how
// many 64 do a second.
func (b *bench) latency(ctx context.Context, t *target) ([]float64, error) {
	one, _, err := b.pings(ctx, t, 1)
	if err != nil {
		return nil, err
	}
	many, rate, err := b.pings(ctx, t, 64)
	return []float64{one, many, rate}, err
}

func (b *bench) pings(ctx context.Context, t *target, n int) (p50, rate float64, err error) {
	conns, times := make([]net.Conn, n), make([][]time.Duration, n)
	for i := range conns {
		if conns[i], err = t.dial(ctx); err != nil {
			return 0, 0, err
		}
		defer conns[i].Close()
	}
	buffers := make([][64]byte, n)
	took, err := b.during(ctx, n, func(_ context.Context, i int) error {
		begin := time.Now()
		err := pingPong(conns[i], buffers[i][:])
		times[i] = append(times[i], time.Since(begin))
		return err
	})
	all := slices.Concat(times...)
	slices.Sort(all)
	return float64(all[len(all)/2].Nanoseconds()) / 1000, float64(len(all)) / took.Seconds(), err
}

// idleMemory returns the resident KiB and the descriptors that each of many idle
// connections takes.
func (b *bench) idleMemory(ctx context.Context, t *target) ([]float64, error) {
	memory, files := t.resident(), t.descriptors()
	conns := make([]net.Conn, 0, b.idle)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range b.idle {
		c, err := t.dial(ctx)
		if err != nil {
			return nil, fmt.Errorf("connection %d: %w", len(conns)+1, err)
		}
		conns = append(conns, c)
		if err := pingPong(c, make([]byte, 1)); err != nil {
			return nil, fmt.Errorf("connection %d: %w", len(conns), err)
		}
	}
	n := float64(b.idle)
	return []float64{max(float64(t.resident()-memory)/1024/n, 0), float64(t.descriptors()-files) / n}, nil
}

// family returns a process and its children: nginx works in those.
func (t *target) family() []string {
	if t.pid == 0 {
		return nil
	}
	list := []string{strconv.Itoa(t.pid)}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", t.pid))
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err == nil {
			list = append(list, strings.Fields(string(b))...)
		}
	}
	return list
}

// tick is the unit of /proc/PID/stat (USER_HZ, proc(5)).
const tick = 10 * time.Millisecond

// cpu returns the CPU time that a target has used.
func (t *target) cpu() (sum time.Duration) {
	for _, pid := range t.family() {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest) // from field 3 of proc(5)
		for _, i := range []int{11, 12} {
			n, err := strconv.ParseInt(f[i], 10, 64)
			if err == nil {
				sum += time.Duration(n) * tick
			}
		}
	}
	return sum
}

// resident returns the resident bytes of a target.
func (t *target) resident() (sum int64) {
	for _, pid := range t.family() {
		b, err := os.ReadFile("/proc/" + pid + "/statm")
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
		if err == nil {
			sum += n * int64(os.Getpagesize())
		}
	}
	return sum
}

func (t *target) descriptors() (n int) {
	for _, pid := range t.family() {
		files, _ := os.ReadDir("/proc/" + pid + "/fd")
		n += len(files)
	}
	return n
}
