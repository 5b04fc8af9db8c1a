package wireguard_test

import (
	"net/netip"
	"os"
	"testing"

	"cardea/tunnel/wireguard"
)

// TestKernelIsLeft has another Gateway take the place of one of form KERNEL: it is given
// nothing, and finds the port free once that was left, which says nothing of peers then.
func TestKernelIsLeft(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		t.Skip("run by TestGuest")
	}
	g := gateway(t, echoing(t))
	c := client(t, g, "s-1", addresses)
	if _, err := c.Probe(t.Context(), "gw"); err != nil {
		t.Fatal(err)
	}
	ask(t, dial(t, c, "tcp", echo4), []byte("hello"))
	if files, known, err := g.Bequeath(); len(files) > 0 || known != "" || err != nil {
		t.Fatalf("it hands over %v, %q, %v", files, known, err)
	}
	g.Leave(false)
	after := gateway(t, echoing(t), func(h *wireguard.Gateway) {
		h.Key, h.Listen = g.Key, netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(g.Port()))
	})
	peer := wireguard.Peer{Session: "s-1", PublicKey: c.Key.Public(), Addresses: addresses}
	if err := after.Put(peer); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Probe(t.Context(), "gw"); err != nil { // as clients do
		t.Fatal(err)
	}
	ask(t, dial(t, c, "tcp", echo4), []byte("hello"))
	if p := g.Peers(); len(p) > 0 {
		t.Errorf("the one that was left has the peers %v", p)
	}
	g.Dropped()
	g.Remove("s-1")
	if err := g.Put(peer); err != nil {
		t.Errorf("one that was left does not ignore peers: %v", err)
	}
}
