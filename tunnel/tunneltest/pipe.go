package tunneltest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"cardea/tunnel"
)

// Pipes are a gateway to which the Session s-1 opens pipes.
type Pipes struct {
	Dial  func(context.Context) (tunnel.Pipe, error) // of the Session
	House <-chan tunnel.Pipe                         // their other ends, as the gateway has them
	At    string                                     // HOST:PORT of the gateway
	Stop  func()                                     // has the gateway stop
	Drop  func(session string)                       // ends what a Session has there
}

// OpenPipes starts a gateway that has most pipes at once, any number if it is 0, and asks
// alive whether the Session is. It ends in t.Cleanup.
type OpenPipes func(t *testing.T, most int, alive func() bool) Pipes

// RunPipe holds a way for packets to the contract of tunnel.Pipe.
func RunPipe(t *testing.T, open OpenPipes) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *pipeWorld)
	}{
		{"packets", pipeCarries},
		{"many senders", pipeIsWhole},
		{"a peer that does not read", pipeLoses},
		{"close by the client", func(t *testing.T, w *pipeWorld) {
			w.client.Close()
			over(t, w.house)
			over(t, w.client)
		}},
		{"close by the gateway", func(t *testing.T, w *pipeWorld) {
			w.house.Close()
			over(t, w.client)
		}},
		{"the gateway stops", func(t *testing.T, w *pipeWorld) {
			w.Stop()
			over(t, w.client)
		}},
		{"close wakes Receive", func(t *testing.T, w *pipeWorld) {
			woken := make(chan error)
			go func() {
				_, err := w.client.Receive(make([]byte, 1))
				woken <- err
			}()
			w.client.Close()
			if err := <-woken; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Receive: %v", err)
			}
		}},
		{"with the Session", func(t *testing.T, w *pipeWorld) {
			w.dead.Store(true)
			w.Drop("another")
			w.Drop("s-1")
			over(t, w.client)
			if _, err := w.Dial(t.Context()); err == nil {
				t.Error("there is a pipe of a Session that has ended")
			}
		}},
		{"dialling is given up", func(t *testing.T, w *pipeWorld) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := w.Dial(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newPipeWorld(t, open, 0)) })
	}
	t.Run("one too many", func(t *testing.T) {
		w := newPipeWorld(t, open, 1)
		if _, err := w.Dial(t.Context()); err != nil {
			t.Error(err)
		}
		over(t, w.client)
	})
}

// pipeWorld is a pipe, of which both ends are here.
type pipeWorld struct {
	Pipes
	client, house tunnel.Pipe
	dead          atomic.Bool // the Session is
}

func newPipeWorld(t *testing.T, open OpenPipes, most int) *pipeWorld {
	t.Helper()
	w := new(pipeWorld)
	w.Pipes = open(t, most, func() bool { return !w.dead.Load() })
	dial := w.Dial
	w.Dial = func(ctx context.Context) (tunnel.Pipe, error) {
		p, err := dial(ctx)
		if err == nil {
			t.Cleanup(func() { p.Close() })
		}
		return p, err
	}
	var err error
	if w.client, err = w.Dial(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.house = <-w.House
	return w
}

func pipeCarries(t *testing.T, w *pipeWorld) {
	if at := w.client.RemoteAddr().String(); at != w.At {
		t.Errorf("the client's pipe leads to %s, want %s", at, w.At)
	}
	packet := make([]byte, tunnel.MaxPacket)
	rand.NewChaCha8([32]byte{1}).Read(packet)
	b := make([]byte, tunnel.MaxPacket)
	for _, ends := range [][2]tunnel.Pipe{{w.client, w.house}, {w.house, w.client}} {
		for _, n := range []int{1, 2, 148, 1200, 1312, 1420, 4095, 4096, 4097, 16 << 10, tunnel.MaxPacket} {
			if err := ends[0].Send(packet[:n]); err != nil {
				t.Fatal(err)
			}
			if m, err := ends[1].Receive(b); err != nil || !bytes.Equal(b[:m], packet[:n]) {
				t.Fatalf("a packet of %d bytes, %v; want one of %d", m, err, n)
			}
		}
		// What cannot be sent, and what there is no room for, is lost; the next one is not.
		for _, lost := range [][]byte{nil, make([]byte, tunnel.MaxPacket+1), packet[:101]} {
			if err := ends[0].Send(lost); err != nil {
				t.Error(err)
			}
		}
		ends[0].Send([]byte("next"))
		if n, err := ends[1].Receive(b[:100]); err != nil || string(b[:n]) != "next" {
			t.Errorf("%q, %v", b[:n], err)
		}
	}
}

// pipeIsWhole sends packets of any size from many goroutines: each comes whole or not at all.
func pipeIsWhole(t *testing.T, w *pipeWorld) {
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
				if err := w.client.Send(b[:n]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() {
		senders.Wait()
		w.client.Close()
	}()
	got := 0
	b := make([]byte, tunnel.MaxPacket)
	for {
		n, err := w.house.Receive(b)
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

// pipeLoses sends more than all buffers on the way take to a peer that does not read: that
// costs packets, and no waiting.
func pipeLoses(t *testing.T, w *pipeWorld) {
	packet := make([]byte, 1200)
	const sent = 60_000
	for i := range sent {
		binary.BigEndian.PutUint32(packet, uint32(i))
		if err := w.house.Send(packet); err != nil {
			t.Fatal(err)
		}
	}
	came := map[uint32]bool{}
	for {
		n, err := w.client.Receive(packet)
		if err != nil {
			break
		}
		i := binary.BigEndian.Uint32(packet)
		if n != len(packet) || i >= sent || came[i] {
			t.Fatalf("packet %d of %d bytes, after %d others", i, n, len(came))
		}
		if came[i] = true; len(came) == 1 {
			w.house.Close()
		}
	}
	if len(came) == 0 || len(came) == sent {
		t.Errorf("%d of %d packets arrived", len(came), sent)
	}
}

// over checks that a pipe is, and can be closed all the same.
func over(t *testing.T, p tunnel.Pipe) {
	t.Helper()
	if _, err := p.Receive(make([]byte, 1)); err == nil {
		t.Error("Receive goes on")
	}
	if err := p.Send([]byte("x")); err == nil {
		t.Error("Send goes on")
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
