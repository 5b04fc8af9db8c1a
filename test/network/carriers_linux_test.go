package network_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/client"
	"cardea/test/network/lab"
)

// carriage is how long traffic may stand still when UDP is blocked: what is promised.
const carriage = 10 * time.Second

// newEcho makes a world with a Service echo, and alice connected to it with a network
// interface, and a TCP connection that lives.
func newEcho(t *testing.T, c lab.Config, flags ...string) (w *world, alice *person, live net.Conn) {
	t.Helper()
	w = newWorld(t, c, serviceYAML("echo", 7, "tcp://10.3.0.2:7000")+serviceYAML("web", 80, "tcp://10.3.0.2:8000")+serviceYAML("udp", 7, "udp://10.3.0.2:7007"), flags...)
	echo(t, w.Upstream, 7000)
	web(t, w.Upstream, 8000, "the web")
	packets(t, w.Upstream, 7007)
	alice = w.login(w.Clients[0], "alice")
	alice.connect()
	return w, alice, w.hold(alice, "echo")
}

// hold opens a TCP connection from a person's host to a Service, and says something.
func (w *world) hold(p *person, service string) net.Conn {
	w.Helper()
	v4, _ := w.at(service)
	c, err := talk(w.T, p.host, v4)
	if err == nil {
		err = say(c, "hello", patience)
	}
	if err != nil {
		w.Fatalf("%s at %v: %v", service, v4, err)
	}
	return c
}

// TestBlockedUDP blocks UDP in mid-session: connections live on over TLS, and over
// WireGuard's own UDP again when it passes. Between the NAT and the gateway, nothing is
// seen all the while but the tunnel.
func TestBlockedUDP(t *testing.T) {
	t.Parallel()
	w, alice, live := newEcho(t, lab.Config{})
	captured := w.NAT.Capture("wan")
	use := func() {
		t.Helper()
		if err := say(live, "more", patience); err != nil {
			t.Fatalf("the connection that was there before: %v", err)
		}
		run(t, alice.as(need(t, "curl"), "-sS", "-m", "20", "http://web"))
		run(t, alice.as(need(t, "dig"), "+short", "web.default.svc.cardea.internal"))
		_, v6 := w.at("udp")
		if err := bounce(t, alice.host, v6, 1000); err != nil {
			t.Errorf("a datagram: %v", err)
		}
	}
	before := alice.place()
	use()
	undo := w.BlockUDP()
	begin := time.Now()
	if err := say(live, "blocked", 2*carriage); err != nil {
		t.Fatalf("UDP is blocked, and the connection that was there before: %v", err)
	}
	took := time.Since(begin)
	t.Logf("UDP was blocked, and traffic went on after %v", took)
	if took > carriage {
		t.Errorf("UDP was blocked, and traffic stood still for %v, which is more than %v", took, carriage)
	}
	g := alice.carried(client.TunnelTLS, patience)
	if !strings.Contains(g.Why, "UDP") {
		t.Errorf("status says that this is because %q", g.Why)
	}
	if now := alice.place(); now.Addresses != before.Addresses || now.Interface != before.Interface {
		t.Errorf("the addresses were %v, and are %v", before.Addresses, now.Addresses)
	}
	use()
	undo()
	g = alice.carried(client.TunnelWireGuard, patience)
	if g.Why == "" {
		t.Error("status does not say why it is WireGuard again")
	}
	use()
	only(t, captured, "TLS")
}

// only looks for packets that are not the tunnel's, and for those that must be there.
func only(t *testing.T, captured func(string) []string, names ...string) {
	t.Helper()
	carriers := map[string]string{
		"WireGuard": "udp port " + wireguardPort,
		"QUIC":      "udp port " + port,
		"TLS":       "tcp port " + port,
	}
	for _, name := range append(names, "WireGuard") {
		if len(captured(carriers[name])) == 0 {
			t.Errorf("there was nothing of %s", name)
		}
	}
	// Neighbours ask for each other's Ethernet addresses, and what is to be sent to groups.
	const neighbours = "arp or ip6 dst net ff02::/16 or (icmp6 and ip6[40] >= 133 and ip6[40] <= 136)"
	others := captured(fmt.Sprintf("not ((%s) or (%s) or (%s) or (%s))", carriers["WireGuard"], carriers["QUIC"], carriers["TLS"], neighbours))
	if len(others) != 0 {
		t.Errorf("beside the tunnel there was\n%s", strings.Join(others[:min(len(others), 20)], "\n"))
	}
}

// TestBlockedWireGuard blocks only the port of WireGuard: QUIC carries.
func TestBlockedWireGuard(t *testing.T) {
	t.Parallel()
	w, alice, live := newEcho(t, lab.Config{})
	captured := w.NAT.Capture("wan")
	undo := w.Block("udp dport " + wireguardPort)
	if err := say(live, "blocked", patience); err != nil {
		t.Fatalf("WireGuard's port is blocked, and the connection that was there before: %v", err)
	}
	if g := alice.place().Gateways[0]; g.Transport != client.TunnelQUIC && !strings.Contains(g.Why, "QUIC did not answer") {
		t.Errorf("WireGuard's port is blocked, and the gateway is reached by %q because %q", g.Transport, g.Why)
	}
	undo()
	alice.carried(client.TunnelWireGuard, patience)
	if err := say(live, "passes", patience); err != nil {
		t.Fatalf("WireGuard's port is open, and the connection that was there before: %v", err)
	}
	only(t, captured)
}

// TestMove gives the NAT other addresses: connections live on, by all carriers of UDP.
func TestMove(t *testing.T) {
	t.Parallel()
	w, _, live := newEcho(t, lab.Config{Clients: 2})
	bob := w.login(w.Clients[1], "bob")
	bob.connect("--tunnel", "quic")
	bobs := w.hold(bob, "echo")
	for range 2 {
		w.Move()
		for name, c := range map[string]net.Conn{"WireGuard": live, "QUIC": bobs} {
			if err := say(c, "moved", patience); err != nil {
				t.Errorf("the NAT has another address, and a connection by %s: %v", name, err)
			}
		}
	}
}

// TestForcedTunnel asks for one carrier, with an interface and without, over IPv6 too.
func TestForcedTunnel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{Clients: 3}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000"))
	echo(t, w.Upstream, 7000)
	v4, v6 := w.at("echo")
	for i, by := range []client.Tunnel{client.TunnelWireGuard, client.TunnelQUIC, client.TunnelTLS} {
		t.Run(string(by), func(t *testing.T) {
			alice := w.login(w.Clients[i], "alice")
			c := alice.connect("--tunnel", string(by))
			if g := alice.place().Gateways[0]; g.Transport != by {
				t.Errorf("the gateway is reached by %q", g.Transport)
			}
			for _, to := range []string{v4.String(), v6.String()} {
				run(t, alice.as("sh", "-c", "echo hello | "+need(t, "socat")+" -t20 - TCP:"+to))
			}
			c.Process.Signal(syscall.SIGINT)
			if code := c.wait(t); code != 0 {
				t.Errorf("connect ended with %d", code)
			}
			alice.run("connect", "-p", "echo:17007", "--tunnel", string(by), "--detach")
			if got := run(t, alice.as("sh", "-c", "echo hello | "+need(t, "socat")+" -t20 - TCP:127.0.0.1:17007")); got != "hello\n" {
				t.Errorf("at a published port: %q", got)
			}
			alice.run("disconnect")
		})
	}
}

// TestSmallLinks reaches Services over links of 1,280 bytes, the least of IPv6, by all
// carriers.
func TestSmallLinks(t *testing.T) {
	t.Parallel()
	w, alice, live := newEcho(t, lab.Config{Clients: 3, MTU: 1280})
	transfer(t, live, 4<<20)
	v4, v6 := w.at("udp")
	small := func(p *person) {
		t.Helper()
		for _, to := range []netip.AddrPort{v4, v6} {
			for _, size := range []int{1200, 1252, 1253, 9000} {
				if err := bounce(t, p.host, to, size); err != nil {
					t.Errorf("a datagram of %d bytes to %v: %v", size, to, err)
				}
			}
		}
	}
	small(alice)
	for i, by := range []string{"quic", "tls"} {
		bob := w.login(w.Clients[i+1], "bob")
		bob.connect("--tunnel", by)
		transfer(t, w.hold(bob, "echo"), 4<<20)
		small(bob)
	}
}

// transfer sends so many bytes to an echo, and takes them back.
func transfer(t *testing.T, c net.Conn, size int) {
	t.Helper()
	if err := exchange(c, size, nil); err != nil {
		t.Errorf("a transfer of %d bytes: %v", size, err)
	}
}

// exchange sends so many bytes to an echo while it takes them back, and adds what has
// come back to a count.
func exchange(c net.Conn, size int, count *atomic.Int64) error {
	c.SetDeadline(time.Now().Add(2 * patience))
	block := make([]byte, 1<<15)
	for i := range block {
		block[i] = byte(i * 7)
	}
	var sending sync.WaitGroup
	var failed error
	sending.Go(func() {
		for left := size; left > 0 && failed == nil; left -= len(block) {
			_, failed = c.Write(block[:min(left, len(block))])
		}
	})
	b := make([]byte, 1<<15)
	var err error
	for got := 0; got < size && err == nil; {
		var n int
		n, err = c.Read(b[:min(len(b), size-got)])
		for i := range n {
			if b[i] != block[(got+i)%len(block)] {
				err = fmt.Errorf("byte %d is another", got+i)
				c.Close()
				break
			}
		}
		if got += n; count != nil {
			count.Add(int64(n))
		}
	}
	if err != nil {
		c.SetDeadline(time.Now())
	}
	sending.Wait()
	if err == nil {
		err = failed
	}
	return err
}

// TestLoss transfers over links that lose one in fifty packets.
func TestLoss(t *testing.T) {
	t.Parallel()
	w, _, live := newEcho(t, lab.Config{Clients: 2})
	bob := w.login(w.Clients[1], "bob")
	bob.connect("--tunnel", "quic")
	bobs := w.hold(bob, "echo")
	defer w.Lose(2)()
	transfer(t, live, 1<<20)
	transfer(t, bobs, 1<<18)
}

// TestGatewayRestart kills the gateway and starts it anew: clients come back by
// themselves.
func TestGatewayRestart(t *testing.T) {
	t.Parallel()
	w, alice, _ := newEcho(t, lab.Config{Clients: 2})
	bob := w.login(w.Clients[1], "bob")
	bob.connect("--tunnel", "tls")
	w.hold(bob, "echo")
	at := alice.place().Addresses
	w.cluster.Signal(syscall.SIGKILL)
	if err := w.cluster.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	v4, _ := w.at("echo")
	for _, p := range []*person{alice, bob} {
		took := soon(t, patience, "the Service is reached again", func() error { return p.tries(v4) })
		t.Logf("the gateway has started anew, and a Service is reached again %v after it was ready", took)
	}
	if now := alice.place().Addresses; now != at {
		t.Errorf("the addresses were %v, and are %v", at, now)
	}
}

// TestKeyRotation gives the gateway another key of WireGuard under a transfer.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000"))
	echo(t, w.Upstream, 7000)
	w.age(2 * time.Hour)
	alice := w.login(w.Clients[0], "alice")
	alice.connect()
	live := w.hold(alice, "echo")
	before := w.gateway().Status.WireGuard
	moved, done := w.transfer(live)
	shaken := alice.place().Gateways[0].HandshakeAt
	w.apply("kind: ClusterConfig\nmetadata: {name: default}\nspec: {gateway: {wireguardKeyRotationDuration: {hours: 1}}}\n")
	w.until("the gateway has another key", func() error {
		if w.gateway().Status.WireGuard.PublicKey == before.PublicKey {
			return errors.New("it is the same")
		}
		return nil
	})
	w.until("there is a handshake with the new key", func() error {
		if g := alice.place().Gateways[0]; !g.HandshakeAt.After(shaken) {
			return fmt.Errorf("the last one was at %v", g.HandshakeAt)
		}
		return nil
	})
	at := moved.Load()
	w.until("the transfer goes on", func() error { return more(moved, at+1<<20) })
	select {
	case err := <-done:
		t.Errorf("the transfer ended: %v", err)
	default:
	}
	if err := w.hold(alice, "echo").Close(); err != nil {
		t.Error(err)
	}
}

// more reports whether a count has passed a limit.
func more(count *atomic.Int64, limit int64) error {
	if n := count.Load(); n <= limit {
		return fmt.Errorf("%d bytes", n)
	}
	return nil
}

// age makes the gateway's key of WireGuard so old, for which the cluster is started anew.
func (w *world) age(by time.Duration) {
	w.Helper()
	if err := w.cluster.Signal(syscall.SIGKILL); err != nil {
		w.Fatal(err)
	}
	name := filepath.Join(w.cluster.Dir, "data", "keys", "gateway.key")
	text, err := os.ReadFile(name)
	var keys map[string]any
	if err == nil {
		err = json.Unmarshal(text, &keys)
	}
	if err == nil {
		keys["at"] = time.Now().Add(-by)
		text, err = json.Marshal(keys)
	}
	if err == nil {
		err = os.WriteFile(name, text, 0o600)
	}
	if err == nil {
		err = w.cluster.Up(w.Context())
	}
	if err != nil {
		w.Fatal(err)
	}
}
