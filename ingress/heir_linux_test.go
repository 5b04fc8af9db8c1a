package ingress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cardea/api"
	"cardea/relay"
	"cardea/relay/datagram"
)

// option reads a number of a connection's socket.
func option(t *testing.T, c any, level, name int) (n int) {
	t.Helper()
	control(c, func(fd int) {
		var err error
		if n, err = unix.GetsockoptInt(fd, level, name); err != nil {
			t.Error(err)
		}
	})
	return n
}

// However a connection came in, a peer that has died is found out, and nothing waits
// for more to send.
func TestOptionsOfConnections(t *testing.T) { onRoads(t, testOptionsOfConnections) }

func testOptionsOfConnections(t *testing.T, newSite func(*testing.T) *site) {
	port := freePort(t)
	before, after := newSite(t), newSite(t)
	before.set(public("a.ns", port))
	after.inherit(before)
	after.set(public("a.ns", port))
	for _, s := range []*site{before, after} {
		s.run().dial(at("127.0.0.1", port))
		a := s.arrival()
		for _, x := range []struct{ level, name, want int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30}, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		} {
			if n := option(t, a.Conn, x.level, x.name); n != x.want {
				t.Errorf("inherited %v: option %d.%d is %d, want %d", s == after, x.level, x.name, n, x.want)
			}
		}
		s.stop()
	}
}

// inherit gives a site the ports that another has open.
func (s *site) inherit(from *site) (asked map[api.Bind]int) {
	s.t.Helper()
	files, err := from.Sockets()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		for _, f := range files {
			f.Close()
		}
	})
	asked = map[api.Bind]int{}
	s.Inherit = func(b api.Bind) net.Listener {
		asked[b]++
		f := files[b]
		if f == nil {
			return nil
		}
		delete(files, b)
		defer f.Close()
		f.Fd() // as os/exec asks: nothing may block after it
		if b.UDP {
			c, err := net.FilePacketConn(f)
			if err != nil {
				s.t.Error(err)
				return nil
			}
			return datagram.Inherit(c.(*net.UDPConn))
		}
		l, err := net.FileListener(f)
		if err != nil {
			s.t.Error(err)
			return nil
		}
		return l
	}
	return asked
}

// Between one process and the next nobody is refused who comes to a port that both
// have, nor who waits there.
func TestInherit(t *testing.T) { onRoads(t, testInherit) }

func testInherit(t *testing.T, newSite func(*testing.T) *site) {
	before, after := newSite(t).run(), newSite(t)
	stays, goes, comes := freePort(t), freePort(t), freePort(t)
	every, one, other := public("every.ns", stays), public("one.ns", stays, local), public("other.ns", stays, address("127.0.0.2"))
	before.set(every, one, public("goes.ns", goes))
	before.dial(at("127.0.0.3", stays)).Close()
	before.arrival().Conn.Close()

	asked := after.inherit(before)
	after.set(every, one, other, public("comes.ns", comes))
	for _, name := range []string{"every.ns", "one.ns", "other.ns", "comes.ns"} {
		if open, message := after.condition(name); !open {
			t.Errorf("%s: %s", name, message)
		}
	}
	before.stop()
	for host, want := range map[string]string{"127.0.0.1": "one.ns", "127.0.0.2": "other.ns", "127.0.0.3": "every.ns", "::1": "every.ns"} {
		c := after.dial(at(host, stays)) // waits
		if after.life == nil {
			after.run()
		}
		a := after.arrival()
		if a.Service != want || a.Facts.Listener != at(host, stays) {
			t.Errorf("at %s: %s, %s", host, a.Service, a.Facts.Listener)
		}
		go a.Conn.Write([]byte("x"))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	after.set(every)
	after.set(every, one, other)
	for bind, n := range asked {
		if n != 1 {
			t.Errorf("%v was asked for %d times", bind, n)
		}
	}
	if len(asked) != 4 {
		t.Errorf("asked for %v", asked)
	}
	after.dial(at("127.0.0.1", stays))
	if a := after.arrival(); a.Service != "one.ns" {
		t.Errorf("opened again: %s", a.Service)
	}
}

// What is given to the next process does not hinder this one, if that fails.
func TestSocketsAreDuplicates(t *testing.T) { onRoads(t, testSocketsAreDuplicates) }

func testSocketsAreDuplicates(t *testing.T, newSite func(*testing.T) *site) {
	s := newSite(t).run()
	port := freePort(t)
	s.set(public("a.ns", port, local))
	for range 3 {
		files, err := s.Sockets()
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		f := files[api.Bind{Address: "127.0.0.1", Port: port}]
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the listener may block: %#x, %v", flags, err)
		}
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("every child gets it: %#x, %v", flags, err)
		}
		s.dial(at("127.0.0.1", port))
		s.arrival().Conn.Close()
		f.Close()
	}
	s.stop()
	if files, err := s.Sockets(); len(files) != 0 || err != nil {
		t.Error(files, err)
	}
	if _, err := net.Dial("tcp", at("127.0.0.1", port)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a descriptor is left: %v", err)
	}
}

// The process that leaves a port closes it, unless the next one has taken it: then what
// comes is that one's, and who was asked before still answers.
func TestLeaveWithUDP(t *testing.T) {
	for _, taken := range []bool{true, false} {
		t.Run(fmt.Sprintf("taken %v", taken), func(t *testing.T) {
			before, after := newSite(t).run(), newSite(t)
			port := freeUDP(t)
			here, now := at("127.0.0.1", port), public("a.ns", port, local, datagrams)
			before.set(now)
			c := send(t, "", here, "x")
			old := before.arrival()
			reads(t, old.Conn, "x")
			if taken {
				after.inherit(before)
				after.set(now)
			}
			before.Leave(func(b api.Bind) bool { return taken && b == api.Bind{Address: "127.0.0.1", Port: port, UDP: true} })
			if !taken {
				if _, err := old.Conn.Read(make([]byte, 1)); err == nil {
					t.Error("the flow goes on without a port")
				}
				other, err := net.ListenPacket("udp", here)
				if err != nil {
					t.Fatalf("the port is still taken: %v", err)
				}
				other.Close()
				return
			}
			io.WriteString(c, "y") // waits
			after.run()
			a := after.arrivalOf(func() { io.WriteString(c, "y") }) // who was asked before may have read it
			reads(t, a.Conn, "y")
			for who, flow := range map[string]net.Conn{"old": old.Conn, "new": a.Conn} {
				if _, err := io.WriteString(flow, who); err != nil {
					t.Errorf("%s: %v", who, err)
				}
				reads(t, c, who)
			}
			old.Conn.Close()
			a.Conn.Close()
			after.stop()
			other, err := net.ListenPacket("udp", here)
			for limit := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(limit); { // Leave does not wait for who reads
				other, err = net.ListenPacket("udp", here)
			}
			if err != nil {
				t.Fatalf("a descriptor is left: %v", err)
			}
			other.Close()
		})
	}
}

// A port is served all the same if it cannot be given to who accepts raw.
func TestRawCannot(t *testing.T) {
	s := newSite(t)
	s.Raw = func(*net.TCPListener) (relay.Listener, error) {
		return nil, os.NewSyscallError("epoll_ctl", unix.EMFILE)
	}
	s.run()
	port := freePort(t)
	s.set(public("a.ns", port, local))
	s.dial(fmt.Sprintf("127.0.0.1:%d", port))
	if a := s.arrival(); a.Service != "a.ns" {
		t.Errorf("%+v", a)
	}
}
