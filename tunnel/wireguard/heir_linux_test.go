package wireguard_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/wireguard"
)

// succeed has another Gateway take the place of one: as much as two processes would.
func succeed(t *testing.T, s space, before *wireguard.Gateway, h tunnel.Handler, peer wireguard.Peer) *wireguard.Gateway {
	t.Helper()
	files, known, err := before.Bequeath()
	if err != nil {
		t.Fatal(err)
	}
	after, run := openKernelGateway(t, s, h, func(g *wireguard.Gateway) {
		g.Key, g.Memory = before.Key, known
		g.Inherit = func(name string) *os.File {
			f := files[name]
			delete(files, name)
			return f
		}
	})
	for name := range files {
		t.Errorf("%q is left over", name)
	}
	if after.Port() != before.Port() {
		t.Errorf("the port of WireGuard was %d, and is %d", before.Port(), after.Port())
	}
	if err := after.Put(peer); err != nil {
		t.Fatal(err)
	}
	before.Leave(true)
	run()
	return after
}

// TestSuccession has another Gateway take the place of one, twice: connections that were
// accepted go on, whoever accepted them; each Gateway cuts its own, and the clients know
// nothing of it but for a handshake.
func TestSuccession(t *testing.T) {
	gw, cl := spaces(t)
	arrivals := make(chan api.Arrival, 1)
	h := handler{func(a api.Arrival) { arrivals <- a }}
	g := kernelGateway(t, gw, h)
	c := tunClient(t, cl, g, "s-1", addresses)
	peer := wireguard.Peer{Session: "s-1", PublicKey: c.Key.Public(), Addresses: addresses}

	type pair struct{ near, far net.Conn }
	var pairs []pair
	connect := func() pair {
		t.Helper()
		near, err := cl.dial(t.Context(), "tcp", echo4)
		if err != nil {
			t.Fatal(err)
		}
		p := pair{near, (<-arrivals).Conn}
		t.Cleanup(func() { near.Close(); p.far.Close() })
		return p
	}
	talk := func(p pair) {
		t.Helper()
		sent := noise(1 << 20)
		var sending sync.WaitGroup
		sending.Go(func() { p.near.Write(sent) })
		p.far.SetDeadline(time.Now().Add(20 * time.Second))
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(p.far, got); err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("a connection did not live on: %v", err)
		}
		sending.Wait()
	}
	pairs = append(pairs, connect())
	gateways := []*wireguard.Gateway{g}
	for range 2 {
		before := gateways[len(gateways)-1]
		gateways = append(gateways, succeed(t, gw, before, h, peer))
		pairs = append(pairs, connect())
		for _, p := range pairs {
			talk(p)
		}
	}
	// The first one cuts what it has, and nothing else.
	if err := gateways[0].Put(wireguard.Peer{Session: "s-2", PublicKey: wireguard.NewKey().Public(), Addresses: addresses}); err != nil {
		t.Errorf("a Gateway that was left does not ignore peers: %v", err)
	}
	gateways[0].Remove("s-1")
	pairs[0].near.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := pairs[0].near.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection of the first Gateway was not cut: %v", err)
	}
	for _, p := range pairs[1:] {
		talk(p)
	}
}

// The new Gateway knows where clients are, so that what is for them gets there though they
// say nothing.
func TestHandshakeOfSuccessor(t *testing.T) {
	gw, cl := spaces(t)
	arrivals := make(chan api.Arrival, 1)
	h := handler{func(a api.Arrival) { arrivals <- a }}
	g := kernelGateway(t, gw, h)
	c := tunClient(t, cl, g, "s-1", addresses)
	near, err := cl.dial(t.Context(), "tcp", echo4)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far := (<-arrivals).Conn
	defer far.Close()
	for range 2 {
		g = succeed(t, gw, g, h, wireguard.Peer{Session: "s-1", PublicKey: c.Key.Public(), Addresses: addresses})
		far.Write([]byte("x"))
		near.SetDeadline(time.Now().Add(20 * time.Second)) // WireGuard asks again after 5 seconds, should a handshake be lost
		if _, err := near.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
}

// TestStay has nobody take over: all is as before, and a port that was to be opened
// meanwhile is.
func TestStay(t *testing.T) {
	gw, cl := spaces(t)
	var mu sync.Mutex
	ports := []int{7}
	g := kernelGateway(t, gw, handler{func(a api.Arrival) { a.Conn.Close() }}, func(g *wireguard.Gateway) {
		g.Ports = func() []int {
			mu.Lock()
			defer mu.Unlock()
			return ports
		}
	})
	tunClient(t, cl, g, "s-1", addresses)
	for start := time.Now(); ; { // until Run has opened the ports
		c, err := cl.dial(t.Context(), "tcp", echo4)
		if err == nil {
			c.Close()
			break
		}
		if time.Since(start) > 20*time.Second {
			t.Fatal(err)
		}
	}
	files, known, err := g.Bequeath()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{wireguard.DeviceName, "udp4", "tcp 7", "tcp 53"} {
		if files[name] == nil {
			t.Errorf("%q is not handed over", name)
		}
	}
	// One that was about to take over has no part in anything before Run.
	heir, _ := openKernelGateway(t, gw, handler{}, func(h *wireguard.Gateway) {
		h.Key, h.Memory, h.Inherit = g.Key, known, func(name string) *os.File { return files[name] }
	})
	if err := heir.Close(); err != nil {
		t.Error(err)
	}
	mu.Lock()
	ports = []int{22}
	mu.Unlock()
	g.Refresh()
	c, err := cl.dial(t.Context(), "tcp", echo4)
	if err != nil {
		t.Fatalf("while it is held: %v", err)
	}
	c.Close()
	g.Stay()
	for start := time.Now(); ; {
		c, err := cl.dial(context.Background(), "tcp", echo4)
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if time.Since(start) > 20*time.Second {
			t.Fatal("the port is never closed")
		}
	}
}
