package client

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
)

// TestResetConnections resets those of one address, and no other.
func TestResetConnections(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may reset the connections of others")
	}
	for _, tc := range []struct{ network, own, other string }{{"tcp4", "127.0.77.1", "127.0.77.2"}} {
		l, err := net.Listen(tc.network, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		open := func(from string) net.Conn {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			c, err := d.DialContext(t.Context(), tc.network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		gone, stays := open(tc.own), open(tc.other)
		n, err := resetConnections([]netip.Addr{netip.MustParseAddr(tc.own)})
		if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPERM) {
			t.Skip("this kernel resets no connections: ", err)
		}
		if n != 1 || err != nil {
			t.Fatalf("reset %d, %v", n, err)
		}
		if _, err := gone.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("what was reset says %v", err)
		}
		if _, err := stays.Write([]byte("x")); err != nil {
			t.Errorf("another: %v", err)
		}
	}
}
