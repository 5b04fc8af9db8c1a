//go:build linux

package loop

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardea/relay"
	"cardea/relay/copy"
)

// rivals are what is compared: this engine, and the portable one behind package net.
// They return where to connect to.
var rivals = []struct {
	name string
	open func(b *testing.B) string
}{
	{"loop", func(b *testing.B) string {
		return newWorld(b, New(Options{}), relay.Limits{Idle: time.Hour}).listener.Addr().String()
	}},
	{"copy", func(b *testing.B) string { return copying(b, echoing(b)) }},
}

// copying relays with package copy what it accepts.
func copying(b *testing.B, to netip.AddrPort) string {
	engine := copy.New()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				u, err := net.Dial("tcp4", to.String())
				if err != nil {
					relay.Reset(c, relay.DialFailed)
					return
				}
				engine.Start(relay.Pair{Client: c, Upstream: u, Limits: relay.Limits{Idle: time.Hour}}, func(relay.Result) {})
			})
		}
	})
	b.Cleanup(func() {
		l.Close()
		serving.Wait()
		engine.Wait()
	})
	return l.Addr().String()
}

// compare runs a benchmark for every rival and number of callers: caller takes so many
// steps. It reports the processor time of the whole process, peers included.
func compare(b *testing.B, callers []int, caller func(b *testing.B, address string, steps int)) {
	for _, n := range callers {
		for _, r := range rivals {
			b.Run(fmt.Sprintf("%d/%s", n, r.name), func(b *testing.B) {
				address := r.open(b)
				var tasks sync.WaitGroup
				begin := cpu()
				b.ResetTimer()
				for i := range n {
					steps := b.N / n
					if i < b.N%n {
						steps++
					}
					tasks.Go(func() { caller(b, address, steps) })
				}
				tasks.Wait()
				b.StopTimer()
				b.ReportMetric(float64(cpu()-begin)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

func dial(b *testing.B, address string) net.Conn {
	c, err := net.Dial("tcp4", address)
	if err != nil {
		b.Error(err)
		return nil
	}
	return c
}

// BenchmarkConnections makes a connection, sends 64 bytes to and fro, and ends it, at
// each step.
func BenchmarkConnections(b *testing.B) {
	compare(b, []int{1, 64}, func(b *testing.B, address string, steps int) {
		message := make([]byte, 64)
		for range steps {
			c := dial(b, address)
			if c == nil {
				return
			}
			c.Write(message)
			io.ReadFull(c, message)
			c.(*net.TCPConn).CloseWrite()
			c.Read(message)
			c.Close()
		}
	})
}

// BenchmarkPingPong sends 64 bytes to and fro at each step.
func BenchmarkPingPong(b *testing.B) {
	compare(b, []int{1, 64}, func(b *testing.B, address string, steps int) {
		c := dial(b, address)
		if c == nil {
			return
		}
		defer c.Close()
		message := make([]byte, 64)
		for range steps {
			c.Write(message)
			io.ReadFull(c, message)
		}
	})
}

// BenchmarkThroughput sends 1 MiB to and fro at each step.
func BenchmarkThroughput(b *testing.B) {
	compare(b, []int{1, 8}, func(b *testing.B, address string, steps int) {
		const size = 1 << 20
		b.SetBytes(2 * size)
		c := dial(b, address)
		if c == nil {
			return
		}
		defer c.Close()
		go func() {
			block := make([]byte, 256<<10)
			for range steps * size / len(block) {
				c.Write(block)
			}
		}()
		io.CopyN(io.Discard, struct{ io.Reader }{c}, int64(steps)*size)
	})
}

// BenchmarkCut cuts 1000 relays at each step, and waits until all peers know.
func BenchmarkCut(b *testing.B) {
	w := newWorld(b, New(Options{}), relay.Limits{Idle: time.Hour})
	for range b.N {
		b.StopTimer()
		var peers []net.Conn
		var lives []relay.Live
		for range 1000 {
			peers = append(peers, w.enter(b))
			lives = append(lives, <-w.lives)
		}
		b.StartTimer()
		for _, l := range lives {
			l.Cut(relay.Revoked)
		}
		for _, p := range peers {
			io.Copy(io.Discard, p)
		}
		b.StopTimer()
		for _, p := range peers {
			p.Close()
		}
	}
}

// cpu returns the processor time that this process has used, in nanoseconds.
func cpu() int64 {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return usage.Utime.Nano() + usage.Stime.Nano()
}
