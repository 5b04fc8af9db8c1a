package tls_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/tls"
)

// piped returns both ends of a new pipe of a Session, and the gateway.
func piped(t *testing.T, s *tls.Server) (client, house tunnel.Pipe, g *gateway) {
	t.Helper()
	pipes := make(chan tunnel.Pipe, 10)
	s.Handler, s.Session = newHouse(), sessionOf
	s.Pipe = func(ctx context.Context, leaf *x509.Certificate, p tunnel.Pipe) {
		if uid, _ := sessionOf(leaf); uid != "s-1" {
			t.Errorf("a pipe of Session %q", uid)
		}
		pipes <- p
		<-ctx.Done()
	}
	g = serve(t, s)
	client, err := g.dialer(t, always(g.ca.session())).Pipe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client, <-pipes, g
}

// heard reads packets until one says so.
func heard(t *testing.T, p tunnel.Pipe, want []byte) {
	t.Helper()
	b := make([]byte, tunnel.MaxPacket)
	n, err := p.Receive(b)
	if err != nil || !bytes.Equal(b[:n], want) {
		t.Errorf("a packet of %d bytes, %v; want one of %d", n, err, len(want))
	}
}

func TestPipe(t *testing.T) {
	client, house, g := piped(t, &tls.Server{})
	if client.RemoteAddr().String() != g.addr || house.RemoteAddr().(*net.TCPAddr).Port == 0 {
		t.Errorf("%v, %v", client.RemoteAddr(), house.RemoteAddr())
	}
	packet := make([]byte, tunnel.MaxPacket)
	rand.NewChaCha8([32]byte{1}).Read(packet)
	for _, ends := range [][2]tunnel.Pipe{{client, house}, {house, client}} {
		for _, n := range []int{1, 2, 148, 1420, 4095, 4096, 4097, 16 << 10, tunnel.MaxPacket} {
			if err := ends[0].Send(packet[:n]); err != nil {
				t.Fatal(err)
			}
			heard(t, ends[1], packet[:n])
		}
		// What cannot be sent, and what there is no room for, is lost; the next one is not.
		for _, lost := range [][]byte{nil, make([]byte, tunnel.MaxPacket+1)} {
			if err := ends[0].Send(lost); err != nil {
				t.Error(err)
			}
		}
		ends[0].Send(packet[:101])
		ends[0].Send([]byte("next"))
		b := make([]byte, 100)
		if n, err := ends[1].Receive(b); err != nil || string(b[:n]) != "next" {
			t.Errorf("%q, %v", b[:n], err)
		}
	}
	if n := g.Stats().Pipes; n != 1 {
		t.Errorf("%d pipes", n)
	}
}

// Many senders, with packets of any size: each comes whole or not at all.
func TestPipeWhole(t *testing.T) {
	client, house, _ := piped(t, &tls.Server{})
	var senders sync.WaitGroup
	for i := range 4 {
		senders.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			b := make([]byte, 8<<10)
			for range 2000 {
				n := 1 + r.IntN(len(b)-1)
				for j := range n {
					b[j] = byte(n)
				}
				if err := client.Send(b[:n]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() {
		senders.Wait()
		client.Close()
	}()
	got := 0
	b := make([]byte, tunnel.MaxPacket)
	for {
		n, err := house.Receive(b)
		if err != nil {
			break
		}
		got++
		if !bytes.Equal(b[:n], bytes.Repeat([]byte{byte(n)}, n)) {
			t.Fatalf("a packet of %d bytes came mixed with others", n)
		}
	}
	if got == 0 {
		t.Error("no packet came")
	}
}

// A peer that does not read costs packets, and no waiting.
func TestPipeLoses(t *testing.T) {
	client, house, _ := piped(t, &tls.Server{})
	packet := make([]byte, 1420)
	const sent = 50_000 // 70 MB: more than all buffers on the way
	for i := range sent {
		binary.BigEndian.PutUint32(packet, uint32(i))
		if err := house.Send(packet); err != nil {
			t.Fatal(err)
		}
	}
	house.Close()
	got := 0
	last := -1
	for {
		n, err := client.Receive(packet)
		if err != nil {
			break
		}
		if i := int(binary.BigEndian.Uint32(packet)); n != len(packet) || i <= last || i >= sent {
			t.Fatalf("packet %d of %d bytes after %d", i, n, last)
		} else {
			last = i
		}
		got++
	}
	if got == 0 || got == sent {
		t.Errorf("%d of %d packets arrived", got, sent)
	}
}

func TestPipeEnds(t *testing.T) {
	over := func(t *testing.T, p tunnel.Pipe) {
		t.Helper()
		if _, err := p.Receive(make([]byte, 1)); err == nil {
			t.Error("Receive goes on")
		}
		if err := p.Send([]byte("x")); err == nil {
			t.Error("Send goes on")
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Run("by the client", func(t *testing.T) {
		client, house, _ := piped(t, &tls.Server{})
		client.Close()
		over(t, house)
		if err := client.Send([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Send after Close: %v", err)
		}
	})
	t.Run("by the gateway", func(t *testing.T) {
		client, house, _ := piped(t, &tls.Server{})
		house.Close()
		over(t, client)
	})
	t.Run("when the gateway stops", func(t *testing.T) {
		client, _, g := piped(t, &tls.Server{})
		g.stop()
		over(t, client)
	})
	t.Run("while Receive waits", func(t *testing.T) {
		client, _, _ := piped(t, &tls.Server{})
		woken := make(chan error)
		go func() {
			_, err := client.Receive(make([]byte, 1))
			woken <- err
		}()
		client.Close()
		if err := <-woken; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Receive: %v", err)
		}
	})
	t.Run("one too many", func(t *testing.T) {
		first, _, g := piped(t, &tls.Server{Limits: tls.Limits{Pipes: 1}})
		pipes := make(chan tunnel.Pipe)
		go func() {
			p, err := g.dialer(t, always(g.ca.session())).Pipe(t.Context())
			if err != nil {
				t.Error(err)
			}
			pipes <- p
		}()
		over(t, first)
		(<-pipes).Close()
	})
}

// A gateway that says no welcome, or another thing, is no pipe's other end.
func TestPipeWithoutWelcome(t *testing.T) {
	g := serve(t, &tls.Server{Handler: newHouse(), Session: func(*x509.Certificate) (string, bool) { return "", false },
		Pipe: func(context.Context, *x509.Certificate, tunnel.Pipe) { t.Error("a pipe of nobody") }})
	d := g.dialer(t, always(g.ca.session()))
	if _, err := d.Pipe(t.Context()); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("%v; want UNAVAILABLE", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Pipe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("dialling that was given up: %v", err)
	}
}

// BenchmarkPipe is what a packet of 1,420 bytes costs both its ends together.
func BenchmarkPipe(b *testing.B) {
	pipes := make(chan tunnel.Pipe)
	g := serveOn(b, &tls.Server{Handler: newHouse(), Session: sessionOf, Pipe: func(ctx context.Context, _ *x509.Certificate, p tunnel.Pipe) {
		pipes <- p
		<-ctx.Done()
	}}, "127.0.0.1:0")
	client, err := g.dialer(b, always(g.ca.session())).Pipe(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	house := <-pipes
	packet := make([]byte, 1420)
	got := 0
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 2048)
		for {
			if _, err := house.Receive(buf); err != nil {
				return
			}
			got++
		}
	})
	for b.Loop() {
		if err := client.Send(packet); err != nil && err != io.EOF {
			b.Fatal(err)
		}
	}
	client.Close()
	reading.Wait()
	b.ReportMetric(float64(got*len(packet))/1e6/b.Elapsed().Seconds(), "MB/s-delivered")
}
