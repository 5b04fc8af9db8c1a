package tls_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync/atomic"
	"testing"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
)

// meter counts the writes of a connection.
type meter struct {
	net.Conn
	writes atomic.Int64
	due    atomic.Int64 // bytes that are on their way: a read waits for as many as it has room for
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := io.ReadAtLeast(m.Conn, p, int(max(1, min(m.due.Load(), int64(len(p))))))
	m.due.Add(-int64(n))
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	m.writes.Add(1)
	return m.Conn.Write(p)
}

// TestBulkTakesOneCallABatch shows that what a relay writes at once goes out at once and
// is read at once, small as the records are, and that every byte of writes of any size
// arrives, in both directions at the same time.
func TestBulkTakesOneCallABatch(t *testing.T) {
	h := tunneltest.NewHouse()
	g := serve(t, &tls.Server{Handler: h})
	d := g.dialer(t, always(g.ca.Session()))
	m := &meter{}
	d.Net = func(ctx context.Context, network, address string) (c net.Conn, err error) {
		m.Conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return m, err
	}
	served := make(chan tunnel.Conn)
	go func() { served <- tell(t, <-h.Arrivals, ok) }()
	client, err := d.Dial(t.Context(), "nats")
	if err != nil {
		t.Fatal(err)
	}
	server := <-served

	batch := make([]byte, 64<<10)
	before := m.writes.Load()
	go client.Write(batch)
	if _, err := io.ReadFull(server, batch); err != nil {
		t.Fatal(err)
	}
	if n := m.writes.Load() - before; n != 1 {
		t.Errorf("%d writes for 64 KiB", n)
	}

	const records, overhead = 16, 3 + 5 + 1 + 16 // of a frame, and of a record of TLS 1.3
	m.due.Store(int64(len(batch) + records*overhead))
	go server.Write(batch)
	if n, err := client.Read(batch); n != len(batch) {
		t.Errorf("one read brings %d bytes of 64 KiB, %v", n, err)
	}

	data := make([]byte, 4<<20)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(data)
	carry := func(c tunnel.Conn, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		for rest := data; len(rest) > 0; {
			n := min(1+r.IntN(40<<10), len(rest))
			if _, err := c.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
		c.CloseWrite()
	}
	go carry(server, 1)
	go carry(client.(tunnel.Conn), 2)
	got := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(server)
		got <- b
	}()
	if b, err := io.ReadAll(client); err != nil || !bytes.Equal(b, data) {
		t.Errorf("the client got %d bytes, %v", len(b), err)
	}
	if b := <-got; !bytes.Equal(b, data) {
		t.Errorf("the house got %d bytes", len(b))
	}
	server.Close()
	client.Close()
}

// receiver is a Handler whose streams are read to the end.
type receiver struct{ mib chan struct{} }

func (r *receiver) Refused(api.Refusal) {}

func (r *receiver) Arrive(a api.Arrival) {
	a.Conn.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictOK})
	go func() {
		io.CopyN(io.Discard, a.Conn, 1<<20)
		r.mib <- struct{}{}
		io.Copy(io.Discard, a.Conn)
		a.Conn.Close()
	}()
}

// BenchmarkIdleMemory is what an open stream holds at both its ends together
// after it has carried 1 MiB, the 8 KiB of io.Discard included.
func BenchmarkIdleMemory(b *testing.B) {
	r := &receiver{make(chan struct{})}
	g := serveOn(b, &tls.Server{Handler: r}, "127.0.0.1:0")
	d := g.dialer(b, always(g.ca.Session()))
	memory := func() (heap, stack uint64) {
		for range 4 { // stacks shrink by half each time
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, m.StackInuse
	}
	mib := make([]byte, 1<<20)
	const streams = 500
	heap, stack := memory()
	for range streams {
		c, err := d.Dial(b.Context(), "nats")
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		go c.Write(mib)
		<-r.mib
	}
	h, s := memory()
	b.ReportMetric(float64(h-heap)/streams, "heap-B/stream")
	b.ReportMetric(float64(s-stack)/streams, "stack-B/stream")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBulk is what a stream costs both its ends together, by 16 KiB.
func BenchmarkBulk(b *testing.B) {
	r := &receiver{make(chan struct{}, 1)}
	g := serveOn(b, &tls.Server{Handler: r}, "127.0.0.1:0")
	c, err := g.dialer(b, always(g.ca.Session())).Dial(b.Context(), "nats")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 16<<10)
	b.SetBytes(int64(len(p)))
	start := cpuTime(b)
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-start).Microseconds())/float64(b.N), "cpu-µs/op")
}
