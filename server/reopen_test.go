package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"cardea/handover"
	"cardea/netif"
	"cardea/tunnel/wireguard"
)

// heir returns the network of a process that takes the place of another one.
func heir(ports ...netip.AddrPort) *network {
	log := slog.New(slog.DiscardHandler)
	h := &house{}
	h.cfg.Log, h.cfg.Estate, h.mine = log, new(handover.Estate), make(chan struct{})
	close(h.mine)
	return &network{
		house: h, form: networkUserspace, ports: ports, quicAt: netip.MustParseAddrPort("127.0.0.1:0"),
		gateway: &wireguard.Gateway{Key: wireguard.NewKey(), Log: log},
	}
}

func taken(t *testing.T) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Firewalls and clients know the port: the process before this one, which still has it,
// is waited for.
func TestAnUpgradeKeepsThePortOfWireGuard(t *testing.T) {
	before, at := taken(t)
	n := heir(at, netip.MustParseAddrPort("127.0.0.1:0"))
	time.AfterFunc(300*time.Millisecond, func() { before.Close() })
	if err := n.inherit(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer n.close()
	if got := n.gateway.Port(); got != int(at.Port()) {
		t.Errorf("WireGuard is at port %d now, and was at %d", got, at.Port())
	}
}

// Where another program has the port of QUIC, there are tunnels without it, also after an
// upgrade.
func TestAnUpgradeWithoutQUIC(t *testing.T) {
	_, at := taken(t)
	n := heir(netip.MustParseAddrPort("127.0.0.1:0"))
	n.quicAt = at
	within, cancel := context.WithTimeout(t.Context(), inheritTime+5*time.Second)
	defer cancel()
	if err := n.inherit(within); err != nil {
		t.Fatal(err)
	}
	defer n.close()
	if n.udp != nil {
		t.Error("there is a socket for QUIC")
	}
	words, lack := n.standing()
	if want := fmt.Sprintf("userspace; WireGuard at %d/udp, no QUIC: another program has %d/udp, MTU 1280", n.gateway.Port(), at.Port()); words != want || lack == nil {
		t.Errorf("it says %q (%v), want %q, and what is missing", words, lack, want)
	}
}

// TestNetworkSaysWhatItIs shows that what there is is said in words, with why it is not
// the better form.
func TestNetworkSaysWhatItIs(t *testing.T) {
	var none *network
	if words, lack := none.standing(); words != "off (--network off)" || lack != nil {
		t.Errorf("of none: %q, %v", words, lack)
	}
	n := heir(netip.MustParseAddrPort("127.0.0.1:0"))
	n.why = &netif.Error{Message: "this machine has no /dev/net/tun", Hint: "load it"}
	if words, _ := n.standing(); !strings.Contains(words, "when the process before") {
		t.Errorf("before it is open: %q", words)
	}
	if err := n.inherit(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer n.close()
	words, lack := n.standing()
	if !strings.HasPrefix(words, "userspace, as this machine has no /dev/net/tun; WireGuard at ") || !strings.Contains(words, "QUIC at ") || lack != nil {
		t.Errorf("it says %q, %v", words, lack)
	}
}

// TestFormOfAnHeir shows which form takes over tunnels that were handed over: one that can,
// and none in its place where connections live by an interface.
func TestFormOfAnHeir(t *testing.T) {
	for _, c := range []struct {
		form, worse string
		device      bool
		takes       bool
		left        string
	}{
		{networkTUN, networkUserspace, true, true, ""},
		{networkTUN, networkUserspace, false, true, networkUserspace},
		{networkTUN, "", true, true, ""},
		{networkUserspace, "", false, true, ""},
		{networkKernel, "", true, false, ""},
	} {
		n := &network{form: c.form, worse: c.worse}
		if takes := n.takesOver(c.device); takes != c.takes || n.worse != c.left {
			t.Errorf("%s, else %q, with an interface %t: else %q, takes over %t", c.form, c.worse, c.device, n.worse, takes)
		}
	}
}

func TestNetworkConfigsThatCannotBe(t *testing.T) {
	for want, c := range map[string]NetworkConfig{
		"--wireguard-port 70000":                           {WireGuard: 70000},
		"--wireguard-port -5":                              {WireGuard: -5},
		"--wireguard-port 8443: QUIC has that port of UDP": {WireGuard: 8443},
		`--gateway-address "1.2.3.4:5"`:                    {Addresses: []string{"2001:db8::1", "1.2.3.4:5"}},
		`--gateway-address ""`:                             {Addresses: []string{"gateway.example", ""}},
	} {
		if err := c.check(8443); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
