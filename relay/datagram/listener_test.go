package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"cardea/relay"
)

// send opens a socket, and sends a datagram.
func send(t *testing.T, to, what string) *net.UDPConn {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, what); err != nil {
		t.Fatal(err)
	}
	return c.(*net.UDPConn)
}

// reads reads one datagram.
func reads(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, relay.MaxDatagram)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(b); err != nil || string(b[:n]) != want {
		t.Errorf("read %.40q, %v, want %.40q", b[:n], err, want)
	}
}

// A flow is answered from the address that was asked, also where the port is at every one.
func TestListen(t *testing.T) {
	for _, test := range []struct{ network, listen, dial string }{
		{"udp", "127.0.0.1:0", "127.0.0.1"}, {"udp", "[::1]:0", "::1"}, {"udp", ":0", "127.0.0.1"}, {"udp", ":0", "::1"},
		{"udp4", ":0", "127.0.0.1"}, {"udp6", "[::]:0", "::1"}, {"udp", ":0", "127.0.0.2"}, {"udp4", "0.0.0.0:0", "127.0.0.2"},
	} {
		t.Run(test.network+" "+test.listen+" "+test.dial, func(t *testing.T) {
			if test.dial == "127.0.0.2" && runtime.GOOS != "linux" {
				t.Skip("only Linux has all of 127.0.0.0/8")
			}
			l, err := Listen(t.Context(), net.ListenConfig{}, test.network, test.listen)
			if err != nil {
				t.Skip(err) // no IPv6 here
			}
			defer l.Close()
			at := net.JoinHostPort(test.dial, fmt.Sprint(l.Addr().(*net.UDPAddr).Port))
			c := send(t, at, "hello")
			f := accept(t, l)
			reads(t, f, "hello")
			if f.RemoteAddr().String() != c.LocalAddr().String() || runtime.GOOS == "linux" && f.LocalAddr().String() != at {
				t.Errorf("the flow is from %v to %v", f.RemoteAddr(), f.LocalAddr())
			}
			io.WriteString(f, "answer")
			reads(t, c, "answer")
		})
	}
	if l, err := Listen(t.Context(), net.ListenConfig{}, "udp", "192.0.2.1:1"); err == nil || l != nil {
		t.Errorf("at an address of nobody: %v, %v", l, err)
	}
}

// A Listener that is closed ends its flows.
func TestCloseListener(t *testing.T) {
	l, client := ports(t, 10)
	client("x")
	f := accept(t, l)
	accepted := make(chan error, 1)
	go func() { _, err := l.Accept(); accepted <- err }()
	l.Close()
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := f.Read(nil); !errors.Is(err, errPortClosed) {
		t.Errorf("the flow reads %v", err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, errPortClosed) {
		t.Errorf("the flow writes %v", err)
	}
}

// Flows are what the Engine carries.
func TestFlowsAreCarried(t *testing.T) {
	var far *net.UDPConn
	up, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	if far, err = net.DialUDP("udp4", nil, up.LocalAddr().(*net.UDPAddr)); err != nil {
		t.Fatal(err)
	}
	l, client := ports(t, 10)
	c := client("question")
	e, results := New(), make(chan relay.Result, 1)
	e.Start(relay.Pair{Client: accept(t, l), Upstream: far}, func(r relay.Result) { results <- r })
	b := make([]byte, 100)
	n, from, err := up.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != "question" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	up.WriteToUDPAddrPort([]byte("answer"), from)
	reads(t, c, "answer")
	l.Close()
	if r := <-results; r.Reason != relay.ClientReset || !strings.Contains(r.Err.Error(), "closed") || r.SentPackets != 1 {
		t.Errorf("%+v", r)
	}
	e.Wait()
	if len(l.of) != 0 {
		t.Errorf("%d flows are left", len(l.of))
	}
}

// ports returns a port with room for so many flows, and a client of it.
func ports(t *testing.T, most int) (l *Listener, client func(what string) *net.UDPConn) {
	t.Helper()
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l = newListener(socket, most)
	t.Cleanup(func() { l.Close() })
	return l, func(what string) *net.UDPConn { return send(t, socket.LocalAddr().String(), what) }
}

func accept(t *testing.T, l *Listener) *Flow {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*Flow)
}

// When there are as many flows as there may be the oldest gives way that is not known to
// be there; those that are stay.
func TestFlowsGiveWay(t *testing.T) {
	l, client := ports(t, 3)
	known := client("hello")
	one := accept(t, l)
	reads(t, one, "hello")
	io.WriteString(one, "answer")
	reads(t, known, "answer")
	io.WriteString(known, "thanks")
	client("2")
	two := accept(t, l)
	reads(t, one, "thanks") // it came before
	client("3")
	three := accept(t, l)
	io.WriteString(three, "an answer that nobody hears")
	client("4")
	four := accept(t, l)
	reads(t, two, "2") // what it has is its own
	if _, err := two.Read(nil); !errors.Is(err, errGaveWay) {
		t.Errorf("the oldest reads %v", err)
	}
	client("5")
	accept(t, l)
	reads(t, three, "3")
	if _, err := three.Read(nil); !errors.Is(err, errGaveWay) {
		t.Errorf("the next reads %v", err)
	}
	reads(t, four, "4")
	io.WriteString(known, "still there")
	client("6")
	accept(t, l)
	reads(t, one, "still there")
	if len(l.of) != 3 || l.fresh.Len() != 2 {
		t.Errorf("%d flows, %d of them may give way", len(l.of), l.fresh.Len())
	}
}

// A flow that finds no place is refused.
func TestTooManyFlows(t *testing.T) {
	l, client := ports(t, 1)
	known := client("hello")
	one := accept(t, l)
	io.WriteString(one, "answer")
	reads(t, known, "answer")
	io.WriteString(known, "thanks")
	client("another")
	other := accept(t, l)
	if one.Excess() || !other.Excess() || len(l.of) != 1 {
		t.Errorf("excess: %v, %v; %d flows", one.Excess(), other.Excess(), len(l.of))
	}
	other.Close()
	one.Close()
	client("now")
	if next := accept(t, l); next.Excess() {
		t.Error("there is room, and it is refused")
	}
}

// What nobody reads takes no memory without bound.
func TestFlowsOfNoReader(t *testing.T) {
	l, _ := ports(t, 1000)
	key := flowKey{from: netip.MustParseAddrPort("192.0.2.1:1")}
	b := bytes.Repeat([]byte{1}, 60000)
	f := l.take(key, b, key.from, nil)
	for range 100 {
		l.take(key, b, key.from, nil)
	}
	if n := l.waits.Taken(); n > mostQueued || n < mostQueued/2 {
		t.Errorf("%d bytes wait in one flow", n)
	}
	var all []*Flow
	for n := range uint16(500) {
		key := flowKey{from: netip.AddrPortFrom(key.from.Addr(), 2+n)}
		for range 5 {
			if f := l.take(key, b, key.from, nil); f != nil {
				all = append(all, f)
			}
		}
	}
	if n := l.waits.Taken(); n > mostBytes || n < mostBytes/2 {
		t.Errorf("%d bytes wait", n)
	}
	f.Close()
	for _, f := range all {
		f.Close()
	}
	if n := l.waits.Taken(); n != 0 || len(l.of) != 0 || l.fresh.Len() != 0 {
		t.Errorf("%d bytes wait in no flow", n)
	}
}

func TestFlowDeadline(t *testing.T) {
	l, client := ports(t, 10)
	client("x")
	f := accept(t, l)
	reads(t, f, "x")
	f.SetReadDeadline(time.Unix(1, 0))
	if _, err := f.Read(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %v", err)
	}
	done := make(chan error, 1)
	f.SetReadDeadline(time.Time{})
	go func() { done <- f.Await() }()
	f.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("awaited %v", err)
	}
}
