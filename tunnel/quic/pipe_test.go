package quic_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/quic"
)

// piped returns both ends of a new pipe of a Session, and the gateway.
func piped(t *testing.T, s *quic.Server) (client, house tunnel.Pipe, g *gateway) {
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

func TestPipe(t *testing.T) {
	client, house, g := piped(t, &quic.Server{})
	if client.RemoteAddr().String() != g.addr {
		t.Errorf("%v", client.RemoteAddr())
	}
	packet := make([]byte, tunnel.MaxPacket)
	rand.NewChaCha8([32]byte{1}).Read(packet)
	b := make([]byte, tunnel.MaxPacket)
	for _, ends := range [][2]tunnel.Pipe{{client, house}, {house, client}} {
		for _, n := range []int{1, 2, 148, 1200, 1312, 1420, 4096, tunnel.MaxPacket} {
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
	if n := g.Stats().Pipes; n != 1 {
		t.Errorf("%d pipes", n)
	}
}

// A peer that does not read costs packets, and no waiting.
func TestPipeLoses(t *testing.T) {
	client, house, _ := piped(t, &quic.Server{})
	packet := make([]byte, 1200)
	for range 20_000 {
		if err := house.Send(packet); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := client.Receive(packet); n != len(packet) || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// A pipe goes on when the address of the client changes, and when packets are lost.
func TestPipeMigrates(t *testing.T) {
	pipes := make(chan tunnel.Pipe, 1)
	g := serve(t, &quic.Server{Handler: newHouse(), Session: sessionOf, Pipe: func(ctx context.Context, _ *x509.Certificate, p tunnel.Pipe) {
		pipes <- p
		<-ctx.Done()
	}})
	n := newNetwork(t, g.addr)
	client, err := n.through(g, t).Pipe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	house := <-pipes
	before := house.RemoteAddr().String()
	n.move()
	b := make([]byte, 10)
	if err := client.Send([]byte("here")); err != nil {
		t.Fatal(err)
	}
	if _, err := house.Receive(b); err != nil {
		t.Fatal(err)
	}
	// The answer may be lost until the gateway knows that the client is there.
	back := make(chan error, 1)
	go func() {
		_, err := client.Receive(b)
		back <- err
	}()
	for arrived := false; !arrived; {
		house.Send([]byte("there"))
		client.Send([]byte("here"))
		select {
		case err := <-back:
			if err != nil {
				t.Fatal(err)
			}
			arrived = true
		default:
			if _, err := house.Receive(make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if after := house.RemoteAddr().String(); after == before {
		t.Errorf("the gateway thinks that the client is at %s", after)
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
		for range 2 {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Run("by the client", func(t *testing.T) {
		client, house, _ := piped(t, &quic.Server{})
		client.Close()
		over(t, house)
	})
	t.Run("by the gateway", func(t *testing.T) {
		client, house, _ := piped(t, &quic.Server{})
		house.Close()
		over(t, client)
	})
	t.Run("when the gateway stops", func(t *testing.T) {
		client, _, g := piped(t, &quic.Server{})
		g.stop()
		over(t, client)
	})
	t.Run("one too many", func(t *testing.T) {
		first, _, g := piped(t, &quic.Server{Limits: quic.Limits{Pipes: 1}})
		second, err := g.dialer(t, always(g.ca.session())).Pipe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		over(t, first)
	})
	t.Run("with the Session", func(t *testing.T) {
		var dead atomic.Bool
		client, _, g := piped(t, &quic.Server{Alive: func(*x509.Certificate) bool { return !dead.Load() }})
		dead.Store(true)
		g.DropSession("another")
		g.DropSession("s-1")
		over(t, client)
		if _, err := g.dialer(t, always(g.ca.session())).Pipe(t.Context()); !api.HasCode(err, api.CodeUnavailable) {
			t.Errorf("a pipe of a Session that has ended: %v", err)
		}
	})
	t.Run("dialling is given up", func(t *testing.T) {
		_, _, g := piped(t, &quic.Server{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.dialer(t, always(g.ca.session())).Pipe(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}
