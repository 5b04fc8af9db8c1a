package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/test/network/lab"
)

// TestSessionDeleted deletes a Session with an interface and a connection: both are gone,
// and connect says why.
func TestSessionDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{Clients: 2}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000"))
	echo(t, w.Upstream, 7000)
	alice := w.login(w.Clients[0], "alice")
	before := machine(alice)
	c := alice.connect()
	live := w.hold(alice, "echo")
	bob := w.login(w.Clients[1], "bob")
	bob.connect()
	bobs := w.hold(bob, "echo")

	reset := make(chan time.Time, 1)
	go func() {
		live.SetDeadline(time.Now().Add(patience))
		_, err := live.Read(make([]byte, 1))
		// By the gateway, or by connect when it is told.
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("the connection ended with %v, want a reset", err)
		}
		reset <- time.Now()
	}()
	gone := make(chan time.Time, 1)
	go func() {
		for late := time.Now().Add(patience); time.Now().Before(late); <-time.After(time.Millisecond) {
			if !hasInterface(alice, "cardea0") {
				break
			}
		}
		gone <- time.Now()
	}()
	session := w.session("alice").Metadata.Name
	called := time.Now()
	w.root("delete", "session", session)
	committed := time.Now() // or a little before
	wasReset, wasGone := <-reset, <-gone
	t.Logf("a Session was deleted in %v; the connection was reset %v, and the interface gone %v, after that",
		committed.Sub(called), wasReset.Sub(committed), wasGone.Sub(committed))
	if late := wasReset.Sub(committed); late > 2*time.Second {
		t.Errorf("the connection was reset after %v, want less than 100 ms", late)
	}
	if late := wasGone.Sub(committed); late > 3*time.Second {
		t.Errorf("the interface was gone after %v", late)
	}
	if code := c.wait(t); code != 1 {
		t.Errorf("connect ended with %d, want 1", code)
	}
	if said := c.out.String(); !strings.Contains(said, "deleted") {
		t.Errorf("connect does not say why it has ended:\n%s", said)
	}
	if after := machine(alice); after != before {
		t.Errorf("the machine was\n%s\nand is\n%s", before, after)
	}
	if err := say(bobs, "still here", patience); err != nil {
		t.Errorf("bob's connection: %v", err)
	}
	w.until("alice's peer is gone", func() error {
		if n := w.gateway().Status.Sessions; n != 1 {
			return fmt.Errorf("%d Sessions are connected", n)
		}
		return nil
	})
}

// hasInterface reports whether a person's host has a network interface.
func hasInterface(p *person, name string) (has bool) {
	p.host.Do(func() {
		_, err := net.InterfaceByName(name)
		has = err == nil
	})
	return has
}

// machine returns all of a person's host that connect changes: addresses, routes, rules
// and the settings of names.
func machine(p *person) string {
	p.Helper()
	names, err := os.ReadFile(p.host.Resolv)
	if err != nil {
		p.Fatal(err)
	}
	text := p.host.Run("ip", "-br", "addr") + string(names)
	for _, family := range []string{"-4", "-6"} {
		text += p.host.Run("ip", family, "route", "show", "table", "all") + p.host.Run("ip", family, "rule")
	}
	// The kernel adds these a while after a link is up.
	return strings.Join(slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.HasPrefix(line, "local fe80:") }), "\n")
}

// TestRestored ends connect in all ways there are, and finds the machine as it was.
func TestRestored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{Clients: 2}, serviceYAML("web", 80, "tcp://10.3.0.2:8000"))
	web(t, w.Upstream, 8000, "the web")
	alice := w.login(w.Clients[0], "alice")
	if err := os.WriteFile(alice.host.Resolv, []byte("# of the machine\nnameserver 192.0.2.53\nsearch example.com\noptions timeout:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := machine(alice)
	same := func(when string) {
		t.Helper()
		if after := machine(alice); after != before {
			t.Errorf("%s, the machine was\n%s\nand is\n%s", when, before, after)
		}
	}
	changed := func() {
		t.Helper()
		if now := machine(alice); !strings.Contains(now, "cardea0") || !strings.Contains(now, "nameserver 100.64.0.1") || !strings.Contains(now, "192.0.2.53") {
			t.Errorf("connected, the machine is\n%s", now)
		}
		if got := run(t, alice.as(need(t, "curl"), "-sS", "-m", "20", "http://web")); got != "the web" {
			t.Errorf("curl http://web: %q", got)
		}
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		c := alice.connect()
		changed()
		c.Process.Signal(signal)
		if code := c.wait(t); code != 0 {
			t.Errorf("after %v connect ended with %d", signal, code)
		}
		same("after " + signal.String())
	}
	killed := func() {
		c := alice.connect()
		c.Process.Kill()
		c.wait(t)
	}
	killed()
	alice.command("disconnect").Run()
	same("after SIGKILL and disconnect")
	killed()
	c := alice.connect()
	changed()
	c.Process.Signal(syscall.SIGINT)
	c.wait(t)
	same("after SIGKILL and another connect")
	alice.run("connect", "--detach")
	changed()
	alice.run("disconnect")
	same("after disconnect")
	c = alice.connect("--no-dns")
	if names, _ := os.ReadFile(alice.host.Resolv); strings.Contains(string(names), "100.64.0.1") {
		t.Errorf("with --no-dns, the settings of names are\n%s", names)
	}
	c.Process.Signal(syscall.SIGINT)
	c.wait(t)
	alice.run("connect", "--detach")
	alice.run("logout")
	same("after logout")
}

// TestCannotConnect has machines on which there can be no interface: connect says why.
func TestCannotConnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{Clients: 2}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000"))
	alice, nobody := w.login(w.Clients[0], "alice"), w.login(w.Clients[1], "nobody")
	fails := func(p *person, words ...string) func(out []byte, err error) {
		return func(out []byte, err error) {
			t.Helper()
			if err == nil {
				t.Errorf("connect succeeded: %s", out)
			}
			for _, want := range words {
				if !strings.Contains(string(out), want) {
					t.Errorf("connect does not say %q:\n%s", want, out)
				}
			}
			if now := machine(p); strings.Contains(now, "cardea0") {
				t.Errorf("there is an interface:\n%s", now)
			}
		}
	}
	alice.host.Run("ip", "tuntap", "add", "othervpn", "mode", "tun")
	alice.host.Run("ip", "link", "set", "othervpn", "up")
	alice.host.Run("ip", "route", "add", "100.64.0.0/10", "dev", "othervpn")
	before := machine(alice)
	fails(alice, "othervpn", "100.64.0.0/10")(alice.command("connect").CombinedOutput())
	if after := machine(alice); after != before {
		t.Errorf("the machine was\n%s\nand is\n%s", before, after)
	}
	alice.host.Run("ip", "link", "del", "othervpn")
	without := alice.as("sh", "-c", `mkdir -p /dev/net && mount -t tmpfs none /dev/net && exec "$0" connect`, w.cluster.Bin)
	without.Env = alice.command().Env
	fails(alice, "/dev/net/tun")(without.CombinedOutput())
	// One who may not have an interface is told what he can have.
	fails(nobody, "-p", "--socks5")(nobody.command("connect").CombinedOutput())
	taken, err := nobody.host.Listen("tcp", netip.MustParseAddrPort("127.0.0.1:17000"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	fails(nobody, "17000")(nobody.command("connect", "-p", "echo:17000").CombinedOutput())
}
