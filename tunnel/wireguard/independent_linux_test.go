package wireguard_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"cardea/tunnel/wireguard"
)

// TestIndependentPeer has another implementation of WireGuard as the client: the
// wireguard-go of the system, configured by wg.
func TestIndependentPeer(t *testing.T) {
	for _, tool := range []string{"wireguard-go", "wg"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("there is no %s", tool)
		}
	}
	gw, cl := spaces(t)
	g := kernelGateway(t, gw, echoing(t))
	key := wireguard.NewKey()
	if err := g.Put(wireguard.Peer{Session: "s-1", PublicKey: key.Public(), Addresses: addresses}); err != nil {
		t.Fatal(err)
	}
	private := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(private, []byte(base64.StdEncoding.EncodeToString(key[:])), 0o600); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("wgt%d", os.Getpid())
	ctx, cancel := context.WithCancel(context.Background())
	peer := exec.CommandContext(ctx, "ip", "netns", "exec", cl.name, "wireguard-go", "-f", name)
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		peer.Wait()
		os.Remove("/var/run/wireguard/" + name + ".sock")
	})
	for start := time.Now(); ; { // until it listens to wg
		if exec.Command("ip", "netns", "exec", cl.name, "wg", "show", name).Run() == nil {
			break
		}
		if time.Since(start) > 20*time.Second {
			t.Fatal("wireguard-go does not start")
		}
	}
	run(t, "ip", "netns", "exec", cl.name, "wg", "set", name, "private-key", private,
		"peer", g.Key.Public().Text(), "allowed-ips", "100.64.0.0/12,fd00:1:2::/64", "endpoint", fmt.Sprintf("10.9.0.1:%d", g.Port()))
	run(t, "ip", "-n", cl.name, "addr", "add", "100.80.0.1/32", "dev", name)
	run(t, "ip", "-n", cl.name, "addr", "add", "fd00:1:2:1::1/128", "dev", name)
	run(t, "ip", "-n", cl.name, "link", "set", name, "mtu", "1280", "up")
	for _, p := range services {
		run(t, "ip", "-n", cl.name, "route", "add", p.String(), "dev", name)
	}
	for _, to := range []netip.AddrPort{echo4, echo6} {
		c, err := cl.dial(t.Context(), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ask(t, c, noise(60_000))
		u, err := cl.dial(t.Context(), "udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		ask(t, u, noise(9000)[:1200])
	}
}
