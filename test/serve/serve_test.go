package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/upstream"
)

// listen returns the URL of an upstream that does that with each connection.
func listen(t *testing.T, serve func(*net.TCPConn)) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		conns.Wait()
	})
	return "tcp://" + l.Addr().String()
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// ping has a connection echo.
func ping(c net.Conn) error {
	b := []byte("ping")
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
		return fmt.Errorf("read %q: %w", b, err)
	}
	return nil
}

// TestOneIsKilled is two devices that serve one Service, of which one is killed, or
// stopped so that it says nothing any more, while many connect: connections through the
// other go on, and every new one is there within two seconds.
func TestOneIsKilled(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			url := listen(t, echo)
			g := newGateway(t)
			victim := g.device("victim", serving(url))
			g.device("survivor", serving(url))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dial := func() (net.Conn, api.Hold, error) {
				within, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				c, report, err := g.dialer.Dial(within, to(url))
				return c, report.Hold, err
			}
			var lives [20]net.Conn // half of them through each
			through := map[string]int{}
			for i := range lives {
				c, hold, err := dial()
				if err != nil {
					t.Fatal(err)
				}
				defer hold.Release(1, false)
				defer c.Close()
				lives[i] = c
				through[sessionOf(c)]++
			}
			if through["victim"] != 10 || through["survivor"] != 10 {
				t.Errorf("the connections go through %v", through)
			}
			var carried atomic.Int64
			var killed atomic.Bool
			ready, enough := make(chan struct{}), make(chan struct{})
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for ctx.Err() == nil {
						after := killed.Load()
						c, hold, err := dial()
						if err != nil {
							if ctx.Err() == nil {
								t.Errorf("no new connection (after the signal: %v): %v", after, err)
							}
							return
						}
						// What has begun before the signal may break with the device.
						err = ping(c)
						if err != nil && (after && sessionOf(c) != "victim" || sessionOf(c) == "survivor") {
							t.Errorf("a connection through %s: %v", sessionOf(c), err)
						}
						hold.Release(4, err != nil)
						c.Close()
						switch carried.Add(1) {
						case 200:
							close(ready)
						case 600:
							close(enough)
						}
					}
				})
			}
			<-ready
			if err := victim.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			killed.Store(true)
			for _, c := range lives { // now, while all is busy
				if sessionOf(c) == "survivor" {
					if err := ping(c); err != nil {
						t.Errorf("a connection through the device that lives: %v", err)
					}
				} else if signal == syscall.SIGKILL {
					if err := ping(c); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
						t.Errorf("a connection through the device that was killed: %v", err)
					}
					c.Close()
				}
			}
			select {
			case <-enough:
			case <-time.After(time.Minute):
				t.Errorf("%d connections", carried.Load())
			}
			cancel()
			if signal == syscall.SIGSTOP {
				victim.Process.Kill() // so that what waits for it ends
			}
			all.Wait()
			for _, c := range lives {
				if sessionOf(c) == "survivor" {
					if err := ping(c); err != nil {
						t.Errorf("a connection through the device that lives: %v", err)
					}
				}
			}
			if signal == syscall.SIGKILL {
				g.until(func() bool { return g.links["victim"] == 0 })
				if got := strings.Join(g.states(), ", "); got != "session survivor HEALTHY" {
					t.Errorf("the endpoints are %s", got)
				}
			}
		})
	}
}

// TestTheWholeWay is what TCP can do, from the gateway through a device to the upstream.
func TestTheWholeWay(t *testing.T) {
	heard := make(chan string)
	answers := make(chan string)
	url := listen(t, func(c *net.TCPConn) {
		b, err := io.ReadAll(c)
		heard <- fmt.Sprintf("%d bytes, reset %v", len(b), errors.Is(err, syscall.ECONNRESET))
		switch answer := <-answers; answer {
		case "RESET":
			c.SetLinger(0)
		default:
			io.WriteString(c, answer)
		}
	})
	g := newGateway(t)
	g.device("laptop-1", serving(url))
	type stream interface {
		net.Conn
		CloseWrite() error
		Reset(string) error
	}
	dial := func() stream {
		t.Helper()
		c, report, err := g.dialer.Dial(t.Context(), to(url))
		if err != nil {
			t.Fatal(err)
		}
		report.Hold.Release(1, false)
		return c.(stream)
	}
	const large = 5 << 20
	c := dial()
	if _, err := c.Write(make([]byte, large)); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if got := <-heard; got != fmt.Sprintf("%d bytes, reset false", large) {
		t.Errorf("the upstream heard %s", got)
	}
	answers <- "after the end of the other direction"
	if b, err := io.ReadAll(c); string(b) != "after the end of the other direction" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	c.Close()

	c = dial()
	io.WriteString(c, "cut short")
	c.Reset("REVOKED")
	if got := <-heard; !strings.HasSuffix(got, "reset true") {
		t.Errorf("the upstream heard %s", got)
	}
	answers <- ""

	c = dial()
	c.CloseWrite()
	<-heard
	answers <- "RESET"
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %v, want a reset", err)
	}
	c.Close()
}

// TestWhatIsNotServed is a device that is asked for what it has not agreed to, or cannot
// reach: it says so, and the words reach who reads the log.
func TestWhatIsNotServed(t *testing.T) {
	url := listen(t, echo)
	g := newGateway(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := "tcp://" + l.Addr().String()
	l.Close()
	other := serving(down)
	other.Service = "down.default"
	g.device("laptop-1", serving(url), other)
	for target, words := range map[string]string{"ssh.default": "this device does not serve it", "down.default": "nothing listens there, as this device sees it"} {
		d := to(url)
		d.Service, d.Object.Name = target, target
		_, _, err := g.dialer.Dial(t.Context(), d)
		e, ok := errors.AsType[*upstream.Error](err)
		if !ok || e.Reason != upstream.DialFailed || !strings.Contains(e.Words, words) || !strings.Contains(e.Words, "session laptop-1: ") {
			t.Errorf("%s: %v, want %q", target, err, words)
		}
	}
	c, report, err := g.dialer.Dial(t.Context(), to(url)) // and the rest goes on
	if err != nil {
		t.Fatal(err)
	}
	report.Hold.Release(1, false)
	defer c.Close()
	if err := ping(c); err != nil {
		t.Error(err)
	}
}
