package network_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/api"
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
	if said, err := alice.command("doctor").CombinedOutput(); err == nil || !strings.Contains(string(said), "overlaps 100.64.0.0/10, a route of the interface othervpn") {
		t.Errorf("the doctor does not say what is in the way: %v\n%s", err, said)
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

// TestNotConnected forces a tunnel that is blocked: connect says so and fails, and the
// machine is as it was, its settings of names at all times.
func TestNotConnected(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000"))
	alice := w.login(w.Clients[0], "alice")
	before := machine(alice)
	names := func() string {
		text, err := os.ReadFile(alice.host.Resolv)
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	settings := names()
	defer w.BlockUDP()()
	if said := alice.run("doctor"); !strings.Contains(said, "no answer by WireGuard at") || !strings.Contains(said, "no answer by QUIC at") || !strings.Contains(said, "open 51820/udp, 8443/udp in the firewalls") {
		t.Errorf("the doctor does not say what is blocked:\n%s", said)
	}
	for _, args := range [][]string{
		{"--tunnel", "wireguard"},
		{"--tunnel", "quic", "--detach"},
		{"--tunnel", "wireguard", "-p", "echo:17007", "--detach"},
		{"--tunnel", "quic", "-p", "echo:17007"},
	} {
		c := start(t, alice.command(append([]string{"connect"}, args...)...))
		for ended := false; !ended; {
			select {
			case <-c.ended:
				ended = true
			case <-time.After(10 * time.Millisecond):
			}
			if now := names(); now != settings {
				t.Fatalf("connect %v: nothing passes, and the settings of names are\n%s", args, now)
			}
		}
		if code := c.wait(t); code != 1 {
			t.Errorf("connect %v ended with %d, want 1", args, code)
		}
		for _, want := range []string{"not connected: gateway default", "leave out --tunnel", "/udp"} {
			if said := c.out.String(); !strings.Contains(said, want) {
				t.Errorf("connect %v does not say %q:\n%s", args, want, said)
			}
		}
		if after := machine(alice); after != before {
			t.Errorf("after connect %v, the machine was\n%s\nand is\n%s", args, before, after)
		}
	}
}

// TestTakesOverLast connects the same Session on another machine, which cannot: the first
// one stays. When it can, the first one ends.
func TestTakesOverLast(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{Clients: 2}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000"))
	echo(t, w.Upstream, 7000)
	alice := w.login(w.Clients[0], "alice")
	first := alice.connect()
	live := w.hold(alice, "echo")
	again := &person{world: w, host: w.Clients[1], as: w.Clients[1].Command, home: alice.home + "-copy"}
	if err := os.Mkdir(again.home, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"session.json", "key", "certificate"} {
		text, err := os.ReadFile(filepath.Join(alice.home, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(again.home, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	again.host.Run("ip", "route", "add", "blackhole", "100.64.0.0/10")
	taken, err := again.host.Listen("tcp", netip.MustParseAddrPort("127.0.0.1:17000"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for want, args := range map[string][]string{"overlaps": {}, "17000": {"-p", "echo:17000", "--tunnel", "wireguard"}} {
		if out, err := again.command(append([]string{"connect"}, args...)...).CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("connect %v: %v, want %q in\n%s", args, err, want, out)
		}
	}
	if err := say(live, "still here", patience); err != nil {
		t.Errorf("the connection of the first: %v", err)
	}
	again.host.Run("ip", "route", "del", "blackhole", "100.64.0.0/10")
	again.connect()
	if code := first.wait(t); code != 1 {
		t.Errorf("the first ended with %d, want 1", code)
	}
}

// TestDisconnected ends connect while there is a connection, and one of which the client
// has ended its half: by whatever the packets go, the cluster has none of them any more.
func TestDisconnected(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000")+serviceYAML("drip", 9, "tcp://10.3.0.2:9000"))
	echo(t, w.Upstream, 7000)
	listen(t, w.Upstream, 9000, func(c net.Conn) { // goes on when its client has finished
		for {
			if _, err := c.Write([]byte("x")); err != nil {
				return
			}
			<-time.After(20 * time.Millisecond)
		}
	})
	alice := w.login(w.Clients[0], "alice")
	for _, args := range [][]string{
		{"--tunnel", "wireguard"}, {"--tunnel", "quic"}, {"--tunnel", "tls"},
		{"--tunnel", "wireguard", "-p", "echo:17007", "-p", "drip:17009"},
		{"--tunnel", "quic", "-p", "echo:17007", "-p", "drip:17009"},
		{"-p", "echo:17007", "-p", "drip:17009"},
	} {
		alice.run(append([]string{"connect", "--detach"}, args...)...)
		whole, _ := w.at("echo")
		half, _ := w.at("drip")
		if slices.Contains(args, "-p") {
			whole, half = netip.MustParseAddrPort("127.0.0.1:17007"), netip.MustParseAddrPort("127.0.0.1:17009")
		}
		for _, to := range []netip.AddrPort{whole, half} {
			c, err := talk(t, alice.host, to)
			if err != nil {
				t.Fatal(err)
			}
			if to == whole {
				err = say(c, "hello", patience)
			} else {
				_, err = c.Read(make([]byte, 1))
				c.(*net.TCPConn).CloseWrite()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		live := func() (list api.Connections) {
			if err := json.Unmarshal([]byte(w.root("conns", "-o", "json")), &list); err != nil {
				t.Fatal(err)
			}
			return list
		}
		if n := len(live().Items); n != 2 {
			t.Errorf("connect %v: there are %d connections, want 2", args, n)
		}
		alice.run("disconnect")
		w.until("there are no connections", func() error {
			if list := live().Items; len(list) > 0 {
				return fmt.Errorf("after connect %v there are %+v", args, list)
			}
			return nil
		})
	}
}

// TestKilled kills connect, and calls disconnect at once, before the kernel has cleared
// away the process: one call is enough, whatever there was.
func TestKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000"))
	alice := w.login(w.Clients[0], "alice")
	before := machine(alice)
	for _, args := range [][]string{{}, {"--no-dns"}, {"--detach"}, {"-p", "echo:17007", "--detach"}} {
		c := start(t, alice.command(append([]string{"connect"}, args...)...))
		var pid int
		alice.until("connect is there", func() error {
			s, err := alice.status()
			if err == nil && s.Network == nil {
				err = errors.New("there is no network")
			}
			if err == nil {
				pid = s.PID
			}
			return err
		})
		if slices.Contains(args, "--detach") {
			c.wait(t)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if said := alice.run("status"); !strings.Contains(said, "connect was killed") {
			t.Errorf("connect %v: status says %q", args, said)
		}
		out, err := alice.command("doctor").CombinedOutput()
		if names := !slices.Contains(args, "--no-dns") && !slices.Contains(args, "-p"); (err != nil) != names || !strings.Contains(string(out), "connect was killed") {
			t.Errorf("connect %v: doctor: %v\n%s", args, err, out)
		}
		if said := alice.run("disconnect"); !strings.Contains(said, "connect had been killed") {
			t.Errorf("connect %v: disconnect says %q", args, said)
		}
		alice.until("the machine is as it was", func() error {
			if after := machine(alice); after != before {
				return fmt.Errorf("the machine was\n%s\nand is\n%s", before, after)
			}
			return nil
		})
		if out, err := alice.command("disconnect").CombinedOutput(); err == nil || !strings.Contains(string(out), "nothing is connected") {
			t.Errorf("connect %v: a second disconnect: %v\n%s", args, err, out)
		}
	}
}
