package quic_test

import (
	"context"
	"crypto/x509"
	"testing"

	"cardea/tunnel"
	"cardea/tunnel/quic"
	"cardea/tunnel/tunneltest"
)

func TestPipe(t *testing.T) {
	tunneltest.RunPipe(t, func(t *testing.T, most int, alive func() bool) tunneltest.Pipes {
		pipes := make(chan tunnel.Pipe, 10)
		g := serve(t, &quic.Server{
			Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, Limits: quic.Limits{Pipes: most},
			Alive: func(*x509.Certificate) bool { return alive() },
			Pipe: func(ctx context.Context, leaf *x509.Certificate, p tunnel.Pipe) {
				if uid, _ := tunneltest.SessionOf(leaf); uid != "s-1" {
					t.Errorf("a pipe of Session %q", uid)
				}
				pipes <- p
				<-ctx.Done()
			},
		})
		d := g.dialer(t, always(g.ca.Session()))
		return tunneltest.Pipes{Dial: d.Pipe, House: pipes, At: g.addr, Stop: g.stop, Drop: g.DropSession}
	})
}

// A pipe goes on when the address of the client changes, and when packets are lost.
func TestPipeMigrates(t *testing.T) {
	pipes := make(chan tunnel.Pipe, 1)
	g := serve(t, &quic.Server{Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, Pipe: func(ctx context.Context, _ *x509.Certificate, p tunnel.Pipe) {
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
