//go:build unix

package copy_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"

	"cardea/relay"
	"cardea/relay/copy"
)

// join carries bytes between two streams until both have ended.
type join func(client, upstream net.Conn)

// rivals returns what is compared: the plain way, and ours.
func rivals(b *testing.B) map[string]join {
	engine := copy.New()
	b.Cleanup(engine.Wait)
	return map[string]join{
		"io.Copy": func(client, upstream net.Conn) {
			var ways sync.WaitGroup
			for _, way := range [][2]net.Conn{{client, upstream}, {upstream, client}} {
				ways.Go(func() {
					io.Copy(way[0], way[1])
					way[0].(relay.CloseWriter).CloseWrite()
				})
			}
			go func() {
				ways.Wait()
				client.Close()
				upstream.Close()
			}()
		},
		"engine": func(client, upstream net.Conn) {
			engine.Start(relay.Pair{Client: client, Upstream: upstream}, func(relay.Result) {})
		},
	}
}

// relayed returns the peers of streams that were joined.
func relayed(b *testing.B, j join) (client, upstream net.Conn) {
	dial := func() (peer, given net.Conn) {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer listener.Close()
		if peer, err = net.Dial("tcp4", listener.Addr().String()); err != nil {
			b.Fatal(err)
		}
		if given, err = listener.Accept(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { peer.Close() })
		return peer, given
	}
	client, clientGiven := dial()
	upstream, upstreamGiven := dial()
	j(clientGiven, upstreamGiven)
	return client, upstream
}

// each runs a benchmark for every rival and number of connections, and reports the
// processor time of the whole process, peers included.
func each(b *testing.B, run func(b *testing.B, clients, upstreams []net.Conn)) {
	for _, connections := range []int{1, 8, 64} {
		for _, name := range []string{"io.Copy", "engine"} {
			b.Run(fmt.Sprintf("%d/%s", connections, name), func(b *testing.B) {
				j := rivals(b)[name]
				var clients, upstreams []net.Conn
				for range connections {
					client, upstream := relayed(b, j)
					clients, upstreams = append(clients, client), append(upstreams, upstream)
				}
				begin := cpu()
				b.ResetTimer()
				run(b, clients, upstreams)
				b.StopTimer()
				b.ReportMetric(float64(cpu()-begin)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkThroughput sends 1 MiB from client to upstream at each step.
func BenchmarkThroughput(b *testing.B) {
	const size = 1 << 20
	each(b, func(b *testing.B, clients, upstreams []net.Conn) {
		b.SetBytes(size)
		var tasks sync.WaitGroup
		for i := range clients {
			steps := b.N / len(clients)
			if i < b.N%len(clients) {
				steps++
			}
			tasks.Go(func() {
				block := make([]byte, 128<<10)
				for range steps * size / len(block) {
					clients[i].Write(block)
				}
			})
			tasks.Go(func() {
				block := make([]byte, 256<<10)
				for left := steps * size; left > 0; {
					n, err := upstreams[i].Read(block)
					if err != nil {
						b.Error(err)
						return
					}
					left -= n
				}
			})
		}
		tasks.Wait()
	})
}

// BenchmarkPingPong sends 64 bytes to and fro at each step.
func BenchmarkPingPong(b *testing.B) {
	each(b, func(b *testing.B, clients, upstreams []net.Conn) {
		var tasks sync.WaitGroup
		for i := range clients {
			steps := b.N / len(clients)
			if i < b.N%len(clients) {
				steps++
			}
			tasks.Go(func() {
				message := make([]byte, 64)
				for range steps {
					clients[i].Write(message)
					io.ReadFull(clients[i], message)
				}
			})
			tasks.Go(func() {
				message := make([]byte, 64)
				for range steps {
					io.ReadFull(upstreams[i], message)
					upstreams[i].Write(message)
				}
			})
		}
		tasks.Wait()
	})
}

// cpu returns the processor time that this process has used, in nanoseconds.
func cpu() int64 {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return usage.Utime.Nano() + usage.Stime.Nano()
}
