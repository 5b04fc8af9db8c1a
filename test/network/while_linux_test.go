package network_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/client"
	"cardea/test/network/lab"
)

// short is the least life of a certificate, and of a Session.
const short = 30 * time.Second

// passing are Users for whom time passes quickly.
const passing = `---
kind: User
metadata: {name: renewed}
spec: {type: HUMAN, groups: [group-1], session: {accessTokenDuration: {seconds: 30}}}
---
kind: User
metadata: {name: expired}
spec: {type: HUMAN, groups: [group-1], session: {clientDuration: {seconds: 30}}}
`

// TestWhileConnected has clients to whom something happens while they are connected: they
// sleep for longer than any carrier waits, their certificates are renewed, their Session
// expires, their Device is rejected. It is one test, because most of it is waiting.
func TestWhileConnected(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{Clients: 7}, passing+serviceYAML("echo", 7, "tcp://10.3.0.2:7000"))
	echo(t, w.Upstream, 7000)
	v4, _ := w.at("echo")
	hosts := w.Clients
	next := func() (h *lab.Host) {
		h, hosts = hosts[0], hosts[1:]
		return h
	}

	// Certificates that are renewed: with an interface, and with a published port by TLS.
	inside, port := w.login(next(), "renewed"), w.loginRaw(next(), "renewed")
	inside.connect()
	port.run("connect", "-p", "echo:17007", "--detach")
	first := port.validUntil()
	renewed := map[string]net.Conn{"inside": w.hold(inside, "echo"), "at a port": w.dialPort(port)}

	// A Session that expires.
	expired := w.login(next(), "expired")
	ends := expired.connect()
	cut := w.hold(expired, "echo")

	// Clients that sleep.
	type sleeper struct {
		*person
		c    *process
		live net.Conn
	}
	sleepers := map[client.Tunnel]*sleeper{}
	for _, by := range []client.Tunnel{client.TunnelWireGuard, client.TunnelQUIC, client.TunnelTLS} {
		p := w.login(next(), "alice")
		s := &sleeper{person: p, c: p.connect("--tunnel", string(by))}
		s.live = w.hold(p, "echo")
		sleepers[by] = s
	}
	for _, s := range sleepers {
		s.c.Process.Signal(syscall.SIGSTOP)
	}
	asleep := time.Now()

	// A Device that is rejected.
	bob := w.login(next(), "bob")
	bob.run("auth", "device", "register")
	rejected := bob.connect()
	bobs := w.hold(bob, "echo")
	w.root("update", "device", w.session("bob").Status.DeviceRef.Name, "--reject")
	if err := isCut(bobs); err != nil {
		t.Errorf("a Device was rejected, and a connection of its Session: %v", err)
	}
	if code, why := rejected.wait(t), "the Device "+w.session("bob").Status.DeviceRef.Name; code != 1 || !strings.Contains(rejected.out.String(), why) {
		t.Errorf("a Device was rejected, and connect ended with %d and says\n%s", code, rejected.out)
	}
	if err := isCut(cut); err != nil {
		t.Errorf("a Session expired, and its connection: %v", err)
	}
	if code := ends.wait(t); code != 1 || !strings.Contains(ends.out.String(), "expired") {
		t.Errorf("a Session expired, and connect ended with %d and says\n%s", code, ends.out)
	}

	w.until("the first certificates have ended", func() error {
		if now := time.Now(); !now.After(first.Add(time.Second)) {
			return fmt.Errorf("they end at %v", first)
		}
		return nil
	})
	for name, c := range renewed {
		if err := say(c, "still here", patience); err != nil {
			t.Errorf("%s, a connection that is older than the certificate: %v", name, err)
		}
	}
	w.hold(inside, "echo")
	w.dialPort(port)
	if now := port.validUntil(); !now.After(first) {
		t.Errorf("the certificate is good until %v, and was so before", now)
	}

	old := certificate(t, port.home+"-cert") // which nobody renews
	for _, by := range []client.Tunnel{client.TunnelQUIC, client.TunnelTLS} {
		for _, protocol := range []string{"cardea/1", "cardea-packets/1"} {
			if err := w.knock(port.host, by, protocol, old); err == nil {
				t.Errorf("a certificate that has expired is taken by %s for %s", by, protocol)
			}
		}
	}

	for by, s := range sleepers {
		s.c.Process.Signal(syscall.SIGCONT)
		woken := time.Now()
		took := soon(t, patience, "the Service is reached again", func() error { return s.tries(v4) })
		t.Logf("by %s, after a sleep of %v the Service is reached after %v", by, woken.Sub(asleep).Round(time.Second), took)
		if took > carriage {
			t.Errorf("by %s, the Service is reached only %v after a sleep", by, took)
		}
		if err := say(s.live, "awake", patience); err != nil {
			t.Errorf("by %s, the connection that was there before a sleep: %v", by, err)
		}
	}
}

// validUntil returns when the certificate in a person's home ends. (Every command of cardea
// would renew it first.)
func (p *person) validUntil() time.Time {
	p.Helper()
	text, err := os.ReadFile(filepath.Join(p.home, "certificate"))
	block, _ := pem.Decode(text)
	if err != nil || block == nil {
		p.Fatalf("the certificate at home: %v", err)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		p.Fatal(err)
	}
	return leaf.NotAfter
}

// dialPort is hold at the published port 17007.
func (w *world) dialPort(p *person) net.Conn {
	w.Helper()
	c, err := talk(w.T, p.host, netip.MustParseAddrPort("127.0.0.1:17007"))
	if err == nil {
		err = say(c, "hello", patience)
	}
	if err != nil {
		w.Fatalf("a published port: %v", err)
	}
	return c
}

// tries opens a connection to an echo, and does not wait long.
func (p *person) tries(to netip.AddrPort) error {
	brief, cancel := context.WithTimeout(p.Context(), 500*time.Millisecond) // TCP asks again after a second
	defer cancel()
	c, err := p.host.Dial(brief, "tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	return say(c, "again", time.Second)
}

// isCut waits until a connection is reset.
func isCut(c net.Conn) error {
	c.SetDeadline(time.Now().Add(short + patience))
	_, err := c.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
		return fmt.Errorf("it ended with %v, want a reset", err)
	}
	return nil
}
