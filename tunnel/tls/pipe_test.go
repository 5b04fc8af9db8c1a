package tls_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"sync"
	"testing"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/tunnel/tunneltest"
)

func TestPipe(t *testing.T) {
	tunneltest.RunPipe(t, func(t *testing.T, most int, alive func() bool) tunneltest.Pipes {
		pipes := make(chan tunnel.Pipe, 10)
		g := serve(t, &tls.Server{
			Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, Limits: tls.Limits{Pipes: most},
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

// A gateway that says no welcome, or another thing, is no pipe's other end.
func TestPipeWithoutWelcome(t *testing.T) {
	g := serve(t, &tls.Server{Handler: tunneltest.NewHouse(), Session: func(*x509.Certificate) (string, bool) { return "", false },
		Pipe: func(context.Context, *x509.Certificate, tunnel.Pipe) { t.Error("a pipe of nobody") }})
	d := g.dialer(t, always(g.ca.Session()))
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
	g := serveOn(b, &tls.Server{Handler: tunneltest.NewHouse(), Session: tunneltest.SessionOf, Pipe: func(ctx context.Context, _ *x509.Certificate, p tunnel.Pipe) {
		pipes <- p
		<-ctx.Done()
	}}, "127.0.0.1:0")
	client, err := g.dialer(b, always(g.ca.Session())).Pipe(b.Context())
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
