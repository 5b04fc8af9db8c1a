//go:build linux

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo serves at an address of a host: of TCP, whoever connects is told from where; of
// UDP, whoever sends.
func echo(t *testing.T, h *Host, at netip.AddrPort) {
	t.Helper()
	l, err := h.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).IP.String())
			c.Close()
		}
	}()
	p, err := h.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			_, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			p.WriteTo([]byte(from.(*net.UDPAddr).IP.String()), from)
		}
	}()
}

// ask returns what echo tells a host.
func ask(t *testing.T, h *Host, network string, at netip.AddrPort) (string, error) {
	t.Helper()
	c, err := h.Dial(t.Context(), network, at)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b := make([]byte, 100)
	n := 0
	if network == "tcp" {
		n, err = c.Read(b)
		return string(b[:n]), err
	}
	for range 10 { // a datagram may be lost, and here is meant to be
		c.Write([]byte("x"))
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err = c.Read(b); err == nil {
			break
		}
	}
	return string(b[:n]), err
}

func port(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 7777) }

func TestWhoReachesWhom(t *testing.T) {
	t.Parallel()
	l := New(t, Config{Clients: 2})
	for _, h := range []*Host{l.Gateway, l.Upstream, l.Clients[0]} {
		echo(t, h, port(h.IPv4))
		echo(t, h, port(h.IPv6))
	}
	for _, network := range []string{"tcp", "udp"} {
		for _, c := range l.Clients {
			for to, from := range map[netip.Addr]netip.Addr{l.Gateway.IPv4: l.NAT.IPv4, l.Gateway.IPv6: l.NAT.IPv6} {
				if got, err := ask(t, c, network, port(to)); got != from.String() || err != nil {
					t.Errorf("%s from %s to %v is seen from %q (%v), want the NAT's %v", network, c.Name, to, got, err, from)
				}
			}
		}
		if got, err := ask(t, l.Gateway, network, port(l.Upstream.IPv4)); err != nil {
			t.Errorf("%s from the Gateway to the Upstream: %q %v", network, got, err)
		}
		if got, err := ask(t, l.Gateway, network, port(l.Clients[0].IPv4)); err == nil {
			t.Errorf("%s from the Gateway to a client behind the NAT: %q", network, got)
		}
	}
	if got, err := ask(t, l.Clients[0], "udp", port(l.Upstream.IPv4)); err == nil {
		t.Errorf("from a client to the Upstream: %q", got)
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	l := New(t, Config{})
	c, gateway := l.Clients[0], port(l.Gateway.IPv4)
	echo(t, l.Gateway, gateway)
	echo(t, l.Gateway, port(l.Gateway.IPv6))
	undo := l.BlockUDP()
	if got, err := ask(t, c, "udp", gateway); err == nil {
		t.Errorf("UDP is blocked, and the answer is %q", got)
	}
	if _, err := ask(t, c, "tcp", gateway); err != nil {
		t.Errorf("UDP is blocked, and TCP says %v", err)
	}
	undo()
	undo()
	if _, err := ask(t, c, "udp", gateway); err != nil {
		t.Errorf("UDP is not blocked any more, and says %v", err)
	}
	undo = l.Lose(100)
	if got, err := ask(t, c, "udp", gateway); err == nil {
		t.Errorf("all is lost, and the answer is %q", got)
	}
	undo()
	was := *l.NAT
	l.Move()
	for _, to := range []netip.Addr{l.Gateway.IPv4, l.Gateway.IPv6} {
		got, err := ask(t, c, "udp", port(to))
		if err != nil || got == was.IPv4.String() || got == was.IPv6.String() {
			t.Errorf("after the move the NAT is seen at %q (%v)", got, err)
		}
	}
}

func TestMTU(t *testing.T) {
	t.Parallel()
	l := New(t, Config{MTU: 1280})
	c, err := l.Clients[0].Dial(t.Context(), "udp4", port(l.Gateway.IPv4))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, _ := c.(*net.UDPConn).SyscallConn()
	raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, 1280-28)); err != nil {
		t.Errorf("1,280 bytes: %v", err)
	}
	if _, err := c.Write(make([]byte, 1280-28+1)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("1,281 bytes: %v", err)
	}
}

func TestProgramsOfAHost(t *testing.T) {
	t.Parallel()
	l := New(t, Config{})
	h := l.Clients[0]
	if err := os.WriteFile(h.Resolv, []byte("nameserver 100.64.0.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := h.Run("cat", "/etc/resolv.conf"); got != "nameserver 100.64.0.1\n" {
		t.Errorf("/etc/resolv.conf is %q", got)
	}
	if got := h.Run("ip", "-br", "-4", "addr", "show", "eth0"); !strings.Contains(got, h.IPv4.String()) {
		t.Errorf("its addresses are %s", got)
	}
	out, err := h.Unprivileged("sh", "-c", "id -u; grep CapBnd /proc/self/status").Output()
	if err != nil || string(out) != "65534\nCapBnd:\t0000000000000000\n" {
		t.Errorf("as nobody: %q %v", out, err)
	}
}

func TestCapture(t *testing.T) {
	t.Parallel()
	l := New(t, Config{})
	echo(t, l.Gateway, port(l.Gateway.IPv4))
	stop := l.NAT.Capture("wan")
	if _, err := ask(t, l.Clients[0], "udp", port(l.Gateway.IPv4)); err != nil {
		t.Fatal(err)
	}
	if got := stop("udp port 7777"); len(got) != 2 {
		t.Errorf("a question and an answer are\n%s", strings.Join(got, "\n"))
	}
	if got := stop("tcp"); len(got) != 0 {
		t.Errorf("of TCP there is\n%s", strings.Join(got, "\n"))
	}
}

func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	var name string
	var process *os.Process
	t.Run("lab", func(t *testing.T) {
		l := New(t, Config{})
		name = l.Clients[0].Name
		cmd := exec.Command("ip", "netns", "exec", name, "sleep", "1000") // nobody's but the host's
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		process = cmd.Process
		for { // until sleep is there, and not ip any more
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", process.Pid)); string(name) == "sleep\n" {
				break
			}
		}
	})
	if process == nil {
		t.Skip("there was no lab")
	}
	if state, err := process.Wait(); err != nil || state.Success() {
		t.Errorf("its process ended with %v (%v)", state, err)
	}
	for _, path := range []string{"/run/netns/" + name, "/etc/netns/" + name} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there (%v)", path, err)
		}
	}
}

func TestWhatAKilledTestLeaves(t *testing.T) {
	t.Parallel()
	New(t, Config{}) // skips where there can be none
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("cardea-%d-left-client0", gone.Process.Pid)
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	New(t, Config{})
	if _, err := os.Stat("/run/netns/" + name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there (%v)", name, err)
	}
}
