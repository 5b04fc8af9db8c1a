package client_test

import (
	"bytes"
	"context"
	"net"
	"testing"

	"cardea/client"
	"cardea/relay"
)

// messageEcho is a Dialer of a Service of UDP that sends each datagram back.
type messageEcho struct{}

func (messageEcho) Dial(context.Context, string) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	theirs, err := l.Accept()
	if err != nil {
		return nil, err
	}
	go func() {
		defer theirs.Close()
		m, b := relay.Messages(theirs), make([]byte, relay.MaxDatagram)
		for {
			n, err := m.Read(b)
			if err != nil {
				return
			}
			if _, err := m.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	return ours, nil
}

// TestPublishedUDP has two sources, each with a flow of its own, and keeps the boundaries
// of datagrams, the empty and the largest ones too.
func TestPublishedUDP(t *testing.T) {
	for _, port := range []string{"echo:0/udp", "echo:[::1]:0/udp", "echo:0.0.0.0:0/udp"} {
		t.Run(port, func(t *testing.T) {
			p := publish(t, messageEcho{}, newWords(), port)
			_, number, _ := net.SplitHostPort(p.Address)
			host := "127.0.0.1"
			if port == "echo:[::1]:0/udp" {
				host = "::1"
			}
			for range 2 {
				c, err := net.Dial("udp", net.JoinHostPort(host, number))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				for _, size := range []int{1, 0, 1472, 65000} {
					out, in := bytes.Repeat([]byte{byte(size)}, size), make([]byte, relay.MaxDatagram)
					if _, err := c.Write(out); err != nil {
						t.Fatal(err)
					}
					if n, err := c.Read(in); err != nil || !bytes.Equal(in[:n], out) {
						t.Fatalf("%d bytes came back as %d, %v", size, n, err)
					}
				}
			}
		})
	}
}

// TestPublishedUDPRefused says once why there is no flow, and not for each datagram.
func TestPublishedUDPRefused(t *testing.T) {
	said := newWords()
	p := publish(t, noDialer{}, said, "echo:0/udp")
	c := dial(t, client.Port{Network: "udp", Address: p.Address})
	for range 20 {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	said.await(t, "cannot be reached")
}
