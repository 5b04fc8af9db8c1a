package proxy

import (
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
)

// beneath is a layer over another connection.
type beneath struct{ net.Conn }

func (b beneath) NetConn() net.Conn { return b.Conn }

// Only a client with whom nothing can be exchanged any more is gone.
func TestIsGone(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reset := func(c *net.TCPConn) { c.SetLinger(0); c.Close() }
	finish := func(client, server *net.TCPConn) {
		client.CloseWrite()
		if _, err := server.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read %v", err)
		}
	}
	for _, test := range []struct {
		name string
		do   func(client, server *net.TCPConn)
		gone bool
	}{
		{"it is there", func(_, _ *net.TCPConn) {}, false},
		{"it has sent something", func(client, _ *net.TCPConn) { client.Write([]byte("x")) }, false},
		{"it has half-closed", finish, false},
		{"it has reset", func(client, _ *net.TCPConn) { reset(client) }, true},
		{"it has sent, and reset", func(client, _ *net.TCPConn) { client.Write([]byte("x")); reset(client) }, true},
		{"it has half-closed, and reset", func(client, server *net.TCPConn) { finish(client, server); reset(client) }, true},
		{"both have finished", func(client, server *net.TCPConn) { finish(client, server); server.CloseWrite() }, true},
		{"it is closed here", func(_, server *net.TCPConn) { server.Close() }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dialled, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
			if err != nil {
				t.Fatal(err)
			}
			defer dialled.Close()
			server, err := l.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			test.do(dialled, server)
			for test.gone && !isGone(server) { // on its way
				runtime.Gosched()
			}
			if isGone(server) != test.gone || isGone(beneath{beneath{server}}) != test.gone {
				t.Errorf("gone: %v, want: %v", !test.gone, test.gone)
			}
		})
	}
	if c, _ := net.Pipe(); isGone(c) || isGone(nil) {
		t.Error("what has no socket is gone")
	}
}
