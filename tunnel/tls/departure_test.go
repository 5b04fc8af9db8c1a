package tls_test

import (
	stdtls "crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/tunnel"
)

// Who goes without close_notify has reset the connection. If it had read ours, and sent
// nothing since, that is told apart; and only then.
func TestDeparture(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere it is not told apart")
	}
	ours := func(t *testing.T, c *stdtls.Conn, house tunnel.Conn) {
		t.Helper()
		if err := house.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	read := func(t *testing.T, c *stdtls.Conn, house tunnel.Conn) {
		t.Helper()
		ours(t, c, house)
		if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
			t.Fatalf("the client reads %q, %v", b, err)
		}
	}
	half := []byte{23, 3, 3, 0, 100, 1, 2, 3} // of a record
	for _, version := range []uint16{stdtls.VersionTLS12, stdtls.VersionTLS13} {
		for _, test := range []struct {
			name     string
			before   func(t *testing.T, c *stdtls.Conn, house tunnel.Conn)
			end      func(c *stdtls.Conn, tcp *net.TCPConn)
			text     string // that the client still sends
			departed bool
		}{
			{"it has read ours", read, func(_ *stdtls.Conn, tcp *net.TCPConn) { tcp.Close() }, "", true},
			{"it has read ours, and half-closes TCP", read, func(_ *stdtls.Conn, tcp *net.TCPConn) { tcp.CloseWrite() }, "", true},
			{"it sends on", read, func(c *stdtls.Conn, tcp *net.TCPConn) { c.Write([]byte("more")); tcp.Close() }, "more", false},
			{"it sends part of a record", read, func(_ *stdtls.Conn, tcp *net.TCPConn) { tcp.Write(half); tcp.Close() }, "", false},
			{"it resets", read, func(_ *stdtls.Conn, tcp *net.TCPConn) { tcp.SetLinger(0); tcp.Close() }, "", false},
			{"it has not read ours", ours, func(_ *stdtls.Conn, tcp *net.TCPConn) { tcp.Close() }, "", false},
			{"there is none of ours", func(*testing.T, *stdtls.Conn, tunnel.Conn) {}, func(_ *stdtls.Conn, tcp *net.TCPConn) { tcp.Close() }, "", false},
		} {
			t.Run(stdtls.VersionName(version)+"/"+test.name, func(t *testing.T) {
				p := terminate(t, "127.0.0.1", nil)
				config := anyone()
				config.MaxVersion = version
				c, house, _ := p.dial(t, config)
				<-p.certificates
				c.Write([]byte("hello"))
				b := make([]byte, 5)
				if _, err := io.ReadFull(house, b); err != nil {
					t.Fatal(err)
				}
				test.before(t, c, house)
				test.end(c, c.NetConn().(*net.TCPConn))
				text, err := io.ReadAll(house)
				if string(text) != test.text || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the house reads %q, %v; want %q and a reset", text, err, test.text)
				}
				if _, departed := errors.AsType[relay.Departure](err); departed != test.departed {
					t.Errorf("%v: told apart: %t", err, departed)
				}
			})
		}
	}
}

// What the log says of such a connection, and what the upstream sees: never an end.
func TestDepartureIsRelayed(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere it is not told apart")
	}
	for name, x := range map[string]struct {
		late string // what the client sends after the upstream's end
		want relay.Reason
	}{"the client leaves": {"", relay.UpstreamClosed}, "the client is cut short": {"more", relay.ClientReset}} {
		t.Run(name, func(t *testing.T) {
			p := terminate(t, "127.0.0.1", nil)
			client, house, _ := p.dial(t, anyone())
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			given, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			upstream, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer upstream.Close()
			upstream.SetDeadline(time.Now().Add(time.Minute))
			engine := relaycopy.New()
			results := make(chan relay.Result, 1)
			engine.Start(relay.Pair{Client: house, Upstream: given}, func(r relay.Result) { results <- r })
			io.WriteString(client, "question")
			if _, err := io.ReadFull(upstream, make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
			io.WriteString(upstream, "answer")
			upstream.(*net.TCPConn).CloseWrite() // it would read on
			if b, err := io.ReadAll(client); string(b) != "answer" || err != nil {
				t.Fatalf("the client reads %q, %v", b, err)
			}
			io.WriteString(client, x.late)
			client.NetConn().Close()
			r := <-results
			engine.Wait()
			if r.Reason != x.want || (r.Err == nil) != (x.want == relay.UpstreamClosed) {
				t.Errorf("%s, %v; want %s", r.Reason, r.Err, x.want)
			}
			if _, err := io.ReadAll(upstream); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the upstream sees %v, want a reset", err)
			}
		})
	}
}
