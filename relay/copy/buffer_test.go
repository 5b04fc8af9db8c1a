package copy

import (
	"bytes"
	"io"
	"math"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cardea/relay"
	"cardea/relay/relaytest"
)

// records is a stream that gives one record in each read, as TLS does, and notes
// how much each read could have taken.
type records struct {
	net.Conn
	sizes []int
	rest  []byte
	wants []int
}

func (r *records) SetDeadline(time.Time) error     { return nil }
func (r *records) SetReadDeadline(time.Time) error { return nil }

func (r *records) Read(p []byte) (int, error) {
	r.wants = append(r.wants, len(p))
	if len(r.rest) == 0 {
		if len(r.sizes) == 0 {
			return 0, io.EOF
		}
		r.rest, r.sizes = bytes.Repeat([]byte("x"), r.sizes[0]), r.sizes[1:]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Whoever waits for a stream holds a small buffer, but for bulk.
func TestPlainSourceWaitsWithASmallBuffer(t *testing.T) {
	tests := []struct {
		name  string
		sizes []int
		want  []int
	}{
		{"messages", []int{1, 100, smallSize - 1}, []int{smallSize, smallSize, smallSize, smallSize}},
		{"one that is larger", []int{5000}, []int{smallSize, largeSize, smallSize}},
		{"bulk in records, and after it", []int{bufferSize, bufferSize, 100}, []int{smallSize, largeSize, largeSize, largeSize, smallSize}},
		{"bulk in smaller records", []int{12000, 12000}, []int{smallSize, largeSize, largeSize, largeSize}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := New()
			r := &records{sizes: tt.sizes}
			var g leg
			g.init(r, relay.ClientClosed, relay.ClientReset)
			s := &plainSource{leg: &g, buffers: &e.buffers, patience: e.patience}
			for {
				c, err := s.read(math.MaxInt)
				if err == io.EOF {
					break
				}
				e.release(c)
			}
			if len(r.wants) != len(tt.want) {
				t.Fatalf("read into %v, want %v", r.wants, tt.want)
			}
			for i, n := range tt.want {
				if r.wants[i] != n {
					t.Fatalf("read into %v, want %v", r.wants, tt.want)
				}
			}
		})
	}
}

// noting notes how much the read that waits could take.
type noting struct {
	*relaytest.PipeEnd
	want atomic.Int64
}

func (n *noting) Read(p []byte) (int, error) {
	n.want.Store(int64(len(p)))
	return n.PipeEnd.Read(p)
}

// passes checks that as many bytes arrive.
func passes(t *testing.T, from io.Writer, to io.Reader, n int) {
	t.Helper()
	go from.Write(make([]byte, n))
	if _, err := io.ReadFull(to, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

// After bulk, whoever goes on waiting does so with a small buffer.
func TestNoLargeBufferAfterBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New()
		client, clientGiven := relaytest.Pipe()
		upstream, upstreamGiven := relaytest.Pipe()
		in := &noting{PipeEnd: clientGiven}
		e.Start(relay.Pair{Client: in, Upstream: upstreamGiven}, func(relay.Result) {})
		for range 3 {
			passes(t, client, upstream, 2*largeSize)
			synctest.Wait()
			if n := in.want.Load(); n != largeSize {
				t.Errorf("after bulk it waits with %d bytes", n)
			}
			time.Sleep(2 * patience)
			synctest.Wait()
			if n := in.want.Load(); n != smallSize {
				t.Errorf("then it waits with %d bytes", n)
			}
			passes(t, client, upstream, 10)
			time.Sleep(time.Hour)
		}
		relay.Reset(client, relay.ClientReset)
		upstream.Close()
		e.Wait()
	})
}
