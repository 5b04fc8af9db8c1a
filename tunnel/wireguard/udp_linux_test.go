package wireguard

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"pgregory.net/rapid"
)

// openUDP opens a bind, which is closed at the end, and returns its port and what reads
// from it.
func openUDP(t *testing.T, at string, answers bool) (conn.Bind, uint16, []conn.ReceiveFunc) {
	t.Helper()
	var only netip.Addr
	if at != "" {
		only = netip.MustParseAddr(at)
	}
	b := newUDP(only, answers, nil)
	fns, port, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b, port, fns
}

func buffers128() (packets [][]byte, sizes []int, eps []conn.Endpoint) {
	for range conn.IdealBatchSize {
		packets = append(packets, make([]byte, 1<<16))
	}
	return packets, make([]int, conn.IdealBatchSize), make([]conn.Endpoint, conn.IdealBatchSize)
}

// A gateway with several addresses answers from the one that was asked: a client whose
// socket is connected, or that is behind a NAT, takes no other answer.
func TestAnswersFromWhereItWasAsked(t *testing.T) {
	for _, c := range []struct{ name, asked string }{{"IPv4", "127.0.0.77"}, {"IPv6", "::1"}} {
		t.Run(c.name, func(t *testing.T) {
			b, port, fns := openUDP(t, "", true)
			client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.asked), port)))
			if err != nil {
				t.Skip("no address of this family: ", err)
			}
			defer client.Close()
			if _, err := client.Write([]byte("anybody there?")); err != nil {
				t.Fatal(err)
			}
			packets, sizes, eps := buffers128()
			n, err := fns[map[string]int{"IPv4": 0, "IPv6": 1}[c.name]](packets, sizes, eps)
			if err != nil || n != 1 || string(packets[0][:sizes[0]]) != "anybody there?" || eps[0].SrcIP() != netip.MustParseAddr(c.asked) {
				t.Fatalf("read %d packets, %q to %v, %v", n, packets[0][:sizes[0]], eps[0], err)
			}
			many := [][]byte{[]byte("yes"), []byte("yes"), []byte("no")}
			if err := b.Send(many, eps[0]); err != nil {
				t.Fatal(err)
			}
			for _, want := range many {
				client.SetReadDeadline(time.Now().Add(5 * time.Second))
				n, err := client.Read(packets[0])
				if err != nil || !bytes.Equal(packets[0][:n], want) {
					t.Fatalf("read %q, %v; want %q", packets[0][:n], err, want)
				}
			}
		})
	}
}

// What listens at one address is not there at another.
func TestListensWhereItIsToldTo(t *testing.T) {
	_, port, _ := openUDP(t, "127.0.0.77", true)
	other, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.78"), port)))
	if err != nil {
		t.Fatalf("the port is taken at another address too: %v", err)
	}
	other.Close()
	if _, _, err := newUDP(netip.MustParseAddr("127.0.0.77"), true, nil).Open(port); err == nil {
		t.Error("a port that is taken was opened")
	}
}

// However packets are sent, with one call or many, of whatever sizes, each arrives as it
// was.
func TestPacketsOfAllSizes(t *testing.T) {
	to, port, fns := openUDP(t, "127.0.0.1", false)
	from, _, _ := openUDP(t, "127.0.0.1", false)
	e, err := from.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	into, sizes, eps := buffers128()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1, 148, 1312, 1452, 9000, 60_000}).Draw(t, "size")
		var packets [][]byte
		var total int
		for i := range rapid.IntRange(1, conn.IdealBatchSize).Draw(t, "packets") {
			n := size
			if rapid.IntRange(0, 9).Draw(t, "other") == 0 {
				n = rapid.IntRange(1, 65_000).Draw(t, "its size")
			}
			if total += n; total > 1<<20 { // the socket holds no more
				break
			}
			packets = append(packets, bytes.Repeat([]byte{byte(i)}, n))
		}
		if err := from.Send(packets, e); err != nil {
			t.Fatal(err)
		}
		for len(packets) > 0 {
			n, err := fns[0](into, sizes, eps)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if len(packets) == 0 || !bytes.Equal(into[i][:sizes[i]], packets[0]) {
					t.Fatalf("a packet of %d bytes arrived, which is not the next one", sizes[i])
				}
				packets = packets[1:]
			}
		}
	})
	to.Close()
	if _, err := fns[0](into, sizes, eps); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
