package memory_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/memory"
	"cardea/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoad(t *testing.T) {
	tunneltest.Run(t, func(t *testing.T, h tunnel.Handler) tunnel.Dialer {
		return &memory.Road{Handler: h, Session: "s-1"}
	})
}

type house func(api.Arrival)

func (h house) Arrive(a api.Arrival)  { h(a) }
func (h house) Refused(r api.Refusal) {}

func admit(a api.Arrival) tunnel.Conn {
	a.Conn.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictOK})
	return a.Conn.(tunnel.Conn)
}

func TestFacts(t *testing.T) {
	var got api.Arrival
	r := &memory.Road{
		Handler: house(func(a api.Arrival) { got = a; admit(a) }),
		Session: "s-1",
		Source:  netip.MustParseAddrPort("[::ffff:192.0.2.1]:4711"),
	}
	if _, err := r.Dial(t.Context(), "nats.prod"); err != nil {
		t.Fatal(err)
	}
	want := api.Facts{IP: "192.0.2.1", Port: 4711, Tunnel: "memory"}
	if got.Facts != want || got.Service != "nats.prod" || got.Evidence.Kind != api.EvidenceMemory || string(got.Evidence.Data) != "s-1" {
		t.Errorf("%+v", got)
	}
	r.Session = ""
	if _, err := r.Dial(t.Context(), "nats"); err != nil {
		t.Fatal(err)
	}
	if got.Evidence.Kind != "" || got.Evidence.Data != nil {
		t.Errorf("nobody presents %+v", got.Evidence)
	}
}

// pair returns both ends of a stream.
func pair(t *testing.T) (client, server tunnel.Conn) {
	t.Helper()
	r := &memory.Road{Handler: house(func(a api.Arrival) { server = admit(a) })}
	c, err := r.Dial(t.Context(), "nats")
	if err != nil {
		t.Fatal(err)
	}
	return c.(tunnel.Conn), server
}

func TestBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t)
		sent := bytes.Repeat([]byte("0123456789"), 20_000)
		done := false
		go func() {
			if _, err := client.Write(sent); err != nil {
				t.Error(err)
			}
			done = true
			client.CloseWrite()
		}()
		synctest.Wait()
		if done {
			t.Fatalf("%d bytes fit into a stream that nobody reads", len(sent))
		}
		got, err := io.ReadAll(server)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
		synctest.Wait()
		if !done {
			t.Fatal("the writer still waits")
		}
	})
}

// TestWaitReset tells a peer that has closed from one that only half-closed: the
// first will not hear what this end still has to say.
func TestWaitReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, finished := range []bool{false, true} {
			client, server := pair(t)
			client.CloseWrite()
			if n, err := server.Read(make([]byte, 1)); n > 0 || err != io.EOF {
				t.Fatalf("read %d, %v; want the end of file", n, err)
			}
			waited := make(chan error, 1)
			go func() { waited <- server.(tunnel.Watcher).WaitReset() }()
			time.Sleep(time.Hour)
			if finished {
				server.CloseWrite()
			}
			client.Close()
			synctest.Wait()
			select {
			case err := <-waited:
				if finished || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("with this end finished %v: the wait ended with %v", finished, err)
				}
			default:
				if !finished {
					t.Error("the peer has closed, and the wait goes on")
				}
				server.Close()
				if err := <-waited; !errors.Is(err, net.ErrClosed) {
					t.Errorf("the wait ended with %v, want net.ErrClosed", err)
				}
			}
			server.Close()
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t)
		start := time.Now()
		client.SetReadDeadline(start.Add(time.Minute))
		// Moved while a read waits.
		go func() {
			time.Sleep(30 * time.Second)
			client.SetReadDeadline(start.Add(2 * time.Minute))
		}()
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		if took := time.Since(start); took != 2*time.Minute {
			t.Errorf("the read waited for %v", took)
		}
		client.SetReadDeadline(time.Time{})
		client.SetWriteDeadline(time.Now().Add(time.Hour))
		n, err := client.Write(make([]byte, 1<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
			t.Errorf("wrote %d, %v", n, err)
		}
		got := 0
		server.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := server.Read(make([]byte, 1000))
			if got += n; err != nil {
				break
			}
		}
		if got != n {
			t.Errorf("%d bytes arrived of %d that were written before the deadline", got, n)
		}
	})
}
